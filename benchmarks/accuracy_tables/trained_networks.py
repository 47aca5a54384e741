"""λ̂ of trained networks: beside a long exact reference, and beside the exact λ of the point that training found.

``references``: tanh and ReLU networks of 10 to 2,000 weights, trained to a minimum of their own data: a truth with
fewer units, outputs with noise of standard deviation 0.1. The call with no knob, against a long exact run of a length
fixed beforehand: replica exchange over a ladder of temperatures up to 12 weights, which is another algorithm; beyond,
where it does not converge (on tanh 2-4-1 it stands at R̂ 1.07 after two minutes), Hamiltonian paths with twice the
chains, ten times the warm-up and many more draws, and a third as many beyond 256 weights. Good is within 3 %, or two
standard errors of the difference. A reference counts where its Monte Carlo error is at most 1 % and R̂ at most 1.02.
One that does not is run again, up to 256 weights: rounds that double until it counts, of 12,000 steps a chain at most.
What still does not count stays in the table; no network was left out for what came of it.

``growth``: λ̂ as n grows from 10³ to 10⁶, beside the exact λ of the point that training found, as a figure: see
``growth.py``. Large n want a GPU: ``--sizes 100000 1000000 --device cuda``.

``--processes 0`` measures nothing and makes the table and the figure of the rows that are finished.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import slt
from accuracy_tables.growth import NETWORKS, SAMPLES, draw, grown, not_run, with_expected
from accuracy_tables.rows import finished_rows, summary_of
from accuracy_tables.trained import Trained, descended, squares
from slt.verdict import Z_95

NOISE = 0.1
SMALL = 12  # weights, up to which the reference is replica exchange
SMALL_REFERENCE: dict[str, Any] = {"sampler": "replica_exchange", "num_warmup": 1000, "num_draws": 4000}
LARGE_REFERENCE: dict[str, Any] = {"sampler": "hmc", "num_chains": 16, "num_warmup": 600, "num_draws": 1500}
LARGEST = 256  # weights, beyond which λ̂ is large, and known to a percent by fewer draws
LARGEST_REFERENCE: dict[str, Any] = {**LARGE_REFERENCE, "num_warmup": 300, "num_draws": 500}
NEAR, STANDARD_ERRORS, REFERENCE_ERROR, REFERENCE_RHAT = 0.03, 2.0, 0.01, 1.02
# Again, with draws in rounds that double: estimate_llc adds them until R̂ ≤ 1.02 and the half-width is in tolerance.
LONGER: dict[str, Any] = {"num_draws": None, "tolerance": Z_95 * REFERENCE_ERROR, "budget": 12_000}
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
    # Up to 2,000 weights; tanh, since ReLU networks of so many weights have no reference that converges.
    Shape("tanh", 12, 48, 8, 12, 1000), Shape("tanh", 20, 64, 10, 16, 1000),
    # Added when of the fifteen above eleven references counted, and before they were run.
    Shape("tanh", 5, 12, 2, 4, 1000), Shape("tanh", 8, 20, 3, 6, 1000), Shape("tanh", 16, 40, 6, 10, 1000),
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


def reference_settings(weights: int) -> dict[str, Any]:
    """Of the long exact run on a network of so many weights."""
    return SMALL_REFERENCE if weights <= SMALL else (LARGE_REFERENCE if weights <= LARGEST else LARGEST_REFERENCE)


def referenced(shape: Shape) -> dict[str, Any]:
    """One network: the call, and the reference of fixed length."""
    torch.set_num_threads(1)
    model, data, loss_fn = trained(shape)
    weights = sum(parameter.numel() for parameter in model.parameters())
    found = slt.estimate_llc(model, data, loss_fn, progress=False)
    reference = slt.estimate_llc(model, data, loss_fn, seed=1000, progress=False, **reference_settings(weights))
    return {
        "network": str(shape), "weights": weights, "samples": shape.samples, **summary_of(found),
        "reference": summary_of(reference),
    }  # fmt: skip


def referenced_longer(shape: Shape) -> dict[str, Any]:
    """The reference of one network, in rounds that double until it counts; with λ̂ of each chain."""
    torch.set_num_threads(1)
    model, data, loss_fn = trained(shape)
    weights = sum(parameter.numel() for parameter in model.parameters())
    settings = reference_settings(weights) | LONGER
    reference = slt.estimate_llc(model, data, loss_fn, seed=2000, progress=False, **settings)
    of_chains = reference.n_beta * (reference.trace.loss.mean(1) - reference.loss_at_anchor)
    return {"network": str(shape), **summary_of(reference), "of_chains": [float(value) for value in of_chains]}


def counts(reference: dict[str, Any]) -> bool:
    """Whether a reference is as precise as it must be, and its chains agree."""
    return bool(reference["mcse"] <= REFERENCE_ERROR * reference["llc"] and reference["rhat"] <= REFERENCE_RHAT)


def compared(row: dict[str, Any]) -> dict[str, Any]:
    """A network's row with what the comparison says."""
    reference = row["reference"]
    apart = abs(row["llc"] - reference["llc"])
    errors = math.hypot(row["mcse"], reference["mcse"])
    within = apart <= NEAR * reference["llc"] or apart <= STANDARD_ERRORS * errors
    return {**row, "within": bool(within), "reference_counts": counts(reference)}


