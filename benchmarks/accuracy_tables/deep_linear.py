"""λ̂ of deep linear networks of a thousand weights and more, whose λ is Aoyagi's, at two kinds of anchor.

Networks of the two smallest classes of Lau et al. 2023 (Table 1), from fixed seeds: noiseless teachers on n = 10⁵
inputs from U[−10, 10], the mean squared error over outputs, nβ = n/log n, γ = 1. Each is anchored twice:

* ``aligned``: at the same product by layers of its rank, each with the singular vectors of its neighbours: Aoyagi's λ
  holds.
* ``published``: by the published generator, every layer being reduced to a random rank with probability ½. There λ at
  small scales is half the rank of the Hessian, which may exceed Aoyagi's; what is sampled at this nβ and γ is in
  between, and the table compares with both.

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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import samplers
import slt
from accuracy_tables.rows import device_name, finished_rows
from slt import known

NUM_SAMPLES = 100_000
WIDEST = 10.0  # inputs are uniform between −10 and 10


class Size(NamedTuple):
    """A published class of networks: fewest and most layers and units, and how many are made here."""

    layers: tuple[int, int]
    widths: tuple[int, int]
    networks: int


SIZES = {"1K": Size((2, 5), (5, 50), 20), "10K": Size((2, 10), (5, 100), 10)}
ANCHORS = ("aligned", "published")
PUBLISHED: dict[str, Any] = {"batch_size": 500, "num_chains": 1, "num_warmup": 9000, "num_draws": 1000}
PUBLISHED_STEP = 5e-7
MALA_STEPS = 300
MEDIAN, TAIL, RANKED = 0.03, 0.10, 0.97  # the bars


class DeepLinear(nn.Module):
    """x ↦ W_L … W_1 x."""

    def __init__(self, weights: list[np.ndarray], dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ParameterList([nn.Parameter(torch.tensor(weight, dtype=dtype)) for weight in weights])

    def forward(self, x: Tensor) -> Tensor:
        """The outputs, one row for each input."""
        for weight in self.layers:
            x = x @ weight.T
        return x


def squared_errors(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """One loss per sample, averaged over outputs as it was published."""
    x, y = batch
    return (model(x) - y).square().mean(-1)


def random_weights(generator: np.random.Generator, size: Size) -> list[np.ndarray]:
    """Layers by Xavier's normal law, each reduced to a random rank with probability ½."""
    num_layers = generator.integers(size.layers[0], size.layers[1], endpoint=True)
    widths = generator.integers(size.widths[0], size.widths[1], size=num_layers + 1, endpoint=True)
    weights = []
    for before, after in itertools.pairwise(widths):
        weight = generator.normal(size=(after, before)) * math.sqrt(2 / (before + after))
        if generator.random() < 0.5:
            rank = generator.integers(1, min(before, after), endpoint=True)
            left, values, right = np.linalg.svd(weight, full_matrices=False)
            weight = left[:, :rank] * values[:rank] @ right[:rank]
        weights.append(weight)
    return weights


def aligned(generator: np.random.Generator, weights: list[np.ndarray], rank: int) -> list[np.ndarray]:
    """The same product by layers of its rank, each reading what the one before it writes, all of the same size."""
    product = np.linalg.multi_dot(weights[::-1]) if len(weights) > 1 else weights[0]
    left, values, right = np.linalg.svd(product)
    bases = [right[:rank].T, *(_orthonormal(generator, len(weight), rank) for weight in weights[:-1]), left[:, :rank]]
    each = values[:rank] ** (1 / len(weights))
    return [after * each @ before.T for before, after in itertools.pairwise(bases)]


def _orthonormal(generator: np.random.Generator, size: int, rank: int) -> np.ndarray:
    return np.linalg.qr(generator.normal(size=(size, size)))[0][:, :rank]


def product_rank(weights: list[np.ndarray]) -> int:
    """Of W_L … W_1; zero where there is no factor."""
    values = np.linalg.svd(np.linalg.multi_dot(weights[::-1]) if len(weights) > 1 else weights[0], compute_uv=False)
    return int((values > 1e-9 * values[0]).sum())


def half_hessian_rank(weights: list[np.ndarray]) -> float:
    r"""Half the rank of the Hessian of ‖W_L … W_1 − truth‖² at a zero.

    .. math:: \tfrac12 \dim \sum_i \mathrm{col}(W_L \dots W_{i+1}) \otimes \mathrm{row}(W_{i-1} \dots W_1)
              = \tfrac12 \sum_i a_i (b_i - b_{i+1})

    with a_i and b_i the ranks of the two products: the first spaces grow with i and the second shrink.
    """
    count = len(weights)
    after = [
        product_rank(weights[place + 1 :]) if place + 1 < count else weights[-1].shape[0] for place in range(count)
    ]
    before = [product_rank(weights[:place]) if place else weights[0].shape[1] for place in range(count)] + [0]
    return 0.5 * sum(after[place] * (before[place] - before[place + 1]) for place in range(count))


def second_moment_rows(x: Tensor) -> Tensor:
    """As many rows as inputs have entries, whose mean of x xᵀ is that of all rows."""
    moments = x.double().T @ x.double() / len(x)
    return math.sqrt(len(moments)) * torch.linalg.cholesky(moments).T


