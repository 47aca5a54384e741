"""Parts of a model over training: λ̂ of each as a heat map and as lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import xarray
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import BboxTransformTo, ScaledTranslation, blended_transform_factory

from slt.plots.style import ACCENT, DARK, LIGHT, finish, over_steps, pair

if TYPE_CHECKING:
    from slt.sweep_table import Sweep

SHADES = LinearSegmentedColormap.from_list("light to dark", ["#f7f9fb", LIGHT, DARK])
MARKERS = "osD^vP*X<>ph"
CELL_WIDTH, CELL_HEIGHT = 0.62, 0.34  # inches: room for three digits and a mark
CORNER = 0.14  # inches
KEY = 0.4  # inches: of a line's key, between the name of its part and the cells
LETTER, COLOR_BAR = 0.085, 0.9  # inches: of a name, on average; and what the bar takes on the right
UNEVEN = 8.0  # of the largest λ̂ over the median one, from where shades follow the root of λ̂


def plot_parts(sweep: Sweep, axes: Sequence[Axes] | None = None, *, log: bool | None = None) -> list[Axes]:
    """λ̂ of every part at every checkpoint: a heat map with the numbers, and lines with 95 % intervals below.

    A corner marks a cell whose verdict names a problem, and a cross one without a number, which failed or whose chains
    diverged; lines have hollow marks at the former. Which line is whose stands beside the names of the heat map, where
    a key of many parts has room and covers nothing.

    Args:
        sweep: With parts.
        axes: Two axes to draw on; a new figure by default.
        log: Whether the axis of steps under the lines is logarithmic; by default where most checkpoints are early ones.
            The heat map has a column for each checkpoint in any case.

    Returns:
        The two axes.

    Raises:
        ValueError: The sweep has no parts; the axes are not two; or ``log`` is not one of True, False and None, or True
            with steps below 0.
    """
    if not sweep.parts:
        raise ValueError("sweep: without parts; expected that of slt.sweep(parts=…). Use slt.plots.plot_sweep.")
    data = sweep.to_dataset()
    rows, columns = data["llc"].shape
    if axes is None:
        heights = [CELL_HEIGHT * rows + 0.8, 3.2]
        cells = min(13.0, max(4.5, CELL_WIDTH * columns))
        size = (LETTER * max(map(len, sweep.parts)) + KEY + cells + COLOR_BAR, sum(heights) + 0.6)
        top, bottom = plt.subplots(2, 1, figsize=size, layout="constrained", height_ratios=heights)[1]
        room = (cells / columns, CELL_HEIGHT)
    else:
        top, bottom = pair(axes)
        box, figure = top.get_position(), _figure(top)
        room = (box.width * figure.get_figwidth() / columns, box.height * figure.get_figheight() / rows)
    _heat_map(top, data, *room)
    _lines(bottom, data, log)
    return [top, bottom]


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def _manners(count: int) -> list[dict[str, Any]]:
    """How the lines of so many parts are drawn."""
    return [
        {
            "color": plt.get_cmap("cividis")(shade),
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": ("-", "--", "-.", ":")[place % 4],
            "linewidth": 1.1,
            "markersize": 5,
        }
        for place, shade in enumerate(np.linspace(0.0, 0.62, count))
    ]


def _heat_map(axes: Axes, data: xarray.Dataset, room: float, height: float) -> None:
    """In cells of so many inches, with the key of each part's line beside its name."""
    values, verdicts = data["llc"].to_numpy(), data["verdict"].to_numpy()
    finite = values[np.isfinite(values)]
    low, high = (min(0.0, float(finite.min())), float(finite.max())) if len(finite) else (0.0, 1.0)
    high = max(high, low + 1e-12)
    uneven = len(finite) > 0 and low == 0 and high > UNEVEN * float(np.median(finite))
    norm = PowerNorm(0.5, low, high) if uneven else Normalize(low, high)
    image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", cmap=SHADES, norm=norm)
    rows, columns = values.shape
    figure = _figure(axes)
    marked = lost = False
    for row, column in np.ndindex(rows, columns):
        value, verdict = values[row, column], verdicts[row, column]
        dark = np.isfinite(value) and norm(value) > 0.62
        if np.isfinite(value) and room > 0.35 and height > 0.12:
            text = f"{value:.3g}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        if verdict and not np.isfinite(value):
            lost = True
            axes.plot(column, row, "x", color=ACCENT, markersize=6)
        elif verdict and verdict != "healthy":
            marked = True
            across = min(0.4, CORNER / room)
            corner = [(column + 0.5, row - 0.5), (column + 0.5 - across, row - 0.5), (column + 0.5, row - 0.1)]
            axes.fill(*zip(*corner, strict=True), facecolor=ACCENT, edgecolor="white", linewidth=0.6)
    axes.set_xticks(np.arange(columns), [f"{step:g}" for step in data["step"].to_numpy()])
    axes.set_yticks(np.arange(rows), data["part"].to_numpy(), fontsize=min(10.0, 0.85 * 72 * height))
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.0)
    axes.tick_params(which="both", length=0)
    axes.tick_params(axis="y", pad=72 * KEY + 3)
    inches = figure.dpi_scale_trans + ScaledTranslation(0, 0, BboxTransformTo(axes.bbox))  # from the left edge
    beside = blended_transform_factory(inches, axes.transData)
    places = (-0.95 * KEY, -0.55 * KEY, -0.15 * KEY)
    for row, manner in enumerate(_manners(rows)):
        key = Line2D(places, [row] * 3, transform=beside, clip_on=False, markevery=[1], **manner)
        key.set_markersize(min(key.get_markersize(), 0.7 * 72 * height))
        axes.add_artist(key)
    axes.spines[:].set_visible(False)
    if columns > 12:
        axes.tick_params(axis="x", labelrotation=90)
    law = [
        f"{name} {data.attrs[key]:.4g}" for name, key in (("nβ", "n_beta"), ("γ", "localization")) if key in data.attrs
    ]
    said = [text for text, shown in (("corner: a problem is named", marked), ("×: without a number", lost)) if shown]
    axes.set_title(" · ".join([*([", ".join(law)] if law else []), *said]), fontsize=10)
    figure.colorbar(image, cax=axes.inset_axes((1.02, 0.0, 0.025, 1.0))).ax.set_title("λ̂", fontsize=10)


def _lines(axes: Axes, data: xarray.Dataset, log: bool | None) -> None:
    steps = data["step"].to_numpy().astype(float)
    for place, (name, manner) in enumerate(zip(data["part"].to_numpy(), _manners(data.sizes["part"]), strict=True)):
        part = data.isel(part=place)
        values, healthy = part["llc"].to_numpy(), part["verdict"].to_numpy() == "healthy"
        bars = np.abs(np.stack([part["low"].to_numpy(), part["high"].to_numpy()]) - values)
        axes.errorbar(steps, values, yerr=bars, capsize=2, label=name, **manner)
        axes.plot(
            steps[~healthy], values[~healthy], **manner | {"linestyle": "", "markerfacecolor": "white", "zorder": 3}
        )
    finite = data["llc"].to_numpy()[np.isfinite(data["llc"].to_numpy())]
    if len(finite) and finite.min() > 0 and finite.max() > UNEVEN * np.median(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    over_steps((axes,), steps, log)
    axes.set(xlabel="training step", ylabel="learning coefficient λ̂, 95 %")
    axes.set_title("lines as marked beside the names", fontsize=9, loc="left")
    finish((axes,))
