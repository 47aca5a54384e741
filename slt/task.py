"""A model, its data and its loss in one value: what the command line works on."""

from __future__ import annotations

import sys
import traceback
from typing import Any, NamedTuple

from torch import nn

from slt.loss import LossFn

# whose lines in a traceback are none of the task's: this library, and what it calls itself
LIBRARIES = {"slt", "samplers", "torch", "numpy", "xarray", "arviz", "h5netcdf", "h5py", "safetensors", "tqdm"}


class Task(NamedTuple):
    """What ``slt estimate file.py:function`` expects the function to return.

    Attributes:
        model: The module; ``--checkpoint`` is loaded into it.
        data: See :func:`slt.estimate_llc`.
        loss_fn: See :func:`slt.estimate_llc`.
        options: Keyword arguments for :func:`slt.estimate_llc`, which flags of the command override.
    """

    model: nn.Module
    data: Any
    loss_fn: LossFn
    options: dict[str, Any] = {}  # noqa: RUF012  (a default of a NamedTuple is never written to)


def raised_by_task(error: BaseException) -> bool:
    """Whether an error came out of the code of the task, its loss, its model or its data, and not of this library.

    Args:
        error: As it was caught.

    Returns:
        Whether a line of its traceback is of other code than this library, what that calls, and Python's own.
    """
    roots = {
        str(frame.f_globals.get("__name__", "")).partition(".")[0]
        for frame, _ in traceback.walk_tb(error.__traceback__)
    }
    return bool(roots - LIBRARIES - sys.stdlib_module_names)
