"""The verdict: named problems, the evidence for each, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from samplers import Diagnostics, Trace

RHAT_LIMIT = 1.05  # chains differ by about a third of their spread beyond this; 1.01 would be for quantiles
MINIMUM_ESS = 100.0  # the error of the error is then 1/√200 = 7 %
MINIMUM_ACCEPTANCE = 0.25  # MALA's optimum is 0.574; its quarter of smaller steps alone gives 0.2
# Of paths with steps over all scales, log-uniform from 0.15 walls' widths: those below two widths are accepted, a share
# of ln(2/0.15) / ln(√(nβA/γ)/0.15), which is 0.29 where nβA/γ is 10⁶ and 0.17 where it is 10¹².
MINIMUM_ACCEPTANCE_OVER_SCALES = 0.05
# Of replica exchange: below, neighbouring rungs are apart; a copy that has been at both ends and back is one sample of
# the whole localiser, and of each ladder there should be some.
MINIMUM_SWAP_RATE, MINIMUM_ROUND_TRIPS = 0.1, 5
Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal law


class Problem(NamedTuple):
    """A reason why a number cannot be trusted.

    Attributes:
        name: Such as ``not_converged``.
        evidence: The figures that show it.
        advice: What to change.
    """

    name: str
    evidence: dict[str, float | int | str]
    advice: str

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {_figure(value)}" for name, value in self.evidence.items())
        return f"{self.name} ({figures}): {self.advice}"


@dataclass(frozen=True)
class Verdict:
    """Whether an estimate can be trusted.

    Attributes:
        problems: What was found; empty for a healthy run.
    """

    problems: tuple[Problem, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the problems."""
        return tuple(problem.name for problem in self.problems)

    def __str__(self) -> str:
        return "healthy" if self.ok else ", ".join(self.names)


