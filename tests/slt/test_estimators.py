"""Estimates of λ from draws whose law is known exactly: energies of a regular model are Gamma(d/2, 1)."""

import math

import numpy as np
import pytest
import torch

import slt
from slt import estimators
from tests.statistics import MINIMUM_ESS, Z

DIM, N_BETA, BASELINE = 6, 200.0, 1.7
CHAINS, DRAWS = 8, 4000


def losses(generator, shape=(CHAINS, DRAWS), order=2):
    """L of w with L = Σ|wᵢ|^order + baseline under exp(−nβ L): nβ(L − baseline) is Gamma(d/order, 1)."""
    return BASELINE + generator.gamma(DIM / order, size=shape) / N_BETA


def correlated(generator, order=2):
    """The same law, from chains that repeat each draw five times: the error must know it."""
    return np.repeat(losses(generator, (CHAINS, DRAWS // 5), order), 5, axis=1)


ESTIMATORS = {
    "mean": lambda loss: estimators.mean_llc(loss, baseline=BASELINE, n_beta=N_BETA),
    "variance": lambda loss: estimators.variance_llc(loss, n_beta=N_BETA),
    "slope": lambda loss: estimators.slope_llc(loss, n_beta=N_BETA),
    "slope to a colder law": lambda loss: estimators.slope_llc(loss, n_beta=N_BETA, other_n_beta=1.2 * N_BETA),
}


def assert_quantity(found, truth):
    assert found.ess >= MINIMUM_ESS
    assert abs(found.value - truth) <= Z * found.mcse


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize("draw", [losses, correlated])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_estimator_finds_the_shape_of_the_gamma_law(name, draw, order):
    found = ESTIMATORS[name](draw(np.random.default_rng(0), order=order))
    assert_quantity(found, DIM / order)
    assert found.mcse < 0.15


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("draw", [losses, correlated])
def test_its_error_is_the_spread_over_seeds(name, draw):
    """Sixty seeds: the mean of z² is one within four of its standard errors, 4·√(2/60)."""
    found = [ESTIMATORS[name](draw(np.random.default_rng(seed))) for seed in range(60)]
    z = np.array([(each.value - DIM / 2) / each.mcse for each in found])
    assert abs(np.square(z).mean() - 1) < 4 * math.sqrt(2 / 60)


def test_what_needs_no_baseline_is_not_moved_by_one():
    loss = losses(np.random.default_rng(0))
    for estimator in (estimators.variance_llc, estimators.slope_llc):
        assert estimator(loss + 5.0, n_beta=N_BETA).value == pytest.approx(estimator(loss, n_beta=N_BETA).value)
    moved = estimators.mean_llc(loss, baseline=BASELINE - 0.01, n_beta=N_BETA)
    with pytest.raises(AssertionError):
        assert_quantity(moved, DIM / 2)


def test_a_law_of_another_temperature_is_rejected():
    """A planted error: draws at twice the nβ that is stated."""
    loss = BASELINE + (losses(np.random.default_rng(0)) - BASELINE) / 2
    for name in ESTIMATORS:
        with pytest.raises(AssertionError):
            assert_quantity(ESTIMATORS[name](loss), DIM / 2)


def test_sensitivities_of_a_localised_quadratic():
    """λ̂ = ½ Σ nβh/(nβh + γ), whose derivatives are closed."""
    generator = np.random.default_rng(1)
    curvature, localization = np.array([0.01, 0.05, 1.0]), 4.0
    stiffness = N_BETA * curvature + localization
    w = generator.standard_normal((CHAINS, DRAWS, 3)) / np.sqrt(stiffness)
    loss = BASELINE + 0.5 * (curvature * w**2).sum(-1)
    energy = 0.5 * localization * (w**2).sum(-1)
    derivative = float((0.5 * N_BETA * curvature * localization / stiffness**2).sum())
    assert_quantity(estimators.sensitivity_to_n_beta(loss, baseline=BASELINE, n_beta=N_BETA), derivative)
    found = estimators.sensitivity_to_localization(loss, energy, n_beta=N_BETA)
    assert_quantity(found, -derivative)
    with pytest.raises(AssertionError):
        assert_quantity(found, derivative)


def test_wbic_is_n_times_the_mean_loss():
    found = estimators.wbic(losses(np.random.default_rng(0)), n=1000)
    assert_quantity(found, 1000 * (BASELINE + DIM / 2 / N_BETA))


def gaussian_location(generator, n):
    """ℓᵢ of the mean of unit normals with a flat prior, drawn from the posterior: ν and WAIC are closed."""
    x = generator.standard_normal(n)
    w = x.mean() + generator.standard_normal((CHAINS, DRAWS)) / math.sqrt(n)
    return x, 0.5 * (x - w[..., None]) ** 2 + 0.5 * math.log(2 * math.pi)


def test_waic_of_a_gaussian_location():
    n = 40
    x, sample_losses = gaussian_location(np.random.default_rng(2), n)
    found = estimators.waic(sample_losses)
    squares = (x - x.mean()) ** 2
    # Var[½(x − w)²] = (x − x̄)²/n + ½/n², and the predictive is normal of variance 1 + 1/n
    variance = float((squares / n + 0.5 / n**2).sum())
    training = float((0.5 * squares / (1 + 1 / n) + 0.5 * math.log(2 * math.pi * (1 + 1 / n))).mean())
    assert_quantity(found.functional_variance, variance)
    assert_quantity(found.singular_fluctuation, variance / 2)
    assert_quantity(found.training_loss, training)
    assert_quantity(found.waic, training + variance / n)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: estimators.mean_llc(np.zeros(5), baseline=0.0, n_beta=1.0), r"loss: shape \(5,\)"),
        (lambda: estimators.variance_llc(np.full((2, 8), np.nan), n_beta=1.0), "expected finite numbers"),
        (lambda: estimators.slope_llc(np.ones((2, 8)), n_beta=1.0, other_n_beta=1.0), "other than n_beta"),
        (lambda: estimators.slope_llc(np.random.default_rng(0).gamma(9, size=(2, 99)), n_beta=1.0, other_n_beta=9.0),
         "of the draws count"),
        (lambda: estimators.mean_llc(np.ones((2, 8)), baseline=0.0, n_beta=-5.0), "n_beta: -5.0"),
        (lambda: estimators.mean_llc(np.ones((2, 8)), baseline=np.nan, n_beta=1.0), "baseline: nan"),
        (lambda: estimators.variance_llc(np.ones((2, 8)), n_beta=0.0), "n_beta: 0.0"),
        (lambda: estimators.slope_llc(np.ones((2, 8)), n_beta=np.inf), "n_beta: inf"),
        (lambda: estimators.sensitivity_to_n_beta(np.ones((2, 8)), baseline=np.inf, n_beta=1.0), "baseline: inf"),
        (lambda: estimators.sensitivity_to_localization(np.ones((2, 8)), np.ones((2, 8)), n_beta=np.nan), "beta: nan"),
        (lambda: estimators.wbic(np.ones((2, 8)), n=2), "n: 2"),
        (lambda: estimators.sensitivity_to_localization(np.ones((2, 8)), np.ones((2, 9)), n_beta=1.0), r"\(2, 9\)"),
        (lambda: estimators.waic(np.ones((2, 8))), "sample_losses: shape"),
        (lambda: estimators.waic(np.ones((2, 8, 3)), beta=0.0), "beta: 0.0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(call, problem):
    with pytest.raises(ValueError, match=problem):
        call()


def test_an_estimate_is_checked_by_its_own_draws():
    """λ̂ = ½ Σ nβh/(nβh + γ): every way of finding it, and its derivatives, on one run of the real sampler."""
    model = Quadratic((1.0, 4.0))
    n_beta, localization = 100.0, 3.0
    estimate = slt.estimate_llc(
        model, None, lambda model: model(), n_beta=n_beta, localization=localization, num_chains=128, num_draws=500
    )
    found = estimate.cross_check()
    share = n_beta * model.curvature / (n_beta * model.curvature + localization)
    exact, derivative = float(share.sum()) / 2, float((share * (1 - share)).sum()) / 2
    assert_quantity(found.mean, exact)
    assert found.mean.value == pytest.approx(estimate.llc)
    assert found.mean.mcse == pytest.approx(estimate.mcse)
    assert_quantity(found.variance, exact - derivative)
    assert_quantity(found.sensitivity_to_n_beta, derivative)
    assert_quantity(found.sensitivity_to_localization, -derivative)
    means = [float((0.5 * model.curvature / (t * model.curvature + localization)).sum()) for t in (90.0, 100.0)]
    assert_quantity(found.slope, (means[0] - means[1]) / (1 / 90 - 1 / 100))
    assert str(found).count("±") == 5


def test_minibatches_have_a_variance_of_their_own():
    model, data = torch.nn.Linear(2, 1), (torch.randn(64, 2), torch.randn(64, 1))

    def squared(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().mean()

    estimate = slt.estimate_llc(model, data, squared, sampler="sgld", batch_size=16, num_draws=50, num_warmup=10)
    with pytest.raises(ValueError, match="cross_check: the losses of this estimate are of minibatches"):
        estimate.cross_check()


class Quadratic(torch.nn.Module):
    """½ Σ h w², at its minimum."""

    def __init__(self, curvature):
        super().__init__()
        self.curvature = torch.tensor(curvature, dtype=torch.float64)
        self.w = torch.nn.Parameter(torch.zeros(len(curvature), dtype=torch.float64))

    def forward(self):
        return 0.5 * (self.curvature * self.w**2).sum()
