"""Rows of a published table measured again: whether the code of today gives the numbers that stand there."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("llc", "estimate")  # of what a row estimates
DIGITS = 1e-9  # sums of rounded numbers may differ from machine to machine in the last digit; chains may not


class MeasuredAgainError(Exception):
    """In the place of a table, of which only some rows were measured."""


def measure_again(
    function: Callable[[Any], dict[str, Any]], tasks: Sequence[Any], published: Path, count: int, processes: int
) -> None:
    """Measure some of the rows, drawn at random, and print which of them are those that are published.

    Args:
        function: Task → row.
        tasks: Of all rows.
        published: The file of the table.
        count: How many rows.
        processes: At a time.

    Raises:
        MeasuredAgainError: When it is done: no table can be made of these rows.
    """
    known = np.array(sorted(figures_of(json.loads(published.read_text()))))
    chosen, same = random.sample(list(tasks), min(count, len(tasks))), 0
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(function, task): task for task in chosen}
        for done, future in enumerate(as_completed(futures), 1):
            found = [figure for figure in figures_of(future.result()) if np.isfinite(figure)]
            published_too = [bool(np.isclose(known, figure, rtol=DIGITS, atol=0).any()) for figure in found]
            same += all(published_too)
            print(f"{json.dumps(futures[future], default=str):<60} {found} {'same' if all(published_too) else 'OTHER'}")
            print(f"{same} of {done} rows as published", flush=True)
    raise MeasuredAgainError(f"{same} of {len(chosen)} rows, drawn from {len(tasks)}, are as published in {published}")


def figures_of(tree: Any) -> Iterator[float]:
    """What is estimated anywhere in a table or a row."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in parts:
        if name in NAMES and isinstance(value, float):
            yield value
        else:
            yield from figures_of(value)
