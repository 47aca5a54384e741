"""Step sizes of kernels with a momentum: the bias is within the bound, wherever the noise and the walls are."""

import itertools

import pytest
import torch

import samplers
from samplers import momentum_bias
from tests.samplers.laws import Cross, NoisyByBatch, Regression, baoab_covariance, numbers, sghmc_covariance
from tests.statistics import assert_mean

FRACTION = 0.05
SHORT = {"num_chains": 16, "round_steps": 5}  # a pilot where noise and curvature are the same everywhere


def found_at(kernel, target, batches=None, num_chains=64, **settings):
    """The kernel that a pilot of chains at the anchor finds."""
    start, generator = target.anchor.expand(num_chains, -1).clone(), torch.Generator().manual_seed(0)
    adapt = samplers.limit_momentum_bias(FRACTION, **settings)
    iterator = batches(generator, num_chains) if batches else None
    return adapt(kernel, target, start, iterator, generator).kernel


def excess(law, target, kernel, **settings):
    """The relative bias of nβ·E[loss] by the exact law of the discretised chain."""
    step_size = kernel.settings["step_size"]
    friction = settings.pop("friction", 0.1 / step_size)
    variance = torch.as_tensor(law(target.stiffness, step_size, friction, target.noise_variance, **settings)[:, 0, 0])
    return float(0.5 * (target.n_beta * target.h * variance).sum()) / target.energy - 1


LAWS = pytest.mark.parametrize(("name", "law"), [("sghmc", sghmc_covariance), ("baoab", baoab_covariance)])


@pytest.mark.parametrize("noise", [0.0, 25.0, 1e4])
@pytest.mark.parametrize("curvature", [(1.0, 3.0, 2.0), (1.0, 30.0, 1000.0), (5.0,) * 40])
@LAWS
def test_bias_of_a_momentum_is_limited(name, law, curvature, noise):
    """The exact law at the step that was found: its excess is below the bound, and not far below."""
    target = NoisyByBatch(curvature, noise)
    kernel = found_at(getattr(samplers, name)(1.0), target, numbers if noise else None, **SHORT)
    bias = excess(law, target, kernel)
    assert bias < FRACTION
    if noise == 1e4:
        assert bias > 0.015  # the bound of the noise is 0.025
    if not noise:  # Â is at least a quarter of, and at most √dim times four, the largest curvature
        steepest = kernel.settings["step_size"] ** 2 * float(target.stiffness.max())
        assert 0.1 / (4 * target.dim**0.5) < steepest < 0.4


STIFF_AMONG_FLAT = (100.0,) * 10 + (0.0,) * 190
UNEVEN = {
    "noise in the stiff directions": (1e4,) * 10 + (0.0,) * 190,
    "some in all": (1e4,) * 10 + (1e3,) * 190,
    "in all": 1e4,
    "in the flat directions": (0.0,) * 10 + (1e4,) * 190,
}


@pytest.mark.parametrize("noise", UNEVEN.values(), ids=UNEVEN)
@LAWS
def test_noise_of_a_few_directions_is_not_diluted_by_the_others(name, law, noise):
    target = NoisyByBatch(STIFF_AMONG_FLAT, noise)
    kernel = found_at(getattr(samplers, name)(1.0), target, numbers, **SHORT)
    assert abs(excess(law, target, kernel)) < FRACTION


@pytest.mark.parametrize("noise", UNEVEN.values(), ids=UNEVEN)
def test_a_common_thermostat_is_not_trusted_with_uneven_noise(noise):
    """The law of BAOAB at the thermostat's mean, hotter in some directions than in others."""
    target = NoisyByBatch(STIFF_AMONG_FLAT, noise)
    kernel = found_at(samplers.sgnht(1.0), target, numbers, **SHORT)
    step_size = kernel.settings["step_size"]
    friction = 0.1 / step_size + 0.5 * step_size * float(target.noise_variance.mean())
    bias = excess(baoab_covariance, target, kernel, friction=friction, noise_rate=0.1 / step_size)
    assert abs(bias) < FRACTION


def mean_over_coordinates(seen, dim):
    """A planted error: noise of a few directions is diluted by the others."""
    mean = sum(each.trace for each in seen) / len(seen) / dim
    return momentum_bias.GradientNoise(mean, mean, mean)


