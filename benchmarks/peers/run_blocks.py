"""Run blocks of code one after another in one namespace, for ``migration.py``, in whichever Python starts it.

Reads ``[code, …]`` from standard input as JSON and answers with one JSON line: for each block the number that it ends
with, which is the last name that it assigns, the losses of its draws, and what its estimate says of its error. Imports
nothing of ours, so that a peer's environment needs the peer only.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import json
import os
import sys
import warnings
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # read on import

import numpy as np

PACKAGES = ("devinterp", "torch", "transformers", "slt-toolkit")


def last_assigned(code: str) -> str | None:
    """The name that the last statement assigns."""
    last = ast.parse(code).body[-1]
    if isinstance(last, ast.Assign) and isinstance(last.targets[0], ast.Name):
        return last.targets[0].id
    return None


def run(code: str, namespace: dict[str, Any]) -> dict[str, Any]:
    namespace.pop("drawn", None)
    before = {name: namespace.get(name) for name in ("results", "estimate")}
    exec(compile(code, "<block>", "exec"), namespace)
    found: dict[str, Any] = {}
    value = namespace.get(last_assigned(code) or "")
    if isinstance(value, int | float | np.number):
        found["number"] = float(value)
    results, estimate = namespace.get("results"), namespace.get("estimate")
    if results is not before["results"]:
        losses = results["loss/trace"] if isinstance(results, dict) else namespace["drawn"].values
        found["losses"] = np.asarray(losses, dtype=np.float64).tolist()
        if not isinstance(results, dict):
            found["own_mean"] = float(results.llc_mean)
    if estimate is not before["estimate"]:
        found = {"number": estimate.llc} | found | {"mcse": estimate.mcse, "estimate": repr(estimate)}
    return found


def main() -> None:
    blocks = json.load(sys.stdin)
    warnings.simplefilter("ignore")
    namespace: dict[str, Any] = {"__name__": "page"}
    with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints stays out of the answer
        found = [run(code, namespace) for code in blocks]
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    print(json.dumps({"blocks": found, "versions": versions}))


if __name__ == "__main__":
    main()
