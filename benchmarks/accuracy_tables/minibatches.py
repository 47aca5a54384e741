"""Minibatches on least squares of 60 to 150 weights, whose λ̂ is known exactly, with many seeds: do intervals cover it.

λ̂ = ½ Σ nβh/(nβh + γ) over the curvatures h of the data. The call with no knob but the sampler where the rule would
take full data, on five kinds of inputs: normal ones, a few of 0/1, such with heavy tails, many samples of few weights,
and small batches. Good is coverage of 92 to 98 % over all, as on full data, and a mean error that is nothing beside
that of one run. Each epoch has 39 to 195 batches: losses of batches drawn without replacement would be too high there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import slt
from accuracy_tables.rows import finished_rows, summary_of
from accuracy_tables.trained import Trained, linear_llc, squares


class Kind(NamedTuple):
    """Inputs of so many features, so many samples of them, and settings of the call."""

    name: str
    samples: int
    features: int
    draw: Callable[[int, int, torch.Generator], Tensor]
    settings: dict[str, Any]


def normal(samples: int, features: int, generator: torch.Generator) -> Tensor:
    """Independent normal numbers."""
    return torch.randn(samples, features, generator=generator)


def sparse(samples: int, features: int, generator: torch.Generator) -> Tensor:
    """One of twenty is 1, the others 0."""
    return (torch.rand(samples, features, generator=generator) < 0.05).float()


def heavy(samples: int, features: int, generator: torch.Generator) -> Tensor:
    """Student's t with three degrees of freedom."""
    squares_of = torch.randn(3, samples, features, generator=generator).square().mean(0)
    return normal(samples, features, generator) / squares_of.sqrt()


KINDS = (
    Kind("normal, 39 batches an epoch", 20_000, 140, normal, {"sampler": "baoab"}),
    Kind("sparse, 39 batches an epoch", 20_000, 150, sparse, {"sampler": "baoab"}),
    Kind("heavy tails, 39 batches an epoch", 20_000, 140, heavy, {"sampler": "baoab"}),
    Kind("normal, 195 batches an epoch", 100_000, 60, normal, {"sampler": "baoab"}),
    Kind("normal, batches of 100 of 5,000", 5_000, 60, normal, {"sampler": "baoab", "batch_size": 100}),
)


def fitted(kind: Kind) -> Trained:
    """Least squares with unit noise at their solution, and their data, in float32."""
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    x = kind.draw(kind.samples, kind.features, generator)
    y = x @ torch.randn(kind.features, 1, generator=generator) + torch.randn(kind.samples, 1, generator=generator)
    model = torch.nn.Linear(kind.features, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x.double(), y.double()).solution.T)
    return Trained(model, (x, y), squares(1.0))


def estimated(task: tuple[int, int]) -> dict[str, Any]:
    """One kind, one seed."""
    torch.set_num_threads(1)
    place, seed = task
    kind = KINDS[place]
    found = fitted(kind)
    model, (x, y), loss_fn = found
    estimate = slt.estimate_llc(model, (x, y), loss_fn, seed=seed, progress=False, **kind.settings)
    exact = linear_llc(found._replace(data=(x.double(), y.double())), estimate.n_beta, estimate.localization)
    row = {
        "kind": kind.name, "seed": seed, "samples": kind.samples, "weights": kind.features, "exact": exact,
        "step_size_bias": estimate.step_size_bias, **summary_of(estimate),
    }  # fmt: skip
    row["covered"] = bool(row["low"] <= exact <= row["high"])
    print(
        f"{kind.name:<34}{seed:>3}  exact {exact:7.3f}  λ̂ {row['llc']:7.3f} ± {row['mcse']:.3f}"
        f"{row['llc'] / exact - 1:>+7.1%}{'' if row['covered'] else '  missed'}{estimate.seconds:>5.0f} s  "
        f"{', '.join(row['problems']) or 'healthy'}",
        flush=True,
    )
    return row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=20)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    tasks = [(place, seed) for seed in range(options.seeds) for place in range(len(KINDS))]
    rows = finished_rows(estimated, tasks, options.output, options.processes, options.again)
    summary = {"all": summarised(rows)}
    summary |= {kind.name: summarised([row for row in rows if row["kind"] == kind.name]) for kind in KINDS}
    for name, values in summary.items():
        print(f"{name:<34}{'  '.join(f'{key} {value:.3g}' for key, value in values.items())}")
    return {"summary": summary, "rows": rows}


def summarised(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Coverage, and the mean error with its own."""
    errors = np.array([row["llc"] / row["exact"] - 1 for row in rows])
    return {
        "runs": len(rows), "covered": float(np.mean([row["covered"] for row in rows])),
        "healthy": sum(not row["problems"] for row in rows),
        "missed_and_healthy": sum(not row["problems"] and not row["covered"] for row in rows),
        "median_error": float(np.median(np.abs(errors))), "largest_error": float(np.abs(errors).max()),
        "mean_error": float(errors.mean()), "error_of_the_mean": float(errors.std(ddof=1)) / math.sqrt(len(rows)),
    }  # fmt: skip
