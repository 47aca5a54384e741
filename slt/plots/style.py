"""What all figures share: three shades that differ in grey too, light frames, and how a figure is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from slt.stages import mostly_early

DARK, LIGHT, ACCENT = "#1f3b57", "#9fb4c7", "#c05a2b"


def save_figure(axes: Sequence[Axes], path: str | Path) -> None:
    """Write the figure of these axes, and close it.

    Args:
        axes: Of one figure.
        path: Its ending says the format.
    """
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=150, bbox_inches="tight")  # no label is cut off
    plt.close(figure)


def finish(axes: Sequence[Axes]) -> None:
    """A light grid, and no frame above or on the right.

    Args:
        axes: To be drawn on no more.
    """
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.5)


def pair(axes: Sequence[Axes]) -> tuple[Axes, Axes]:
    """Two axes that were given to draw on, such as ``plt.subplots(2)`` returns.

    Args:
        axes: In any shape.

    Returns:
        The two.

    Raises:
        ValueError: They are not two, or no axes.
    """
    given = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(given) != 2 or not all(isinstance(axis, Axes) for axis in given):
        kinds = ", ".join(type(each).__name__ for each in given)
        raise ValueError(f"axes: {len(given)} ({kinds}); expected two, such as matplotlib.pyplot.subplots(2)[1].")
    return given[0], given[1]


def over_steps(axes: Sequence[Axes], steps: np.ndarray, log: bool | None = None) -> bool:
    """Make the axis of steps logarithmic where that is asked for, or by default where most checkpoints are early ones.

    Args:
        axes: With steps on x.
        steps: Of training, in order.
        log: Whether it is to be; None for the default. At 0, and up to the first step after it, the axis is linear.

    Returns:
        Whether it was made so.

    Raises:
        ValueError: ``log`` is something else, or steps below 0 have no logarithm.
    """
    if log not in (None, True, False):
        raise ValueError(f"log: {log!r}; expected True or False, or None to choose by the steps.")
    if log and steps.min(initial=0) < 0:
        raise ValueError(f"log: True, but step {steps.min():g} is below 0. Leave it out, or give log=False.")
    chosen = log
    if chosen is None:
        chosen = mostly_early(steps)
    if chosen:
        first = float(np.min(steps[steps > 0], initial=np.inf))
        for axis in axes:
            axis.set_xscale("symlog", linthresh=max(1.0, first) if np.isfinite(first) else 1.0)
    elif log is not None:  # axes that were given may be logarithmic
        for axis in axes:
            axis.set_xscale("linear")
    return bool(chosen)
