"""What identifies an estimate: a hash of weights, model, data, loss and configuration; nothing stale has the same."""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import os
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samplers import Kernel
from slt.data import BatchData, Data, TensorData

LENGTH = 32  # hexadecimal digits, 128 bits
PASS = 1 << 16  # samples hashed at a time
DEEPEST = 12  # nesting of foreign objects that is followed
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in what objects print: another one in every process
PLAIN = (bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, torch.Size, Path, type(...))
OWN = ("slt", "samplers")
STANDARD_LIBRARY = (Path(os.__file__).parent, *map(Path, map(sysconfig.get_path, ("stdlib", "platstdlib"))))
# Attributes of a module that are not what it computes, or stand elsewhere.
APART = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook"})


def fingerprint(*parts: Any) -> str:
    """A hash of values: 32 hexadecimal digits, the same in every process.

    Numbers, strings, tensors, arrays, and nests of them count by value. Functions count by source and bytecode, their
    defaults, what they captured, and what they use of their file's names, of other files, and of what they import when
    they run. It is followed through all functions, classes and files that are not of an installed library; those count
    by name and version. A file that a function calls through counts by its text too, since not all that is used of it
    can be told. Modules of torch count by their printed form, classes, weights, all buffers, modes, plain attributes
    and hooks; other objects by class and attributes.

    Args:
        parts: The values.

    Returns:
        The hash.
    """
    hashing = _Hashing()
    hashing.add(parts)
    return hashing.digest.hexdigest()[:LENGTH]


def data_fingerprint(data: Data | None) -> str:
    """A hash of every sample, in order.

    Args:
        data: As :func:`slt.data.as_data` holds it. What is streamed is read once.

    Returns:
        The hash.
    """
    if data is None:
        return fingerprint("no data")
    hashing = _Hashing()
    if isinstance(data, TensorData):
        hashing.add(data.tree)
    else:
        assert isinstance(data, BatchData)
        for batch in data.chunks(PASS):
            hashing.add(batch.data)
    return hashing.digest.hexdigest()[:LENGTH]


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


class _Hashing:
    """Values added to one hash. What was followed once is not followed again: cycles end, and nothing counts twice."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        # Identity → when it came first, and the object: held, so that no other gets its identity anew.
        self.followed: dict[int, tuple[int, Any]] = {}

    def add(self, value: Any, depth: int = 0) -> None:
        """Add a value, its kind first, so that 1 and "1" and (1,) differ."""
        if value is None or isinstance(value, PLAIN):
            text = value.hex() if isinstance(value, float | bytes) else repr(value)
            self._text(f"{type(value).__name__}:{text}")
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray | np.generic):
            self.add(("array", str(value.dtype), value.shape, value.tobytes()), depth)
        elif isinstance(value, Mapping):
            self._text(f"mapping {len(value)}")
            for key, item in value.items():
                self.add((key, item), depth)
        elif isinstance(value, tuple | list):
            self._text(f"sequence {len(value)}")
            for item in value:
                self.add(item, depth)
        elif isinstance(value, set | frozenset):
            self.add(sorted(map(fingerprint, value)), depth)
        elif id(value) in self.followed:
            self._text(f"again {self.followed[id(value)][0]}")  # which of those before, not one of its kind
        elif depth > DEEPEST:
            self._text(f"too deep {type(value).__qualname__}")
        else:
            self.followed[id(value)] = (len(self.followed), value)
            self._object(value, depth + 1)

    def _object(self, value: Any, depth: int) -> None:
        if isinstance(value, functools.partial):
            self.add(("partial", value.func, value.args, value.keywords), depth)
        elif isinstance(value, types.MethodType):
            self.add(("method", value.__func__, value.__self__), depth)
        elif isinstance(value, types.ModuleType) and _installed(value.__name__):
            self.add(("library", value.__name__, str(getattr(value, "__version__", ""))), depth)
        elif isinstance(value, types.ModuleType):
            self.add(("file", value.__name__, _content(value)), depth)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, nn.Module):
            self._module(value, depth)
        elif callable(value) and not hasattr(value, "__dict__"):  # built in
            self._text(
                f"built in {getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(type(value)))}"
            )
        else:
            slots = [name for kind in inspect.getmro(type(value)) for name in getattr(kind, "__slots__", ())]
            state = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(
                value, "__dict__", {}
            )
            self.add(("object", type(value), state or ADDRESS.sub("", repr(value))), depth)

    def _function(self, function: types.FunctionType) -> None:
        if _installed(function.__module__):
            self.add(("function", function.__module__, function.__qualname__, _release(function.__module__)))
            return
        captured = [_contents(cell) for cell in function.__closure__ or ()]
        parts = (function.__qualname__, _source(function), function.__defaults__, function.__kwdefaults__, captured)
        self.add(("function", *parts))
        self._code(function.__code__)
        names, dotted = _names(function.__code__), _dotted(function.__code__)
        used = {name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())}
        held = dict(zip(function.__code__.co_freevars, captured, strict=True))
        followed: set[int] = set()
        for name, value in used.items():
            self.add((name, value))
        for name, value in (used | held | _defaults(function)).items():
            self._used(name, value, names, dotted, followed)
        for path, items in _imports(function):
            if _installed(path):
                self.add(("library", path, _versions(path)))
                continue
            for each in (path.partition(".")[0], path, *(f"{path}.{item}" for item in items)):
                module = _imported(each)
                self.add((each, module))
                self._used(each.rpartition(".")[2], module, names, dotted, followed)

    def _used(self, label: str, module: Any, names: set[str], dotted: set[tuple[str, str]], followed: set[int]) -> None:
        """Add what code uses of a module by name, and of the modules in that.

        A submodule is there or not by what else the process imported, and so counts only where it stands right behind
        the module: as ``b`` in ``a.b``, but not in ``a.c(batch.b)``.
        """
        if not isinstance(module, types.ModuleType) or _installed(module.__name__) or id(module) in followed:
            return
        followed.add(id(module))
        for name in sorted(names & vars(module).keys()):
            value = vars(module)[name]
            submodule = isinstance(value, types.ModuleType) and value.__name__ == f"{module.__name__}.{name}"
            if not submodule or (label, name) in dotted:
                self.add((name, value))
                self._used(name, value, names, dotted, followed)

    def _code(self, code: types.CodeType) -> None:
        constants = [None if isinstance(each, types.CodeType) else each for each in code.co_consts]
        self.add(("code", code.co_code, constants, code.co_names))
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self._code(inner)

    def _class(self, kind: type) -> None:
        if _installed(kind.__module__):
            self.add(("class", kind.__module__, kind.__qualname__, _release(kind.__module__)))
            return
        self.add(("class", kind.__qualname__, _source(kind), list(kind.__bases__)))
        for name, member in vars(kind).items():
            function = getattr(member, "__func__", getattr(member, "fget", member))  # of a class method or a property
            if isinstance(function, types.FunctionType) or not name.startswith("__"):
                self.add((name, function))

    def _module(self, module: nn.Module, depth: int) -> None:
        self.add(
            ("module", ADDRESS.sub("", repr(module)), dict(module.named_parameters(remove_duplicate=False))), depth
        )
        for name, part in module.named_modules(remove_duplicate=False):
            plain = {key: item for key, item in vars(part).items() if key not in APART}
            self.add((name, type(part), dict(part._buffers), plain), depth)

    def _text(self, text: str) -> None:
        encoded = text.encode()
        self.digest.update(f"{len(encoded)}:".encode() + encoded + b";")

    def _tensor(self, tensor: Tensor) -> None:
        tensor = tensor.detach()
        self._text(f"tensor {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        flat = tensor.contiguous().view(-1).cpu()
        self.digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _installed(module: str | None) -> bool:
    """Whether a module is of the standard library or of an installed package, which count by their version."""
    top = (module or "__main__").partition(".")[0]
    if top == "__main__":  # the user's, whatever file stands for it
        return False
    file = _file(top) or _file(str(module))  # that of a namespace package is nowhere
    if top in sys.stdlib_module_names and _standard(file):  # a file of the user's may have such a name
        return True
    return "site-packages" in file or "dist-packages" in file or top in (*OWN, "builtins")


def _standard(file: str) -> bool:
    """Whether a file is of the standard library; what is built into Python is in none."""
    return not os.path.isabs(file) or any(Path(file).is_relative_to(folder) for folder in STANDARD_LIBRARY)


def _release(module: str) -> str:
    return str(getattr(sys.modules.get(module.partition(".")[0]), "__version__", ""))


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _versions(module: str) -> list[str]:
    """The versions of what a module came with, the same whether it was imported yet or not."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in OWN:
        return []
    return sorted(importlib.metadata.version(each) for each in set(_distributions().get(top, ())))


