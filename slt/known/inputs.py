"""Laws of the inputs of a network: how to draw them, and quadrature that takes the mean over them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Uniform:
    """x uniform on the box [low, high]^dim."""

    low: float
    high: float
    dim: int = 1

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` inputs, ``(n, dim)``, float64."""
        unit = torch.rand((n, self.dim), dtype=torch.float64, generator=generator)
        return self.low + (self.high - self.low) * unit

    def quadrature(self, order: int, *, half: bool = False) -> tuple[Tensor, Tensor]:
        """Gauss–Legendre nodes ``(points, dim)`` and weights ``(points,)`` for the mean over x.

        Args:
            order: Nodes per axis; exact for polynomials of degree 2·order − 1.
            half: Whether the integrand is even in x and the law symmetric, so that the half with x₁ > 0 is enough.

        Returns:
            Nodes and weights; the weights sum to 1.
        """
        nodes, weights = np.polynomial.legendre.leggauss(order)
        axes = [(self.low, self.high)] * self.dim
        if half:
            axes[0] = (0.0, self.high)
        points = [(low + high) / 2 + (high - low) / 2 * nodes for low, high in axes]
        grid = torch.tensor(list(product(*points)), dtype=torch.float64)
        mass = torch.tensor([np.prod(parts) for parts in product(weights / 2, repeat=self.dim)], dtype=torch.float64)
        return grid, mass


@dataclass(frozen=True)
class Gaussian:
    """x ~ N(0, I) in ``dim`` dimensions."""

    dim: int

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` inputs, ``(n, dim)``, float64."""
        return torch.randn((n, self.dim), dtype=torch.float64, generator=generator)


@dataclass(frozen=True)
class Grid:
    """x uniform on finitely many points: a grid over a box, so that every mean over x is an exact finite sum.

    Attributes:
        low: Of every axis.
        high: Of every axis.
        per_axis: Points on every axis, ends included.
        dim: Axes.
        offset: Added to every point, so that no kink of a network needs to lie on one.
    """

    low: float
    high: float
    per_axis: int
    dim: int
    offset: float = 0.0

    @property
    def points(self) -> Tensor:
        """The points, ``(per_axis**dim, dim)``, float64."""
        axis = np.linspace(self.low, self.high, self.per_axis) + self.offset
        return torch.tensor(list(product(axis, repeat=self.dim)), dtype=torch.float64)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` inputs, ``(n, dim)``, float64."""
        points = self.points
        return points[torch.randint(len(points), (n,), generator=generator)]


InputLaw = Uniform | Gaussian | Grid
