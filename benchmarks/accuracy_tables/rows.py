"""Rows that are kept as they are finished, so that a table of hours that was cut goes on where it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from record import machine_facts
from torch import nn

import slt
from accuracy_tables.again import measure_again
from accuracy_tables.library import library
from slt.loss import LossFn


def device_name(device: str) -> str:
    """What a table calls a device: the name of a GPU, or cpu."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


def finished_rows(
    function: Callable[[Any], dict[str, Any]],
    tasks: Iterable[Any],
    output: Path,
    processes: int,
    again: int | None = None,
) -> list[dict[str, Any]]:
    """A row for each task, in order, with the ``library`` and the ``cpu`` that measured it.

    Those of a file beside the output are not measured again where the library is still the same. With no process
    nothing is measured: each task has the newest of its rows, of whichever library, and one without rows is left out.

    Args:
        function: Task → row, in a process of its own; or a partial of one, whose settings do not belong to the row's
            name, such as the device.
        tasks: In types that JSON knows.
        output: Of the table; rows go to ``<name>.rows.jsonl`` beside it as they are finished. Delete that file after
            a change of the table's own code.
        processes: At a time.
        again: How many of the rows that are published in ``output`` to measure again, in place of all that is missing.

    Returns:
        Rows.

    Raises:
        MeasuredAgainError: Rows were measured again.
    """
    path, tasks = output.with_suffix(".rows.jsonl"), list(tasks)
    if again is not None:
        measure_again(function, tasks, output, again, processes)
    kept = kept_rows(output, None if processes == 0 else library())
    names = [task_name(function, task) for task in tasks]
    if processes == 0:
        return [kept[name] for name in names if name in kept]
    path.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool, path.open("a") as file:
        missing = {
            pool.submit(function, task): name for task, name in zip(tasks, names, strict=True) if name not in kept
        }
        for future in as_completed(missing):
            name = missing[future]
            kept[name] = {**future.result(), "library": library(), "cpu": machine_facts()["cpu"]}
            file.write(json.dumps({"task": name, "row": kept[name]}) + "\n")
            file.flush()
    return [kept[name] for name in names]


def task_name(function: Callable[[Any], dict[str, Any]], task: Any) -> str:
    """The name under which the row of a task is kept: of the function, without settings, and the task."""
    return json.dumps([getattr(function, "func", function).__name__, task], default=str)


def kept_rows(output: Path, only: str | None = None) -> dict[str, dict[str, Any]]:
    """Rows that are finished, by the name of their task: those of a library, or the newest of any."""
    path = output.with_suffix(".rows.jsonl")
    if not path.is_file():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {record["task"]: record["row"] for record in records if only in (None, record["row"].get("library"))}


def attempted(model: nn.Module, data: Any, loss_fn: LossFn, **options: Any) -> dict[str, Any]:
    """The figures of an estimate; where the call failed not a number, with the error in the place of the problems."""
    try:
        return summary_of(slt.estimate_llc(model, data, loss_fn, progress=False, **options))
    except (ValueError, ArithmeticError, RuntimeError) as failure:
        names = ("llc", "mcse", "low", "high", "rhat", "ess", "gradients", "seconds")
        return {**dict.fromkeys(names, math.nan), "sampler": None, "problems": [f"{type(failure).__name__}: {failure}"]}


def summary_of(estimate: slt.LLCEstimate) -> dict[str, Any]:
    """The figures of an estimate that a row keeps."""
    low, high = estimate.interval
    graph = estimate.trace.configuration.get("cuda_graph")
    return {
        "llc": estimate.llc, "mcse": estimate.mcse, "low": low, "high": high, "rhat": estimate.rhat,
        "ess": estimate.ess, "sampler": estimate.sampler, "problems": list(estimate.verdict.names),
        "gradients": estimate.num_gradients, "seconds": estimate.seconds,
        **({} if graph is None else {"cuda_graph": graph}),
    }  # fmt: skip
