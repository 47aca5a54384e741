"""What a function refers to, read from its bytecode: names, modules, imports, defaults, captured values."""

from __future__ import annotations

import contextlib
import dis
import importlib.util
import inspect
import itertools
import types
from collections.abc import Iterator
from typing import Any


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of those inside it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from codes_in(each)


def names_in(code: types.CodeType) -> set[str]:
    """What a function and those inside it look up by name."""
    return {name for each in codes_in(code) for name in each.co_names}


def _instructions(code: types.CodeType) -> list[dis.Instruction]:
    return [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]


def dotted_names(code: types.CodeType) -> set[tuple[str, str]]:
    """Which names stand right behind which others, as in ``a.b``."""
    pairs = [pair for each in codes_in(code) for pair in itertools.pairwise(_instructions(each))]
    return {
        (one.argval, other.argval)
        for one, other in pairs
        if other.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(one.argval, str)
    }


def imports_of(function: types.FunctionType) -> list[tuple[str, tuple[str, ...]]]:
    """What a function and those inside it import: full names of modules, and what is taken from each."""
    found = []
    for code in codes_in(function.__code__):
        instructions = _instructions(code)
        for place, each in enumerate(instructions):
            if each.opname == "IMPORT_NAME":
                level, items = instructions[place - 2].argval, instructions[place - 1].argval
                package = function.__globals__.get("__package__") or ""
                with contextlib.suppress(ImportError):  # relative, and of no package
                    found.append((importlib.util.resolve_name("." * level + each.argval, package), items or ()))
    return found


def defaults_of(function: types.FunctionType) -> dict[str, Any]:
    """The parameters of a function that have defaults, with these."""
    code, defaults = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    return dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | (function.__kwdefaults__ or {})


def contents_of_cell(cell: Any) -> Any:
    """What a function captured; nothing where it is not there yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def source_of(thing: Any) -> str:
    """The source, or nothing where there is none: bytecode counts too."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return ""
