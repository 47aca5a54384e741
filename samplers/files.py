"""Files that are whole or not there."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

import xarray

LEFT_AFTER = 3600.0  # seconds for which nobody has written to a file beside its place: its writer was killed


def written_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place, forced to the disk, and put in its place in one operation.

    Each writer has a name of its own beside the place, ``table.partial-<16 digits>.csv``; what killed ones left there
    is removed an hour later.

    Args:
        path: Its place.
        write: Writes it where it is told.

    Raises:
        OSError: It cannot be written; what was in its place stays.
    """
    # by one name for all, one writer would publish half of another's file, which would then find its own gone
    partial = path.with_name(f"{path.stem}.partial-{token_hex(8)}{path.suffix}")
    try:
        write(partial)
        with partial.open("r+b") as file:  # Windows forces nothing to the disk that is open for reading
            os.fsync(file.fileno())
        now = partial.stat().st_mtime  # by the clock of the disk, which may be another machine's
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    for left in path.parent.glob(f"{glob.escape(path.stem)}.partial-*{glob.escape(path.suffix)}"):
        with suppress(OSError):  # such as of another writer that has just put it in its place
            if now - left.stat().st_mtime > LEFT_AFTER:
                left.unlink()


def tree_written_whole(path: Path, tree: xarray.DataTree) -> None:
    """Have a tree written as netCDF by :func:`written_whole`.

    Args:
        path: Its place.
        tree: The tree.

    Raises:
        OSError: It cannot be written; what was in its place stays.
    """
    # made in memory: HDF5 that meets a full disk ends the process when it closes its file
    content = tree.to_netcdf(engine="h5netcdf")
    assert content is not None
    written_whole(path, lambda partial: partial.write_bytes(content))
