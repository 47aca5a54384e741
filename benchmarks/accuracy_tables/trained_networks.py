"""λ̂ of trained networks: beside a long exact reference, and beside the exact λ of the point that training found.

``references``: tanh and ReLU networks of 10 to 850 weights, trained to a minimum of their own data: a truth with fewer
units, outputs with noise of standard deviation 0.1. The call with no knob, against a long exact run of a length fixed
beforehand: replica exchange over a ladder of temperatures up to 12 weights, which is another algorithm; beyond, where
it does not converge (on tanh 2-4-1 it stands at R̂ 1.07 after two minutes), Hamiltonian paths with twice the chains,
ten times the warm-up and many more draws, and half as many beyond 256 weights. Good is within 3 %, or two standard
errors of the difference; a reference counts where its Monte Carlo error is at most 1 %.

``growth``: networks of one or two units more than the truth, unit noise, n = 10³ … 10⁶. Where training ended, K is
descended to its nearest zero; the units there are copies of the truth's, or add nothing, and λ of that point is known
exactly. At n = 10⁶ the call takes minibatches. The Gaussian localiser of γ = 1 lets the weights reach other zeros than
that point, so that λ̂ need not tend to its λ: the smallest λ of all the zeros is shown too.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import slt
from accuracy_tables.rows import finished_rows
from accuracy_tables.trained import Trained, descended, squares
from slt.known.inputs import Gaussian, Uniform
from slt.known.models import TwoLayer

NOISE = 0.1
SMALL = 12  # weights, up to which the reference is replica exchange
SMALL_REFERENCE: dict[str, Any] = {"sampler": "replica_exchange", "num_warmup": 1000, "num_draws": 4000}
LARGE_REFERENCE: dict[str, Any] = {"sampler": "hmc", "num_chains": 16, "num_warmup": 600, "num_draws": 1500}
LARGEST = 256  # weights, beyond which λ̂ is large, and known to a percent by fewer draws
LARGEST_REFERENCE: dict[str, Any] = {**LARGE_REFERENCE, "num_warmup": 300, "num_draws": 500}
NEAR, STANDARD_ERRORS, REFERENCE_ERROR = 0.03, 2.0, 0.01
GROWTH_SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
FIGURE = "accuracy_trained_networks.png"


class Shape(NamedTuple):
    """A network, the units of its truth, and the samples."""

    activation: str
    inputs: int
    hidden: int
    outputs: int
    true_units: int
    samples: int

    def __str__(self) -> str:
        return f"{self.activation} {self.inputs}-{self.hidden}-{self.outputs}"


SHAPES = (
    Shape("tanh", 1, 3, 1, 1, 500), Shape("relu", 1, 3, 1, 1, 500), Shape("tanh", 2, 4, 1, 1, 500),
    Shape("relu", 2, 6, 1, 2, 500), Shape("tanh", 3, 6, 2, 2, 500), Shape("relu", 3, 8, 2, 3, 500),
    Shape("tanh", 4, 8, 2, 3, 500), Shape("relu", 4, 12, 3, 4, 1000), Shape("tanh", 6, 16, 3, 5, 1000),
    Shape("relu", 5, 20, 3, 6, 1000), Shape("tanh", 10, 32, 4, 8, 1000), Shape("relu", 10, 40, 6, 10, 1000),
    Shape("relu", 12, 40, 8, 12, 1000),
)  # fmt: skip


def trained(shape: Shape) -> Trained:
    """The network at the minimum that L-BFGS finds near a random start, and its data; the seed is its place."""
    generator = torch.Generator().manual_seed(SHAPES.index(shape))
    truth = _random(shape, shape.true_units, generator)
    x = torch.rand(shape.samples, shape.inputs, generator=generator, dtype=torch.float64) * 4 - 2
    with torch.no_grad():
        y = truth(x)
        y += NOISE * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    model, loss_fn = _random(shape, shape.hidden, generator), squares(NOISE)
    if shape.outputs > 1:
        loss_fn = summed_squares
    return descended(Trained(model, (x, y), loss_fn), evaluations=6000)


def summed_squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The negative log likelihood of independent noise on several outputs, per sample."""
    x, y = batch
    return (model(x) - y).square().sum(-1) / (2 * NOISE**2)


