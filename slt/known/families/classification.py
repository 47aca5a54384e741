"""Logistic and softmax regression with a truth inside the model."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from slt.known.case import Case
from slt.known.excess import Weights, categorical
from slt.known.formulas import morse_bott, regular
from slt.known.inputs import Grid
from slt.known.observations import Classification, two_sided


def _linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return layer


def _case(name: str, weight: list[list[float]], bias: list[float], grid: Grid) -> Case:
    points = grid.points
    classes, inputs = max(2, len(weight)), len(weight[0])

    def logits(weights: Weights) -> Tensor:
        return two_sided(points @ weights["weight"].mT + weights["bias"].unsqueeze(-2))

    with torch.no_grad():
        truth = two_sided(_linear(weight, bias)(points))
    free = (classes - 1) * (inputs + 1)
    count = len(weight) * (inputs + 1)
    return Case(
        name=name,
        family="classification",
        build=partial(_linear, weight, bias),
        excess=categorical(logits, truth),
        coefficient=regular(free) if count == free else morse_bott(free),
        radius=1.0,
        observations=Classification(grid),
        reason=(
            f"Regular: {count} weights." if count == free
            else f"Adding one vector to all classes changes nothing: rank {free} of {count} weights (Morse–Bott)."
        ),
        source="the Fisher information of logits that are affine in x is nonsingular on differences of classes",
        conditions="the points span the space of inputs with a constant",
        status="verified" if count <= 6 else "proven",
    )  # fmt: skip


def cases() -> list[Case]:
    """The cases of this family."""
    return [
        _case("logistic_2", [[1.0, -0.5]], [0.3], Grid(-2.0, 2.0, 7, 2)),
        _case("softmax_2_3", [[1.0, 0.0], [-0.5, 0.8], [0.0, -1.0]], [0.2, 0.0, -0.2], Grid(-2.0, 2.0, 7, 2)),
        _case(
            "softmax_3_4", [[1.0, 0.0, 0.3], [-0.5, 0.8, 0.0], [0.0, -1.0, 0.5], [0.2, 0.1, -0.7]],
            [0.2, 0.0, -0.2, 0.1], Grid(-2.0, 2.0, 5, 3),
        ),
    ]  # fmt: skip
