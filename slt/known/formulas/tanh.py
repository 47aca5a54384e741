"""Two-layer tanh networks without bias, f(x) = Σ a_i tanh(b_i x)."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

from slt.known.formulas.coefficient import LearningCoefficient, check_counts
from slt.known.formulas.elementary import independent_sum, regular


def tanh_1d(hidden: int, outputs: int = 1, order_gap: int = 2) -> LearningCoefficient:
    r"""λ and m of H hidden units with one input at the origin, the truth being zero.

    .. math:: \lambda = \frac{M Q k(k + 1) + 2H}{4(1 + kQ)}, \qquad
              k = \max\{i : 2H \ge M(i(i - 1)Q + 2i)\}, \qquad m = 2 \text{ on equality, else } 1

    For one output this is (H + i² + i)/(4i + 2) with i = ⌊√H⌋, and m = 2 where H = i².

    Args:
        hidden: H, at least 1.
        outputs: M, at least 1.
        order_gap: Q, from one power of x in the activation's series to the next; 2 for tanh, 1 for a generic one.

    Returns:
        λ and m.

    Raises:
        ValueError: A number is not positive.

    Source:
        Aoyagi & Watanabe 2005 and Aoyagi 2009, IJPAM 52:177 (one output: proven, and derived again for H = 2). For
        more outputs the formula is taken from a transcription and was checked by volumes for M = H = 2 only.
    """
    check_counts(hidden=hidden, outputs=outputs, order_gap=order_gap)
    for name, value in {"hidden": hidden, "outputs": outputs, "order_gap": order_gap}.items():
        if value < 1:
            raise ValueError(f"{name}: {value}; expected at least 1.")
    if outputs == 1 and order_gap == 2:
        i = isqrt(hidden)
        return LearningCoefficient(Fraction(hidden + i * i + i, 4 * i + 2), 2 if i * i == hidden else 1)

    def needed(i: int) -> int:
        return outputs * (i * (i - 1) * order_gap + 2 * i)

    k = max(i for i in range(2 * hidden + 1) if needed(i) <= 2 * hidden)
    rlct = Fraction(outputs * order_gap * k * (k + 1) + 2 * hidden, 4 * (1 + k * order_gap))
    return LearningCoefficient(rlct, 2 if needed(k) == 2 * hidden else 1)


def tanh_surplus(hidden: int) -> LearningCoefficient:
    """λ = 1 + λ_{H−1} and m = m_{H−1}: the truth is one unit, one of the H units equals it, the others are at (0, 0).

    Args:
        hidden: H, at least 1.

    Returns:
        λ and m.

    Raises:
        ValueError: There is no unit.

    Source:
        tanh(b₀x), x sech²(b₀x), x, x³, … are independent, so that two squares split off and the other units are left
        with the zero truth (:func:`tanh_1d`).
    """
    check_counts(hidden=hidden)
    if hidden < 1:
        raise ValueError(f"hidden: {hidden}; expected at least 1.")
    if hidden == 1:
        return regular(2)
    return independent_sum(regular(2), tanh_1d(hidden - 1))


def tanh_copies(copies: int) -> LearningCoefficient:
    """λ = 1 + (p − 1)/4, m = 1: the truth is one unit, shared out over p copies of it with positive a_i.

    Args:
        copies: p, at least 1.

    Returns:
        λ and m.

    Raises:
        ValueError: There is no copy.

    Source:
        With δ_i = b_i − b₀, Σ a_i − a₀ and Σ a_i δ_i are regular, and Σ a_i δ_i² is definite on what is left where all
        a_i > 0: K ~ u₀² + u₁² + ‖δ‖⁴ in p − 1 offsets.
    """
    check_counts(copies=copies)
    if copies < 1:
        raise ValueError(f"copies: {copies}; expected at least 1.")
    return LearningCoefficient(1 + Fraction(copies - 1, 4), 1)
