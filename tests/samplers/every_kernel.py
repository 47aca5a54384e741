"""Every kernel of the package, made at a step size: the table that the conformance suite runs through."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import samplers
from tests.samplers.laws import Quadratic

LADDER = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)


class Entry(NamedTuple):
    """How the suite makes a kernel, and what it may ask of it.

    ``make`` takes a step size, one for all or ``(rows, 1)``. A chain of replica exchange has ``rungs`` rows.
    ``flat_variance(step_size)`` is the variance that one step adds to each coordinate where there is no gradient, for
    kernels whose steps are independent there. ``rests`` says that without noise a chain stays at the anchor: not so
    where the momentum has a fixed length.
    """

    make: Callable[[float | Tensor], samplers.Kernel]
    step_size: float = 0.1
    rungs: int = 1
    flat_variance: Callable[[float], float] | None = None
    rests: bool = True

    def target(self, num_chains: int, target: Quadratic | None = None, n_beta: Tensor | None = None):
        """A quadratic for so many chains: itself, or a ladder of it."""
        target = target or Quadratic((1.0, 2.0, 3.0))
        if self.rungs > 1:
            return samplers.ladder_potential(target, LADDER, num_chains)
        if n_beta is not None:
            target.n_beta = n_beta
        return target


EVERY_KERNEL = {
    "sgld": Entry(samplers.sgld, flat_variance=lambda step: step),
    "mala": Entry(
        samplers.mala, flat_variance=lambda step: step * (0.75 + 0.25 * 0.99 / float(torch.tensor(100.0).log()))
    ),
    "hmc": Entry(lambda step: samplers.hmc(step, num_steps=3), 0.4, flat_variance=lambda step: (3 * step) ** 2),
    "hmc over mixed scales": Entry(
        lambda step: samplers.hmc((0.1 * step, step), num_steps=3),
        0.4,
        flat_variance=lambda step: 9 * step**2 * 0.99 / float(2 * torch.tensor(10.0).log()),
    ),
    "rmsprop_sgld": Entry(lambda step: samplers.rmsprop_sgld(step, num_adapt=4), 0.02),
    "rmsprop_sgld, never frozen": Entry(
        lambda step: samplers.rmsprop_sgld(step, num_adapt=None), 0.02, flat_variance=lambda step: step / 0.1
    ),
    "adam_sgld": Entry(lambda step: samplers.adam_sgld(step, num_adapt=4), 0.02),
    "adam_sgld, never frozen": Entry(
        lambda step: samplers.adam_sgld(step, num_adapt=None), 0.02, flat_variance=lambda step: step / 0.1
    ),
    "sghmc": Entry(samplers.sghmc),
    "sgnht": Entry(samplers.sgnht),
    "baoab": Entry(samplers.baoab),
    "mclmc": Entry(samplers.mclmc, 0.2, rests=False),
    "adjusted_mclmc": Entry(lambda step: samplers.adjusted_mclmc(step, num_steps=3), 0.4, rests=False),
    "adjusted_mclmc over mixed scales": Entry(
        lambda step: samplers.adjusted_mclmc((0.1 * step, step), num_steps=3), 0.4, rests=False
    ),
    "replica exchange of hmc": Entry(
        lambda step: samplers.replica_exchange(samplers.hmc(step, num_steps=3), len(LADDER)), 0.4, len(LADDER)
    ),
    "replica exchange of adjusted_mclmc": Entry(
        lambda step: samplers.replica_exchange(samplers.adjusted_mclmc(step, num_steps=3), len(LADDER)),
        0.4,
        len(LADDER),
        rests=False,
    ),
    "replica exchange of mala": Entry(
        lambda step: samplers.replica_exchange(samplers.mala(step), len(LADDER)), 0.1, len(LADDER)
    ),
}
STOCHASTIC = [name for name, entry in EVERY_KERNEL.items() if not entry.make(entry.step_size).exact]
EXACT = [name for name in EVERY_KERNEL if name not in STOCHASTIC]
RESTING = [name for name, entry in EVERY_KERNEL.items() if entry.rests]
