"""Mixtures whose components coincide."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from slt.known.case import Case
from slt.known.excess import Excess, Weights, minus_log1p
from slt.known.formulas import independent_sum, normal_crossing, regular
from slt.known.models import WeightVector
from slt.known.observations import Density


def _gauss_hermite(order: int = 60) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the mean over N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


NODES, MASSES = _gauss_hermite()


def _tilt(mean: Tensor, x: Tensor) -> Tensor:
    """N(mean, 1) / N(0, 1) − 1 at x."""
    return torch.expm1(mean * x - mean.square() / 2)


def _one_component(weights: Weights, x: Tensor) -> Tensor:
    share, mean = (value.unsqueeze(-1) for value in weights["w"].unbind(-1))
    return share.abs() * _tilt(mean, x)


def _two_components(weights: Weights, x: Tensor) -> Tensor:
    share, first, second = (value.unsqueeze(-1) for value in weights["w"].unbind(-1))
    return share * _tilt(first, x) + (1 - share) * _tilt(second, x)


Ratio = Callable[[Weights, Tensor], Tensor]


def _divergence(ratio: Ratio) -> Excess:
    """K = E[z − log(1 + z)] over N(0, 1), z = p(x|w)/p(x|w*) − 1 having mean zero; no term is negative."""

    def excess(weights: Weights) -> Tensor:
        return minus_log1p(ratio(weights, NODES)) @ MASSES

    return excess


COUNTS = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
FAIR = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)


def _binomial_ratio(weights: Weights, x: Tensor) -> Tensor:
    """p(x|w)/p(x|w*) − 1 of a Bin(2, ½ + p) + (1 − a) Bin(2, ½ + q), at counts x."""
    # Bin(2, ½ + p) over Bin(2, ½) is 1 + 4p(x − 1) + 4p² · (1, −1, 1)
    share, first, second = (value.unsqueeze(-1) for value in weights["w"].unbind(-1))
    mean = share * first + (1 - share) * second
    square = share * first.square() + (1 - share) * second.square()
    return 4 * mean * (x - 1) + 4 * square * (2 * (x - 1).square() - 1)


def _binomial_divergence(weights: Weights) -> Tensor:
    return minus_log1p(_binomial_ratio(weights, COUNTS)) @ FAIR


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, dtype=torch.float64, generator=generator)


def _fair_counts(n: int, generator: torch.Generator) -> Tensor:
    return torch.multinomial(FAIR, n, replacement=True, generator=generator).double()


def cases() -> list[Case]:
    """The cases of this family."""
    meeting = independent_sum(regular(1), normal_crossing([2]))  # u² + v⁴
    return [
        Case(
            name="gmm_a_mu_zero", family="mixture", build=partial(WeightVector, (0.0, 0.0)),
            excess=_divergence(_one_component),
            coefficient=normal_crossing([1, 1]), radius=0.4,
            observations=Density(_normal, lambda weights, x: torch.log1p(_one_component(weights, x))),
            reason="(1 − a) N(0, 1) + a N(μ, 1) at a = μ = 0: the ideal is (aμ).",
            source="Yamazaki & Watanabe 2003; Watanabe 2009",
            conditions="a in [0, 1]; continued as |a| to negative a, which leaves λ and m as they are",
            status="verified", support="|a| at most 1",
        ),
        Case(
            name="gmm2_mid", family="mixture", build=partial(WeightVector, (0.4, 0.0, 0.0)),
            excess=_divergence(_two_components),
            coefficient=meeting, radius=0.35,
            observations=Density(_normal, lambda weights, x: torch.log1p(_two_components(weights, x))),
            reason="a N(m₁, 1) + (1 − a) N(m₂, 1) where the means meet: K ~ u² + v⁴, u the mean of the means.",
            source="Aoyagi 2010 (one-dimensional normal mixtures)", conditions="a inside (0, 1)", status="verified",
            support="a in [0, 1]",
        ),
        Case(
            name="binmix2_mid", family="mixture", build=partial(WeightVector, (0.4, 0.0, 0.0)),
            excess=_binomial_divergence, coefficient=meeting, radius=0.3,
            observations=Density(_fair_counts, lambda weights, x: torch.log1p(_binomial_ratio(weights, x))),
            reason="a Bin(2, ½ + p) + (1 − a) Bin(2, ½ + q) where p and q meet: K ~ u² + v⁴.",
            source="Yamazaki & Watanabe 2004", conditions="a inside (0, 1)", status="verified",
            support="a, ½ + p and ½ + q in [0, 1]",
        ),
    ]  # fmt: skip
