"""Tempered SMC: log Z without bias and the law of every rung, on quadratics with closed forms; planted errors."""

import importlib
import inspect
import types

import numpy as np
import pytest
import torch
from scipy.stats import norm
from scipy.stats import t as student

import samplers
from samplers import hmc, mala
from samplers.smc import systematic_resampling, tempered_smc
from tests.samplers.laws import Cross, Quadratic, random_rotation
from tests.statistics import Z, assert_independent_mean, assert_mean


def planted(name, honest, wrong):
    """The module of that name, made from its source with one expression replaced."""
    module = importlib.import_module(f"samplers.{name}")
    source = inspect.getsource(module)
    assert source.count(honest) == 1, f"{honest!r} occurs {source.count(honest)} times in {name}"
    changed = types.ModuleType(module.__name__)
    exec(compile(source.replace(honest, wrong), f"planted in {name}", "exec"), changed.__dict__)
    return changed


def assert_replicated_mean(values, truth):
    """For few independent replications: the t-quantile with the false-alarm rate of Z standard errors."""
    values = np.asarray(values)
    bound = float(student.isf(norm.sf(Z), len(values) - 1))
    error = (values.mean() - truth) / (values.std(ddof=1) / len(values) ** 0.5)
    assert abs(error) <= bound, f"mean {values.mean():.6g}, truth {truth:.6g}: {error:+.1f} standard errors"


def log_z(target, n_beta):
    """log Z(nβ)/Z(0) = −½ Σ log(1 + nβ h/γ)."""
    return -0.5 * float(torch.log1p(n_beta * target.h / target.localizer.strength).sum())


def loss_moments(target, n_beta):
    """E[L] = ½ Σ h/A and Var[L] = ½ Σ (h/A)²."""
    share = target.h / (n_beta * target.h + target.localizer.strength)
    return float(0.5 * share.sum()), float(0.5 * share.square().sum())


def quadratic():
    return Quadratic((0.5, 1.0, 5.0), localization=2.0, rotation=random_rotation(3))


def scales(n_beta):
    return hmc((0.2 / (n_beta * 5 + 2) ** 0.5, 1.5 / (n_beta * 0.5 + 2) ** 0.5), 4)


LADDER = (0.0, 0.5, 2.0, 8.0)


def assert_without_bias(smc, kernel_at=lambda n_beta: hmc(1.3 / (n_beta * 5 + 2) ** 0.5, 1), resample_below=0.5):
    """E[Z] is exact on a fixed ladder, with ten particles and moves that hardly mix: of Z, and at every rung."""
    target = quadratic()
    found = smc(target, kernel_at, LADDER, num_populations=4000, num_particles=10, num_moves=1,
                resample_below=resample_below)  # fmt: skip
    alive = np.isfinite(found.log_z_by_population[-1])
    assert alive.all(), found.problems
    for place, n_beta in enumerate(LADDER[1:], 1):
        ratio = np.exp(found.log_z_by_population[place] - log_z(target, n_beta))
        # the gate: wrong weights may have no variance, and then no bound either
        assert ratio.std() / 4000**0.5 < 0.05, f"standard errors of {ratio.std() / 4000**0.5:.2g}: too wide to tell"
        assert_independent_mean(ratio, 1.0)


@pytest.mark.parametrize("resample_below", [0.0, 0.5, 0.99])
def test_z_is_without_bias_for_few_particles_and_slow_moves(resample_below):
    assert_without_bias(tempered_smc, resample_below=resample_below)


def test_z_is_without_bias_with_mala_and_resampling_at_every_rung():
    assert_without_bias(tempered_smc, lambda n_beta: mala(0.3 / (n_beta * 5 + 2)), resample_below=1.0)


