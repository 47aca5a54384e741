"""A file that holds where an estimate is while it runs, so that one that was killed goes on from there."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from samplers import Run
from slt.files import locked, saved_whole


class RunningFile:
    """The state of a run in a file, written whole every so many seconds, by one process at a time.

    >>> with RunningFile("run.pt", key, every=60.0) as file:  # doctest: +SKIP
    ...     file.restore(run) or run.adapt(…)
    ...     run.draw(1000, pause=lambda: file.keep(run))

    Args:
        path: The file; its folder is made if it is not there.
        key: Of the estimate: see :func:`slt.fingerprint.fingerprint`.
        every: Seconds between two states that are written.
        strict: Whether a run that cannot go on here, such as one of another number of threads, is refused, instead of
            begun anew.

    Raises:
        InUseError: A ``ValueError``: another process writes it.
        ValueError: The file holds a run of another key, or it cannot be written.
    """

    def __init__(self, path: str | Path, key: str, every: float, *, strict: bool = True) -> None:
        self.path, self.key, self.every, self.strict = Path(path), key, every, strict
        self._lock = locked(lock_of(self.path), f"save_to: {str(path)!r}", "another file")
        self._written = time.monotonic()
        self._failed = self._finished = False
        try:
            self.stored = self._read()
        except BaseException:
            self._lock.release()
            raise

    def _read(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        try:
            stored = torch.load(self.path, weights_only=True, map_location="cpu")
            key = stored["key"]
        except Exception as error:
            aside = self.path.with_name(f"{self.path.name}.unreadable")
            self.path.replace(aside)
            warnings.warn(
                f"save_to: {str(self.path)!r} cannot be read ({type(error).__name__}: {error}); it is now "
                f"{aside.name}, and the estimate starts from its beginning.",
                stacklevel=4,
            )
            return None
        if key != self.key:
            raise ValueError(
                f"save_to: {str(self.path)!r} holds a run of other weights, data, loss, options or code; nothing of it "
                "can be used here. Delete it, or give another file."
            )
        return stored

    def __enter__(self) -> RunningFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._finished and error is None:  # its estimate is in other hands, or saved
            self.path.unlink(missing_ok=True)
        if not self.path.is_file():  # who still holds the old one sees that there is nothing to go on with
            lock_of(self.path).unlink(missing_ok=True)
        self._lock.release()

    def restore(self, run: Run) -> bool:
        """Let a run go on from where the file is.

        Args:
            run: A fresh one, made with the same arguments.

        Returns:
            Whether there was anything to go on with; if not, the run is as it was.

        Raises:
            ValueError: There was, of a run with another configuration.
        """
        if self.stored is None:
            return False
        asked, run.num_warmup = run.num_warmup, self.stored["num_warmup"]  # its pilot may have shortened it
        try:
            run.load_state_dict(self.stored["run"])
        except ValueError:
            if self.strict:
                raise
            run.num_warmup = asked
            return False
        return True

    def keep(self, run: Run) -> None:
        """Write the state of the run, if it is time to.

        A file that cannot be written, such as on a full disk, is warned of once: what was written before stays, and
        the run goes on.

        Args:
            run: Between two steps.
        """
        if time.monotonic() - self._written < self.every:
            return
        state = {"key": self.key, "num_warmup": run.num_warmup, "run": run.state_dict()}
        try:
            saved_whole(self.path, state)
        except OSError as error:
            if not self._failed:
                warnings.warn(
                    f"save_to: {str(self.path)!r} cannot be written ({error}); the run goes on, and what was written "
                    "before stays.",
                    RuntimeWarning,
                    stacklevel=4,
                )
            self._failed = True
        self._written = time.monotonic()

    def remove(self) -> None:
        """Delete the file when it is left without an error: its run has come to its end."""
        self._finished = True


def lock_of(path: Path) -> Path:
    """The lock of a running file."""
    return path.with_name(f"{path.name}.lock")
