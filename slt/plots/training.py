"""λ̂ over training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from slt.plots.style import ACCENT, DARK, LIGHT, finish, over_steps, pair
from slt.stages import Stage, find_stages

if TYPE_CHECKING:
    from slt.sweep_table import Sweep


SWEEP = "sweep"  # the mark of each sweep's line of losses, by which those on two axes are counted
OTHERS = ("#7a9a3a", "#8a5a9e", "#c9a227", "#3a9a94")  # of the second sweep on the same axes, and on


def plot_sweep(
    sweep: Sweep, axes: Sequence[Axes] | None = None, *, log: bool | None = None, label: str = ""
) -> list[Axes]:
    """λ̂ with 95 % intervals over training, and the training loss below; hollow marks where there is a problem.

    Shaded stretches are plateaus, and dotted lines the boundaries between stages: see :func:`slt.stages.find_stages`.
    A further sweep on the same axes has a colour of its own, for λ̂ and for the loss, and its stages are not drawn.

    Args:
        sweep: The sweep. Rows without an estimate, or with one that is not a number, are marked on the axis.
        axes: Two axes to draw on, such as those that an earlier call returned; a new figure by default.
        label: Name of the sweep in the legend.
        log: Whether the axis of steps is logarithmic, and stages are looked for on it; by default where most
            checkpoints are early ones.

    Returns:
        The two axes.

    Raises:
        ValueError: The axes are not two, or ``log`` is not one of True, False and None, or True with steps below 0.
    """
    if axes is None:
        axes = list(plt.subplots(2, 1, figsize=(7, 5.6), sharex=True, layout="constrained", height_ratios=[2, 1])[1])
    top, bottom = pair(axes)
    steps = [place if row.step is None else row.step for place, row in enumerate(sweep.rows)]
    done = [(step, row.estimate) for step, row in zip(steps, sweep.rows, strict=True) if row.estimate is not None]
    positions = np.array([step for step, _ in done], dtype=float)
    values = np.array([estimate.llc for _, estimate in done])
    low = values - np.array([estimate.interval[0] for _, estimate in done])
    high = np.array([estimate.interval[1] for _, estimate in done]) - values
    healthy = np.array([estimate.verdict.ok for _, estimate in done], dtype=bool)
    found = np.isfinite(values)
    earlier = sum(line.get_gid() == SWEEP for line in bottom.get_lines())
    color = OTHERS[(earlier - 1) % len(OTHERS)] if earlier else DARK
    line, loss_color = (color, color) if earlier else (LIGHT, ACCENT)
    numbers = {step: estimate.llc for step, estimate in done}
    through = [numbers.get(step, np.nan) for step in steps]  # a line that ends where a checkpoint has no number
    top.plot(steps, through, color=line, linewidth=1.2, zorder=1)
    for of_kind, face, kind in ((healthy, color, "healthy"), (~healthy, "white", "a problem is named")):
        mask = found & of_kind
        if mask.any():
            top.errorbar(
                positions[mask], values[mask], yerr=[low[mask], high[mask]], fmt="o", color=color,
                markerfacecolor=face, capsize=3, linewidth=1.2, label=f"{label or 'λ̂, 95 % interval'}: {kind}",
            )  # fmt: skip
    lost = [
        step
        for step, row in zip(steps, sweep.rows, strict=True)
        if row.estimate is None or not np.isfinite(row.estimate.llc)
    ]
    if lost:
        across = top.get_xaxis_transform()
        name = f"{label}: without a number" if label else "without a number"
        top.plot(lost, [0.02] * len(lost), "x", color=color if earlier else ACCENT, transform=across, label=name)
    if done:
        first = done[0][1]
        law = f"nβ {first.n_beta:.4g}, γ {first.localization:.4g}"
        laws = dict.fromkeys([*top.get_title().split(" · "), law]) if earlier else [law]
        top.set_title(" · ".join(laws))
    top.set_ylabel("local learning coefficient λ̂")
    losses = [estimate.loss_at_anchor for _, estimate in done]
    bottom.plot(positions, losses, "o-", color=loss_color, markersize=4, gid=SWEEP)
    bottom.set(xlabel="training step", ylabel="loss at w*   [nats]")
    if earlier:
        next(line for line in bottom.get_lines() if line.get_gid() == SWEEP).set_color(DARK)  # as its λ̂ is
        top.autoscale(axis="y")  # or the legend of the earlier ones would keep its limits
    kept = bool(earlier) and log is None  # the scale that the earlier one chose
    logarithmic = not kept and over_steps((top, bottom), positions, log)
    if not earlier and (np.diff(positions) > 0).all():
        errors = [estimate.mcse for _, estimate in done]
        _draw_stages(top, bottom, find_stages(positions, values, errors, log=logarithmic))
    finish((top, bottom))
    _add_legend(top)
    return [top, bottom]


def _draw_stages(top: Axes, bottom: Axes, stages: Sequence[Stage]) -> None:
    """Plateaus of λ̂ as shaded stretches at their level, and the boundaries of all stages."""
    names = {"border": "where one stage ends", "plateau": "plateau"}  # each once in the legend
    for before, after in itertools.pairwise(stages):
        form = {"color": DARK, "linestyle": ":", "linewidth": 1.0, "zorder": 0}
        top.axvline((before.end + after.start) / 2, label=names.pop("border", ""), **form)
        bottom.axvline((before.end + after.start) / 2, **form)
    if len(stages) > 1:
        for stage in stages:
            if stage.plateau:
                top.axvspan(stage.start, stage.end, color=LIGHT, alpha=0.3, linewidth=0, zorder=0)
                label = names.pop("plateau", "")
                top.hlines(stage.level, stage.start, stage.end, color=ACCENT, linewidth=1.5, zorder=1, label=label)


def _add_legend(axes: Axes) -> None:
    """Above all that is drawn, on an axis that is made longer for it: the place that matplotlib finds may hide some."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    if not axes.get_legend_handles_labels()[1]:
        return
    for columns in (2, 1):
        legend = axes.legend(loc="upper center", ncols=columns, fontsize=9, framealpha=0.85, edgecolor="none")
        figure.draw_without_rendering()  # or its size is not known
        frame, box = axes.get_window_extent(), legend.get_window_extent()
        if box.width <= frame.width:
            break
    share = min(0.6, (frame.y1 - box.y0) / frame.height)
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(np.array(axes.get_ylim()))
    axes.set_ylim(top=float(scale.inverted().transform(np.array([low + (high - low) / (1 - share)]))[0]))
