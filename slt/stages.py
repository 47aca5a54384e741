"""The stages of development: where λ̂ over training stands still, and where it moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slt.problems.evidence import Z_95

Values = Sequence[float] | np.ndarray

# A change of less than this share of the whole range of λ̂ is not looked for, however small the standard errors.
LEAST_CHANGE = 0.02
FEWEST = 3  # checkpoints of a stage: a line through two says nothing
STILL = 0.1  # of the range of λ̂: what a plateau may change by, and stray from its line
PARAMETERS = 3  # of a stage: a level, a slope and where it begins


class Stage(NamedTuple):
    """A stretch of training over which λ̂ is a straight line.

    Attributes:
        first: Place of its first checkpoint.
        last: Place of its last.
        start: Step of the first.
        end: Step of the last.
        level: Mean λ̂ over it.
        change: How much λ̂ rises over it.
        plateau: Whether that is less than the line's own error, or than a tenth of the range of λ̂; and λ̂ is as near to
            the line, or within twice its own errors: an outlier among fewer than three checkpoints has no stage of its
            own, and the one that it is in is none.
    """

    first: int
    last: int
    start: float
    end: float
    level: float
    change: float
    plateau: bool


def mostly_early(steps: NDArray[np.floating]) -> bool:
    """Whether most checkpoints are early ones, for which log(1 + step) is the better axis."""
    return len(steps) > 2 and steps.min() >= 0 and bool(steps.max() > 20 * max(1.0, np.median(steps) / 4))


def find_stages(steps: Values, llc: Values, mcse: Values, *, log: bool | None = None) -> list[Stage]:
    r"""The stages into which λ̂ over training falls, by the least penalised sum of squares.

    .. math:: \min_{\text{stages}} \sum_{\text{stages}} \Bigl[ \sum_i \frac{(\hat\lambda_i - a - b x_i)^2}{\sigma_i^2}
              + 3 \log N \Bigr]

    over all divisions into stretches of at least three checkpoints, exactly, by dynamic programming: the Bayesian
    information criterion of a line with jumps. x is log(1 + step), or the step. σ is the standard error of λ̂, but at
    least 2 % of the range of λ̂.

    Args:
        steps: Of the checkpoints, increasing.
        llc: λ̂; those that are not a number are left out.
        mcse: Standard errors.
        log: Whether lines are straight in log(1 + step), as development often is; by default where most checkpoints
            are early ones, as in the figure.

    Returns:
        Stages in order; empty where fewer than three checkpoints have a number.

    Raises:
        ValueError: The three differ in length, or steps do not increase.

    Source:
        Yao 1988 (number of jumps by this criterion); plateaus as stages of development: Hoogland et al. 2024.
    """
    if not len(steps) == len(llc) == len(mcse):
        raise ValueError(f"steps, llc, mcse: {len(steps)}, {len(llc)}, {len(mcse)} of them; expected the same number.")
    step, value, error = (np.asarray(each, dtype=float) for each in (steps, llc, mcse))
    if (np.diff(step) <= 0).any():
        raise ValueError("steps: they do not increase; expected those of the checkpoints, in order.")
    places = np.flatnonzero(np.isfinite(value) & np.isfinite(error))
    if len(places) < FEWEST:
        return []
    step, value, error = step[places], value[places], error[places]
    spread = float(np.ptp(value))
    sigma = np.maximum(error, max(LEAST_CHANGE * spread, 1e-12))
    x = np.log1p(step - min(0.0, step[0])) if (mostly_early(step) if log is None else log) else step
    fits = _Lines(x, value, 1 / sigma**2)
    return [
        _stage(fits, first, last, places, step, spread)
        for first, last in _division(fits, len(value), PARAMETERS * math.log(len(value)))
    ]


class _Lines:
    """Weighted least squares of a line over any stretch, from running sums."""

    def __init__(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> None:
        self.middle = x.mean()
        x = x - self.middle
        terms = np.stack([weight, weight * x, weight * y, weight * x * x, weight * x * y, weight * y * y])
        self.sums = np.concatenate([np.zeros((6, 1)), terms.cumsum(1)], 1)
        self.x = x

    def over(self, first: int, last: int) -> tuple[float, float, float, float]:
        """Sum of squares, level, slope, and the slope's standard error, from first to last inclusive."""
        w, wx, wy, wxx, wxy, wyy = self.sums[:, last + 1] - self.sums[:, first]
        level, centre = wy / w, wx / w
        across = max(wxx - w * centre**2, 1e-300)
        slope = (wxy - w * centre * level) / across
        return max(wyy - w * level**2 - slope**2 * across, 0.0), level, slope, across**-0.5


def _division(fits: _Lines, count: int, penalty: float) -> list[tuple[int, int]]:
    """First and last of every stretch of the best division."""
    best, came = np.full(count + 1, math.inf), np.zeros(count + 1, dtype=int)
    best[0] = 0.0
    for end in range(FEWEST, count + 1):
        for start in range(end - FEWEST + 1):
            if math.isfinite(best[start]):
                cost = best[start] + fits.over(start, end - 1)[0] + penalty
                if cost < best[end]:
                    best[end], came[end] = cost, start
    found, end = [], count
    while end:
        found.append((int(came[end]), end - 1))
        end = int(came[end])
    return found[::-1]


def _stage(fits: _Lines, first: int, last: int, places: np.ndarray, step: np.ndarray, spread: float) -> Stage:
    squares, level, slope, error = fits.over(first, last)
    length = float(fits.x[last] - fits.x[first])
    change = slope * length
    weight = float(fits.sums[0, last + 1] - fits.sums[0, first])
    apart, errors = math.sqrt(squares / weight), math.sqrt((last - first + 1) / weight)
    still = bool(abs(change) <= max(Z_95 * error * length, STILL * spread) and apart <= max(2 * errors, STILL * spread))
    return Stage(
        int(places[first]), int(places[last]), float(step[first]), float(step[last]), float(level), float(change), still
    )
