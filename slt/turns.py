"""Tasks that several processes share: each takes what no other has, and waits for the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

WAIT = 0.5  # seconds, before it is asked again whether another process has finished what it has


def in_turns(tasks: Iterable[Task], attempt: Callable[[Task], Result | None]) -> Iterator[tuple[Task, Result]]:
    """The results of tasks, each as soon as it is there.

    Args:
        tasks: In the order in which they are tried.
        attempt: The result of one, whoever made it; None while another process has it.

    Yields:
        A task and its result.
    """
    waiting = list(tasks)
    while waiting:
        left = []
        for task in waiting:
            result = attempt(task)
            if result is None:
                left.append(task)
            else:
                yield task, result
        waiting = left
        if waiting:
            time.sleep(WAIT)
