"""Rounds of draws, doubling, until the interval is narrow and flat directions are filled, or the budget is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers import Run, Trace, diagnose
from samplers.diagnostics import MINIMUM_DRAWS
from samplers.measured_bias import lowering
from slt.calibrate import Plan, with_paths
from slt.energies import energies_of, window_of
from slt.ladders import Ladder, rung_means
from slt.pairing import paired
from slt.paths import LARGEST_REFINED
from slt.posterior import LocalPosterior
from slt.problems.chains import FILLED_RHAT, filled
from slt.running import RunningFile
from slt.verdict import Z_95

# Of λ̂, by which minibatch chains may be heated over so many steps; beyond, their step is lowered for the next ones. It
# is twice what their pilot allows. Every draw loses its own heat, but too much where that is as large as λ̂ itself: on a
# deep linear network of 19,000 weights λ̂ was 5 % low where the heat was 32 %, and 26 % where it was 113 %.
HEAT, HEAT_STEPS = 0.02, 1000
ABSOLUTE_FLOOR = 0.1  # below this λ̂, the tolerance counts absolutely, for λ may be 0: 5 % of 0.1 is 0.005


def draw_rounds(
    posterior: LocalPosterior,
    plan: Plan,
    anchor_loss: tuple[float, float],
    tolerance: float,
    form: Mapping[str, Any],
    file: RunningFile | None = None,
) -> tuple[Plan, Trace, Tensor | None]:
    """The plan as it was carried out, the trace of its rounds, and where chains ended.

    Rounds go on until the interval is narrow or the budget spent.

    Args:
        posterior: The target, entered.
        plan: What is to be run.
        anchor_loss: L_n(w*) and its standard error, in nats.
        tolerance: The half-width of the 95 % interval to reach, relative to λ̂, or to 0.1 where λ̂ is less.
        form: Of :class:`samplers.Run`: what is not of the plan, such as the seed.
        file: Where the run is kept while it goes on, and goes on from.

    Returns:
        The plan, whose warm-up and budget are in paths of the length that the pilot found; the trace; and where the
        first chains ended, ``(chain, dim)`` in host memory and in the units of ``posterior.target``, where this process
        has them; of a ladder at its last rung.
    """
    ladder, baseline = plan.ladder, anchor_loss[0]
    target = paired(posterior, baseline) if plan.paired else posterior.target
    of_plan: dict[str, Any] = {
        "batches": None if plan.batch_size is None else posterior.minibatches(plan.batch_size),
        "num_chains": plan.num_chains * (1 if ladder is None else ladder.num_rungs),
        "num_warmup": plan.num_warmup,
        "thinning": plan.thinning,
    }
    run = Run(plan.kernel, target if ladder is None else ladder.potential, target.anchor, **of_plan, **form)
    going_on = file is not None and file.restore(run)
    if plan.adapt is not None:
        if not going_on:
            run.adapt(plan.adapt)
        plan = with_paths(plan, run.kernel)
        run.num_warmup = plan.num_warmup
    # the step of a pilot, which has not seen the stiff places that chains come to later
    heats = plan.adapt is not None and plan.kernel.name == "baoab"
    window = max(1, HEAT_STEPS // plan.thinning)
    once = not plan.extend and (not heats or plan.num_draws <= window)
    manner: dict[str, Any] = {"release": once and ladder is None and file is None}
    if file is not None:
        manner["pause"] = partial(file.keep, run)
    end = plan.num_draws  # of the round
    while going_on and end < run.num_draws and (following := _next_end(plan, end)) is not None:
        end = following
    while True:
        if going_on:
            run.complete(**manner)
            going_on = False
        else:
            if heats and run.num_draws:
                _cool(run, float(posterior.n_beta), baseline)
            missing = end - run.num_draws
            run.draw(min(missing, window) if heats else missing, **manner)
        if run.num_draws < end and not run.interrupted:
            continue
        trace = run.trace() if ladder is None else _of_the_last_rung(run, ladder, baseline)
        # processes of a group go on or stop together, whatever the last digit is in one of them
        done = not plan.extend or run.interrupted or bool(trace.diverged)
        done = done or run.processes.from_first(partial(_settled, anchor_loss, tolerance, posterior, plan, trace))
        following = None if done else _next_end(plan, end)
        if following is None:
            ends = run.ends
            if ends is not None and ladder is not None:
                ends = ends[ladder.num_rungs - 1 :: ladder.num_rungs]
            return replace(plan, kernel=run.kernel), trace, ends
        end = following


def _next_end(plan: Plan, end: int) -> int | None:
    """The end of the next round, in draws, which doubles them or takes what is left; None where that is little."""
    left = (plan.budget - plan.num_warmup) // plan.thinning - end
    if left >= end:
        return 2 * end
    return None if left < max(1, end // 4) else end + left


def _cool(run: Run, n_beta: float, baseline: float) -> None:
    """Lower the step for what follows, where the last steps that were as large have heated chains by too much."""
    since = run.earlier_settings[-1]["draws"] if run.earlier_settings else 0
    last = run.num_warmup + run.num_draws * run.thinning
    steps = run.recent_steps(max(run.num_warmup + since * run.thinning, last - HEAT_STEPS))
    alive = np.isfinite(steps["loss"]).all(1) & np.isfinite(steps["discretization_bias"]).all(1)

    def found() -> float:
        if not steps["loss"][alive].size:  # all have diverged, lately or before these steps
            return 1.0
        energy = torch.from_numpy(n_beta * (steps["loss"][alive] - baseline).T)
        return lowering(run.kernel, energy, float(steps["discretization_bias"][alive].mean()), HEAT)

    factor = run.processes.from_first(found)
    if factor < 1:
        run.tune(step_size=factor * run.kernel.settings["step_size"])


def _of_the_last_rung(run: Run, ladder: Ladder, baseline: float) -> Trace:
    """The chains at the posterior's own nβ, with what all rungs cost and how well they mix."""
    trace, state = run.trace(), run.blocks[0].state
    last = slice(ladder.num_rungs - 1, None, ladder.num_rungs)
    rungs = ladder.num_rungs
    facts = {
        "step_size": list(ladder.step_size),
        "num_rungs": rungs,
        "swap_rates": state.swap_rates.tolist(),
        "round_trips": int(state.round_trips.sum()),
        "rungs": rung_means(trace.loss, ladder, baseline),
    }
    kept = {"kernel", "num_warmup", "num_draws", "thinning", "seed", "compile", "threads", "dtype", "device"}
    return replace(
        trace,
        statistics={name: values[last] for name, values in trace.statistics.items()},
        warmup={name: values[last] for name, values in trace.warmup.items()},
        positions=None if trace.positions is None else trace.positions[last],
        diverged=tuple(each._replace(chain=each.chain // rungs) for each in trace.diverged),
        num_gradients=trace.num_gradients + ladder.num_gradients,
        configuration={name: value for name, value in trace.configuration.items() if name in kept} | facts,
    )


def _settled(
    anchor_loss: tuple[float, float], tolerance: float, posterior: LocalPosterior, plan: Plan, trace: Trace
) -> bool:
    baseline, baseline_error = anchor_loss
    if trace.num_draws < MINIMUM_DRAWS:
        return False
    energies, _ = energies_of(posterior, plan, trace, baseline)
    energy = diagnose(energies, window_of(posterior, plan, trace))
    if energy.standard_deviation == 0:
        return True
    allowed = tolerance * max(abs(energy.mean), ABSOLUTE_FLOOR)
    of_baseline = Z_95 * float(posterior.n_beta) * baseline_error
    if of_baseline >= allowed:  # which no draw makes less
        of_baseline = 0.0
    narrow = math.hypot(Z_95 * energy.mcse, of_baseline) <= allowed
    if not (narrow and energy.rhat <= 1.02 and energy.ess >= 400):  # Vehtari et al. 2021, §4: 400 for a stable error
        return False
    # Steps of minibatches are too small to fill what the loss does not see; and a thousand flat directions take longer
    # than the number does: that of the digits network is right when the budget has hardly begun.
    if plan.batch_size is not None or posterior.dim > LARGEST_REFINED:
        return True
    return filled(diagnose(trace.statistics["localization_energy"]), FILLED_RHAT)


def share_of_data(posterior: LocalPosterior, plan: Plan) -> float:
    """The share of the full data in a batch; 1 without batches.

    Args:
        posterior: The target.
        plan: Of the run.

    Returns:
        The share.
    """
    return 1.0 if posterior.data is None or plan.batch_size is None else plan.batch_size / posterior.data.size
