"""Where results go: adapters for ``LLCMonitor(log=…)``, one for each place."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    """A log that appends a row to a file, and forces it to the disk's care at once.

    A step that the file has already, such as after a restart of training from a checkpoint, is not written again.

    Args:
        path: The file; made with a header if it is not there.

    Returns:
        For ``LLCMonitor(log=…)``.
    """
    path = Path(path)

    def log(values: dict[str, Any], step: int) -> None:
        there: set[int] = set()
        if path.is_file():
            with path.open(newline="") as file:
                there = {int(row["step"]) for row in csv.DictReader(file)}
        if step in there:
            return
        fresh = not path.is_file()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", restval="")
            if fresh:
                writer.writeheader()
            writer.writerow({"step": step, **values})

    return log


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
