"""Chains that did not get to the law: stopped, diverged, still on their way, or in different places."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from samplers import Diagnostics, diagnose
from slt.ladders import LARGEST_DIM
from slt.paths import LARGEST_REFINED
from slt.problems.evidence import Z_95, Z_CERTAIN, Evidence, Problem

RHAT_LIMIT = 1.05  # chains differ by about a third of their spread beyond this; 1.01 would be for quantiles
MINIMUM_ESS = 100.0  # the error of the error is then 1/√200 = 7 %
# Of the localiser's energy, by minibatches, whose steps are too small to fill what the loss does not see, and of more
# than 256 weights: chains that differ by two thirds of their spread, or a mean known to a quarter of it. Of so many
# weights that is a problem where it shows in the number; and in any case beyond the second R̂, at which chains differ by
# more than their spread and have seen little of the law. Of fewer always: on ReLU 4-12-3, where R̂ of this energy was
# 1.4, the number was a tenth too high with an R̂ of 1.03, and its slope in what chains had seen told of two per cent.
SLOW_RHAT, SLOW_ESS, UNSEEN_RHAT = 1.2, 16.0, 1.5
# Of at most 256 weights on full data, where paths start apart (slt.paths), it is a problem by itself. Of chains that
# cannot get from arm to arm of a thin law, R̂ of this energy was 1.2 to 2.5, mostly with that of the number below 1.03.
# A run that goes on by itself does so until the first R̂; where its budget ended between the two, numbers of such laws
# were 2, 4 and 10 % too low, the last by almost six of its errors.
FILLED_RHAT, FULL_DATA_RHAT = 1.05, 1.1
# Of replica exchange: below, neighbouring rungs are apart; a copy that has been at both ends and back is one sample of
# the whole localiser, and of each ladder there should be some.
MINIMUM_SWAP_RATE, MINIMUM_ROUND_TRIPS = 0.1, 5
# Shares of the draws whose means are compared. Chains start at the anchor, and come into the law from one side. Of an
# energy that rises as 1 − e^{−t/τ} over five τ, a first fifth stands out more than a tenth or a third.
EARLY, LATE = 0.2, 0.5
MISSING = 0.5  # of the tolerance, that draws may lack whose chains came from the anchor
GROUPED_RHAT = 1.2  # chains are looked at for groups where they differ by more than this
BLOW_UP = 10.0  # times the usual energy: a step that is too large gets there before it is not a number


def interrupted(evidence: Evidence) -> list[Problem]:
    """Ctrl-C.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    trace = evidence.trace
    if not trace.interrupted:
        return []
    figures: dict[str, float | int | str] = {"chains": trace.num_chains, "draws": trace.num_draws}
    return [Problem("interrupted", figures, "the run was stopped from the keyboard; run it again to its end")]


