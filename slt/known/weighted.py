"""Weighted-homogeneous losses: λ and m from the weights and from what K does on the sphere around w*."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from slt.known.formulas.coefficient import LearningCoefficient
from slt.known.polyhedron import dot, rational


def weighted_homogeneous(
    weights: Sequence[int | Fraction],
    degree: int | Fraction,
    sphere: LearningCoefficient | tuple[Fraction | int, int] | None = None,
) -> LearningCoefficient:
    r"""λ and m, at the origin, of a K with K(t^{c₁} w₁, …, t^{c_d} w_d) = t^ρ K(w) for all t > 0.

    .. math:: \lambda = \min\Bigl(\frac{\sum_i c_i}{\rho}, \lambda_S\Bigr), \qquad
              m = 1,\; m_S \text{ or, on a tie, } 1 + m_S

    with (λ_S, m_S) the smallest learning coefficient of K on the weighted unit sphere (and the largest multiplicity
    among the points that attain it). In polar coordinates K = r^ρ k(Ω) and dw = r^{Σc−1} dr dΩ, so that the zeta
    function is a product. A network that is linear in its output weights is homogeneous in them: weights 1 for those
    and 0 for the others, degree 2.

    Args:
        weights: c, at least zero and not all of them zero. With zeros among them the sphere is taken in the variables
            of positive weight, times a small ball in the others.
        degree: ρ, above zero.
        sphere: (λ_S, m_S); None where K is positive on the whole sphere, that is for λ_S = ∞.

    Returns:
        λ and m.

    Raises:
        ValueError: An argument is outside its range.

    Source:
        The change to weighted polar coordinates above, which is the whole proof.
    """
    exact, rho = _check(weights, degree)
    radial = sum(exact, Fraction(0)) / rho
    if sphere is None:
        return LearningCoefficient(radial, 1)
    pair = tuple(rational(entry) for entry in sphere)
    value, multiplicity = pair if len(pair) == 2 else (None, None)
    if value is None or multiplicity is None or value < 0 or multiplicity < 1 or multiplicity.denominator != 1:
        raise ValueError(
            f"sphere: {sphere!r}; expected (λ, m), λ an int or Fraction of at least 0 and m a whole number of at least "
            "1, or None where K is positive on the sphere."
        )
    if radial == value:
        return LearningCoefficient(radial, 1 + int(multiplicity))
    return LearningCoefficient(radial, 1) if radial < value else LearningCoefficient(value, int(multiplicity))


def check_weighted_homogeneous(
    exponents: Sequence[Sequence[int | Fraction]], weights: Sequence[int | Fraction], degree: int | Fraction
) -> None:
    """Raise unless the monomials all have this degree for these weights: ⟨c, α⟩ = ρ.

    Args:
        exponents: α, of the monomials of K, one row each.
        weights: c.
        degree: ρ.

    Raises:
        ValueError: A monomial has another degree, or an argument is outside its range.
    """
    exact, rho = _check(weights, degree)
    if not exponents:
        raise ValueError("exponents: none; expected one row for each monomial of K.")
    for place, row in enumerate(exponents):
        if len(row) != len(exact):
            raise ValueError(f"exponents[{place}]: {len(row)} entries for {len(exact)} weights; expected one for each.")
        powers = [rational(power) for power in row]
        if None in powers:
            raise ValueError(f"exponents[{place}]: {tuple(row)!r}; expected ints or Fractions.")
        found = dot(exact, [power for power in powers if power is not None])
        if found != rho:
            raise ValueError(
                f"exponents[{place}]: {tuple(row)!r} has weighted degree {found}; expected {rho}. K is not "
                "weighted-homogeneous for these weights: change them, or use newton_polyhedron."
            )


def _check(weights: Sequence[int | Fraction], degree: int | Fraction) -> tuple[tuple[Fraction, ...], Fraction]:
    exact = tuple(rational(weight) for weight in weights)
    known = tuple(weight for weight in exact if weight is not None and weight >= 0)
    if len(known) != len(exact) or not any(known):
        raise ValueError(
            f"weights: {list(weights)!r}; expected ints or Fractions of at least 0, not all of them 0, so that w* is "
            "approached as t falls to 0."
        )
    rho = rational(degree)
    if rho is None or rho <= 0:
        raise ValueError(f"degree: {degree!r}; expected an int or Fraction above 0, since K vanishes at w*.")
    return known, rho
