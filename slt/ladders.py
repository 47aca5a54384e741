"""A ladder of inverse temperatures for one posterior: its rungs and step sizes, found from curvature and dimension."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import samplers
from samplers import Kernel, Potential, ScaledPotential
from samplers.adaptation import curvature_probe
from samplers.diagnostics import MINIMUM_DRAWS, mean_and_ess
from samplers.seeds import ADAPTATION, block_generator
from slt.posterior import LocalPosterior

# At so many coordinates a ladder has a rung for every 0.2 of log nβ, and costs more than it saves.
LARGEST_DIM = 64
PATH_STEPS = 5  # of a path between swaps: the copies that swap need not go far by themselves
# The smallest step of a path, over the width of the stiffest wall: it is accepted there.
LOWEST_STEP = 0.15
# Neighbouring rungs are apart by 0.8/√(dim/4) in log nβ: nβ·loss has at most the law of dim/2 quadratic directions,
# of variance dim/2, and swaps are then accepted in every second try.
RUNG_DISTANCE = 0.8
MOST_RUNGS = 24
PROBED = 64  # positions, drawn from the localiser, at which curvature is measured
MOST_HALVINGS = 60  # of their distance from the anchor


class Ladder(NamedTuple):
    """Independent ladders of replicas, from a law that crosses the whole localiser to the posterior itself.

    Attributes:
        potential: Of all rungs of all ladders, ``num_ladders · num_rungs`` rows.
        kernel: Replica exchange around Hamiltonian paths over all scales of the target.
        num_rungs: Rungs of each ladder; the last is the posterior.
        step_size: Smallest and largest of the last rung.
        num_gradients: Spent to find curvature.
        reason: How they were found.
    """

    potential: Potential
    kernel: Kernel
    num_rungs: int
    step_size: tuple[float, float]
    num_gradients: int
    reason: str


def make_ladder(posterior: LocalPosterior | ScaledPotential, num_ladders: int, seed: int) -> Ladder:
    r"""The ladder of a localised posterior.

    The localiser has the width 1/√γ, and the loss the curvature A where chains will be. The first rung
    is at nβ·A = γ, where the loss hardly shapes the law; the paths of a rung have steps from 0.15/√(nβA + γ) to 1/√γ,
    drawn log-uniformly, because a singular posterior has all scales between its walls and its localiser.

    It costs a few gradients at 64 places. :func:`samplers.spaced_ladder`, on which all swaps are refused equally often,
    costs 1,550 steps of 16 ladders, twice what the first round of an estimate takes, and there is little to win: at
    nβ = 1,000 here 58 to 84 % of all swaps are accepted for a quadratic, for x⁴ + y² and for one tanh unit.

    Args:
        posterior: With γ > 0 and an isotropic localiser: one with a metric in the units of it.
        num_ladders: Independent ladders.
        seed: Of the positions at which curvature is measured.

    Returns:
        The ladder.

    Raises:
        FloatingPointError: The loss or its gradient is not finite at most of the places that the localiser allows.
    """
    n_beta, strength = float(posterior.n_beta), posterior.localizer.strength
    curvature, num_gradients = _typical_curvature(posterior, seed)
    distance = RUNG_DISTANCE / math.sqrt(max(posterior.dim, 2) / 4)
    hottest = min(strength / curvature, n_beta / 4)
    num_rungs = max(2, min(MOST_RUNGS, math.ceil(math.log(n_beta / hottest) / distance) + 1))
    hottest = max(hottest, n_beta * math.exp(-distance * (num_rungs - 1)))
    rungs = torch.logspace(
        math.log10(hottest), math.log10(n_beta), num_rungs, dtype=torch.float64, device=posterior.anchor.device
    )
    rungs[-1] = n_beta
    potential = samplers.ladder_potential(posterior, rungs.to(posterior.anchor.dtype), num_ladders)
    rows: Any = potential.n_beta
    low = LOWEST_STEP / (rows * curvature + strength).sqrt()
    high = torch.full_like(low, strength**-0.5).maximum(low)
    kernel = samplers.replica_exchange(samplers.hmc((low, high), PATH_STEPS), num_rungs)
    step_size = float(low[num_rungs - 1]), float(high[num_rungs - 1])
    reason = (
        f"log-uniform, from the walls of curvature nβ·{curvature:.3g} to the localiser's width; {num_rungs} rungs from "
        f"nβ = {hottest:.3g}"
    )
    return Ladder(potential, kernel, num_rungs, step_size, num_gradients, reason)


def rung_means(loss: NDArray[np.float64], ladder: Ladder, baseline: float) -> dict[str, list[float]]:
    """λ̂ at every rung of a run, which its own draws tell.

    Args:
        loss: Of all rows of the ladder, ``(num_ladders · num_rungs, draw)``, nats.
        ladder: The ladder.
        baseline: L(w*), nats.

    Returns:
        ``n_beta``, and ``llc``, its standard error ``mcse`` and the ``variance`` of the energy there, by rung; not a
        number where there are too few draws, or some that are not finite.
    """
    n_beta = torch.as_tensor(ladder.potential.n_beta).flatten()[: ladder.num_rungs].double().cpu().numpy()
    found: dict[str, list[float]] = {"n_beta": n_beta.tolist(), "llc": [], "mcse": [], "variance": []}
    for place, inverse_temperature in enumerate(n_beta):
        energy = inverse_temperature * (loss[place :: ladder.num_rungs] - baseline)
        mean = deviation = ess = math.nan
        if energy.shape[1] >= MINIMUM_DRAWS and np.isfinite(energy).all():
            mean, deviation, ess = mean_and_ess(energy)
        found["llc"].append(mean)
        found["mcse"].append(deviation / math.sqrt(ess) if ess > 0 else math.nan)
        found["variance"].append(float(energy.var()))
    return found


def _typical_curvature(posterior: LocalPosterior | ScaledPotential, seed: int) -> tuple[float, int]:
    """Of the loss, nats per squared unit of weight, where chains will be; and the places that were looked at.

    The largest of two: the median over places that the localiser allows, which are those far along the valleys; and
    nβ‖∇L‖²/dim at the distance from the anchor at which the loss costs a nat for each weight, which is at most twice
    the curvature of a quadratic there, and knows a narrow well in a plateau, and a kink, which have none far away.

    Args:
        posterior: The target.
        seed: Of the places.

    Returns:
        Curvature, and the gradients that it took.

    Raises:
        FloatingPointError: The loss or its gradient is not finite at most of the places that the localiser allows.
    """
    generator = block_generator(seed, ADAPTATION, posterior.anchor.device)
    like: Tensor = posterior.anchor
    strength, n_beta = posterior.localizer.strength, float(posterior.n_beta)
    directions = (
        torch.randn(PROBED, posterior.dim, generator=generator, dtype=like.dtype, device=like.device) * strength**-0.5
    )

    losses, gradients = posterior.loss_and_grad(like + directions)
    gradients = gradients.clone()  # the next call may overwrite what this one returns
    finite_loss = torch.isfinite(losses)
    probe = curvature_probe(posterior, like + directions, None, generator)
    lengths = posterior.sum(probe.double().square()).sqrt()
    finite = lengths[torch.isfinite(lengths) & finite_loss]
    if len(finite) < PROBED // 2:
        raise FloatingPointError(
            f"localization: {strength} lets the weights go where the loss or its gradient is not finite, at "
            f"{PROBED - len(finite)} of {PROBED} places. Raise it."
        )
    # the probe is ‖Hξ‖ of all of U: of a matrix with one eigenvalue, its median is 0.67 of that
    far = max(float(finite.median()) / 0.67 - strength, 0.0) / n_beta

    anchored = float(posterior.loss_and_grad(like.unsqueeze(0))[0])
    near, looked = 0.0, 4
    for halvings in range(1, MOST_HALVINGS):
        cost = float((n_beta * (losses.double() - anchored)).abs().nanmedian())
        if cost <= posterior.dim:
            near = n_beta * float((gradients.double().square().sum(-1) / posterior.dim).nanmedian())
            break
        losses, gradients = posterior.loss_and_grad(like + directions * 2.0**-halvings)
        looked += 1
    near = near if math.isfinite(near) else 0.0
    return max(far, near, 1e-3 * strength / n_beta), looked * PROBED
