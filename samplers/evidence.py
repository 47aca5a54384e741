"""Log Z from mean losses: thermodynamic integration over a ladder of inverse temperatures, and its two errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95
# The rule's error goes with the fifth power of the width of an interval, so that leaving out the rung between two
# intervals tells it; on crosses, quartics and quadratics with 3 to 10 rungs a decade it was up to SAFETY times that.
SAFETY = 5.0

Array = NDArray[np.float64]


class ThermodynamicIntegral(NamedTuple):
    """Log Z, relative to the first rung, with its statistical and its quadrature error apart.

    Attributes:
        log_z: log Z(nβ of the last rung) − log Z(nβ of the first).
        standard_error: Statistical; of the rule's value, not of the integral.
        interval: 95 %, statistical: a t-interval over replications, or a normal one for independent rungs.
        quadrature_error: Estimate of the rule's error, from every second rung; not a number for two rungs.
        log_z_by_rung: The same up to every rung, ``(rungs,)``, the first being zero.
        standard_error_by_rung: Its statistical error, ``(rungs,)``.
        log_z_by_replication: At the last rung, ``(replications,)``.
    """

    log_z: float
    standard_error: float
    interval: tuple[float, float]
    quadrature_error: float
    log_z_by_rung: Array
    standard_error_by_rung: Array
    log_z_by_replication: Array


def loss_moments(losses: ArrayLike) -> tuple[Array, Array]:
    """Mean and variance of the loss by rung and replication, each ``(rungs, replications)``.

    The variance is about the mean over all replications, so that a short replication does not underestimate it by the
    variance of its own mean.

    Args:
        losses: ``(rungs, replications, draws)``, nats, such as ``by_rung(trace.loss, num_rungs)``.

    Returns:
        Means in nats, and variances in nats².

    Raises:
        ValueError: There are not three axes, or a loss is not finite.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 3 or values.size == 0:
        raise ValueError(f"losses: shape {values.shape}; expected (rungs, replications, draws), as by_rung gives them.")
    if not np.isfinite(values).all():
        raise ValueError(
            f"losses: {int((~np.isfinite(values)).sum())} are not finite; expected finite losses. A ladder in which a "
            "chain diverged has no evidence: look into trace.diverged."
        )
    mean = values.mean(-1)
    return mean, np.square(values - mean.mean(1)[:, None, None]).mean(-1)


