"""The Newton polyhedron in exact rational arithmetic: the linear program that gives λ and m, and the compact faces."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm
from numbers import Rational
from typing import NamedTuple

import numpy as np

Row = tuple[Fraction, ...]

# Beyond these, seconds of work, the condition that needs the faces is reported as not checked.
MOST_FACES = 20_000
MOST_FACETS = 2_000


class Optimum(NamedTuple):
    """The exact solution of the linear program.

    Attributes:
        value: The minimum.
        weights: A minimiser from the relative interior of the set of minimisers.
        dimension: Of the set of minimisers.
    """

    value: Fraction
    weights: Row
    dimension: int


class Face(NamedTuple):
    """A compact face of the polyhedron.

    Attributes:
        members: The exponents that lie on it.
        normal: c, strictly positive, of which ⟨c, α⟩ is least on this face and nowhere else.
        level: That least value.
    """

    members: tuple[Row, ...]
    normal: tuple[int, ...]
    level: Fraction


def rational(value: object) -> Fraction | None:
    """The number as a fraction; None if it is neither a whole number nor a fraction (a float, a bool, a string)."""
    if isinstance(value, bool) or not isinstance(value, Rational):
        return None
    return Fraction(int(value.numerator), int(value.denominator))  # int: numpy's integers would overflow


def dot(left: Sequence[Fraction | int], right: Sequence[Fraction | int]) -> Fraction:
    """The inner product, exactly."""
    return sum((Fraction(a * b) for a, b in zip(left, right, strict=True) if a and b), Fraction(0))


class Elimination:
    """Rows brought to echelon form one at a time, in exact arithmetic."""

    def __init__(self):
        self.pivots: list[tuple[int, list[Fraction]]] = []

    @property
    def rank(self) -> int:
        """How many of the rows added so far were independent."""
        return len(self.pivots)

    def add(self, row: Sequence[Fraction | int], columns: int) -> bool:
        """Take in a row, unless its first ``columns`` entries depend on those of the rows before.

        Args:
            row: The row, possibly with entries (a right-hand side) behind its first ``columns``.
            columns: How many entries pivots are looked for in.

        Returns:
            Whether it was independent.
        """
        rest = [Fraction(entry) for entry in row]
        for place, pivot in self.pivots:
            factor = rest[place]
            if factor:
                rest = [a - factor * b if b else a for a, b in zip(rest, pivot, strict=True)]
        place = next((i for i in range(columns) if rest[i]), None)
        if place is None:
            return False
        self.pivots.append((place, [entry / rest[place] for entry in rest]))
        return True

    def solution(self, columns: int) -> Row:
        """The x that fulfils all rows (a, b) as ⟨a, x⟩ = b, there being as many of them as ``columns``."""
        found = [Fraction(0)] * columns
        for place, pivot in reversed(self.pivots):  # every row is free of the pivots before it, not of those after
            found[place] = pivot[columns] - dot(pivot[:columns], found)
        return tuple(found)


def rank(rows: Sequence[Sequence[Fraction | int]]) -> int:
    """The rank of the matrix with these rows, exactly."""
    elimination = Elimination()
    for row in rows:
        elimination.add(row, len(row))
    return elimination.rank


def minimal(exponents: Sequence[Row]) -> list[Row]:
    """The exponents of monomials that no other monomial of the list divides: the others lie on no compact face."""
    distinct = sorted(set(exponents))
    return [
        row
        for row in distinct
        if not any(other != row and all(a <= b for a, b in zip(other, row, strict=True)) for other in distinct)
    ]


def optimum(exponents: Sequence[Row], measure: Row) -> Optimum:
    r"""The minimum of Σ c_i t_i over c ≥ 0 with ⟨c, α_v⟩ ≥ 1 for all v, exactly, and the dimension of the minimisers.

    One linear program in floating point looks for a primal solution c and a dual one y together, as far as possible
    from having a constraint and its multiplier both at zero:

    .. math:: \max \delta: \quad s = Ac - 1 \ge 0,\; c \ge 0,\; y \ge 0,\; z = t - A^\top y \ge 0,\;
              \textstyle\sum y \ge \langle t, c \rangle,\; s + y \ge \delta,\; c + z \ge \delta

    Its solution is then computed afresh with fractions, from the constraints that it fulfils with equality, and every
    inequality and δ > 0 are checked exactly. That proves the answer: by weak duality c is a minimiser, and since c and
    y are strictly complementary the minimisers are the c at which all constraints with a positive multiplier are
    equalities, a set of dimension d − rank of those constraints.

    Args:
        exponents: α_v, at least zero and none of them all zero.
        measure: t, positive.

    Returns:
        Minimum, minimiser and dimension.

    Raises:
        ArithmeticError: The solution in floating point was not good enough to be made exact.

    Source:
        Goldman & Tucker 1956: strictly complementary solutions exist (δ > 0).
    """
    from scipy.optimize import linprog  # slow to import, and few need it

    scale = max(max(row) for row in exponents)  # exponents of at most 1 keep the tolerances of the solver meaningful
    rows = [tuple(entry / scale for entry in row) for row in exponents]
    constraints = _primal_and_dual(rows, measure)
    size = len(measure) + len(rows) + 1
    matrix = np.array([[float(entry) for entry in constraint] for constraint in constraints])
    objective = np.zeros(size)
    objective[-1] = -1.0
    answer = linprog(
        objective, A_ub=-matrix[:, :size], b_ub=-matrix[:, size], bounds=[(None, None)] * size, method="highs-ds"
    )
    if answer.x is None:
        raise ArithmeticError(f"The linear program was not solved ({answer.message}); scale the exponents down.")
    slack = np.abs(matrix[:, :size] @ answer.x - matrix[:, size])
    elimination = Elimination()
    for place in np.argsort(slack, kind="stable"):
        elimination.add(constraints[place], size)
        if elimination.rank == size:
            break
    solution = elimination.solution(size)
    unmet = sum(dot(constraint[:size], solution) < constraint[size] for constraint in constraints)
    if unmet or solution[-1] <= 0:
        raise ArithmeticError(
            f"The optimum found in floating point is not confirmed by exact arithmetic ({unmet} inequalities unmet); "
            "expected exponents of comparable size. Divide out what they have in common, or drop monomials that lie "
            "far inside the polyhedron."
        )
    weights, multipliers = solution[: len(measure)], solution[len(measure) : -1]
    binding = [row for row, multiplier in zip(rows, multipliers, strict=True) if multiplier > 0]
    for place, unit in enumerate(_units(len(measure))):
        if measure[place] > dot(multipliers, [row[place] for row in rows]):
            binding.append(unit)
    return Optimum(
        dot(measure, weights) / scale, tuple(weight / scale for weight in weights), len(measure) - rank(binding)
    )


def _units(size: int) -> list[Row]:
    return [tuple(Fraction(place == other) for other in range(size)) for place in range(size)]


def _primal_and_dual(rows: Sequence[Row], measure: Row) -> list[Row]:
    """The constraints of :func:`optimum` on (c, y, δ): each is (a, b), meaning ⟨a, (c, y, δ)⟩ ≥ b."""
    zero, one = (Fraction(0),), (Fraction(1),)
    no_weights, no_multipliers = zero * len(measure), zero * len(rows)
    constraints = [tuple(-t for t in measure) + one * len(rows) + zero + zero]
    for unit, row in zip(_units(len(rows)), rows, strict=True):
        constraints += [
            row + no_multipliers + zero + one,
            no_weights + unit + zero + zero,
            row + unit + (Fraction(-1),) + one,
        ]
    for place, unit in enumerate(_units(len(measure))):
        used = tuple(-row[place] for row in rows)
        constraints += [
            unit + no_multipliers + zero + zero,
            no_weights + used + zero + (-measure[place],),
            unit + used + (Fraction(-1),) + (-measure[place],),
        ]
    return constraints


def compact_faces(exponents: Sequence[Row]) -> list[Face] | None:
    """All compact faces of conv(∪ α_v + R^d_{≥0}), vertices first; None if there are too many.

    Facets are the extreme rays (c, b) of the cone {c ≥ 0, ⟨c, α_v⟩ ≥ b}, faces are their intersections, and a face is
    compact if the normals of the facets around it add up to a strictly positive one.

    Args:
        exponents: Of the monomials that no other one divides.

    Returns:
        The faces, or None beyond ``MOST_FACES`` faces, compact or not, or ``MOST_FACETS`` facets.

    Source:
        Motzkin et al. 1953 (double description), Fukuda & Prodon 1996 (which rays are adjacent).
    """
    dim = len(exponents[0])
    scale = lcm(*(entry.denominator for row in exponents for entry in row))
    points = [tuple(int(entry * scale) for entry in row) for row in exponents]
    rays = _facets(points)
    if rays is None:
        return None
    coordinates = (1 << dim) - 1
    facets = [tight for ray, tight in rays if any(ray[:dim])]
    faces = set(facets)
    waiting = list(faces)
    while waiting:
        face = waiting.pop()
        for facet in facets:
            common = face & facet
            if common > coordinates and common not in faces:
                faces.add(common)
                waiting.append(common)
        if len(faces) > MOST_FACES:
            return None
    found = []
    for face in faces:
        if not face & coordinates:
            around = [ray for ray, tight in rays if face & tight == face]
            total = [sum(entries) for entries in zip(*around, strict=True)]
            members = tuple(row for place, row in enumerate(exponents) if face >> dim + place & 1)
            found.append(Face(members, tuple(total[:dim]), Fraction(total[dim], scale)))
    return sorted(found, key=lambda face: (len(face.members), face.members))


def _facets(points: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], int]] | None:
    """The extreme rays (c, b), each with the set, as bits, of coordinates i with c_i = 0 and points with ⟨c, α⟩ = b."""
    dim = len(points[0])
    coordinates = (1 << dim) - 1
    rays: list[tuple[tuple[int, ...], int]] = [((0,) * dim + (-1,), coordinates)]
    for place, height in enumerate(points[0]):
        unit = tuple(int(place == other) for other in range(dim))
        rays.append(((*unit, height), coordinates & ~(1 << place) | 1 << dim))
    for place, point in enumerate(points[1:], start=dim + 1):
        values = [sum(a * b for a, b in zip(ray, (*point, -1), strict=True)) for ray, _ in rays]
        tights = [tight for _, tight in rays]
        kept = [
            (ray, tight | 1 << place if value == 0 else tight)
            for (ray, tight), value in zip(rays, values, strict=True)
            if value >= 0
        ]
        for above, (high, high_tight) in zip(values, rays, strict=True):
            for below, (low, low_tight) in zip(values, rays, strict=True):
                common = high_tight & low_tight
                if above <= 0 or below >= 0 or common.bit_count() < dim - 1:
                    continue
                if _only_two_hold(common, tights):
                    ray = [above * b - below * a for a, b in zip(high, low, strict=True)]
                    divisor = gcd(*ray)
                    kept.append((tuple(entry // divisor for entry in ray), common | 1 << place))
        rays = kept
        if len(rays) > MOST_FACETS:
            return None
    return rays


def _only_two_hold(common: int, tights: Sequence[int]) -> bool:
    """Whether two rays that have ``common`` in common are adjacent: no third one has all of it."""
    holders = 0
    for tight in tights:
        holders += common & tight == common
        if holders > 2:
            return False
    return True
