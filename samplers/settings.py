"""The settings of kernels, as they are recorded and looked through."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from samplers.kernel import Kernel
from samplers.saving import digest


def recordable(value: Any) -> Any:
    """A setting as a number, string, list or dict, which is written with a trace and compared between runs."""
    if isinstance(value, Tensor):
        return value.squeeze(-1).tolist()
    if isinstance(value, Kernel):
        return {"kernel": value.name, **{name: recordable(setting) for name, setting in value.settings.items()}}
    if isinstance(value, tuple | list):
        return [recordable(item) for item in value]
    if hasattr(value, "apply_root_"):
        return f"{value!r}, {digest(value)}"
    return value if isinstance(value, int | float | str | bool) or value is None else repr(value)


def tensors_of(settings: Any) -> list[tuple[str, Tensor]]:
    """Numbers that kernels may take one of per chain, by the names of their settings."""
    found: list[tuple[str, Tensor]] = []
    for name, value in settings.items():
        parts = value if isinstance(value, tuple | list) else (value,)
        found.extend((name, part) for part in parts if isinstance(part, Tensor))
        if isinstance(value, Kernel):
            found.extend(tensors_of(value.settings))
    return found
