"""Whether the face polynomials of K are positive where no coordinate is zero: what makes λ = 1/t₀ a theorem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations, pairwise
from math import lcm

from slt.known.polyhedron import Face, Row, rank

Terms = Mapping[Row, Fraction]


def describe(terms: Terms) -> str:
    """The polynomial in words, as ``w1^2 − 2 w1 w2``."""
    parts = []
    for exponents, coefficient in sorted(terms.items(), reverse=True):
        powers = [
            f"w{place}" if power == 1 else f"w{place}^{power}"
            for place, power in enumerate(exponents, start=1)
            if power
        ]
        size = [] if abs(coefficient) == 1 and powers else [str(abs(coefficient))]
        parts += ["−" if coefficient < 0 else "+", " ".join(size + powers)]
    return " ".join(parts[1:] if parts[0] == "+" else parts)


def is_square(exponents: Row) -> bool:
    """Whether the monomial is at least zero everywhere: a power that is not whole stands for that of |w|."""
    return all(power.denominator != 1 or power % 2 == 0 for power in exponents)


def why_not_positive(face: Face, terms: Terms, generators: Sequence[Terms] = ()) -> str:
    """Why the face polynomial is not known to be positive where no coordinate is zero; empty if it is.

    Every way of choosing the signs of the coordinates is looked at in turn. There the polynomial is positive if all its
    terms are; if it is a sum of squares of which one has terms of one sign only; on an edge, where it is a monomial
    times a polynomial in one positive variable, if that has no positive root (Sturm's theorem, so this is decided
    exactly); and if it is a positive definite quadratic form in the square roots of its positive terms. It may also
    fall into parts that share no variable: these are face polynomials themselves, so that their own verdict counts.

    Args:
        face: The face.
        terms: K, exponents → coefficient.
        generators: f_i, where K = Σ f_i².

    Returns:
        The reason, a sentence without its full stop.
    """
    on_face = {exponents: terms[exponents] for exponents in face.members}
    halves = [_on_face(generator, face) for generator in generators]
    if all(is_square(exponents) and coefficient > 0 for exponents, coefficient in on_face.items()):
        return ""
    if any(len(half) == 1 for half in halves) or _falls_apart(face.members):
        return ""
    edge = rank([[a - b for a, b in zip(row, face.members[0], strict=True)] for row in face.members]) == 1
    for signed, *signed_halves in _quadrants([on_face, *halves]):
        if all(coefficient > 0 for coefficient in signed.values()) or any(map(_of_one_sign, signed_halves)):
            continue
        if all(coefficient < 0 for coefficient in signed.values()):
            return f"the face polynomial {describe(on_face)} takes negative values: no excess loss does so near w*"
        if edge:
            if positive_roots(_along_edge(signed)):
                return f"the face polynomial {describe(on_face)} has zeros where no coordinate is zero"
        elif not _is_definite(on_face, signed):
            return f"the face polynomial {describe(on_face)} was not shown to have no zeros where no coordinate is zero"
    return ""


def _on_face(generator: Terms, face: Face) -> Terms:
    """The terms of f whose squares are on the face of K = Σ f²."""
    return {
        exponents: coefficient
        for exponents, coefficient in generator.items()
        if 2 * sum(a * b for a, b in zip(face.normal, exponents, strict=True)) == face.level
    }


def _of_one_sign(terms: Terms) -> bool:
    return len({coefficient > 0 for coefficient in terms.values()}) == 1


def _quadrants(polynomials: Sequence[Terms]) -> Iterable[list[Terms]]:
    """The polynomials as functions of |w|, once for each way in which the signs of w change their coefficients."""
    rows = [row for terms in polynomials for row in terms]
    patterns = {(1,) * len(rows)}
    for powers in zip(*rows, strict=True):
        flips = [-1 if power.denominator == 1 and power % 2 else 1 for power in powers]
        patterns |= {tuple(a * b for a, b in zip(pattern, flips, strict=True)) for pattern in patterns}
    for pattern in sorted(patterns, reverse=True):
        signs = iter(pattern)
        yield [{row: coefficient * next(signs) for row, coefficient in terms.items()} for terms in polynomials]


def _falls_apart(members: Sequence[Row]) -> bool:
    """Whether the monomials fall into two groups that have no variable in common."""
    joined = {place for place, power in enumerate(members[0]) if power}
    left = list(members[1:])
    while touching := [row for row in left if any(row[place] for place in joined)]:
        joined |= {place for row in touching for place, power in enumerate(row) if power}
        left = [row for row in left if row not in touching]
    return bool(left)


def _along_edge(terms: Terms) -> list[Fraction]:
    """The coefficients, lowest first, of the polynomial p with K_g = monomial · p(u), u a positive monomial."""
    first, last = min(terms), max(terms)
    place = next(i for i, (a, b) in enumerate(zip(first, last, strict=True)) if a != b)
    positions = {(row[place] - first[place]) / (last[place] - first[place]): value for row, value in terms.items()}
    degree = lcm(*(position.denominator for position in positions))
    return [positions.get(Fraction(power, degree), Fraction(0)) for power in range(degree + 1)]


def positive_roots(coefficients: Sequence[Fraction | int]) -> int:
    """The number of distinct real roots above zero, exactly.

    Args:
        coefficients: Of 1, u, u², …; the first and the last are not zero.

    Returns:
        The number of roots in (0, ∞), each counted once.

    Source:
        Sturm 1829: the sign changes in the sequence p, p′, −remainders … at 0, less those at ∞.
    """
    chain = [[Fraction(value) for value in coefficients]]
    following = [power * value for power, value in enumerate(chain[0])][1:]
    while following:
        chain.append(following)
        rest = list(chain[-2])
        while len(rest) >= len(following):
            factor = rest[-1] / following[-1]
            for place, value in enumerate(following, start=len(rest) - len(following)):
                rest[place] -= factor * value
            rest.pop()
            while rest and not rest[-1]:
                rest.pop()
        following = [-value for value in rest]
    return _sign_changes(p[0] for p in chain) - _sign_changes(p[-1] for p in chain)


def _sign_changes(values: Iterable[Fraction]) -> int:
    signs = [value > 0 for value in values if value]
    return sum(a != b for a, b in pairwise(signs))


def _is_definite(terms: Terms, signed: Terms) -> bool:
    """Whether the polynomial is, for these signs of w, a positive definite form in the roots of its square terms."""
    roots = [row for row, coefficient in terms.items() if coefficient > 0 and is_square(row)]
    form = [[terms[row] if row == other else Fraction(0) for other in roots] for row in roots]
    for row, coefficient in signed.items():
        if row in roots:
            continue
        middle = tuple(2 * power for power in row)
        pairs = combinations(range(len(roots)), 2)
        fitting = (
            pair
            for pair in pairs
            if tuple(a + b for a, b in zip(roots[pair[0]], roots[pair[1]], strict=True)) == middle
        )
        pair = next(fitting, None)
        if pair is None and coefficient < 0:
            return False
        if pair is not None:
            i, j = pair
            form[i][j] += coefficient / 2
            form[j][i] += coefficient / 2
    return _is_positive_definite(form)


def _is_positive_definite(form: list[list[Fraction]]) -> bool:
    """Whether all pivots of Gaussian elimination are positive; ``form`` is overwritten."""
    for step, pivot in enumerate(form):
        if pivot[step] <= 0:
            return False
        for row in form[step + 1 :]:
            factor = row[step] / pivot[step]
            row[:] = [a - factor * b for a, b in zip(row, pivot, strict=True)]
    return bool(form)
