"""The potential U = nβ · loss + localiser that every sampler of this package targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Batch = Any
ALL_COLUMNS = slice(None)


class Localizer(Protocol):
    """The untempered part of the potential: what keeps a chain near its anchor."""

    def energy(self, position: Tensor) -> Tensor:
        """Energy in nats, ``(chains, dim) → (chains,)``, up to a sum over shards."""
        ...

    def add_gradient_(self, gradient: Tensor, position: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """Energy of these columns; adds their gradient to ``gradient`` in place."""
        ...


@dataclass(frozen=True)
class GaussianLocalizer:
    r"""The quadratic localiser of the tempered local posterior (Lau et al. 2023, eq. 14).

    .. math:: \tfrac{\gamma}{2} \sum_i m_i (w_i - w^*_i)^2

    Attributes:
        anchor: w*, shape ``(dim,)``.
        strength: γ ≥ 0, in nats per squared unit of weight. Zero gives a flat prior.
        metric: m, shape ``(dim,)``, or None for the isotropic localiser.
    """

    anchor: Tensor
    strength: float
    metric: Tensor | None = None

    def energy(self, position: Tensor) -> Tensor:
        """Energy ``(chains,)`` in nats."""
        offset = position - self.anchor
        weighted = offset if self.metric is None else offset * self.metric
        return torch.linalg.vecdot(weighted, offset) * (0.5 * self.strength)

    def add_gradient_(self, gradient: Tensor, position: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """Energy of ``columns`` ``(chains,)``; adds γ m (w − w*) of those columns to ``gradient``.

        Args:
            gradient: Changed in place; shape ``(chains, width)``, the columns alone.
            position: Likewise the columns alone.
            columns: Which columns of the anchor these are.

        Returns:
            The energy of these columns, ``(chains,)``, in nats.
        """
        offset = position - self.anchor[columns]
        weighted = offset if self.metric is None else offset * self.metric[columns]
        gradient.add_(weighted, alpha=self.strength)
        return torch.linalg.vecdot(weighted, offset) * (0.5 * self.strength)


@dataclass(frozen=True)
class Unlocalized:
    """No localiser: energy zero everywhere, for densities that are proper by themselves."""

    def energy(self, position: Tensor) -> Tensor:
        """Zeros ``(chains,)``."""
        return position.new_zeros(position.shape[0])

    def add_gradient_(self, gradient: Tensor, position: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """Zeros ``(chains,)``; leaves ``gradient`` as it is."""
        return position.new_zeros(position.shape[0])


class Potential(Protocol):
    """U(w) = nβ · loss(w) + localiser(w), for a block of chains ``(chains, dim)``.

    The loss and its gradient stand apart from nβ and the localiser, so that a swap of temperatures or a reweighting
    costs no new gradient.

    One whose calls with a batch cost more than one gradient says so in an attribute ``gradients_per_batch``.
    """

    @property
    def dim(self) -> int:
        """The number of sampled coordinates."""
        ...

    @property
    def n_beta(self) -> float | Tensor:
        """nβ, a number or ``(chains, 1)``."""
        ...

    @property
    def max_chains(self) -> int | None:
        """How many chains one call can hold; None where any number fits."""
        ...

    @property
    def localizer(self) -> Localizer:
        """The untempered part."""
        ...

    def loss_and_grad(self, position: Tensor, batch: Batch = None) -> tuple[Tensor, Tensor]:
        """Loss ``(chains,)`` and its gradient ``(chains, dim)``, of the loss alone.

        The gradient belongs to the caller, who may change it, until the next call, which may overwrite it.
        """
        ...

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the last axis, all-reduced where the vector is sharded."""
        ...


@dataclass(frozen=True)
class WrappedPotential:
    """What passes everything on to another potential, but for nβ; what inherits it replaces what it changes.

    Attributes:
        base: The other potential.
    """

    base: Potential

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return self.base.dim

    @property
    def max_chains(self) -> int | None:
        """As many as the other holds."""
        return self.base.max_chains

    @property
    def localizer(self) -> Localizer:
        """The untempered part."""
        return self.base.localizer

    def loss_and_grad(self, position: Tensor, batch: Batch = None) -> tuple[Tensor, Tensor]:
        """Loss ``(chains,)`` and gradient ``(chains, dim)``, which do not depend on nβ."""
        return self.base.loss_and_grad(position, batch)

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the last axis."""
        return self.base.sum(x)


def per_chain(n_beta: float | Tensor) -> float | Tensor:
    """The same nβ, shaped to multiply a ``(chains,)`` tensor."""
    return n_beta.squeeze(-1) if isinstance(n_beta, Tensor) and n_beta.ndim == 2 else n_beta


@dataclass(frozen=True)
class LogDensityPotential:
    """A potential made from a log density; see :func:`from_log_density`."""

    log_density: Callable[[Tensor], Tensor]
    dim: int
    n_beta: float | Tensor = 1.0
    localizer: Localizer = Unlocalized()
    max_chains: int | None = None

    def loss_and_grad(self, position: Tensor, batch: Batch = None) -> tuple[Tensor, Tensor]:
        """Minus the log density ``(chains,)`` and its gradient ``(chains, dim)``."""
        with torch.enable_grad():
            leaf = position.detach().requires_grad_()
            loss = -self.log_density(leaf)
            if loss.shape != position.shape[:1]:
                raise ValueError(
                    f"fn: returned shape {tuple(loss.shape)} for positions of shape {tuple(position.shape)}; expected "
                    f"one log density per chain, {tuple(position.shape[:1])}. Sum over the last axis only."
                )
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the last axis."""
        return x.sum(-1)


def from_log_density(fn: Callable[[Tensor], Tensor], dim: int) -> LogDensityPotential:
    """A potential with density exp(fn), nβ = 1 and no localiser.

    Args:
        fn: Maps positions ``(chains, dim)`` to log densities ``(chains,)``, up to a constant; differentiable.
        dim: The number of coordinates.

    Returns:
        A :class:`Potential` whose ``loss`` is −fn.

    Raises:
        ValueError: ``dim`` is not a positive integer.
    """
    if dim < 1:
        raise ValueError(f"dim: {dim!r}; expected a positive number of coordinates.")
    return LogDensityPotential(fn, dim)