PLANTED = {
    "wrong sign": ("self.log_weights - (n_beta - self.n_beta[-1])", "self.log_weights + (n_beta - self.n_beta[-1])"),
    "whole nβ instead of its increment": ("(n_beta - self.n_beta[-1]) * self.losses", "n_beta * self.losses"),
    "resampled by stale weights": (
        "systematic_resampling(self.weights, self.generator)", "systematic_resampling(even.exp(), self.generator)"),
    "weights kept after resampling": (
        "torch.where(self.resampled.unsqueeze(1), even, self.log_weights)", "self.log_weights.clone()"),
    "increment left out where resampled": (
        "self.log_z = self.log_z + log_sum",
        "self.log_z = torch.where(1 / (log_weights - log_sum.unsqueeze(1)).exp().square().sum(1) < "
        "0.5 * self.shape[1], self.log_z, self.log_z + log_sum)"),
    "unnormalised weights": (
        "torch.where(alive.unsqueeze(1), log_weights - log_sum.unsqueeze(1), even)",
        "torch.where(alive.unsqueeze(1), log_weights, even)"),
    "cumulative weights not normalised": (
        "cumulative = cumulative / cumulative[:, -1:]", "cumulative = cumulative * 0.7"),
    "positions without their losses": (
        "take_rows_(self.state, rows)", "self.state.position.copy_(self.state.position[rows])"),
    "moved at the rung before": (
        "_Tempered(self.potential, self.n_beta[-1])", "_Tempered(self.potential, self.n_beta[-2])"),
}  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_errors_are_rejected(plant):
    smc = planted("smc", *PLANTED[plant]).tempered_smc
    with pytest.raises(AssertionError, match="standard errors|degenerate"):
        assert_without_bias(smc, resample_below=0.99)


def test_a_tempered_localizer_is_rejected(monkeypatch):
    """Moves as if the localiser were tempered too, its strength growing with nβ."""
    honest = samplers.GaussianLocalizer.add_gradient_
    smc = planted(
        "smc",
        "    n_beta: float\n",
        "    n_beta: float\n    localizer = property(lambda self: self.base.localizer.at(float(self.n_beta)))\n",
    )

    def at(self, n_beta):
        return samplers.GaussianLocalizer(self.anchor, self.strength * max(n_beta, 0.1) / LADDER[-1])

    monkeypatch.setattr(samplers.GaussianLocalizer, "at", at, raising=False)
    assert samplers.GaussianLocalizer.add_gradient_ is honest
    with pytest.raises(AssertionError, match="standard errors"):
        assert_without_bias(smc.tempered_smc)


@pytest.fixture(scope="module")
def twenty():
    """Twenty directions with curvatures over four decades, at nβ = 100, on an adaptive ladder."""
    target = Quadratic(torch.logspace(-3, 1, 20, dtype=torch.float64), n_beta=100.0, localization=1.0)

    def kernel_at(n_beta):
        return hmc(0.3, 5, samplers.Diagonal(1 / (n_beta * target.h + 1)))

    return target, tempered_smc(target, kernel_at, num_populations=24, num_particles=256, num_moves=3)


def test_log_z_and_the_moments_of_the_loss_at_every_rung(twenty):
    target, found = twenty
    assert found.n_beta[-1] == 100.0
    assert not found.problems
    for place, n_beta in enumerate(found.n_beta):
        mean, variance = loss_moments(target, n_beta)
        assert_replicated_mean(found.mean_loss_by_population[place], mean)
        assert_replicated_mean(found.variance_loss_by_population[place], variance)
        if place:
            assert_replicated_mean(found.log_z_by_population[place], log_z(target, n_beta))
    assert found.log_z_standard_error < 0.1
    low, high = found.log_z_interval
    assert high - low == pytest.approx(2 * student.isf(0.025, 23) * found.log_z_standard_error)
    assert (low + high) / 2 == pytest.approx(found.log_z)


def test_the_numbers_that_are_reported(twenty):
    _, found = twenty
    rungs, shape = len(found.n_beta), (len(found.n_beta), 24)
    for values in (found.log_z_by_population, found.ess, found.num_ancestors, found.num_distinct, found.resampled):
        assert values.shape == shape
    assert found.num_gradients == 24 * 256 * (1 + 3 * 5 * (rungs - 1))
    assert np.isnan(found.acceptance_rate[0]).all()
    assert 0.7 < found.acceptance_rate[1:].min() < found.acceptance_rate[1:].max() <= 1
    assert (found.num_ancestors[0] == 256).all()
    assert (np.diff(found.num_ancestors, axis=0) <= 0).all()
    assert (found.num_ancestors[-1] < 256).all()
    assert (found.num_distinct[-1] > 250).all()
    assert found.resampled.any()
    assert not found.resampled.all()
    torch.testing.assert_close(found.weights.sum(1), torch.ones(24, dtype=torch.float64))
    assert found.positions.shape == (24, 256, 20)
    assert found.mean_loss_error.shape == found.variance_loss_error.shape == found.log_z_error_by_rung.shape == (rungs,)


