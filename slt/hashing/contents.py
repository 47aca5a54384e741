"""What an object consists of: its parts, its attributes, and what pickle would keep of it."""

from __future__ import annotations

import contextlib
import contextvars
import copyreg
import io
import random
import types
import warnings
import weakref
import zipfile
from collections.abc import ItemsView, KeysView, ValuesView
from typing import Any

import numpy as np
import torch
from torch import nn

from slt.hashing.bytecode import contents_of_cell

PROTOCOL = 4  # of pickle
# Generators whose state is the process's, and not of what draws from them.
OF_THE_PROCESS = (np.random.mtrand._rand, random._inst, torch.default_generator)
HASHES = frozenset({"_original_object_hash"})  # of texts, by Python: another one in every process; of Transformers
# Attributes of a module that count by themselves, and the arguments of torch.compile, which Lightning puts there.
APART = frozenset({
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook", "_compile_kwargs",
})  # fmt: skip
BARE = frozenset(vars(nn.Module()))  # attributes that every module has


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module by itself, without what differs in every process."""
    plain = {name: item for name, item in vars(module).items() if name not in APART}
    if "_torchdynamo_orig_callable" in plain:  # made by torch.compile: all else is the compiler's
        plain = {name: item for name, item in plain.items() if name in BARE}
    if plain.get("_compiled_call_impl") is not None:
        plain["_compiled_call_impl"] = True
    hooks = {name: item for name, item in plain.items() if "_hooks" in name and item and isinstance(item, dict)}
    # torch counts all hooks of a process
    places = {number: place for name in hooks if name.endswith("hooks") for place, number in enumerate(hooks[name])}
    for name, item in hooks.items():
        plain[name] = {places.get(number, number): hook for number, hook in item.items()}
    return plain


def parts_of(value: Any) -> tuple[Any, ...] | None:
    """What an object of the language or of torch consists of, where pickle refuses it or keeps addresses of it."""
    if any(value is each for each in OF_THE_PROCESS):
        return ()
    if isinstance(value, property):
        return (value.fget, value.fset, value.fdel)
    if isinstance(value, staticmethod | classmethod):
        return (value.__func__,)
    if isinstance(value, types.CellType):
        return (contents_of_cell(value),)
    if isinstance(value, weakref.ref):
        return (value(),)
    if isinstance(value, slice):
        return (value.start, value.stop, value.step)
    if isinstance(value, KeysView | ValuesView | ItemsView):
        return (list(value),)
    if isinstance(value, torch.Generator):
        return (value.device, value.get_state())
    if isinstance(value, torch.UntypedStorage):
        return (torch.empty(0, dtype=torch.uint8, device=value.device).set_(value),)
    if isinstance(value, torch.TypedStorage):
        return (value.dtype, value._untyped_storage)
    if isinstance(value, contextvars.ContextVar):
        return (value.name, value.get(None))
    return None


def script_files(saved: bytes) -> list[tuple[str, Any]]:
    """What a script of torch consists of: its files, without the order of its constants and where its source was."""
    found: list[tuple[str, Any]] = []
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        for name in archive.namelist():
            lines = archive.read(name).splitlines() if name.endswith(".py") else [archive.read(name)]
            if not name.endswith(".debug_pkl") and "/.data/" not in name:
                final = sorted(line for line in lines if b" : Final[" in line)
                found.append((name, (final, [line for line in lines if line not in final])))
    return found


def kept_by_pickle(value: Any) -> tuple[Any, ...] | str | None:
    """What pickle would keep of an object, iterators in it as lists; None where it refuses it."""
    reduce = copyreg.dispatch_table.get(type(value))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # iterators of itertools will be refused one day, which does no harm
            kept = reduce(value) if reduce else value.__reduce_ex__(PROTOCOL)
    except Exception:  # whatever the object raises
        return None
    if isinstance(kept, tuple):
        return (*kept[:3], *(None if each is None else list(each) for each in kept[3:5]), *kept[5:])
    return kept


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots by the names that they have outside of its class."""
    found = {}
    for kind in reversed(type(value).__mro__):
        for name, member in vars(kind).items() if "__slots__" in vars(kind) else ():
            if isinstance(member, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # not set
                    found[name] = member.__get__(value)
    own = getattr(value, "__dict__", None)
    found |= own if isinstance(own, dict) else {}
    return {name: item for name, item in found.items() if name not in HASHES}


def printed(value: Any) -> str:
    """What an object prints; an address where it cannot be printed."""
    try:
        return repr(value)
    except Exception:  # whatever the object raises
        return object.__repr__(value)