def log_z_by_thermodynamic_integration(
    n_beta: ArrayLike,
    mean_loss: ArrayLike,
    variance_loss: ArrayLike,
    *,
    mean_error: ArrayLike | None = None,
    variance_error: ArrayLike | None = None,
    baseline: float = 0.0,
) -> ThermodynamicIntegral:
    r"""Log Z(nβ) relative to the first rung, from E[L] and Var[L] on a ladder, with statistical and quadrature errors.

    .. math:: \log\frac{Z(t_K)}{Z(t_0)} = -\int_{t_0}^{t_K} E_t[L]\, dt, \qquad \frac{d E_t[L]}{dt} = -Var_t[L]

    with t = nβ; what is not tempered, such as the localiser, does not enter. The derivative is exact, so that the
    trapezoidal rule is corrected at both ends of every interval, which makes it one of fourth order. In
    x = log(t + c) the integrand is g = (t + c)(E[L] − baseline), which where E[L] falls like λ/t is flat, and

    .. math:: \int g\,dx \approx \sum_k \tfrac{h_k}{2}(g_k + g_{k+1}) + \tfrac{h_k^2}{12}(g'_k - g'_{k+1}), \qquad
              g' = g - (t + c)^2\, Var[L]

    The shift c = E[L]/Var[L] − t at the first rung, at least zero, makes g flat there too, so that the ladder may begin
    at nβ = 0, where log t is no variable. For one quadratic direction c = γ/h, and g is constant: the rule is exact.

    **Errors.** With replications (ladders of :func:`samplers.replica_exchange`, populations of
    :func:`samplers.tempered_smc`) the rule is applied to each, and their spread is the statistical error, with all
    correlations between rungs and draws in it. With one value per rung, rungs are taken as independent, and the errors
    of mean and variance of a rung as fully correlated. The quadrature error is the sum over intervals, without regard
    to sign, of what the difference that leaving out the rung at one end makes says of them, if errors go with the fifth
    power of a width, times five. The difference contains noise too, so that it is seldom too small, but a feature that
    falls between rungs is not seen. It is mostly made in the interval that begins at nβ = 0: a second rung near c,
    where nβ·L is of order one under the localiser, makes it small.

    E[L] and Var[L] must exist at the first rung. At nβ = 0 the law is that of the localiser, under which a loss with
    heavy tails, such as exp(w²) with γ ≤ 2 or a high power of w, has no finite mean, or one that no number
    of draws finds: there the statistical error was a quarter of the true one. Begin the ladder above 0, or take SMC.

    A ladder that does not begin at nβ = 0 leaves out the stretch before it. There L has the law that the localiser
    gives it, whose draws need no chain: see ``start`` of :func:`samplers.tempered_smc`.

    Args:
        n_beta: nβ of the rungs, ``(rungs,)``, increasing, at least 0.
        mean_loss: E[L] in nats, ``(rungs, replications)``, or ``(rungs,)`` with errors.
        variance_loss: Var[L] in nats², of the same shape.
        mean_error: Standard errors of ``mean_loss`` where it is ``(rungs,)``.
        variance_error: Those of ``variance_loss``.
        baseline: A loss that is subtracted, and its part of the integral added exactly, such as that at the anchor;
            near the least loss, for g to be flat.

    Returns:
        Log Z with its errors.

    Raises:
        ValueError: Shapes do not fit, numbers are not finite, the ladder does not increase, or at nβ = 0 the mean loss
            does not exceed the baseline.

    Source:
        Thermodynamic integration: Gelman & Meng 1998, §2.2. The exact derivative as second-order correction: Friel,
        Hurn & Wyse 2014, §2.2, there in nβ; the variable and the error estimate are derived here.
    """
    rungs = np.asarray(n_beta, dtype=np.float64)
    mean, variance = np.asarray(mean_loss, dtype=np.float64), np.asarray(variance_loss, dtype=np.float64)
    _check(rungs, mean, variance, mean_error, variance_error)
    shift = _shift(rungs, mean.reshape(len(rungs), -1).mean(1), variance.reshape(len(rungs), -1).mean(1), baseline)

    def parts(rule_mean: Array, rule_variance: Array, rows: Any = slice(None)) -> Array:
        """Minus the integral over each interval between these rungs, ``(intervals, columns)``."""
        place = (rungs[rows] + shift)[:, None]
        width = np.diff(np.log(place), axis=0)
        value = place * rule_mean[rows]
        slope = value - np.square(place) * rule_variance[rows]
        ends = 0.5 * width * (value[:-1] + value[1:])
        return -(ends + width**2 / 12 * (slope[:-1] - slope[1:]))

    columns = mean.reshape(len(rungs), -1) - baseline, variance.reshape(len(rungs), -1)
    intervals = parts(*columns)
    by_rung = _cumulative(intervals)
    offsets = -baseline * (rungs - rungs[0])
    quadrature_error = _quadrature_error(
        intervals.mean(1), lambda rows: parts(*columns, rows).mean(1), np.log(rungs + shift)
    )
    if mean.ndim == 2:
        count = mean.shape[1]
        errors = by_rung.std(axis=1, ddof=1) / count**0.5
        quantile = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    else:
        unit, zero = np.eye(len(rungs)), np.zeros((len(rungs), len(rungs)))
        on_mean, on_variance = _cumulative(parts(unit, zero)), _cumulative(parts(zero, unit))
        scale = np.abs(on_mean) * np.asarray(mean_error) + np.abs(on_variance) * np.asarray(variance_error)
        errors = np.sqrt(np.square(scale).sum(1))
        quantile = float(ndtri(0.5 + CONFIDENCE / 2))
    curve = by_rung.mean(1) + offsets
    value, error = float(curve[-1]), float(errors[-1])
    return ThermodynamicIntegral(
        log_z=value,
        standard_error=error,
        interval=(value - quantile * error, value + quantile * error),
        quadrature_error=quadrature_error,
        log_z_by_rung=curve,
        standard_error_by_rung=errors,
        log_z_by_replication=by_rung[-1] + offsets[-1],
    )


