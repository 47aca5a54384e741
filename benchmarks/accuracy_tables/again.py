"""Rows of a published table measured again: whether the code of today gives the numbers and names that stand there."""

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
SAME, OTHER_PROBLEMS, OTHER = "same", "same λ̂, OTHER PROBLEMS", "OTHER"
DIGITS = 1e-9  # of sums of rounded numbers the last digit may differ; chains that differ there are soon others


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
    known = list(rows_of(json.loads(published.read_text())))
    chosen, same = random.sample(list(tasks), min(count, len(tasks))), 0
    with ProcessPoolExecutor(max(processes, 1), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(function, task): task for task in chosen}
        for done, future in enumerate(as_completed(futures), 1):
            row = json.loads(json.dumps(future.result()))
            says = compared(row, known)
            same += says == SAME
            print(f"{json.dumps(futures[future], default=str):<60} {figures_of(row)} {says}")
            print(f"{same} of {done} rows as published", flush=True)
    raise MeasuredAgainError(f"{same} of {len(chosen)} rows, drawn from {len(tasks)}, are as published in {published}")


def rows_of(tree: Any) -> Iterator[dict[str, Any]]:
    """All records anywhere in a table."""
    if isinstance(tree, dict):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from rows_of(value)


def compared(row: dict[str, Any], known: list[dict[str, Any]]) -> str:
    """Whether a row is among published ones, by its figures and by the names of its problems."""
    found = figures_of(row)
    close = [each for each in alike(row, known) if equal(found, figures_of(each))]
    if not close:
        return OTHER
    return SAME if any(problems_of(row) == problems_of(each) for each in close) else OTHER_PROBLEMS


def equal(found: list[float], published: list[float]) -> bool:
    """To nine digits."""
    return np.allclose(found, published, rtol=DIGITS, atol=0, equal_nan=True)


def alike(row: dict[str, Any], known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Published rows of the same names and numbers, such as case and seed, and with as many figures."""
    names = {name: value for name, value in row.items() if isinstance(value, str | int)}
    for other in known:
        if "seconds" not in other and "ours" not in other:
            continue
        if len(figures_of(other)) == len(figures_of(row)) and all(
            other.get(name) == value for name, value in names.items()
        ):
            yield other


def figures_of(tree: Any) -> list[float]:
    """What is estimated anywhere in a row."""
    return [value for name, value in leaves(tree) if name in NAMES and isinstance(value, float)]


def problems_of(tree: Any) -> list[list[str]]:
    """The names of the problems anywhere in a row, whether their evidence is kept or not."""
    return [sorted(value) for name, value in leaves(tree) if name == "problems"]


def leaves(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Names and values anywhere in a row; problems are one value."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in parts:
        yield name, value
        if name != "problems":
            yield from leaves(value)
