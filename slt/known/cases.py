"""The registry of known cases: a module at its anchor, the exact population loss, λ and m, and exact finite values."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class ExactValue(NamedTuple):
    """nβ·E[K] under the tempered local posterior, by closed form or quadrature.

    Attributes:
        n_beta: nβ.
        localization: γ.
        value: What λ̂ estimates at that nβ and γ, exactly.
    """

    n_beta: float
    localization: float
    value: float


@dataclass(frozen=True)
class Case:
    """A model whose learning coefficient is known.

    Attributes:
        name: Of the case.
        build: Makes the module, float64, at its anchor w*.
        loss_fn: ``model → K``, the exact excess population loss, zero at the anchor, in nats.
        rlct: λ at w*.
        multiplicity: m at w*.
        exact: Exact values at finite nβ.
        reason: Why λ and m are what they are.
        source: Where that is shown.
    """

    name: str
    build: Callable[[], nn.Module]
    loss_fn: Callable[[nn.Module], Tensor]
    rlct: Fraction
    multiplicity: int
    exact: tuple[ExactValue, ...]
    reason: str
    source: str


class WeightVector(nn.Module):
    """A module that is nothing but its weights ``w``, for losses in closed form."""

    def __init__(self, *weights: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights, dtype=torch.float64))


class OneUnit(nn.Module):
    """x ↦ a φ(b x), with a = b = 1."""

    def __init__(self, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.a = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.b = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """The output at every x, of the same shape."""
        return self.a * self.activation(self.b * x)


def linear_network(*widths: int, rank: int) -> nn.Sequential:
    """A linear network without biases whose layers are the identity on the first ``rank`` units and zero elsewhere."""
    layers = nn.Sequential(*(nn.Linear(m, n, bias=False, dtype=torch.float64) for m, n in pairwise(widths)))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.zero_()
            parameter[range(rank), range(rank)] = 1.0
    return layers


def _uniform_quadrature(pieces: tuple[tuple[float, float], ...], order: int = 40) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes and weights for the mean over a union of intervals, exact to degree 2·order − 1."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    total = sum(high - low for low, high in pieces)
    x = np.concatenate([(low + high) / 2 + (high - low) / 2 * nodes for low, high in pieces])
    w = np.concatenate([(high - low) / 2 * weights / total for low, high in pieces])
    return torch.from_numpy(x), torch.from_numpy(w)


SYMMETRIC_X, SYMMETRIC_WEIGHTS = _uniform_quadrature(((-1.0, 0.0), (0.0, 1.0)))  # the kink of ReLU is a boundary


def _half_square(model: nn.Module) -> Tensor:
    return 0.5 * model.w.square().sum()  # type: ignore[operator, union-attr]


def _excess(model: nn.Module, truth: Tensor) -> Tensor:
    """½ E_x (f(x) − f₀(x))², x uniform on [−1, 1]: the excess loss of regression with unit noise."""
    return 0.5 * (SYMMETRIC_WEIGHTS * (model(SYMMETRIC_X) - truth).square()).sum()


def _tanh_excess(model: nn.Module) -> Tensor:
    return _excess(model, torch.tanh(SYMMETRIC_X))


def _relu_excess(model: nn.Module) -> Tensor:
    return _excess(model, torch.relu(SYMMETRIC_X))


def _linear_excess(model: nn.Module) -> Tensor:
    """½ ‖W₂W₁ − (W₂W₁)*‖²_F: the excess loss for white inputs, the truth being the identity on the first two units."""
    inputs = torch.eye(3, dtype=torch.float64)
    truth = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    return 0.5 * (model(inputs) - truth).square().sum()


def _exact_rows(identifier: str) -> tuple[ExactValue, ...]:
    rows = json.loads(files("slt.known").joinpath("finite_temperature.json").read_text())
    return tuple(ExactValue(row["nbeta"], row["gamma"], row["expectation"]) for row in rows if row["id"] == identifier)


CASES: dict[str, Case] = {
    known.name: known
    for known in (
        Case(
            "quadratic",
            lambda: WeightVector(0.0),
            _half_square,
            Fraction(1, 2),
            1,
            _exact_rows("F1"),
            "Regular model with d = 1: λ = d/2.",
            "closed form nβ / (2 (nβ + γ))",
        ),
        Case(
            "tanh_one_unit",
            lambda: OneUnit(torch.tanh),
            _tanh_excess,
            Fraction(1),
            1,
            _exact_rows("F7"),
            "a tanh(b x) at a = b = 1: ∂f/∂a and ∂f/∂b are independent functions, so the model is regular: λ = 2/2.",
            "quadrature at two resolutions",
        ),
        Case(
            "relu_one_unit",
            lambda: OneUnit(torch.relu),
            _relu_excess,
            Fraction(1, 2),
            1,
            _exact_rows("F8"),
            "a relu(b x) at a = b = 1: K depends on a·b alone (Morse–Bott), and the Hessian's rank is 1: λ = 1/2.",
            "quadrature at two resolutions",
        ),
        Case(
            "linear_3_2_3",
            lambda: linear_network(3, 2, 3, rank=2),
            _linear_excess,
            Fraction(4),
            1,
            (),
            "Linear network with as many hidden units as the rank of the truth, M = N = 3, H = r = 2 (Morse–Bott): "
            "λ = (HM − Hr + Nr)/2.",
            "Aoyagi & Watanabe 2005, main theorem",
        ),
    )
}


def cases() -> tuple[Case, ...]:
    """All known cases."""
    return tuple(CASES.values())


def case(name: str) -> Case:
    """The known case of that name.

    Args:
        name: See :func:`cases`.

    Returns:
        The case.

    Raises:
        KeyError: There is none.
    """
    if name not in CASES:
        raise KeyError(f"name: {name!r}; expected one of {', '.join(CASES)}.")
    return CASES[name]
