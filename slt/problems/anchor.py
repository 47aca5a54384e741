"""Anchors at which λ̂ does not mean what it should: no minimum there, none anywhere, or a loss that is not known."""

from __future__ import annotations

from slt.problems.evidence import Z_95, Evidence, Problem

# Nats by which nβ·loss may fall nearby, since λ̂ is lower by as much: the tolerance, and at most one. Of a large λ̂
# a descent of sixty evaluations finds a part of the fall.
LARGEST_FALL = 1.0


def not_at_a_minimum(evidence: Evidence) -> list[Problem]:
    """The loss falls away from the anchor: by more than the tolerance in a descent or a full-data draw, or on average.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    energy = evidence.diagnostics
    around = evidence.surroundings
    # a minibatch loss is low by chance; only the mean over a chain tells
    energies = evidence.energies
    fall = 0.0
    if energies.size:
        fall = -float(energies.min() if evidence.full_data else energies.mean(axis=1).min())
    negative = energy is not None and evidence.llc + Z_95 * energy.mcse + _doubt(evidence) < 0
    allowed = min(LARGEST_FALL, evidence.tolerance) + evidence.rounding
    seen = negative or (evidence.full_data and fall > allowed + _doubt(evidence))
    figures: dict[str, float | int | str] = {}
    if around is not None:
        seen = seen or around.fall_of_potential > allowed
        figures = {"nearby": around.fall, "at a distance of": around.distance}
    if not seen:
        return []
    return [
        Problem(
            "not_at_a_minimum",
            {"loss falls by (1/nβ)": max(fall, float(figures.get("nearby", fall))), **figures, "llc": evidence.llc},
            "the anchor is not a minimum at this nβ, and λ̂ is lower by what the loss falls: train on, on the full "
            "data, or read λ̂ as a lower bound",
        )
    ]


def not_looked_around(evidence: Evidence) -> list[Problem]:
    """A note that nothing is known of what lies around the anchor, where the run was too short to pay for a look.

    Args:
        evidence: Of the run.

    Returns:
        The note, or none.
    """
    if evidence.surroundings is not None or evidence.trace.interrupted or evidence.random_values is not None:
        return []
    advice = (
        "the run took fewer than twelve full-data gradients, so that none were spent on a descent from w*: of a loss "
        "that falls nearby λ̂ tells by being negative alone"
    )
    return [Problem("not_looked_around", {"draws of a chain": evidence.trace.num_draws}, advice)]


def no_minimum(evidence: Evidence) -> list[Problem]:
    """The loss falls forever as the weights grow: λ̂ is that of the localiser's reach.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    around = evidence.surroundings
    if around is None or not around.falls_forever:
        return []
    last = around.outward[-1]
    figures: dict[str, float | int | str] = {
        "loss at w*": evidence.baseline, "farther out": last,
        "falls by (1/nβ)": evidence.n_beta * (evidence.baseline - last),
    }  # fmt: skip
    advice = (
        "the loss falls to nothing as the weights grow (the data are separated), so that there is no minimum and the "
        "localiser alone holds the weights: add weight decay or label smoothing to loss_fn, or more data"
    )
    return [Problem("no_minimum", figures, advice)]


def noisy_baseline(evidence: Evidence) -> list[Problem]:
    """L_n(w*) is known with an error that decides the number.

    Args:
        evidence: Of the run.

    Returns:
        The problem, or none.
    """
    error = _doubt(evidence)
    if not error > evidence.tolerance:
        return []
    figures: dict[str, float | int | str] = {
        "95 % error of nβ·L(w*)": error, "tolerance": evidence.tolerance, "loss at w*": evidence.baseline,
    }  # fmt: skip
    wanted = (error / evidence.tolerance) ** 2
    advice = f"raise anchor_samples by a factor of {wanted:.1f} or more, or leave it out for the full data"
    return [Problem("noisy_baseline", figures, advice)]


def _doubt(evidence: Evidence) -> float:
    """95 % error of nβ·L(w*), nats."""
    return Z_95 * evidence.n_beta * evidence.baseline_error
