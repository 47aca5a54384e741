"""The six published classes of deep linear networks, from fixed seeds, at two kinds of anchor.

Noiseless teachers on inputs from U[−10, 10] and the mean squared error over outputs, as Lau et al. 2023 (Table 1). Each
network is anchored twice:

* ``aligned``: at the same product by layers of its rank, each with the singular vectors of its neighbours: Aoyagi's λ
  holds.
* ``published``: by the published generator, every layer being reduced to a random rank with probability ½. There λ at
  small scales is half the rank of the Hessian, which may exceed Aoyagi's; what is sampled at a finite nβ is in
  between.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from slt import known

ANCHORS = ("aligned", "published")
WIDEST = 10.0  # inputs are uniform between −10 and 10
PUBLISHED_BATCH = 500
MEDIAN, TAIL, RANKED = 0.03, 0.10, 0.97  # the bars: of |λ̂/λ − 1|, and of pairs ranked as their λ


class Size(NamedTuple):
    """A published class of networks, and the SGLD that was run on it: one chain, a tenth of whose steps are draws."""

    layers: tuple[int, int]
    widths: tuple[int, int]
    num_samples: int
    step_size: float
    steps: int

    @property
    def passes(self) -> int:
        """Over the data, that the published run takes."""
        return self.steps * PUBLISHED_BATCH // self.num_samples


SIZES = {
    "1K": Size((2, 5), (5, 50), 100_000, 5e-7, 10_000),
    "10K": Size((2, 10), (5, 100), 100_000, 5e-7, 10_000),
    "100K": Size((2, 10), (50, 500), 1_000_000, 1e-7, 50_000),
    "1M": Size((2, 20), (100, 1000), 1_000_000, 5e-8, 50_000),
    "10M": Size((2, 20), (500, 2000), 1_000_000, 2e-8, 50_000),
    "100M": Size((2, 40), (500, 3000), 1_000_000, 2e-8, 50_000),
}


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


class Network(NamedTuple):
    """A network of a class at an anchor.

    Attributes:
        size: The class.
        number: In it.
        anchor: Which.
        weights: Of its layers, ``(out, in)`` each.
        generator: From which its inputs are to be drawn.
    """

    size: str
    number: int
    anchor: str
    weights: list[np.ndarray]
    generator: np.random.Generator

    @property
    def widths(self) -> list[int]:
        """Of the input and all layers."""
        return [self.weights[0].shape[1], *(len(weight) for weight in self.weights)]

    def facts(self) -> dict[str, object]:
        """What a row says of it: its widths, and λ by Aoyagi and by the Hessian."""
        rank = product_rank(self.weights)
        truth = known.deep_linear(self.widths, rank=rank)
        return {
            "size": self.size, "number": self.number, "anchor": self.anchor, "widths": self.widths, "rank": rank,
            "weights": sum(weight.size for weight in self.weights), "rlct": float(truth.rlct),
            "multiplicity": truth.multiplicity, "half_hessian_rank": half_hessian_rank(self.weights),
        }  # fmt: skip


def network(size: str, number: int, anchor: str) -> Network:
    """The network of that number in its class; its function is the same at both anchors."""
    generator = np.random.default_rng([tuple(SIZES).index(size), number])
    weights = random_weights(generator, SIZES[size])
    if anchor == "aligned":
        weights = aligned(generator, weights, product_rank(weights))
    return Network(size, number, anchor, weights, generator)


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


def accuracy_of(rows: list[dict[str, Any]], tool: str) -> dict[str, Any]:
    """How far a tool's λ̂ is from Aoyagi's λ, over the networks of a class at an anchor; empty without any λ̂."""
    finite = [row for row in rows if math.isfinite(row[tool]["llc"])]
    if not finite:
        return {}
    errors = np.array([row[tool]["llc"] / row["rlct"] - 1 for row in finite])
    to_rank = np.abs([row[tool]["llc"] / row["half_hessian_rank"] - 1 for row in finite])
    off = [row for row, error in zip(finite, errors, strict=True) if abs(error) > TAIL]
    return {
        "networks": len(rows), "not_a_number": len(rows) - len(finite),
        "median_error": float(np.median(np.abs(errors))), "error_95": float(np.quantile(np.abs(errors), 0.95)),
        "least": float(errors.min()), "largest": float(errors.max()), "ranked": ranked(finite, tool),
        "median_error_of_half_the_rank": float(np.median(to_rank)),
        "more_than_a_tenth_off": len(off), "of_these_with_a_problem": sum(bool(row[tool]["problems"]) for row in off),
        "covered": sum(row[tool]["low"] <= row["rlct"] <= row[tool]["high"] for row in finite),
        "seconds": float(np.median([row[tool]["seconds"] for row in finite])),
    }  # fmt: skip


def ranked(rows: list[dict[str, Any]], tool: str) -> float:
    """Of the pairs of networks with two λ, the share that a tool's λ̂ puts in the same order."""
    right = [
        (one[tool]["llc"] < other[tool]["llc"]) == (one["rlct"] < other["rlct"])
        for one, other in itertools.combinations(rows, 2)
        if one["rlct"] != other["rlct"]
    ]
    return sum(right) / len(right) if right else math.nan
