"""λ̂ of the two targets that no table has, by other ways than those that are compared.

Both networks are linear in their last layer, which is Gaussian given the first and is integrated out in closed form.
What is left of the tanh network are two weights: a sum over a grid. Of the reduced-rank network twenty are left, which
HMC draws, and each draw gives the conditional mean of nβ·loss in place of one value of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import samplers
import slt.known
from sampler_comparison.targets import SAMPLES, Target

# e^−γ·REACH²/2 is 3e-18; half the spacing gives the same sum to all digits that are kept
REACH, SPACING = 9.0, 0.02
CHUNK = 200_000
CHAINS, DRAWS = 64, 3_000


def last_layer(
    curvature: Tensor, slope: Tensor, floor: Tensor, anchor: Tensor, target: Target
) -> tuple[Tensor, Tensor]:
    """The logarithm of ∫ exp(−nβL − (γ/2)‖a − a*‖²) da, and E[nβL], given the first layer.

    There L = floor + slope·a + ½ aᵀ G a, summed over outputs.

    Args:
        curvature: G, ``(…, hidden, hidden)``.
        slope: ``(…, outputs, hidden)``.
        floor: ``(…)``, of all outputs together.
        anchor: a*, ``(outputs, hidden)``.
        target: With nβ and γ.
    """
    n_beta, localization = target.n_beta, target.localization
    precision = n_beta * curvature + localization * torch.eye(curvature.shape[-1], dtype=curvature.dtype)
    root = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve((localization * anchor - n_beta * slope).mT, root).mT
    outputs = anchor.shape[0]
    loss = floor + (mean * slope).sum((-1, -2)) + 0.5 * (mean @ curvature * mean).sum((-1, -2))
    energy = n_beta * loss + 0.5 * localization * (mean - anchor).square().sum((-1, -2))
    log_volume = -outputs * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    spread = torch.cholesky_solve(curvature, root).diagonal(dim1=-2, dim2=-1).sum(-1)
    return log_volume - energy, n_beta * loss + 0.5 * outputs * n_beta * spread


def tanh_copies(target: Target) -> dict[str, Any]:
    """By a sum over a grid of the two input weights, at two spacings."""
    case = slt.known.case(target.name)
    anchor_a, anchor_b = target.anchor.split(2)
    unit = torch.eye(2, dtype=torch.float64)

    def law_of(b: Tensor) -> tuple[Tensor, Tensor]:
        def excess(a: Tensor) -> Tensor:
            return case.excess_flat(torch.cat([a.expand_as(b), b], -1))

        floor = excess(torch.zeros(2, dtype=torch.float64))
        ahead, behind = ([excess(sign * a) for a in unit] for sign in (1, -1))
        mixed = excess(unit.sum(0)) - ahead[0] - ahead[1] + floor
        diagonal = [plus + minus - 2 * floor for plus, minus in zip(ahead, behind, strict=True)]
        curvature = torch.stack([diagonal[0], mixed, mixed, diagonal[1]], -1).view(-1, 2, 2)
        slope = torch.stack([(plus - minus) / 2 for plus, minus in zip(ahead, behind, strict=True)], -1)
        log_mass, energy = last_layer(curvature, slope.unsqueeze(-2), floor, anchor_a.unsqueeze(0), target)
        return log_mass - 0.5 * target.localization * (b - anchor_b).square().sum(-1), energy

    def summed(spacing: float) -> float:
        axis = torch.arange(-REACH, REACH + spacing / 2, spacing, dtype=torch.float64)
        grid = torch.cartesian_prod(axis + anchor_b[0], axis + anchor_b[1])
        parts = [law_of(chunk) for chunk in grid.split(CHUNK)]
        log_mass, energy = (torch.cat(part) for part in zip(*parts, strict=True))
        return float((log_mass.softmax(0) * energy).sum())

    coarse, fine = summed(2 * SPACING), summed(SPACING)
    return {
        "llc": fine,
        "mcse": abs(fine - coarse),
        "sampler": "output weights integrated out, input weights on a grid",
    }


def reduced_rank(target: Target) -> dict[str, Any]:
    """By HMC on the first layer alone, started at the anchor's."""
    posterior: Any = target.potential
    x, y = next(posterior.data.chunks(SAMPLES)).data
    covariance, cross = x.T @ x / len(x), x.T @ y / len(x)
    anchor_first, anchor_last = posterior.sampled.unflatten(target.anchor).values()
    floor = 0.5 * y.square().sum(-1).mean()

    def law_of(first: Tensor) -> tuple[Tensor, Tensor]:
        layer = first.view(-1, *anchor_first.shape)
        curvature, slope = layer @ covariance @ layer.mT, -(layer @ cross).mT
        log_mass, energy = last_layer(curvature, slope, floor, anchor_last, target)
        return log_mass - 0.5 * target.localization * (first - anchor_first.flatten()).square().sum(-1), energy

    potential = samplers.from_log_density(lambda first: law_of(first)[0], dim=anchor_first.numel())
    start = anchor_first.flatten().clone()
    trace = samplers.sample(
        samplers.hmc(1.0), potential, start, num_chains=CHAINS, num_warmup=DRAWS // 5, num_draws=DRAWS,
        adapt=samplers.accept_at_rate(0.65), keep_positions=True, progress=False,
    )  # fmt: skip
    assert trace.positions is not None
    means = torch.stack([law_of(chain)[1] for chain in trace.positions])
    found = samplers.diagnose(means.numpy() - target.n_beta * target.loss_at_anchor)
    return {
        "llc": found.mean, "mcse": found.mcse, "rhat": found.rhat, "ess": found.ess,
        "sampler": f"last layer integrated out, HMC on the first: {CHAINS} chains of {DRAWS} paths",
    }  # fmt: skip


WAYS: dict[str, Callable[[Target], dict[str, Any]]] = {"reduced_rank": reduced_rank, "tanh_H2_k1_dup": tanh_copies}


def compute(targets: dict[str, Target]) -> dict[str, Any]:
    """The record of all references, to be kept."""
    record = {}
    for name, target in targets.items():
        start = time.perf_counter()
        found = WAYS[name](target)
        record[name] = {**found, "n_beta": target.n_beta, "localization": target.localization}
        record[name]["seconds"] = time.perf_counter() - start
        print(f"{name}: {found['llc']:.5f} ± {found['mcse']:.1e}, {found['sampler']}", flush=True)
    return record
