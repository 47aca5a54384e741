"""What identifies an estimate: a hash of weights, model, data, loss and configuration; nothing stale has the same."""

from __future__ import annotations

import contextlib
import contextvars
import copyreg
import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import os
import random
import re
import sys
import sysconfig
import types
import warnings
import weakref
import zipfile
from collections import OrderedDict, deque
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Set, ValuesView
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from samplers import Kernel
from slt.data import BatchData, Data, TensorData

LENGTH = 32  # hexadecimal digits, 128 bits
PASS = 1 << 16  # samples hashed at a time
DEEPEST = 40  # nesting that is followed at once; what lies deeper is put off until then
ENDLESS = 1 << 20  # nesting that only what makes itself anew has
SHOWN, SHORT = 4, 40  # names of what is around a value that a warning shows, and letters of each
PROTOCOL = 4  # of pickle
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in what objects print: another one in every process
# Exactly these, and none that inherits from them and may hold more.
PLAIN = frozenset((
    *(type(None), bool, int, float, complex, str, bytes, range, type(...), type(NotImplemented)),
    *(torch.dtype, torch.device, torch.Size, type(Path())),
))  # fmt: skip
BY_BITS = frozenset((float, bytes))
CONTAINERS = frozenset((tuple, list, dict, OrderedDict, types.MappingProxyType, set, frozenset))
TENSORS = frozenset((Tensor, nn.Parameter))
METHODS = (types.FunctionType, staticmethod, classmethod, property)
COMPILED = (  # what a class that is not of Python consists of
    *(types.MethodDescriptorType, types.ClassMethodDescriptorType, types.GetSetDescriptorType),
    *(types.MemberDescriptorType, types.BuiltinFunctionType),
)
# By one of these a class says itself what pickle is to keep.
REDUCING = frozenset(("__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__"))
# Generators whose state is the process's, and not of what draws from them.
OF_THE_PROCESS = (np.random.mtrand._rand, random._inst, torch.default_generator)
HASHES = frozenset({"_original_object_hash"})  # of texts, by Python: another one in every process; of Transformers
# Hold nothing that is computed with: locks, links to other processes, what makes abstract classes so.
EMPTY = ("_thread.", "_multiprocessing.SemLock", "_abc.", "torch._C._distributed_c10d.", "torch.distributed.")
WARNED: set[str] = set()  # what this process was warned of: a sweep makes many keys
BINDINGS = ("PyCapsule", "pybind11")  # what stands as the owner of functions of compiled code
OWN = ("slt", "samplers")
STANDARD_LIBRARY = (Path(os.__file__).parent, *map(Path, map(sysconfig.get_path, ("stdlib", "platstdlib"))))
# Attributes of a module that are not what it computes, or stand elsewhere.
# what counts by itself, and the arguments of torch.compile, which are on the module once Lightning was imported
APART = frozenset({
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook", "_compile_kwargs",
})  # fmt: skip
BARE = frozenset(vars(nn.Module()))  # attributes that every module has


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
    hashing = _Hashing()
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
    hashing = _Hashing()
    if isinstance(data, TensorData):
        hashing.add(data.tree)
    else:
        assert isinstance(data, BatchData)
        for batch in data.chunks(PASS):
            within = _Hashing(hashing)  # which alone holds the batch
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


