"""SGLD against the exact law of the discretised chain, which planted errors must fail."""

import importlib

import pytest
import torch

import samplers
from samplers import Diagonal, Unlocalized
from tests.samplers.assertions import assert_law_is_kept, assert_skewed, assert_skewed_at_small_steps
from tests.samplers.laws import LogGamma, Quadratic, random_rotation, sgld_moments_of_log_gamma, sgld_variance
from tests.samplers.momenta import mutant
from tests.statistics import assert_mean

sgld_module = importlib.import_module("samplers.sgld")
noise_module = importlib.import_module("samplers.noise")
CURVATURES = (0.01, 1.0, 100.0)
STEP_SIZE = 0.01  # εA/4 = 0.25 in the stiffest direction: the discretisation is a third of the answer there


def run(target, kernel=None, num_chains=192, num_draws=2000, num_warmup=1500, seed=0):
    """Many chains and few draws: a step costs more than its chains."""
    return samplers.sample(
        kernel or samplers.sgld(STEP_SIZE),
        target,
        torch.zeros(target.dim, dtype=torch.float64),
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        seed=seed,
        keep_positions=True,
    )


def assert_law(target, trace, truth_target=None, step_size=STEP_SIZE, scale=1.0):
    """Mean, variance of every coordinate, and nβ·E[loss], against the exact law of ``truth_target``."""
    truth = truth_target or target
    variance = sgld_variance(truth.stiffness, step_size, truth.noise_variance, scale)
    own = target.coordinates(trace.positions)
    for place in range(target.dim):
        assert_mean(own[..., place], 0.0)
        assert_mean(own[..., place] ** 2, float(variance[place]))
    assert_mean(truth.n_beta * trace.loss, float((0.5 * truth.n_beta * truth.h * variance).sum()))


@pytest.mark.parametrize("noise", [0.0, 4.0], ids=["full gradient", "noisy gradient"])
@pytest.mark.parametrize("rotated", [False, True])
def test_law_of_the_discretised_chain_on_quadratics(noise, rotated):
    target = Quadratic(CURVATURES, noise=noise, rotation=random_rotation(3) if rotated else None)
    assert_law(target, run(target))


BADLY_SCALED = (0.0, 99.0, 9999.0)  # with γ = 1, a condition number of 1e4


def assert_badly_scaled(factory=samplers.sgld):
    """Mean and full covariance at εA = 1 in the stiffest direction, over a twentieth of the time of the softest."""
    target = Quadratic(BADLY_SCALED, noise=100.0, rotation=random_rotation(3))
    variance = sgld_variance(target.stiffness, 1e-4, target.noise_variance)
    assert_law_is_kept(factory(1e-4), target, variance, num_steps=1000)


def test_the_whole_covariance_of_a_badly_scaled_gaussian_is_kept():
    assert_badly_scaled()


PLANTED = {
    "noise √(2ε)": ("noise_scale = square_root(step_size)", "noise_scale = square_root(2 * step_size)"),
    "drift ε": ("drift_scale = step_size * -0.5", "drift_scale = step_size * -1.0"),
}


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_errors_do_not_keep_it(plant):
    with pytest.raises(AssertionError, match="standard errors"):
        assert_badly_scaled(mutant("sgld", *PLANTED[plant]))


def assert_skewed_at_a_large_step(factory=samplers.sgld, step_size=0.3):
    """The law of the discretised chain, whose variance is an eighth too large."""
    law = LogGamma()
    mean, second, third = sgld_moments_of_log_gamma(law, step_size)
    trace = run(law.potential, factory(step_size), num_draws=750, num_warmup=200)
    centred = trace.positions[..., 0].numpy() - law.mean
    assert_mean(centred, mean - law.mean)
    assert_mean(centred**2, second)
    assert_mean(centred**3, third)


def test_skewed_density_at_a_large_step_is_that_of_the_discretised_chain():
    assert_skewed_at_a_large_step()


def test_the_discretised_law_tends_to_the_closed_moments_in_proportion_to_the_step():
    law = LogGamma()
    closed = (law.mean, law.variance, law.third)
    errors = []
    for step_size in (0.02, 0.01):
        found = sgld_moments_of_log_gamma(law, step_size)
        errors.append([one - other for one, other in zip(found, closed, strict=True)])
    assert errors[0] == pytest.approx([2 * error for error in errors[1]], rel=0.02)
    assert errors[1] == pytest.approx([0.0, 0.0, 0.0], abs=0.003)


SMALL_STEPS = (0.015, 0.03)


def test_skewed_density_with_closed_moments():
    assert_skewed_at_small_steps(samplers.sgld, LogGamma(), SMALL_STEPS)


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_errors_are_rejected_by_the_skewed_density(plant):
    broken = mutant("sgld", *PLANTED[plant])
    with pytest.raises(AssertionError, match="standard errors"):
        assert_skewed_at_small_steps(broken, LogGamma(), SMALL_STEPS[1:])
    with pytest.raises(AssertionError, match="standard errors"):
        assert_skewed_at_a_large_step(broken)


