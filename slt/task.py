"""A model, its data and its loss in one value: what the command line works on."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from slt.loss import LossFn


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
