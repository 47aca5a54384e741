"""The verdict: named problems, the evidence for each, and what to do about it.

A *problem* is a reason why the number, or its interval, cannot be believed; one is enough for a verdict that is not ok.
A *note* is what to know about a number that can.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from slt.problems.anchor import no_minimum, noisy_baseline, not_at_a_minimum, not_looked_around
from slt.problems.chains import diverged, interrupted, left_the_basin, not_converged, slow_directions
from slt.problems.evidence import Z_95, Evidence, Problem
from slt.problems.law import (
    estimates_disagree,
    localization_too_strong,
    multiplicity_bias,
    not_finite_nearby,
    of_the_draws,
)
from slt.problems.precision import imprecise, low_precision, not_a_mean, stochastic_forward, wrong_gradient
from slt.problems.steps import gradient_noise, step_size_too_large

__all__ = ["Z_95", "Evidence", "Problem", "Verdict", "judge"]


@dataclass(frozen=True)
class Verdict:
    """Whether an estimate can be trusted.

    Attributes:
        problems: What was found; empty for a healthy run.
        notes: What to know about a number that can be trusted; they leave the verdict ok.
    """

    problems: tuple[Problem, ...] = field(default=())
    notes: tuple[Problem, ...] = field(default=())

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


def judge(evidence: Evidence) -> Verdict:
    """The verdict on a run.

    Args:
        evidence: Its figures.

    Returns:
        The verdict.
    """
    problems = [*interrupted(evidence), *diverged(evidence), *stochastic_forward(evidence.random_values)]
    problems += [*not_a_mean(evidence.uneven), *wrong_gradient(evidence), *not_finite_nearby(evidence)]
    chains = not_converged(evidence)
    if evidence.diagnostics is None:
        return Verdict((*problems, *chains, *no_minimum(evidence)))
    chains += slow_directions(evidence) + left_the_basin(evidence)
    check = of_the_draws(evidence)
    problems += [
        *chains,
        *low_precision(evidence),
        *step_size_too_large(evidence),
        *gradient_noise(evidence, tuple(problem.name for problem in chains)),
        *localization_too_strong(evidence),
        *(no_minimum(evidence) or not_at_a_minimum(evidence)),
        *noisy_baseline(evidence),
    ]
    if not problems:
        problems += estimates_disagree(evidence, check)
    problems += imprecise(evidence)
    return Verdict(tuple(problems), (*multiplicity_bias(evidence, check), *not_looked_around(evidence)))
