"""Tables of exact values at finite temperature: one with the method of each, and what was computed beyond it."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from slt.known.case import ExactValue


@cache
def _rows(name: str) -> list[dict[str, Any]]:
    return json.loads(files("slt.known").joinpath(f"{name}.json").read_text())


def exact_rows(identifier: str) -> tuple[ExactValue, ...]:
    """The tabulated rows of one potential.

    Args:
        identifier: F1 … F13.

    Returns:
        nβ, γ and nβ·E[K] of each.
    """
    found = [row for row in _rows("finite_temperature") if row["id"] == identifier]
    return tuple(ExactValue(row["nbeta"], row["gamma"], row["expectation"]) for row in found)


def computed_rows(name: str) -> tuple[ExactValue, ...]:
    """The rows that :func:`slt.known.exact_llc` gave for one case, kept because three coordinates take minutes.

    Args:
        name: Of the case.

    Returns:
        nβ, γ and nβ·E[K] of each; none where no value could be trusted.
    """
    found = [row for row in _rows("exact_values") if row["case"] == name]
    return tuple(ExactValue(row["n_beta"], row["localization"], row["value"]) for row in found)
