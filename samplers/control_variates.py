"""Control variates at an anchor: minibatch gradients of which only the change since the anchor is random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from samplers.potential import Batch, Potential, WrappedPotential


@dataclass(frozen=True)
class ControlVariatePotential(WrappedPotential):
    """A potential whose minibatch losses and gradients are corrected by those at an anchor: :func:`control_variates`.

    Attributes:
        anchor: w*, ``(dim,)``.
        loss: L(w*) of the full data, 0-d, nats.
        gradient: ∇L(w*) of the full data, ``(dim,)``.
        gradients_per_batch: Two: at the position and at the anchor.
    """

    gradients_per_batch: ClassVar[int] = 2
    anchor: Tensor
    loss: Tensor
    gradient: Tensor

    @property
    def n_beta(self) -> float | Tensor:
        """The base's, nβ."""
        return self.base.n_beta

    def loss_and_grad(self, position: Tensor, batch: Batch = None) -> tuple[Tensor, Tensor]:
        """Loss ``(chains,)`` and gradient ``(chains, dim)``, corrected for a batch; those of full data as they are."""
        if batch is None:
            return self.base.loss_and_grad(position)
        # The anchor comes first and its gradient is used up before the second call, which may overwrite it; what that
        # call returns can then be changed and passed on without a copy.
        loss_there, gradient_there = self.base.loss_and_grad(self.anchor.expand_as(position), batch)
        loss_correction, correction = self.loss - loss_there, self.gradient - gradient_there
        loss, gradient = self.base.loss_and_grad(position, batch)
        slope = self.sum(correction * (position - self.anchor)).to(loss.dtype)
        return loss + loss_correction + slope, gradient.add_(correction)


def control_variates(
    potential: Potential, anchor: Tensor, loss: Tensor | None = None, gradient: Tensor | None = None
) -> ControlVariatePotential:
    r"""The same potential with less noise in its minibatches, for any stochastic-gradient kernel.

    .. math:: \hat g(w) = g_B(w) - g_B(w^*) + g(w^*), \qquad
              \hat L(w) = L_B(w) - L_B(w^*) + L(w^*) - \langle g_B(w^*) - g(w^*),\, w - w^* \rangle

    with the same batch B for each chain in all of its terms: the gradient is that of the loss. Unbiased wherever w* is,
    minimum or not. Noise of the gradient that does not depend on w vanishes, and what it does to the loss; what is
    left grows with the distance from w*, and of the loss with its square.

    **What is left on a quadratic.** Along an eigenvector of curvature A = nβh + γ, with curvatures h + δ_B of the
    batches, Var δ = v, and full-data gradients that vanish at 0, SGLD at step size ε samples a law of mean 0 and

    .. math:: \mathrm{Var}\,w = \frac{1 + \tfrac\epsilon4 (n\beta)^2 v\, (w^*)^2}
                                     {A (1 - \epsilon A/4) - \tfrac\epsilon4 (n\beta)^2 v}

    whatever the linear noise of the batches; w* = 0 is best. It has tails, since the noise that is left is
    multiplicative. Without control variates the linear noise s² = (nβ)² Var g_B(0) stands in place of (nβ)² v (w*)².

    **Cost.** Each minibatch step takes two gradients in place of one, and a run counts both. It pays where s² is more
    than twice what is left of it: near w*, with small batches. Chains that go far along flat directions get as much
    noise as without, or more. A loss that is random at fixed w and batch (dropout) is not helped.

    Args:
        potential: The potential to wrap.
        anchor: w*, ``(dim,)``, of the chains' dtype and device: best the centre of the law. It is copied.
        loss: L(w*) of the full data, 0-d, in nats; by default evaluated once, with ``batch=None``.
        gradient: ∇L(w*) of the full data, ``(dim,)``; by default from the same evaluation.

    Returns:
        A potential. Calls without a batch go to the base as they are, so that exact kernels are unaffected.

    Raises:
        ValueError: ``anchor``, ``loss`` or ``gradient`` has another shape than those, or is not finite.

    Source:
        Baker, Fearnhead, Fox & Nemeth 2019, *Control variates for stochastic gradient MCMC*, §3 (SGLD-CV). The
        variance is derived here.
    """
    anchor = anchor.detach().clone()
    _check_finite("anchor", anchor, (potential.dim,))
    if loss is None or gradient is None:
        losses, gradients = potential.loss_and_grad(anchor.unsqueeze(0))
        loss = losses[0] if loss is None else loss
        gradient = gradients[0] if gradient is None else gradient
    loss, gradient = loss.detach().clone(), gradient.detach().clone()
    _check_finite("loss", loss, ())
    _check_finite("gradient", gradient, (potential.dim,))
    return ControlVariatePotential(potential, anchor, loss, gradient)


def _check_finite(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Refuses a tensor of another shape, or with entries that are not finite.

    Args:
        name: Of the argument, for the message.
        value: Its value.
        shape: The shape expected.

    Raises:
        ValueError: It is one of these.
    """
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(value.shape)}; expected {shape}.")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"{name}: {int((~torch.isfinite(value)).sum())} of {value.numel()} entries are not finite; expected an "
            "anchor with a finite loss and gradient. Choose another."
        )
