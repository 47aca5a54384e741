"""What all figures share: three shades that differ in grey too, light frames, and how a figure is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

DARK, LIGHT, ACCENT = "#1f3b57", "#9fb4c7", "#c05a2b"
Z_95 = 1.96


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


def over_steps(axes: Sequence[Axes], steps: np.ndarray) -> bool:
    """Make the axis of steps logarithmic where most checkpoints are early ones.

    Args:
        axes: With steps on x.
        steps: Of training, in order.

    Returns:
        Whether it was made so.
    """
    late = len(steps) > 2 and steps.min() >= 0 and steps.max() > 20 * max(1.0, np.median(steps) / 4)
    if late:
        first = max(1.0, float(np.min(steps[steps > 0], initial=np.inf)))
        for axis in axes:
            axis.set_xscale("symlog", linthresh=first)
    return bool(late)
