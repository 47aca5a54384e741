"""The processes of a group that share one run: each advances its own blocks of chains, and all have every draw."""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

Made = TypeVar("Made")


class Processes:
    """One process, or those of a ``torch.distributed`` group, which all run the same program.

    Args:
        group: Such as ``torch.distributed.group.WORLD`` after ``init_process_group``; None for this process alone.

    Raises:
        ValueError: This process does not belong to the group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.count = 1 if group is None else dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError(
                "process_group: this process does not belong to it; expected a call in its processes alone."
            )

    def own(self, index: int) -> bool:
        """Whether the work of this number is this process's: they take turns."""
        return index % self.count == self.rank

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What the first process made, in all of them, so that rounding cannot make them differ.

        Args:
            make: Is called in the first process alone; what it returns can be pickled.

        Returns:
            What it returned.

        Raises:
            RuntimeError: A process of the group is gone.
            Exception: What it raised, in all processes.
        """
        group = self.group
        if group is None:
            return make()
        made, error = None, None
        if self.rank == 0:
            try:
                made = make()
            except Exception as raised:
                error = raised
        box = [made, _portable(error)]
        first = dist.get_global_rank(group, 0)
        self._exchanged(lambda: dist.broadcast_object_list(box, first, group))
        if error is not None:  # with its own traceback
            raise error
        if box[1] is not None:
            raise box[1]
        return box[0]  # type: ignore[return-value]

    def from_all(self, value: Any, error: Exception | None = None) -> list[Any]:
        """What every process has, in their order, in all of them.

        Args:
            value: Of this process; can be pickled.
            error: Of this process, if it failed: it is then raised in all of them, instead of keeping them waiting.

        Returns:
            Values.

        Raises:
            RuntimeError: A process of the group is gone.
            Exception: The error of the first process that has one.
        """
        if self.group is None:
            if error is not None:
                raise error
            return [value]
        found: list[Any] = [None] * self.count
        self._exchanged(lambda: dist.all_gather_object(found, (value, _portable(error)), self.group))
        if error is not None:
            raise error
        for _, raised in found:
            if raised is not None:
                raise raised
        return [each for each, _ in found]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A context that all processes leave at the same time, each with the error of the first that has one.

        Raises:
            RuntimeError: A process of the group is gone.
            Exception: That error.
        """
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        self.from_all(None, error)

    def _exchanged(self, exchange: Callable[[], Any]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise RuntimeError(
                f"process_group: process {self.rank} of {self.count} lost another one ({str(error).splitlines()[0]}); "
                "no draw of it is left out silently, so there is no result. Look for its own error, and start again."
            ) from error


def _portable(error: Exception | None) -> Exception | None:
    """The error, or what can be sent of it."""
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """A context that Ctrl-C does not end; what it yields is not empty then."""
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = signal.signal(signal.SIGINT, lambda number, _: told.append(number))
    try:
        yield told
    finally:
        signal.signal(signal.SIGINT, before)
