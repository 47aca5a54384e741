"""``sweep``: the local learning coefficient along a series of checkpoints, one row each."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm import tqdm

from slt.checkpoints import find_checkpoints, load_into, step_of
from slt.estimate import LLCEstimate
from slt.llc import estimate_llc
from slt.loss import LossFn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS: tuple[str, ...] = (
    "step", "path", "loss_at_anchor", "llc", "mcse", "low", "high", "rhat", "ess", "n_beta", "localization", "metric",
    "verdict", "error",
)  # fmt: skip


@dataclass(frozen=True)
class SweepRow:
    """One checkpoint of a sweep.

    Attributes:
        step: The training step in its name, or None.
        path: Where it lies.
        estimate: The estimate; None where there was none.
        error: Why there was none; empty otherwise.
    """

    step: int | None
    path: str
    estimate: LLCEstimate | None
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The row by column; see ``COLUMNS``."""
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row.update(step=self.step, path=self.path, error=self.error, verdict="failed")
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
    """

    rows: tuple[SweepRow, ...]
    interrupted: bool = False

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

    def plot(self) -> list[Axes]:
        """λ̂ with intervals, and the loss, over training; see :func:`slt.plots.plot_sweep`."""
        from slt.plots import plot_sweep

        return plot_sweep(self)


def sweep(
    model: nn.Module,
    checkpoints: str | Path | Sequence[str | Path],
    data: Any,
    loss_fn: LossFn,
    *,
    progress: bool | None = None,
    **options: Any,
) -> Sweep:
    """Estimates of λ̂ at a series of checkpoints, under one nβ and γ.

    A checkpoint that cannot be read or estimated is reported in its row, and the others go on. The module ends with
    the weights that it came with.

    Args:
        model: A module into which every checkpoint fits.
        checkpoints: A glob, a path, or several of them; ordered by the step in their names.
        data: See :func:`slt.estimate_llc`.
        loss_fn: See :func:`slt.estimate_llc`.
        progress: True or False, or None to show a bar over checkpoints on a terminal only.
        options: Further arguments of :func:`slt.estimate_llc`, the same for every checkpoint.

    Returns:
        One row per checkpoint. Ctrl-C ends the sweep, and keeps the rows that were finished.

    Raises:
        FileNotFoundError: No checkpoint matched.
    """
    paths = find_checkpoints(checkpoints)
    own = copy.deepcopy(model.state_dict())
    rows: list[SweepRow] = []
    bar = tqdm(paths, desc="checkpoints", unit="checkpoint", disable=None if progress is None else not progress)
    try:
        for path in bar:
            row = _row(model, path, data, loss_fn, progress, options)
            rows.append(row)
            if row.estimate is not None:
                bar.set_postfix_str(f"λ̂ {row.estimate.llc:.3g} ± {row.estimate.mcse:.1g}")
                if row.estimate.trace.interrupted:
                    return Sweep(tuple(rows), interrupted=True)
    except KeyboardInterrupt:
        return Sweep(tuple(rows), interrupted=True)
    finally:
        bar.close()
        model.load_state_dict(own)
    return Sweep(tuple(rows))


def _row(
    model: nn.Module, path: Path, data: Any, loss_fn: LossFn, progress: bool | None, options: dict[str, Any]
) -> SweepRow:
    try:
        load_into(model, path)
        estimate = estimate_llc(model, data, loss_fn, progress=progress, **options)
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        return SweepRow(step_of(path), str(path), None, f"{type(error).__name__}: {error}")
    return SweepRow(step_of(path), str(path), estimate)


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
