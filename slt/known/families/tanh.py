"""tanh networks with one hidden layer: surplus units that vanish, duplicate or cancel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from slt.known.case import Case, Chart
from slt.known.excess import two_layer
from slt.known.formulas import (
    LearningCoefficient,
    independent_product,
    independent_sum,
    normal_crossing,
    regular,
    tanh_1d,
    tanh_copies,
    tanh_surplus,
)
from slt.known.inputs import Uniform
from slt.known.models import TwoLayer
from slt.known.observations import Regression
from slt.known.table import exact_rows

WIDE, NARROW = Uniform(-2.0, 2.0), Uniform(-1.0, 1.0)
CONDITIONS = "enough support that the functions named stay independent"
ORIGIN = "Aoyagi & Watanabe 2005; Aoyagi 2009, IJPAM 52:177"
TANGENTS = "tangent functions at w*, and Taylor series of K"


def units_case(
    name: str,
    a: Sequence[float],
    b: Sequence[float],
    coefficient: LearningCoefficient,
    radius: float,
    reason: str,
    source: str = TANGENTS,
    *,
    slope: float | None = None,
    inputs: Uniform = WIDE,
    **more: object,
) -> Case:
    """F = Σ a_i tanh(b_i x) at these weights; the truth is slope · tanh(x), or zero."""
    truth: Callable[[Tensor], Tensor] | None = None if slope is None else lambda x: slope * torch.tanh(x)
    return Case(
        name=name,
        family="tanh",
        build=partial(TwoLayer, torch.tanh, [list(a)], [[value] for value in b]),
        excess=two_layer(torch.tanh, inputs.quadrature(32, half=True), truth),
        coefficient=coefficient,
        radius=radius,
        observations=Regression(inputs),
        reason=reason,
        source=source,
        conditions=CONDITIONS,
        **{"status": "verified", **more},  # type: ignore[arg-type]
    )


def copies_chart(copies: int, weight: float, radius: float) -> Chart:
    """Coordinates for p copies of one unit at b = 1: p − 1 of the a_i, p − 1 offsets of b, Σa − a₀ and Σ a_i δ_i.

    Args:
        copies: p.
        weight: Of every copy, a_i at w*.
        radius: Half-width of the box of coordinates.

    Returns:
        The chart, in the order (a_1 … a_p, b_1 … b_p) of the weights.
    """

    def to_weights(z: Tensor) -> Tensor:
        free, offsets = z[..., : copies - 1] + weight, z[..., copies - 1 : 2 * copies - 2]
        total, moment = z[..., -2] + copies * weight, z[..., -1]
        last = total - free.sum(-1)
        last_offset = (moment - (free * offsets).sum(-1)) / last
        a = torch.cat([free, last.unsqueeze(-1)], -1)
        return torch.cat([a, 1 + offsets, 1 + last_offset.unsqueeze(-1)], -1)

    return Chart(to_weights, radius)


def _two_inputs(name: str, units: int, outputs: int, coefficient: LearningCoefficient, reason: str, source: str,
                order: int, **more: object) -> Case:  # fmt: skip
    """F = A tanh(B x) with two inputs at the origin, the truth being zero."""
    inputs = Uniform(-2.0, 2.0, 2)
    return Case(
        name=name,
        family="tanh",
        build=partial(TwoLayer, torch.tanh, [[0.0] * units] * outputs, [[0.0, 0.0]] * units),
        excess=two_layer(torch.tanh, inputs.quadrature(order, half=True), None),
        coefficient=coefficient,
        radius=1.0,
        observations=Regression(inputs),
        reason=reason,
        source=source,
        conditions=CONDITIONS,
        **{"status": "verified", **more},  # type: ignore[arg-type]
    )


def _biased(name: str, output_bias: bool, coefficient: LearningCoefficient, reason: str) -> Case:
    """F = a tanh(b x + c), and an output bias or not, at the origin, the truth being zero."""
    return Case(
        name=name,
        family="tanh",
        build=partial(TwoLayer, torch.tanh, [[0.0]], [[0.0]], [0.0], [0.0] if output_bias else None),
        excess=two_layer(torch.tanh, WIDE.quadrature(32), None),
        coefficient=coefficient,
        radius=1.0,
        observations=Regression(WIDE),
        reason=reason,
        source=TANGENTS,
        conditions=CONDITIONS,
        status="verified",
    )


def cases() -> list[Case]:
    """The cases of this family."""
    crossing = normal_crossing([1, 1])
    cubic = independent_sum(regular(1), normal_crossing([3]))  # u² + v⁶: 1/2 + 1/6
    zero = "K ~ Σ_n S_n² with S_n = Σ a_i b_i^(2n−1), n ≤ H."
    found = [
        units_case("tanh_H1_zero", [0.0], [0.0], tanh_1d(1), 1.0, "K ~ (ab)².", ORIGIN),
        units_case("tanh_H1_true1", [1.0], [1.0], regular(2), 0.4,
                   "The tangent functions tanh x and x sech² x are independent: regular.", slope=1.0),
        units_case("tanh_one_unit_zero", [0.0], [0.0], tanh_1d(1), 1.0, "K ~ (ab)².", ORIGIN, inputs=NARROW,
                   exact=exact_rows("F6")),
        units_case("tanh_one_unit", [1.0], [1.0], regular(2), 0.4,
                   "The tangent functions tanh x and x sech² x are independent: regular.", slope=1.0, inputs=NARROW,
                   exact=exact_rows("F7")),
        units_case("tanh_H2_zero", [0.0] * 2, [0.0] * 2, tanh_1d(2), 1.0,
                   f"{zero} Weighted polar coordinates in a: min(2/2, 2/3).", ORIGIN),
        units_case("tanh_H2_zero_semi", [1.0, 0.0], [0.0, 0.0], cubic, 0.4, "K ~ u² + (a₂b₂³)², u = S₁."),
        units_case("tanh_H2_zero_agen", [1.0, 0.5], [0.0, 0.0], cubic, 0.3, "K ~ u² + b₂⁶, u = S₁."),
        units_case("tanh_H2_zero_bgen", [0.0, 0.0], [1.0, 0.4], regular(2), 0.25,
                   "f is linear in a, and the two units are independent functions: rank 2."),
        units_case("tanh_H2_zero_bdup", [0.0, 0.0], [1.0, 1.0], independent_sum(regular(1), crossing), 0.4,
                   "K ~ (a₁ + a₂)² + (a₂δ)²."),
        units_case("tanh_H2_zero_cancel", [1.0, -1.0], [1.0, 1.0], regular(2), 0.3, "K ~ (a₁ + a₂)² + δ²."),
        units_case("tanh_H2_k1_ann", [1.0, 0.0], [1.0, 0.0], tanh_surplus(2), 0.35, "K ~ u₀² + u₁² + (a₂b₂)².",
                   slope=1.0),
        units_case("tanh_H2_k1_dup", [0.5, 0.5], [1.0, 1.0], tanh_copies(2), 0.3, "K ~ u₀² + u₁² + δ⁴.", slope=1.0,
                   chart=copies_chart(2, 0.5, 0.05)),
        units_case("tanh_H2_k1_a0dup", [1.0, 0.0], [1.0, 1.0],
                   independent_sum(regular(2), normal_crossing([1, 2])), 0.35, "K ~ u₀² + u₁² + (a₂δ²)².", slope=1.0),
        units_case("tanh_H3_k1_dup+", [0.5] * 3, [1.0] * 3, tanh_copies(3), 0.25,
                   "K ~ u₀² + u₁² + Q(δ)², Q definite in two offsets.", slope=1.5, chart=copies_chart(3, 0.5, 0.03)),
        units_case("tanh_H4_k1_dup+", [0.5] * 4, [1.0] * 4, tanh_copies(4), 0.15,
                   "K ~ u₀² + u₁² + Q(δ)², Q definite in three offsets.", slope=2.0, chart=copies_chart(4, 0.5, 0.015)),
        units_case("tanh_H4_zero_agen", [1.0, 0.5, 0.8, 0.7], [0.0] * 4, tanh_1d(4), 0.25,
                   "u = S₁ splits off 1/2; on the cone S₂ = 0 the cubic's 3/6 ties with the quintic.", ORIGIN),
        _biased("tanh_bias_zero", False, independent_product(regular(1), regular(2)), "K ~ a²(b² + c²)."),
        _biased("tanh_bias_outbias_zero", True, independent_sum(regular(1), crossing),
                "K ~ (d + a tanh c)² + (ab)², c free."),
        _two_inputs("tanh2d_H1_zero", 1, 1, independent_product(regular(1), regular(2)), "K ~ a²‖b‖².", TANGENTS, 12),
        _two_inputs("tanh2d_H2_zero", 2, 1, LearningCoefficient(Fraction(1), 1),
                    "Weighted polar coordinates in a: 2/2, below 4/3 on the sphere; bounded below by reduced rank.",
                    "Aoyagi 2019, Theorem 6 (H = 2), and the bound of reduced rank (2, 2, 1; 0)", 10),
        _two_inputs("tanh2d_H3_zero", 3, 1, LearningCoefficient(Fraction(3, 2), 1),
                    "The theorem for three units and two inputs.", "Aoyagi 2019, Theorem 6 (H = 3)", 10,
                    status="λ verified; m from numerics alone"),
        _two_inputs("tanh_2in_2out_H1_zero", 1, 2, independent_product(regular(2), regular(2)), "K ~ ‖A‖²‖b‖².",
                    TANGENTS, 10),
        Case(
            name="tanh_1in_2out_H2_zero", family="tanh",
            build=partial(TwoLayer, torch.tanh, [[0.0, 0.0], [0.0, 0.0]], [[0.0], [0.0]]),
            excess=two_layer(torch.tanh, WIDE.quadrature(32, half=True), None), coefficient=tanh_1d(2, 2),
            radius=1.0, observations=Regression(WIDE), reason="k = 1 with equality 2H = M · 2: a tie.",
            source="Aoyagi 2009 (M = 2, Q = 2), from a transcription", conditions=CONDITIONS, status="verified",
        ),
    ]  # fmt: skip
    found += [
        units_case(f"tanh_H{hidden}_zero", [0.0] * hidden, [0.0] * hidden, tanh_1d(hidden), 1.0, zero, ORIGIN,
                   status="verified" if hidden == 3 else "proven")
        for hidden in range(3, 10)
    ]  # fmt: skip
    found += [
        units_case("tanh_H3_k1_ann", [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], tanh_surplus(3), 0.35,
                   "K ~ u₀² + u₁² + that of two units at the zero truth: 1 + 2/3.", slope=1.0),
        units_case("tanh_H3_zero_bgen", [0.0] * 3, [0.3, 1.0, 3.0], regular(3), 0.2,
                   "f is linear in a, and the three units are independent functions: rank 3."),
    ]  # fmt: skip
    return found
