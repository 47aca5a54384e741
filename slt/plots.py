"""Every figure that the toolkit draws. Light, labelled with units, readable in grey; takes and returns axes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from slt.estimate import LLCEstimate
from slt.stages import Stage, find_stages

if TYPE_CHECKING:
    from slt.known.validate import Validation
    from slt.rlct_estimate import RLCTEstimate
    from slt.sweep_table import Sweep

DARK, LIGHT, ACCENT = "#1f3b57", "#9fb4c7", "#c05a2b"


def plot_estimate(estimate: LLCEstimate, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Two panels: nβ(L − L*) of every draw, and the running λ̂ of every chain with the final interval.

    Args:
        estimate: The estimate.
        axes: Two axes to draw on; a new figure by default.

    Returns:
        The two axes.
    """
    if axes is None:
        axes = list(plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")[1])
    left, right = axes
    warmup = estimate.n_beta * (estimate.trace.warmup["loss"] - estimate.loss_at_anchor)
    energy = estimate.n_beta * (estimate.trace.loss - estimate.loss_at_anchor)
    thinning = estimate.config["thinning"][0]
    before = np.arange(-warmup.shape[1], 0)
    after = np.arange(energy.shape[1]) * thinning
    for chain, values in enumerate(energy):
        style = {"linewidth": 0.5, "alpha": 0.7, "color": plt.get_cmap("Blues")(0.45 + 0.5 * chain / len(energy))}
        left.plot(before, warmup[chain], **{**style, "color": "0.8"})
        left.plot(after, values, **style)
        count = np.arange(1, len(values) + 1)
        right.plot(after, np.cumsum(values) / count, **{**style, "linewidth": 1.0})
    left.axvline(0, color="0.4", linewidth=0.8, linestyle=":")
    left.set(xlabel="step of the chain (0: end of warm-up)", ylabel="nβ (L − L*)   [nats]", title="loss traces")
    low, high = estimate.interval
    if np.isfinite(low):
        right.axhspan(low, high, color=ACCENT, alpha=0.15, linewidth=0, label="95 % interval")
        right.axhline(estimate.llc, color=ACCENT, linewidth=1.5, label=f"λ̂ = {estimate.llc:.3g}")
        right.legend(frameon=False, loc="best")
    right.set(xlabel="step of the chain", ylabel="running λ̂", title=str(estimate.verdict).replace(", ", ",\n"))
    _finish((left, right))
    return [left, right]


def plot_sweep(sweep: Sweep, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """λ̂ with 95 % intervals over training, and the training loss below; hollow marks where there is a problem.

    Shaded stretches are plateaus, and dotted lines the boundaries between stages: see :func:`slt.stages.find_stages`.

    Args:
        sweep: The sweep. Rows without an estimate are marked on the axis.
        axes: Two axes to draw on; a new figure by default.

    Returns:
        The two axes.
    """
    if axes is None:
        axes = list(plt.subplots(2, 1, figsize=(7, 5.6), sharex=True, layout="constrained", height_ratios=[2, 1])[1])
    top, bottom = axes
    steps = [place if row.step is None else row.step for place, row in enumerate(sweep.rows)]
    done = [(step, row.estimate) for step, row in zip(steps, sweep.rows, strict=True) if row.estimate is not None]
    positions = np.array([step for step, _ in done], dtype=float)
    values = np.array([estimate.llc for _, estimate in done])
    low = values - np.array([estimate.interval[0] for _, estimate in done])
    high = np.array([estimate.interval[1] for _, estimate in done]) - values
    healthy = np.array([estimate.verdict.ok for _, estimate in done], dtype=bool)
    top.plot(positions, values, color=LIGHT, linewidth=1.2, zorder=1)
    for mask, face, label in ((healthy, DARK, "healthy"), (~healthy, "white", "a problem is named")):
        if mask.any():
            top.errorbar(
                positions[mask], values[mask], yerr=[low[mask], high[mask]], fmt="o", color=DARK,
                markerfacecolor=face, capsize=3, linewidth=1.2, label=f"λ̂, 95 % interval: {label}",
            )  # fmt: skip
    failed = [step for step, row in zip(steps, sweep.rows, strict=True) if row.estimate is None]
    if failed:
        top.plot(failed, [0.02] * len(failed), "x", color=ACCENT, transform=top.get_xaxis_transform(), label="failed")
    if done:
        first = done[0][1]
        top.set_title(f"nβ {first.n_beta:.4g}, γ {first.localization:.4g}")
        top.legend(frameon=False, loc="best")
    top.set_ylabel("local learning coefficient λ̂")
    bottom.plot(positions, [estimate.loss_at_anchor for _, estimate in done], "o-", color=ACCENT, markersize=4)
    bottom.set(xlabel="training step", ylabel="loss at w*   [nats]")
    logarithmic = bool(
        len(positions) > 2 and positions.min() >= 0 and positions.max() > 20 * max(1.0, np.median(positions) / 4)
    )
    if (np.diff(positions) > 0).all():
        errors = [estimate.mcse for _, estimate in done]
        _draw_stages(top, bottom, find_stages(positions, values, errors, log=logarithmic))
    if logarithmic:
        for axis in (top, bottom):
            axis.set_xscale("symlog", linthresh=max(1.0, float(np.min(positions[positions > 0], initial=np.inf))))
    _finish((top, bottom))
    return [top, bottom]


def _draw_stages(top: Axes, bottom: Axes, stages: Sequence[Stage]) -> None:
    """Plateaus of λ̂ as shaded stretches at their level, and the boundaries of all stages."""
    for before, after in itertools.pairwise(stages):
        for axis in (top, bottom):
            axis.axvline((before.end + after.start) / 2, color=DARK, linestyle=":", linewidth=1.0, zorder=0)
    if len(stages) > 1:
        for stage in stages:
            if stage.plateau:
                top.axvspan(stage.start, stage.end, color=LIGHT, alpha=0.3, linewidth=0, zorder=0)
                top.hlines(stage.level, stage.start, stage.end, color=ACCENT, linewidth=1.5, zorder=1)


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
    axes.axhline(estimate.rlct, color=ACCENT, linewidth=1.5, label=f"λ = {estimate.rlct:.3g}, m {multiplicity}")
    axes.plot(place, curve.variance, ".", color=LIGHT, markersize=4, label="(nβ)² Var[L] = λ̂ − ∂λ̂/∂log nβ")
    for mask, face, label in ((curve.fitted, DARK, "λ̂(nβ), fitted"), (~curve.fitted, "white", "λ̂(nβ), not fitted")):
        if mask.any():
            axes.errorbar(
                place[mask], curve.llc[mask], yerr=1.96 * curve.mcse[mask], fmt="o", color=DARK, markersize=4,
                markerfacecolor=face, linewidth=1.0, label=label,
            )  # fmt: skip
    top = max(float(curve.llc.max()), estimate.rlct, high if np.isfinite(high) else 0.0)
    axes.set(xlabel="log nβ", ylabel="learning coefficient", ylim=(0, 1.25 * top if top > 0 else 1.0))
    axes.set_title(str(estimate.verdict).replace(", ", ",\n"))
    axes.legend(frameon=False, loc="best")
    _finish((axes,))
    return [axes]


def plot_validations(validations: Sequence[Validation], axes: Sequence[Axes] | None = None) -> list[Axes]:
    """λ̂ with 95 % intervals against the exact value, and its error in standard errors below.

    Args:
        validations: Rows; those without an exact value or without a number are left out.
        axes: Two axes to draw on; a new figure by default.

    Returns:
        The two axes.
    """
    if axes is None:
        axes = list(plt.subplots(2, 1, figsize=(6.4, 7.2), sharex=True, layout="constrained", height_ratios=[3, 1])[1])
    top, bottom = axes
    rows = [row for row in validations if row.exact is not None and not row.failed]
    exact = np.array([row.exact for row in rows], dtype=float)
    values = np.array([row.estimate.llc for row in rows])
    interval = np.array([row.estimate.interval for row in rows]).reshape(-1, 2)
    z = np.array([row.z for row in rows], dtype=float)
    healthy = np.array([row.estimate.verdict.ok for row in rows], dtype=bool)
    ends = np.array([exact.min(), exact.max()]) if len(rows) else np.array([0.1, 1.0])
    top.plot(ends, ends, color=ACCENT, linewidth=1.0, label="λ̂ = exact")
    for mask, face, label in ((healthy, DARK, "healthy"), (~healthy, "white", "a problem is named")):
        if mask.any():
            top.errorbar(
                exact[mask], values[mask], yerr=np.abs(interval[mask].T - values[mask]), fmt="o", color=DARK,
                markersize=4, markerfacecolor=face, capsize=2, linewidth=1.0, label=f"95 % interval: {label}",
            )  # fmt: skip
            bottom.plot(exact[mask], z[mask], "o", color=DARK, markersize=4, markerfacecolor=face)
    top.set(xscale="log", yscale="log", ylabel="λ̂, estimated")
    for axis in (top.xaxis, top.yaxis):  # coefficients are read as decimals, not as powers of ten
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: f"{value:.1g}" if f"{value:e}"[0] in "235" else "")
    top.legend(frameon=False, loc="upper left")
    bottom.axhspan(-1.96, 1.96, color=LIGHT, alpha=0.3, linewidth=0)
    bottom.axhline(0, color=ACCENT, linewidth=1.0)
    bottom.set(xlabel="nβ·E[K], exact", ylabel="error   [standard errors]")
    _finish((top, bottom))
    return [top, bottom]


def save_figure(axes: Sequence[Axes], path: str | Path) -> None:
    """Write the figure of these axes, and close it.

    Args:
        axes: Of one figure.
        path: Its ending says the format.
    """
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _finish(axes: Sequence[Axes]) -> None:
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.5)