class _Hashing:
    """Values added to one hash. What was followed once is not followed again: cycles end, and nothing counts twice."""

    def __init__(self, around: _Hashing | None = None) -> None:
        self.digest = hashlib.sha256()
        # Identity → when it came first, and the object: held, so that no other gets its identity anew.
        self.followed: dict[int, tuple[int, Any]] = {} if around is None else dict(around.followed)
        self.open: dict[int, int] = {}  # identity → level of the sequences, mappings and sets around what is added
        self.trail: list[Any] = [] if around is None else list(around.trail)  # names of what is around it
        self.untold: list[str] = [] if around is None else around.untold  # what nothing tells the content of
        self.later: deque[tuple[Any, list[Any], int]] = deque()  # with the trail, and how deep it is
        self.base = 0 if around is None else around.base

    def finished(self) -> str:
        """The hash, once all is added that was put off."""
        while self.later:
            value, self.trail, self.base = self.later.popleft()
            self._walk(value, 0)
        return self.digest.hexdigest()[:LENGTH]

    def warn(self) -> None:
        """Warn of what nothing tells the content of, if there is any that this process was not warned of."""
        new = [each for each in dict.fromkeys(self.untold) if each not in WARNED]
        WARNED.update(new)
        if new:
            warnings.warn(
                f"{'; '.join(new)}: nothing tells what it holds, so it counts as another one "
                "each time. Estimates are not found again in a store, processes do not share them, and one that was "
                "interrupted does not go on. Give what it is made of in its place, such as a list for an iterator, or "
                "arrays for an object of compiled code.",
                UserWarning,
                stacklevel=3,
            )

    def add(self, value: Any, depth: int = 0) -> None:
        """Add a value, its kind first, so that 1 and "1" and (1,) differ."""
        kind = type(value)
        if kind in PLAIN:
            self._text(f"{kind.__name__}:{value.hex() if kind in BY_BITS else repr(value)}")
        elif kind in TENSORS:
            self._tensor(value)
        elif kind is np.ndarray or isinstance(value, np.generic):
            self._array(value, depth)
        elif id(value) in self.followed:
            self._text(f"again {self.followed[id(value)][0]}")  # which of those before, not one of its kind
        elif id(value) in self.open:
            self._text(f"around {len(self.open) - self.open[id(value)]}")
        elif depth > DEEPEST:  # put off, or Python's own limit would be met
            self._follow(value)
            self.later.append((value, self.trail[-SHOWN:], self.base + depth))
        else:
            if kind not in CONTAINERS:
                self._follow(value)
            self._walk(value, depth + 1)

    def _follow(self, value: Any) -> None:
        self.followed[id(value)] = (len(self.followed), value)

    def _walk(self, value: Any, depth: int) -> None:
        if self.base + depth > ENDLESS:
            self._untold(value)
        elif type(value) in CONTAINERS:
            self.open[id(value)] = len(self.open)
            self._items(value, depth)
            del self.open[id(value)]
        else:
            self._object(value, depth)

    def _items(self, value: Any, depth: int) -> None:
        if isinstance(value, Mapping):
            self._mapping(value, depth)
        elif isinstance(value, Set):
            self._set(value, depth)
        else:
            self._text(f"sequence {len(value)}")
            for item in value:
                self.add(item, depth)

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> None:
        self._text(f"mapping {len(value)}")
        for key, item in value.items():
            self.add(key, depth)
            self._named(key, item, depth)

    def _set(self, value: Set[Any], depth: int) -> None:
        """Add the hashes of the items, sorted: their order is another one in every process."""
        hashes = []
        for item in value:
            within = _Hashing(None if type(item) in PLAIN else self)
            within.add(item, depth)
            hashes.append(within.finished())
        self._text(f"set {sorted(hashes)}")

    def _all(self, label: str, depth: int, *values: Any) -> None:
        self._text(f"{label} {len(values)}")
        for value in values:
            self.add(value, depth)

    def _named(self, name: Any, value: Any, depth: int) -> None:
        self.trail.append(name)
        self.add(value, depth)
        self.trail.pop()

    def _object(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind is functools.partial:
            self._all("partial", depth, value.func, value.args, value.keywords)
        elif isinstance(value, types.MethodType):
            self._all("method", depth, value.__func__, value.__self__)
        elif isinstance(value, types.ModuleType) and _installed(value.__name__):
            self._all("library", depth, value.__name__, str(getattr(value, "__version__", "")))
        elif isinstance(value, types.ModuleType):
            self._all("file", depth, value.__name__, _content(value))
        elif isinstance(value, types.FunctionType):
            self.trail.append(value.__name__)
            self._function(value, depth)
            self.trail.pop()
        elif isinstance(value, types.BuiltinFunctionType):
            self._built_in(value, depth)
        elif isinstance(value, types.CodeType):
            self._code(value, depth)
        elif isinstance(value, type):
            self._class(value, depth)
        elif isinstance(value, nn.Module):
            self._module(value, depth)
        elif isinstance(value, torch.jit.ScriptFunction):
            self._all("script", depth, _script(cast(Any, value).save_to_buffer()))
        elif isinstance(value, Tensor):
            self._kind_of_tensor(value, depth)
        else:
            parts = _parts(value)
            if parts is None:
                self._other(value, depth)
            else:
                self._all(kind.__name__, depth, *parts)

    def _other(self, value: Any, depth: int) -> None:
        """Add an object by its class, its attributes, and what pickle would keep of it.

        A class of a library that says itself what is kept is trusted in that: its attributes may be caches. A class of
        the user's may leave out what a loss uses, and so may what it inherits, which does not know the attributes.
        """
        kind = type(value)
        self._all("object", depth, kind)
        if isinstance(value, Mapping | Set):
            self._items(value, depth)
        bases = kind.__mro__[:-1]
        says = any(REDUCING & vars(each).keys() or each in copyreg.dispatch_table for each in bases)
        libraries = any(_installed(each.__module__) for each in bases)
        attributes = _attributes(value)  # before pickle is asked, which may show that they were
        if isinstance(value, Set) or (says and attributes and not libraries):
            self._mapping(attributes, depth)  # pickle keeps the items of a set in an order of its own
            return
        kept = _kept(value)
        if isinstance(kept, str) and _is_global(value, kept):
            self._text(f"global {kept}")
        elif isinstance(kept, tuple) and says and _installed(kind.__module__):
            self._all("kept", depth, *kept)
        else:
            self._mapping(attributes, depth)
            if isinstance(kept, tuple):
                self._all("kept", depth, *(kept if says or not attributes else kept[3:4]))
            elif not (says and attributes):
                self._hidden(value, depth)

    def _hidden(self, value: Any, depth: int) -> None:
        """Add an object that pickle refuses: the memory that it gives access to, or what it prints."""
        kind = type(value)
        if f"{kind.__module__}.{kind.__qualname__}".startswith(EMPTY):
            return
        try:
            view = memoryview(value)
            self._all("memory", depth, view.format, view.shape, view.tobytes())
        except Exception:  # whatever the object raises where it has none
            printed = _printed(value)
            if ADDRESS.search(printed) or isinstance(value, np.ufunc):  # made of a function that it does not show
                self._untold(value)
            else:
                self._text(f"printed {printed}")

    def _untold(self, value: Any) -> None:
        trail = " → ".join(map(_shortened, self.trail[-SHOWN:]))
        kind = type(value)
        self.untold.append(f"{trail or 'a value'} ({kind.__module__}.{kind.__qualname__})")
        self._text(f"untold {os.urandom(LENGTH).hex()}")

    def _function(self, function: types.FunctionType, depth: int) -> None:
        written = vars(function).get("_torchdynamo_orig_callable")
        if written is not None:  # around it is what differs in every process
            self._all("compiled", depth, written)
            return
        captured = [_contents(cell) for cell in function.__closure__ or ()]
        held = dict(zip(function.__code__.co_freevars, captured, strict=True))
        if _installed(function.__module__):
            self._all("function", depth, function.__module__, function.__qualname__, _release(function.__module__))
            if not _is_global(function, function.__qualname__):  # made by another one, of what it was given
                self._code(function.__code__, depth)
                self._all("made", depth, held, function.__defaults__, function.__kwdefaults__)
            return
        # A lambda's source is all of the statement that it stands in; its bytecode tells it without that.
        source = "" if function.__code__.co_name == "<lambda>" else _source(function)
        self._all("function", depth, function.__qualname__, source, vars(function))
        self._all("made", depth, held, function.__defaults__, function.__kwdefaults__)
        self._code(function.__code__, depth)
        names, dotted = _names(function.__code__), _dotted(function.__code__)
        used = {name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())}
        followed: set[int] = set()
        self._mapping(used, depth)
        for name, value in (used | held | _defaults(function)).items():
            self._used(name, value, names, dotted, followed, depth)
        for path, items in _imports(function):
            if _installed(path):
                self._all("library", depth, path, _versions(path))
                continue
            for each in (path.partition(".")[0], path, *(f"{path}.{item}" for item in items)):
                module = _imported(each)
                self._all("import", depth, each, module)
                self._used(each.rpartition(".")[2], module, names, dotted, followed, depth)

    def _used(
        self,
        label: str,
        module: Any,
        names: set[str],
        dotted: set[tuple[str, str]],
        followed: set[int],
        depth: int,
    ) -> None:
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
                self.add((name, value), depth)
                self._used(name, value, names, dotted, followed, depth)

    def _built_in(self, function: types.BuiltinFunctionType, depth: int) -> None:
        """Add a function of compiled code: by name, and what it is a method of."""
        self._all("built in", depth, str(function.__module__), function.__qualname__)
        owner = function.__self__
        if not isinstance(owner, types.ModuleType | type | None) and not type(owner).__name__.startswith(BINDINGS):
            self._named(function.__name__, owner, depth)

    def _code(self, code: types.CodeType, depth: int) -> None:
        constants = [None if isinstance(each, types.CodeType) else each for each in code.co_consts]
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        variables = (code.co_varnames, code.co_freevars, code.co_cellvars, counts)
        self._all("code", depth, code.co_code, code.co_exceptiontable, constants, code.co_names, variables)
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self._code(inner, depth)

    def _class(self, kind: type, depth: int) -> None:
        installed = _installed(kind.__module__)
        if installed:
            self._all("class", depth, kind.__module__, kind.__qualname__, _release(kind.__module__))
            if _is_global(kind, kind.__qualname__):  # or a function made it, of what it was given
                return
        else:
            self._all("class", depth, kind.__qualname__, _source(kind), list(kind.__bases__))
        for name, member in vars(kind).items():
            if isinstance(member, METHODS) or not (
                name.startswith("__") or (installed and isinstance(member, COMPILED))
            ):
                self._text(name)
                self._named(f"{kind.__qualname__}.{name}", member, depth)

    def _module(self, module: nn.Module, depth: int) -> None:
        self._all("module", depth, ADDRESS.sub("", repr(module)), dict(module.named_parameters(remove_duplicate=False)))
        scripts: list[str] = []
        for name, part in module.named_modules(remove_duplicate=False):
            if id(part) not in self.followed:
                self._follow(part)
            plain = _plain(part)
            if isinstance(part, torch.jit.ScriptModule):
                plain = {} if name.startswith(tuple(scripts)) else {"script": _script(part.save_to_buffer())}
                scripts.append(f"{name}." if name else "")
            self._text(name)
            self.add(type(part), depth)
            self.trail.append(f"{type(module).__name__}.{name}" if name else type(module).__name__)
            self.add(dict(part._buffers), depth)
            self.add(plain, depth)
            self.trail.pop()

    def _text(self, text: str) -> None:
        encoded = text.encode(errors="surrogatepass")
        self.digest.update(f"{len(encoded)}:".encode() + encoded + b";")

    def _array(self, array: np.ndarray | np.generic, depth: int) -> None:
        held = array.tolist() if array.dtype.hasobject else array.tobytes()  # objects are addresses in memory
        self._all("array", depth, str(array.dtype), array.shape, held)

    def _kind_of_tensor(self, tensor: Tensor, depth: int) -> None:
        self._all("kind of tensor", depth, type(tensor))
        if tensor.is_nested:
            self._all("nested", depth, *tensor.unbind())
            return
        self._mapping(_attributes(tensor), depth)
        if hasattr(tensor, "__tensor_flatten__"):  # made of others, and has no memory of its own
            names, context = cast(Any, tensor).__tensor_flatten__()
            self._all("made", depth, {name: getattr(tensor, name) for name in names}, context)
        else:
            self._tensor(tensor.as_subclass(Tensor))

    def _tensor(self, tensor: Tensor) -> None:
        tensor = tensor.detach()
        self._text(f"tensor {tensor.dtype} {'' if tensor.is_nested else tuple(tensor.shape)}")
        if tensor.is_nested:
            for each in tensor.unbind():
                self._tensor(each)
            return
        if tensor.is_quantized:
            self._text(f"quantized {tensor.qscheme()}")
            self._tensor(tensor.dequantize())
            tensor = tensor.int_repr()
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        flat = tensor.resolve_conj().resolve_neg().contiguous().view(-1).cpu()
        flat = flat.as_strided(flat.shape, (1,))  # one entry may have any stride
        self.digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _plain(module: nn.Module) -> dict[str, Any]:
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


