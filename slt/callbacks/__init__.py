"""Estimates inside training, which they leave bit-identical."""

from slt.callbacks.monitor import LLCMonitor

__all__ = ["LLCMonitor"]
