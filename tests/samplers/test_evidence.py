"""Thermodynamic integration against closed forms and quadrature: the rule's order, and both of its errors."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import samplers
from samplers import by_rung, hmc, ladder_potential, replica_exchange
from samplers.evidence import log_z_by_thermodynamic_integration, loss_moments
from samplers.smc import tempered_smc
from tests.samplers.laws import Quadratic
from tests.samplers.test_smc import log_z, planted
from tests.samplers.test_smc import loss_moments as exact_moments
from tests.statistics import assert_independent_mean

CURVATURES = (0.01, 1.0, 100.0)


def quadratic_law(curvatures, n_beta, localization=1.0):
    """log Z/Z(0), E[L] and Var[L] at nβ."""
    target = Quadratic(curvatures, localization=localization)
    return log_z(target, n_beta), *exact_moments(target, n_beta)


def line_law(loss, n_beta, localization=1.0):
    """The same for a loss of |x| on the line, by quadrature."""

    def integral(power, at):
        density = lambda x: loss(x) ** power * np.exp(-at * loss(x) - localization / 2 * x * x)  # noqa: E731
        return quad(density, 0, 12 / localization**0.5, points=[1e-2, 0.1, 1], limit=500, epsabs=1e-14, epsrel=1e-11)[0]

    z, first, second = (integral(power, n_beta) for power in range(3))
    return np.log(z / integral(0, 0.0)), first / z, second / z - (first / z) ** 2


def cross_law(n_beta, localization=1.0):
    """(w₁w₂)² with w₂ integrated out: a Gaussian of variance s = 1/(γ + 2nβx²) given x."""

    def integral(of, at):
        density = lambda x: of(x, 1 / (localization + 2 * at * x * x)) * np.exp(-localization * x * x / 2)  # noqa: E731
        points = np.geomspace(1e-5, 1, 11)
        return quad(density, 0, 12 / localization**0.5, points=points, limit=2000, epsabs=0, epsrel=1e-11)[0]

    moments = [integral(lambda x, s, power=power: s**0.5 * (1, x * x * s, 3 * x**4 * s**2)[power], n_beta)
               for power in range(3)]  # fmt: skip
    z, first, second = moments
    return np.log(z / integral(lambda x, s: s**0.5, 0.0)), first / z, second / z - (first / z) ** 2


LAWS = {
    "quadratic": lambda n_beta: quadratic_law(CURVATURES, n_beta),
    "quartic": lambda n_beta: line_law(lambda x: x**4, n_beta),
    "cube on a half line": lambda n_beta: line_law(lambda x: x**3 / 12, n_beta),
    "cross": cross_law,
    "narrow cross": lambda n_beta: cross_law(n_beta, 100.0),
}


def exact_rule(law, ladder, module=None):
    """The rule from exact means and variances, and the exact log Z."""
    truth, mean, variance = np.array([law(n_beta) for n_beta in ladder]).T
    zero = np.zeros_like(mean)
    rule = module.log_z_by_thermodynamic_integration if module else log_z_by_thermodynamic_integration
    return rule(ladder, mean, variance, mean_error=zero, variance_error=zero), truth - truth[0]


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("ratio", [2.0, 3.0, 5.0, 10.0])
@pytest.mark.parametrize(("first", "top"), [(0.25, 1e3), (0.25, 1e6), (0.02, 1e3)])
def test_the_quadrature_error_bounds_the_error(law, ratio, first, top):
    count = int(np.ceil(np.log(top / first) / np.log(ratio))) + 1
    found, truth = exact_rule(law, np.concatenate([[0.0], np.geomspace(first, top, count)]))
    assert abs(found.log_z - truth[-1]) <= found.quadrature_error
    assert found.quadrature_error < 0.1
    assert found.standard_error == 0
    assert np.abs(found.log_z_by_rung - truth).max() <= found.quadrature_error


@pytest.mark.parametrize("ladder", [(0.0, 3.0, 1e4), (2.0, 3.0, 1e4, 1e5)])
def test_one_direction_is_exact_however_few_the_rungs(ladder):
    found, truth = exact_rule(lambda n_beta: quadratic_law((2.0,) * 5, n_beta, 3.0), ladder)
    np.testing.assert_allclose(found.log_z_by_rung, truth, rtol=1e-12)
    assert found.quadrature_error < 1e-12


def orders(module=None):
    """By what the error falls where the number of intervals doubles, for nβ from 1 to 10⁴."""
    errors = []
    for count in (17, 33, 65):
        found, truth = exact_rule(LAWS["quadratic"], np.geomspace(1, 1e4, count), module)
        errors.append(abs(found.log_z - truth[-1]))
    return errors[0] / errors[1], errors[1] / errors[2]


def test_the_rule_is_of_fourth_order_and_without_the_variance_of_second():
    """Euler–Maclaurin: the ends of the range leave h² without the derivatives, h⁴ with them."""
    np.testing.assert_allclose(orders(), 16, rtol=0.1)
    trapezoid = planted("evidence", "width**2 / 12 * (slope[:-1] - slope[1:])", "0")
    np.testing.assert_allclose(orders(trapezoid), 4, rtol=0.1)


PLANTED = {
    "without the variance": ("width**2 / 12 * (slope[:-1] - slope[1:])", "0"),
    "correction of the wrong sign": ("(ends + width**2", "(ends - width**2"),
    "variance of the wrong sign": ("value - np.square(place)", "value + np.square(place)"),
    "mean in the wrong variable": ("value = place * rule_mean", "value = rungs[rows][:, None] * rule_mean"),
    "wrong sign": ("return -(ends", "return (ends"),
}


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_errors_are_rejected(plant):
    """At ten rungs a decade the honest rule is good to 1e-6."""
    ladder = np.geomspace(1, 1e4, 41)
    found, truth = exact_rule(LAWS["quadratic"], ladder)
    assert abs(found.log_z - truth[-1]) < 1e-6
    wrong, _ = exact_rule(LAWS["quadratic"], ladder, planted("evidence", *PLANTED[plant]))
    assert abs(wrong.log_z - truth[-1]) > 1e-5


def gamma_losses(generator, ladder, replications, draws):
    """Independent draws of L at every rung for four equal directions under γ = 1: exponential sums, shape 2."""
    return generator.gamma(2.0, 1 / (np.asarray(ladder)[:, None, None] + 1), (len(ladder), replications, draws))


LADDER = (0.0, 1.0, 4.0, 20.0, 100.0)


def test_the_interval_covers_as_often_as_it_says():
    """Eight replications: the t-interval, where two standard errors would cover 92 %."""
    generator = np.random.default_rng(1)
    truth = log_z(Quadratic((1.0,) * 4, localization=1.0), 100.0)
    covered, errors = [], []
    for _ in range(1500):
        found = log_z_by_thermodynamic_integration(LADDER, *loss_moments(gamma_losses(generator, LADDER, 8, 100)))
        covered.append(found.interval[0] < truth < found.interval[1])
        errors.append((found.log_z - truth) / found.standard_error)
    assert_independent_mean(covered, 0.95)
    assert np.std(errors) > 1.05  # of a t law with seven degrees of freedom


def test_errors_of_independent_rungs_are_propagated():
    """Their root of a sum of squares is the spread where only means are noisy, and an upper bound with both."""
    generator = np.random.default_rng(2)
    _, mean, variance = np.array([quadratic_law((1.0,) * 4, n_beta) for n_beta in LADDER]).T
    noise = 0.01 * mean
    for both in (False, True):
        error = 0.02 * variance * both
        values = []
        for _ in range(1500):
            found = log_z_by_thermodynamic_integration(
                LADDER, mean + noise * generator.standard_normal(5), variance + error * generator.standard_normal(5),
                mean_error=noise, variance_error=error)  # fmt: skip
            values.append(found.log_z)
        share = np.std(values) / found.standard_error
        assert 0.6 < share < 1.0 if both else abs(share - 1) < 4 / (2 * 1500) ** 0.5 + 0.02  # c is drawn anew


def test_a_baseline_is_integrated_exactly():
    generator = np.random.default_rng(3)
    losses = gamma_losses(generator, LADDER, 4, 50)
    plain = log_z_by_thermodynamic_integration(LADDER, *loss_moments(losses))
    raised = log_z_by_thermodynamic_integration(LADDER, *loss_moments(losses + 2.5), baseline=2.5)
    np.testing.assert_allclose(raised.log_z_by_rung, plain.log_z_by_rung - 2.5 * np.array(LADDER), rtol=1e-9)
    np.testing.assert_allclose(raised.standard_error, plain.standard_error, rtol=1e-6)
    with pytest.raises(ValueError, match="baseline: 3"):
        log_z_by_thermodynamic_integration(LADDER, *loss_moments(losses), baseline=3.0)


def test_moments_are_about_the_common_mean():
    losses = np.stack([np.zeros((2, 10)), np.repeat([[1.0], [3.0]], 10, 1)])
    mean, variance = loss_moments(losses)
    np.testing.assert_array_equal(mean, [[0, 0], [1, 3]])
    np.testing.assert_array_equal(variance, [[0, 0], [1, 1]])  # within each replication it is zero


def test_replica_exchange_and_smc_agree_with_the_closed_form():
    """From a rung at nβ = 0, for which the localiser alone is sampled."""
    target = Quadratic((0.5, 1.0, 5.0), localization=2.0)
    ladder = torch.tensor((0.0, 0.5, 2.0, 8.0, 32.0), dtype=torch.float64)
    rows = ladder_potential(target, ladder, 16)

    def kernel_at(n_beta):
        return hmc((0.3 / (n_beta * 5 + 2) ** 0.5, 1.5 / (n_beta * 0.5 + 2) ** 0.5), 4)

    trace = samplers.sample(replica_exchange(kernel_at(rows.n_beta), 5), rows, torch.zeros(3, dtype=torch.float64),
                            num_chains=len(rows.n_beta), num_warmup=100, num_draws=600)  # fmt: skip
    exchanged = log_z_by_thermodynamic_integration(ladder, *loss_moments(by_rung(trace.loss, 5)))
    smc = tempered_smc(target, kernel_at, 32.0)
    integrated = log_z_by_thermodynamic_integration(
        smc.n_beta, smc.mean_loss_by_population, smc.variance_loss_by_population
    )
    for found in (exchanged, integrated):
        error = (found.log_z - log_z(target, 32.0)) / (found.standard_error + found.quadrature_error)
        assert abs(error) < 4
        assert found.standard_error + found.quadrature_error < 0.06
    assert exchanged.log_z_by_replication.shape == (16,)


def test_bad_arguments_are_named():
    mean, variance = loss_moments(gamma_losses(np.random.default_rng(4), LADDER, 3, 20))
    one = {"mean_error": mean[:, 0], "variance_error": mean[:, 0]}
    for match, arguments, settings in (
        ("n_beta: ", (LADDER[::-1], mean, variance), {}),
        ("n_beta: ", (LADDER[:1], mean[:1], variance[:1]), {}),
        ("mean_loss, variance_loss: shapes", (LADDER, mean[:3], variance), {}),
        ("mean_loss: 1 replications", (LADDER, mean[:, :1], variance[:, :1]), {}),
        ("mean_loss: 3 replications", (LADDER, mean, variance), one),
        ("mean_error, variance_error: ", (LADDER, mean[:, 0], variance[:, 0]), {}),
        ("not finite", (LADDER, mean * np.nan, variance), {}),
        ("variances negative", (LADDER, mean, -variance), {}),
    ):
        with pytest.raises(ValueError, match=match):
            log_z_by_thermodynamic_integration(*arguments, **settings)
    with pytest.raises(ValueError, match="losses: shape"):
        loss_moments(mean)
    with pytest.raises(ValueError, match="losses: 15 are not finite"):
        loss_moments(np.full((5, 3, 1), np.nan))
    assert np.isnan(log_z_by_thermodynamic_integration(LADDER[:2], mean[:2], variance[:2]).quadrature_error)
