"""Linear networks: reduced-rank regression, globally and at any point, and deep linear networks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from slt.known.formulas.coefficient import LearningCoefficient, check_counts


def reduced_rank(inputs: int, hidden: int, outputs: int, rank: int) -> LearningCoefficient:
    """λ and m of reduced-rank regression y = B A x + noise, at the most singular point.

    The most singular point is A = B = diag(I_r, 0) in the bases of the truth. Where N + r ≤ M + H, M + r ≤ N + H and
    H + r ≤ M + N, λ = (2(H + r)(M + N) − (M − N)² − (H + r)²)/8 and m = 1 if M + H + N + r is even; 1/8 more and
    m = 2 if it is odd. Otherwise m = 1, and λ = (HM − Hr + Nr)/2 where M + H < N + r, (HN − Hr + Mr)/2 where
    N + H < M + r, and MN/2 where M + N < H + r.

    Args:
        inputs: M; the inputs have a nonsingular covariance.
        hidden: H.
        outputs: N.
        rank: r, of the true B A.

    Returns:
        λ and m.

    Raises:
        ValueError: A size is negative, or the rank exceeds a size.

    Source:
        Aoyagi & Watanabe 2005, Neural Networks 18:924, Main Theorem.
    """
    check_counts(inputs=inputs, hidden=hidden, outputs=outputs, rank=rank)
    if rank > min(inputs, hidden, outputs):
        raise ValueError(
            f"rank: {rank}; expected at most min(inputs, hidden, outputs) = {min(inputs, hidden, outputs)}."
        )
    m, h, n, r = inputs, hidden, outputs, rank
    if m + h < n + r:
        return LearningCoefficient(Fraction(h * m - h * r + n * r, 2), 1)
    if n + h < m + r:
        return LearningCoefficient(Fraction(h * n - h * r + m * r, 2), 1)
    if m + n < h + r:
        return LearningCoefficient(Fraction(m * n, 2), 1)
    eight = 2 * (h + r) * (m + n) - (m - n) ** 2 - (h + r) ** 2
    odd = (m + h + n + r) % 2
    return LearningCoefficient(Fraction(eight + odd, 8), 1 + odd)


def reduced_rank_at(
    inputs: int, hidden: int, outputs: int, *, first_rank: int, second_rank: int, rank: int
) -> LearningCoefficient:
    r"""λ and m of reduced-rank regression y = B A x + noise at a point with given ranks of A, B and B A.

    .. math:: \lambda = \tfrac12 \bigl[r(M + N - r) + (N - r)(p - r) + (q - r)(M - p)\bigr]
              + \lambda_{RR}(M - p, s, N - q; 0), \qquad s = H - p - q + r

    with p, q, r the ranks of A, B and B A; the last term is absent, with m = 1, if s, M − p or N − q is zero. In bases
    in which A = diag(I_p, 0) the coordinates that multiply invertible blocks are eliminated linearly, and a block
    B₃A₃ without linear part is left. The minimum over all p and q is the global value.

    Args:
        inputs: M.
        hidden: H.
        outputs: N.
        first_rank: p, of A (H × M).
        second_rank: q, of B (N × H).
        rank: r, of B A, the truth.

    Returns:
        λ and m at that point.

    Raises:
        ValueError: No A and B of these shapes have these ranks.

    Source:
        Block elimination, with Aoyagi & Watanabe 2005 for the block that is left.
    """
    check_counts(inputs=inputs, hidden=hidden, outputs=outputs, first_rank=first_rank, second_rank=second_rank)
    check_counts(rank=rank)
    m, h, n, p, q, r = inputs, hidden, outputs, first_rank, second_rank, rank
    if p > min(m, h):
        raise ValueError(f"first_rank: {p}; expected at most min(inputs, hidden) = {min(m, h)}.")
    if q > min(h, n):
        raise ValueError(f"second_rank: {q}; expected at most min(hidden, outputs) = {min(h, n)}.")
    left = h - p - q + r
    if r > min(p, q) or left < 0:
        raise ValueError(
            f"rank: {r}; expected from first_rank + second_rank − hidden = {p + q - h} to "
            f"min(first_rank, second_rank) = {min(p, q)}, as of any product of such matrices."
        )
    base = Fraction(r * (m + n - r) + (n - r) * (p - r) + (q - r) * (m - p), 2)
    if left == 0 or m == p or n == q:
        return LearningCoefficient(base, 1)
    rest = reduced_rank(m - p, left, n - q, 0)
    return LearningCoefficient(base + rest.rlct, rest.multiplicity)


def deep_linear(widths: Sequence[int], rank: int) -> LearningCoefficient:
    r"""λ and m of a deep linear network at the most singular point: every layer of the truth's rank, aligned.

    With M_s = H_s − r, Σ the set of ℓ + 1 layers such that max_Σ M < min of the others, Σ_Σ M ≥ ℓ max_Σ M and
    Σ_Σ M < ℓ · min of the others; S = Σ_Σ M, a = S − (⌈S/ℓ⌉ − 1)ℓ:

    .. math:: \lambda = \tfrac12 \bigl(r(H_1 + H_{L+1}) - r^2\bigr) + \frac{a(\ell - a)}{4\ell}
              - \frac{\ell(\ell - 1)}{4}\Bigl(\frac{S}{\ell}\Bigr)^2 + \tfrac12 \sum_{i<j \in \Sigma} M_i M_j,
              \qquad m = a(\ell - a) + 1

    Args:
        widths: H_1 … H_{L+1}, inputs first, at least two.
        rank: r, of the true product.

    Returns:
        λ and m. They do not depend on the order of the widths if r = 0.

    Raises:
        ValueError: There are fewer than two widths, one is negative, or the rank exceeds one.

    Source:
        Aoyagi 2024, Neural Networks 172:106132, Main Theorem; inputs of nonsingular covariance.
    """
    if not isinstance(widths, Sequence):
        raise ValueError(f"widths: {widths!r}; expected a sequence of numbers, inputs first.")
    check_counts(rank=rank, **{f"widths[{place}]": width for place, width in enumerate(widths)})
    if len(widths) < 2:
        raise ValueError(f"widths: {list(widths)!r}; expected at least two, inputs and outputs.")
    if rank > min(widths):
        raise ValueError(f"rank: {rank}; expected at most the smallest width, {min(widths)}.")
    excess = sorted(width - rank for width in widths)
    chosen = _active_widths(excess)
    ell, total = len(chosen) - 1, sum(chosen)
    a = total - (-(-total // ell) - 1) * ell
    pairs = (total * total - sum(value * value for value in chosen)) // 2
    rlct = (
        Fraction(rank * (widths[0] + widths[-1]) - rank * rank, 2)
        + Fraction(a * (ell - a), 4 * ell)
        - Fraction((ell - 1) * total * total, 4 * ell)
        + Fraction(pairs, 2)
    )
    return LearningCoefficient(rlct, a * (ell - a) + 1)


def _active_widths(ordered: list[int]) -> list[int]:
    """Σ: the smallest widths beyond the rank, as many as the three conditions ask for; just one set meets them."""
    for count in range(2, len(ordered) + 1):
        inside, outside = ordered[:count], ordered[count:]
        total, ell = sum(inside), count - 1
        apart = not outside or (inside[-1] < outside[0] and total < ell * outside[0])
        if apart and total >= ell * inside[-1]:
            return inside
    raise AssertionError(f"no set of layers meets the conditions of the theorem for M = {ordered}")
