"""λ̂ beside what is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator, NullLocator

from slt.estimate import LLCEstimate
from slt.plots.style import ACCENT, DARK, LIGHT, finish
from slt.problems.evidence import Z_95

if TYPE_CHECKING:
    from slt.known.validate import Validation


def plot_truth(
    truth: Sequence[float], estimates: Sequence[LLCEstimate], axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """λ̂ with 95 % intervals against known values, with the line of equality, and its error in standard errors below.

    Intervals that do not contain the known value are drawn in another colour, with a cross: of healthy ones one in
    twenty should be. What has no number is marked on the axis, and counted apart.

    >>> plot_truth([known.exact_llc(case, n_beta=100, localization=1).value], [estimate])  # doctest: +SKIP

    Args:
        truth: What each estimate should be, at its nβ and γ.
        estimates: As many.
        axes: Two axes to draw on; a new figure by default.

    Returns:
        The two axes.

    Raises:
        ValueError: They are not of one number.
    """
    if len(truth) != len(estimates):
        raise ValueError(f"truth: {len(truth)} values for {len(estimates)} estimates; expected one for each.")
    if axes is None:
        axes = list(plt.subplots(2, 1, figsize=(6.4, 7.2), sharex=True, layout="constrained", height_ratios=[3, 1])[1])
    top, bottom = axes
    exact = np.array(truth, dtype=float)
    values = np.array([each.llc for each in estimates])
    interval = np.array([each.interval for each in estimates]).reshape(-1, 2)
    z = (values - exact) / np.array([each.mcse for each in estimates])
    healthy = np.array([each.verdict.ok for each in estimates], dtype=bool)
    found = np.isfinite(values)
    missed = ~((interval[:, 0] <= exact) & (exact <= interval[:, 1]))
    ends = (exact.min(), exact.max()) if len(exact) else (0.1, 1.0)
    top.plot(ends, ends, color="0.5", linewidth=1.0, label="λ̂ = exact")
    for miss, named in ((False, False), (False, True), (True, False), (True, True)):
        mask = found & (missed == miss) & (healthy != named)
        if not mask.any():
            continue
        color, face = ACCENT if miss else DARK, "white" if named else (ACCENT if miss else DARK)
        text = f"{mask.sum()} {'miss' if miss else 'contain'} the exact value{', named' if named else ''}"
        top.errorbar(
            exact[mask], values[mask], yerr=np.abs(interval[mask].T - values[mask]), fmt="X" if miss else "o",
            color=color, markersize=6 if miss else 4, markerfacecolor=face, capsize=2, linewidth=1.0,
            label=text,
        )  # fmt: skip
        bottom.plot(
            exact[mask], z[mask], "X" if miss else "o", color=color, markersize=6 if miss else 4, markerfacecolor=face
        )
    if not found.all():
        text = f"{(~found).sum()} without a number"
        places = [0.02] * int((~found).sum())
        top.plot(exact[~found], places, "x", color=ACCENT, transform=top.get_xaxis_transform(), label=text)
    if ends[0] > 0 and (values[found] > 0).all():
        top.set(xscale="log", yscale="log")
        for axis in (top.xaxis, top.yaxis):
            _decimals(axis)
    top.set_ylabel("λ̂, estimated")
    top.legend(frameon=False, loc="upper left", title="95 % intervals; named: with a problem", alignment="left")
    bottom.axhspan(-Z_95, Z_95, color=LIGHT, alpha=0.3, linewidth=0)
    bottom.axhline(0, color="0.5", linewidth=1.0)
    bottom.set(xlabel="exact value", ylabel="error   [standard errors]")
    finish((top, bottom))
    return [top, bottom]


def _decimals(axis: Axis) -> None:
    """Of a logarithmic axis: coefficients are read as decimals, not as powers of ten."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axis.get_view_interval()
    if high < 10 * low:  # hardly a power of ten, or a simple multiple of one, is in sight
        axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10]))
        axis.set_minor_locator(NullLocator())
    else:
        labelled = "235" if high < 100 * low else "25"
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in labelled else "")


def plot_validations(validations: Sequence[Validation], axes: Sequence[Axes] | None = None) -> list[Axes]:
    """λ̂ with 95 % intervals against the exact values of known cases; see :func:`plot_truth`.

    Args:
        validations: Rows; those without an exact value or without a number are left out.
        axes: Two axes to draw on; a new figure by default.

    Returns:
        The two axes.
    """
    rows = [row for row in validations if row.exact is not None and not row.failed]
    axes = plot_truth([float(row.exact) for row in rows if row.exact is not None], [row.estimate for row in rows], axes)
    axes[1].set_xlabel("nβ·E[K], exact")
    return axes
