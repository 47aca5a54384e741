"""From draws to numbers: every estimate of λ that one set of draws gives, each with its error. Pure arithmetic."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samplers.diagnostics import mean_and_ess

Array = NDArray[np.float64]
LEAST_WEIGHT = 0.1  # effective share of draws that reweighting to another temperature must leave
NEARBY = 0.9  # of nβ, the other temperature of a slope: near enough for weights, far enough for a difference


class Quantity(NamedTuple):
    """A number with its Monte Carlo error.

    Attributes:
        value: The number.
        mcse: Its Monte Carlo standard error.
        ess: Effective sample size of the draws for it.
    """

    value: float
    mcse: float
    ess: float


def mean_llc(loss: ArrayLike, *, baseline: float, n_beta: float) -> Quantity:
    r"""λ̂ as the mean energy over the anchor, the estimator of :func:`slt.estimate_llc`.

    .. math:: \hat\lambda = n\beta\,(E[L_n(w)] - L_n(w^*))

    Args:
        loss: L_n of every draw, nats, ``(chain, draw)``.
        baseline: L_n(w*), nats.
        n_beta: nβ.

    Returns:
        λ̂, dimensionless.

    Raises:
        ValueError: The losses are not finite, not ``(chain, draw)``, or of fewer than four draws; or nβ is not
            positive, or L_n(w*) not finite.

    Source:
        Lau, Furman, Wang, Murfet & Wei 2023, eq. 14.
    """
    _check(n_beta, baseline)
    losses = _checked(loss)
    return _quantity(n_beta * float((losses - baseline).mean()), n_beta * losses)


def variance_llc(loss: ArrayLike, *, n_beta: float) -> Quantity:
    r"""The variance of the energy, which needs no baseline: λ̂ less its derivative by log nβ.

    .. math:: V = (n\beta)^2\, \mathrm{Var}[L_n] = \hat\lambda - \frac{\partial\hat\lambda}{\partial\log n\beta}

    exact at any nβ, with γ and the anchor fixed. It tends to λ as λ̂ does where m = 1. A loss of minibatches has a
    variance of its own, which is not told apart here: full-data losses only.

    Args:
        loss: L_n of every draw, full data, nats, ``(chain, draw)``.
        n_beta: nβ.

    Returns:
        V, dimensionless.

    Raises:
        ValueError: The losses are not finite, not ``(chain, draw)``, or of fewer than four draws; or nβ is not
            positive.

    Source:
        Imai 2019, *Estimating real log canonical thresholds*, for V as an estimator of λ; the identity is the second
        derivative of log Z.
    """
    _check(n_beta)
    energy = n_beta * _checked(loss)
    squares = np.square(energy - energy.mean())
    return _quantity(float(squares.mean()), squares)


def slope_llc(loss: ArrayLike, *, n_beta: float, other_n_beta: float | None = None) -> Quantity:
    r"""λ̂ from the means at two inverse temperatures, which needs no baseline: the slope of E[L_n] in 1/nβ.

    .. math:: \hat\lambda = \frac{E_{t'}[L_n] - E_t[L_n]}{1/t' - 1/t}, \qquad
              E_{t'}[L_n] = \frac{E_t[L_n e^{-(t' - t) L_n}]}{E_t[e^{-(t' - t) L_n}]}

    with t = nβ: the second mean comes from the same draws, by their weights. Equal to λ where E[L_n] = L* + λ/t
    exactly, and then whatever L* is; a baseline that is no minimum shows as a difference to :func:`mean_llc`.

    Args:
        loss: L_n of every draw, full data, nats, ``(chain, draw)``.
        n_beta: nβ of the draws, t.
        other_n_beta: t'; by default 0.9 t.

    Returns:
        λ̂, dimensionless.

    Raises:
        ValueError: The losses are not finite, not ``(chain, draw)``, or of fewer than four draws; or t or t' is not
            positive; or t' is t, or so far from it that less than a tenth of the draws would count.

    Source:
        Watanabe 2013, *A widely applicable Bayesian information criterion*, Corollary 3 (λ from two temperatures).
    """
    _check(n_beta)
    losses = _checked(loss)
    other = NEARBY * n_beta if other_n_beta is None else float(other_n_beta)
    if not 0 < other < math.inf or other == n_beta:
        raise ValueError(f"other_n_beta: {other}; expected a positive number other than n_beta, {n_beta}.")
    weights, share = _weights(losses, n_beta, other)
    if share < LEAST_WEIGHT:
        raise ValueError(
            f"other_n_beta: {other:.4g} is so far from n_beta = {n_beta:.4g} that {share:.1%} of the draws count; "
            f"expected one that leaves {LEAST_WEIGHT:.0%}."
        )
    there, here = float((weights * losses).mean()), float(losses.mean())
    distance = 1 / other - 1 / n_beta
    influence = weights * (losses - there) - (losses - here)  # of each draw on the difference, to first order
    return _quantity((there - here) / distance, influence / distance)


def wbic(loss: ArrayLike, *, n: int) -> Quantity:
    r"""The widely applicable Bayesian information criterion, n E[L_n] at β = 1 / log n.

    .. math:: \mathrm{WBIC} = n\,E^{\beta}_w[L_n(w)] = n L_n(w_0) + \lambda \log n + O_p(\sqrt{\log n})

    which has the first two terms of the free energy −log Z(β = 1). The draws must be at nβ = n / log n, the default of
    :func:`slt.estimate_llc`; with a localiser it is that of the neighbourhood of w*.

    Args:
        loss: L_n of every draw, nats, ``(chain, draw)``.
        n: The number of samples.

    Returns:
        WBIC, nats.

    Raises:
        ValueError: The losses are not finite, not ``(chain, draw)``, or of fewer than four draws; or n is below 3.

    Source:
        Watanabe 2013, Theorem 4.
    """
    if n < 3:
        raise ValueError(f"n: {n}; expected at least 3 samples, for which log n is safely positive.")
    losses = _checked(loss)
    return _quantity(n * float(losses.mean()), n * losses)


def sensitivity_to_n_beta(loss: ArrayLike, *, baseline: float, n_beta: float) -> Quantity:
    r"""How λ̂ changes with nβ, per unit of log nβ, at fixed γ: whether nβ still shapes the number.

    .. math:: \frac{\partial\hat\lambda}{\partial\log n\beta} = \hat\lambda - (n\beta)^2\, \mathrm{Var}[L_n]

    Args:
        loss: L_n of every draw, full data, nats, ``(chain, draw)``.
        baseline: L_n(w*), nats.
        n_beta: nβ.

    Returns:
        The derivative, dimensionless.

    Raises:
        ValueError: The losses are not finite, not ``(chain, draw)``, or of fewer than four draws; or nβ is not
            positive, or L_n(w*) not finite.

    Source:
        The derivative of E[L_n] under exp(−nβ L_n − localiser).
    """
    _check(n_beta, baseline)
    energy = n_beta * (_checked(loss) - baseline)
    values = energy - np.square(energy - energy.mean())
    return _quantity(float(values.mean()), values)


def sensitivity_to_localization(loss: ArrayLike, localization_energy: ArrayLike, *, n_beta: float) -> Quantity:
    r"""How λ̂ changes with γ, per unit of log γ, at fixed nβ: whether the localiser still shapes the number.

    .. math:: \frac{\partial\hat\lambda}{\partial\log\gamma} = -n\beta\;
              \mathrm{Cov}\bigl[L_n, \tfrac{\gamma}{2}\|w - w^*\|^2\bigr]

    Args:
        loss: L_n of every draw, nats, ``(chain, draw)``. Minibatch noise averages out of the covariance.
        localization_energy: (γ/2)‖w − w*‖² of the same draws, nats.
        n_beta: nβ.

    Returns:
        The derivative, dimensionless.

    Raises:
        ValueError: The arrays are not finite, not ``(chain, draw)``, of different shapes, or of fewer than four draws;
            or nβ is not positive.

    Source:
        The derivative of E[L_n] under exp(−nβ L_n − localiser).
    """
    _check(n_beta)
    energy, localization = n_beta * _checked(loss), _checked(localization_energy, "localization_energy")
    if energy.shape != localization.shape:
        raise ValueError(f"localization_energy: shape {localization.shape}; expected that of loss, {energy.shape}.")
    products = (energy - energy.mean()) * (localization - localization.mean())
    return _quantity(-float(products.mean()), -products)


class CrossCheck(NamedTuple):
    """What one set of full-data draws says of λ in several ways; see the functions of the same names.

    Attributes:
        mean: λ̂ itself, over the anchor; before the predicted bias of a step is taken off, where it has one.
        variance: λ̂ less its derivative by log nβ; no baseline.
        slope: λ̂ from the slope of E[L_n] in 1/nβ; no baseline. None where fewer than a tenth of the draws count at
            0.9 nβ, as where λ̂ is above 180.
        sensitivity_to_n_beta: ∂λ̂/∂log nβ.
        sensitivity_to_localization: ∂λ̂/∂log γ; None without a localiser.
    """

    mean: Quantity
    variance: Quantity
    slope: Quantity | None
    sensitivity_to_n_beta: Quantity
    sensitivity_to_localization: Quantity | None

    def __str__(self) -> str:
        names = {
            "mean": "λ̂, mean energy over the anchor",
            "variance": "variance of the energy, λ̂ − ∂λ̂/∂log nβ",
            "slope": "slope of E[L] in 1/nβ",
            "sensitivity_to_n_beta": "∂λ̂/∂log nβ",
            "sensitivity_to_localization": "∂λ̂/∂log γ",
        }
        rows = ((names[name], value) for name, value in self._asdict().items() if value is not None)
        return "\n".join(f"{name:<44}{value.value:>10.4g} ± {value.mcse:.2g}" for name, value in rows)


def cross_check(
    loss: ArrayLike,
    localization_energy: ArrayLike,
    *,
    baseline: float,
    n_beta: float,
    baseline_error: float = 0.0,
) -> CrossCheck:
    """Every estimate of λ that these draws give, side by side.

    They are of the same quantity only where λ̂ no longer changes with nβ: far from that, the sensitivities say how far.
    Where the mean alone is off, the anchor is no minimum of the loss.

    Args:
        loss: L_n of every draw, full data, nats, ``(chain, draw)``.
        localization_energy: (γ/2)‖w − w*‖² of the same draws, nats.
        baseline: L_n(w*), nats.
        n_beta: nβ.
        baseline_error: Standard error of the baseline, nats, which the mean and its change with nβ share.

    Returns:
        The estimates with their errors.

    Raises:
        ValueError: The arrays are not finite, not ``(chain, draw)``, or of different shapes, or of fewer than four
            draws; or nβ is not positive.
    """
    localised = bool(np.any(np.asarray(localization_energy)))
    enough = _weights(_checked(loss), n_beta, NEARBY * n_beta)[1] >= LEAST_WEIGHT

    def over_the_baseline(found: Quantity) -> Quantity:
        return found._replace(mcse=math.hypot(found.mcse, n_beta * baseline_error))

    return CrossCheck(
        mean=over_the_baseline(mean_llc(loss, baseline=baseline, n_beta=n_beta)),
        variance=variance_llc(loss, n_beta=n_beta),
        slope=slope_llc(loss, n_beta=n_beta) if enough else None,
        sensitivity_to_n_beta=over_the_baseline(sensitivity_to_n_beta(loss, baseline=baseline, n_beta=n_beta)),
        sensitivity_to_localization=(
            sensitivity_to_localization(loss, localization_energy, n_beta=n_beta) if localised else None
        ),
    )


class WAIC(NamedTuple):
    """The widely applicable information criterion, and what it is made of.

    Attributes:
        waic: Training loss plus functional variance over n, nats per sample: an estimate of the generalisation loss.
        training_loss: −(1/n) Σᵢ log E[p(xᵢ|w)], nats per sample.
        functional_variance: Σᵢ Var[log p(xᵢ|w)], nats².
        singular_fluctuation: ν = (β/2) times the functional variance, dimensionless.
    """

    waic: Quantity
    training_loss: Quantity
    functional_variance: Quantity
    singular_fluctuation: Quantity


def waic(sample_losses: ArrayLike, *, beta: float = 1.0) -> WAIC:
    r"""WAIC and the singular fluctuation, from the loss of every sample at every draw.

    .. math:: T_n = -\frac1n \sum_i \log E[e^{-\ell_i}], \qquad V_n = \sum_i \mathrm{Var}[\ell_i], \qquad
              \mathrm{WAIC} = T_n + \frac{\beta}{n} V_n, \qquad \nu = \tfrac{\beta}{2} V_n

    with ℓᵢ = −log p(xᵢ|w). The draws must be of the posterior at this β, without tempering at β = 1.

    Args:
        sample_losses: ℓᵢ, nats, ``(chain, draw, sample)``.
        beta: Inverse temperature of the posterior of which the draws are.

    Returns:
        The criterion and its parts.

    Raises:
        ValueError: The losses are not finite, not of three axes, or of fewer than four draws; or β is not positive.

    Source:
        Watanabe 2010, *Asymptotic equivalence of Bayes cross validation and widely applicable information criterion*,
        §2; for ν, Watanabe 2009, ch. 6.
    """
    losses = np.asarray(sample_losses, dtype=np.float64)
    if losses.ndim != 3 or losses.shape[2] < 1 or not np.isfinite(losses).all():
        raise ValueError(f"sample_losses: shape {losses.shape}; expected finite losses of shape (chain, draw, sample).")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta: {beta}; expected a positive number.")
    n = losses.shape[2]
    lowest = losses.min((0, 1))
    likelihood = np.exp(lowest - losses)
    mean_likelihood = likelihood.mean((0, 1))
    training = float((lowest - np.log(mean_likelihood)).mean())
    of_training = -(likelihood / mean_likelihood).mean(-1)
    squares = np.square(losses - losses.mean((0, 1))).sum(-1)
    variance = float(squares.mean())
    return WAIC(
        waic=_quantity(training + beta / n * variance, of_training + beta / n * squares),
        training_loss=_quantity(training, of_training),
        functional_variance=_quantity(variance, squares),
        singular_fluctuation=_quantity(0.5 * beta * variance, 0.5 * beta * squares),
    )


def _check(n_beta: float, baseline: float = 0.0) -> None:
    if not 0 < n_beta < math.inf:
        raise ValueError(f"n_beta: {n_beta}; expected a positive number, that of the draws.")
    if not math.isfinite(baseline):
        raise ValueError(f"baseline: {baseline}; expected the loss at w*, a finite number of nats.")


def _checked(values: ArrayLike, name: str = "loss") -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"{name}: shape {array.shape}; expected finite numbers of shape (chain, draw).")
    return array


def _weights(losses: Array, n_beta: float, other: float) -> tuple[Array, float]:
    """What each draw counts at another nβ, of mean one, and the share of them that are left to count."""
    exponent = -(other - n_beta) * losses
    weights = np.exp(exponent - exponent.max())
    weights /= weights.mean()
    return weights, 1 / float(np.square(weights).mean())


def _quantity(value: float, influence: Array) -> Quantity:
    """A value with the error of the mean of what each draw adds to it, to first order."""
    _, deviation, ess = mean_and_ess(influence)
    return Quantity(value, deviation / math.sqrt(ess), ess)