def test_particles_of_the_last_rung_are_draws_of_the_target():
    target = quadratic()
    target.n_beta = 8.0
    found = tempered_smc(target, scales, num_populations=32, num_particles=512, num_moves=6, resample_below=1.0)
    own = target.coordinates(found.positions)
    for place, stiffness in enumerate(target.stiffness):
        assert_mean(own[..., place], 0.0)
        assert_mean(own[..., place] ** 2, float(1 / stiffness))


def test_the_jackknife_is_the_standard_error_where_the_spread_is_small(twenty):
    values = twenty[1].log_z_by_population
    np.testing.assert_allclose(twenty[1].log_z_error_by_rung[1:], values.std(axis=1, ddof=1)[1:] / 24**0.5, rtol=0.2)


def test_the_schedule_keeps_the_conditional_ess():
    """Resampled at every rung, ESS on arrival is the conditional one: its mean is as asked for, but at the end."""
    target = quadratic()
    for share in (0.5, 0.9):
        found = tempered_smc(target, scales, 50.0, efficiency=share, resample_below=1.0, num_moves=1)
        np.testing.assert_allclose(found.ess[1:-1].mean(1) / 256, share, rtol=1e-6)
        assert found.ess[-1].mean() / 256 >= share
    losses = found.variance_loss[:-2] * np.diff(found.n_beta)[:-1] ** 2
    assert 0.03 < losses.min() < losses.max() < 0.4  # Δ² Var[L] is about 0.11, for weights that are not too skewed


def test_systematic_resampling_takes_each_particle_its_share_of_times():
    weights = torch.tensor([0.5, 0.0, 0.03, 0.22, 0.25], dtype=torch.float64).expand(4000, 5)
    chosen = systematic_resampling(weights, torch.Generator().manual_seed(0))
    counts = torch.nn.functional.one_hot(chosen, 5).sum(1)
    for place, share in enumerate(weights[0].tolist()):
        assert int(counts[:, place].min()) >= np.floor(5 * share)
        assert int(counts[:, place].max()) <= np.ceil(5 * share)
        if share:
            assert_independent_mean(counts[:, place], 5 * share)


def test_the_thin_cross():
    """(w₁w₂)² at nβ = 10⁶: nβE[L] = 0.43754261, and Z = E[(1 + 2nβw²)^−½] under the localiser."""
    found = tempered_smc(Cross(), lambda t: hmc((0.15 / (t + 1) ** 0.5, 1.0), 5), 1e6, num_particles=512)
    grid = np.linspace(-12, 12, 4_000_001)
    truth = np.log((np.exp(-(grid**2) / 2) / np.sqrt(1 + 2e6 * grid**2)).mean() * 24 / (2 * np.pi) ** 0.5)
    assert_replicated_mean(found.log_z_by_population[-1], truth)
    assert_replicated_mean(1e6 * found.mean_loss_by_population[-1], 0.43754261)
    assert not found.problems


def test_a_population_that_is_handed_in_and_a_metric():
    """From draws at nβ = 2; and the default start draws from a localiser with a metric."""
    target = quadratic()
    start = torch.randn(2000 * 10, 3, dtype=torch.float64) * (2 * target.h + 2).rsqrt()
    found = tempered_smc(target, scales, (2.0, 4.0, 8.0), initial=start @ target.rotation.T, num_populations=2000,
                         num_particles=10, num_moves=1)  # fmt: skip
    truth = log_z(target, 8.0) - log_z(target, 2.0)
    assert_independent_mean(np.exp(found.log_z_by_population[-1] - truth), 1.0)
    metric = torch.tensor([1.0, 4.0, 0.1], dtype=torch.float64)
    plain = Quadratic((0.5, 1.0, 5.0), localization=2.0)
    plain.localizer = samplers.GaussianLocalizer(torch.zeros(3, dtype=torch.float64), 2.0, metric)
    found = tempered_smc(plain, scales, LADDER, num_populations=2000, num_particles=10, num_moves=1)
    truth = -0.5 * float(torch.log1p(8.0 * plain.h / (2.0 * metric)).sum())
    assert_independent_mean(np.exp(found.log_z_by_population[-1] - truth), 1.0)


def test_a_seed_repeats_bitwise_in_parts_too():
    target = quadratic()
    settings = {"num_populations": 3, "num_particles": 20, "num_moves": 2}
    first, other = (tempered_smc(target, scales, 8.0, seed=seed, **settings) for seed in (0, 1))
    target.max_chains = 7  # evaluated in parts of seven
    again = tempered_smc(target, scales, 8.0, seed=0, **settings)
    np.testing.assert_array_equal(first.log_z_by_population[-1], again.log_z_by_population[-1])
    assert torch.equal(first.positions, again.positions)
    assert first.log_z != other.log_z


