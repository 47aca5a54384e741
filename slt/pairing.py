"""Whether a batch's loss at the anchor is to be taken off that at the chains: where nβ times its noise drowns λ̂."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import samplers
from samplers import Kernel
from samplers.control_variates import ControlVariatePotential
from slt.passes import Passes
from slt.posterior import LocalPosterior
from slt.problems.evidence import Z_95

BATCHES = 12  # of which noise is measured
LESS = 0.25  # of the noise must be left at most, of a step that takes two gradients


class Pairing(NamedTuple):
    """Whether, and why.

    Attributes:
        paired: Whether losses and gradients are those beside the anchor's.
        reason: Of that.
        num_gradients: Taken to know, in full-data gradients.
    """

    paired: bool
    reason: str
    num_gradients: float = 0.0


def choose_pairing(
    posterior: LocalPosterior,
    kernel: Kernel,
    *,
    asked: bool | None,
    by_hand: bool,
    anchor_samples: int | None,
    batch_size: int | None,
    num_steps: int,
    num_chains: int,
    tolerance: float,
    seed: int,
) -> Pairing:
    """What was asked for, where it is possible; by default :func:`worth_pairing`, where nothing speaks against it.

    Args:
        posterior: The target, entered.
        kernel: The sampler.
        asked: Whether it was asked for; None where nothing was said.
        by_hand: Whether batch or step size are set by hand, and what they do is to be left alone.
        anchor_samples: Of how many samples L_n(w*) is to be the mean; None for all.
        batch_size: Of minibatches; None for full data.
        num_steps: Of each chain, of the whole budget.
        num_chains: Chains.
        tolerance: The half-width of the interval to reach, relative to λ̂.
        seed: Of what is measured.

    Returns:
        The choice.

    Raises:
        ValueError: It was asked for where there is nothing to pair, or no way to.
    """
    against = ""
    if posterior.data is None:
        against = "data is None: an exact loss has no minibatches"
    elif kernel.exact:
        against = f"{kernel.name} takes full data, without noise to remove"
    elif posterior.shards is not None:
        against = "parameters are sharded over processes"
    elif anchor_samples is not None:
        against = f"anchor_samples is {anchor_samples}, and it takes L_n(w*) and its gradient over all data"
    if asked and against:
        raise ValueError(
            f"control_variates: True, but {against}. Leave it out, or ask for minibatches of data by sampler='baoab'."
        )
    if asked is not None:
        return Pairing(asked, "asked for")
    if not against and by_hand:
        against = "batch_size or the step is set by hand"
    if not against and posterior.engine.name != "batched":
        against = "chains run one after another"
    if against:
        return Pairing(False, against)
    assert batch_size is not None
    return worth_pairing(posterior, batch_size, num_steps, num_chains, tolerance, seed)


@torch.no_grad()
def worth_pairing(
    posterior: LocalPosterior, batch_size: int, num_steps: int, num_chains: int, tolerance: float, seed: int
) -> Pairing:
    r"""Whether minibatches are taken beside the anchor: where λ̂ cannot be had without, and less noise is left with it.

    .. math:: 1.96\, \frac{n\beta\, \sigma}{\sqrt{Tk}} > \tau \tfrac d2, \qquad
              \mathrm{Var}\, \hat L(w) < \tfrac14 \sigma^2, \quad
              \mathrm{tr\, Cov}\, \hat g(w) < \tfrac14 \mathrm{tr\, Cov}\, g_B(w)

    with σ that of a batch's loss at w, which is as far from w* as nβL rises by d/2, T steps of k chains, d weights, τ
    the tolerance, L̂ and ĝ of :func:`samplers.control_variates`. Where losses are less those of their samples at w*
    (:meth:`slt.LocalPosterior.centre_samples`) σ is what is left of the noise.

    Args:
        posterior: The target, entered, with data, on the batched engine.
        batch_size: Of minibatches.
        num_steps: T, of the whole budget.
        num_chains: k.
        tolerance: τ.
        seed: Of places and batches.

    Returns:
        The choice.
    """
    assert posterior.data is not None
    share = min(1.0, batch_size / posterior.data.size)
    generator = torch.Generator(posterior.anchor.device).manual_seed(seed)
    batches = posterior.minibatches(batch_size)(generator, 1)
    anchor, passes = posterior.anchor, Passes(posterior)
    aside = torch.randn(anchor.shape, generator=generator, dtype=anchor.dtype, device=anchor.device)
    aside /= aside.norm()
    offset: Tensor | None = None
    there: list[tuple[Tensor, Tensor]] = []
    here: list[tuple[Tensor, Tensor]] = []
    for _ in range(BATCHES):
        batch = next(batches)
        there.append(_kept(passes.at(anchor, batch)))
        if offset is None:  # the noise of a batch's own slope is far more than what the loss rises by
            offset = aside * passes.reach(aside, batch, slope=float(there[0][1] @ aside.double()))
        here.append(_kept(passes.at(anchor + offset, batch)))
    assert offset is not None
    aside_of_it = _variance([loss for loss, _ in here])
    noise = Z_95 * float(posterior.n_beta) * (aside_of_it / (num_steps * num_chains)) ** 0.5
    allowed = tolerance * posterior.dim / 2
    if not noise > allowed:
        return Pairing(False, f"the noise of batches leaves λ̂ ±{noise:.2g}, within {allowed:.2g}", passes.count * share)
    of_pairs = list(zip(here, there, strict=True))
    loss_left = _variance([loss - other - slope @ offset.double() for (loss, _), (other, slope) in of_pairs])
    gradient_left = _variance([gradient - other for (_, gradient), (_, other) in of_pairs])
    less = loss_left < LESS * aside_of_it
    if not (less and gradient_left < LESS * _variance([gradient for _, gradient in here])):
        return Pairing(
            False, f"it would leave as much of the noise, ±{noise:.2g}, and cost two gradients", passes.count * share
        )
    left = noise * (loss_left / aside_of_it) ** 0.5
    reason = (
        f"the noise of batches would leave λ̂ ±{noise:.2g}; beside the anchor's, as {BATCHES} batches say, ±{left:.1g}"
    )
    return Pairing(True, reason, passes.count * share)


def _kept(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss, 0-d, and gradient ``(dim,)``, in float64, where the next call does not overwrite them."""
    return found[0][0].double().clone(), found[1][0].double().clone()


def _variance(values: list[Tensor]) -> float:
    """Over batches, summed over coordinates."""
    return float(torch.stack(values).var(0).sum())


def paired(posterior: LocalPosterior, baseline: float) -> ControlVariatePotential:
    """The posterior's target, with losses and gradients of batches beside those at its anchor.

    Args:
        posterior: The target, entered.
        baseline: L_n(w*), in nats, over the full data, so that λ̂ is over the same number.

    Returns:
        It, by :func:`samplers.control_variates`.
    """
    target = posterior.target
    return samplers.control_variates(target, target.anchor, loss=target.anchor.new_tensor(baseline))
