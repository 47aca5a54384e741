"""What exact kernels share: a state with the loss and gradient at hand, and the test that accepts or refuses a move."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from samplers.kernel import Info
from samplers.potential import Potential


@dataclass
class ExactState:
    """Position ``(chains, dim)``, with the loss ``(chains,)`` and its gradient ``(chains, dim)`` there."""

    position: Tensor
    loss: Tensor
    gradient: Tensor


def start(position: Tensor, potential: Potential) -> ExactState:
    """The state at a position, which costs one gradient. Takes ownership of the position."""
    loss, gradient = potential.loss_and_grad(position)
    return ExactState(position, loss.clone(), gradient.clone())


def decide_(
    state: ExactState,
    proposal: ExactState,
    log_alpha: Tensor,
    uniform: Tensor,
    localization_energy: Tensor,
) -> Info:
    """Move each chain to its proposal with probability min(1, α), in place.

    A proposal with a loss or an α that is not a finite number is refused: outside of the support the density is zero.
    So is one whose path met a gradient that is not, which leaves no α; ``Info.not_finite`` tells of both.

    Args:
        state: Of all chains; changed where a proposal is accepted.
        proposal: Where they may go.
        log_alpha: log α, ``(chains,)``, float64.
        uniform: One number from [0, 1) for each chain, float64, drawn before α was known.
        localization_energy: At the state before the move, ``(chains,)``.

    Returns:
        What the step says of the position from which it was taken.
    """
    finite = torch.isfinite(proposal.loss) & torch.isfinite(log_alpha)
    log_alpha = torch.where(finite, log_alpha, -torch.inf)
    accept = uniform.log() < log_alpha
    loss = state.loss.clone()
    # in place, all of them: a captured step finds its state where it was
    torch.where(accept, proposal.loss, loss, out=state.loss)
    torch.where(accept.unsqueeze(-1), proposal.position, state.position, out=state.position)
    torch.where(accept.unsqueeze(-1), proposal.gradient, state.gradient, out=state.gradient)
    no_bias = torch.zeros_like(localization_energy)
    return Info(loss, localization_energy, log_alpha.clamp(max=0.0).exp(), no_bias, ~finite)


def uniform_of_the_decision(position: Tensor, generator: torch.Generator) -> Tensor:
    """One number from [0, 1) for each chain, ``(chains,)``, float64."""
    return torch.rand(position.shape[0], dtype=torch.float64, device=position.device, generator=generator)


def take_rows_(state: Any, rows: Tensor) -> None:
    """Let each chain go on from where another is, in place: its tensors are rows, and move together.

    Args:
        state: A dataclass of an exact kernel, whose tensors have the chains as their leading axis.
        rows: From where, ``(chains,)``.
    """
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            value.copy_(value[rows])
