"""Regular and Morse–Bott models, normal crossings, and the rules for sums and products."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from numbers import Rational

from slt.known.formulas.coefficient import LearningCoefficient, check_counts


def regular(dim: int) -> LearningCoefficient:
    """λ = d/2, m = 1: the Hessian of K at w* is nonsingular.

    Args:
        dim: d, the number of parameters.

    Returns:
        (d/2, 1).

    Raises:
        ValueError: It is no whole number of at least 0.

    Source:
        Watanabe 2009, §1.4; half the parameter count of the BIC.
    """
    check_counts(dim=dim)
    return LearningCoefficient(Fraction(dim, 2), 1)


def morse_bott(rank: int) -> LearningCoefficient:
    """λ = rank/2, m = 1: the zeros of K near w* are a manifold whose codimension is the rank of the Hessian.

    At any minimum λ is at least this.

    Args:
        rank: Of the Hessian of K at w*.

    Returns:
        (rank/2, 1).

    Raises:
        ValueError: It is no whole number of at least 0.

    Source:
        Splitting lemma: in suitable coordinates K is a sum of ``rank`` squares.
    """
    check_counts(rank=rank)
    return LearningCoefficient(Fraction(rank, 2), 1)


def normal_crossing(k: Sequence[int | Fraction], h: Sequence[int] | None = None) -> LearningCoefficient:
    r"""λ and m of K = ∏ w_i^{2 k_i} under a prior ∝ ∏ \|w_i\|^{h_i}.

    .. math:: \lambda = \min_{k_i > 0} \frac{h_i + 1}{2 k_i}, \qquad m = \#\{i : \text{the minimum is attained}\}

    Args:
        k: Half the exponents of K, at least one of them positive. Fractions are allowed: \|w\|³ has k = 3/2.
        h: Exponents of the prior, each above −1; zeros by default.

    Returns:
        λ and m.

    Raises:
        ValueError: An entry of ``k`` is negative, or one of ``h`` not above −1, or one is neither whole nor a Fraction;
            or none of ``k`` is positive, or the lengths differ.

    Source:
        Watanabe 2009, Theorem 2.3 and §4.2 (poles of the zeta function in normal-crossing coordinates).
    """
    exponents = _rational("k", k)
    prior = [Fraction(0)] * len(exponents) if h is None else _rational("h", h)
    if len(prior) != len(exponents):
        raise ValueError(f"h: {len(prior)} exponents for {len(exponents)} variables; expected one for each.")
    if any(value < 0 for value in exponents) or not any(exponents):
        raise ValueError(f"k: {list(k)!r}; expected numbers of at least 0, not all of them 0 (K would be constant).")
    if any(value <= -1 for value in prior):
        raise ValueError(f"h: {h!r}; expected exponents above −1, else the prior has no finite mass.")
    poles = [(after + 1) / (2 * value) for value, after in zip(exponents, prior, strict=True) if value > 0]
    return LearningCoefficient(min(poles), poles.count(min(poles)))


def _rational(name: str, values: Sequence[int | Fraction]) -> list[Fraction]:
    """The values as fractions; a float is refused, since 0.1 is not a tenth."""
    if not isinstance(values, Sequence) or not all(isinstance(value, Rational) for value in values):
        raise ValueError(f"{name}: {values!r}; expected a sequence of whole numbers or Fractions.")
    return [Fraction(value) for value in values]


def independent_sum(*terms: LearningCoefficient) -> LearningCoefficient:
    """λ and m of K₁(x) + K₂(y) + …, potentials of separate variables: λ adds, and so does m − 1.

    Args:
        terms: The coefficients of the summands.

    Returns:
        (Σ λ_i, 1 + Σ (m_i − 1)).

    Raises:
        ValueError: There is no term.

    Source:
        Watanabe 2009, Remark 7.5: zeta functions of densities convolve.
    """
    if not terms:
        raise ValueError("terms: none; expected at least one learning coefficient.")
    return LearningCoefficient(
        sum((term.rlct for term in terms), Fraction(0)), 1 + sum(term.multiplicity - 1 for term in terms)
    )


def independent_product(*factors: LearningCoefficient) -> LearningCoefficient:
    """λ and m of K₁(x) · K₂(y) · …, potentials of separate variables: the smallest λ; on a tie the m add.

    Args:
        factors: The coefficients of the factors.

    Returns:
        (min λ_i, Σ m_i over the factors that attain it).

    Raises:
        ValueError: There is no factor.

    Source:
        The zeta function is the product of theirs, so that poles at the same place add their orders.
    """
    if not factors:
        raise ValueError("factors: none; expected at least one learning coefficient.")
    smallest = min(factor.rlct for factor in factors)
    return LearningCoefficient(smallest, sum(factor.multiplicity for factor in factors if factor.rlct == smallest))
