"""R̂, ESS and MCSE against series whose effective size is known."""

import arviz
import numpy as np
import pytest
from scipy.signal import lfilter

from samplers import diagnose


def autoregressive(correlation, chains=8, draws=20_000, seed=0):
    """AR(1) chains with unit variance: N draws are worth N (1 − ρ) / (1 + ρ)."""
    generator = np.random.default_rng(seed)
    series = np.empty((chains, draws))
    series[:, 0] = generator.normal(size=chains)
    innovations = generator.normal(size=(chains, draws)) * np.sqrt(1 - correlation**2)
    for place in range(1, draws):
        series[:, place] = correlation * series[:, place - 1] + innovations[:, place]
    return series


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_effective_size_of_an_autoregression(correlation):
    found = diagnose(autoregressive(correlation))
    expected = 160_000 * (1 - correlation) / (1 + correlation)
    assert found.ess == pytest.approx(expected, rel=0.1)
    assert found.mcse == pytest.approx(expected**-0.5, rel=0.06)
    assert found.rhat < 1.01


def test_chains_in_different_places_are_seen():
    series = autoregressive(0.5)
    series[0] += 3
    found = diagnose(series)
    assert found.rhat > 1.1
    assert found.ess < 100


def test_one_chain_is_split_for_rhat():
    drifting = np.linspace(0, 5, 2000)[None] + autoregressive(0.0, chains=1, draws=2000)
    assert diagnose(drifting).rhat > 1.5
    assert diagnose(autoregressive(0.0, chains=1, draws=2000)).rhat < 1.01


def test_a_large_offset_costs_no_digits():
    series = autoregressive(0.5, draws=1000)
    shifted = diagnose(series * 1e-6 + 2.3)
    plain = diagnose(series)
    assert shifted.ess == pytest.approx(plain.ess, rel=1e-3)
    assert shifted.mcse == pytest.approx(plain.mcse * 1e-6, rel=1e-3)


def by_autocorrelation(series):
    """The standard error of the mean that arviz gives."""
    return series.std(ddof=1) / float(arviz.ess(series, method="mean")) ** 0.5


def covered(amplitude, correlation, repeats=200):
    """How often ±1.96 standard errors hold the mean 0, by ``diagnose`` and by autocorrelation, and their ratio."""
    generator = np.random.default_rng(0)
    held, ratios = np.zeros(2), []
    for _ in range(repeats):
        slow = generator.normal(size=(8, 800)) * np.sqrt(1 - correlation**2)
        slow[:, 0] = generator.normal(size=8)
        series = generator.normal(size=(8, 800)) + amplitude * lfilter([1], [1, -correlation], slow, axis=1)
        found, within = diagnose(series), by_autocorrelation(series)
        held += abs(found.mean) < 1.96 * np.array([found.mcse, within])
        ratios.append(found.mcse / within)
    return (*held / repeats, float(np.mean(ratios)))


def test_a_slow_part_of_small_amplitude_is_in_the_error():
    """A hundredth of the variance, which remembers 500 draws: an autocorrelation that looks like noise.

    The bounds are four binomial deviations of 200 runs from 0.88 and 0.59.
    """
    held, within, _ = covered(0.1, 0.998)
    assert held > 0.79
    assert within < 0.73


def test_where_nothing_is_slow_errors_are_a_tenth_larger():
    held, _, ratio = covered(0.0, 0.0)
    assert held > 0.89  # four deviations below 0.95
    assert 1.03 < ratio < 1.15


def test_noise_of_minibatches_does_not_hide_a_slow_chain():
    """Energy with autocorrelation 0.98 under noise 20 times larger that cancels within an epoch of ten.

    The standard error must be that of the energy; without windows it is far too small, and ESS nearly the draws.
    """
    energy = autoregressive(0.98, chains=8, draws=4000)
    noise = np.random.default_rng(1).normal(size=(8, 400, 10)) * 20**0.5
    noise -= noise.mean(-1, keepdims=True)
    series = energy + noise.reshape(8, 4000)
    truth = (32_000 * (1 - 0.98) / (1 + 0.98)) ** -0.5
    assert by_autocorrelation(series) < 0.7 * truth
    found = diagnose(series, window=10)
    assert 0.8 * truth < found.mcse < 1.6 * truth
    assert found.ess < 500
    assert found.mean == pytest.approx(series.mean())


@pytest.mark.parametrize(
    "draws", [np.zeros(10), np.zeros((2, 3)), np.zeros((0, 10)), np.array([[1.0, np.nan, 2.0, 3.0]])]
)
def test_what_cannot_be_diagnosed_is_refused(draws):
    with pytest.raises(ValueError, match="draws"):
        diagnose(draws)


@pytest.mark.parametrize("window", [1, 4])
def test_of_a_constant_array_nothing_is_known_but_its_mean(window):
    found = diagnose(np.full((4, 100), 0.3), window)
    assert found.mean == pytest.approx(0.3)
    assert all(np.isnan(value) for value in (found.mcse, found.ess, found.rhat))
