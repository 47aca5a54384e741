"""The look at what a run took place in, after its draws: around its anchor, at its gradient, at its numbers."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from samplers import Kernel, ScaledPotential, Trace
from samplers.friction import forgotten_per_step
from slt.batch_means import compare_batch_means
from slt.calibrate import Plan
from slt.edges import Edge, look_for_edge
from slt.gradient_work import GradientWork, gradient_work
from slt.posterior import LocalPosterior
from slt.rounding import Neighbours, look_at_neighbours
from slt.rounds import ABSOLUTE_FLOOR, share_of_data
from slt.surroundings import Surroundings, gradient_noise, look_around


class Look(NamedTuple):
    """What was found.

    Attributes:
        around: What is around the anchor; None where it was not looked at.
        noise_bias: Excess of λ̂ by minibatch noise at the step that was taken; 0 where there is none or none is known.
        neighbours: What rounding of weights, and chance, do to the loss at the anchor.
        changed_loss: Of the first batch at the anchor before the run and after it, where they differ.
        work: Of the gradient on the way to where chains ended, and the rise of the loss; None of exact samplers.
        uneven: The loss at the anchor as chains take it, and L_n(w*), where they differ.
        edge: Where the law ends among the chains; None where it does not.
        num_gradients: Taken to look, in full-data gradients.
    """

    around: Surroundings | None
    noise_bias: float
    neighbours: Neighbours
    changed_loss: tuple[float, float] | None
    work: GradientWork | None
    uneven: tuple[float, float] | None
    edge: Edge | None
    num_gradients: float


NOT_LOOKED = Look(None, 0.0, Neighbours(0.0, None), None, None, None, None, 0.0)
"""Of a look that was interrupted."""


def look(
    posterior: LocalPosterior,
    plan: Plan,
    trace: Trace,
    ends: Tensor | None,
    anchor_loss: tuple[float, float],
    tolerance: float,
    seed: int,
) -> Look:
    """What the verdict needs to know beside the draws.

    Args:
        posterior: The target, entered.
        plan: As it was carried out.
        trace: Of the run.
        ends: Where the first chains are at its end, ``(chain, dim)``, in the units of ``posterior.target``; or None.
        anchor_loss: L_n(w*) and its standard error, in nats.
        tolerance: Relative, of λ̂.
        seed: Of places and minibatches.

    Returns:
        It.
    """
    around, noise, cost, work, uneven, edge = None, 0.0, 0.0, None, None, None
    deterministic = not posterior.report.random and not trace.interrupted
    if deterministic:
        metric = None if plan.batch_size is None else plan.kernel.settings.get("preconditioner")
        around = look_around(posterior, trace.num_gradients * share_of_data(posterior, plan), metric)
        cost = 0.0 if around is None else around.num_gradients
    alive = trace.loss[trace.surviving]
    llc = float(posterior.n_beta) * (float(alive.mean()) - anchor_loss[0]) if alive.size else 0.0
    allowed = tolerance * max(abs(llc), ABSOLUTE_FLOOR)
    factor = _of_noise(plan, trace)
    # with control variates none is left at the anchor
    if plan.batch_size is not None and posterior.data is not None and factor is not None and not plan.paired:
        metric = plan.kernel.settings["preconditioner"]
        variance, of_noise = gradient_noise(posterior, plan.batch_size, seed, trace.num_gradients, metric=metric)
        noise, cost = factor * variance, cost + of_noise
    if deterministic and ends is not None and posterior.shards is None:
        if plan.kernel.exact:
            edge, taken = look_for_edge(posterior, _kernel_of_draws(plan), trace, ends, seed)
        else:
            work = gradient_work(posterior, _weights(posterior, ends), plan.batch_size, seed, allowed)
            taken = 0.0 if work is None else work.num_gradients
        cost += taken
    # with control variates the bias of a batch's loss at w* goes with its noise
    if deterministic and posterior.shards is None and not plan.paired:
        run = trace.num_gradients * share_of_data(posterior, plan)
        uneven, taken = compare_batch_means(posterior, plan, anchor_loss, seed, allowed, run)
        cost += taken
    neighbours = look_at_neighbours(posterior, plan.batch_size, seed)
    return Look(around, noise, neighbours, posterior.changed_loss(), work, uneven, edge, cost)


def _weights(posterior: LocalPosterior, ends: Tensor) -> Tensor:
    """Where chains are, in the units of the weights."""
    target = posterior.target
    return target.positions(ends.to(target.anchor)).cpu() if isinstance(target, ScaledPotential) else ends


def _kernel_of_draws(plan: Plan) -> Kernel:
    """That of the run; of a ladder that of its last rung alone, whose chains the draws are of."""
    if plan.ladder is None:
        return plan.kernel
    return plan.kernel.settings["inner"].tune(step_size=plan.ladder.step_size)


def _of_noise(plan: Plan, trace: Trace) -> float | None:
    """The excess of λ̂ per variance of the gradient in the kernel's metric; None of kernels for which it is not known.

    On a quadratic, by the docstrings of the kernels, and less than that in directions that the localiser holds.

    Args:
        plan: As it was carried out.
        trace: Of the run, with the steps that were lowered on the way.

    Returns:
        The factor, or None.
    """
    settings = plan.kernel.settings
    if plan.kernel.name not in ("sgld", "baoab"):
        return None
    step = settings["step_size"]
    step = float(step.mean() if isinstance(step, Tensor) else step)
    if plan.kernel.name == "sgld":
        return step / 8
    square, taken = 0.0, 0
    for earlier in trace.configuration.get("earlier_settings", ()):
        square += float(np.mean(earlier["step_size"])) ** 2 * (earlier["draws"] - taken)
        taken = earlier["draws"]
    square = (square + step**2 * (trace.num_draws - taken)) / trace.num_draws
    return square / 8 / math.tanh(0.5 * forgotten_per_step(plan.kernel))