def _parts(value: Any) -> tuple[Any, ...] | None:
    """What an object of the language or of torch consists of, where pickle refuses it or keeps addresses of it."""
    if any(value is each for each in OF_THE_PROCESS):
        return ()
    if isinstance(value, property):
        return (value.fget, value.fset, value.fdel)
    if isinstance(value, staticmethod | classmethod):
        return (value.__func__,)
    if isinstance(value, types.CellType):
        return (_contents(value),)
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


def _script(saved: bytes) -> list[tuple[str, Any]]:
    """What a script of torch consists of: its files, without the order of its constants and where its source was."""
    found: list[tuple[str, Any]] = []
    with zipfile.ZipFile(io.BytesIO(saved)) as archive:
        for name in archive.namelist():
            lines = archive.read(name).splitlines() if name.endswith(".py") else [archive.read(name)]
            if not name.endswith(".debug_pkl") and "/.data/" not in name:
                final = sorted(line for line in lines if b" : Final[" in line)
                found.append((name, (final, [line for line in lines if line not in final])))
    return found


def _kept(value: Any) -> tuple[Any, ...] | str | None:
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


def _attributes(value: Any) -> dict[str, Any]:
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


def _is_global(value: Any, name: str) -> bool:
    """Whether a library has a thing under its name; what a function of it made is not told by that."""
    places = ("numpy", "scipy.special") if isinstance(value, np.ufunc) else (getattr(value, "__module__", None),)
    for place in places:
        found: Any = sys.modules.get(str(place))
        for each in name.split("."):
            found = vars(found).get(each) if hasattr(found, "__dict__") else None
        if found is not None and getattr(found, "__func__", found) is value:  # the function of a class method
            return _installed(place)
    return False


def _printed(value: Any) -> str:
    """What an object prints; an address where it cannot be printed."""
    try:
        return repr(value)
    except Exception:  # whatever the object raises
        return object.__repr__(value)


def _shortened(name: Any) -> str:
    text = _printed(name) if not isinstance(name, str) else name
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"


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
