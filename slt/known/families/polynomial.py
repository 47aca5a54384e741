"""Potentials in closed form: sums of squares of polynomials, and a few with kinks or priors."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from slt.known.block import Block
from slt.known.case import Case
from slt.known.excess import Weights, generated
from slt.known.formulas import (
    LearningCoefficient,
    independent_product,
    independent_sum,
    morse_bott,
    normal_crossing,
    regular,
)
from slt.known.models import WeightVector
from slt.known.observations import Location
from slt.known.table import exact_rows
from slt.known.weighted import weighted_homogeneous

ELEMENTARY = "normal crossing rule (Watanabe 2009, poles of the zeta function)"
SUM_RULE = "sum rule (Watanabe 2009, Remark 7.5)"


def _columns(w: Tensor) -> tuple[Tensor, ...]:
    return w.unbind(-1)


def _case(
    name: str,
    generators: Callable[[Tensor], tuple[Tensor, ...]],
    anchor: tuple[float, ...],
    coefficient: LearningCoefficient,
    radius: float,
    reason: str,
    source: str,
    **more: object,
) -> Case:
    def stacked(w: Tensor) -> Tensor:
        return torch.stack(generators(w), -1)

    def of_weights(weights: Weights) -> Tensor:
        return stacked(weights["w"])

    return Case(
        name=name,
        family="polynomial",
        build=partial(WeightVector, anchor),
        excess=generated(stacked),
        coefficient=coefficient,
        radius=radius,
        observations=Location(of_weights),
        reason=reason,
        source=source,
        **{"status": "verified", **more},  # type: ignore[arg-type]
    )


def _square(x: Tensor) -> Tensor:
    return x.square()


def _exponential_ratio(x: Tensor) -> Tensor:
    """(e^x − 1)/x, smooth at zero."""
    small = x.abs() < 1e-6
    return torch.where(small, 1 + x / 2, torch.expm1(x) / torch.where(small, 1.0, x))


def _chi_root(w: Tensor) -> tuple[Tensor, ...]:
    """±√(a²(exp μ² − 1)/2), the smooth choice of sign."""
    return (w[..., 0] * w[..., 1] * (_exponential_ratio(_square(w[..., 1])) / 2).sqrt(),)


def _line(generator: Callable[[Tensor], Tensor], anchor: float = 0.0) -> Block:
    """A block of one coordinate, K = g(x)²."""
    return Block(lambda x: generator(x[..., 0]).square(), (anchor,))


def _plane(generator: Callable[[Tensor, Tensor], Tensor]) -> Block:
    """A block of two coordinates at the origin, K = g(x, y)²."""
    return Block(lambda x: generator(*_columns(x)).square(), (0.0, 0.0))


def cases() -> list[Case]:
    """The cases of this family."""
    crossing, smooth = normal_crossing([1, 1]), regular(1)
    root_half = 0.5**0.5
    return [
        _case("quadratic", lambda w: (root_half * w[..., 0],), (0.0,), regular(1), 1.0,
              "K = w²/2, regular with d = 1.", ELEMENTARY, exact=exact_rows("F1"),
              structure=(Block(curvatures=(1.0,)),)),
        _case("quartic", lambda w: (_square(w[..., 0]),), (0.0,), normal_crossing([2]), 1.0,
              "K = w⁴: λ = 1/4.", ELEMENTARY, exact=exact_rows("F2")),
        _case("poly_regular3", lambda w: tuple(root_half * x for x in _columns(w)), (0.0, 0.0, 0.0), regular(3), 1.0,
              "K = ‖w‖²/2, regular with d = 3.", "Morse lemma", structure=(Block(curvatures=(1.0, 1.0, 1.0)),)),
        _case("poly_xy2", lambda w: (w[..., 0] * w[..., 1],), (0.0, 0.0), crossing, 1.0,
              "K = (w₁w₂)²: a normal crossing with a tie.", ELEMENTARY, exact=exact_rows("F3")),
        _case("poly_x2y4", lambda w: (w[..., 0] * _square(w[..., 1]),), (0.0, 0.0), normal_crossing([1, 2]), 1.0,
              "K = w₁²w₂⁴: min(1/2, 1/4).", ELEMENTARY),
        _case("poly_x4+y2", lambda w: (_square(w[..., 0]), w[..., 1]), (0.0, 0.0),
              independent_sum(normal_crossing([2]), smooth), 1.0, "K = w₁⁴ + w₂²: 1/4 + 1/2.", SUM_RULE,
              exact=exact_rows("F4"), structure=(_line(_square), Block(curvatures=(2.0,)))),
        _case("poly_xyz2", lambda w: (w[..., 0] * w[..., 1] * w[..., 2],), (0.0, 0.0, 0.0),
              normal_crossing([1, 1, 1]), 1.0, "K = (w₁w₂w₃)²: a threefold tie.", ELEMENTARY),
        _case("poly_x2y2+x6+y6", lambda w: (w[..., 0] * w[..., 1], w[..., 0] ** 3, w[..., 1] ** 3), (0.0, 0.0),
              LearningCoefficient(crossing.rlct, 2), 1.0,
              "K = w₁²w₂² + w₁⁶ + w₂⁶: the diagonal meets the vertex (2, 2) of the Newton polyhedron, a face of "
              "codimension 2.", "Newton polyhedron of a sum of even monomials (Varchenko 1976)"),
        _case("poly_cusp2", lambda w: (_square(w[..., 0]) - w[..., 1] ** 3,), (0.0, 0.0),
              weighted_homogeneous((3, 2), 12, morse_bott(1)), 1.0,
              "K = (w₁² − w₂³)²: weights (3, 2) and degree 12 give 5/12, below 1/2 at its smooth zeros.",
              "weighted polar coordinates", exact=exact_rows("F5")),
        _case("poly_circle", lambda w: (_square(w).sum(-1) - 1,), (1.0, 0.0), morse_bott(1), 0.5,
              "K = (‖w‖² − 1)²: the zeros are a circle.", "Morse–Bott, rank 1"),
        _case("poly_x2+y2z2", lambda w: (w[..., 0], w[..., 1] * w[..., 2]), (0.0, 0.0, 0.0),
              independent_sum(smooth, crossing), 1.0, "K = w₁² + (w₂w₃)²: 1/2 + (1/2, m = 2).", SUM_RULE,
              structure=(Block(curvatures=(2.0,)), _plane(torch.mul))),
        _case("poly_x4+y6", lambda w: (_square(w[..., 0]), w[..., 1] ** 3), (0.0, 0.0),
              independent_sum(normal_crossing([2]), normal_crossing([3])), 1.0, "K = w₁⁴ + w₂⁶: 1/4 + 1/6.", SUM_RULE,
              structure=(_line(_square), _line(lambda x: x**3))),
        _case("poly_x2y2+z4", lambda w: (w[..., 0] * w[..., 1], _square(w[..., 2])), (0.0, 0.0, 0.0),
              independent_sum(crossing, normal_crossing([2])), 1.0, "K = w₁²w₂² + w₃⁴: (1/2, m = 2) + 1/4.", SUM_RULE,
              structure=(_plane(torch.mul), _line(_square))),
        _case("prior_x2y2_absx", lambda w: (w[..., 0] * w[..., 1],), (0.0, 0.0), normal_crossing([1, 1], [1, 0]), 1.0,
              "K = (w₁w₂)² with a prior that vanishes on one axis: min((1 + 1)/2, 1/2).", ELEMENTARY,
              prior="density proportional to |w₁|", log_prior=lambda w: w[..., 0].abs().log()),
        _case("half_cube", lambda w: (w[..., 0].clamp(min=0) ** 1.5 / 12**0.5,), (0.0,),
              regular(0), 1.0,
              "K = max(w, 0)³/12 is zero on a half line: the volume of {K < ε} tends to a constant.",
              "directly", exact=exact_rows("F10"),
              conditions="the excess of a ReLU unit on the edge of activity"),
        _case("square_plus_cube", lambda w: (w[..., 0], w[..., 1].abs() ** 1.5), (0.0, 0.0),
              independent_sum(smooth, normal_crossing([Fraction(3, 2)])), 1.0,
              "K = w₁² + |w₂|³: 1/2 + 1/3, the exponent of two ReLU kinks that part.", SUM_RULE,
              exact=exact_rows("F11"),
              structure=(Block(curvatures=(2.0,)), Block(lambda x: x[..., 0].abs() ** 3, (0.0,)))),
        _case("outer_product_2_2",
              lambda w: tuple(w[..., i] * w[..., j] for i in (0, 1) for j in (2, 3)), (0.0,) * 4,
              independent_product(regular(2), regular(2)), 1.0,
              "K = ‖u vᵀ‖² = ‖u‖²‖v‖²: a tie of 2/2 and 2/2.", "product rule", exact=exact_rows("F12"),
              structure=(Block(lambda r: r.square().prod(-1), (0.0, 0.0), (1, 1)),)),
        _case("gmm_chi_square", _chi_root, (0.0, 0.0),
              crossing, 1.0, "K = a²(exp μ² − 1)/2, the χ² divergence of a Gaussian mixture, is (aμ)² times a unit.",
              ELEMENTARY, exact=exact_rows("F13")),
    ]  # fmt: skip
