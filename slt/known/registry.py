"""The registry: every known case, by family and name."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from functools import cache

from slt.known.case import Case
from slt.known.families import classification, linear, mixture, polynomial, relu, tanh
from slt.known.table import computed_rows


@cache
def _registry() -> dict[str, Case]:
    found = [case for family in (polynomial, linear, tanh, relu, mixture, classification) for case in family.cases()]
    return {case.name: case if case.exact else replace(case, exact=computed_rows(case.name)) for case in found}


def cases(*, family: str | None = None, name: str | None = None) -> tuple[Case, ...]:
    """The known cases, all or some.

    Args:
        family: ``"polynomial"``, ``"deep_linear"``, ``"tanh"``, ``"relu"``, ``"mixture"``, …; all by default.
        name: One of them alone.

    Returns:
        Cases, in the order of the registry.

    Raises:
        ValueError: There is no such family or case, or the case is of another family.
    """
    found = tuple(_registry().values())
    if family is not None:
        families = sorted({case.family for case in found})
        if family not in families:
            raise ValueError(f"family: {family!r}; expected one of {', '.join(families)}.")
        found = tuple(case for case in found if case.family == family)
    if name is not None:
        near = [case.name for case in found]
        if name not in near:
            close = get_close_matches(name, near, n=5, cutoff=0.4) or near[:5]
            raise ValueError(f"name: {name!r}; expected one of {len(near)} names such as {', '.join(close)}.")
        found = tuple(case for case in found if case.name == name)
    return found


def case(name: str) -> Case:
    """The known case of that name.

    Args:
        name: See :func:`cases`.

    Returns:
        The case.

    Raises:
        ValueError: There is no such case.
    """
    return cases(name=name)[0]
