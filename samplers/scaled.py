"""A potential in units in which its localiser is isotropic, so that every kernel moves in the localiser's metric."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from samplers.potential import Batch, GaussianLocalizer, Potential, WrappedPotential


@dataclass(frozen=True)
class ScaledPotential(WrappedPotential):
    """A potential in other coordinates, w = centre + width · u; see :func:`natural_units`.

    Attributes:
        center: w where u = 0, ``(dim,)``.
        width: Of a unit of u, in units of w, ``(dim,)``, positive.
        own_localizer: In units of u.
    """

    center: Tensor
    width: Tensor
    own_localizer: GaussianLocalizer
    _held: list[Tensor] = field(default_factory=list, repr=False)

    @property
    def n_beta(self) -> float | Tensor:
        """The base's, nβ."""
        return self.base.n_beta

    @property
    def localizer(self) -> GaussianLocalizer:
        """The untempered part, in units of u."""
        return self.own_localizer

    @property
    def anchor(self) -> Tensor:
        """The centre in units of u: zeros ``(dim,)``."""
        return self.own_localizer.anchor

    @property
    def gradients_per_batch(self) -> int:
        """The base's."""
        return getattr(self.base, "gradients_per_batch", 1)

    def positions(self, scaled: Tensor) -> Tensor:
        """The base's positions w, of any leading shape, at these u; on the device of u."""
        return self.center.to(scaled.device) + scaled * self.width.to(scaled.device)

    def loss_and_grad(self, position: Tensor, batch: Batch = None) -> tuple[Tensor, Tensor]:
        """Loss ``(chains,)`` at u ``(chains, dim)``, and its gradient in u."""
        loss, gradient = self.base.loss_and_grad(self._placed(position), batch)
        return loss, gradient.mul_(self.width)

    def _placed(self, position: Tensor) -> Tensor:
        """The base's position at u; for a base that holds one chain, always in the same place, bound to its weights."""
        if self.base.max_chains != 1:
            return torch.addcmul(self.center, position, self.width)
        if not self._held or self._held[0].shape != position.shape:
            self._held[:] = [torch.empty_like(position, requires_grad=False)]
        return torch.addcmul(self.center, position, self.width, out=self._held[0])


def natural_units(potential: Potential) -> ScaledPotential:
    r"""The same law in the units of its Gaussian localiser, which is isotropic there.

    .. math:: w = w^* + m^{-1/2} u, \qquad U(u) = n\beta\,L(w^* + m^{-1/2} u) + \tfrac{\gamma}{2}\|u\|^2

    with m the localiser's metric. Losses, and the localiser's energies, are those of the base. Where the metric
    transforms as the weights do, m → m/s² under w → s·w, chains in u are the same whatever s is, up to rounding: the
    kernel's step, its preconditioner and every floor in them are then in units that do not know s.

    Args:
        potential: With a :class:`GaussianLocalizer`.

    Returns:
        A potential of u; its ``anchor`` is zero, and its ``positions`` gives w.

    Raises:
        TypeError: The localiser is of another kind.
        ValueError: An entry of the metric is zero, which is a unit without a size.

    Source:
        Sampling in transformed parameters is Girolami & Calderhead 2011, §2, with a constant metric.
    """
    localizer = potential.localizer
    if not isinstance(localizer, GaussianLocalizer):
        raise TypeError(f"potential: has a {type(localizer).__name__}; expected a GaussianLocalizer, with a metric.")
    anchor = localizer.anchor
    metric = torch.ones_like(anchor) if localizer.metric is None else localizer.metric
    if not bool((metric > 0).all()):
        raise ValueError(
            f"metric: {int((metric <= 0).sum())} of {metric.numel()} entries are zero; expected positive ones, since "
            "each is the unit of a coordinate. Give them a floor."
        )
    isotropic = GaussianLocalizer(torch.zeros_like(anchor), localizer.strength)
    return ScaledPotential(potential, anchor, metric.to(anchor).rsqrt(), isotropic)
