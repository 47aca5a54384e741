"""ReLU networks: dead, annihilated, duplicated and always-active units, and minimal truths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from slt.known.block import Block
from slt.known.case import Case, Chart
from slt.known.excess import Excess, Weights, relu_gaussian, relu_half_lines, relu_interval, relu_plane
from slt.known.formulas import (
    LearningCoefficient,
    independent_product,
    independent_sum,
    morse_bott,
    normal_crossing,
    reduced_rank,
    reduced_rank_at,
    regular,
    relu_copies,
    relu_minimal,
)
from slt.known.inputs import Gaussian, Grid, InputLaw, Uniform
from slt.known.models import ScalarReLUChain, TwoLayer, relu_network
from slt.known.observations import Regression
from slt.known.table import exact_rows

UNIT, POSITIVE = Uniform(-1.0, 1.0), Uniform(0.0, 1.0)
HALF_LINES = "K in closed form on each half line"
TANGENTS = "tangent functions at w*, and the homogeneity of what they leave"
COPIES = "all a_i > 0; one kink, inside the support and not on its boundary"
APART = "kinks distinct and inside the support"
NO_VOLUME = regular(0)  # the volume of {K < ε} tends to a constant
Unit = tuple[float, ...]  # (a, b, c) with a bias, (a, b₁, …) without


def _case(
    name: str, build: partial[nn.Module], excess: Excess, inputs: InputLaw, coefficient: LearningCoefficient,
    radius: float, reason: str, source: str, **more: object,
) -> Case:  # fmt: skip
    return Case(
        name=name,
        family="relu",
        build=build,
        excess=excess,
        coefficient=coefficient,
        radius=radius,
        observations=Regression(inputs),
        reason=reason,
        source=source,
        **{"status": "verified", **more},  # type: ignore[arg-type]
    )


def half_lines(name: str, units: Sequence[Unit], truth: tuple[float, float], *rest: object, **more: object) -> Case:
    """Σ a relu(b x) without biases, x ~ U[−1, 1]; the truth has these slopes to the right and left of zero."""
    a, b = zip(*units, strict=True)
    build = partial(TwoLayer, torch.relu, [list(a)], [[value] for value in b])
    return _case(name, build, relu_half_lines(*truth), UNIT, *rest, **more)  # type: ignore[arg-type]


def interval(name: str, units: Sequence[Unit], truth: Sequence[tuple[float, float, float]], *rest: object,
             inputs: Uniform = UNIT, **more: object) -> Case:  # fmt: skip
    """Σ a relu(b x + c), x uniform on an interval; the truth is a sum of such units."""
    a, b, c = zip(*units, strict=True)
    build = partial(TwoLayer, torch.relu, [list(a)], [[value] for value in b], list(c))
    excess = relu_interval(inputs.low, inputs.high, truth)
    return _case(name, build, excess, inputs, *rest, **more)  # type: ignore[arg-type]


def plane(name: str, units: Sequence[Unit], truth: Sequence[tuple[float, float, float]], *rest: object,
          **more: object) -> Case:  # fmt: skip
    """Σ a relu(b·x) without biases, x ~ N(0, I₂); the truth is a sum of such units."""
    build = partial(TwoLayer, torch.relu, [[unit[0] for unit in units]], [list(unit[1:]) for unit in units])
    return _case(name, build, relu_plane(truth), Gaussian(2), *rest, **more)  # type: ignore[arg-type]


def space(name: str, units: Sequence[Unit], truth: Sequence[Sequence[float]], *rest: object, **more: object) -> Case:
    """Σ a relu(b·x) without biases, x ~ N(0, I) in three dimensions or more; the truth is a sum of such units."""
    build = partial(TwoLayer, torch.relu, [[unit[0] for unit in units]], [list(unit[1:]) for unit in units])
    return _case(name, build, relu_gaussian(truth), Gaussian(len(units[0]) - 1), *rest, **more)  # type: ignore[arg-type]


def copies_chart(copies: int, radius: float, *, inputs: int = 2, bias: bool = True) -> Chart:
    """Coordinates for p copies of one unit, each with share 1/p: scales, shares, kinks, and sums.

    A unit a relu(b·x) with b = β(1, δ) depends on its share α = aβ and its kink δ alone, β being its scale. The
    coordinates are the scales, p − 1 shares, p − 1 kinks, Σα − 1 and Σ αδ.

    Args:
        copies: p.
        radius: Half-width of the box of coordinates.
        inputs: N, the constant input of a bias counted as one: δ has N − 1 components.
        bias: Whether the second input is that of a bias, c = βδ.

    Returns:
        The chart, in the order of the weights: all a, then b (then c).
    """
    parts = [copies, copies - 1, (copies - 1) * (inputs - 1), 1, inputs - 1]

    def to_weights(z: Tensor) -> Tensor:
        scale, free, offsets, total, moment = z.split(parts, -1)
        scale, free = 1 + scale, 1 / copies + free
        offsets = offsets.unflatten(-1, (copies - 1, inputs - 1))
        last = 1 + total - free.sum(-1, keepdim=True)
        last_offset = (moment - (free.unsqueeze(-1) * offsets).sum(-2)) / last
        share = torch.cat([free, last], -1)
        kinks = scale.unsqueeze(-1) * torch.cat([offsets, last_offset.unsqueeze(-2)], -2)
        if bias:
            return torch.cat([share / scale, scale, kinks.squeeze(-1)], -1)
        return torch.cat([share / scale, torch.cat([scale.unsqueeze(-1), kinks], -1).flatten(-2)], -1)

    return Chart(to_weights, radius)


def network_on_grid(name: str, widths: Sequence[int], weights: Sequence[Sequence[Sequence[float]]],
                    biases: Sequence[Sequence[float]], grid: Grid, radius: float) -> Case:  # fmt: skip
    """A minimal ReLU network as its own truth, inputs uniform on a grid, so that K is an exact finite sum."""
    module = relu_network(widths, weights, biases)
    points = grid.points
    with torch.no_grad():
        target = module(points)
    count = sum(parameter.numel() for parameter in module.parameters())

    def excess(named: Weights) -> Tensor:
        layers = len(widths) - 1
        x = points
        for place in range(layers):
            x = x @ named[f"{2 * place}.weight"].mT + named[f"{2 * place}.bias"].unsqueeze(-2)
            x = torch.relu(x) if place < layers - 1 else x
        return 0.5 * (x - target).square().sum(-1).mean(-1)

    return Case(
        name=name,
        family="relu",
        build=partial(relu_network, widths, weights, biases),
        excess=excess,
        coefficient=relu_minimal(count, sum(widths[1:-1])),
        radius=radius,
        observations=Regression(grid),
        reason=f"A minimal truth: {count} weights less one rescaling for each hidden unit.",
        source="Morse–Bott; the Gram rank of the tangent functions is checked numerically",
        conditions="no kink passes through a point of the grid, at w* or within the radius",
        status="proven",
    )


def gram_rank(case: Case, grid: Grid, tolerance: float = 1e-9) -> int:
    """The rank of the Gram matrix of the tangent functions ∂f/∂w_i at w*, over the points of a grid.

    Args:
        case: A network.
        grid: Of inputs.
        tolerance: Singular values below this, relative to the largest, count as zero.

    Returns:
        The rank.
    """
    module = case.build()
    weights = {name: tensor.detach() for name, tensor in module.named_parameters()}
    jacobian = torch.func.jacrev(lambda named: functional_call(module, named, (grid.points,)))(weights)
    tangents = torch.cat([part.flatten(2) for part in jacobian.values()], -1).flatten(0, 1)
    return int(torch.linalg.matrix_rank(tangents, rtol=tolerance))


GRID = Grid(-2.0, 2.0, 5, 2, offset=0.17)  # of such offsets the one that keeps kinks farthest from points
NETWORK_231 = (
    [[[1.0, 0.5], [-0.7, 1.0], [0.3, -1.2]], [[1.0, -0.8, 0.9]]],
    [[0.3, -0.4, 0.2], [0.1]],
)
NETWORK_2221 = (
    [[[1.0, 0.6], [-0.8, 1.0]], [[0.9, -0.7], [-0.5, 1.1]], [[1.0, -0.9]]],
    [[0.4, 0.3], [0.2, 0.35], [0.05]],
)


def cases() -> list[Case]:
    """The cases of this family."""
    crossing = normal_crossing([1, 1])
    scalar = independent_product(regular(1), regular(2))
    true = [(1.0, 1.0, 0.0)]
    bump = "K ~ u₀² + u₁² + |δ|³"
    a0_copy = independent_sum(regular(2), LearningCoefficient(relu_copies(2).rlct - 1, 1))
    chain = "one unit per layer: K depends on c b⁺ a alone on each half line"
    return [
        half_lines("relu_nb_H1_zero", [(0.0, 0.0)], (0.0, 0.0), crossing, 1.0, "K = a²b²/12.", HALF_LINES,
                   exact=exact_rows("F9")),
        half_lines("relu_nb_H1_true1", [(1.0, 1.0)], (1.0, 0.0), morse_bott(1), 0.5,
                   "K depends on ab alone near w* (Morse–Bott): two weights less one rescaling.", HALF_LINES,
                   exact=exact_rows("F8")),
        half_lines("relu_nb_H2_zero", [(0.0, 0.0)] * 2, (0.0, 0.0), regular(1), 1.0,
                   "Where b₁, b₂ > 0, K = (a₁b₁ + a₂b₂)²/12, a quadric of rank 4 squared; elsewhere no worse.",
                   HALF_LINES),
        half_lines("relu_nb_H2_opp_zero", [(0.0, 1.0), (0.0, -1.0)], (0.0, 0.0), regular(2), 0.5,
                   "K ~ a₁² + a₂² times units.", HALF_LINES),
        half_lines("relu_nb_H2_opp_b0", [(1.0, 1.0), (1.0, -1.0)], (1.0, 1.0), relu_minimal(4, 2), 0.3,
                   "Two hyperbolas: (4 − 2)/2.", HALF_LINES),
        interval("relu_b_H1_true", true, true, relu_minimal(3, 1), 0.4, "(3 − 1)/2.", TANGENTS, conditions=APART),
        interval("relu_b_H1_active_a0", [(0.0, 0.3, 1.0)], [], regular(1), 0.4, "K = a² times a unit.", TANGENTS),
        interval("relu_b_H2_dead", [(1.0, 1.0, 0.0), (1.0, 0.5, -1.5)], true, relu_minimal(3, 1), 0.2,
                 "The second unit is dead near w*: three flat directions.", TANGENTS),
        interval("relu_b_H1_boundary", [(1.0, 1.0, -1.0)], [], NO_VOLUME, 0.3,
                 "K = 0 on the open half b + c ≤ 0: the volume tends to a constant.", "directly"),
        interval("relu_b_H1_zero_deadcone", [(0.0, 0.0, 0.0)], [], NO_VOLUME, 1.0,
                 "The unit is dead on the cone c < −|b|, which has volume in every ball.", "directly"),
        interval("relu_b_H2_dup", [(0.5, 1.0, 0.0)] * 2, true, relu_copies(2), 0.25, f"{bump}.", TANGENTS,
                 conditions=COPIES, chart=copies_chart(2, 0.04)),
        interval("relu_b_H2_a0dup", [(1.0, 1.0, 0.0), (0.0, 1.0, 0.0)], true, a0_copy, 0.25,
                 "K ~ u₀² + u₁² + a₂²|δ|³: min(1/2, 1/3) on top of 1.", TANGENTS,
                 conditions="the units on one kink, inside the support"),
        interval("relu_b_H2_a0diff", [(1.0, 1.0, 0.0), (0.0, 1.0, -0.5)], true, regular(3), 0.15,
                 "K ~ u₀² + u₁² + a₂².", TANGENTS, conditions=APART),
        interval("relu_b_H2_abs", [(1.0, 1.0, 0.0), (1.0, -1.0, 0.0)], [(1.0, 1.0, 0.0), (1.0, -1.0, 0.0)],
                 relu_minimal(6, 2), 0.3, "Four independent tangent functions.", TANGENTS, conditions=APART),
        interval("relu_b_H2_active_dup_a0", [(0.0, 1.0, 1.0)] * 2, [],
                 reduced_rank_at(2, 2, 1, first_rank=1, second_rank=0, rank=0), 0.4,
                 "Always active, hence linear in (x, 1): 1/2 and a block of (1, 1, 1).",
                 "local formula of reduced-rank regression", inputs=POSITIVE),
        interval("relu_b_H2_active_true", [(0.5, 1.0, 1.0)] * 2, [(1.0, 1.0, 1.0)],
                 reduced_rank_at(2, 2, 1, first_rank=1, second_rank=1, rank=1), 0.25,
                 "Always active, hence linear in (x, 1): two functions.", "local formula of reduced-rank regression",
                 inputs=POSITIVE),
        plane("relu2d_H1_zero", [(0.0, 0.0, 0.0)], [], scalar, 1.0, "K = a²‖b‖²/4.", "sectors of the plane",
              structure=(Block(lambda r: 0.25 * r.square().prod(-1), (0.0, 0.0), (0, 1)),)),
        plane("relu2d_H1_true", true, true, relu_minimal(3, 1), 0.4, "(3 − 1)/2.", TANGENTS, conditions=APART),
        plane("relu2d_H2_true2", [(1.0, 1.0, 0.0), (1.0, 0.0, 1.0)], [(1.0, 1.0, 0.0), (1.0, 0.0, 1.0)],
              relu_minimal(6, 2), 0.25, "(6 − 2)/2.", TANGENTS, conditions=APART),
        plane("relu2d_H2_dup", [(0.5, 1.0, 0.0)] * 2, true, relu_copies(2), 0.25, f"{bump}, δ an angle.", TANGENTS,
              conditions=COPIES, chart=copies_chart(2, 0.04, bias=False)),
        plane("relu2d_H2_zero", [(0.0, 0.0, 0.0)] * 2, [], reduced_rank(2, 2, 1, 0), 1.0,
              "Weighted polar coordinates in a tie with the sphere, where units cancel; bounded below by reduced rank.",
              "weighted polar coordinates, and the bound of reduced rank (2, 2, 1; 0)"),
        _case("relu_deep3_true1", partial(ScalarReLUChain, [1.0, 1.0, 1.0]), _chain_excess(1.0), UNIT,
              relu_minimal(3, 2), 0.4, "(3 − 2)/2.", chain),
        _case("relu_deep3_zero_b1", partial(ScalarReLUChain, [0.0, 1.0, 0.0]), _chain_excess(0.0), UNIT, crossing, 0.5,
              "K = (ac)² times a unit.", chain),
        # other sizes and truths, by the same arguments
        *(interval(f"relu_b_H{p}_dup", [(1 / p, 1.0, 0.0)] * p, true, relu_copies(p), 0.5 / p,
                   "K ~ u₀² + u₁² + ‖δ‖³, δ of p − 1 offsets.", TANGENTS, status="proven", conditions=COPIES,
                   chart=copies_chart(p, 0.2 / p**2)) for p in (3, 4, 5)),
        plane("relu2d_H3_dup", [(1 / 3, 1.0, 0.0)] * 3, true, relu_copies(3), 0.15,
              "K ~ u₀² + u₁² + ‖δ‖³, δ of two angles.", TANGENTS, status="proven", conditions=COPIES,
              chart=copies_chart(3, 0.015, bias=False)),
        *(space(f"relu{n}d_H{p}_dup", [(1 / p, 1.0, *[0.0] * (n - 1))] * p, [(1.0, 1.0, *[0.0] * (n - 1))],
                relu_copies(p, n), 0.5 / p, "K ~ ‖u‖² + ‖δ‖³, u of N and δ of (p − 1)(N − 1) dimensions.", TANGENTS,
                status="verified" if (n, p) == (3, 2) else "proven", conditions=COPIES,
                chart=copies_chart(p, 0.2 / p**2, inputs=n, bias=False))
          for n, p in ((3, 2), (3, 3), (4, 2), (5, 5))),
        space("relu3d_H2_true2", [(1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 1.0, 0.0)],
              [(1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 1.0, 0.0)], relu_minimal(8, 2), 0.2, "(8 − 2)/2.", TANGENTS,
              status="proven", conditions=APART),
        network_on_grid("relu_231_minimal", (2, 3, 1), *NETWORK_231, GRID, 0.003),
        network_on_grid("relu_2221_minimal", (2, 2, 2, 1), *NETWORK_2221, GRID, 0.003),
    ]  # fmt: skip


def _chain_excess(slope: float) -> Excess:
    """K of c relu(b relu(a x)) against slope · relu(x), x symmetric with E x² = 1/3."""

    def excess(weights: Weights) -> Tensor:
        a, b, c = weights["w"].unbind(-1)
        outer = c * b.clamp(min=0)
        return ((outer * a.clamp(min=0) - slope).square() + (outer * (-a).clamp(min=0)).square()) / 12

    return excess