def measured(task: tuple[str, int, str], device: str) -> dict[str, Any]:
    """One network at one anchor, by both."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    size, number, anchor = task
    generator = np.random.default_rng([tuple(SIZES).index(size), number])
    weights = random_weights(generator, SIZES[size])
    rank = product_rank(weights)
    if anchor == "aligned":
        weights = aligned(generator, weights, rank)
    widths = [weights[0].shape[1], *(weight.shape[0] for weight in weights)]
    truth = known.deep_linear(widths, rank=rank)
    inputs = generator.uniform(-WIDEST, WIDEST, size=(NUM_SAMPLES, widths[0]))
    record: dict[str, Any] = {
        "size": size, "number": number, "anchor": anchor, "widths": widths, "rank": rank,
        "weights": sum(weight.size for weight in weights), "rlct": float(truth.rlct),
        "multiplicity": truth.multiplicity, "half_hessian_rank": half_hessian_rank(weights),
        "device": device_name(device),
    }  # fmt: skip

    model = DeepLinear(weights, torch.float64)
    x = second_moment_rows(torch.from_numpy(inputs))
    with torch.no_grad():
        data = (x, model(x))
    record["ours"] = attempted(model, data, n=NUM_SAMPLES, seed=number, device=device)
    acceptance = slt.estimate_llc(
        model, data, squared_errors, n=NUM_SAMPLES, sampler=samplers.mala(PUBLISHED_STEP), num_warmup=0,
        num_draws=MALA_STEPS, num_chains=2, seed=number, device=device, progress=False,
    )  # fmt: skip

    plain = DeepLinear(weights, torch.float32)
    x = torch.from_numpy(inputs).float()
    with torch.no_grad():
        data = (x, plain(x))
    published = attempted(plain, data, sampler=samplers.sgld(PUBLISHED_STEP), seed=number, device=device, **PUBLISHED)
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


def attempted(model: nn.Module, data: tuple[Tensor, Tensor], **arguments: Any) -> dict[str, Any]:
    """The estimate; without a number where the call failed, with the error in the place of the problems."""
    try:
        estimate = slt.estimate_llc(model, data, squared_errors, progress=False, **arguments)
    except (ValueError, ArithmeticError, RuntimeError) as failure:
        nothing = dict.fromkeys(("llc", "low", "high", "rhat", "ess", "gradients", "seconds"), math.nan)
        return {**nothing, "sampler": None, "problems": [f"{type(failure).__name__}: {failure}"]}
    low, high = estimate.interval
    return {
        "llc": estimate.llc, "low": low, "high": high, "rhat": estimate.rhat, "ess": estimate.ess,
        "sampler": estimate.sampler, "problems": list(estimate.verdict.names), "gradients": estimate.num_gradients,
        "seconds": estimate.seconds,
    }  # fmt: skip


def error(record: dict[str, Any], tool: str, truth: str = "rlct") -> float:
    return record[tool]["llc"] / record[truth] - 1


def ranked(rows: list[dict[str, Any]], tool: str) -> float:
    """Of the pairs with two λ, those that λ̂ puts in the same order."""
    right = [
        (one[tool]["llc"] < other[tool]["llc"]) == (one["rlct"] < other["rlct"])
        for one, other in itertools.combinations(rows, 2)
        if one["rlct"] != other["rlct"]
    ]
    return sum(right) / len(right) if right else math.nan


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for size, anchor, tool in itertools.product(SIZES, ANCHORS, ("ours", "published")):
        rows = [row for row in found if (row["size"], row["anchor"]) == (size, anchor)]
        finite = [row for row in rows if math.isfinite(row[tool]["llc"])]
        if not finite:
            continue
        errors = np.array([error(row, tool) for row in finite])
        to_rank = np.abs([error(row, tool, "half_hessian_rank") for row in finite])
        off = [row for row in finite if abs(error(row, tool)) > TAIL]
        table.append({
            "size": size, "anchor": anchor, "tool": tool, "networks": len(rows),
            "not_a_number": len(rows) - len(finite),
            "median_error": float(np.median(np.abs(errors))), "error_95": float(np.quantile(np.abs(errors), 0.95)),
            "least": float(errors.min()), "largest": float(errors.max()), "ranked": ranked(finite, tool),
            "median_error_of_half_the_rank": float(np.median(to_rank)),
            "more_than_a_tenth_off": len(off),
            "of_these_with_a_problem": sum(bool(row[tool]["problems"]) for row in off),
            "covered": sum(row[tool]["low"] <= row["rlct"] <= row[tool]["high"] for row in finite),
            "gradients": float(np.median([row[tool]["gradients"] for row in rows])),
            "seconds": float(np.median([row[tool]["seconds"] for row in rows])),
            "mala_acceptance": float(np.median([row["published"]["mala_acceptance"] for row in rows])),
        })  # fmt: skip
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
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--networks", type=int, help="of each size; by default 20 and 10")
    parser.add_argument("--device", default="cpu", help="of all estimates")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    work = [
        (size, number, anchor)
        for size in options.sizes
        for number in range(options.networks or SIZES[size].networks)
        for anchor in ANCHORS
    ]
    found = finished_rows(partial(measured, device=options.device), work, options.output, options.processes)
    table = summary(found)
    show(table)
    return {"summary": table, "rows": found}
