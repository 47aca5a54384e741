"""One sampler on one target within a budget of full-data gradients: what it found, and how good that is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import samplers
from sampler_comparison.targets import Target
from samplers import Kernel, Potential
from samplers.adaptation import Adaptation

WARMUP_SHARE = 0.25  # of the steps after adaptation
LEAST_STEPS = 32


@dataclass(frozen=True)
class Found:
    """What a sampler drew at the target's nβ, with what it spent.

    Attributes:
        loss: ``(chain, draw)``, nats, without warm-up.
        localization_energy: Likewise.
        num_gradients: Full-data gradients of one chain each, all of them.
        seconds: Likewise.
        settings: Of the kernel that drew, for the record.
        facts: Whatever else is worth a line.
    """

    loss: NDArray[np.float64]
    localization_energy: NDArray[np.float64]
    num_gradients: int
    seconds: float
    settings: dict[str, Any]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Populations:
    """What independent populations of weighted particles found at the target's nβ, with what they spent.

    Attributes:
        mean_loss: E[L] by population, nats.
        variance_loss: Var[L] under the law, nats².
        num_gradients: As for :class:`Found`, and so are the others.
        seconds: Likewise.
        settings: Likewise.
        facts: Likewise.
    """

    mean_loss: NDArray[np.float64]
    variance_loss: float
    num_gradients: int
    seconds: float
    settings: dict[str, Any]
    facts: dict[str, Any]


Sampler = Callable[[Target, int, int], Found | Populations]  # target, budget in gradients, seed


def run_chains(
    target: Target,
    budget: int,
    seed: int,
    kernel: Kernel,
    *,
    adapt: Adaptation | None = None,
    potential: Potential | None = None,
    rungs: int = 1,
    spent: int = 0,
    least_warmup: int = 0,
    since: float | None = None,
) -> Found:
    """Chains from the anchor for as many steps as the budget allows; of a ladder, the coldest rung.

    Args:
        target: The target.
        budget: Full-data gradients of all rows together.
        seed: Of everything random.
        kernel: The kernel.
        adapt: Its adaptation, paid from the budget.
        potential: The target's, unless it is a ladder.
        rungs: Of a ladder.
        spent: Gradients taken before, such as for a scale.
        least_warmup: Steps of warm-up at least.
        since: When that began.

    Raises:
        ValueError: Adaptation has spent the budget.
    """
    start = time.perf_counter() if since is None else since
    rows = target.rows // rungs * rungs
    form = {"num_chains": rows, "num_warmup": least_warmup, "seed": seed, "progress": False}
    run = samplers.Run(kernel, target.potential if potential is None else potential, target.anchor, **form)
    if adapt is not None:
        run.adapt(adapt)
    left = budget - spent - run.num_gradients - (rows if kernel.exact else 0)
    steps = left // (rows * kernel.gradients_per_step)
    warmup = max(least_warmup, int(WARMUP_SHARE * steps))
    if steps - warmup < LEAST_STEPS:
        raise ValueError(f"the budget of {budget:,} gradients leaves {steps} steps, {warmup} of them for warm-up")
    run.draw(steps - least_warmup)
    seconds = time.perf_counter() - start
    trace = run.trace()
    chains, draws = slice(rungs - 1, None, rungs), slice(warmup - least_warmup, None)
    accepted = trace.statistics["acceptance_rate"][chains]
    facts: dict[str, Any] = {"acceptance_rate": float(np.nanmean(accepted)), "diverged": len(trace.diverged)}
    if rungs > 1:
        state = run.blocks[0].state
        facts |= {
            "rungs": rungs,
            "swap_rates": state.swap_rates.tolist(),
            "round_trips_of_a_ladder": float(state.round_trips.double().mean()),
        }
    return Found(
        trace.loss[chains, draws],
        trace.statistics["localization_energy"][chains, draws],
        spent + run.num_gradients,
        seconds,
        {name: value for name, value in trace.configuration.items() if name in run.kernel.settings or name == "kernel"},
        facts | {"chains": rows // rungs, "draws": steps - warmup},
    )


def known_mean(target: Target, found: Found | Populations) -> tuple[samplers.Diagnostics, float, float]:
    """Diagnostics of nβ·(loss − loss at the anchor), its standard error, and the lesser ESS."""
    if isinstance(found, Populations):
        means = target.n_beta * (found.mean_loss - target.loss_at_anchor)
        deviation = target.n_beta * math.sqrt(found.variance_loss)
        mcse = float(means.std(ddof=1)) / math.sqrt(len(means))
        size = (deviation / mcse) ** 2
        return samplers.Diagnostics(float(means.mean()), deviation, mcse, size, math.nan), mcse, size
    excess = target.n_beta * (found.loss - target.loss_at_anchor)
    of_loss = samplers.diagnose(excess)
    of_place = samplers.diagnose(found.localization_energy)
    between = float(excess.mean(1).std(ddof=1)) / math.sqrt(len(excess)) if len(excess) > 1 else 0.0
    return of_loss, max(of_loss.mcse, between), min(of_loss.ess, of_place.ess)


def assess(target: Target, found: Found | Populations) -> dict[str, Any]:
    """λ̂ with its error, and effective sample sizes for what they cost, as plain numbers.

    The standard error is the larger of two: that of arviz over all draws, and that of the chains' means taken as
    independent. ESS is that of the mean, which :func:`samplers.diagnose` gives; ``ess_least`` is the smaller of those
    of nβ·loss and of the localiser's energy, the latter being moved by flat directions. Populations give variance /
    (standard error)², the error being that of their spread. Where a chain has diverged λ̂ is not a number.
    """
    cost = {"num_gradients": found.num_gradients, "seconds": found.seconds}
    about = {"settings": found.settings, "facts": found.facts}
    if not np.isfinite(found.mean_loss if isinstance(found, Populations) else found.loss).all():
        lost = found.facts.get("diverged", 0)
        return {"failure": f"{lost} chains or populations left the finite numbers", **cost, **about}
    of_loss, mcse, least = known_mean(target, found)
    combined = math.hypot(mcse, target.truth_error)
    return {
        "llc": of_loss.mean,
        "mcse": mcse,
        "relative_error": of_loss.mean / target.truth - 1,
        "relative_error_mcse": combined / target.truth,
        "z": (of_loss.mean - target.truth) / combined,
        "rhat": of_loss.rhat,
        "ess": of_loss.ess,
        "ess_least": least,
        "ess_per_thousand_gradients": 1e3 * of_loss.ess / found.num_gradients,
        "ess_least_per_thousand_gradients": 1e3 * least / found.num_gradients,
        "ess_per_second": of_loss.ess / found.seconds,
        "ess_least_per_second": least / found.seconds,
        **cost,
        **about,
    }


def measure(target: Target, sampler: Sampler, budget: int, seed: int) -> dict[str, Any]:
    """The assessment of one run, or why there is none."""
    torch.manual_seed(seed)
    try:
        return assess(target, sampler(target, budget, seed))
    except (FloatingPointError, ValueError, LookupError, RuntimeError) as error:
        return {"failure": f"{type(error).__name__}: {error}"}
