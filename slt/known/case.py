"""A case: a model at an anchor whose learning coefficient is known exactly, runnable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from samplers.potential import GaussianLocalizer, LogDensityPotential
from slt.known.block import MAXIMUM_COORDINATES, Block
from slt.known.excess import Excess
from slt.known.formulas import LearningCoefficient
from slt.known.observations import Data, Observations

EVERYWHERE = "all weights"


class ExactValue(NamedTuple):
    """nβ·E[K] under the tempered local posterior, by closed form or quadrature.

    Attributes:
        n_beta: nβ.
        localization: γ.
        value: What λ̂ estimates at that nβ and γ, exactly.
    """

    n_beta: float
    localization: float
    value: float


class Chart(NamedTuple):
    """Coordinates z adapted to K near w*, which is at z = 0; the change of coordinates has a nonzero Jacobian there.

    λ and m do not depend on coordinates, but how hard it is to move on the level sets of K does.

    Attributes:
        to_weights: ``(particles, dim) → (particles, dim)``, z to flat weights.
        radius: Half-width of the box of z, inside that of the case.
    """

    to_weights: Callable[[Tensor], Tensor]
    radius: float


@dataclass(frozen=True)
class Case:
    """A model whose learning coefficient is known.

    Attributes:
        name: Of the case.
        family: Of models that it belongs to.
        build: Makes the module, float64, at its anchor w*; the truth is the module at its anchor.
        excess: K(w) in nats, the exact excess population loss, from named weights with any leading axes; 0 at w*.
        coefficient: λ and m at w*.
        radius: Half-width R of the box ‖w − w*‖_∞ ≤ R that holds no worse stratum, so that λ is that of the box.
        observations: How data are drawn, and their negative log likelihood.
        reason: Why λ and m are what they are.
        source: Where that is shown.
        conditions: Under which it holds.
        status: ``"proven"``: by a theorem or a full derivation; ``"verified"``: by volumes too; or, in words, which of
            the two numbers rests on numerics alone.
        exact: Exact values at finite nβ: those of ``finite_temperature.json``, or what :func:`slt.known.exact_llc`
            gave.
        structure: Independent parts of K with fewer coordinates than it has weights, where it has such.
        chart: Adapted coordinates, where the plain ones mix badly.
        prior: In words.
        log_prior: ``(..., dim) → (...)``, up to a constant; None for a flat prior.
        support: Where the model is defined, in words.
        lower: Lower bound of every weight; None where there is none.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    excess: Excess
    coefficient: LearningCoefficient
    radius: float
    observations: Observations
    reason: str
    source: str
    conditions: str = "none"
    status: str = "proven"
    exact: tuple[ExactValue, ...] = ()
    structure: tuple[Block, ...] = ()
    chart: Chart | None = None
    prior: str = "flat"
    log_prior: Callable[[Tensor], Tensor] | None = None
    support: str = EVERYWHERE
    lower: float | None = None

    @property
    def rlct(self) -> Fraction:
        """λ at w*."""
        return self.coefficient.rlct

    @property
    def multiplicity(self) -> int:
        """The multiplicity m at w*."""
        return self.coefficient.multiplicity

    @property
    def plain(self) -> bool:
        """Whether the prior is flat and the model defined everywhere, as the estimators take it to be."""
        return self.log_prior is None and self.support == EVERYWHERE

    @cached_property
    def anchor(self) -> Tensor:
        """w*, flat, in the order of the module's parameters."""
        return torch.cat([tensor.detach().reshape(-1) for tensor in self.build().parameters()])

    @property
    def dim(self) -> int:
        """The number of weights."""
        return len(self.anchor)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The parts of K for :func:`slt.known.exact_llc`; empty where no exact value can be computed."""
        if self.structure or not self.plain or self.dim > MAXIMUM_COORDINATES:
            return self.structure
        return (Block(self.excess_flat, tuple(self.anchor.tolist())),)

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of every parameter, by name."""
        return {name: tensor.shape for name, tensor in self.build().named_parameters()}

    def potential(self, n_beta: float, localization: float) -> LogDensityPotential:
        """U = nβ·K + γ/2 ‖w − w*‖², for :func:`samplers.sample` with :attr:`anchor` as its start.

        Args:
            n_beta: nβ.
            localization: γ.

        Returns:
            A potential whose loss is K, in nats.
        """
        localizer = GaussianLocalizer(self.anchor, localization)
        return LogDensityPotential(lambda w: -self.excess_flat(w), self.dim, n_beta, localizer)

    def loss_fn(self, model: nn.Module) -> Tensor:
        """K of a module of this case, in nats: the exact loss, for ``estimate_llc(model, None, case.loss_fn, …)``.

        Args:
            model: As ``build`` makes it. Its parameters may have a leading axis of chains.

        Returns:
            0-d, or one value per chain.
        """
        return self.excess(dict(model.named_parameters()))

    def excess_flat(self, w: Tensor) -> Tensor:
        """K of flat weights, ``(..., dim) → (...)``, in nats.

        Args:
            w: Weights in the order of the module's parameters.

        Returns:
            K.
        """
        parts = w.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return self.excess({
            name: part.reshape(*w.shape[:-1], *shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        })

    def sample(self, n: int, seed: int = 0) -> Data:
        """``n`` observations of the truth, with their noise.

        Args:
            n: How many.
            seed: Of everything random.

        Returns:
            Tensors with ``n`` rows, as :meth:`negative_log_likelihood` takes them.

        Raises:
            ValueError: ``n`` is not a positive whole number, or ``seed`` not a whole number.
        """
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n: {n!r}; expected a whole number of at least one observation.")
        if not isinstance(seed, int):
            raise ValueError(f"seed: {seed!r}; expected a whole number.")
        return self.observations.draw(self.build(), n, torch.Generator().manual_seed(seed))

    def negative_log_likelihood(self, model: nn.Module, batch: Data) -> Tensor:
        """−log p per sample, ``(batch,)``, up to a constant: the loss for ``estimate_llc(model, data, …)``.

        Args:
            model: As ``build`` makes it.
            batch: From :meth:`sample`.

        Returns:
            One value per sample, in nats; its mean over the truth is K plus a constant.
        """
        return self.observations.loss(model, batch)
