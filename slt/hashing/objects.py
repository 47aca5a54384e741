"""Functions, classes, modules and other objects, added to a hash by what they are made of."""

from __future__ import annotations

import copyreg
import functools
import re
import types
from collections.abc import Mapping, Set
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from slt.hashing.bytecode import contents_of_cell, defaults_of, dotted_names, imports_of, names_in, source_of
from slt.hashing.contents import attributes_of, kept_by_pickle, parts_of, plain_attributes, printed, script_files
from slt.hashing.installed import content_of_file, imported, is_global, is_installed, release, versions
from slt.hashing.values import Values

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in what objects print: another one in every process
METHODS = (types.FunctionType, staticmethod, classmethod, property)
COMPILED = (  # what a class that is not of Python consists of
    *(types.MethodDescriptorType, types.ClassMethodDescriptorType, types.GetSetDescriptorType),
    *(types.MemberDescriptorType, types.BuiltinFunctionType),
)
# By one of these a class says itself what pickle is to keep.
REDUCING = frozenset(("__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__"))
# Hold nothing that is computed with: locks, links to other processes, what makes abstract classes so.
EMPTY = ("_thread.", "_multiprocessing.SemLock", "_abc.", "torch._C._distributed_c10d.", "torch.distributed.")
BINDINGS = ("PyCapsule", "pybind11")  # what stands as the owner of functions of compiled code


