"""λ and m of a polynomial from its Newton polyhedron, and whether they are exact or an upper bound."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from slt.known.polyhedron import Row, compact_faces, minimal, optimum, rational
from slt.known.positivity import Terms, describe, is_square, why_not_positive

if TYPE_CHECKING:
    import sympy


class PolyhedronCoefficient(NamedTuple):
    """What the Newton polyhedron says of the learning coefficient.

    Attributes:
        rlct: λ, or an upper bound on it.
        multiplicity: m; where ``bound`` is "upper", m is at least this if λ equals ``rlct``, and else not known.
        bound: "exact" or "upper".
        condition: Why it is the one or the other, in words. Variables are called w1, w2, …
        weights: An optimal c, from the interior of the set of optimal ones.
    """

    rlct: Fraction
    multiplicity: int
    bound: Literal["exact", "upper"]
    condition: str
    weights: tuple[Fraction, ...]


def newton_polyhedron(
    exponents: Sequence[Sequence[int | Fraction]],
    prior_exponents: Sequence[int | Fraction] | None = None,
    *,
    coefficients: Sequence[int | Fraction] | None = None,
) -> PolyhedronCoefficient:
    r"""λ and m at the origin of a polynomial K ≥ 0 with K(0) = 0, from its monomials w^{α_v}.

    .. math:: \lambda = \min\Bigl\{{\textstyle\sum_i} c_i (1 + h_i) : c \ge 0,\; \langle c, \alpha_v\rangle \ge 1
              \text{ for all } v\Bigr\}, \qquad m = 1 + \dim\{\text{minimisers}\}

    This is 1/t₀, where the ray t(1 + h) enters the Newton polyhedron Γ = conv(∪ α_v + R^d_{≥0}), and m is the
    codimension of the face in whose interior it does. K ≤ C Σ|w^{α_v}| near the origin, so that λ is at most 1/t₀. It
    is equal, and m is as stated, if for every compact face g of Γ the face polynomial K_g, the sum of the terms on g,
    is positive where no coordinate is zero: then K ≥ c Σ|w^{α_v}| too. (x − y)² does not fulfil this: 1/t₀ is 1, λ is
    1/2.

    The condition is decided, exactly, where every coefficient that matters is positive with even exponents, on all
    edges, and on higher faces where the terms have one sign in each quadrant or the face polynomial is a positive
    definite quadratic form in monomials. Where it fails, is not decided, or cannot be checked because the polyhedron
    has thousands of faces, the answer is labelled an upper bound. Without ``coefficients`` it holds of itself, K ≥ 0
    being given, if every monomial on a compact face is a vertex of Γ: at the vertices K ≥ 0 demands even exponents and
    positive coefficients.

    Args:
        exponents: α_v, one row for each monomial of K itself (not of generators f_i with K = Σ f_i²: for those see
            :func:`sum_of_squares`), one entry for each variable. Whole numbers of at least 0; a Fraction that is
            not whole stands for a power of \|w_i\|. Or a sympy expression, as for :func:`newton_polyhedron_of`.
        prior_exponents: h, of a prior ∝ ∏ \|w_i\|^{h_i}, each above −1; zeros by default.
        coefficients: Of the monomials, not zero. Ints or Fractions, since the condition turns on exact cancellations.

    Returns:
        λ and m, whether they are exact, why, and the optimal c.

    Raises:
        ValueError: An argument is outside its range, or K(0) ≠ 0.
        ArithmeticError: The optimum could not be confirmed in exact arithmetic.

    Source:
        Varchenko 1976; Arnold, Gusein-Zade & Varchenko 1988, vol. II, part II; Lin 2011 (sums of squares).
    """
    if hasattr(exponents, "free_symbols"):
        if coefficients is not None:
            raise ValueError("coefficients: given beside a sympy expression, which has its own; leave them out.")
        return newton_polyhedron_of(exponents, None, prior_exponents)  # type: ignore[arg-type]
    rows = _check_exponents(exponents)
    measure = _check_prior(prior_exponents, len(rows[0]))
    return _solve(rows, measure, None if coefficients is None else _check_coefficients(rows, coefficients))


def sum_of_squares(
    generators: Sequence[Mapping[Any, int | Fraction]],
    prior_exponents: Sequence[int | Fraction] | None = None,
) -> PolyhedronCoefficient:
    r"""λ and m at the origin of K = Σ f_i², from the polynomials f_i.

    The condition of :func:`newton_polyhedron` then says that on no compact face the parts f_{i,g} of the generators
    have a common zero where no coordinate is zero ("sos-nondegenerate"). It holds, besides the cases listed there,
    where one of them has a single term, or terms of one sign in each quadrant.

    Args:
        generators: f_i, each as exponents → coefficient: x y² − z is ``{(1, 2, 0): 1, (0, 0, 1): -1}``.
        prior_exponents: h, of a prior ∝ ∏ \|w_i\|^{h_i}, each above −1; zeros by default.

    Returns:
        λ and m of K (not of the ideal, whose λ is twice that), whether they are exact, why, and the optimal c for K.

    Raises:
        ValueError: An argument is outside its range, or f_i(0) ≠ 0.
        ArithmeticError: The optimum could not be confirmed in exact arithmetic.

    Source:
        Lin 2011, "Algebraic methods for evaluating integrals in Bayesian statistics".
    """
    if not generators or not all(generators):
        raise ValueError(f"generators: {generators!r}; expected at least one polynomial, each with at least one term.")
    rows = _check_exponents([row for generator in generators for row in generator], "generators")
    measure = _check_prior(prior_exponents, len(rows[0]))
    squares: defaultdict[Row, Fraction] = defaultdict(Fraction)
    exact: list[Terms] = []
    for generator in generators:
        rows = _check_exponents(list(generator), "generators")
        terms = _check_coefficients(rows, list(generator.values()), "generators")
        exact.append(terms)
        for left, a in terms.items():
            for right, b in terms.items():
                squares[tuple(p + q for p, q in zip(left, right, strict=True))] += a * b
    terms = {row: coefficient for row, coefficient in squares.items() if coefficient}
    doubled = [tuple(2 * power for power in row) for generator in exact for row in generator]
    return _solve(doubled, measure, terms, exact)  # the products of different terms lie between the squares


def newton_polyhedron_of(
    expression: sympy.Expr,
    symbols: Sequence[sympy.Symbol] | None = None,
    prior_exponents: Sequence[int | Fraction] | None = None,
) -> PolyhedronCoefficient:
    """λ and m at the origin of K, a sympy expression; see :func:`newton_polyhedron`, which gets its coefficients too.

    Args:
        expression: K, a polynomial with rational coefficients. Shift the variables first if w* is not the origin.
        symbols: The variables w1, w2, … in this order, also those that K does not depend on; those in ``expression``,
            sorted by name, by default.
        prior_exponents: h, in the order of ``symbols``; zeros by default.

    Returns:
        λ and m, whether they are exact, why, and the optimal c.

    Raises:
        ImportError: sympy is not installed.
        ValueError: The expression is not a polynomial with rational coefficients, is constant, or K(0) ≠ 0.
    """
    try:
        import sympy
    except ImportError as error:
        raise ImportError("newton_polyhedron_of needs sympy: pip install sympy.") from error

    expanded = sympy.expand(sympy.sympify(expression))
    variables = sorted(expanded.free_symbols, key=str) if symbols is None else list(symbols)
    if not variables or expanded.is_number:
        raise ValueError(f"expression: {expression}; expected a polynomial that depends on at least one variable.")
    try:
        polynomial = sympy.Poly(expanded, *variables)
    except sympy.PolynomialError as error:
        raise ValueError(f"expression: {expression}; expected a polynomial in {variables}.") from error
    exponents, coefficients = zip(*polynomial.terms(), strict=True)
    if not all(coefficient.is_Rational for coefficient in coefficients):
        raise ValueError(
            f"expression: {expression} has the coefficients {list(coefficients)}; expected rational numbers (name all "
            "variables in symbols, write sympy.Rational for floats): the condition turns on exact cancellations."
        )
    exact = [Fraction(int(coefficient.p), int(coefficient.q)) for coefficient in coefficients]
    return newton_polyhedron(exponents, prior_exponents, coefficients=exact)


def _solve(
    rows: Sequence[Row], measure: Row, terms: Terms | None, generators: Sequence[Terms] = ()
) -> PolyhedronCoefficient:
    best = optimum(minimal(rows), measure)
    reason, fine = _bare_condition(rows) if terms is None else _condition(terms, generators)
    return PolyhedronCoefficient(best.value, 1 + best.dimension, "exact" if fine else "upper", reason, best.weights)


_TOO_MANY = "the polyhedron has too many faces for the condition to be checked on each"


def _condition(terms: Terms, generators: Sequence[Terms]) -> tuple[str, bool]:
    """Why the bound is or is not attained, and whether it is."""
    lowest = minimal(list(terms))
    if all(is_square(row) and terms[row] > 0 for row in lowest):
        return "every monomial that no other one divides has even exponents and a positive coefficient", True
    faces = compact_faces(lowest)
    if faces is None:
        return _TOO_MANY, False
    for face in faces:
        reason = why_not_positive(face, terms, generators)
        if reason:
            return reason, False
    return f"on each of the {len(faces)} compact faces K is positive where no coordinate is zero", True


def _bare_condition(rows: Sequence[Row]) -> tuple[str, bool]:
    """The same without coefficients: what K ≥ 0 alone implies."""
    faces = compact_faces(minimal(rows))
    if faces is None:
        return _TOO_MANY, False
    vertices = {face.members[0] for face in faces if len(face.members) == 1}
    for vertex in sorted(vertices):
        if not is_square(vertex):
            name = describe({vertex: Fraction(1)})
            return f"{name} is a vertex with an odd exponent, so that K takes negative values near the origin", False
    for row in sorted({row for face in faces for row in face.members} - vertices):
        name = describe({row: Fraction(1)})
        return f"{name} lies on a compact face and is no vertex: without coefficients K may vanish there", False
    return "every monomial on a compact face is a vertex, so that K ≥ 0 is all that is needed", True


def _check_exponents(exponents: Sequence[Sequence[int | Fraction]], name: str = "exponents") -> list[Row]:
    if len(exponents) == 0:
        raise ValueError(f"{name}: none; expected one row of exponents for each monomial.")
    rows: list[Row] = []
    for place, given in enumerate(exponents):
        if isinstance(given, str) or not hasattr(given, "__len__"):
            raise ValueError(f"{name}: entry {place} is {given!r}; expected a row, one exponent for each variable.")
        row = tuple(value for value in map(rational, given) if value is not None and value >= 0)
        if len(row) != len(given):
            raise ValueError(
                f"{name}: entry {place} is {given!r}; expected whole numbers (or Fractions) of at least 0."
            )
        if len(row) != len(exponents[0]):
            raise ValueError(
                f"{name}: entry {place} has {len(row)} exponents, the first {len(exponents[0])}; expected one for each "
                "variable in every row, 0 where it does not occur."
            )
        if not any(row):
            raise ValueError(
                f"{name}: entry {place} is {given!r}, a constant term, but K is 0 at the origin; subtract it, or shift "
                "the variables so that w* is the origin."
            )
        rows.append(row)
    return rows


def _check_prior(prior_exponents: Sequence[int | Fraction] | None, size: int) -> Row:
    """1 + h."""
    given = [0] * size if prior_exponents is None else list(prior_exponents)
    if len(given) != size:
        raise ValueError(f"prior_exponents: {len(given)} for {size} variables; expected one for each.")
    prior = tuple(value for value in map(rational, given) if value is not None and value > -1)
    if len(prior) != size:
        raise ValueError(
            f"prior_exponents: {given!r}; expected ints or Fractions above −1, else the prior has no finite mass."
        )
    return tuple(1 + value for value in prior)


def _check_coefficients(
    rows: Sequence[Row], coefficients: Sequence[int | Fraction], name: str = "coefficients"
) -> Terms:
    if len(coefficients) != len(rows):
        raise ValueError(f"{name}: {len(coefficients)} for {len(rows)} monomials; expected one for each.")
    terms: dict[Row, Fraction] = {}
    for row, given in zip(rows, coefficients, strict=True):
        coefficient = rational(given)
        if not coefficient:
            raise ValueError(
                f"{name}: {given!r}; expected an int or Fraction that is not 0, such as Fraction('0.1'), since the "
                "condition turns on exact cancellations. Leave out monomials with coefficient 0."
            )
        if row in terms:
            raise ValueError(f"{name}: {describe({row: Fraction(1)})} is listed twice; add its coefficients.")
        terms[row] = coefficient
    return terms
