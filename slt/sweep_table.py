"""The rows of a sweep over checkpoints, and parts: as text, a table file, a data set, stages and a figure."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from samplers.files import written_whole
from slt.estimate import LLCEstimate, load_estimate
from slt.stages import Stage, find_stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TABLE, LAW = "sweep.json", "law.txt"  # in the folder of a store
COLUMNS: tuple[str, ...] = (
    "step", "path", "part", "loss_at_anchor", "llc", "mcse", "low", "high", "rhat", "ess", "n_beta", "localization",
    "metric", "verdict", "error", "key", "series",
)  # fmt: skip


@dataclass(frozen=True)
class SweepRow:
    """One checkpoint of a sweep, or one part of the model there.

    Attributes:
        step: The training step in its name, or None.
        path: Where it lies.
        estimate: The estimate; None where there was none.
        error: Why there was none; empty otherwise.
        key: Under which a store has it; empty without one.
        part: The part that was sampled; empty in a sweep without parts.
        series: A hash of what all checkpoints have in common: the data, the loss, the part and all options; empty
            without a store.
    """

    step: int | None
    path: str
    estimate: LLCEstimate | None
    error: str = ""
    key: str = ""
    part: str = ""
    series: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The row by column; see ``COLUMNS``."""
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row.update(step=self.step, path=self.path, part=self.part, error=self.error, key=self.key, series=self.series)
        row["verdict"] = "failed"
        if self.estimate is not None:
            record = self.estimate.to_dict()
            row.update({name: record[name] for name in COLUMNS if name in record})
            row["low"], row["high"] = record["interval"]
            row["verdict"] = str(self.estimate.verdict)
        return row


@dataclass(frozen=True)
class Sweep:
    """The rows of a sweep, in the order of the checkpoints, and at each of the parts.

    Attributes:
        rows: One per checkpoint that was reached, or per part there.
        interrupted: Whether it was stopped from the keyboard.
        law: How the metric and the sampler of all rows were found.
    """

    rows: tuple[SweepRow, ...]
    interrupted: bool = False
    law: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts, in order; empty in a sweep without parts."""
        return tuple(name for name in dict.fromkeys(row.part for row in self.rows) if name)

    def part(self, name: str) -> Sweep:
        """The sweep of one part alone.

        Args:
            name: Of the part.

        Returns:
            Its rows.

        Raises:
            ValueError: There is no such part.
        """
        if name not in self.parts:
            raise ValueError(f"name: {name!r}; expected one of {', '.join(map(repr, self.parts)) or 'no parts'}.")
        return replace(self, rows=tuple(replace(row, part="") for row in self.rows if row.part == name))

    def table(self) -> str:
        """The rows as aligned text."""
        width = max([0, *map(len, self.parts)])
        head = f"{'step':>8}  {'loss':>10}  {'λ̂':>8}  {'95 % interval':>18}  {'R̂':>6}  {'ESS':>6}  verdict"
        lines = [head.replace("λ̂", " λ̂").replace("R̂", " R̂"), *map(_line, self.rows)]
        if width:
            lines = [
                f"{name:<{width}}{line}"
                for name, line in zip(["", *(row.part for row in self.rows)], lines, strict=True)
            ]
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the rows as a table.

        Args:
            path: Ends in ``.csv`` or ``.json``.

        Raises:
            ValueError: It ends in something else.
            OSError: It cannot be written; what was there before stays.
        """
        written_whole(Path(path), partial(write_rows, [row.to_dict() for row in self.rows]))

    def to_dataset(self) -> xarray.Dataset:
        """The rows over the steps: λ̂, its interval and error, diagnostics, loss and verdict; NaN where one failed.

        Returns:
            Over ``step``, or over the place in the series where a name has none; with parts over ``part`` and ``step``.
        """
        paths = list(dict.fromkeys((row.step, row.path) for row in self.rows))
        steps = [place if step is None else step for place, (step, _) in enumerate(paths)]
        parts = self.parts or ("",)
        table: list[dict[str, Any]] = [dict.fromkeys(COLUMNS)] * (len(parts) * len(paths))
        for row in self.rows:
            table[parts.index(row.part) * len(paths) + paths.index((row.step, row.path))] = row.to_dict()
        over, shape = (("part", "step"), (len(parts), len(paths))) if self.parts else (("step",), (len(paths),))
        columns: dict[str, Any] = {}
        for name in ("llc", "low", "high", "mcse", "rhat", "ess", "loss_at_anchor"):
            numbers = np.array([np.nan if row[name] is None else row[name] for row in table], dtype=float)
            columns[name] = (over, numbers.reshape(shape))
        for name in ("verdict", "error"):
            texts = np.array([row[name] or "" for row in table], dtype=object)
            columns[name] = (over, texts.reshape(shape))
        columns["path"] = ("step", [path for _, path in paths])
        laws = {name: first[name] for first in table if first["llc"] is not None for name in ("n_beta", "localization")}
        coordinates = {"step": steps, **({"part": list(parts)} if self.parts else {})}
        return xarray.Dataset(columns, coordinates, {**laws, "law": self.law})

    def stages(self, *, log: bool | None = None) -> list[Stage]:
        """The stretches over which λ̂ stands still or moves on a line; see :func:`slt.stages.find_stages`.

        Args:
            log: Whether lines are straight in log(1 + step); by default where most checkpoints are early ones.

        Returns:
            Stages in order.

        Raises:
            ValueError: The sweep has several parts.
        """
        if len(self.parts) > 1:
            raise ValueError(
                "stages: of several parts at once; expected one of them, such as sweep.part(name).stages()."
            )
        data = self.to_dataset()
        numbers = (data[name].to_numpy().reshape(-1) for name in ("step", "llc", "mcse"))
        return find_stages(*numbers, log=log)

    def plot(self, axes: Sequence[Axes] | None = None, *, log: bool | None = None, label: str = "") -> list[Axes]:
        """λ̂ with intervals, and the loss, over training; with parts, λ̂ of each as a heat map and as lines.

        >>> both = second.plot(first.plot(label="seed 1"), label="seed 2")  # doctest: +SKIP

        Args:
            axes: Two axes to draw on, such as those of another sweep without parts; a new figure by default.
            label: Name of the sweep in the legend; of a sweep without parts.
            log: Whether the axis of steps is logarithmic; by default where most checkpoints are early ones.

        Returns:
            The two axes; see :func:`slt.plots.plot_sweep` and :func:`slt.plots.plot_parts`.

        Raises:
            ValueError: The axes are not two, or ``log`` is not one of True, False and None, or True with steps below 0.
        """
        from slt.plots import plot_parts, plot_sweep

        return plot_parts(self, axes, log=log) if self.parts else plot_sweep(self, axes, log=log, label=label)


