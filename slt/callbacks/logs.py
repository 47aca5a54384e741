"""Where results go: adapters for ``LLCMonitor(log=…)``, one for each place."""

from __future__ import annotations

import csv
import io
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samplers.files import written_whole

Log = Callable[[dict[str, Any], int], None]
COLUMNS: tuple[str, ...] = (
    "step",
    "llc",
    "llc_low",
    "llc_high",
    "llc_rhat",
    "llc_ess",
    "loss_at_anchor",
    "llc_verdict",
)


def to_csv(path: str | Path) -> Log:
    """A log that keeps a table in a file, one row a step, written whole at each.

    A step that the file has already, such as after a restart of training from a checkpoint, is replaced, and so are
    those after it: they are of the training that was given up. A warning says which. So does a second monitor that
    begins in the file of a first: the file is then the second's, and the first fails at each further step, by name,
    and leaves the file as it is. Give each a file of its own. Of processes that log the same, each row is kept once.

    Args:
        path: The file; made with a header if it is not there.

    Returns:
        For ``LLCMonitor(log=…)``.

    Raises:
        ValueError: Its folder is not there, or the file is another table.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise ValueError(f"path: {str(path)!r} is in a folder that does not exist.")
    if path.is_file() and path.stat().st_size > 0:
        with path.open(newline="", errors="replace") as file:
            header = next(csv.reader(file), [])
        if header != list(COLUMNS):
            raise ValueError(
                f"path: {str(path)!r} begins with {','.join(header)[:60]!r}; expected a file that a monitor wrote, "
                f"which begins with {','.join(COLUMNS)!r}, or none. Give the log a file of its own: it is written anew."
            )

    return _Table(path)


class _Table:
    """The log of ``to_csv``, which knows how it left its file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left: str | None = None

    def __call__(self, values: dict[str, Any], step: int) -> None:
        found = self._found()
        rows = [row for row in csv.DictReader(io.StringIO(found or "", newline="")) if row.get("step")]
        replaced = [int(row["step"]) for row in rows if int(row["step"]) >= step]
        kept = [row for row in rows if int(row["step"]) < step]
        table = _written([*kept, {"step": step, **values}])
        if found != table:  # or another process has just logged the same
            if None not in (found, self._left) and found != self._left:
                raise ValueError(
                    f"path: {str(self._path)!r} was written by another log since this one's last row, or by hand; "
                    f"expected a file of its own for each monitor. The row of step {step} is not in it."
                )
            written_whole(self._path, lambda partial: partial.write_text(table, newline=""))
            self._tell(replaced, step)
        self._left = table

    def _found(self) -> str | None:
        if not self._path.is_file():
            return None
        with self._path.open(newline="") as file:
            return file.read()

    def _tell(self, replaced: list[int], step: int) -> None:
        if replaced:
            what = f"{len(replaced)} rows of steps {min(replaced)} to {max(replaced)}"
            if len(replaced) == 1:
                what = f"a row of step {replaced[0]}"
            warn(
                f"to_csv: {str(self._path)!r} had {what}, which the one of step {step} replaces. If they are not of a "
                "training that was given up, give this log a file of its own.",
                6,
            )


def _written(rows: list[dict[str, Any]]) -> str:
    """The rows as text, with a header."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_tensorboard(writer: Any, prefix: str = "llc/") -> Log:
    """A log that adds numbers as scalars and the verdict as text.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``.
        prefix: Before every tag.

    Returns:
        For ``LLCMonitor(log=…)``.
    """

    def log(values: dict[str, Any], step: int) -> None:
        for name, value in numbers(values).items():
            writer.add_scalar(prefix + name, value, step)
        writer.add_text(prefix + "verdict", str(values["llc_verdict"]), step)

    return log


def to_wandb(run: Any, prefix: str = "llc/") -> Log:
    """A log that sends numbers and the verdict to a run of Weights & Biases.

    ``prefix + "step"`` goes with them, because the run's own step may be ahead of the monitor's, and W&B drops what
    goes back.

    Args:
        run: What ``wandb.init`` returned.
        prefix: Before every name.

    Returns:
        For ``LLCMonitor(log=…)``.
    """

    def log(values: dict[str, Any], step: int) -> None:
        named = {prefix + name: value for name, value in numbers(values).items()}
        run.log({**named, prefix + "verdict": str(values["llc_verdict"]), prefix + "step": step})

    return log


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The finite numbers among the values.

    Args:
        values: What a monitor logs.

    Returns:
        By name.
    """
    return {
        name: float(value) for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)
    }


def warn(message: str, stacklevel: int) -> None:
    """Warn, and where warnings are made errors write to stderr instead: what went wrong beside training stops it not.

    Args:
        message: The text.
        stacklevel: Of the caller, as in ``warnings.warn``.
    """
    try:
        warnings.warn(message, stacklevel=stacklevel + 1)
    except UserWarning:
        print(message, file=sys.stderr)
