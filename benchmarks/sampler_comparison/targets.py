"""The targets: their potentials, and what λ̂ = nβ (E[loss] − loss at the anchor) should be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import slt
import slt.known
from samplers import GaussianLocalizer, Potential

REFERENCES = Path(__file__).resolve().parent.parent / "results" / "samplers_references.json"
GAUSSIAN_SHAPE = (25, 40)  # of the 1000 coordinates, which are mixed by one rotation for each axis
SAMPLES = 300  # of the reduced-rank network's data


@dataclass(frozen=True)
class Target:
    """A potential with the answer that is known for it.

    Attributes:
        name: In tables and files.
        title: In words.
        potential: With nβ and the localiser.
        anchor: w*, where all chains start.
        loss_at_anchor: In nats.
        truth: λ̂, exactly or by a long run.
        truth_error: The standard error of ``truth``; zero where it is exact.
        source: Of ``truth``.
        rows: Chains that are advanced together; of replica exchange, rungs of all ladders.
        steps: Full-data gradients of each row, at full length.
    """

    name: str
    title: str
    potential: Potential
    anchor: Tensor
    loss_at_anchor: float
    truth: float
    truth_error: float
    source: str
    rows: int
    steps: int

    @property
    def n_beta(self) -> float:
        """nβ."""
        return float(self.potential.n_beta)

    @property
    def localization(self) -> float:
        """γ."""
        return self.potential.localizer.strength  # type: ignore[attr-defined]


@dataclass
class RotatedGaussian:
    """½ Σ hᵢ zᵢ² in coordinates z that two random rotations mix, one of the rows and one of the columns of w.

    No coordinate of w is an axis of the law, so that a diagonal metric gains nothing, and a gradient costs little.
    """

    curvature: Tensor
    n_beta: float
    localization: float
    max_chains: int | None = None
    rotations: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        squares = [torch.randn(size, size, dtype=torch.float64, generator=generator) for size in GAUSSIAN_SHAPE]
        self.rotations = tuple(torch.linalg.qr(square)[0] for square in squares)
        self.dim = len(self.curvature)
        self.localizer = GaussianLocalizer(torch.zeros(self.dim, dtype=torch.float64), self.localization)

    def loss_and_grad(self, position: Tensor, batch: object = None) -> tuple[Tensor, Tensor]:
        """Loss ``(chains,)`` and gradient ``(chains, dim)``."""
        rows, columns = self.rotations
        z = (rows.T @ position.view(-1, *GAUSSIAN_SHAPE) @ columns).view(position.shape)
        force = self.curvature * z
        gradient = rows @ force.view(-1, *GAUSSIAN_SHAPE) @ columns.T
        return 0.5 * torch.linalg.vecdot(force, z), gradient.reshape(position.shape)

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the last axis."""
        return x.sum(-1)


def gaussian(context: ExitStack) -> Target:
    curvature = torch.logspace(-5, 0, math.prod(GAUSSIAN_SHAPE), dtype=torch.float64)
    potential = RotatedGaussian(curvature, n_beta=1e4, localization=1.0)
    stiffness = potential.n_beta * curvature
    truth = 0.5 * float((stiffness / (stiffness + potential.localization)).sum())
    condition = float((stiffness[-1] + 1) / (stiffness[0] + 1))
    return Target(
        "gaussian", f"Gaussian, 1000 dimensions, condition {condition:.0f}", potential, potential.localizer.anchor, 0.0,
        truth, 0.0, "closed form", rows=32, steps=4_000,
    )  # fmt: skip


def known_target(name: str, n_beta: float, localization: float, title: str) -> Callable[[ExitStack], Target]:
    """A known case with its exact loss; its truth from the published table, or from a long run."""

    def make(context: ExitStack) -> Target:
        case = slt.known.case(name)
        exact = [row.value for row in case.exact if (row.n_beta, row.localization) == (n_beta, localization)]
        law: dict[str, Any] = {"n_beta": n_beta, "localization": localization}
        potential = slt.LocalPosterior(case.build(), None, case.loss_fn, **law, engine="batched")
        context.enter_context(potential)
        truth, error, source = (exact[0], 0.0, "exact, slt.known") if exact else reference(name)
        return Target(
            name, f"{title}, nβ {n_beta:.0e}, γ {localization:.0f}", potential, potential.anchor, 0.0, truth, error,
            source, rows=256, steps=3_000,
        )  # fmt: skip

    return make


def reduced_rank(context: ExitStack) -> Target:
    """A 5-4-5 linear network at the minimum of the loss of noisy data from a truth of rank 2, λ = 10.5."""
    case = slt.known.case("rrr_545_r2")
    model, data = case.build(), case.sample(SAMPLES)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator))
    form = {"max_iter": 5_000, "tolerance_grad": 1e-11, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(model.parameters(), **form)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = case.negative_log_likelihood(model, data).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    law: dict[str, Any] = {"n_beta": SAMPLES / math.log(SAMPLES), "localization": 1.0}
    potential = slt.LocalPosterior(model, data, case.negative_log_likelihood, **law, engine="batched")
    context.enter_context(potential)
    return Target(
        "reduced_rank", f"linear network 5-4-5, rank 2, trained on {SAMPLES} noisy samples", potential,
        potential.anchor, potential.loss_at_anchor(), *reference("reduced_rank"), rows=32, steps=4_000,
    )  # fmt: skip


def reference(name: str) -> tuple[float, float, str]:
    """λ̂ of a long run, its standard error, and what ran; not a number where it has not been run yet."""
    if not REFERENCES.exists():
        return math.nan, math.nan, "not run yet: give --references"
    record = json.loads(REFERENCES.read_text())["targets"].get(name)
    return (record["llc"], record["mcse"], record["sampler"]) if record else (math.nan, math.nan, "not run yet")


TARGETS: dict[str, Callable[[ExitStack], Target]] = {
    "gaussian": gaussian,
    "poly_xy2": known_target("poly_xy2", 1e6, 1.0, "(w₁w₂)²"),
    "poly_cusp2": known_target("poly_cusp2", 1e3, 10.0, "(w₁² − w₂³)²"),
    "tanh_one_unit_zero": known_target("tanh_one_unit_zero", 1e3, 1.0, "one tanh unit, truth zero"),
    "reduced_rank": reduced_rank,
    "tanh_H2_k1_dup": known_target("tanh_H2_k1_dup", 1e3, 1.0, "two copies of one tanh unit"),
}
REFERENCED = ("reduced_rank", "tanh_H2_k1_dup")