def write_rows(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Write rows as a table.

    Args:
        rows: By column; see ``COLUMNS``.
        path: Ends in ``.csv`` or ``.json``.

    Raises:
        ValueError: It ends in something else.
    """
    path = Path(path)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    elif path.suffix == ".csv":
        # names of files may be no text
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    else:
        raise ValueError(f"path: {str(path)!r}; expected a name that ends in .csv or .json.")


def load_sweep(folder: str | Path) -> Sweep:
    """The sweep that ``slt.sweep(store=folder)`` wrote, as far as it has come.

    Args:
        folder: The store.

    Returns:
        Rows with their estimates.

    Raises:
        FileNotFoundError: There is no table in the folder.
        ValueError: The table is not that of a sweep, or an estimate of it is not there or cannot be read.
    """
    table = Path(folder) / TABLE
    if not table.is_file():
        raise FileNotFoundError(f"store: {str(folder)!r} holds no {TABLE}; expected the store of a sweep.")
    rows = []
    try:
        written = [{name: row[name] for name in COLUMNS} for row in json.loads(table.read_text())]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"store: {str(table)!r} is not what a sweep wrote. Run the sweep again.") from error
    for row in written:
        found = None
        if row["llc"] is not None or row["verdict"] != "failed":
            path = Path(folder) / "estimates" / f"{row['key']}.nc"
            if not path.is_file():
                raise ValueError(
                    f"store: {str(folder)!r} lacks {path.name}, of step {row['step']}. Run the sweep again."
                )
            found = load_estimate(path)
        rows.append(SweepRow(row["step"], row["path"], found, row["error"], row["key"], row["part"], row["series"]))
    law = Path(folder) / LAW
    return Sweep(tuple(rows), law=law.read_text(encoding="utf-8").rstrip("\n") if law.is_file() else "")


def _line(row: SweepRow) -> str:
    step = "–" if row.step is None else str(row.step)
    if row.estimate is None:
        return f"{step:>8}  failed: {row.error}"
    estimate = row.estimate
    interval = f"{estimate.interval[0]:.2f} … {estimate.interval[1]:.2f}"
    return (
        f"{step:>8}  {estimate.loss_at_anchor:>10.4f}  {estimate.llc:>8.2f}  {interval:>18}  {estimate.rhat:>6.3f}  "
        f"{estimate.ess:>6.0f}  {estimate.verdict}"
    )