def _check(
    rungs: Array, mean: Array, variance: Array, mean_error: ArrayLike | None, variance_error: ArrayLike | None
) -> None:
    if rungs.ndim != 1 or len(rungs) < 2 or not np.isfinite(rungs).all() or rungs[0] < 0 or (np.diff(rungs) <= 0).any():
        raise ValueError(f"n_beta: {rungs.tolist()}; expected two or more increasing finite numbers of at least 0.")
    if mean.ndim not in {1, 2} or len(mean) != len(rungs) or mean.shape != variance.shape:
        raise ValueError(
            f"mean_loss, variance_loss: shapes {mean.shape} and {variance.shape} for {len(rungs)} rungs; expected "
            "(rungs, replications), or (rungs,) with mean_error and variance_error."
        )
    errors = [np.asarray(error, dtype=np.float64) for error in (mean_error, variance_error) if error is not None]
    if mean.ndim == 2 and (mean.shape[1] < 2 or errors):
        raise ValueError(
            f"mean_loss: {mean.shape[1]} replications; expected two or more, and then no mean_error nor "
            "variance_error: the spread over replications is the error."
        )
    shapes = [error.shape for error in errors]
    if mean.ndim == 1 and shapes != [mean.shape] * 2:
        raise ValueError(
            f"mean_error, variance_error: shapes {shapes}; expected {mean.shape} of both, one standard error for each "
            "rung, or losses of shape (rungs, replications)."
        )
    if not all(np.isfinite(values).all() for values in (mean, variance, *errors)) or (variance < 0).any():
        raise ValueError(
            "mean_loss, variance_loss: some are not finite, or variances negative; expected finite numbers. Of "
            "tempered_smc, a population that failed has none: see its failures."
        )


def _shift(rungs: Array, mean: Array, variance: Array, baseline: float) -> float:
    """c, with which g is flat at the first rung."""
    excess = float(mean[0]) - baseline
    shift = excess / float(variance[0]) - float(rungs[0]) if variance[0] > 0 else 0.0
    if rungs[0] == 0 and shift <= 0:
        raise ValueError(
            f"baseline: {baseline}; at nβ = 0 the mean loss exceeds it by {excess:.6g}, with variance "
            f"{float(variance[0]):.6g}; expected both positive. Give a baseline near the least loss."
        )
    return max(shift, 0.0)


def _cumulative(intervals: Array) -> Array:
    return np.concatenate([np.zeros((1, intervals.shape[1])), np.cumsum(intervals, axis=0)])


def _quadrature_error(fine: Array, coarse: Callable[[Any], Array], place: Array) -> float:
    """The sum over intervals, without regard to sign, of what leaving out the rung at one end tells of each.

    That end is taken at which the next interval is more alike in width: a narrow one tells little of a wide one.

    Args:
        fine: Over each interval.
        coarse: The rule for intervals between the rungs with these numbers.
        place: x of the rungs.

    Returns:
        The estimate.
    """
    width = np.diff(place)
    if len(width) < 2:
        return float("nan")
    starts = np.arange(len(width) - 1)
    differences = [abs(float(fine[k : k + 2].sum() - coarse(np.array([k, k + 2]))[0])) for k in starts]
    # the error of an interval is taken to be proportional to the fifth power of its width
    density = differences / ((width[:-1] + width[1:]) ** 5 - width[:-1] ** 5 - width[1:] ** 5)
    unlike = np.abs(np.log(width[1:] / width[:-1]))
    left, right = np.concatenate([[np.inf], unlike]), np.concatenate([unlike, [np.inf]])
    chosen = np.where(left < right, np.arange(len(width)) - 1, np.arange(len(width)))
    return SAFETY * float((density[chosen] * width**5).sum())