def diverged(evidence: Evidence) -> list[Problem]:
    """Chains that left the finite numbers: after their energy had risen, or out of a usual one, which is a bad batch.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    trace = evidence.trace
    if not trace.diverged:
        return []
    first = min(trace.diverged, key=lambda divergence: divergence.step)
    before = np.concatenate([trace.warmup["loss"], trace.statistics["loss"]], axis=1)[first.chain]
    finite = before[np.isfinite(before)]
    advice = "lower step_size, or leave it out to have one found"
    figures: dict[str, float | int | str] = {
        "diverged": len(trace.diverged), "chains": trace.num_chains, "first": first.chain, "at step": first.step,
    }  # fmt: skip
    if len(finite) >= 4:
        energy = np.abs(evidence.n_beta * (finite - evidence.baseline))
        figures["nβ·loss over the anchor before"] = float(energy[-1])
        if energy[-1] <= BLOW_UP * max(1.0, float(np.median(energy))):
            advice = (
                "its energy was a usual one before, so that the step is not to blame: look for a batch with NaN or "
                "infinity, or for overflow in the loss"
            )
    return [Problem("diverged_chain", figures, advice)]


def not_converged(evidence: Evidence) -> list[Problem]:
    """The energy: R̂, ESS, and whether the first draws are still on their way from the anchor.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    energy = evidence.diagnostics
    if energy is None:
        if not evidence.trace.surviving.any():
            return []
        advice = "too few draws to tell anything; draw at least 400"
        return [Problem("not_converged", {"draws": evidence.trace.num_draws}, advice)]
    if energy.standard_deviation == 0:
        advice = "the loss was the same in every draw: it does not depend on these weights, or no move was accepted"
        return [Problem("not_converged", {"different losses": 1}, advice)]
    drift = _drift(evidence.energies, energy)
    if not energy.rhat <= RHAT_LIMIT or energy.ess < MINIMUM_ESS or abs(drift) > Z_CERTAIN:
        advice = "draw more (num_draws, num_warmup or budget), or localise more (localization)"
        return [Problem("not_converged", {"rhat": energy.rhat, "ess": energy.ess, "drift (errors)": drift}, advice)]
    missing = _missing_at_the_start(evidence, energy) * abs(evidence.llc)
    if missing > MISSING * evidence.tolerance:
        figures: dict[str, float | int | str] = {
            "of λ̂ missing, from the way of the chains": missing, "tolerance": evidence.tolerance,
            "num_warmup": int(evidence.trace.configuration["num_warmup"]),
        }  # fmt: skip
        return [Problem("not_converged", figures, "chains were on their way from the anchor: raise num_warmup")]
    return _ladder_stands_still(evidence)


def _missing_at_the_start(evidence: Evidence, energy: Diagnostics) -> float:
    r"""The share of λ̂ that draws lack whose chains started at the anchor, at the rate at which they forget.

    .. math:: \frac{\tau}{N} e^{-W/\tau} (1 - e^{-N/\tau})

    of N draws after W, with τ half of the draws per effective one: energies rise as 1 − e^{−t/τ} and are correlated
    as e^{−t/τ}. Zero where chains started apart.

    Args:
        evidence: Of the run.
        energy: Diagnostics of its energies.

    Returns:
        The share, of the λ̂ that the same chains would have in the end.
    """
    configuration = evidence.trace.configuration
    if not configuration.get("common_start") or not energy.ess > 0:
        return 0.0
    draws = evidence.trace.num_draws
    time = 0.5 * draws * len(evidence.energies) / energy.ess
    before = configuration["num_warmup"] / configuration["thinning"]
    return time / draws * math.exp(-before / time) * -math.expm1(-draws / time)


def _drift(energies: NDArray[np.float64], whole: Diagnostics) -> float:
    """The mean of the later half over that of the first fifth, in standard errors of the difference (Geweke 1992)."""
    draws = energies.shape[1]
    early = energies[:, : math.ceil(EARLY * draws)].mean()
    late = energies[:, draws - math.ceil(LATE * draws) :].mean()
    error = whole.mcse * math.sqrt(1 / EARLY + 1 / LATE)
    return float((late - early) / error) if error > 0 else 0.0


def _ladder_stands_still(evidence: Evidence) -> list[Problem]:
    """Whether the rungs of replica exchange are apart: then the last one is a chain like any other."""
    configuration = evidence.trace.configuration
    if "swap_rates" not in configuration:
        return []
    rates, trips, ladders = configuration["swap_rates"], configuration["round_trips"], evidence.trace.num_chains
    if min(rates) >= MINIMUM_SWAP_RATE and trips >= MINIMUM_ROUND_TRIPS * ladders:
        return []
    advice = "copies hardly travel along the ladder of temperatures: draw more (num_draws or budget), or localise more"
    return [
        Problem(
            "not_converged", {"lowest swap rate": min(rates), "round trips": trips, "ladders": ladders}, advice
        )
    ]  # fmt: skip


