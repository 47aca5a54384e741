"""λ̂ of deep linear networks of a thousand weights and more, whose λ is Aoyagi's, at two kinds of anchor.

Networks of the two smallest published classes, on n = 10⁵ samples, at both anchors of ``deep_linear_networks.py``; nβ =
n/log n, γ = 1. At the published anchor the table compares with half the rank of the Hessian too.

Ours is the call without a knob. Its data are the d rows of a square root of the inputs' second moments, because the
squared error of a linear network depends on nothing else: L_n is that of the 10⁵ samples, exactly, and n is given.
Beside it, on the samples themselves, the published SGLD: ε = 5·10⁻⁷, batches of 500, one chain, 9,000 steps of warm-up
and 1,000 draws; its verdict by this toolkit; and the acceptance rate of MALA at that step, its published check.

Reported by class and anchor: |λ̂/λ − 1|, median and 95th percentile; runs without a number; and the share of pairs of
networks that λ̂ ranks as λ does.
"""

from __future__ import annotations

import argparse
import itertools
import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import samplers
import slt
from accuracy_tables.deep_linear_networks import (
    ANCHORS,
    MEDIAN,
    PUBLISHED_BATCH,
    RANKED,
    SIZES,
    TAIL,
    WIDEST,
    DeepLinear,
    accuracy_of,
    network,
    squared_errors,
)
from accuracy_tables.rows import attempted, device_name, finished_rows

NETWORKS = {"1K": 20, "10K": 10}
PUBLISHED: dict[str, Any] = {"batch_size": PUBLISHED_BATCH, "num_chains": 1, "num_warmup": 9000, "num_draws": 1000}
MALA_STEPS = 300


def second_moment_rows(x: Tensor) -> Tensor:
    """As many rows as inputs have entries, whose mean of x xᵀ is that of all rows."""
    moments = x.double().T @ x.double() / len(x)
    return math.sqrt(len(moments)) * torch.linalg.cholesky(moments).T


def measured(task: tuple[str, int, str], device: str) -> dict[str, Any]:
    """One network at one anchor, by both."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    size, number, anchor = task
    found = network(*task)
    size, number, anchor = task
    num_samples, published_step = SIZES[size].num_samples, SIZES[size].step_size
    inputs = found.generator.uniform(-WIDEST, WIDEST, size=(num_samples, found.widths[0]))
    record: dict[str, Any] = {**found.facts(), "device": device_name(device)}

    model = DeepLinear(found.weights, torch.float64)
    x = second_moment_rows(torch.from_numpy(inputs))
    with torch.no_grad():
        data = (x, model(x))
    record["ours"] = attempted(model, data, squared_errors, n=num_samples, seed=number, device=device)
    acceptance = slt.estimate_llc(
        model, data, squared_errors, n=num_samples, sampler=samplers.mala(published_step), num_warmup=0,
        num_draws=MALA_STEPS, num_chains=2, seed=number, device=device, progress=False,
    )  # fmt: skip

    plain = DeepLinear(found.weights, torch.float32)
    x = torch.from_numpy(inputs).float()
    with torch.no_grad():
        data = (x, plain(x))
    published = attempted(
        plain, data, squared_errors, sampler=samplers.sgld(published_step), seed=number, device=device, **PUBLISHED
    )
    accepted = float(acceptance.trace.statistics["acceptance_rate"].mean())
    record["published"] = {**published, "mala_acceptance": accepted}
    ours, theirs = record["ours"], record["published"]
    print(
        f"{size:<5}{number:>3} {anchor:<10}{record['weights']:>7}{record['rlct']:>8.1f}"
        f"{record['half_hessian_rank']:>8.1f}  ours{ours['llc']:>9.2f} {error(record, 'ours'):>+7.1%}"
        f"{ours['seconds']:>5.0f} s  published{theirs['llc']:>9.2f} {error(record, 'published'):>+7.1%}"
        f"{theirs['seconds']:>5.0f} s  {', '.join(ours['problems']) or 'healthy'}",
        flush=True,
    )
    return record


def error(record: dict[str, Any], tool: str, truth: str = "rlct") -> float:
    return record[tool]["llc"] / record[truth] - 1


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for size, anchor, tool in itertools.product(NETWORKS, ANCHORS, ("ours", "published")):
        rows = [row for row in found if (row["size"], row["anchor"]) == (size, anchor)]
        if accuracy := accuracy_of(rows, tool):
            accepted = [row["published"]["mala_acceptance"] for row in rows]
            gradients = float(np.median([row[tool]["gradients"] for row in rows]))
            facts = {"gradients": gradients, "mala_acceptance": float(np.median(accepted))}
            table.append({"size": size, "anchor": anchor, "tool": tool, **accuracy, **facts})
    return table


def show(table: list[dict[str, Any]]) -> None:
    print(
        f"\n{'size':<5}{'anchor':<11}{'tool':<10}{'runs':>5}{'NaN':>4}{'median':>8}{'95 %':>8}{'least':>8}{'most':>8}"
        f"{'ranked':>8}{'½ rank':>8}{'> 10 %':>7}{'named':>6}{'gradients':>11}{'seconds':>8}{'MALA':>6}"
    )
    for row in table:
        print(
            f"{row['size']:<5}{row['anchor']:<11}{row['tool']:<10}{row['networks']:>5}{row['not_a_number']:>4}"
            f"{row['median_error']:>8.1%}{row['error_95']:>8.1%}{row['least']:>+8.1%}{row['largest']:>+8.1%}"
            f"{row['ranked']:>8.3f}{row['median_error_of_half_the_rank']:>8.1%}{row['more_than_a_tenth_off']:>7}"
            f"{row['of_these_with_a_problem']:>6}{row['gradients']:>11.0f}{row['seconds']:>8.0f}"
            f"{row['mala_acceptance']:>6.2f}"
        )
    print(f"bars: median at most {MEDIAN:.0%}, 95th percentile at most {TAIL:.0%}, ranked at least {RANKED}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--networks", type=int, help="of each size; by default 20 and 10")
    parser.add_argument("--device", default="cpu", help="of all estimates")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    work = [
        (size, number, anchor)
        for size in options.sizes
        for number in range(options.networks or NETWORKS[size])
        for anchor in ANCHORS
    ]
    found = finished_rows(
        partial(measured, device=options.device), work, options.output, options.processes, options.again
    )
    table = summary(found)
    show(table)
    return {"summary": table, "rows": found}
