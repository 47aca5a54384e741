"""Losses that are not what is sampled, or not known well enough: chance, no mean, rounding, a spent budget."""

from __future__ import annotations

import math

from slt.problems.evidence import Z_95, Evidence, Problem


def stochastic_forward(random_values: tuple[float, float] | None) -> list[Problem]:
    """Two evaluations at the same weights differ.

    Args:
        random_values: The two, where they differ; None elsewhere.

    Returns:
        The problem, or none.
    """
    if random_values is None:
        return []
    once, again = random_values
    advice = "the loss is random at fixed weights: use eval mode, or remove Dropout, noise and augmentation from it, "
    advice += "and whatever else it reads that changes on the way"
    return [Problem("stochastic_forward", {"loss": once, "again": again}, advice)]


def not_a_mean(uneven: tuple[float, float] | None) -> list[Problem]:
    """The loss of a batch is not the mean over its samples, which nβ multiplies and minibatches estimate.

    Args:
        uneven: The loss of a few samples, and the mean of their losses, where the first is no mean; None elsewhere.

    Returns:
        The problem, or none.
    """
    if uneven is None:
        return []
    together, alone = uneven
    figures: dict[str, float | int | str] = {"loss of samples together": together, "apart": alone}
    advice = (
        "outputs (batch, 1) beside targets (batch,), which broadcast, a mean that is weighted within each batch, as by "
        "classes or over tokens that are no padding, a root or logarithm of a mean, or a loss of each sample that "
        "depends on the others of its batch: return a negative log likelihood of each by itself, (batch,)"
    )
    return [Problem("not_a_mean", figures, advice)]


def wrong_gradient(evidence: Evidence) -> list[Problem]:
    """The loss does not rise as its gradient says on the way to where chains are, and they follow the gradient alone.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    work = evidence.work
    if work is None or not work.differ(evidence.tolerance):  # where a part has no gradient, λ̂ is wrong by as much
        return []
    figures: dict[str, float | int | str] = {
        "rise of nβ·loss to where chains are": work.rise, "work of its gradient, off by": math.sqrt(work.square)
    }  # fmt: skip
    advice = (
        "a part of the loss is detached, or rounded with its gradient passed straight through, or the loss reads what "
        "has no gradient (the row of an embedding at its padding_idx: mask it, or set padding_idx to None), or jumps: "
        "the chains sample what the gradient belongs to. Use the loss that was meant, or sampler='hmc' or 'mala', "
        "which know the loss itself"
    )
    return [Problem("wrong_gradient", figures, advice)]


def low_precision(evidence: Evidence) -> list[Problem]:
    """nβ·loss is rounded by more than the tolerance, or changes by as much when the weights are.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    tolerance = evidence.tolerance
    if abs(evidence.llc) > evidence.dim / 2:  # which no learning coefficient is: rounding itself makes it so large
        tolerance *= evidence.dim / 2 / abs(evidence.llc)
    if evidence.rounding_of_positions > tolerance:
        figures: dict[str, float | int | str] = {
            "rise of nβ·loss by rounding of the weights": evidence.rounding_of_positions,
            "tolerance": tolerance, "dtype": evidence.dtype,
        }  # fmt: skip
        advice = "numbers of this dtype are farther apart than the law is wide: use model.double(), with the data too"
        return [Problem("low_precision", figures, advice)]
    if not evidence.rounding > tolerance:
        return []
    figures = {"rounding of nβ·loss": evidence.rounding, "tolerance": tolerance, "dtype": evidence.dtype}
    sixteen = evidence.dtype in ("bfloat16", "float16")
    advice = (
        "the module computes in sixteen bits: sample model.float(), with the data in float32 too"
        if sixteen
        else "the loss is too large for its dtype at this nβ, or was before a constant was taken off: use float64, or "
        "take constants off the loss of each sample, where they arise"
    )
    return [Problem("low_precision", figures, advice)]


def imprecise(evidence: Evidence) -> list[Problem]:
    """The budget was spent before the interval was narrow enough.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    half_width, of_baseline = evidence.half_width, Z_95 * evidence.n_beta * evidence.baseline_error
    if of_baseline > evidence.tolerance:  # which is named, and no budget makes less
        half_width = math.sqrt(max(half_width**2 - of_baseline**2, 0.0))
    if not evidence.aimed or evidence.trace.interrupted or not half_width > evidence.tolerance:
        return []
    figures: dict[str, float | int | str] = {"half-width": half_width, "tolerance": evidence.tolerance}
    advice = "the budget was spent before the interval was narrow enough: raise budget or tolerance"
    return [Problem("imprecise", figures, advice)]
