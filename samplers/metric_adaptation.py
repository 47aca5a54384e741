"""A diagonal preconditioner from the gradients of a pilot run, and adaptations one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from samplers.adaptation import Adaptation, Adapted
from samplers.kernel import Kernel
from samplers.potential import Batch, Potential, gradients_per_call, whole_dim
from samplers.preconditioner import Diagonal

STEPS_PER_GRADIENT = 4  # of the pilot; draws closer together tell little that is new, and each gradient costs a step
LOWEST_ACCEPTANCE_RATE = 0.1  # below, an exact pilot stands still, and tells of its start alone


def gradient_metric(num_steps: int = 500, decay: float = 0.99, stabilization: float = 0.1) -> Adaptation:
    r"""Adaptation of one diagonal preconditioner for all chains: RMSprop's metric, from the gradients of a pilot run.

    .. math:: \hat V_t = \hat V_{t-1} + \frac{1 - b}{1 - b^t} (\overline{g_t^2} - \hat V_{t-1}), \qquad
              P_i = \frac{\kappa}{\sqrt{\hat V_i} + a \bar g}, \qquad
              \bar g^2 = \tfrac{1}{\mathrm{dim}} \sum_i \hat V_i, \qquad
              \sum_i P_i \hat V_i = \sum_i \hat V_i

    with g the gradient of the loss alone at every fourth position of the pilot, on a batch of its own, its square
    averaged over chains. The pilot runs the kernel as it is, at its own step size and preconditioner.

    **A step size keeps its meaning.** The last equation sets κ: E‖∇L‖² is the same in the metric as without. The bias
    of an unadjusted Langevin step, (ε/8) nβ² E‖∇L‖²_P, and the ε² term in the energy error of a leapfrog step are
    therefore what they were at the same ε, to first order. What the metric gains shows as faster motion along
    directions of small gradients: a direction without a gradient has 1 + 1/a times the P of one with the root mean
    square gradient. A step size that was chosen by its bias can be kept.

    With full-data gradients on a quadratic, √V̂ is about the root of the curvature, and the condition number becomes
    its square root. Where gradient noise far exceeds the gradient, the metric is that of the noise.

    The metric is a setting of the kernel, and saved with the run. It is pooled over chains, so that it is known well
    after a short pilot; :func:`samplers.rmsprop_sgld` has one for each chain, of its own last gradients, and no pilot.

    Args:
        num_steps: Steps of the pilot.
        decay: b in (0, 1), per gradient. At the default the 125 gradients of a pilot count nearly alike.
        stabilization: a > 0, a share of the root mean square gradient, so that the metric does not depend on the unit
            of the loss. The default bounds the gain, 1 + 1/a, by 11.

    Returns:
        An adaptation for a kernel with a setting ``preconditioner``.

    Raises:
        ValueError: ``num_steps``, ``decay`` or ``stabilization`` is out of range; or, when it is run, the kernel has no
            setting ``preconditioner``.
        FloatingPointError: When it is run: chains of the pilot left the finite numbers, it stood still, or no
            gradient was different from zero.

    Source:
        Li, Chen, Carlson & Carin 2016, Algorithm 1, for the metric, there with an absolute a; the normalisation is
        derived here.
    """
    if num_steps < STEPS_PER_GRADIENT or not 0 < decay < 1 or not stabilization > 0:
        raise ValueError(
            f"num_steps, decay, stabilization: {num_steps}, {decay}, {stabilization}; expected at least "
            f"{STEPS_PER_GRADIENT} steps, a decay between 0 and 1, and a positive share."
        )

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        if "preconditioner" not in kernel.settings:
            raise ValueError(
                f"kernel: {kernel.name} has no setting preconditioner; expected one that has, such as sgld or hmc."
            )
        state = kernel.init(position.clone(), potential)
        mean_square = torch.zeros_like(position[0])
        accepted = position.new_zeros(())
        count = 0
        for step in range(1, num_steps + 1):
            info = kernel.step_(state, potential, None if batches is None else next(batches), generator)
            accepted += info.acceptance_rate.mean()
            if step % STEPS_PER_GRADIENT == 0:
                count += 1
                _, gradient = potential.loss_and_grad(state.position, None if batches is None else next(batches))
                mean_square.lerp_(gradient.square().mean(0), (1 - decay) / (1 - decay**count))
        _check_pilot(kernel, potential.sum(mean_square), float(accepted) / num_steps)
        root = mean_square.sqrt()
        scale = (root + stabilization * (potential.sum(mean_square) / whole_dim(potential)).sqrt()).reciprocal_()
        scale *= potential.sum(mean_square) / potential.sum(mean_square * scale)
        num_calls = num_steps * kernel.gradients_per_step + count + (1 if kernel.exact else 0)
        num_gradients = num_calls * gradients_per_call(potential, batches)
        return Adapted(kernel.tune(preconditioner=Diagonal(scale)), num_gradients)

    return adapt


def _check_pilot(kernel: Kernel, total: Tensor, acceptance_rate: float) -> None:
    """Refuses a pilot whose gradients say nothing of the target.

    Args:
        kernel: Of the pilot.
        total: Of the mean squares that it gave.
        acceptance_rate: Its mean.

    Raises:
        FloatingPointError: Not finite, zero throughout, or of a pilot that stood still.
    """
    advice = (
        f"A step size of {kernel.name} must be found first: in_turn(limit_bias(…) or accept_at_rate(…), "
        "gradient_metric(), and the first again)."
    )
    if not bool(torch.isfinite(total)):
        raise FloatingPointError(f"preconditioner: chains of the pilot left the finite numbers. {advice}")
    if acceptance_rate < LOWEST_ACCEPTANCE_RATE:
        raise FloatingPointError(f"preconditioner: the pilot accepted {acceptance_rate:.1%} of its moves. {advice}")
    if not bool(total > 0):
        raise FloatingPointError(
            "preconditioner: the gradient of the loss was zero throughout the pilot, so that there is no metric in it. "
            "Is the loss constant, or does it not depend on these coordinates?"
        )


def in_turn(*adaptations: Adaptation) -> Adaptation:
    """Adaptation by several, one after the other: each tunes the kernel that the one before has found.

    Each starts its pilot where the chains are to start. ``in_turn(gradient_metric(), limit_bias(baseline))`` finds a
    metric, then the step size in it.

    Args:
        *adaptations: At least one, in order.

    Returns:
        An adaptation whose gradients are those of all.

    Raises:
        ValueError: None is given.
    """
    if not adaptations:
        raise ValueError(
            "adaptations: none; expected at least one, such as in_turn(gradient_metric(), accept_at_rate())."
        )

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        num_gradients, initial = 0, None
        for adaptation in adaptations:
            adapted = adaptation(kernel, potential, position.clone(), batches, generator)
            kernel, num_gradients = adapted.kernel, num_gradients + adapted.num_gradients
            if adapted.initial is not None:
                initial = adapted.initial
                position = initial[: len(position)]  # chains of the other blocks may start elsewhere
        return Adapted(kernel, num_gradients, initial)

    return adapt
