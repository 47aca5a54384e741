"""R̂, effective sample size and Monte Carlo standard error of a ``(chain, draw)`` array, through arviz.

The one place where arviz is called. ``az.rhat``, ``az.ess`` and ``az.mcse`` take a plain array and give the same
figures on both of its lines, 0.x and 1.x; nothing else of its interface is used, because the rest differs.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MINIMUM_DRAWS = 4  # arviz splits chains in two, and needs two draws in each half
LEAST_CHAINS = 4  # whose means say something of their spread


class Diagnostics(NamedTuple):
    """How well a set of chains knows its mean.

    Attributes:
        mean: Over all chains and draws.
        standard_deviation: Over all chains and draws.
        mcse: Monte Carlo standard error of the mean, standard_deviation / √ess.
        ess: Effective sample size of the mean.
        rhat: Rank-normalised split R̂.
    """

    mean: float
    standard_deviation: float
    mcse: float
    ess: float
    rhat: float


def diagnose(draws: NDArray[np.floating], window: int = 1) -> Diagnostics:
    """Mean, its error, ESS and R̂ of an array ``(chain, draw)``.

    A single chain is split in two for R̂, which the estimator would do anyhow. Of a
    constant array nothing is known but its mean, since it is what a chain that stands still looks like: ESS, standard
    error and R̂ are not numbers.

    **Between chains.** From four chains on the standard error is at least that of the chains' means taken as
    independent, and ESS at most what that allows. An estimator of autocorrelation within chains does not see a slow
    part of small amplitude: on a posterior with thin arms, where it gave 0.026, means of runs scattered by 0.048. Of
    eight chains the floor is itself known to a quarter, which makes errors a tenth larger on average where there is
    nothing slow.

    **Windows.** The losses of minibatches are the energy of the chain plus a noise that is far larger. An estimator of
    autocorrelation sees the noise alone, and calls a slow chain independent: on a linear regression the standard error
    came out at 0.6 of its spread over seeds. Means over windows have less of that noise. With ``window`` > 1 they are
    diagnosed instead of the draws, and ESS counts windows.

    Args:
        draws: Finite numbers, shape ``(chain, draw)``, at least four draws. In any unit; ESS and R̂ have none.
        window: Draws to average; for minibatch losses, those of as many samples as there are. Draws that fill no
            window count for the mean alone; of fewer than four windows the draws are diagnosed, whose noise hides what
            is slow.

    Returns:
        The diagnostics, in the unit of the draws.

    Raises:
        ValueError: The array is not two-dimensional, too short, or not finite.

    Source:
        Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, §3 and §4.
    """
    draws = np.asarray(draws, dtype=np.float64)
    if window > 1 and draws.ndim == 2 and np.isfinite(draws).all() and draws.shape[1] >= MINIMUM_DRAWS * window:
        return _diagnose_windows(draws, window)
    mean, deviation, ess = mean_and_ess(draws)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        centred = draws - mean
        halves = draws.shape[1] // 2
        split = centred if len(draws) > 1 else centred[:, : 2 * halves].reshape(2, halves)
        rhat = float(arviz.rhat(split)) if split.shape[1] >= MINIMUM_DRAWS else float("nan")
    return Diagnostics(mean, deviation, deviation / ess**0.5, ess, rhat)


def mean_and_ess(draws: NDArray[np.floating]) -> tuple[float, float, float]:
    """Mean, standard deviation and effective sample size of the mean: :func:`diagnose` without R̂, three quarters of it.

    Args:
        draws: As there, without windows.

    Returns:
        The three, the first two in the unit of the draws.

    Raises:
        ValueError: The array is not two-dimensional, too short, or not finite.
    """
    draws = np.asarray(draws, dtype=np.float64)
    if draws.ndim != 2 or draws.shape[0] < 1 or draws.shape[1] < MINIMUM_DRAWS:
        raise ValueError(
            f"draws: shape {draws.shape}; expected (chain, draw) with at least one chain of {MINIMUM_DRAWS} draws."
        )
    if not np.isfinite(draws).all():
        raise ValueError(f"draws: {int((~np.isfinite(draws)).sum())} entries are not finite; drop those chains first.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz

        if (draws == draws[0, 0]).all():
            return float(draws[0, 0]), 0.0, float("nan")
        centred = draws - draws.mean()  # a loss of 2.3 ± 1e-6 loses no digits to its mean
        ess = float(arviz.ess(centred, method="mean"))
    deviation = float(centred.std(ddof=1))
    if len(draws) >= LEAST_CHAINS:
        between = float(centred.mean(axis=1).var(ddof=1)) / len(draws)
        ess = min(ess, deviation**2 / between) if between > 0 else ess
    return float(draws.mean()), deviation, ess


def _diagnose_windows(draws: NDArray[np.float64], window: int) -> Diagnostics:
    chains, count = len(draws), draws.shape[1] // window
    found = diagnose(draws[:, : count * window].reshape(chains, count, window).mean(-1))
    return found._replace(mean=float(draws.mean()))
