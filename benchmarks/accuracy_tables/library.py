"""Which code a row was measured with, so that a table of hours can be made of rows of several days and machines."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import samplers
import slt

DIGITS = 12
NO_ROW_RUNS = (
    "samplers/files.py", "slt/__main__.py", "slt/callbacks/", "slt/checkpoints.py", "slt/cli.py", "slt/files.py",
    "slt/fingerprint.py", "slt/hashing/", "slt/known/validate.py", "slt/plots/", "slt/ranks.py", "slt/report.py",
    "slt/running.py", "slt/series.py", "slt/stages.py", "slt/store.py", "slt/sweep_table.py", "slt/sweep_work.py",
    "slt/sweeps.py", "slt/task.py", "slt/turns.py",
)  # fmt: skip
"""Files and folders of which no function is called in a row: command line, files, series, callbacks, figures."""
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def library() -> str:
    """Twelve digits of the code of ``slt`` and ``samplers`` that is imported, such as ``3f06a1b2c4d5``.

    Of what the code says, and its tables: comments, docstrings, layout and the version of Python have no part in it,
    nor has what no row runs, such as the command line and the figures.
    """
    code = hashlib.sha256()
    for package in (samplers, slt):
        assert package.__file__ is not None
        folder = Path(package.__file__).parent
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".json")):
            name = f"{package.__name__}/{path.relative_to(folder).as_posix()}"
            if name.startswith(NO_ROW_RUNS):
                continue
            code.update(f"{name}\n".encode())
            text = path.read_bytes()
            code.update(repr(meaning(ast.parse(text))).encode() if path.suffix == ".py" else text)
    return code.hexdigest()[:DIGITS]


def meaning(node: Any) -> Any:
    """A tree of code as nested tuples: without docstrings, and without fields that are empty or of some versions."""
    if isinstance(node, list):
        return tuple(meaning(each) for each in node)
    if not isinstance(node, ast.AST):
        return node
    fields = dict(ast.iter_fields(node))
    if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = fields["body"][1:]
    if isinstance(node, ast.JoinedStr):  # to which Python 3.12.1 adds empty strings
        fields["values"] = [each for each in node.values if getattr(each, "value", None) != ""]
    return type(node).__name__, *((name, meaning(value)) for name, value in fields.items() if value not in (None, []))
