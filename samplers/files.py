"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import xarray


def written_whole(path: Path, write: Callable[[Path], object]) -> None:
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