def references(shapes: list[Shape], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the networks, where a longer reference takes the place of one that does not count."""
    rows = {
        row["network"]: row
        for row in finished_rows(referenced, shapes, options.output, options.processes, options.again)
    }
    again = [
        shape for shape in shapes
        if str(shape) in rows and rows[str(shape)]["weights"] <= LARGEST and not counts(rows[str(shape)]["reference"])
    ]  # fmt: skip
    for longer in finished_rows(referenced_longer, again, options.output, options.processes, options.again):
        row = rows[longer["network"]]
        rows[longer["network"]] = {**row, "reference": longer, "first_reference": row["reference"]}
    return [compared(row) for row in rows.values()]


def show(row: dict[str, Any]) -> None:
    reference = row["reference"]
    print(
        f"{row['network']:<16}{row['weights']:>6}  λ̂{row['llc']:>8.2f} ± {row['mcse']:<6.2f}{row['seconds']:>5.0f} s "
        f"  reference{reference['llc']:>8.2f} ± {reference['mcse']:<6.2f}R̂ {reference['rhat']:.3f}"
        f"{reference['seconds']:>5.0f} s{row['llc'] / reference['llc'] - 1:>+7.1%} "
        f"{'within' if row['within'] else 'OFF':<7}{'' if row['reference_counts'] else 'reference does not count, '}"
        f"{', '.join(row['problems']) or 'healthy'} | {', '.join(reference['problems']) or 'healthy'}",
        flush=True,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=("references", "growth"))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SAMPLES), help="numbers of samples, of growth")
    parser.add_argument("--device", default="cpu", help="of growth")
    parser.add_argument("--networks", nargs="+", default=[], help="names that are to be run, such as 'tanh 1-3-1'")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    shapes = [shape for shape in SHAPES if not options.networks or str(shape) in options.networks]
    tasks = [(place, samples) for samples in options.sizes for place in range(len(NETWORKS))]
    found: dict[str, Any] = {"summary": {}}
    if options.only and options.output.is_file():  # the other part stays
        kept = json.loads(options.output.read_text())
        found |= {name: value for name, value in kept.items() if name.startswith(("summary", "references", "growth"))}
    if options.only != "growth":
        rows = found["references"] = references(shapes, options)
        measured = {row["network"] for row in rows}
        found["references_not_run"] = [str(shape) for shape in shapes if str(shape) not in measured]
        for row in rows:
            show(row)
        for name in found["references_not_run"]:
            print(f"{name:<16}not run")
        counted = [row for row in rows if row["reference_counts"]]
        found["summary"] = {
            "networks": len(rows), "references_that_count": len(counted),
            "within": sum(row["within"] for row in counted),
            "off_without_a_problem": sum(not row["within"] and not row["problems"] for row in counted),
            "gradients": sum(row["gradients"] for row in counted),
            "gradients_of_the_references": sum(row["reference"]["gradients"] for row in counted),
        }  # fmt: skip
    if options.only != "references":
        rows = finished_rows(
            partial(grown, device=options.device), tasks, options.output, options.processes, options.again
        )
        found["growth"] = [with_expected(row) for row in rows]
        found["growth_not_run"] = not_run(found["growth"], options.sizes)
        draw(found["growth"], options.output.with_name(FIGURE))
        for row in found["growth"]:
            if "expected_llc" in row:
                print(
                    f"{row['network']}  n = {row['samples']:<9}λ̂ {row['llc']:.3f} ± {row['mcse']:.3f}, must be "
                    f"{row['expected_llc']:.3f}: {row['standard_errors_off']:+.1f} standard errors"
                )
        for name, samples in found["growth_not_run"]:
            print(f"{name}  n = {samples:<9}not run")
    for name, value in found["summary"].items():
        print(f"{name.replace('_', ' '):<32}{value:>12.4g}")
    return found
