"""What a run is made of, as plain numbers and tensors that ``torch.save`` writes, and back."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from samplers.kernel import Kernel
from samplers.kronecker import Kronecker
from samplers.low_rank import LowRank
from samplers.noise import ColumnStreams
from samplers.preconditioner import Diagonal, Identity

PRECONDITIONERS = {kind.__name__: kind for kind in (Identity, Diagonal, Kronecker, LowRank)}


def saved(value: Any) -> Any:
    """A copy of a state, a kernel's settings or a generator, in plain numbers, tensors, lists and dicts.

    Args:
        value: A dataclass of tensors, numbers and generators, or of others of its kind; a kernel; a preconditioner.

    Returns:
        What ``torch.load(…, weights_only=True)`` can read, and :func:`restored` turns back.

    Raises:
        TypeError: It holds something that cannot be saved.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, Kernel):
        return saved(value.settings)
    if isinstance(value, list | tuple):
        return [saved(item) for item in value]
    if isinstance(value, Mapping):
        return {name: saved(item) for name, item in value.items()}
    if isinstance(value, ColumnStreams):
        return saved(value.generators)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: saved(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "apply_root_"):
        return {"preconditioner": type(value).__name__, "parts": saved(vars(value))}
    raise TypeError(
        f"state: holds a {type(value).__name__}, which cannot be saved; expected tensors, numbers, generators, and "
        "lists, dicts and dataclasses of them."
    )


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits that tell one preconditioner from another.

    Args:
        value: What :func:`saved` can save, such as a preconditioner.

    Returns:
        The beginning of the SHA-256 of its tensors and numbers.
    """
    found = hashlib.sha256()
    leaves, structure = tree_flatten(saved(value))
    found.update(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            leaf = leaf.cpu().contiguous()
            found.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            found.update(leaf.view(torch.uint8).numpy().tobytes() if leaf.ndim else leaf.numpy().tobytes())
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()[:16]


def restored(value: Any, stored: Any, device: torch.device) -> Any:
    """``value`` with its numbers replaced by those that :func:`saved` made of another of its kind.

    Args:
        value: Of the same make: a state that the same kernel started, or the kernel before its adaptation.
            Dataclasses and generators are changed in place.
        stored: From :func:`saved`.
        device: Where its tensors and generators are to be.

    Returns:
        The restored value.
    """
    if isinstance(value, Kernel):
        settings = {name: restored(setting, stored[name], device) for name, setting in value.settings.items()}
        return value.tune(**settings)
    if isinstance(value, torch.Generator):
        return value.set_state(stored.cpu())
    if isinstance(value, ColumnStreams):
        value.generators[:] = [torch.Generator(device=device).set_state(state.cpu()) for state in stored]
        return value
    if isinstance(stored, Mapping) and "preconditioner" in stored:
        kind = PRECONDITIONERS.get(stored["preconditioner"])
        preconditioner = copy.copy(value) if kind is None else kind.__new__(kind)
        vars(preconditioner).update({name: restored(None, part, device) for name, part in stored["parts"].items()})
        return preconditioner
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            setattr(value, field.name, restored(getattr(value, field.name), stored[field.name], device))
        return value
    if isinstance(stored, Tensor):
        return stored.to(device=device, copy=True)
    return tuple(stored) if isinstance(value, tuple) else copy.copy(stored)
