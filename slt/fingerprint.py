"""What identifies an estimate: a hash of weights, model, data, loss and configuration; nothing stale has the same."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from samplers import Kernel
from slt.data import BatchData, Data, TensorData
from slt.hashing import Hashing
from slt.hashing.installed import OWN
from slt.hashing.values import LENGTH

PASS = 1 << 16  # samples hashed at a time


def fingerprint(*parts: Any) -> str:
    """A hash of values: 32 hexadecimal digits, the same in every process.

    Numbers, strings, tensors, arrays, and nests of them count by value. Functions count by source and bytecode, their
    defaults, what they captured, and what they use of their file's names, of other files, and of what they import when
    they run. It is followed through all functions, classes and files that are not of an installed library; those count
    by name and version. A file that a function calls through counts by its text too, since not all that is used of it
    can be told. Modules of torch count by their printed form, classes, weights, all buffers, modes, plain attributes
    and hooks, and what ``torch.compile`` made as what it was made of. Other objects count by class and attributes, and
    those of libraries by what pickle would keep of them. What nothing tells, such as what a generator will give, counts
    as another thing each time, and is warned of.

    Args:
        parts: The values.

    Returns:
        The hash.
    """
    hashing = Hashing()
    hashing.add(parts)
    found = hashing.finished()
    hashing.warn()
    return found


def data_fingerprint(data: Data | None) -> str:
    """A hash of every sample, in order.

    Args:
        data: As :func:`slt.data.as_data` holds it. What is streamed is read once.

    Returns:
        The hash.
    """
    if data is None:
        return fingerprint("no data")
    hashing = Hashing()
    if isinstance(data, TensorData):
        hashing.add(data.tree)
    else:
        assert isinstance(data, BatchData)
        for batch in data.chunks(PASS):
            within = Hashing(hashing)  # which alone holds the batch
            within.add(batch.data)
            hashing.add(within.finished())
    found = hashing.finished()
    hashing.warn()
    return found


def estimate_key(model: nn.Module, data: Data | None, loss_fn: Any, options: Mapping[str, Any]) -> str:
    """The key of an estimate: one with another would not give the same, bit for bit.

    Args:
        model: The module, at its weights.
        data: As :func:`slt.data.as_data` holds it.
        loss_fn: The loss.
        options: All other arguments that count.

    Returns:
        The hash.
    """
    return fingerprint(shared_parts(data, loss_fn), recorded(options), device_kind(model), *weights_parts(model))


def shared_parts(data: Data | None, loss_fn: Any) -> tuple[Any, ...]:
    """What the keys of all checkpoints of a series have in common, beside their options."""
    return (torch.__version__, code_fingerprint(), data_fingerprint(data), fingerprint(loss_fn))


def weights_parts(model: nn.Module) -> tuple[Any, ...]:
    """What the key of one checkpoint has to itself."""
    return (model, [each.requires_grad for each in model.parameters()])


def device_kind(model: nn.Module) -> str:
    """``"cpu"`` or ``"cuda"``: another draws other random numbers."""
    return next(model.parameters()).device.type


def recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they enter a key: of a kernel its name and settings."""
    return {
        name: (value.name, value.settings) if isinstance(value, Kernel) else value
        for name, value in sorted(options.items())
        if name not in ("progress", "save_to", "save_every")
    }


@functools.cache
def code_fingerprint() -> str:
    """A hash of the source of slt and samplers: what makes an estimate is in its key, installed or not.

    A version would not do: it is one and the same between two releases, and there is none where the packages are on
    the path without being installed.

    Returns:
        The hash.
    """
    digest = hashlib.sha256()
    for package in OWN:
        folder = Path(str(sys.modules[package].__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{package}/{path.relative_to(folder).as_posix()}:{len(content)};".encode() + content)
    return digest.hexdigest()[:LENGTH]
