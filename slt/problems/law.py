"""What shapes λ̂ besides the loss: a localiser that is too strong, a wall, an nβ at which λ̂ still climbs."""

from __future__ import annotations

import math

import numpy as np

from slt.estimators import CrossCheck, cross_check
from slt.problems.evidence import Z_CERTAIN, Evidence, Problem

# −∂log λ̂/∂log γ is γ/(nβh + γ) on a quadratic of curvature h, which is the share of λ that the localiser took. Of the
# 33 tabulated values the two beyond a third have γ = 100, with λ̂ at 0.38 λ and 0.12 λ; the largest at γ = 1 is 0.24.
PINNED = 1 / 3
# Of λ̂, per unit of log nβ, to be told that it climbs. (m − 1)/(log nβ)² is 0.047 for m = 2 at nβ = 100.
CLIMB = 0.05
# The variance of the energy is λ̂ less that derivative. Of laws with a minimum at w*, it is at most a third more than
# λ̂ (λ = 0 and a power law as the next term); twice as much is not a law but a mistake.
EXCESS = 1.0


def of_the_draws(evidence: Evidence) -> CrossCheck | None:
    """What the draws say of λ in several ways; None for minibatch losses, or where there are too few draws.

    Args:
        evidence: Of the run.

    Returns:
        The estimates.
    """
    energy = evidence.diagnostics
    if energy is None or not evidence.full_data or not energy.standard_deviation > 0:
        return None
    try:
        return cross_check(
            evidence.losses, evidence.localization_energies, baseline=evidence.baseline, n_beta=evidence.n_beta,
            baseline_error=evidence.baseline_error,
        )  # fmt: skip
    except ValueError:  # losses that are no finite numbers, or too few of them
        return None


def localization_too_strong(evidence: Evidence) -> list[Problem]:
    """γ shapes the number: with all curvatures equal it would have taken a third of λ.

    −∂log λ̂/∂log γ does not see a direction that γ holds altogether, which adds nothing to λ̂ at any γ nearby.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    if evidence.diagnostics is None or evidence.localization == 0 or not evidence.llc > 0:
        return []
    energy, localization = evidence.energies, evidence.localization_energies
    # minibatch noise averages out of the covariance; its error is from the means of the chains
    products = (energy - energy.mean()) * (localization - localization.mean())
    sensitivity = -float(products.mean()) / evidence.llc
    chains = len(products)
    error = float(products.mean(axis=1).std(ddof=1)) / chains**0.5 / evidence.llc if chains > 1 else np.inf
    if not sensitivity + 2 * error < -PINNED:
        return []
    figures: dict[str, float | int | str] = {
        "∂log λ̂/∂log γ": sensitivity, "γ": evidence.localization,
        "share of weights that γ holds": 2 * float(localization.mean()) / evidence.dim,
    }  # fmt: skip
    advice = "λ̂ is what the localiser leaves of it: lower localization by ten, or raise n_beta"
    return [Problem("localization_too_strong", figures, advice)]


def not_finite_nearby(evidence: Evidence) -> list[Problem]:
    """The law ends among the chains, because the loss or its gradient is not a finite number just beyond.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none; :mod:`slt.edges` says how rarely a law without a wall is named.
    """
    edge = evidence.edge
    if edge is None:
        return []
    figures: dict[str, float | int | str] = {
        "share of proposals that meet it": edge.share,
        "not finite": "gradient" if edge.of_gradient else "loss",
        "loss there": edge.loss if math.isfinite(edge.loss) else str(edge.loss),
        "energy at the edge": edge.energy, "of the draws": edge.energy_of_draws,
    }  # fmt: skip
    if edge.of_gradient:
        advice = (
            "the loss is finite there and its gradient is not, so that no path gets there and λ̂ is of the rest alone. "
            "Look for torch.where over a root, logarithm or quotient, whose argument needs a mask of its own: "
            "torch.where(z > 0, torch.where(z > 0, z, 1).sqrt(), 0); and for sqrt or norm at zero, which need an eps"
        )
    else:
        advice = (
            "the density is taken for zero there, and λ̂ is of the rest alone. Use a form of the loss that stays "
            "finite, such as binary_cross_entropy_with_logits for the logarithm of a sigmoid, or log_softmax; where "
            "the loss is meant to end there, λ̂ is right for the law within that wall"
        )
    return [Problem("not_finite_nearby", figures, advice)]


def estimates_disagree(evidence: Evidence, check: CrossCheck | None) -> list[Problem]:
    """The variance of the energy is above λ̂ by four standard errors, and above twice λ̂: baseline or draws are wrong.

    Args:
        evidence: Of the run.
        check: Of its draws.

    Returns:
        The problem, or none. Of healthy runs of any law with a minimum at w*, fewer than 1 in 3,000 are named.
    """
    if check is None:
        return []
    excess = -check.sensitivity_to_n_beta.value
    if not (
        excess > Z_CERTAIN * check.sensitivity_to_n_beta.mcse
        and excess > max(evidence.tolerance, EXCESS * abs(evidence.llc))
    ):
        return []
    figures: dict[str, float | int | str] = {
        "λ̂": evidence.llc, "variance of the energy": check.variance.value, "error": check.variance.mcse,
    }  # fmt: skip
    advice = (
        "the energy varies more than its mean allows: the anchor is above the minimum, or chains are in different "
        "places. Train on, or raise localization"
    )
    return [Problem("estimates_disagree", figures, advice)]


def multiplicity_bias(evidence: Evidence, check: CrossCheck | None) -> list[Problem]:
    """A note: λ̂ still climbs with nβ, so that λ is above it. The interval is of λ̂, and right.

    Args:
        evidence: Of the run.
        check: Of its draws.

    Returns:
        The note, or none.
    """
    if check is None:
        return []
    climb, error = check.sensitivity_to_n_beta.value, check.sensitivity_to_n_beta.mcse
    if not (climb > 3 * error and climb > CLIMB * abs(evidence.llc)):
        return []
    figures: dict[str, float | int | str] = {"∂λ̂/∂log nβ": climb, "error": error, "n_beta": evidence.n_beta}
    advice = "λ is above this λ̂, by multiplicity m > 1 or by the localiser: read it as λ̂ at this nβ and γ"
    return [Problem("multiplicity_bias", figures, advice)]
