"""Where chains start: apart, by cooling them from a temperature at which they get about, with steps that fit there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.adaptation import Adaptation, Adapted
from samplers.kernel import Kernel
from samplers.potential import Batch, Potential, WrappedPotential

RUNGS_PER_DECADE = 2  # of nβ; energies of neighbouring laws then overlap up to dozens of free coordinates
MOST_HALVINGS, LEAST_RATE = 6, 0.5  # of the smallest step; what every chain accepts of such steps


@dataclass(frozen=True)
class _Heated(WrappedPotential):
    """The potential at a lower nβ; the localiser is as it was."""

    n_beta: float


def disperse(hottest: float = 10.0, num_steps: int = 8) -> Adaptation:
    r"""Adaptation of where the chains start, and of the smallest step: apart, cooled from a low inverse temperature.

    .. math:: n\beta_i = n\beta \, (h / n\beta)^{1 - i/r}, \qquad 0 \le i \le r

    with h the hottest nβ, and r twice log₁₀(nβ/h), rounded up; so many steps at each, the last at nβ itself, and step
    sizes up to the root of nβ/nβᵢ times as large, as the walls are apart. The localiser is not tempered.

    R̂ compares chains, and sees a part of the law that they all missed only if they did not all start in one place.
    From the anchor, Hamiltonian paths of the curve w₁w₂ = 0 at nβ = 10⁶ may miss the ends of its arms: of four runs
    one gave 0.404 ± 0.009 where 0.4375 is exact, with R̂ of everything below 1.04. Chains that were cooled come to rest
    in all parts of the law, in about the right shares; where they cannot get from one to the other, they now disagree.

    The low end of the range of step sizes is then halved, up to six times, until every chain accepts half of its
    steps between one and two of it. Else a chain in a narrow part stands still, high above the floor: of six runs on
    the curve one gave 1.3 ± 0.8.

    Args:
        hottest: h, in the unit of the potential's nβ. At 10, walls are a third of the localiser's width where
            curvatures are about one. Where nβ is less, chains start where they were to start.
        num_steps: Steps at each inverse temperature.

    Returns:
        An adaptation for ``hmc`` with a range of step sizes, after those of its metric and of the range.

    Raises:
        ValueError: ``hottest`` or ``num_steps`` is not positive; or, when it is run, the kernel is not ``hmc`` with a
            range of step sizes, or chains have an nβ each.

    Source:
        Gelman & Rubin 1992, §2.1: starts that are more dispersed than the law.
    """
    if not hottest > 0 or num_steps < 1:
        raise ValueError(f"hottest, num_steps: {hottest}, {num_steps}; expected both to be positive.")

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        steps = kernel.settings.get("step_size")
        if kernel.name != "hmc" or not isinstance(steps, tuple) or isinstance(potential.n_beta, Tensor):
            raise ValueError(
                f"kernel: {kernel.name} at step size {steps}, nβ {potential.n_beta}; expected hmc((low, high)), for "
                "which accept_over_scales finds the two, and one nβ for all chains."
            )
        heat = potential.n_beta / hottest
        if heat <= 1:
            return Adapted(kernel, 0)
        rungs = math.ceil(RUNGS_PER_DECADE * math.log10(heat))
        for rung in range(rungs + 1):
            times = heat ** (1 - rung / rungs)
            heated = _Heated(potential, potential.n_beta / times)
            mover = kernel.tune(step_size=(steps[0], steps[1] * math.sqrt(times)))
            state = mover.init(position.clone(), heated)
            for _ in range(num_steps):
                mover.step_(state, heated, None, generator)
            position = state.position
        gradients = (rungs + 1) * (num_steps * kernel.gradients_per_step + 1)
        low, high = steps
        state = kernel.init(position.clone(), potential)
        for halving in range(MOST_HALVINGS + 1):
            mover = kernel.tune(step_size=(low, 2 * low))
            rates = [mover.step_(state, potential, None, generator).acceptance_rate for _ in range(num_steps)]
            gradients += num_steps * kernel.gradients_per_step
            if halving == MOST_HALVINGS or float(torch.stack(rates).mean(0).min()) >= LEAST_RATE:
                break
            low /= 2
        return Adapted(kernel.tune(step_size=(low, high)), gradients + 1, state.position.detach().clone())

    return adapt