def test_the_continuous_law_is_rejected_at_the_large_step():
    with pytest.raises(AssertionError, match="standard errors"):
        assert_skewed(LogGamma(), run(LogGamma().potential, samplers.sgld(0.3), num_draws=750, num_warmup=200))


def test_law_with_n_beta_and_a_two_dimensional_target():
    target = Quadratic((0.3, 0.02), n_beta=50.0, localization=2.0, noise=0.01)
    assert_law(target, run(target))


def test_law_under_a_diagonal_preconditioner():
    target = Quadratic(CURVATURES, noise=4.0)
    scale = torch.tensor([3.0, 1.0, 0.05], dtype=torch.float64)
    trace = run(target, samplers.sgld(STEP_SIZE, Diagonal(scale)))
    assert_law(target, trace, scale=scale)


def test_step_sizes_per_chain_have_each_their_own_law():
    target = Quadratic((30.0, 5.0))
    steps = torch.tensor([0.003, 0.03], dtype=torch.float64).repeat(96)[:, None]
    trace = run(target, samplers.sgld(steps))
    for which, step_size in enumerate((0.003, 0.03)):
        variance = sgld_variance(target.stiffness, step_size)
        own = target.coordinates(trace.positions)[which::2]
        for place in range(2):
            assert_mean(own[..., place] ** 2, float(variance[place]))


def _doubled_noise(monkeypatch):
    honest = sgld_module.standard_normal
    monkeypatch.setattr(sgld_module, "standard_normal", lambda *arguments: honest(*arguments) * 2**0.5)


def _doubled_drift(monkeypatch):
    honest = sgld_module.add_scaled_
    monkeypatch.setattr(
        sgld_module, "add_scaled_", lambda target, x, scale: honest(target, x, 2 * scale if scale < 0 else scale)
    )


def _no_localizer(monkeypatch):
    monkeypatch.setattr(samplers.GaussianLocalizer, "add_gradient_", Unlocalized.add_gradient_)


def _reversed_drift_of_the_localizer(monkeypatch):
    honest = samplers.GaussianLocalizer.add_gradient_

    def flipped(self, gradient, position, columns=slice(None)):
        added = torch.zeros_like(gradient)
        energy = honest(self, added, position, columns)
        gradient -= added
        return -energy

    monkeypatch.setattr(samplers.GaussianLocalizer, "add_gradient_", flipped)


def planted_target(noise):
    return Quadratic((4.0, 20.0), localization=2.0, noise=noise)  # stiff enough to mix even without its localiser


@pytest.mark.parametrize("noise", [0.0, 4.0], ids=["full gradient", "noisy gradient"])
def test_without_a_planted_error_nothing_is_rejected(noise):
    target = planted_target(noise)
    assert_law(target, run(target, num_draws=1000, num_warmup=500))


@pytest.mark.parametrize("plant", [_doubled_noise, _doubled_drift, _no_localizer, _reversed_drift_of_the_localizer])
@pytest.mark.parametrize("noise", [0.0, 4.0], ids=["full gradient", "noisy gradient"])
def test_planted_errors_are_rejected(plant, noise, monkeypatch):
    target = planted_target(noise)
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_law(target, run(target, num_draws=1000, num_warmup=500))


def test_predicted_bias_is_that_of_the_exact_law():
    """Info.discretization_bias against the closed form, with and without gradient noise (exact in stiff directions)."""
    target = Quadratic((100.0, 40.0), noise=9.0)
    trace = run(target)
    stiffness, share = target.stiffness, target.n_beta * target.h / target.stiffness
    predicted = 0.125 * STEP_SIZE * ((stiffness - 1.0) * (1 + STEP_SIZE / 4 * 9.0) / (1 - STEP_SIZE * stiffness / 4))
    predicted = predicted + 0.125 * STEP_SIZE * 9.0
    assert_mean(trace.statistics["discretization_bias"], float(predicted.sum()))
    actual = 0.5 * share * (sgld_variance(stiffness, STEP_SIZE, 9.0) * stiffness - 1.0)
    assert float(predicted.sum()) == pytest.approx(float(actual.sum()), rel=0.05)


def test_the_law_of_a_vector_in_chunks(monkeypatch):
    """Three chunks with a generator each: the law is the same, and coordinates of different chunks are uncorrelated."""
    monkeypatch.setattr(noise_module, "CHUNK_COLUMNS", 2)
    target = Quadratic((4.0, 20.0, 4.0, 20.0, 4.0))
    trace = run(target)
    assert_law(target, trace)
    own = target.coordinates(trace.positions)
    assert_mean(own[..., 0] * own[..., 2], 0.0)
    assert_mean(own[..., 1] * own[..., 3], 0.0)


def test_noise_in_chunks_does_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(noise_module, "CHUNK_COLUMNS", 2)
    drawn = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(noise_module.torch, "get_num_threads", lambda count=threads: count)
        generator, streams, position = torch.Generator().manual_seed(0), noise_module.ColumnStreams(), torch.zeros(3, 7)

        def draw(columns, own, position=position):
            return noise_module.standard_normal(position[:, columns], own)

        drawn.append(torch.stack([torch.cat(streams.map(draw, position, generator), 1) for _ in range(2)]))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert len(drawn[0].flatten().unique()) == 42
