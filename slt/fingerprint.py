"""What identifies an estimate: a hash of weights, model, data, loss and configuration; nothing stale has the same."""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slt.data import BatchData, Data, TensorData

LENGTH = 32  # hexadecimal digits, 128 bits
PASS = 1 << 16  # samples hashed at a time
DEEPEST = 8  # nesting of values that is followed; below it their type counts

# What a function uses of its module's names and is counted by value; other objects there, such as a model in training
# or a log, are not the loss.
COUNTED = (
    types.FunctionType, type, types.ModuleType, functools.partial, bool, int, float, complex, str, bytes, tuple, Tensor,
    np.ndarray,
)  # fmt: skip


def fingerprint(*parts: Any) -> str:
    """A hash of values: 32 hexadecimal digits, the same in every process.

    Numbers, strings, tensors, arrays, and nests of them count by value; functions by their qualified name, source,
    defaults, the values in their closure, and the functions, classes and constants of their module that they use;
    modules by the source of their classes, their printed form and their weights; other objects by the source of their
    class and their attributes.

    Args:
        parts: The values.

    Returns:
        The hash.
    """
    digest = hashlib.sha256()
    _add(digest, parts, ())
    return digest.hexdigest()[:LENGTH]


def data_fingerprint(data: Data | None) -> str:
    """A hash of every sample, in order.

    Args:
        data: As :func:`slt.data.as_data` holds it. What is streamed is read once.

    Returns:
        The hash.
    """
    if data is None:
        return fingerprint("no data")
    digest = hashlib.sha256()
    if isinstance(data, TensorData):
        _add(digest, data.tree, ())
    else:
        assert isinstance(data, BatchData)
        for batch in data.chunks(PASS):
            _add(digest, batch.data, ())
    return digest.hexdigest()[:LENGTH]


def _add(digest: Any, value: Any, seen: tuple[int, ...]) -> None:
    """Add a value, its kind first, so that 1 and "1" and (1,) differ."""
    if id(value) in seen or len(seen) > DEEPEST:  # an object that holds itself, or one far down
        _add_text(digest, f"again {type(value).__qualname__}")
        return
    inside = (*seen, id(value))
    if isinstance(value, Tensor):
        _add_array(digest, value)
    elif isinstance(value, np.ndarray):
        _add(digest, ("array", str(value.dtype), value.shape, value.tobytes()), inside)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        text = value.hex() if isinstance(value, float | bytes) else repr(value)
        _add_text(digest, f"{type(value).__name__}:{text}")
    elif isinstance(value, Mapping):
        _add_text(digest, f"mapping {len(value)}")
        for key, item in value.items():
            _add(digest, key, inside)
            _add(digest, item, inside)
    elif isinstance(value, tuple | list):
        _add_text(digest, f"sequence {len(value)}")
        for item in value:
            _add(digest, item, inside)
    elif isinstance(value, set | frozenset):
        _add(digest, sorted(map(repr, value)), inside)
    elif isinstance(value, functools.partial):
        _add(digest, ("partial", value.func, value.args, value.keywords), inside)
    elif isinstance(value, types.MethodType):
        _add(digest, ("method", value.__func__, value.__self__), inside)
    elif isinstance(value, types.FunctionType):
        _add_function(digest, value, inside)
    elif isinstance(value, nn.Module):
        classes = {type(module).__qualname__: _source(type(module)) for module in value.modules()}
        _add(digest, ("module", repr(value), classes, value.state_dict()), inside)
    elif isinstance(value, types.ModuleType):
        _add(digest, ("library", value.__name__, str(getattr(value, "__version__", ""))), inside)
    elif isinstance(value, type | types.BuiltinFunctionType):
        _add(digest, ("name", value.__module__, value.__qualname__, _source(value)), inside)
    else:
        _add(
            digest, ("object", type(value).__qualname__, _source(type(value)), getattr(value, "__dict__", None)), inside
        )


def _add_text(digest: Any, text: str) -> None:
    encoded = text.encode()
    digest.update(f"{len(encoded)}:".encode() + encoded + b";")


def _add_array(digest: Any, tensor: Tensor) -> None:
    tensor = tensor.detach()
    _add_text(digest, f"tensor {tensor.dtype} {tuple(tensor.shape)}")
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.contiguous().view(-1).cpu()
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _add_function(digest: Any, function: types.FunctionType, inside: tuple[int, ...]) -> None:
    captured = [_contents(cell) for cell in function.__closure__ or ()]
    named = {name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__}
    used = {name: item if isinstance(item, COUNTED) else type(item).__qualname__ for name, item in named.items()}
    parts = (function.__qualname__, _source(function), function.__defaults__, function.__kwdefaults__, captured, used)
    _add(digest, ("function", *parts), inside)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def _source(thing: Any) -> str:
    """The source, or the name and bytecode where there is none."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        code = getattr(thing, "__code__", None)
        return repr((getattr(thing, "__qualname__", repr(type(thing))), code.co_code if code else b""))
