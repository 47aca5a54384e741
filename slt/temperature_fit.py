"""λ and its multiplicity from the curve nβ·E[K] over a ladder of inverse temperatures: arithmetic alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from slt.problems.evidence import Z_95

Array = NDArray[np.float64]

# c of the logarithm, counted from the first rung: for x²y² in the unit square it is about 5 there. A grid with a heavy
# tail to the right, where the logarithm has a small coefficient and cannot be seen.
OFFSETS = np.concatenate([np.arange(-2.0, 16.0), [18.0, 21.0, 25.0, 30.0, 40.0, 60.0]])
OFFSET_CENTER, OFFSET_WIDTH = 4.0, 4.0
# δ of the power law: differences between λ and the next pole are rational numbers of small denominators.
# Where they are smaller still, two poles make −δ/(e^{δ(log t + c)} − 1), which has m = 1, but up to log t = 1/δ is like
# the logarithm of m = 2. This share of the prior of m = 1 is of such pairs, even over their distance.
GAPS, NEAR_SHARE = np.geomspace(0.015, 0.12, 7), 0.3
EXPONENTS = np.geomspace(0.08, 1.2, 9)
LEAST_FAST_EXPONENT = 0.3  # of the second power law: two slow ones would be a logarithm
AMPLITUDE = 0.3  # of the power law at the start of the fit, as a share of the curve: prior standard deviation
MULTIPLICITY_DECAY = 0.5  # prior of m over that of m − 1
# λ is a rational number. Half of the prior is even, half stands on 2λ = p/q with weights 1/q²: a λ whose denominator
# is large loses half of its weight, and one like 3/2 gains where the noise is small. Hessians of full rank give q = 1.
LARGEST_DENOMINATOR, EVEN_SHARE = 12, 0.5
WIDE = 0.5  # error of 2λ beyond which the fractions are not told apart
LARGEST_MULTIPLICITY = 4
# The curve itself is not known better: populations are finite.
RELATIVE_FLOOR, ABSOLUTE_FLOOR = 0.0005, 1e-4
# Nor is λ. On 109 known cases, by ladders that were shorter, 85 % of 95 % intervals held λ, and 94 % with half a per
# cent of it beyond noise and models: what is left by moves that do not reach all of a network's directions at once.
LARGEST_PRECISION = 0.005
MINIMUM_RUNGS = 10
SMOOTHED_RUNGS = 4  # on each side, over which the spread of populations is averaged
# A curve is fitted from the first rung at which the best model misses by no more than this many deviations of χ².
LARGEST_MISFIT = 1.5
DECIDED = 0.8
LEAST_SHARE = 0.6  # of the curve's height at the end, where a fit may start


@dataclass(frozen=True)
class TemperatureFit:
    """λ and m of a curve.

    Attributes:
        rlct: λ, averaged over all models by their weight; of those with the decided m where it is decided.
        standard_deviation: Of λ over models and noise, and of half a per cent of λ that neither shows.
        interval: Of 95 %.
        multiplicity: m, or None where no m has four fifths of the weight.
        weights: Posterior probability of m = 1, 2, …
        log_n_beta: First and last of the rungs that were fitted.
        misfit: χ² of the best model per degree of freedom.
        correlation: Of the noise of neighbouring rungs.
    """

    rlct: float
    standard_deviation: float
    interval: tuple[float, float]
    multiplicity: int | None
    weights: tuple[float, ...]
    log_n_beta: tuple[float, float]
    misfit: float
    correlation: float


def fit_temperatures(
    log_n_beta: Array, curves: Array, *, largest_multiplicity: int = LARGEST_MULTIPLICITY
) -> TemperatureFit:
    r"""λ and m from M(t) = t·E[K] of several independent populations.

    .. math:: M(t) = \lambda - \frac{m - 1}{\log t + c} + a_1 t^{-\delta_1} + a_2 t^{-\delta_2}

    and for m = 1 also with a pole beside λ, −δ₀/(e^{δ₀(log t + c)} − 1), which is a logarithm until log t is 1/δ₀;
    for every m, c, δ₀ and δ₁ < δ₂ of a grid, λ and a by least squares with the noise that the populations show; models
    are weighed by their marginal likelihood, with more weight where λ is near a fraction of small denominator. The fit
    starts at the first rung from which the best of them fits.

    Args:
        log_n_beta: log t, ascending, ``(rungs,)``.
        curves: M of each population, ``(populations, rungs)``.
        largest_multiplicity: m is at most this; the number of weights bounds it too.

    Returns:
        The fit.

    Raises:
        ValueError: There are too few rungs or populations, or numbers that are not finite.

    Source:
        Watanabe 2009, ch. 6 (Z(t) ~ c t^{−λ} (log t)^{m−1}; M is minus the derivative of log Z by log t); Atiyah 1970
        (λ is rational).
    """
    curves = np.asarray(curves, dtype=float)
    if curves.ndim != 2 or len(curves) < 2 or curves.shape[1] < MINIMUM_RUNGS:
        raise ValueError(f"curves: shape {curves.shape}; expected two populations and {MINIMUM_RUNGS} rungs or more.")
    if not np.isfinite(curves).all():
        raise ValueError("curves: has entries that are not finite.")
    error, correlation = curve_error(curves)
    mean = curves.mean(0)
    scale = float(np.median(mean[len(mean) // 2 :]))

    def models_from(start: int, inflation: float = 1.0) -> _Models:
        rungs = slice(start, None)
        return _models(
            log_n_beta[rungs], mean[rungs], inflation * error[rungs], correlation, log_n_beta[0],
            largest_multiplicity, AMPLITUDE * max(scale, 0.05),
        )  # fmt: skip

    tried: dict[int, float] = {}
    for start in _starts(log_n_beta, mean, scale):
        models = models_from(start)
        freedom = max(len(mean) - start - 3, 1)
        tried[start] = (models.misfit.min() - freedom) / math.sqrt(2 * freedom)
        if tried[start] < LARGEST_MISFIT:
            break
    else:
        # no model fits from anywhere: the errors are too small, by what the best of them misses
        start = min(tried, key=lambda place: tried[place])
        freedom = max(len(mean) - start - 3, 1)
        models = models_from(start, math.sqrt(1 + tried[start] * math.sqrt(2 / freedom)))
    misfit = tried[start] * math.sqrt(2 / freedom) + 1
    weight = np.exp(models.evidence - models.evidence.max())
    weight /= weight.sum()
    each = models.multiplicity
    weights = tuple(float(weight[each == m].sum()) for m in range(1, largest_multiplicity + 1))
    best = int(np.argmax(weights)) + 1
    multiplicity = best if weights[best - 1] >= DECIDED else None
    kept = weight if multiplicity is None else np.where(each == best, weight, 0.0)
    rlct = float(kept @ models.rlct / kept.sum())
    square = float(weight @ (models.deviation**2 + (models.rlct - rlct) ** 2))
    # of all models, those of another m too: what is decided is not certain
    low, high = (_quantile(share, weight, models.rlct, models.deviation) for share in (0.025, 0.975))
    unseen = LARGEST_PRECISION * max(rlct, 0.0)
    low = rlct - math.hypot(max(rlct - low, 0.0), Z_95 * unseen)
    high = rlct + math.hypot(max(high - rlct, 0.0), Z_95 * unseen)
    return TemperatureFit(
        rlct=max(rlct, 0.0),
        standard_deviation=math.hypot(math.sqrt(square), unseen),
        interval=(max(low, 0.0), max(high, 0.0)),
        multiplicity=multiplicity,
        weights=weights,
        log_n_beta=(float(log_n_beta[start]), float(log_n_beta[-1])),
        misfit=float(misfit),
        correlation=correlation,
    )


def curve_error(curves: Array) -> tuple[Array, float]:
    """Standard error of the mean curve at every rung, and the correlation of neighbouring rungs.

    The spread of a few populations is itself uncertain; it is averaged over neighbouring rungs.

    Args:
        curves: ``(populations, rungs)``.

    Returns:
        ``(rungs,)``, and a number between 0 and 0.95.
    """
    variance = curves.var(0, ddof=1)
    smooth = _smooth(variance)
    residual = (curves - curves.mean(0)) / np.sqrt(smooth + 1e-300)
    size = float((residual**2).mean())
    neighbours = residual[:, 1:] * residual[:, :-1]
    correlation = float(neighbours.mean()) / size if size > 0 and neighbours.size else 0.0
    floor = (RELATIVE_FLOOR * curves.mean(0)) ** 2 + ABSOLUTE_FLOOR**2
    return np.sqrt(smooth / len(curves) + floor), float(np.clip(correlation, 0.0, 0.95))


def combine(first: Array, second: Array) -> Array:
    """The combination of two estimates of the same curves with the least spread over populations, rung by rung.

    Args:
        first: ``(populations, rungs)``.
        second: Likewise.

    Returns:
        Likewise; the share of each is that of a window of rungs, between zero and one.
    """
    difference = second - first
    centered, other = difference - difference.mean(0), first - first.mean(0)
    spread = _smooth((centered**2).sum(0))
    shared = _smooth((centered * other).sum(0))
    share = np.clip(-shared / np.maximum(spread, 1e-300), 0.0, 1.0)
    return first + share * difference


def _smooth(values: Array) -> Array:
    count = len(values)
    return np.array([
        values[max(0, k - SMOOTHED_RUNGS) : min(count, k + SMOOTHED_RUNGS + 1)].mean() for k in range(count)
    ])


def _quantile(share: float, weight: Array, mean: Array, deviation: Array) -> float:
    """Of a mixture of normal laws, by bisection."""
    low, high = float((mean - 8 * deviation).min()), float((mean + 8 * deviation).max())
    for _ in range(60):
        middle = (low + high) / 2
        below = float(weight @ ndtr((middle - mean) / deviation))
        low, high = (middle, high) if below < share else (low, middle)
    return (low + high) / 2


def _starts(log_n_beta: Array, mean: Array, scale: float) -> list[int]:
    """Rungs from which the curve may be fitted: beyond the rise, and with enough of them left."""
    last = len(mean) - MINIMUM_RUNGS
    found = [k for k in range(0, last + 1) if log_n_beta[k] > log_n_beta[0] + 2 and mean[k] > LEAST_SHARE * scale]
    return found[::2] or [last]  # every other one: neighbours say the same


class _Models(NamedTuple):
    """Every model that was fitted: m, log posterior weight up to a constant, λ, its standard deviation and χ²."""

    multiplicity: NDArray[np.int_]
    evidence: Array
    rlct: Array
    deviation: Array
    misfit: Array


def _models(
    log_n_beta: Array, mean: Array, error: Array, correlation: float, origin: float, largest: int, amplitude: float
) -> _Models:
    whiten = _whitener(error, correlation)
    multiplicity, log_prior, logarithms = _logarithms(log_n_beta - origin, largest)
    values = whiten(mean - logarithms)
    constant = whiten(np.ones_like(mean))
    powers = [whiten(np.exp(-exponent * (log_n_beta - log_n_beta[0]))) for exponent in EXPONENTS]
    columns = []
    for slow, fast in itertools.combinations(range(len(EXPONENTS)), 2):
        if EXPONENTS[fast] < LEAST_FAST_EXPONENT:
            continue
        design = np.stack([constant, powers[slow], powers[fast]])
        covariance = np.linalg.inv(design @ design.T + np.diag([0.0, amplitude**-2, amplitude**-2]))
        size = 0.5 * math.log(np.linalg.det(covariance)) - 2 * math.log(amplitude) + math.log(EXPONENTS[slow])
        projection = values @ design.T
        solution = projection @ covariance
        evidence = log_prior + size - 0.5 * ((values**2).sum(1) - (projection * solution).sum(1))
        misfit = ((values - solution @ design) ** 2).sum(1)
        deviation = np.full(len(values), math.sqrt(covariance[0, 0]))
        columns.append((multiplicity, evidence, solution[:, 0], deviation, misfit))
    each, evidence, rlct, deviation, misfit = (np.concatenate(column) for column in zip(*columns, strict=True))
    return _Models(each, evidence + np.log(_rational_density(rlct, deviation)), rlct, deviation, misfit)


def _logarithms(depth: Array, largest: int) -> tuple[NDArray[np.int_], Array, Array]:
    """What each model says of M beyond λ and powers, ``(models, rungs)``, with its m and log prior weight.

    Args:
        depth: log t above the first rung of the ladder, ``(rungs,)``.
        largest: m is at most this.

    Returns:
        m, log prior, and −(m − 1)/(log t + c); or for m = 1, of a second pole at λ + δ, −δ/(e^{δ(log t + c)} − 1),
        which becomes the logarithm of m = 2 as δ → 0.
    """
    prior = np.gradient(OFFSETS) / (1 + ((OFFSETS - OFFSET_CENTER) / OFFSET_WIDTH) ** 2)
    deep = depth[0] + OFFSETS > 1
    prior, shifted = prior[deep] / prior.sum(), depth + OFFSETS[deep][:, None]
    found = [(1, 1 - NEAR_SHARE, np.zeros_like(depth))]
    widths = np.gradient(GAPS)
    for gap, width in zip(GAPS, widths / widths.sum(), strict=True):
        for own, place in zip(prior, shifted, strict=True):
            found.append((1, NEAR_SHARE * width * own, -gap / np.expm1(gap * place)))
    for multiplicity in range(2, largest + 1):
        for own, place in zip(prior, shifted, strict=True):
            found.append((multiplicity, MULTIPLICITY_DECAY ** (multiplicity - 1) * own, -(multiplicity - 1) / place))
    each, weights, curves = zip(*found, strict=True)
    return np.array(each), np.log(weights), np.array(curves)


def _rational_density(rlct: Array, deviation: Array) -> Array:
    """The prior density of λ, seen through the error of each model; one where that is as wide as the fractions lie."""
    # as for the curve: whole curves are off by as much, and λ with them
    error = 2 * np.sqrt(deviation**2 + (RELATIVE_FLOOR * rlct) ** 2 + ABSOLUTE_FLOOR**2)[:, None]
    fractions = [(p / q, q**-2) for q in range(1, LARGEST_DENOMINATOR + 1) for p in range(q) if math.gcd(p, q) == 1]
    places, weights = np.array(fractions).T
    distance = (2 * rlct)[:, None] - np.floor(2 * rlct)[:, None] - places
    near = sum(_normal_density((distance + shift) / error) for shift in (-1, 0, 1)) / error @ weights / weights.sum()
    return EVEN_SHARE + (1 - EVEN_SHARE) * np.where(error[:, 0] < WIDE, near, 1.0)


def _normal_density(deviate: Array) -> Array:
    return np.exp(-(deviate**2) / 2) / math.sqrt(2 * math.pi)


def _whitener(error: Array, correlation: float) -> Callable[[Array], Array]:
    """Makes noise of these errors, correlated from rung to rung by an autoregression of order one, white."""
    left = math.sqrt(1 - correlation**2)

    def whiten(values: Array) -> Array:
        scaled = values / error
        return np.concatenate([scaled[..., :1], (scaled[..., 1:] - correlation * scaled[..., :-1]) / left], -1)

    return whiten