def test_a_mean_over_coordinates_would_be_found_out(monkeypatch):
    monkeypatch.setattr(momentum_bias, "pooled", mean_over_coordinates)
    with pytest.raises(AssertionError):
        test_noise_of_a_few_directions_is_not_diluted_by_the_others(
            "baoab", baoab_covariance, UNEVEN["noise in the stiff directions"]
        )
    with pytest.raises(AssertionError):
        test_a_common_thermostat_is_not_trusted_with_uneven_noise(UNEVEN["noise in the stiff directions"])


def assert_energy(
    kernel, target, batches, start, truth, energy=lambda trace, target: trace.loss * target.n_beta, **run
):
    """No chain diverges, and nβ·E[loss] of a run is within the allowed bias."""
    settings = {"num_chains": len(start), "num_warmup": 200, "num_draws": 1500, **run}
    trace = samplers.sample(kernel, target, start, batches=batches, **settings)
    assert not trace.diverged
    assert_mean(energy(trace, target), truth, allowed=FRACTION * truth)


@pytest.mark.parametrize(
    ("curvature", "noise", "num_chains"),
    [
        ((100.0,) * 10, 1e3, 64),
        ((100.0,) * 10, 1e4, 128),
        ((100.0,) * 10, 1e5, 320),
        ((100.0,) * 10 + (0.0,) * 30, 1e3, 128),
    ],
    ids=["s²/A = 9.9", "s²/A = 99", "s²/A = 990", "uneven"],
)
def test_bias_of_a_thermostat_is_limited(curvature, noise, num_chains):
    """Without a bound of its noise a run at s²/A = 99 would be 40 % too cold, at 990 sixfold too hot."""
    target = NoisyByBatch(curvature, torch.where(torch.tensor(curvature) > 0, noise, 0.0))
    kernel = found_at(samplers.sgnht(1.0), target, numbers, round_steps=5)
    assert_energy(kernel, target, numbers, target.from_the_law(num_chains), target.energy, num_draws=1000)


def test_unbounded_noise_of_a_thermostat_would_be_found_out(monkeypatch):
    monkeypatch.setattr(momentum_bias, "pooled", lambda seen, dim: momentum_bias.GradientNoise(0.0, 0.0, 0.0))
    for noise, num_chains in ((1e4, 128), (1e5, 640)):
        with pytest.raises(AssertionError, match="standard errors"):
            test_bias_of_a_thermostat_is_limited((100.0,) * 10, noise, num_chains)


def loss_of_positions(trace, target):
    """nβ·loss of the full data above the anchor's: that of batches of two is mostly noise."""
    offset = trace.positions - target.anchor
    return 0.5 * (offset @ target.base.hessian * offset).sum(-1).numpy()


