"""Linear networks at their most singular points, at generic points and in between; factorisations like them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from slt.known.block import Block
from slt.known.case import Case
from slt.known.excess import Weights, matrix_product
from slt.known.formulas import (
    LearningCoefficient,
    deep_linear,
    independent_product,
    independent_sum,
    normal_crossing,
    reduced_rank,
    reduced_rank_at,
    regular,
)
from slt.known.inputs import Gaussian
from slt.known.models import BilinearAttention, WeightVector, linear_network
from slt.known.observations import Location, Regression

CONDITIONS = "inputs of nonsingular covariance; here x ~ N(0, I)"
REDUCED_RANK = "Aoyagi & Watanabe 2005, Neural Networks 18:924, Main Theorem"
DEEP = "Aoyagi 2024, Neural Networks 172:106132, Main Theorem"
# Of a layer diag(I_r, 0), whose singular values are 1 and 0: by as much it can move and keep its rank, in Frobenius
# norm, and some margin. The most singular point has no worse stratum at any distance.
FREE_NORM = 0.6


def partial_identity(outputs: int, inputs: int, first: int, last: int) -> Tensor:
    """The matrix with ones at (i, i) for first ≤ i < last, zero elsewhere."""
    matrix = torch.zeros(outputs, inputs, dtype=torch.float64)
    places = torch.arange(first, last)
    matrix[places, places] = 1.0
    return matrix


def network_case(
    name: str,
    weights: Sequence[Tensor],
    coefficient: LearningCoefficient,
    radius: float,
    reason: str,
    source: str,
    *,
    status: str = "proven",
    structure: tuple[Block, ...] = (),
) -> Case:
    """A linear network at these weights, the truth being their product."""
    truth = weights[0]
    for weight in weights[1:]:
        truth = weight @ truth
    return Case(
        name=name,
        family="deep_linear",
        build=partial(linear_network, list(weights)),
        excess=matrix_product(truth, [f"{layer}.weight" for layer in range(len(weights))]),
        coefficient=coefficient,
        radius=radius,
        observations=Regression(Gaussian(weights[0].shape[1])),
        reason=reason,
        source=source,
        conditions=CONDITIONS,
        status=status,
        structure=structure,
    )


def most_singular(name: str, widths: Sequence[int], rank: int, **more: object) -> Case:
    """A linear network whose every layer is diag(I_r, 0): where the global theorem holds."""
    weights = [partial_identity(outputs, inputs, 0, rank) for inputs, outputs in pairwise(widths)]
    coefficient = reduced_rank(*widths, rank) if len(widths) == 3 else deep_linear(widths, rank)  # type: ignore[misc]
    reason = f"The most singular point for a truth of rank {rank}: every layer has that rank, and they are aligned."
    source = REDUCED_RANK if len(widths) == 3 else DEEP
    radius = 0.4 if rank else 1.0
    return network_case(name, weights, coefficient, radius, reason, source, **more)  # type: ignore[arg-type]


def two_layers_at(name: str, sizes: tuple[int, int, int], first: int, second: int, rank: int, **more: object) -> Case:
    """Two layers of ranks p and q whose product has rank r, singular values 1, diagonal in the bases of the truth."""
    inputs, hidden, outputs = sizes
    weights = [
        partial_identity(hidden, inputs, 0, first),
        # ones on the first r hidden units, which the first layer reaches, and on q − r that it does not reach
        partial_identity(outputs, hidden, 0, rank) + _shifted(outputs, hidden, rank, first, second - rank),
    ]
    coefficient = reduced_rank_at(*sizes, first_rank=first, second_rank=second, rank=rank)
    radius = FREE_NORM / max(weight.numel() for weight in weights) ** 0.5
    place = "a generic point" if first + second - rank == hidden else "between the generic and the most singular point"
    reason = f"The layers have ranks {first} and {second}, their product {rank}: {place} of the zeros."
    source = "local formula by block elimination; Aoyagi & Watanabe 2005 for the block that is left"
    return network_case(name, weights, coefficient, radius, reason, source, **more)  # type: ignore[arg-type]


def _shifted(outputs: int, hidden: int, row: int, column: int, count: int) -> Tensor:
    matrix = torch.zeros(outputs, hidden, dtype=torch.float64)
    places = torch.arange(count)
    matrix[row + places, column + places] = 1.0
    return matrix


def _scalar_chain() -> Case:
    weights = [torch.tensor([[value]], dtype=torch.float64) for value in (0.0, 0.0, 1.0)]
    return network_case(
        "dln_1111_r0_p", weights, normal_crossing([1, 1]), 0.5,
        "K = (w₁w₂w₃)²/2 at (0, 0, 1): (w₁w₂)² times a unit.", "normal crossing rule", status="verified",
    )  # fmt: skip


def _attention() -> Case:
    def excess(weights: Weights) -> Tensor:
        return 0.5 * (weights["query"].mT @ weights["key"]).square().sum((-2, -1))

    return Case(
        name="attn_bilinear_d2_h1_r0",
        family="attention_like",
        build=partial(BilinearAttention, [[0.0, 0.0]], [[0.0, 0.0]]),
        excess=excess,
        coefficient=reduced_rank(2, 1, 2, 0),
        radius=1.0,
        observations=Regression(Gaussian(4)),
        reason="The logit xᵀQᵀKy with independent x and y has K = ½‖QᵀK‖², that of a rank-one factorisation.",
        source=REDUCED_RANK,
        conditions="x and y independent, N(0, I)",
        status="verified",
        structure=(Block(lambda r: 0.5 * r.square().prod(-1), (0.0, 0.0), (1, 1)),),
    )


def _nonnegative() -> Case:
    def factors(weights: Weights) -> Tensor:
        w = weights["w"]
        a, b = w[..., :4].unflatten(-1, (2, 2)), w[..., 4:].unflatten(-1, (2, 2))
        return 0.5**0.5 * (a @ b).flatten(-2)

    return Case(
        name="nmf_222_zero",
        family="nmf",
        build=partial(WeightVector, [0.0] * 8),
        excess=lambda weights: factors(weights).square().sum(-1),
        coefficient=independent_sum(
            independent_product(regular(2), regular(2)), independent_product(regular(2), regular(2))
        ),
        radius=1.0,
        observations=Location(factors),
        reason="Nonnegative factors cannot cancel: K ~ Σ_k ‖a_k‖²‖b_k‖², two summands of (1, m = 2).",
        source="comparison lemma; agrees with the bound of Hayashi & Watanabe 2017",
        conditions="all entries at least zero, w* at the corner of the orthant",
        status="verified",
        support="all entries at least zero",
        lower=0.0,
    )


def cases() -> list[Case]:
    """The cases of this family."""
    verified = {"status": "verified"}
    half = 0.5
    radial = (Block(lambda r: half * r.square().prod(-1), (0.0, 0.0), (1, 1)),)
    radial_chain = (Block(lambda r: half * r.square().prod(-1), (0.0, 0.0, 0.0), (1, 0, 1)),)
    return [
        most_singular("rrr_111_r0", (1, 1, 1), 0, **verified),
        most_singular("rrr_222_r0", (2, 2, 2), 0, **verified),
        most_singular("rrr_212_r0", (2, 1, 2), 0, structure=radial, **verified),
        most_singular("rrr_222_r1", (2, 2, 2), 1, **verified),
        two_layers_at("rrr_222_r1_p2q1", (2, 2, 2), 2, 1, 1, **verified),
        most_singular("rrr_322_r1", (3, 2, 2), 1, **verified),
        most_singular("rrr_232_r1", (2, 3, 2), 1, **verified),
        most_singular("dln_1111_r0", (1, 1, 1, 1), 0, **verified),
        _scalar_chain(),
        most_singular("dln_2112_r0", (2, 1, 1, 2), 0, structure=radial_chain, **verified),
        most_singular("dln_2222_r0", (2, 2, 2, 2), 0, **verified),
        _attention(),
        _nonnegative(),
        # other sizes and truths, by the same theorems
        most_singular("rrr_323_r2", (3, 2, 3), 2),
        most_singular("rrr_545_r2", (5, 4, 5), 2),
        most_singular("rrr_686_r3", (6, 8, 6), 3),
        most_singular("rrr_50_50_50_r10", (50, 50, 50), 10),
        two_layers_at("rrr_545_r2_p4q2", (5, 4, 5), 4, 2, 2),
        two_layers_at("rrr_545_r2_p3q3", (5, 4, 5), 3, 3, 2),
        two_layers_at("rrr_545_r2_p3q2", (5, 4, 5), 3, 2, 2),
        two_layers_at("rrr_686_r3_p6q5", (6, 8, 6), 6, 5, 3),
        two_layers_at("rrr_332_r1_p2q1", (3, 3, 2), 2, 1, 1),
        most_singular("dln_5435_r2", (5, 4, 3, 5), 2),
        most_singular("dln_10x5_r4", (10, 10, 10, 10, 10), 4),
        most_singular("dln_20_10_30_20_r3", (20, 10, 30, 20), 3),
        most_singular("dln_50x11_r5", (50,) * 11, 5),
    ]
