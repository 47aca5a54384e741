"""A folder of finished estimates, each under its key: written whole or not at all, by one run at a time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from filelock import FileLock

from samplers.files import written_whole
from slt.estimate import LLCEstimate, load_estimate
from slt.files import InUseError, locked, saved_whole
from slt.running import RunningFile, lock_of

FOLDER, ENDING, LOCK = "estimates", ".nc", "in_use"
LAWS, RUNNING, RUN = "laws", "running", "run"
JOINING = 20.0  # seconds until the first process of a run has said which it is


class EstimateStore:
    """A folder of estimates, ``estimates/<key>.nc``, for one run: a process, or those of one ``torchrun``.

    A file is written beside its place and then put there in one operation of the file system, so that a file with a
    key is whole, whatever kills the process. The lock goes with the process that holds it: the children that it
    forked, such as the workers of a ``DataLoader``, do not hold it.

    >>> with EstimateStore("run1") as store:  # doctest: +SKIP
    ...     store.save(key, estimate)

    Args:
        folder: Where; made if it is not there.
        run: What the processes that may write here together have in common; empty for this one alone.

    Attributes:
        first: Whether this process has the lock, and so writes what there is one of.

    Raises:
        InUseError: A ``ValueError``: another run writes in it.
        ValueError: The folder cannot be written.
    """

    def __init__(self, folder: str | Path, run: str = "") -> None:
        self.folder, self._run = Path(folder), run
        self._lock: FileLock | None = None
        self._join()
        for name in (FOLDER, LAWS, RUNNING):
            (self.folder / name).mkdir(exist_ok=True)
        for left in (self.folder / FOLDER).glob("*.partial*"):  # of a writer that was killed
            if not self.is_running(left.name.partition(".")[0]):
                left.unlink(missing_ok=True)

    def _join(self) -> None:
        began = time.monotonic()
        while not self.take_lead():
            if self._run and self._told() == self._run:
                return
            if not self._run or time.monotonic() - began > JOINING:
                raise InUseError(
                    f"store: {str(self.folder)!r} is in use by another process. Wait for it, or give another folder."
                )
            time.sleep(JOINING / 100)

    def _told(self) -> str:
        try:
            return (self.folder / RUN).read_text()
        except OSError:
            return ""

    @property
    def first(self) -> bool:
        """Whether this process has the lock."""
        return self._lock is not None

    def take_lead(self) -> bool:
        """Take the lock, if no process has it: the one that had it may be gone.

        Returns:
            Whether this process has it.

        Raises:
            ValueError: The folder cannot be written.
        """
        if self._lock is None:
            try:
                self._lock = locked(self.folder / LOCK, f"store: {str(self.folder)!r}", "another folder")
            except InUseError:
                return False
            written_whole(self.folder / RUN, lambda partial: partial.write_text(self._run))
        return True

    def __enter__(self) -> EstimateStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()

    def load(self, key: str) -> LLCEstimate | None:
        """The estimate of a key, or None where there is none; a file that cannot be read is put aside, with a warning.

        Args:
            key: Its :func:`slt.fingerprint.fingerprint`.

        Returns:
            The estimate.
        """
        path = self.folder / FOLDER / f"{key}{ENDING}"
        if not path.is_file():
            return None
        try:
            return load_estimate(path)
        except Exception as error:
            aside = path.with_suffix(".unreadable")
            path.replace(aside)
            warnings.warn(
                f"store: {path.name} cannot be read ({type(error).__name__}: {error}); it is now {aside.name}, and its "
                "checkpoint is estimated again.",
                stacklevel=2,
            )
            return None

    def save(self, key: str, estimate: LLCEstimate) -> None:
        """Write an estimate under its key, whole or not at all.

        Args:
            key: Its :func:`slt.fingerprint.fingerprint`.
            estimate: The estimate.

        Raises:
            OSError: The file cannot be written, such as on a full disk; what was there before stays.
        """
        estimate.save(self.folder / FOLDER / f"{key}{ENDING}")

    def law(self, key: str) -> dict[str, Any] | None:
        """What was found for a series, or None where nothing was; a file that cannot be read counts as none.

        Args:
            key: Its :func:`slt.fingerprint.fingerprint`.

        Returns:
            Numbers, texts and tensors by name.
        """
        try:
            return torch.load(self.folder / LAWS / f"{key}.pt", weights_only=True, map_location="cpu")
        except FileNotFoundError:
            return None
        except Exception as error:
            warnings.warn(
                f"store: laws/{key}.pt cannot be read ({type(error).__name__}: {error}); it is found again.",
                stacklevel=2,
            )
            return None

    def save_law(self, key: str, law: dict[str, Any]) -> None:
        """Write what was found for a series, whole or not at all.

        Args:
            key: Its :func:`slt.fingerprint.fingerprint`.
            law: Numbers, texts and tensors by name.

        Raises:
            OSError: The file cannot be written.
        """
        saved_whole(self.folder / LAWS / f"{key}.pt", law)

    @contextmanager
    def turn_at_law(self, key: str) -> Iterator[None]:
        """A context in which it is the turn of this process to find a law.

        Args:
            key: Of the law.

        Raises:
            InUseError: Another process is finding it.
        """
        path = self.folder / LAWS / f"{key}.lock"
        lock = locked(path, f"store: the law {key}", "another folder")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # who still holds the old one sees that the law is there
            lock.release()

    def running(self, key: str, every: float) -> RunningFile:
        """The turn of this process to make an estimate: the file in which it is kept while it runs, to be entered.

        Args:
            key: Of the estimate.
            every: Seconds between two states that are written.

        Returns:
            The file, whose lock is held until it is left.

        Raises:
            InUseError: Another process is making it.
        """
        # of a process with another number of threads, on another machine, it cannot go on bitwise
        return RunningFile(self._running(key), key, every, strict=False)

    def is_running(self, key: str) -> bool:
        """Whether a process is making an estimate.

        Args:
            key: Of the estimate.

        Returns:
            Whether its lock is held.
        """
        path = self._running(key)
        try:
            lock = locked(lock_of(path), f"store: {path.name}", "another folder")
        except InUseError:
            return True
        if not path.is_file():
            lock_of(path).unlink(missing_ok=True)
        lock.release()
        return False

    def _running(self, key: str) -> Path:
        return self.folder / RUNNING / f"{key}.pt"
