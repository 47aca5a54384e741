"""A learning coefficient, as an exact fraction with its multiplicity."""

from __future__ import annotations

from fractions import Fraction
from numbers import Integral
from typing import NamedTuple


class LearningCoefficient(NamedTuple):
    """A learning coefficient: the volume of {K < ε} near w* is about c · ε^λ · (−log ε)^(m−1).

    Attributes:
        rlct: λ, dimensionless.
        multiplicity: m, at least 1.
    """

    rlct: Fraction
    multiplicity: int


def check_counts(**counts: int) -> None:
    """Raise unless every argument is a whole number of at least zero.

    Args:
        counts: Name → value.

    Raises:
        ValueError: One is not.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
            raise ValueError(f"{name}: {value!r}; expected a whole number of at least 0.")