def slow_directions(evidence: Evidence) -> list[Problem]:
    r"""Flat directions that are not filled, although the loss looks settled.

    The localiser's energy (γ/2)‖w − w*‖² moves along the flat directions, which the loss does not see. Where it is
    still on its way from 0, the law has not been sampled, and valleys farther out may have another loss. Of more than
    256 weights, where chains went far enough to tell, what is open of its mean counts by the slope of the loss in it:
    some directions, such as a constant added to all logits, do not change the loss at all.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    energies = evidence.localization_energies
    if evidence.diagnostics is None or not energies.any():
        return []
    slow = diagnose(energies)
    few = evidence.dim <= LARGEST_REFINED
    of_full_data = FILLED_RHAT if evidence.aimed else FULL_DATA_RHAT
    if filled(slow, of_full_data if few and evidence.full_data else SLOW_RHAT):
        return []
    if not few and slow.rhat <= UNSEEN_RHAT:
        slope = float(np.cov(evidence.energies.ravel(), energies.ravel())[0, 1]) / energies.var()
        if Z_95 * abs(slope) * slow.mcse <= evidence.tolerance:
            return []
    half = energies.shape[1] // 2
    figures: dict[str, float | int | str] = {
        "rhat of the localiser's energy": slow.rhat, "ess of it": slow.ess,
        "its mean in the first half": float(energies[:, :half].mean()),
        "in the second": float(energies[:, half:].mean()),
        "where all weights are free": evidence.dim / 2,
    }  # fmt: skip
    advice = (
        "the loss may look settled, but flat directions are not filled: localise more (localization), or raise budget"
    )
    if evidence.dim <= LARGEST_DIM and evidence.vectorised and "swap_rates" not in evidence.trace.configuration:
        advice += ", or use sampler='replica_exchange'"
    return [Problem("slow_directions", figures, advice)]


def filled(localization_energy: Diagnostics, largest_rhat: float) -> bool:
    """Whether chains agree in the localiser's energy, so that they have seen the same of the flat directions.

    Args:
        localization_energy: Its diagnostics.
        largest_rhat: R̂ at most.

    Returns:
        Whether they do; without a localiser too.
    """
    if localization_energy.standard_deviation == 0:
        return True
    return localization_energy.rhat <= largest_rhat and localization_energy.ess >= SLOW_ESS


def left_the_basin(evidence: Evidence) -> list[Problem]:
    """Chains in different places, or farther from the anchor than the localiser lets them go by itself.

    Where the loss nowhere pulls outward, 0 ≤ E⟨w − w*, nβ∇L⟩ = dim − 2 E[localiser's energy], so that this energy is at
    most dim/2. Chains are taken for groups where a gap between their means is wider than either group, and than the
    errors of the means.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    if evidence.diagnostics is None:
        return []
    energies, dim = evidence.localization_energies, evidence.dim
    advice = (
        "raise localization, so that all chains stay near the anchor; or give a checkpoint at the bottom of its basin"
    )
    most = float(energies.mean(axis=1).max())
    # twice what is allowed, and three standard deviations of a chain that stands still
    if evidence.localization > 0 and most > dim + 3 * math.sqrt(dim / 2):
        farthest = int(energies.mean(axis=1).argmax())
        return [Problem(
            "left_the_basin", {"chain": farthest, "localiser's energy": most, "at most": dim / 2}, advice,
        )]  # fmt: skip
    for name, values in (("nβ·loss", evidence.energies), ("localiser's energy", energies)):
        groups = _groups(values)
        if groups is not None:
            low, high, count = groups
            figures: dict[str, float | int | str] = {f"{name}, lower group": low, "higher group": high,
                                                     "chains in the higher": count}  # fmt: skip
            return [Problem("left_the_basin", figures, advice)]
    return []


def _groups(values: NDArray[np.float64]) -> tuple[float, float, int] | None:
    """Means of two groups of chains, and how many are in the higher one; None where there is one group."""
    if len(values) < 4 or values.shape[1] < 20 or not diagnose(values).rhat > GROUPED_RHAT:
        return None
    means = np.sort(values.mean(axis=1))
    gap = int(np.diff(means).argmax()) + 1
    low, high = means[:gap], means[gap:]
    between = high[0] - low[-1]
    # of chains that stay in place: their halves differ less than the groups
    half = values.shape[1] // 2
    wander = float(np.abs(values[:, :half].mean(axis=1) - values[:, half:].mean(axis=1)).max())
    if between > max(np.ptp(low), np.ptp(high)) and between > wander:
        return float(low.mean()), float(high.mean()), len(high)
    return None
