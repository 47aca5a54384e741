"""Hamiltonian Monte Carlo, at one step size or over all scales of the target."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.kernel import Info, Kernel, add_scaled_
from samplers.metropolis import ExactState, decide_, start, uniform_of_the_decision
from samplers.mixed_scale import StepSize, step_sizes
from samplers.noise import standard_normal
from samplers.potential import Batch, Potential, per_chain
from samplers.preconditioner import Identity, Preconditioner


def hmc(
    step_size: StepSize,
    num_steps: int = 8,
    preconditioner: Preconditioner | None = None,
) -> Kernel:
    r"""Hamiltonian Monte Carlo: a path of leapfrog steps with a fresh momentum, accepted or refused as a whole.

    .. math:: q \leftarrow q - \tfrac{\epsilon}{2} \sqrt{P}\,\nabla U(w), \quad
              w \leftarrow w + \epsilon \sqrt{P}\, q, \quad
              q \leftarrow q - \tfrac{\epsilon}{2} \sqrt{P}\,\nabla U(w), \qquad
              \log\alpha = H_0 - H_{1}, \quad H = U(w) + \tfrac12 \|q\|^2

    with q ~ N(0, I) at the start of every path. Targets exp(−U) at any step size. ``num_steps`` full-data gradients a
    step of the chain.

    **Mixed scales.** With ``step_size=(low, high)`` every chain draws ε anew for each path, log-uniformly between the
    two: from the width of the stiffest wall to that of the localiser. A singular posterior has all scales between
    them, and a chain with one of them fails there with every diagnostic green: on (w₁w₂)² at nβ = 10⁶ a tuned ε gave
    0.3945 ± 0.0047 where 0.4375 is exact. The paths must be long as well, since along a thin arm the small ε that the
    walls accept moves slowly: with 8 steps a path 256 chains from the anchor stood at 0.416 ± 0.003 after 2,000 draws,
    R̂ 1.006; with ½√(nβ/γ) steps, which cross half the localiser (K has curvatures of about one there), they agree with
    the exact value.
    :func:`samplers.replica_exchange` is the cheaper cure. ε does not depend on the state, so that every path, and any
    mixture of them, leaves exp(−U) as it is.

    Args:
        step_size: ε, a number or ``(chains, 1)``, or two such, (low, high). Units of position (U is dimensionless).
        num_steps: Leapfrog steps of a path. Eight of them cross a quarter of a period at ε = 0.2 of the width.
        preconditioner: P, frozen; the identity by default.

    Returns:
        An exact kernel: it refuses minibatches.

    Raises:
        ValueError: ``step_size`` is not finite and positive, of another shape than those, or (low, high) are not in
            order; or ``num_steps`` is not positive.

    Source:
        Neal 2011, §5.2.3 (leapfrog) and §5.3.2; a random step size per path is §5.4.2.2 there.
    """
    step_size, drawn_step_size = step_sizes(step_size)
    if num_steps < 1:
        raise ValueError(f"num_steps: {num_steps}; expected at least one leapfrog step.")
    metric = preconditioner if preconditioner is not None else Identity()

    moved = metric.apply_root_ if preconditioner is not None else None  # of a copy; the identity needs none

    def force_at(gradient: Tensor, position: Tensor, potential: Potential) -> tuple[Tensor, Tensor]:
        """√P ∇U, and the energy of the localiser."""
        force = gradient * potential.n_beta
        localization = potential.sum(potential.localizer.add_gradient_(force, position).unsqueeze(-1))
        return metric.apply_root_(force), localization

    def energy(loss: Tensor, localization: Tensor, momentum: Tensor, potential: Potential) -> Tensor:
        """H, in float64."""
        kinetic = potential.sum(momentum.square()).double()
        return loss.double() * per_chain(potential.n_beta) + localization.double() + 0.5 * kinetic

    @torch.no_grad()
    def step_(state: ExactState, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        position, loss = state.position, state.loss
        step = drawn_step_size(position, generator)
        kick, half_kick = -step, step * -0.5
        momentum = standard_normal(position, generator)
        uniform = uniform_of_the_decision(position, generator)

        force, localization = force_at(state.gradient, position, potential)
        total = energy(loss, localization, momentum, potential)
        proposal = position.clone()
        new_loss, new_gradient, new_localization = loss, state.gradient, localization
        add_scaled_(momentum, force, half_kick)
        for place in range(num_steps):
            add_scaled_(proposal, momentum if moved is None else moved(momentum.clone()), step)
            new_loss, new_gradient = potential.loss_and_grad(proposal, batch)
            force, new_localization = force_at(new_gradient, proposal, potential)
            # two half-kicks by the same force are one
            add_scaled_(momentum, force, kick if place < num_steps - 1 else half_kick)
        log_alpha = total - energy(new_loss, new_localization, momentum, potential)
        return decide_(state, ExactState(proposal, new_loss, new_gradient), log_alpha, uniform, localization)

    settings = {"step_size": step_size, "num_steps": num_steps, "preconditioner": preconditioner}
    return Kernel(start, step_, "hmc", settings, hmc, exact=True, gradients_per_step=num_steps)
