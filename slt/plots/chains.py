"""The chains of one estimate: traces, running means and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from scipy.stats import rankdata

from samplers.diagnostics import mean_and_ess
from slt.estimate import LLCEstimate
from slt.plots.style import ACCENT, DARK, LIGHT, finish
from slt.problems.evidence import Z_95

RANK_BINS = 20  # Vehtari et al. 2021 use as many
ROW, HIGHEST = 0.4, 2.4  # of a chain: where a flat histogram ends, and the highest bar that is drawn, in units of it


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
    finish((left, right))
    return [left, right]


def plot_ranks(estimate: LLCEstimate, axes: Sequence[Axes] | None = None) -> list[Axes]:
    r"""Rank plots of the loss, and of the distance from w*: where chains agree, every histogram is flat.

    .. math:: h_{cb} = \frac{B}{N} \#\{i : \text{rank of draw } i \text{ of chain } c
              \text{ among those of all chains lies in bin } b \text{ of } B\}

    for N draws a chain: 1 everywhere if all chains draw from one law. Each chain has a row, and 95 % of the bars of as
    many independent draws as its effective sample size would lie between the dotted lines. A chain that leans to one
    side has another mean than the others; a hump or a bowl, another spread. The distance from w* moves along directions
    that the loss does not see.

    Args:
        estimate: The estimate. Chains that diverged are left out.
        axes: Two axes to draw on, or one without a localiser; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: No chain is left.

    Source:
        Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, §4.4 (rank plots).
    """
    alive = estimate.trace.surviving
    if not alive.any():
        raise ValueError("estimate: all chains diverged; expected one with draws to be ranked.")
    shown = {"loss": estimate.trace.loss[alive]}
    distance = estimate.trace.statistics["localization_energy"][alive]
    if np.ptp(distance) > 0:
        shown["distance from w*"] = distance
    if axes is None:
        size = (4.6 * len(shown), 1.0 + 0.42 * int(alive.sum()))
        axes = list(plt.subplots(1, len(shown), figsize=size, layout="constrained", squeeze=False)[1][0])
    used = list(axes)[: len(shown)]
    for axis, (name, draws) in zip(used, shown.items(), strict=True):
        _draw_ranks(axis, draws, np.flatnonzero(alive))
        axis.set_title(name)
    finish(used)
    return used


def _draw_ranks(axis: Axes, draws: np.ndarray, chains: np.ndarray) -> None:
    count, length = draws.shape
    bins = max(2, min(RANK_BINS, length // 5))
    ranks = (rankdata(draws, method="average").reshape(draws.shape) - 0.5) / draws.size
    ess = mean_and_ess(draws)[2] / count if length >= 4 else np.nan
    band = Z_95 * np.sqrt((bins - 1) / ess) if np.isfinite(ess) else 0.0
    edges = np.linspace(0, 1, bins + 1)
    for place in range(count):
        heights = np.histogram(ranks[place], edges)[0] * bins / length
        base = count - 1 - place  # the first chain on top
        bars = base + ROW * np.minimum(heights, HIGHEST)
        axis.stairs(bars, edges, baseline=base, fill=True, color=LIGHT, alpha=0.6)
        axis.stairs(bars, edges, baseline=base, color=DARK, linewidth=0.9)
        for level, style in ((1.0, "-"), (max(1 - band, 0.0), ":"), (1 + band, ":")):
            if level < HIGHEST:
                axis.plot([0, 1], [base + ROW * level] * 2, color=ACCENT, linewidth=1.0, linestyle=style)
    axis.set_yticks(np.arange(count) + ROW, [str(chain) for chain in chains[::-1]])
    axis.set(xlim=(0, 1), ylim=(0, count), xlabel="rank among the draws of all chains, as a share", ylabel="chain")