def assert_control_variates(name, **settings):
    """At the anchor itself they leave no noise: it is seen only where the chains go."""
    base = Regression()
    target = samplers.control_variates(base, base.anchor)
    kernel = found_at(getattr(samplers, name)(1.0), target, base.batches, **settings)
    curvatures = torch.linalg.eigvalsh(base.hessian)
    spread = torch.randn(400, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    start = base.anchor + spread / (curvatures.mean() + 1).sqrt()
    truth = float(0.5 * (curvatures / (curvatures + 1)).sum())
    assert_energy(kernel, target, base.batches, start, truth, loss_of_positions, keep_positions=True, num_draws=1000)


@pytest.mark.parametrize("name", ["sghmc", "baoab", "sgnht"])
def test_noise_that_is_zero_at_the_anchor_is_seen(name):
    assert_control_variates(name)


def test_noise_measured_at_the_start_alone_would_be_found_out(monkeypatch):
    measure = momentum_bias.measure

    def at_the_start(potential, position, *others):
        return measure(potential, potential.localizer.anchor.expand_as(position), *others)

    monkeypatch.setattr(momentum_bias, "measure", at_the_start)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_control_variates("baoab", num_chains=4, num_rounds=1)


@pytest.mark.parametrize("n_beta", [10.0, 100.0])
@pytest.mark.parametrize("name", ["sghmc", "baoab", "sgnht"])
def test_walls_that_are_flat_at_the_anchor_are_seen(name, n_beta):
    """(w₁w₂)², γ = 1: from the curvature of the anchor, h = 0.18, and two thirds of the chains or all diverge."""
    target = Cross(n_beta)
    start = target.anchor.expand(128, -1)
    assert_energy(found_at(getattr(samplers, name)(1.0), target), target, None, start, target.energy, num_warmup=1000)


def test_momentum_bias_is_limited_in_a_metric_and_with_friction():
    target = NoisyByBatch((100.0, 1e4), 100.0)
    metric = samplers.Diagonal(1 / target.stiffness)
    for settings in ({}, {"friction": 0.5}, {"friction": torch.tensor([[5.0], [0.5]] * 32)}):
        kernel = found_at(samplers.sghmc(0.01, preconditioner=metric, **settings), target, numbers)
        slowest = {"friction": 0.5} if settings else {}
        assert excess(sghmc_covariance, target, kernel, scale=(1 / target.stiffness).numpy(), **slowest) < FRACTION
        assert kernel.settings["step_size"] > 0.02  # of order one in the metric, not of the stiffest width, 0.01


def test_relief_of_noise_that_is_not_there_is_limited():
    target = NoisyByBatch((10.0, 100.0))
    kernel = found_at(samplers.sghmc(0.001, gradient_noise=1e4), target)
    assert -FRACTION < excess(sghmc_covariance, target, kernel, gradient_noise=1e4) < -0.015


def test_a_step_as_long_as_a_memory_is_not_exceeded():
    """sghmc refuses h · friction above 1."""
    kernel = found_at(samplers.sghmc(0.01, friction=50.0), NoisyByBatch((1.0, 2.0)))
    assert 0.019 < kernel.settings["step_size"] <= 0.02


def test_the_covariance_of_gradients_is_measured_without_bias():
    """Against the matrices, in a metric."""
    noise = torch.tensor([1.0, 4.0, 25.0, 0.0], dtype=torch.float64)
    target, scale = NoisyByBatch((3.0, 2.0, 1.0, 50.0), noise, n_beta=2.0), torch.tensor([1.0, 2.0, 0.5, 0.1]).double()
    generator = torch.Generator().manual_seed(0)
    start = torch.zeros(20_000, 4, dtype=torch.float64)
    found = momentum_bias.measure(target, start, itertools.count(1), 8, generator, samplers.Diagonal(scale))
    own, curvature = 4 * scale * noise, scale * target.stiffness
    assert found.trace == pytest.approx(float(own.sum()), rel=0.02)
    assert found.square == pytest.approx(float(own.square().sum()), rel=0.05)
    expected = (own * curvature.square()).sum() / curvature.square().sum()
    assert found.along_curvature == pytest.approx(float(expected), rel=0.05)


def test_a_pilot_repeats_itself_and_leaves_the_start_alone():
    target = Cross(100.0)
    first, second = (found_at(samplers.baoab(1.0), target, num_chains=8) for _ in range(2))
    assert first.settings["step_size"] == second.settings["step_size"]
    assert not target.anchor.any()


def test_a_loss_that_is_lost_at_every_step_is_an_error():
    class Holed(NoisyByBatch):
        def loss_and_grad(self, position, batch=None):
            loss, gradient = super().loss_and_grad(position, 1)
            return loss, gradient if batch % 20 else gradient * torch.nan

    with pytest.raises(FloatingPointError, match="step_size: chains left the finite numbers at every step size"):
        found_at(samplers.baoab(1.0), Holed((1.0,), 1.0), lambda generator, count: itertools.count(1))


@pytest.mark.parametrize(
    "settings",
    [
        {"fraction": 0.0},
        {"fraction": 1.0},
        {"num_rounds": 0},
        {"round_steps": 0},
        {"num_batches": 2},
        {"num_batches": 5},
    ],
)
def test_bad_aims_are_refused(settings):
    with pytest.raises(ValueError, match="fraction, num_rounds, round_steps, num_batches: "):
        samplers.limit_momentum_bias(**settings)


@pytest.mark.parametrize("kernel", [samplers.sgld(1.0), samplers.mala(1.0), samplers.mclmc(1.0)])
def test_other_kernels_are_refused(kernel):
    with pytest.raises(ValueError, match=f"kernel: {kernel.name}; expected sghmc, sgnht or baoab"):
        found_at(kernel, NoisyByBatch((1.0, 2.0)))
