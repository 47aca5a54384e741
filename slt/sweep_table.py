"""The rows of a sweep over checkpoints: as text, a table file, a data set, stages and a figure."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from slt.estimate import LLCEstimate, load_estimate
from slt.stages import Stage, find_stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS: tuple[str, ...] = (
    "step", "path", "loss_at_anchor", "llc", "mcse", "low", "high", "rhat", "ess", "n_beta", "localization", "metric",
    "verdict", "error", "key",
)  # fmt: skip


@dataclass(frozen=True)
class SweepRow:
    """One checkpoint of a sweep.

    Attributes:
        step: The training step in its name, or None.
        path: Where it lies.
        estimate: The estimate; None where there was none.
        error: Why there was none; empty otherwise.
        key: Under which a store has it; empty without one.
    """

    step: int | None
    path: str
    estimate: LLCEstimate | None
    error: str = ""
    key: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The row by column; see ``COLUMNS``."""
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row.update(step=self.step, path=self.path, error=self.error, key=self.key, verdict="failed")
        if self.estimate is not None:
            record = self.estimate.to_dict()
            row.update({name: record[name] for name in COLUMNS if name in record})
            row["low"], row["high"] = record["interval"]
            row["verdict"] = str(self.estimate.verdict)
        return row


@dataclass(frozen=True)
class Sweep:
    """The rows of a sweep, in the order of the checkpoints.

    Attributes:
        rows: One per checkpoint that was reached.
        interrupted: Whether it was stopped from the keyboard.
        law: How the metric and the sampler of all rows were found.
    """

    rows: tuple[SweepRow, ...]
    interrupted: bool = False
    law: str = ""

    def table(self) -> str:
        """The rows as aligned text."""
        head = f"{'step':>8}  {'loss':>10}  {'λ̂':>8}  {'95 % interval':>18}  {'R̂':>6}  {'ESS':>6}  verdict"
        return "\n".join([head.replace("λ̂", " λ̂").replace("R̂", " R̂"), *map(_line, self.rows)])

    def save(self, path: str | Path) -> None:
        """Write the rows as a table.

        Args:
            path: Ends in ``.csv`` or ``.json``.

        Raises:
            ValueError: It ends in something else.
        """
        path = Path(path)
        rows = [row.to_dict() for row in self.rows]
        if path.suffix == ".json":
            path.write_text(json.dumps(rows, indent=1) + "\n")
        elif path.suffix == ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
        else:
            raise ValueError(f"path: {str(path)!r}; expected a name that ends in .csv or .json.")

    def to_dataset(self) -> xarray.Dataset:
        """The rows over the steps: λ̂, its interval and error, diagnostics, loss and verdict; NaN where one failed.

        Returns:
            Over ``step``, or over the place in the series where a name has none.
        """
        table = [row.to_dict() for row in self.rows]
        numbers = ("llc", "low", "high", "mcse", "rhat", "ess", "loss_at_anchor")
        steps = [place if row.step is None else row.step for place, row in enumerate(self.rows)]
        columns: dict[str, Any] = {
            name: ("step", np.array([np.nan if row[name] is None else row[name] for row in table], dtype=float))
            for name in numbers
        }
        columns |= {name: ("step", [row[name] for row in table]) for name in ("verdict", "path", "error")}
        laws = {name: first[name] for first in table if first["llc"] is not None for name in ("n_beta", "localization")}
        return xarray.Dataset(columns, {"step": steps}, {**laws, "law": self.law})

    def stages(self, *, log: bool = True) -> list[Stage]:
        """The stretches over which λ̂ stands still or moves on a line; see :func:`slt.stages.find_stages`.

        Args:
            log: Whether lines are straight in log(1 + step).

        Returns:
            Stages in order.
        """
        data = self.to_dataset()
        return find_stages(data["step"].to_numpy(), data["llc"].to_numpy(), data["mcse"].to_numpy(), log=log)

    def plot(self) -> list[Axes]:
        """λ̂ with intervals, and the loss, over training; see :func:`slt.plots.plot_sweep`."""
        from slt.plots import plot_sweep

        return plot_sweep(self)


def load_sweep(folder: str | Path) -> Sweep:
    """The sweep that ``slt.sweep(store=folder)`` wrote, as far as it has come.

    Args:
        folder: The store.

    Returns:
        Rows with their estimates.

    Raises:
        FileNotFoundError: There is no table in the folder.
        ValueError: An estimate of the table is not there, or cannot be read.
    """
    table = Path(folder) / "sweep.json"
    if not table.is_file():
        raise FileNotFoundError(f"store: {str(folder)!r} holds no sweep.json; expected the store of a sweep.")
    rows = []
    for row in json.loads(table.read_text()):
        found = None
        if row["llc"] is not None or row["verdict"] != "failed":
            path = Path(folder) / "estimates" / f"{row['key']}.nc"
            if not path.is_file():
                raise ValueError(
                    f"store: {str(folder)!r} lacks {path.name}, of step {row['step']}. Run the sweep again."
                )
            found = load_estimate(path)
        rows.append(SweepRow(row["step"], row["path"], found, row["error"], row["key"]))
    return Sweep(tuple(rows))


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
