"""A hard ball around the anchor as a localiser: the uniform law inside, nothing outside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.potential import ALL_COLUMNS


@dataclass(frozen=True)
class BallLocalizer:
    r"""The hard ball ‖w − w*‖ ≤ R: energy zero inside, infinite outside.

    A Gaussian localiser lets a chain reach a more singular stratum anywhere at a constant cost, which a power of nβ
    pays for; a ball does not. Its gradient is zero: only kernels that accept or refuse by the energy respect it.

    Attributes:
        anchor: w*, shape ``(dim,)``.
        radius: R > 0, in units of weight.

    Raises:
        ValueError: The anchor is not a vector, or the radius not a positive finite number.
    """

    anchor: Tensor
    radius: float

    def __post_init__(self) -> None:
        if self.anchor.ndim != 1:
            raise ValueError(f"anchor: shape {tuple(self.anchor.shape)}; expected (dim,).")
        if not 0 < self.radius < math.inf:
            raise ValueError(f"radius: {self.radius!r}; expected a positive finite number.")

    def energy(self, position: Tensor) -> Tensor:
        """Zero or infinity, ``(chains,)``."""
        outside = (position - self.anchor).square().sum(-1) > self.radius**2
        return torch.where(outside, math.inf, 0.0).to(position.dtype)

    def add_gradient_(self, gradient: Tensor, position: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """The energy, ``(chains,)``; leaves ``gradient`` as it is.

        Args:
            gradient: ``(chains, dim)``.
            position: ``(chains, dim)``.
            columns: All of them: a part of the columns does not know whether the whole is inside.

        Returns:
            Zero or infinity.

        Raises:
            ValueError: A part of the columns was asked for.
        """
        if columns != ALL_COLUMNS:
            raise ValueError(f"columns: {columns}; expected all: a ball is not a sum over coordinates.")
        return self.energy(position)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Independent positions, uniform in the ball, ``(count, dim)``.

        Args:
            count: How many.
            generator: Of the noise.

        Returns:
            The positions.
        """
        kind = {"dtype": self.anchor.dtype, "device": self.anchor.device, "generator": generator}
        direction = torch.randn(count, len(self.anchor), **kind)
        share = torch.rand(count, 1, **kind) ** (1 / len(self.anchor))
        return self.anchor + direction * (self.radius * share / direction.norm(dim=-1, keepdim=True))
