"""A range of step sizes for paths over many scales, around the one that dual averaging finds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from samplers.adaptation import Adaptation, Adapted, accept_at_rate
from samplers.kernel import Kernel
from samplers.potential import Batch, Potential

# The range: from an eighth of ε to eight times ε, less than a decade each way.
RATIO = 8.0
# In a metric that whitens, half the width of a wall that it knows: steps up to there are accepted on it.
HALF_A_WIDTH = 0.5


def accept_over_scales(rate: float = 0.8, num_steps: int = 150) -> Adaptation:
    r"""Adaptation of the two step sizes of ``hmc((low, high))`` in a whitened metric.

    .. math:: \mathrm{low} = \epsilon / 8, \qquad \mathrm{high} = \max(\min(8\epsilon, \tfrac12), \; 2\,\mathrm{low})

    with ε the one step size at which ``rate`` of the moves are accepted, by :func:`samplers.accept_at_rate`. Chains
    that have not left the wide parts of the target accept steps that narrow parts refuse: the small ones are for these,
    the large ones for the flat directions.

    Args:
        rate: Acceptance rate at which ε is taken.
        num_steps: Steps of the pilot.

    Returns:
        An adaptation for ``hmc``, to be run after that of its preconditioner.

    Raises:
        ValueError: ``rate`` or ``num_steps`` is out of range; or, when it is run, the kernel is not ``hmc``.
        FloatingPointError: When it is run: the gradient is not finite close to the start.

    Source:
        The range is a choice, made on trained tanh and ReLU networks of 10 to 2,000 weights; see
        :func:`samplers.hmc` for why one step size is not enough.
    """
    find = accept_at_rate(rate, num_steps)

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        if kernel.name != "hmc":
            raise ValueError(f"kernel: {kernel.name}; expected hmc, whose step size may be a range.")
        found = find(kernel, potential, position, batches, generator)
        epsilon = found.kernel.settings["step_size"]
        low = epsilon / RATIO
        high = max(min(RATIO * epsilon, HALF_A_WIDTH), 2 * low)
        return Adapted(kernel.tune(step_size=(low, high)), found.num_gradients)

    return adapt
