"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from samplers.kernel import Info, Kernel, add_scaled_, check_positive
from samplers.metropolis import ExactState, decide_, start, uniform_of_the_decision
from samplers.noise import standard_normal
from samplers.potential import Batch, Potential, per_chain
from samplers.preconditioner import Identity, Preconditioner

SMALLEST_STEP = 0.01  # of step_size; a region a hundred times stiffer than where ε was found can still be left


def mala(
    step_size: float | Tensor, preconditioner: Preconditioner | None = None, small_step_share: float = 0.25
) -> Kernel:
    r"""Metropolis-adjusted Langevin algorithm: SGLD's move on full data, accepted or refused so that exp(−U) is exact.

    .. math:: w' = w - \tfrac{\epsilon}{2} P \nabla U(w) + \sqrt{\epsilon P}\,\xi, \qquad
              \log\alpha = U(w) - U(w') + \tfrac12 \langle \sqrt{\epsilon P}(g + g'), \xi\rangle
                           - \tfrac{\epsilon}{8} \| g + g' \|_P^2

    with g = ∇U(w), g' = ∇U(w'). Targets exp(−U) at any step size. One full-data gradient a step. A proposal whose
    energy is not a number, or infinite, is refused: its acceptance rate is zero.

    **Small steps.** On a target of many scales a chain of one step size that strays into a stiff region stands still
    there for thousands of steps, with R̂ at 1.02: on a tanh unit at nβ = 100 one of 64 chains did so in 4,000 draws,
    and raised the standard error of their mean from 0.003 to 0.030. Therefore a share of the steps is taken with ε
    multiplied by a factor drawn log-uniformly from [1/100, 1], for each chain and step. The factor does not depend on
    the state, so that each move, and any mixture of them, leaves exp(−U) as it is.

    Args:
        step_size: ε, a number or ``(chains, 1)``. Units of position² (U is dimensionless).
        preconditioner: P, frozen; the identity by default.
        small_step_share: Share of the smaller steps, in [0, 1]. They move little: at the default of a quarter a chain
            pays at most a third more steps.

    Returns:
        An exact kernel: it refuses minibatches.

    Raises:
        ValueError: ``step_size`` is not finite and positive, or has another shape than those; or
            ``small_step_share`` is outside [0, 1].

    Source:
        Roberts & Tweedie 1996, §1.4.2; the acceptance ratio is written in the noise, which cancels nothing large.
    """
    step_size = check_positive("step_size", step_size)
    metric = preconditioner if preconditioner is not None else Identity()
    if not 0 <= small_step_share <= 1:
        raise ValueError(f"small_step_share: {small_step_share!r}; expected a share of the steps, from 0 to 1.")
    log_smallest = math.log(SMALLEST_STEP)

    def drawn_step_size(position: Tensor, generator: torch.Generator) -> Tensor:
        """ε of this step, ``(chains, 1)``: most chains take all of it, the others a part."""
        shape, kind = (position.shape[0], 1), {"dtype": position.dtype, "device": position.device}
        choice = torch.rand(shape, generator=generator, **kind)
        depth = (1 - choice / max(small_step_share, 1e-12)).clamp(min=0.0)  # positive for that share of the chains
        return (depth * log_smallest).exp() * step_size

    def total_gradient(gradient: Tensor, position: Tensor, potential: Potential) -> tuple[Tensor, Tensor]:
        total = gradient * potential.n_beta
        return total, potential.sum(potential.localizer.add_gradient_(total, position).unsqueeze(-1))

    @torch.no_grad()
    def step_(state: ExactState, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        position, loss = state.position, state.loss
        n_beta = per_chain(potential.n_beta)
        total, energy = total_gradient(state.gradient, position, potential)
        step = drawn_step_size(position, generator)
        noise = standard_normal(position, generator)
        uniform = uniform_of_the_decision(position, generator)

        proposal = position.clone()
        add_scaled_(proposal, metric.apply_(total.clone()), step * -0.5)
        add_scaled_(proposal, metric.apply_root_(noise.clone()), step.sqrt())
        new_loss, new_gradient = potential.loss_and_grad(proposal, batch)
        new_total, new_energy = total_gradient(new_gradient, proposal, potential)

        mean_drift = metric.apply_root_(total.add_(new_total))
        log_alpha = (
            (loss.double() - new_loss.double()) * n_beta
            + (energy.double() - new_energy.double())
            + 0.5 * step.sqrt().squeeze(-1) * potential.sum(mean_drift * noise)
            - 0.125 * step.squeeze(-1) * potential.sum(mean_drift.square())
        )
        return decide_(state, ExactState(proposal, new_loss, new_gradient), log_alpha, uniform, energy)

    settings = {"step_size": step_size, "preconditioner": preconditioner, "small_step_share": small_step_share}
    return Kernel(start, step_, "mala", settings, mala, exact=True)