def test_single_precision():
    target = quadratic()
    target.h, target.rotation = target.h.float(), target.rotation.float()
    target.localizer = samplers.GaussianLocalizer(torch.zeros(3), 2.0)
    found = tempered_smc(target, scales, 50.0)
    assert found.positions.dtype == torch.float32
    assert_replicated_mean(found.log_z_by_population[-1], log_z(target, 50.0))


class Broken(Quadratic):
    """A loss that is not a number far out, where the first coordinate is large."""

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position)
        return torch.where(position[:, 0] > 2.0, torch.nan, loss), gradient


def test_a_loss_that_is_not_finite_stops_its_population_and_is_counted():
    found = tempered_smc(Broken((0.5, 1.0), localization=1.0), lambda _: hmc(0.3, 2), 4.0, num_particles=16)
    assert {failure.reason for failure in found.failures} == {"loss not finite"}
    assert 1 < len(found.failures) < 16
    failed = [failure.population for failure in found.failures]
    assert found.failures[0].particles >= 1
    assert np.isnan(found.log_z)
    assert np.isnan(found.log_z_by_population[:, failed]).all()
    kept = np.delete(np.arange(16), failed)
    assert np.isfinite(found.log_z_by_population[:, kept]).all()
    assert np.isfinite(found.variance_loss_by_population[:, kept]).all()
    assert f"loss not finite in {len(failed)} of 16 populations" in found.problems[0]


def test_a_population_that_degenerates_or_stands_still_is_named():
    target = Quadratic((1.0,) * 8, localization=1.0)
    found = tempered_smc(target, lambda _: hmc(0.1, 2), (0.0, 1e4), num_moves=1)
    assert {failure.reason for failure in found.failures} == {"weights degenerate"}
    assert len(found.failures) == 16
    assert np.isnan(found.log_z)
    still = tempered_smc(target, lambda _: hmc(1e3, 2), 1e4, num_moves=1)
    assert {failure.reason for failure in still.failures} == {"particles did not move"}
    assert len(still.failures) == 16
    assert still.n_beta[-1] < 1e4  # nothing was left to go on with
    loose = tempered_smc(target, lambda _: hmc(0.01, 1), 30.0, num_moves=1, num_particles=64)
    assert not loose.failures
    assert "log Z differs by" in loose.problems[-1]


def test_a_loss_with_a_large_constant_keeps_its_digits():
    class Raised(Quadratic):
        def loss_and_grad(self, position, batch=None):
            loss, gradient = super().loss_and_grad(position)
            return loss + 1e6, gradient

    kind = {"curvature": (0.5, 1.0, 5.0), "localization": 2.0}
    plain, raised = (
        tempered_smc(target(**kind), scales, LADDER, num_populations=4, num_particles=64)
        for target in (Quadratic, Raised)
    )
    np.testing.assert_allclose(raised.log_z_by_population[-1] + 8e6, plain.log_z_by_population[-1], atol=1e-5)
    np.testing.assert_allclose(raised.variance_loss_by_population, plain.variance_loss_by_population, rtol=1e-6)


def test_bad_settings_are_named():
    target = quadratic()
    for match, settings in {
        "efficiency: 1.0": {"efficiency": 1.0},
        "resample_below: 2.0": {"resample_below": 2.0},
        "num_populations": {"num_populations": 1},
        "without initial": {"start": 0.5},
        "initial: shape": {"initial": torch.zeros(3, dtype=torch.float64)},
        "start, n_beta: ": {"n_beta": -1.0},
        "n_beta: ": {"n_beta": (0.0, 2.0, 1.0)},
    }.items():
        with pytest.raises(ValueError, match=match):
            tempered_smc(target, scales, **settings)
    with pytest.raises(ValueError, match="not exact"):
        tempered_smc(target, lambda _: samplers.sgld(0.1))
    with pytest.raises(ValueError, match="one make of kernel"):
        tempered_smc(target, lambda n_beta: mala(0.1) if n_beta else hmc(0.1))
    with pytest.raises(ValueError, match="no Gaussian law"):
        tempered_smc(samplers.from_log_density(lambda w: -w.square().sum(-1), 1), scales)
    with pytest.raises(RuntimeError, match="max_rungs: 3"):
        tempered_smc(target, scales, 1e6, max_rungs=3, num_moves=1)
