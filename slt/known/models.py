"""The modules of the known cases, float64, with their weights as arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Matrix = Sequence[Sequence[float]]


def parameter(values: object) -> nn.Parameter:
    """A float64 parameter with these values."""
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


class WeightVector(nn.Module):
    """A module that is nothing but its weights ``w``, for models in closed form.

    Args:
        weights: w, of any length.
    """

    def __init__(self, weights: Sequence[float]):
        super().__init__()
        self.w = parameter(list(weights))


class TwoLayer(nn.Module):
    """x ↦ Σ_i A_i φ(b_i·x + c_i) + d, from N inputs to M outputs through H units.

    Args:
        activation: φ.
        a: A, shape ``(M, H)``.
        b: Shape ``(H, N)``.
        c: Shape ``(H,)``; no bias in the hidden layer by default.
        d: Shape ``(M,)``; no bias in the output by default.
    """

    def __init__(
        self,
        activation: Callable[[Tensor], Tensor],
        a: Matrix,
        b: Matrix,
        c: Sequence[float] | None = None,
        d: Sequence[float] | None = None,
    ):
        super().__init__()
        self.activation = activation
        self.a, self.b = parameter(a), parameter(b)
        self.c = None if c is None else parameter(c)
        self.d = None if d is None else parameter(d)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(batch, M)`` at inputs ``(batch, N)``."""
        hidden = x @ self.b.T
        if self.c is not None:
            hidden = hidden + self.c
        output = self.activation(hidden) @ self.a.T
        return output if self.d is None else output + self.d


class ScalarReLUChain(nn.Module):
    """x ↦ c relu(b relu(a x)), one unit per layer.

    Args:
        weights: a, b, c.
    """

    def __init__(self, weights: Sequence[float]):
        super().__init__()
        self.w = parameter(list(weights))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(batch, 1)`` at inputs ``(batch, 1)``."""
        a, b, c = self.w
        return c * torch.relu(b * torch.relu(a * x))


class BilinearAttention(nn.Module):
    """(x, y) ↦ xᵀ Qᵀ K y, the logit of one attention head.

    Args:
        query: Q, ``(head, model)``.
        key: K, of the same shape.
    """

    def __init__(self, query: Matrix, key: Matrix):
        super().__init__()
        self.query, self.key = parameter(query), parameter(key)

    def forward(self, pair: Tensor) -> Tensor:
        """Logits ``(batch, 1)`` of pairs ``(batch, 2 · model)``, x first."""
        x, y = pair.chunk(2, dim=-1)
        return ((x @ self.query.T) * (y @ self.key.T)).sum(-1, keepdim=True)


def linear_network(weights: Sequence[Tensor]) -> nn.Sequential:
    """A linear network without biases.

    Args:
        weights: W_1 first, each ``(outputs, inputs)``.

    Returns:
        x ↦ W_L … W_1 x.
    """
    layers = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight)
        layers.append(layer)
    return nn.Sequential(*layers)


def relu_network(widths: Sequence[int], weights: Sequence[Matrix], biases: Sequence[Sequence[float]]) -> nn.Sequential:
    """A fully connected ReLU network with biases.

    Args:
        widths: Inputs first.
        weights: One matrix ``(outputs, inputs)`` per layer.
        biases: One vector per layer.

    Returns:
        The network; no ReLU after the last layer.
    """
    layers: list[nn.Module] = []
    for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        layer = nn.Linear(widths[place], widths[place + 1], dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
            layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
