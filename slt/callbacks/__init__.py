"""Estimates inside training, which they leave bit-identical.

``slt.callbacks.lightning.LLCCallback`` and ``slt.callbacks.transformers.LLCCallback`` are imported by name, because
they need Lightning and Transformers.
"""

from slt.callbacks.logs import to_csv, to_tensorboard, to_wandb
from slt.callbacks.monitor import LLCMonitor
from slt.callbacks.schedule import log_spaced

__all__ = ["LLCMonitor", "log_spaced", "to_csv", "to_tensorboard", "to_wandb"]
