"""Where a module comes from: an installed library counts by name and version, a file of the user's by what it holds."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

OWN = ("slt", "samplers")
STANDARD_LIBRARY = (Path(os.__file__).parent, *map(Path, map(sysconfig.get_path, ("stdlib", "platstdlib"))))


def is_installed(module: str | None) -> bool:
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


def release(module: str) -> str:
    """The version that a package says of itself; nothing where it says none."""
    return str(getattr(sys.modules.get(module.partition(".")[0]), "__version__", ""))


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def versions(module: str) -> list[str]:
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


def is_global(value: Any, name: str) -> bool:
    """Whether a library has a thing under its name; what a function of it made is not told by that."""
    places = ("numpy", "scipy.special") if isinstance(value, np.ufunc) else (getattr(value, "__module__", None),)
    for place in places:
        found: Any = sys.modules.get(str(place))
        for each in name.split("."):
            found = vars(found).get(each) if hasattr(found, "__dict__") else None
        if found is not None and getattr(found, "__func__", found) is value:  # the function of a class method
            return is_installed(place)
    return False


def content_of_file(module: types.ModuleType) -> bytes:
    """Of a module's file; nothing where it has none, such as a notebook."""
    try:
        return Path(module.__file__ or "").read_bytes()
    except (OSError, AttributeError):
        return b""


def imported(module: str) -> types.ModuleType | None:
    """A module that code would import when it runs, imported now: else its key would be another one afterwards."""
    try:
        return importlib.import_module(module)
    except Exception:  # whatever the module raises; the code may do without
        return None
