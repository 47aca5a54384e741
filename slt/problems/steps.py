"""Steps that are too large for the law, and gradients that are too noisy for the step."""

from __future__ import annotations

import math

from slt.problems.evidence import Evidence, Problem

MINIMUM_ACCEPTANCE = 0.25  # MALA's optimum is 0.574; its quarter of smaller steps alone gives 0.2
# Of paths with steps over all scales, log-uniform from 0.15 walls' widths: those below two widths are accepted, a share
# of ln(2/0.15) / ln(√(nβA/γ)/0.15), which is 0.29 where nβA/γ is 10⁶ and 0.17 where it is 10¹².
MINIMUM_ACCEPTANCE_OVER_SCALES = 0.05
NO_NOISE = 1e-6  # of the tolerance: rounding, where every batch is all of the data
NOISE_SHARE = 0.5  # of the predicted bias: the batch is to blame, rather than curvature


def step_size_too_large(evidence: Evidence) -> list[Problem]:
    """A predicted bias beyond the tolerance, or one that is not known, or moves that are refused.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    trace = evidence.trace
    acceptance = float(trace.statistics["acceptance_rate"][trace.surviving].mean())
    bias, tolerance = evidence.bias, evidence.tolerance
    if bias > tolerance:
        if evidence.noise_bias > NOISE_SHARE * bias:
            return []  # named by its cause
        figures: dict[str, float | int | str] = {"predicted bias": bias, "tolerance": tolerance}
        advice = f"lower step_size by a factor of {bias / tolerance:.1f} or more, or leave it out"
    elif math.isnan(bias):
        figures = {"predicted bias": bias, "tolerance": tolerance}
        advice = "the bias of this sampler's step is not known with minibatches: leave batch_size out, or use 'baoab'"
    elif "swap_rates" in trace.configuration:
        if acceptance >= MINIMUM_ACCEPTANCE_OVER_SCALES:
            return []
        figures = {"acceptance rate": acceptance, "expected": MINIMUM_ACCEPTANCE_OVER_SCALES}
        advice = (
            "the walls are narrower than the smallest step that was found: raise localization, or use sampler='mala'"
        )
    elif acceptance < MINIMUM_ACCEPTANCE:
        figures = {"acceptance rate": acceptance, "expected": MINIMUM_ACCEPTANCE}
        advice = "most proposals are refused; lower step_size, or leave it out to have one found"
    else:
        return []
    return [Problem("step_size_too_large", figures, advice)]


def gradient_noise(evidence: Evidence, others: tuple[str, ...]) -> list[Problem]:
    r"""Minibatch noise that biases the number, or that keeps the step so small that the chains do not arrive.

    The predicted bias is (ε/8)⟨nβ∇L̂, ĝ⟩, of which (ε/8) E‖nβ(∇L̂ − ∇L)‖² is noise; that part is measured at the anchor.

    Args:
        evidence: Of the run.
        others: Names of the problems of its chains.

    Returns:
        The problem, or none.
    """
    if not evidence.noise_bias > NOISE_SHARE * evidence.bias or evidence.batch_size is None:
        return []
    if evidence.noise_bias < NO_NOISE * evidence.tolerance:
        return []
    too_much = evidence.bias > evidence.tolerance
    if not too_much and not {"not_converged", "slow_directions"} & set(others):
        return []
    figures: dict[str, float | int | str] = {
        "predicted bias": evidence.bias, "of noise": evidence.noise_bias, "tolerance": evidence.tolerance,
        "batch_size": evidence.batch_size,
    }  # fmt: skip
    if too_much:
        wanted = math.ceil(evidence.batch_size * evidence.bias / evidence.tolerance)
        larger = f"make batches of {wanted} samples" if evidence.own_batches else f"raise batch_size to {wanted}"
        advice = f"{larger} or more, lower step_size as much, or set control_variates=True"
    else:
        larger = "make larger batches" if evidence.own_batches else "raise batch_size"
        advice = (
            f"noise keeps the step so small that chains do not arrive: {larger}, set control_variates=True, or use "
            "full data (hmc)"
        )
    return [Problem("gradient_noise", figures, advice)]