def judge(
    trace: Trace,
    *,
    llc: float,
    diagnostics: Diagnostics | None,
    baseline: float,
    n_beta: float,
    bias: float,
    tolerance: float,
    half_width: float,
    aimed: bool,
    random_values: tuple[float, float] | None,
    num_survivors: int,
    rounding: float,
) -> Verdict:
    """The verdict on a run.

    Args:
        trace: Its draws.
        llc: λ̂ of the surviving chains.
        diagnostics: Of nβ·loss over the surviving chains; None where none survived.
        baseline: L_n(w*), in nats.
        n_beta: nβ.
        bias: Predicted excess of λ̂ due to the step size.
        tolerance: Half-width of the interval that is asked for; the bias must stay below it too.
        half_width: Half-width of the interval.
        aimed: Whether the run was to go on until ``half_width`` ≤ ``tolerance``.
        random_values: Two losses at the same weights, where they differ.
        num_survivors: Chains that did not diverge.
        rounding: nβ times the resolution of the loss at the anchor in the dtype of the weights.

    Returns:
        The verdict.
    """
    problems: list[Problem] = []
    if trace.interrupted:
        problems.append(
            Problem(
                "interrupted",
                {"chains": trace.num_chains, "draws": trace.num_draws},
                "the run was stopped from the keyboard; run it again to its end",
            )
        )
    if trace.diverged:
        first = trace.diverged[0]
        problems.append(
            Problem(
                "diverged_chain",
                {"diverged": trace.num_chains - num_survivors, "chains": trace.num_chains, "first": first.chain,
                 "at step": first.step},
                "lower step_size, or leave it out to have one found",
            )
        )  # fmt: skip
    if random_values is not None:
        problems.append(
            Problem(
                "stochastic_forward",
                {"loss": random_values[0], "again": random_values[1]},
                "the loss is random at fixed weights: use eval mode, or remove Dropout, noise and augmentation from it",
            )
        )
    if diagnostics is None:
        if num_survivors:
            advice = "too few draws to tell anything; draw at least 400"
            problems.append(Problem("not_converged", {"draws": trace.num_draws}, advice))
        return Verdict(tuple(problems))
    if diagnostics.standard_deviation == 0:
        problems.append(
            Problem(
                "not_converged",
                {"different losses": 1},
                "the loss was the same in every draw: it does not depend on these weights, or no move was accepted",
            )
        )
    elif not diagnostics.rhat <= RHAT_LIMIT or diagnostics.ess < MINIMUM_ESS:
        problems.append(
            Problem(
                "not_converged",
                {"rhat": diagnostics.rhat, "ess": diagnostics.ess},
                "draw more (num_draws, num_warmup or budget), or localise more (localization)",
            )
        )
    problems += _ladder_stands_still(trace)
    if rounding > tolerance:
        problems.append(
            Problem(
                "low_precision",
                {"rounding of nβ·loss": rounding, "tolerance": tolerance},
                "the loss is too large for its dtype at this nβ: use float64, or subtract a constant from the loss",
            )
        )
    acceptance = float(trace.statistics["acceptance_rate"][trace.surviving].mean())
    if bias > tolerance:
        problems.append(
            Problem(
                "step_size_too_large",
                {"predicted bias": bias, "tolerance": tolerance},
                f"lower step_size by a factor of {bias / tolerance:.1f} or more, or leave it out",
            )
        )
    elif "swap_rates" in trace.configuration:
        if acceptance < MINIMUM_ACCEPTANCE_OVER_SCALES:
            problems.append(
                Problem(
                    "step_size_too_large",
                    {"acceptance rate": acceptance, "expected": MINIMUM_ACCEPTANCE_OVER_SCALES},
                    "the walls are narrower than the smallest step that was found: raise localization, or use "
                    "sampler='mala'",
                )
            )
    elif acceptance < MINIMUM_ACCEPTANCE:
        problems.append(
            Problem(
                "step_size_too_large",
                {"acceptance rate": acceptance, "expected": MINIMUM_ACCEPTANCE},
                "most proposals are refused; lower step_size, or leave it out to have one found",
            )
        )
    problems += _lower_nearby(trace, llc, diagnostics, baseline, n_beta)
    if aimed and half_width > tolerance:
        problems.append(
            Problem(
                "imprecise",
                {"half-width": half_width, "tolerance": tolerance},
                "the budget was spent before the interval was narrow enough: raise budget or tolerance",
            )
        )
    return Verdict(tuple(problems))


def _ladder_stands_still(trace: Trace) -> list[Problem]:
    """Whether the rungs of replica exchange are apart: then the last one is a chain like any other."""
    if "swap_rates" not in trace.configuration:
        return []
    rates, trips = trace.configuration["swap_rates"], trace.configuration["round_trips"]
    if min(rates) >= MINIMUM_SWAP_RATE and trips >= MINIMUM_ROUND_TRIPS * trace.num_chains:
        return []
    return [
        Problem(
            "not_converged",
            {"lowest swap rate": min(rates), "round trips": trips, "ladders": trace.num_chains},
            "copies hardly travel along the ladder of temperatures: draw more (num_draws or budget), or localise more",
        )
    ]


def _lower_nearby(trace: Trace, llc: float, diagnostics: Diagnostics, baseline: float, n_beta: float) -> list[Problem]:
    """Whether the loss falls away from the anchor, in units of 1/nβ: beyond error on average, or by a nat in a draw."""
    losses = trace.loss[trace.surviving]
    # a minibatch loss is low by chance; only the mean over a chain tells
    lowest = float(losses.min() if trace.configuration.get("full_data") else losses.mean(axis=1).min())
    fall = n_beta * (baseline - lowest)
    if llc + Z_95 * diagnostics.mcse < 0 or (trace.configuration.get("full_data") and fall > 1.0):
        return [
            Problem(
                "not_at_a_minimum",
                {"loss falls by (1/nβ)": fall, "llc": llc},
                "the anchor is not a minimum at this nβ: train on, or read λ̂ as a lower bound that depends on γ",
            )
        ]
    return []


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
