"""The potential U = nβ · loss + localiser that every sampler of this package targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from samplers.noise import Shard, shards_of

Batch = Any
ALL_COLUMNS = slice(None)
ATTEMPTS = 3  # to find a finite density


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

    Raises:
        ValueError: The strength or the metric is negative or not finite, or the metric is of another shape than the
            anchor, which is a vector.
    """

    anchor: Tensor
    strength: float
    metric: Tensor | None = None

    def __post_init__(self) -> None:
        if self.anchor.ndim != 1:
            raise ValueError(f"anchor: shape {tuple(self.anchor.shape)}; expected (dim,).")
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength: {self.strength!r}; expected a finite number of at least zero.")
        if self.metric is None:
            return
        if self.metric.shape != self.anchor.shape:
            raise ValueError(f"metric: shape {tuple(self.metric.shape)}; expected {tuple(self.anchor.shape)}.")
        if not bool(torch.isfinite(self.metric).all()) or not bool((self.metric >= 0).all()):
            raise ValueError("metric: has entries that are negative or not finite; expected weights of at least zero.")

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
    """No localiser: energy zero everywhere, for densities that are proper by themselves.

    Nothing tells a sampler that a density is not. On (w₁w₂)² without a localiser, whose integral is infinite, chains
    gave R̂ 1.009 and an ESS of 11,000.
    """

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

    One whose calls with a batch cost more than one gradient says so in an attribute ``gradients_per_batch``; one whose
    calls must not be part of a CUDA graph, in a method ``capturable(with_batches)``; one whose vectors are shards, in
    ``shards`` which columns of the whole they are (:class:`samplers.noise.Shard`), and in ``num_weights`` how many the
    whole has.
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
    def num_weights(self) -> int:
        """The number of coordinates, those of other shards among them."""
        return whole_dim(self.base)

    @property
    def max_chains(self) -> int | None:
        """As many as the other holds."""
        return self.base.max_chains

    def capturable(self, with_batches: bool) -> bool:
        """Whether the other's gradients may be part of a CUDA graph."""
        return capturable(self.base, with_batches)

    @property
    def shards(self) -> Sequence[Shard] | None:
        """Which columns of the other's whole vectors are here; None where all are."""
        return shards_of(self.base)

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


def gradients_per_call(potential: Potential, batches: object | None) -> int:
    """How many gradients of every chain one call of ``loss_and_grad`` takes.

    Args:
        potential: The target.
        batches: Of minibatches, or None for full data.

    Returns:
        One, or the potential's ``gradients_per_batch``.
    """
    return 1 if batches is None else getattr(potential, "gradients_per_batch", 1)


def capturable(potential: Potential, with_batches: bool) -> bool:
    """Whether calls of ``loss_and_grad`` may be part of a CUDA graph: they may unless the potential says otherwise.

    Args:
        potential: The target.
        with_batches: Whether they are of minibatches.

    Returns:
        What its method ``capturable`` says.
    """
    return getattr(potential, "capturable", lambda _: True)(with_batches)


def whole_dim(potential: Potential) -> int:
    """The number of coordinates, of all processes where vectors are shards."""
    return potential.dim if shards_of(potential) is None else potential.num_weights  # type: ignore[attr-defined]


def sum_over_pieces(potential: Potential, pieces: Sequence[Tensor]) -> Tensor:
    """The sum ``(chains,)`` over pieces of the columns, ``(chains,)`` each, and over shards."""
    if len(pieces) > 1:
        return potential.sum(torch.stack(list(pieces), -1))
    return pieces[0] if shards_of(potential) is None else potential.sum(pieces[0].unsqueeze(-1))


def per_chain(n_beta: float | Tensor) -> float | Tensor:
    """The same nβ, shaped to multiply a ``(chains,)`` tensor."""
    return n_beta.squeeze(-1) if isinstance(n_beta, Tensor) and n_beta.ndim == 2 else n_beta


def check_n_beta(n_beta: float | Tensor, num_chains: int) -> None:
    """Refuse an inverse temperature that is negative, not finite, or of a shape that would broadcast elsewhere.

    Args:
        n_beta: nβ.
        num_chains: Of a block.

    Raises:
        ValueError: It is none of a number of at least zero and ``(num_chains, 1)`` of them.
    """
    values = torch.as_tensor(n_beta)
    if values.ndim and tuple(values.shape) not in ((num_chains, 1), (1, 1)):
        raise ValueError(
            f"n_beta: shape {tuple(values.shape)}; expected a number, or one for each chain of a block, "
            f"{(num_chains, 1)}."
        )
    if not bool(torch.isfinite(values).all()) or not bool((values >= 0).all()):
        raise ValueError(f"n_beta: {values.flatten().tolist()[:8]}; expected finite numbers of at least zero.")


def check_localizer(potential: Potential) -> None:
    """Refuse a localiser at an anchor of another length than the target's positions.

    Args:
        potential: The target.

    Raises:
        ValueError: It is one.
    """
    anchor = getattr(potential.localizer, "anchor", None)
    if isinstance(anchor, Tensor) and tuple(anchor.shape) != (potential.dim,):
        raise ValueError(f"anchor: shape {tuple(anchor.shape)} in the localiser; expected {(potential.dim,)}.")


@dataclass(frozen=True)
class LogDensityPotential:
    """A potential made from a log density; see :func:`from_log_density`."""

    log_density: Callable[[Tensor], Tensor]
    dim: int
    n_beta: float | Tensor = 1.0
    localizer: Localizer = Unlocalized()
    max_chains: int | None = None
    _checked: list[bool] = field(default_factory=list, repr=False)

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
        if len(position) > 1 and len(self._checked) < ATTEMPTS and not any(self._checked):
            self._check_rows(position)
        return loss.detach(), gradient

    @torch.no_grad()
    def _check_rows(self, position: Tensor) -> None:
        """Once: each chain has the density of its own position, whatever the others are."""
        generator = torch.Generator(position.device).manual_seed(0)
        kind = {"dtype": position.dtype, "device": position.device}
        apart = position + 0.1 * torch.randn(position.shape, generator=generator, **kind)
        together, alone = self.log_density(apart)[0], self.log_density(apart[:1])[0]
        self._checked.append(bool(torch.isfinite(alone)))
        if self._checked[-1] and not torch.allclose(together, alone, rtol=1e-2, atol=1e-4):
            raise ValueError(
                f"fn: the log density of one chain is {float(alone):.6g} alone and {float(together):.6g} among "
                f"{len(position)} chains; expected one that no other chain has a part in. Sum over the last axis "
                "only."
            )

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
        ValueError: ``dim`` is not a positive integer; or, when it is first called for several chains, ``fn`` gives a
            chain another density among others than alone.
    """
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(f"dim: {dim!r}; expected a positive number of coordinates.")
    return LogDensityPotential(fn, dim)
