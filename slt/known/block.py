"""A part of K that stands by itself: what exact values at finite temperature are computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

MAXIMUM_COORDINATES = 3  # of one block: more cannot be integrated


@dataclass(frozen=True)
class Block:
    r"""A summand of K in coordinates of its own, with the measure that belongs to them.

    K is the sum of its blocks, and the localiser γ/2‖w − w*‖² splits in the same way, so that nβ·E[K] is the sum over
    blocks. Vectors of which only the norm enters K, at an anchor where they are zero, count as one coordinate r with
    measure \|r\|^{k−1} dr, k being their dimension.

    Attributes:
        excess: ``(..., d) → (...)``, float64, at least zero, and even in every coordinate that is a norm. Not needed
            where ``curvatures`` are given.
        anchor: The d coordinates of w*.
        powers: The measure is ∏ \|x_i\|^{powers_i} dx; all zero by default. A coordinate of positive power is a norm:
            its anchor is 0, and x_i ≥ 0 is all that is integrated over.
        curvatures: h_i, where this block is ½ Σ h_i x_i² about its anchor: then there is a closed form, and ``excess``
            is not used.
    """

    excess: Callable[[Tensor], Tensor] | None = None
    anchor: tuple[float, ...] = ()
    powers: tuple[int, ...] = ()
    curvatures: tuple[float, ...] = ()
