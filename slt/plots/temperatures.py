"""λ̂ along a ladder of inverse temperatures, at fixed γ or in a ball."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from slt.estimate import LLCEstimate, Rungs
from slt.plots.style import ACCENT, DARK, LIGHT, finish
from slt.problems.evidence import Z_95

if TYPE_CHECKING:
    from slt.rlct_estimate import RLCTEstimate

FITTED = 30.0  # the largest nβ over the smallest of those through whose mean losses a line is drawn


def plot_temperatures(estimates: LLCEstimate | Sequence[LLCEstimate], axes: Sequence[Axes] | None = None) -> list[Axes]:
    r"""λ̂ along a ladder of nβ with the slope that each rung predicts, and the mean loss against 1/nβ with a line.

    .. math:: \frac{\partial\hat\lambda}{\partial\log n\beta} = \hat\lambda - (n\beta)^2\,\mathrm{Var}[L_n],
              \qquad E[L_n] = L_* + \lambda / n\beta + \ldots

    On the left short lines are the derivative by the variance of the rung's own draws: they point at the next rung if
    the sampler is right. On the right the line is fitted over the coldest rungs, those within a factor of thirty of
    the last, and its slope is a λ̂ that knows nothing of L(w*).

    Args:
        estimates: One estimate by replica exchange, which has all its rungs; or several of one model and γ on full
            data, each at its own nβ.
        axes: Two axes to draw on; a new figure by default.

    Returns:
        The two axes.

    Raises:
        ValueError: An estimate has no rungs, or several are not of one γ, or there are fewer than two nβ.

    Source:
        Watanabe 2013, Corollary 3 (λ as the slope over temperatures).
    """
    rungs, localization = _rungs(estimates)
    if axes is None:
        axes = list(plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")[1])
    left, right = axes
    place, slope = np.log(rungs.n_beta), rungs.llc - rungs.variance
    reach = 0.4 * float(np.median(np.diff(place)))
    for center, level, rise in zip(place, rungs.llc, slope, strict=True):
        ends = np.array([-reach, reach])
        left.plot(np.exp(center + ends), level + rise * ends, color=ACCENT, linewidth=1.5, zorder=3)
    left.plot([], [], color=ACCENT, linewidth=1.5, label="slope by the variance of each")
    left.errorbar(
        rungs.n_beta, rungs.llc, yerr=Z_95 * rungs.mcse, fmt="o", color=DARK, markersize=4, capsize=2, linewidth=1.0,
        label="λ̂(nβ), 95 %",
    )  # fmt: skip
    left.set(xscale="log", xlabel="nβ", ylabel="λ̂", title=f"γ {localization:.4g}")
    left.legend(frameon=False, loc="best")
    _mean_losses(right, rungs)
    finish((left, right))
    return [left, right]


def _rungs(estimates: LLCEstimate | Sequence[LLCEstimate]) -> tuple[Rungs, float]:
    if isinstance(estimates, LLCEstimate):
        if estimates.rungs is None:
            raise ValueError(
                f"estimates: one by {estimates.sampler}, at one nβ; expected one by replica exchange, or several."
            )
        return estimates.rungs, estimates.localization
    ladder = sorted(estimates, key=lambda each: each.n_beta)
    if len({each.localization for each in ladder}) != 1 or len({each.n_beta for each in ladder}) < 2:
        raise ValueError(
            f"estimates: {len(ladder)}; expected several of one γ, at two nβ at least, or one by replica exchange."
        )
    n_beta, llc, mcse = (np.array([getattr(each, name) for each in ladder]) for name in ("n_beta", "llc", "mcse"))
    variance = np.array([each.cross_check().variance.value for each in ladder])
    return Rungs(n_beta, llc, mcse, variance), ladder[0].localization


def _mean_losses(axes: Axes, rungs: Rungs) -> None:
    """Of the coldest rungs, with a line by least squares, weighted by their errors."""
    cold = rungs.n_beta >= rungs.n_beta.max() / FITTED
    if cold.sum() < 2:
        cold = np.arange(len(cold)) >= len(cold) - 2
    inverse, energy = 1 / rungs.n_beta[cold], rungs.llc[cold] / rungs.n_beta[cold]
    error = np.maximum(rungs.mcse[cold], 1e-12) / rungs.n_beta[cold]
    design = np.stack([np.ones_like(inverse), inverse], 1) / error[:, None]
    covariance = np.linalg.inv(design.T @ design)
    level, slope = covariance @ design.T @ (energy / error)
    ends = np.array([0.0, float(inverse.max())])
    axes.plot(ends, level + slope * ends, color=ACCENT, linewidth=1.5, label=f"fitted line, of slope {slope:.3g}")
    axes.errorbar(
        inverse, energy, yerr=Z_95 * error, fmt="o", color=DARK, markersize=4, capsize=2, label="E[L] − L(w*)"
    )
    axes.plot(0, 0, "o", color=DARK, markerfacecolor="white", markersize=5, label="L(w*) itself, not fitted")
    axes.ticklabel_format(style="sci", scilimits=(-2, 3), useMathText=True)
    axes.set(xlabel="1/nβ", ylabel="mean loss above that at w*   [nats]")
    axes.legend(frameon=False, loc="best")


def plot_rlct(estimate: RLCTEstimate, axes: Axes | None = None) -> list[Axes]:
    """The curve λ̂(nβ) with its error and its slope's counterpart, the variance, and λ with the 95 % interval.

    Args:
        estimate: The estimate.
        axes: To draw on; a new figure by default.

    Returns:
        The axes, in a list.
    """
    if axes is None:
        axes = plt.subplots(figsize=(7, 4), layout="constrained")[1]
    curve, (low, high) = estimate.curve, estimate.interval
    place = np.log(curve.n_beta)
    if np.isfinite(high):
        axes.axhspan(low, high, color=ACCENT, alpha=0.15, linewidth=0, label="95 % interval of λ")
    multiplicity = "undecided" if estimate.multiplicity is None else str(estimate.multiplicity)
    known = bool(np.isfinite(estimate.rlct))
    if known:
        axes.axhline(estimate.rlct, color=ACCENT, linewidth=1.5, label=f"λ = {estimate.rlct:.3g}, m {multiplicity}")
    else:
        axes.plot([], [], " ", label="λ: no number, since nothing was fitted")
    axes.plot(place, curve.variance, ".", color=LIGHT, markersize=4, label="(nβ)² Var[L] = λ̂ − ∂λ̂/∂log nβ")
    fitted = curve.fitted & known
    for mask, face, label in ((fitted, DARK, "λ̂(nβ), fitted"), (~fitted, "white", "λ̂(nβ), not fitted")):
        if mask.any():
            axes.errorbar(
                place[mask], curve.llc[mask], yerr=Z_95 * curve.mcse[mask], fmt="o", color=DARK, markersize=4,
                markerfacecolor=face, linewidth=1.0, label=label,
            )  # fmt: skip
    levels = np.array([*curve.llc, estimate.rlct, high])
    levels = levels[np.isfinite(levels)]
    top, bottom = 1.25 * levels.max(initial=0.0), 1.25 * levels.min(initial=0.0)  # 0 where none is negative
    axes.set(xlabel="log nβ", ylabel="learning coefficient", ylim=(bottom, top if top > 0 else 1.0))
    axes.set_title(str(estimate.verdict).replace(", ", ",\n"))
    axes.legend(frameon=False, loc="best")
    finish((axes,))
    return [axes]