def _random(shape: Shape, hidden: int, generator: torch.Generator) -> nn.Sequential:
    activation = {"tanh": nn.Tanh, "relu": nn.ReLU}[shape.activation]()
    model = nn.Sequential(nn.Linear(shape.inputs, hidden), activation, nn.Linear(hidden, shape.outputs)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            size = 1.0 if parameter.ndim == 1 else math.sqrt(2 / parameter.shape[1])
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def referenced(shape: Shape) -> dict[str, Any]:
    """One network: the call, and the reference."""
    torch.set_num_threads(1)
    model, data, loss_fn = trained(shape)
    weights = sum(parameter.numel() for parameter in model.parameters())
    found = slt.estimate_llc(model, data, loss_fn, progress=False)
    how = SMALL_REFERENCE if weights <= SMALL else (LARGE_REFERENCE if weights <= LARGEST else LARGEST_REFERENCE)
    reference = slt.estimate_llc(model, data, loss_fn, seed=1000, progress=False, **how)
    record = {
        "network": str(shape), "weights": weights, "samples": shape.samples, **summary_of(found),
        "reference": summary_of(reference),
    }  # fmt: skip
    apart = abs(found.llc - reference.llc)
    record["within"] = bool(
        apart <= NEAR * reference.llc or apart <= STANDARD_ERRORS * math.hypot(found.mcse, reference.mcse)
    )
    record["reference_counts"] = bool(reference.mcse <= REFERENCE_ERROR * reference.llc)
    print(
        f"{shape!s:<16}{weights:>6}  λ̂{found.llc:>8.2f} ± {found.mcse:<6.2f}{found.seconds:>5.0f} s   reference"
        f"{reference.llc:>8.2f} ± {reference.mcse:<6.2f}R̂ {reference.rhat:.3f}{reference.seconds:>5.0f} s"
        f"{found.llc / reference.llc - 1:>+7.1%} {'within' if record['within'] else 'OFF':<7}"
        f"{', '.join(found.verdict.names) or 'healthy'} | {', '.join(reference.verdict.names) or 'healthy'}",
        flush=True,
    )
    return record


def summary_of(estimate: slt.LLCEstimate) -> dict[str, Any]:
    low, high = estimate.interval
    return {
        "llc": estimate.llc, "mcse": estimate.mcse, "low": low, "high": high, "rhat": estimate.rhat,
        "ess": estimate.ess, "sampler": estimate.sampler, "problems": list(estimate.verdict.names),
        "gradients": estimate.num_gradients, "seconds": estimate.seconds,
    }  # fmt: skip


class Growth(NamedTuple):
    """A network with more units than its truth of one.

    Attributes:
        name: Of the network.
        activation: φ.
        inputs: Entries of an input.
        hidden: Units.
        copies: λ of a zero with so many copies of the true unit, the rest adding nothing: of the copies alone.
        smallest: λ of the worst zero.
    """

    name: str
    activation: Callable[[Tensor], Tensor]
    inputs: int
    hidden: int
    copies: Callable[[int], float]
    smallest: float


# One true unit and nothing else. tanh: λ = 1 + (p − 1)/4 of p copies with positive a (slt.known.tanh_copies), and the
# worst zero has all of them. ReLU of two inputs without a bias: 1 + (p − 1)/3 (slt.known.relu_copies). ReLU of one
# input: all units with b > 0 make one slope, of λ = ½. A unit that adds nothing has λ = ½ by itself: a = 0, or b = 0.
GROWTH = (
    Growth("tanh 1-2-1", torch.tanh, 1, 2, lambda p: 1 + (p - 1) / 4, 1.25),
    Growth("tanh 1-3-1", torch.tanh, 1, 3, lambda p: 1 + (p - 1) / 4, 1.5),
    Growth("ReLU 1-2-1", torch.relu, 1, 2, lambda _: 0.5, 0.5),
    Growth("ReLU 2-2-1", torch.relu, 2, 2, lambda p: 1 + (p - 1) / 3, 4 / 3),
)


def true_unit(growth: Growth) -> TwoLayer:
    """φ(x₁), the truth."""
    return TwoLayer(growth.activation, [[1.0]], [[1.0] + [0.0] * (growth.inputs - 1)])


def grown(task: tuple[int, int]) -> dict[str, Any]:
    """One network on so many samples."""
    torch.set_num_threads(1)
    place, samples = task
    growth = GROWTH[place]
    generator = torch.Generator().manual_seed(place)
    weights = torch.randn(growth.hidden, 1 + growth.inputs, generator=generator, dtype=torch.float64)
    model = TwoLayer(growth.activation, weights[:, :1].T.tolist(), weights[:, 1:].tolist())
    law = Uniform(-2.0, 2.0) if growth.inputs == 1 else Gaussian(growth.inputs)
    x = law.draw(samples, generator)
    with torch.no_grad():
        y = true_unit(growth)(x)
    y = y + torch.randn(y.shape, generator=generator, dtype=y.dtype)
    trained = descended(Trained(model, (x, y), squares(1.0)), evaluations=3000)
    label, exact = point_of(growth, trained.model)
    estimate = slt.estimate_llc(trained.model, (x, y), squares(1.0), progress=False)
    record = {
        "network": growth.name, "samples": samples, "point": label, "rlct_of_the_point": exact,
        "smallest_rlct": growth.smallest, "a": model.a.flatten().tolist(), "b": model.b.flatten().tolist(),
        **summary_of(estimate),
    }  # fmt: skip
    print(
        f"{growth.name:<12}n = {samples:<9}{label:<28} λ {exact:<6.4g}λ̂{estimate.llc:>7.3f} ± {estimate.mcse:<7.3f}"
        f"{estimate.sampler:<5}{estimate.seconds:>5.0f} s  {', '.join(estimate.verdict.names) or 'healthy'}",
        flush=True,
    )
    return record


def point_of(growth: Growth, model: nn.Module) -> tuple[str, float]:
    """The zero of K to which descent leads from the trained weights, in words, and its λ; NaN where it is not known."""
    generator = torch.Generator().manual_seed(0)
    law = Uniform(-2.0, 2.0) if growth.inputs == 1 else Gaussian(growth.inputs)
    x = law.draw(2000, generator)  # K on these samples has the same zeros as K
    with torch.no_grad():
        y = true_unit(growth)(x)
    there = TwoLayer(growth.activation, model.a.detach().tolist(), model.b.detach().tolist())  # type: ignore[attr-defined]
    descended(Trained(there, (x, y), squares(1.0)), evaluations=20_000)
    a, b = there.a.detach().flatten(), there.b.detach()
    with torch.no_grad():
        left = float(squares(1.0)(there, (x, y)).mean())
    silent = (a.abs() * b.norm(dim=1)) < 1e-3
    aligned = b[:, 0] > 0 if growth.activation is torch.relu else b[:, 0].abs() > 0
    same = aligned & ~silent
    if growth.inputs == 1 and growth.activation is torch.relu:
        idle = int((~aligned).sum())  # to the left of zero: the slope there has to vanish
        return f"{growth.hidden - idle} to the right, {idle} to the left", 0.5 + 0.5 * (idle > 0)
    signs = torch.sign(a * (b[:, 0] if growth.activation is torch.tanh else 1.0))[same]
    copies, quiet = int(same.sum()), int(silent.sum())
    label = f"{copies} copies, {quiet} that add nothing"
    known = left < 1e-6 and copies >= 1 and bool((signs > 0).all())
    return label, growth.copies(copies) + 0.5 * quiet if known else math.nan


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """λ̂ as n grows, a panel for each network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(GROWTH), figsize=(13, 3.4), layout="constrained")
    for panel, growth in zip(panels, GROWTH, strict=True):
        own = [row for row in rows if row["network"] == growth.name]
        n, llc = [row["samples"] for row in own], np.array([row["llc"] for row in own])
        half = [(row["high"] - row["low"]) / 2 for row in own]
        panel.errorbar(n, llc, half, fmt="o-", color="black", capsize=3, label="λ̂, 95 %")
        panel.plot(
            n, [row["rlct_of_the_point"] for row in own], "s", color="tab:orange", mfc="none", label="λ of the point"
        )
        panel.axhline(growth.smallest, color="0.5", linestyle=":", label="smallest λ of all zeros")
        panel.set(title=growth.name, xscale="log", xlabel="samples n", ylim=(0, None))
    panels[0].set_ylabel("learning coefficient")
    panels[0].legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=150)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=("references", "growth"))
    parser.add_argument("--networks", nargs="+", default=[], help="names that are to be run, such as 'tanh 1-3-1'")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    shapes = [shape for shape in SHAPES if not options.networks or str(shape) in options.networks]
    tasks = [(place, samples) for samples in GROWTH_SAMPLES for place in range(len(GROWTH))]
    found: dict[str, Any] = {"summary": {}}
    if options.only != "growth":
        rows = found["references"] = finished_rows(referenced, shapes, options.output, options.processes)
        counted = [row for row in rows if row["reference_counts"]]
        found["summary"] = {
            "networks": len(rows), "references_within_a_percent": len(counted),
            "within": sum(row["within"] for row in counted),
            "off_without_a_problem": sum(not row["within"] and not row["problems"] for row in counted),
            "gradients": sum(row["gradients"] for row in rows),
            "gradients_of_the_references": sum(row["reference"]["gradients"] for row in rows),
        }  # fmt: skip
    if options.only != "references":
        found["growth"] = finished_rows(grown, tasks, options.output, options.processes)
        draw(found["growth"], options.output.with_name(FIGURE))
    for name, value in found["summary"].items():
        print(f"{name.replace('_', ' '):<32}{value:>12.4g}")
    return found
