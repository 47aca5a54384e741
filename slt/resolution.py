"""The grid that losses stand on, whatever their dtype says: what is left when a large constant was taken off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_VALUES = 4  # other than zero, all different; of fewer nothing is said
MANTISSA = 53  # binary digits of a float64


def common_unit(losses: NDArray[np.floating[Any]]) -> float:
    r"""The largest power of two of which all losses are whole multiples, in nats.

    .. math:: q = \min_i 2^{t_i}, \qquad 2^{t_i} \text{ being the last binary digit of } L_i \text{ that is not zero}

    Numbers that were computed to their own last place end in digits of chance there, so that of twenty one ends in it
    with probability 1 − 2⁻²⁰. A loss to which 1,000 was added and taken from again has lost the digits that 1,000 has
    no room for: in float32 all of it stands on multiples of 2⁻¹⁴, while its dtype knows 2⁻²⁴ above one half.

    Args:
        losses: Of different weights, of any shape; zeros and what is not finite say nothing.

    Returns:
        q; 0 where fewer than four losses differ from each other.
    """
    found = np.unique(losses[np.isfinite(losses) & (losses != 0)].astype(np.float64))
    if len(found) < LEAST_VALUES:
        return 0.0
    mantissa, exponent = np.frexp(found)
    whole = np.ldexp(mantissa, MANTISSA).astype(np.int64)
    _, place = np.frexp((whole & -whole).astype(np.float64))  # one more than that of the last digit
    return math.ldexp(1.0, int((place + exponent).min()) - 1 - MANTISSA)
