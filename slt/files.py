"""Locks on files that go with the process that holds them, and ``torch.save`` as a file that is whole or not there."""

from __future__ import annotations

from pathlib import Path

import torch
from filelock import FileLock, Timeout

from samplers.files import written_whole


class InUseError(ValueError):
    """Another process has what was asked for."""


def locked(path: Path, what: str, instead: str) -> FileLock:
    """A lock on a file, held: by one process at a time, and not by the children that it forks.

    Args:
        path: Of the lock; its folder is made if it is not there.
        what: Is locked, for the message: an argument's name and value.
        instead: What else the user may give.

    Returns:
        The lock, to be released.

    Raises:
        InUseError: A ``ValueError``: another process holds it.
        ValueError: It cannot be written.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InUseError(f"{what} is in use by another process. Wait for it, or give {instead}.") from None
    except OSError as error:
        raise ValueError(f"{what} cannot be written ({error}). Give {instead}.") from error
    return lock


def saved_whole(path: Path, state: object) -> None:
    """Have :func:`torch.save` write a file as :func:`samplers.files.written_whole` does.

    Args:
        path: Its place.
        state: What ``torch.save`` takes.

    Raises:
        OSError: It cannot be written; what was in its place stays.
    """

    def write(partial: Path) -> None:
        try:
            torch.save(state, partial)
        except RuntimeError as error:  # which is what torch's own writer raises on a full disk
            raise OSError(f"torch.save: {error}") from error

    written_whole(path, write)
