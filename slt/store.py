"""A folder of finished estimates, each under its key: written whole or not at all, by one writer at a time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from slt.estimate import LLCEstimate, load_estimate

FOLDER, ENDING, LOCK = "estimates", ".nc", "in_use"


class EstimateStore:
    """A folder of estimates, ``estimates/<key>.nc``, for one writer.

    An estimate is written beside its place and then put there in one operation of the file system, so that a file
    with a key is whole, whatever kills the process. The lock goes with the process that holds it: the children that it
    forked, such as the workers of a ``DataLoader``, do not hold it.

    >>> with EstimateStore("run1") as store:  # doctest: +SKIP
    ...     store.save(key, estimate)

    Args:
        folder: Where; made if it is not there.

    Raises:
        ValueError: The folder cannot be written, or another process writes in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lock = locked(self.folder / LOCK, f"store: {str(folder)!r}", "another folder")
        (self.folder / FOLDER).mkdir(exist_ok=True)
        for left in (self.folder / FOLDER).glob("*.partial*"):  # of a writer that was killed
            left.unlink()

    def __enter__(self) -> EstimateStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
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
        written_whole(self.folder / FOLDER / f"{key}{ENDING}", estimate.save)


def locked(path: Path, what: str, instead: str) -> FileLock:
    """A lock on a file, held: by one process at a time, and not by the children that it forks.

    Args:
        path: Of the lock; its folder is made if it is not there.
        what: Is locked, for the message: an argument's name and value.
        instead: What else the user may give.

    Returns:
        The lock, to be released.

    Raises:
        ValueError: Another process holds it, or it cannot be written.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{what} is in use by another process. Wait for it, or give {instead}.") from None
    except OSError as error:
        raise ValueError(f"{what} cannot be written ({error}). Give {instead}.") from error
    return lock


def written_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Have a file written beside its place, forced to the disk, and put in its place in one operation.

    Args:
        path: Its place.
        write: Writes it where it is told.

    Raises:
        OSError: It cannot be written; what was in its place stays.
    """
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        write(partial)
        with partial.open("r+b") as file:  # Windows forces nothing to the disk that is open for reading
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
