"""From draws to an estimate: λ̂, its interval and the verdict."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch

from samplers import Trace, diagnose
from samplers.diagnostics import MINIMUM_DRAWS
from slt.calibrate import Plan
from slt.data import BatchData
from slt.energies import energies_of, predicted_bias, window_of
from slt.engines.batched import BatchedEngine
from slt.estimate import LLCEstimate
from slt.look import Look
from slt.posterior import LocalPosterior
from slt.resolution import common_unit
from slt.rounds import ABSOLUTE_FLOOR, share_of_data
from slt.verdict import Z_95, Evidence, judge


def conclude(
    posterior: LocalPosterior,
    plan: Plan,
    trace: Trace,
    anchor_loss: tuple[float, float],
    looked: Look,
    size: int | None,
    tolerance: float,
    allow_survivors: bool,
    config: dict[str, tuple[Any, str]],
    start: float,
) -> LLCEstimate:
    """The estimate: λ̂ and its error over the chains that did not diverge, the interval, and the verdict.

    λ̂ is the mean of the draws less the predicted bias of the step size, which is right in stiff directions and, with
    minibatches, too much in flat ones. The interval holds Monte Carlo error, the error of L(w*), and that bias upward.

    Args:
        posterior: The target.
        plan: As it was carried out.
        trace: Of the run.
        anchor_loss: L_n(w*) and its standard error, in nats.
        looked: What is around the anchor.
        size: n.
        tolerance: The half-width of the interval that was aimed at, relative to λ̂, or to 0.1 where λ̂ is less.
        allow_survivors: Whether λ̂ is given where a chain diverged.
        config: Every choice, with its reason.
        start: When the call began, by ``time.perf_counter``.

    Returns:
        The estimate.
    """
    n_beta, (baseline, baseline_error) = float(posterior.n_beta), anchor_loss
    alive = trace.surviving
    energies, left = energies_of(posterior, plan, trace, baseline)
    diagnostics = None
    if alive.any() and trace.num_draws >= MINIMUM_DRAWS:
        diagnostics = diagnose(energies, window_of(posterior, plan, trace))
    llc = mcse = ess = rhat = bias = error = math.nan
    if diagnostics is not None:
        llc, mcse, ess, rhat = diagnostics.mean, diagnostics.mcse, diagnostics.ess, diagnostics.rhat
        bias = predicted_bias(trace)
        error = math.hypot(mcse, n_beta * baseline_error)
        llc -= left
    # of weights and of the loss, which may be cast to another
    coarser = max(posterior.sampled.dtype, posterior.report.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    allowed = tolerance * max(abs(llc), ABSOLUTE_FLOOR)
    verdict = judge(
        Evidence(
            trace=trace,
            llc=llc,
            energies=energies,
            diagnostics=diagnostics,
            baseline=baseline,
            baseline_error=baseline_error,
            n_beta=n_beta,
            localization=posterior.localizer.strength,
            dim=posterior.num_weights,
            bias=bias,
            tolerance=allowed,
            half_width=Z_95 * error,
            aimed=plan.extend,
            random_values=_random_values(posterior, looked),
            rounding=n_beta * max(abs(baseline) * torch.finfo(coarser).eps, common_unit(trace.loss[alive])),
            rounding_of_positions=looked.neighbours.rise,
            dtype=str(coarser).removeprefix("torch."),
            surroundings=looked.around,
            noise_bias=looked.noise_bias,
            batch_size=plan.batch_size,
            work=looked.work,
            uneven=_uneven(posterior, looked, allowed),
            edge=looked.edge,
            own_batches=isinstance(posterior.data, BatchData),
            vectorised=posterior.engine.name == "batched",
        )
    )
    if not alive.all() and not allow_survivors:
        llc = mcse = math.nan
    share = share_of_data(posterior, plan)
    return LLCEstimate(
        llc=llc,
        mcse=mcse,
        interval=(llc - Z_95 * error, llc + Z_95 * error + bias) if np.isfinite(llc) else (math.nan, math.nan),
        rhat=rhat,
        ess=ess,
        loss_at_anchor=baseline,
        n=size,
        n_beta=n_beta,
        localization=posterior.localizer.strength,
        sampler=plan.kernel.name,
        step_size=trace.configuration.get("step_size", math.nan),
        step_size_bias=bias,
        num_gradients=trace.num_gradients * share
        + posterior.metric.num_gradients
        + plan.num_gradients
        + looked.num_gradients,
        seconds=time.perf_counter() - start,
        verdict=verdict,
        trace=trace,
        config=config,
        baseline_error=baseline_error,
    )


def _uneven(posterior: LocalPosterior, looked: Look, allowed: float) -> tuple[float, float] | None:
    """The loss of samples together and in parts, where the loss is no mean and λ̂ shows it."""
    if posterior.report.uneven is not None or looked.uneven is None:
        return posterior.report.uneven
    together, apart = looked.uneven
    return looked.uneven if float(posterior.n_beta) * abs(together - apart) > allowed else None


def _random_values(posterior: LocalPosterior, looked: Look) -> tuple[float, float] | None:
    """Two losses of the same samples at the same weights, where they differ: at once, on the way, or after it."""
    if posterior.report.random:
        return posterior.report.values
    on_the_way = posterior.engine.differed if isinstance(posterior.engine, BatchedEngine) else None
    return looked.neighbours.random_values or on_the_way or looked.changed_loss