class Hashing(Values):
    """Any values added to one hash: see :func:`slt.fingerprint.fingerprint` for what counts of each."""

    def add_object(self, value: Any, depth: int) -> None:
        """Add an object by its kind."""
        kind = type(value)
        if kind is functools.partial:
            self.add_all("partial", depth, value.func, value.args, value.keywords)
        elif isinstance(value, types.MethodType):
            self.add_all("method", depth, value.__func__, value.__self__)
        elif isinstance(value, types.ModuleType) and is_installed(value.__name__):
            self.add_all("library", depth, value.__name__, str(getattr(value, "__version__", "")))
        elif isinstance(value, types.ModuleType):
            self.add_all("file", depth, value.__name__, content_of_file(value))
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
            self.add_all("script", depth, script_files(cast(Any, value).save_to_buffer()))
        elif isinstance(value, Tensor):
            self._kind_of_tensor(value, depth)
        else:
            parts = parts_of(value)
            if parts is None:
                self._other(value, depth)
            else:
                self.add_all(kind.__name__, depth, *parts)

    def _other(self, value: Any, depth: int) -> None:
        """Add an object by its class, its attributes, and what pickle would keep of it.

        A class of a library that says itself what is kept is trusted in that: its attributes may be caches. A class of
        the user's may leave out what a loss uses, and so may what it inherits, which does not know the attributes.
        """
        kind = type(value)
        self.add_all("object", depth, kind)
        if isinstance(value, Mapping | Set):
            self.add_items(value, depth)
        bases = kind.__mro__[:-1]
        says = any(REDUCING & vars(each).keys() or each in copyreg.dispatch_table for each in bases)
        libraries = any(is_installed(each.__module__) for each in bases)
        attributes = attributes_of(value)  # before pickle is asked, which may show that they were
        if isinstance(value, Set) or (says and attributes and not libraries):
            self.add_mapping(attributes, depth)  # pickle keeps the items of a set in an order of its own
            return
        kept = kept_by_pickle(value)
        if isinstance(kept, str) and is_global(value, kept):
            self.add_text(f"global {kept}")
        elif isinstance(kept, tuple) and says and is_installed(kind.__module__):
            self.add_all("kept", depth, *kept)
        else:
            self.add_mapping(attributes, depth)
            if isinstance(kept, tuple):
                self.add_all("kept", depth, *(kept if says or not attributes else kept[3:4]))
            elif not (says and attributes):
                self._hidden(value, depth)

    def _hidden(self, value: Any, depth: int) -> None:
        """Add an object that pickle refuses: the memory that it gives access to, or what it prints."""
        kind = type(value)
        if f"{kind.__module__}.{kind.__qualname__}".startswith(EMPTY):
            return
        try:
            view = memoryview(value)
            self.add_all("memory", depth, view.format, view.shape, view.tobytes())
        except Exception:  # whatever the object raises where it has none
            shown = printed(value)
            if ADDRESS.search(shown) or isinstance(value, np.ufunc):  # made of a function that it does not show
                self.add_untold(value)
            else:
                self.add_text(f"printed {shown}")

    def _function(self, function: types.FunctionType, depth: int) -> None:
        written = vars(function).get("_torchdynamo_orig_callable")
        if written is not None:  # around it is what differs in every process
            self.add_all("compiled", depth, written)
            return
        captured = [contents_of_cell(cell) for cell in function.__closure__ or ()]
        held = dict(zip(function.__code__.co_freevars, captured, strict=True))
        if is_installed(function.__module__):
            self.add_all("function", depth, function.__module__, function.__qualname__, release(function.__module__))
            if not is_global(function, function.__qualname__):  # made by another one, of what it was given
                self._code(function.__code__, depth)
                self.add_all("made", depth, held, function.__defaults__, function.__kwdefaults__)
            return
        # A lambda's source is all of the statement that it stands in; its bytecode tells it without that.
        source = "" if function.__code__.co_name == "<lambda>" else source_of(function)
        self.add_all("function", depth, function.__qualname__, source, vars(function))
        self.add_all("made", depth, held, function.__defaults__, function.__kwdefaults__)
        self._code(function.__code__, depth)
        names, dotted = names_in(function.__code__), dotted_names(function.__code__)
        used = {name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())}
        followed: set[int] = set()
        self.add_mapping(used, depth)
        for name, value in (used | held | defaults_of(function)).items():
            self._used(name, value, names, dotted, followed, depth)
        for path, items in imports_of(function):
            if is_installed(path):
                self.add_all("library", depth, path, versions(path))
                continue
            for each in (path.partition(".")[0], path, *(f"{path}.{item}" for item in items)):
                module = imported(each)
                self.add_all("import", depth, each, module)
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
        if not isinstance(module, types.ModuleType) or is_installed(module.__name__) or id(module) in followed:
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
        self.add_all("built in", depth, str(function.__module__), function.__qualname__)
        owner = function.__self__
        if not isinstance(owner, types.ModuleType | type | None) and not type(owner).__name__.startswith(BINDINGS):
            self.add_named(function.__name__, owner, depth)

    def _code(self, code: types.CodeType, depth: int) -> None:
        constants = [None if isinstance(each, types.CodeType) else each for each in code.co_consts]
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        variables = (code.co_varnames, code.co_freevars, code.co_cellvars, counts)
        self.add_all("code", depth, code.co_code, code.co_exceptiontable, constants, code.co_names, variables)
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self._code(inner, depth)

    def _class(self, kind: type, depth: int) -> None:
        installed = is_installed(kind.__module__)
        if installed:
            self.add_all("class", depth, kind.__module__, kind.__qualname__, release(kind.__module__))
            if is_global(kind, kind.__qualname__):  # or a function made it, of what it was given
                return
        else:
            self.add_all("class", depth, kind.__qualname__, source_of(kind), list(kind.__bases__))
        for name, member in vars(kind).items():
            if isinstance(member, METHODS) or not (
                name.startswith("__") or (installed and isinstance(member, COMPILED))
            ):
                self.add_text(name)
                self.add_named(f"{kind.__qualname__}.{name}", member, depth)

    def _module(self, module: nn.Module, depth: int) -> None:
        self.add_all(
            "module", depth, ADDRESS.sub("", repr(module)), dict(module.named_parameters(remove_duplicate=False))
        )
        scripts: list[str] = []
        for name, part in module.named_modules(remove_duplicate=False):
            if id(part) not in self.followed:
                self.follow(part)
            plain = plain_attributes(part)
            if isinstance(part, torch.jit.ScriptModule):
                plain = {} if name.startswith(tuple(scripts)) else {"script": script_files(part.save_to_buffer())}
                scripts.append(f"{name}." if name else "")
            self.add_text(name)
            self.add(type(part), depth)
            self.trail.append(f"{type(module).__name__}.{name}" if name else type(module).__name__)
            self.add(dict(part._buffers), depth)
            self.add(plain, depth)
            self.trail.pop()

    def _kind_of_tensor(self, tensor: Tensor, depth: int) -> None:
        self.add_all("kind of tensor", depth, type(tensor))
        if tensor.is_nested:
            self.add_all("nested", depth, *tensor.unbind())
            return
        self.add_mapping(attributes_of(tensor), depth)
        if hasattr(tensor, "__tensor_flatten__"):  # made of others, and has no memory of its own
            names, context = cast(Any, tensor).__tensor_flatten__()
            self.add_all("made", depth, {name: getattr(tensor, name) for name in names}, context)
        else:
            self.add_tensor(tensor.as_subclass(Tensor))