def _file(module: str) -> str:
    """Where a module is, imported or not; nothing where it is in no file."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__file__", None) or ""
    try:
        specification = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return ""
    return getattr(specification, "origin", None) or ""


def _content(module: types.ModuleType) -> bytes:
    """Of a module's file; nothing where it has none, such as a notebook."""
    try:
        return Path(module.__file__ or "").read_bytes()
    except (OSError, AttributeError):
        return b""


def _imported(module: str) -> types.ModuleType | None:
    """A module that code would import when it runs, imported now: else its key would be another one afterwards."""
    try:
        return importlib.import_module(module)
    except Exception:  # whatever the module raises; the code may do without
        return None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of those inside it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _codes(each)


def _names(code: types.CodeType) -> set[str]:
    """What a function and those inside it look up by name."""
    return {name for each in _codes(code) for name in each.co_names}


def _instructions(code: types.CodeType) -> list[dis.Instruction]:
    return [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]


def _dotted(code: types.CodeType) -> set[tuple[str, str]]:
    """Which names stand right behind which others, as in ``a.b``."""
    pairs = [pair for each in _codes(code) for pair in itertools.pairwise(_instructions(each))]
    return {
        (one.argval, other.argval)
        for one, other in pairs
        if other.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(one.argval, str)
    }


def _imports(function: types.FunctionType) -> list[tuple[str, tuple[str, ...]]]:
    """What a function and those inside it import: full names of modules, and what is taken from each."""
    found = []
    for code in _codes(function.__code__):
        instructions = _instructions(code)
        for place, each in enumerate(instructions):
            if each.opname == "IMPORT_NAME":
                level, items = instructions[place - 2].argval, instructions[place - 1].argval
                package = function.__globals__.get("__package__") or ""
                with contextlib.suppress(ImportError):  # relative, and of no package
                    found.append((importlib.util.resolve_name("." * level + each.argval, package), items or ()))
    return found


def _defaults(function: types.FunctionType) -> dict[str, Any]:
    """The parameters of a function that have defaults, with these."""
    code, defaults = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    return dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | (function.__kwdefaults__ or {})


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def _source(thing: Any) -> str:
    """The source, or nothing where there is none: bytecode counts too."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return ""
