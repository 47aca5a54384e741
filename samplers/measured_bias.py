"""The bias of a chain with a momentum as it is measured, over a pilot that is long enough for it to show."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from samplers.adaptation import Adaptation, Adapted, stiffness
from samplers.capture import stepping, take
from samplers.friction import forgotten_per_step
from samplers.kernel import Info, Kernel
from samplers.potential import Batch, Potential, gradients_per_call, per_chain

WINDOWS = 10  # of a pilot; the first is the chains' way from where they start
LEAST_STEPS = 20  # of a window
SMALLEST_CHANGE, LARGEST_CHANGE = 0.5, 2.0  # of the step size, after a window
# Of h²A, up to which the step is raised, A being the stiffness that chains have met: far below 4, where a quadratic is
# left, since no bias tells of that before.
LARGEST_RAISED = 0.3
# Momenta that a window must have forgotten, for its mean of the bias to be a reason to raise the step; and the last
# windows, in which a raised step is to prove itself.
LEAST_FORGOTTEN, PROOF = 10.0, 3
# Of the step size, for what comes after the pilot: chains that go on to fill flat directions meet stiffer walls there.
MARGIN = 0.75
FLOOR = 0.4  # of nβ·(loss − baseline), as in limit_bias


def lowering(kernel: Kernel, energy: Tensor, bias: float, fraction: float) -> float:
    """The factor by which the step of ``baoab`` is to shrink after chains were heated; 1 where it may stay.

    Args:
        kernel: ``baoab``.
        energy: nβ·(loss − baseline) of every step and chain, ``(steps, chains)``, in nats.
        bias: The mean of their ``discretization_bias``, in nats.
        fraction: φ of :func:`limit_measured_bias`, whose rule this is.

    Returns:
        At least a half.
    """
    steps, chains = energy.shape
    noise = 2 * float(energy.std()) / (math.sqrt(2 * chains) * steps * forgotten_per_step(kernel))
    allowed = fraction * max(FLOOR, abs(float(energy.mean()))) + noise
    return max(SMALLEST_CHANGE, math.sqrt(allowed / bias)) if bias > allowed else 1.0


def limit_measured_bias(baseline: float, fraction: float = 0.01, num_steps: int = 1000) -> Adaptation:
    r"""Adaptation of the step size of ``baoab`` to the bias that chains are measured to have, in a long pilot.

    .. math:: h \leftarrow h \sqrt{\frac{a + u}{b}} \;\text{ where } b > a + u, \qquad
              h \leftarrow h \sqrt{\frac{a}{b + v}} \;\text{ where } b + v < a, \qquad
              a = \phi \max(0.4, \; n\beta\, |\langle L \rangle - L_0|), \quad
              b = \langle \mathrm{discretization\_bias} \rangle, \quad
              u = \frac{2 s}{\sqrt{2k}\,hCT}

    after each tenth of the pilot but the first, with φ = ``fraction``, L₀ = ``baseline`` and means over its T steps
    and the k chains; never by more than a factor of two, nor up to where h²A > 0.3 by the stiffness A at the places
    reached (:func:`samplers.adaptation.stiffness`). u is two standard errors of b, s being the standard deviation of
    nβL: b contains the change of nβL over the window, over 2hCT; v is two standard errors by the scatter of chains,
    which is large where a single one of them is heated. The chains go on from where they are; those of a window that
    left the finite numbers start anew with half of the step, which is not raised again, nor is that of a single chain,
    or of windows in which fewer than ten momenta are forgotten, or in the last three.

    :func:`samplers.limit_momentum_bias` knows the laws of quadratics and the stiffest wall of a short pilot. Where the
    curvature itself is a matter of chance, as in deep networks, chains come to stiffer places rarely, are heated there,
    and stay: on deep linear networks the excess of λ̂ grew for thousands of steps, to a third where none of the first
    five hundred showed any. Where a chain starts far out in the law, its noise stands for that of all, and the step
    that follows is too small for it to come back: a hundredth of the right one on a tanh network of 163 weights. This
    follows that rule, with a pilot that is a fair part of the run, and keeps three quarters of what it finds.

    Args:
        baseline: The loss at the anchor, in nats, over which the energy is counted.
        fraction: φ, the relative bias of nβ·E[loss] to allow.
        num_steps: Of the pilot; 200 at least.

    Returns:
        An adaptation for ``baoab`` that has a step size. Several chains start where the pilot ended.

    Raises:
        ValueError: ``fraction`` or ``num_steps`` is not positive; or, when it is run, the kernel is another.
        FloatingPointError: When it is run: chains left the finite numbers in every window.

    Source:
        The rule is derived here; the measured bias with :func:`samplers.baoab`.
    """
    if not 0 < fraction < 1 or num_steps < 1:
        raise ValueError(f"fraction, num_steps: {fraction}, {num_steps}; expected a share and a positive count.")

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        if kernel.name != "baoab":
            raise ValueError(f"kernel: {kernel.name}; expected baoab, whose chains measure their bias.")
        step_size, steps, failed = kernel.settings["step_size"], max(LEAST_STEPS, num_steps // WINDOWS), 0
        metric, num_looks = kernel.settings["preconditioner"], 0
        state = kernel.init(position.clone(), potential)
        for window in range(WINDOWS):
            tuned = kernel.tune(step_size=step_size)
            step_ = stepping(tuned, potential, steps, with_batches=batches is not None, device=position.device)
            infos: list[Info] = []
            take(step_, state, potential, batches, generator, steps, infos)
            energy = (torch.stack([info.loss for info in infos]).double() - baseline) * per_chain(potential.n_beta)
            mean = float(energy.mean())
            of_chains = torch.stack([info.discretization_bias for info in infos]).double().mean(0)
            bias = float(of_chains.mean())
            if not math.isfinite(mean) or not math.isfinite(bias):
                failed += 1
                step_size = step_size * SMALLEST_CHANGE
                state = kernel.tune(step_size=step_size).init(position.clone(), potential)
            elif window:
                forgotten, allowed = steps * forgotten_per_step(kernel), fraction * max(FLOOR, abs(mean))
                lowered = lowering(kernel, energy, bias, fraction)
                if lowered < 1:
                    step_size = step_size * lowered
                elif not failed and len(position) > 1 and window < WINDOWS - PROOF and forgotten >= LEAST_FORGOTTEN:
                    surely = max(0.0, bias) + 2 * float(of_chains.std()) / math.sqrt(len(position))
                    if surely < allowed:
                        batch = None if batches is None else next(batches)
                        num_looks += 1
                        try:
                            stiffest = stiffness(potential, state.position, batch, generator, metric)
                        except FloatingPointError:  # a wall where nothing is finite is close by
                            continue
                        most = float(torch.as_tensor(step_size).max())
                        highest = math.sqrt(LARGEST_RAISED / max(stiffest, 1e-30)) / most
                        raised = min(LARGEST_CHANGE, math.sqrt(allowed / max(surely, 1e-30)), highest)
                        step_size = step_size * max(1.0, raised)
        if failed == WINDOWS:
            raise FloatingPointError(
                "step_size: chains left the finite numbers at every step. Look for overflow, use float64, or raise "
                "the localiser's strength."
            )
        steps_and_looks = WINDOWS * steps * kernel.gradients_per_step + 2 * num_looks
        taken = steps_and_looks * gradients_per_call(potential, batches)
        # of a single chain all chains would start in one place
        initial = state.position.detach().clone() if len(position) > 1 else None
        return Adapted(kernel.tune(step_size=MARGIN * step_size), taken, initial)

    return adapt
