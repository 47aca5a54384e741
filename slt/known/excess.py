"""Exact excess losses K(w), each a function of named weights that may have leading axes, such as one of chains.

All are sums of squares, or written so that nothing large cancels: K is right to about 1e-30.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Excess = Callable[[Weights], Tensor]


def generated(generators: Callable[[Tensor], Tensor]) -> Excess:
    """K = Σ_j g_j(w)², from ``w (..., d) → g (..., k)``."""

    def excess(weights: Weights) -> Tensor:
        return generators(weights["w"]).square().sum(-1)

    return excess


def matrix_product(truth: Tensor, names: Sequence[str]) -> Excess:
    """½ ‖W_L … W_1 − T‖²_F: unit noise and inputs x ~ N(0, I).

    Args:
        truth: T.
        names: Of W_1, …, W_L.

    Returns:
        K.
    """

    def excess(weights: Weights) -> Tensor:
        total = weights[names[0]]
        for name in names[1:]:
            total = weights[name] @ total
        return 0.5 * (total - truth).square().sum((-2, -1))

    return excess


def two_layer(
    activation: Callable[[Tensor], Tensor], quadrature: tuple[Tensor, Tensor], truth: Callable[[Tensor], Tensor] | None
) -> Excess:
    """½ E_x ‖f(x) − f₀(x)‖² of a :class:`~slt.known.models.TwoLayer`, by quadrature: unit noise.

    Args:
        activation: φ.
        quadrature: Nodes ``(points, N)`` and weights ``(points,)``.
        truth: ``(points, N) → (points, M)``, or None for zero.

    Returns:
        K.
    """
    nodes, masses = quadrature
    target = None if truth is None else truth(nodes).T

    def excess(weights: Weights) -> Tensor:
        hidden = weights["b"] @ nodes.T
        if "c" in weights:
            hidden = hidden + weights["c"].unsqueeze(-1)
        output = weights["a"] @ activation(hidden)
        if "d" in weights:
            output = output + weights["d"].unsqueeze(-1)
        if target is not None:
            output = output - target
        return 0.5 * output.square().sum(-2) @ masses

    return excess


def relu_half_lines(right: float, left: float) -> Excess:
    """½ E_x (f(x) − f₀(x))² of Σ a_i relu(b_i x) without biases, x symmetric with E x² = 1/3.

    On each half line f is linear, so that K = (P² + Q²)/12 with P = Σ a_i b_i⁺ − right and Q = Σ a_i b_i⁻ − left.

    Args:
        right: Slope of the truth for x > 0.
        left: Slope of the truth in −x for x < 0.

    Returns:
        K.
    """

    def excess(weights: Weights) -> Tensor:
        a, b = weights["a"].squeeze(-2), weights["b"].squeeze(-1)
        on_right = (a * b.clamp(min=0)).sum(-1) - right
        on_left = (a * (-b).clamp(min=0)).sum(-1) - left
        return (on_right.square() + on_left.square()) / 12

    return excess


def relu_interval(low: float, high: float, truth: Sequence[tuple[float, float, float]]) -> Excess:
    """½ E_x (f(x) − f₀(x))² of Σ a_i relu(b_i x + c_i), x uniform on [low, high]; exact.

    f − f₀ is linear between its kinks, and the mean of its square over an interval on whose ends it takes the values
    u and v is (u² + uv + v²)/3.

    Args:
        low: Least input.
        high: Greatest input.
        truth: Units (a, b, c) of f₀.

    Returns:
        K.
    """
    true_a, true_b, true_c = torch.tensor(list(truth) or [(0.0, 1.0, 0.0)], dtype=torch.float64).T

    def excess(weights: Weights) -> Tensor:
        a, b, c = weights["a"].squeeze(-2), weights["b"].squeeze(-1), weights["c"]
        shape = a.shape[:-1]
        a = torch.cat([a, -true_a.expand(*shape, -1)], -1)
        b = torch.cat([b, true_b.expand(*shape, -1)], -1)
        c = torch.cat([c, true_c.expand(*shape, -1)], -1)
        kinks = (-c / torch.where(b == 0, 1.0, b)).clamp(low, high)
        ends = a.new_tensor([low, high]).expand(*shape, 2)
        points = torch.cat([kinks, ends], -1).sort(-1).values
        values = (a.unsqueeze(-2) * torch.relu(b.unsqueeze(-2) * points.unsqueeze(-1) + c.unsqueeze(-2))).sum(-1)
        left, right = values[..., :-1], values[..., 1:]
        squares = (left.square() + left * right + right.square()) * points.diff(dim=-1) / 3
        return 0.5 * squares.sum(-1) / (high - low)

    return excess


def relu_plane(truth: Sequence[tuple[float, float, float]]) -> Excess:
    r"""½ E_x (f(x) − f₀(x))² of Σ a_i relu(b_i·x), x ~ N(0, I₂); exact.

    f − f₀ is linear on every sector between two kinks. On one of angle δ whose mid-direction sees the components u,
    along, and v, across, its share of K is (u² (δ + sin δ) + v² (δ − sin δ))/4π. Nothing large cancels, as it would in
    the arc-cosine kernel.

    Args:
        truth: Units (a, b₁, b₂) of f₀.

    Returns:
        K.
    """
    table = torch.tensor(list(truth) or [(0.0, 1.0, 0.0)], dtype=torch.float64)

    def excess(weights: Weights) -> Tensor:
        a, b = weights["a"].squeeze(-2), weights["b"]
        shape = a.shape[:-1]
        a = torch.cat([a, -table[:, 0].expand(*shape, -1)], -1)
        b = torch.cat([b, table[:, 1:].expand(*shape, -1, -1)], -2)
        normal = torch.atan2(b[..., 1], b[..., 0])
        kinks = torch.cat([normal + torch.pi / 2, normal - torch.pi / 2], -1)
        kinks = torch.remainder(kinks, 2 * torch.pi).sort(-1).values
        wrapped = torch.cat([kinks, kinks[..., :1] + 2 * torch.pi], -1)
        angle = wrapped.diff(dim=-1)
        middle = wrapped[..., :-1] + angle / 2
        along = torch.stack([middle.cos(), middle.sin()], -1)
        active = (b.unsqueeze(-3) * along.unsqueeze(-2)).sum(-1) > 0  # (..., sectors, units)
        slope = torch.where(active.unsqueeze(-1), (a.unsqueeze(-1) * b).unsqueeze(-3), 0.0).sum(-2)
        u = (slope * along).sum(-1)
        v = slope[..., 1] * along[..., 0] - slope[..., 0] * along[..., 1]
        return (u.square() * (angle + angle.sin()) + v.square() * _minus_sine(angle)).sum(-1) / (4 * torch.pi)

    return excess


def relu_gaussian(truth: Sequence[Sequence[float]]) -> Excess:
    r"""½ E_x (f(x) − f₀(x))² of Σ a_i relu(b_i·x), x ~ N(0, I) in any number of dimensions; exact.

    .. math:: K = \tfrac14 \Bigl\| \sum_i a_i b_i \Bigr\|^2
              + \sum_{i<j} a_i a_j \|b_i\| \|b_j\|\, \frac{\sin\theta_{ij} - \theta_{ij} \cos\theta_{ij}}{2\pi}

    over the units of f and, with their signs turned, of f₀: the arc-cosine kernel less its linear part, which is summed
    before it is squared. Near-parallel units enter as θ³, to full precision.

    Args:
        truth: Units (a, b₁, …, b_N) of f₀, at least one.

    Returns:
        K, for b_i ≠ 0.

    Source:
        Cho & Saul 2009, eq. 6 (the arc-cosine kernel of degree one).
    """
    table = torch.tensor([list(unit) for unit in truth], dtype=torch.float64)

    def excess(weights: Weights) -> Tensor:
        a, b = weights["a"].squeeze(-2), weights["b"]
        shape = a.shape[:-1]
        a = torch.cat([a, -table[:, 0].expand(*shape, -1)], -1)
        b = torch.cat([b, table[:, 1:].expand(*shape, -1, -1)], -2)
        first, second = torch.triu_indices(a.shape[-1], a.shape[-1], 1)
        norm = torch.linalg.vector_norm(b, dim=-1)
        unit = b / norm.unsqueeze(-1)
        chord = torch.linalg.vector_norm(unit[..., first, :] - unit[..., second, :], dim=-1)
        opposite = torch.linalg.vector_norm(unit[..., first, :] + unit[..., second, :], dim=-1)
        angle = 2 * torch.atan2(chord, opposite)
        size = a * norm
        linear = (a.unsqueeze(-1) * b).sum(-2).square().sum(-1)
        bent = (size[..., first] * size[..., second] * _sine_less_cosine(angle)).sum(-1)
        return linear / 4 + bent / (2 * torch.pi)

    return excess


def categorical(logits: Callable[[Weights], Tensor], truth: Tensor) -> Excess:
    r"""The mean Kullback–Leibler divergence of softmax models over finitely many equally likely inputs.

    With δ the difference of logits, centred to mean zero under the true probabilities p, each is
    log(1 + Σ p (e^δ − 1 − δ)), a sum of terms that are not negative.

    Args:
        logits: ``weights → (..., points, classes)``.
        truth: The true logits ``(points, classes)``.

    Returns:
        K.
    """
    probabilities = truth.softmax(-1)

    def excess(weights: Weights) -> Tensor:
        difference = logits(weights) - truth
        difference = difference - (probabilities * difference).sum(-1, keepdim=True)
        return torch.log1p((probabilities * exponential_tail(difference)).sum(-1)).mean(-1)

    return excess


def exponential_tail(x: Tensor) -> Tensor:
    """e^x − 1 − x, without the loss of digits near zero."""
    small = torch.where(x.abs() < 0.1, x, 0.0)
    series = torch.ones_like(x)
    for term in range(11, 2, -1):
        series = 1 + small / term * series
    return torch.where(x.abs() < 0.1, small.square() / 2 * series, torch.expm1(x) - x)


def minus_log1p(x: Tensor) -> Tensor:
    """The difference x − log(1 + x), without the loss of digits near zero."""
    small = torch.where(x.abs() < 0.02, x, 0.0)
    series = torch.zeros_like(x)
    for power in range(10, 1, -1):
        series = (1.0 if power % 2 == 0 else -1.0) / power + small * series
    return torch.where(x.abs() < 0.02, small.square() * series, x - torch.log1p(x))


def _sine_less_cosine(x: Tensor) -> Tensor:
    """The difference sin x − x cos x for x ≥ 0, without the loss of digits near zero."""
    small = torch.where(x < 0.1, x, 0.0)
    square = small.square()
    series = small * square / 3 * (1 - square / 10 * (1 - square / 28 * (1 - square / 54)))
    return torch.where(x < 0.1, series, x.sin() - x * x.cos())


def _minus_sine(x: Tensor) -> Tensor:
    """The difference x − sin x for x ≥ 0, without the loss of digits near zero."""
    small = torch.where(x < 0.1, x, 0.0)
    square = small.square()
    series = small * square / 6 * (1 - square / 20 * (1 - square / 42 * (1 - square / 72)))
    return torch.where(x < 0.1, series, x - x.sin())
