"""Step sizes found in a pilot run: they meet their aim, and are frozen."""

import numpy as np
import pytest
import torch

import samplers
from tests.samplers.laws import Quadratic, Regression


def run(kernel, target, adapt, **changes):
    arguments = {"num_chains": 16, "num_warmup": 500, "num_draws": 2000, **changes}
    return samplers.sample(kernel, target, target.anchor, adapt=adapt, **arguments)


@pytest.mark.parametrize("curvature", [(1.0,) * 3, (1e-2, 1.0, 1e4), (1.0,) * 40])
def test_acceptance_rate_is_met(curvature):
    trace = run(samplers.mala(1.0), Quadratic(curvature), samplers.accept_at_rate(0.574))
    assert trace.statistics["acceptance_rate"].mean() == pytest.approx(0.574, abs=0.1)


@pytest.mark.parametrize("curvature", [(1.0,) * 3, (1.0, 30.0) * 20, (1e6,) * 40])
def test_acceptance_rate_of_hmc_is_met_and_its_gradients_are_counted(curvature):
    target = Quadratic(curvature)
    trace = run(samplers.hmc((0.1, 1.0), 5), target, samplers.accept_at_rate(), num_draws=400)
    assert trace.statistics["acceptance_rate"].mean() == pytest.approx(0.651, abs=0.12)
    assert trace.num_gradients == 16 * (400 * 5 + 3 + 1 + 900 * 5)
    assert isinstance(trace.configuration["step_size"], float)


def test_the_rates_aimed_at_are_those_of_their_theorems():
    """Roberts & Rosenthal 1998, Theorem 3; Beskos et al. 2013, §4: nearer to each other than what is met by chance."""
    assert samplers.adaptation.OPTIMAL_RATES == {"mala": 0.574, "hmc": 0.651}
    assert samplers.adaptation.RATE_OF_OTHERS == 0.8
    target = Quadratic((1.0,) * 20)
    for make, rate in ((samplers.mala(1.0), 0.574), (samplers.hmc(1.0, 5), 0.651),
                       (samplers.adjusted_mclmc(1.0, 5), 0.8)):  # fmt: skip
        unsaid, said = (
            run(make, target, adapt, num_draws=5).configuration["step_size"]
            for adapt in (samplers.accept_at_rate(), samplers.accept_at_rate(rate))
        )
        assert unsaid == said  # the same random numbers, and the same aim


@pytest.mark.parametrize("noise", [0.0, 25.0])
@pytest.mark.parametrize("curvature", [(1.0, 3.0, 2.0), (1.0, 30.0, 1000.0)])
def test_bias_is_limited(curvature, noise):
    target = Quadratic(curvature, noise=noise)
    trace = run(samplers.sgld(1.0), target, samplers.limit_bias(baseline=0.0, fraction=0.05))
    exact = float(0.5 * (target.h / target.stiffness).sum())
    assert trace.statistics["discretization_bias"].mean() == pytest.approx(0.05 * exact, rel=0.5)
    assert not trace.diverged


def test_curvature_is_measured_in_float32_in_a_small_metric():
    """Entries of √P ξ far below the precision of the position: the probe must be scaled, or rounding is measured."""
    target = samplers.from_log_density(lambda w: -0.5e6 * w.square().sum(-1), 100)
    metric, start = samplers.Diagonal(torch.full((100,), 1e-8)), torch.full((64, 100), 3.0)
    found = samplers.adaptation.stiffness(target, start, None, torch.Generator().manual_seed(0), metric)
    assert 0.01 * 9 < found < 0.01 * 14  # A P ‖ξ‖, with ‖ξ‖ of 100 coordinates


def test_what_was_found_is_recorded_and_repeats_the_run_without_the_pilot():
    target = Quadratic((1.0, 30.0))
    found = run(samplers.sgld(1.0), target, samplers.limit_bias(baseline=0.0))
    again = run(samplers.sgld(found.configuration["step_size"]), Quadratic((1.0, 30.0)), None)
    np.testing.assert_array_equal(found.loss, again.loss)
    assert found.num_gradients > again.num_gradients


@pytest.mark.parametrize(
    ("kernel", "adapt"),
    [
        (samplers.sgld(1.0), samplers.limit_bias(baseline=0.0)),
        (samplers.mala(1.0), samplers.accept_at_rate()),
        (samplers.baoab(1.0), samplers.limit_momentum_bias()),
    ],
    ids=["limit_bias", "accept_at_rate", "limit_momentum_bias"],
)
def test_a_loss_that_is_finite_nowhere_near_is_an_error(kernel, adapt):
    potential = samplers.from_log_density(lambda w: (w / 0.0).sum(-1), dim=2)
    with pytest.raises(FloatingPointError, match="step_size"):
        samplers.sample(kernel, potential, torch.ones(2), num_chains=2, num_warmup=0, num_draws=5, adapt=adapt)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: samplers.accept_at_rate(1.5), r"target, num_steps: 1.5, 400; expected a rate in \(0, 1\)"),
        (lambda: samplers.accept_at_rate(num_steps=0), "target, num_steps: None, 0; expected a rate"),
        (lambda: samplers.limit_bias(0.0, fraction=0.0), "fraction, num_rounds, round_steps: 0.0, .* positive numbers"),
    ],
)
def test_bad_aims_are_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize(
    "kernel",
    [samplers.mala(1.0), samplers.sghmc(1.0), samplers.sgnht(1.0), samplers.baoab(1.0), samplers.mclmc(1.0)],
    ids=lambda kernel: kernel.name,
)
def test_the_bias_of_kernels_that_do_not_measure_it_in_a_round_is_refused(kernel):
    with pytest.raises(ValueError, match=f"kernel: {kernel.name}; expected sgld, rmsprop_sgld or adam_sgld"):
        run(kernel, Quadratic((1.0, 2.0)), samplers.limit_bias(baseline=0.0))


@pytest.mark.parametrize("kernel", [samplers.sgld(1.0), samplers.baoab(1.0)], ids=lambda kernel: kernel.name)
def test_the_acceptance_rate_of_kernels_that_accept_every_move_is_refused(kernel):
    with pytest.raises(ValueError, match=f"kernel: {kernel.name} accepts every move.*expected an exact kernel"):
        run(kernel, Quadratic((1.0,)), samplers.accept_at_rate())


def test_the_acceptance_rate_of_replica_exchange_is_met():
    target = samplers.ladder_potential(Quadratic((1.0, 30.0)), torch.tensor([1.0, 4.0], dtype=torch.float64), 8)
    kernel = samplers.replica_exchange(samplers.mala(1.0), 2)
    trace = samplers.sample(
        kernel, target, torch.zeros(2, dtype=torch.float64), num_chains=16, num_warmup=100, num_draws=500,
        adapt=samplers.accept_at_rate(),
    )  # fmt: skip
    assert trace.statistics["acceptance_rate"].mean() == pytest.approx(0.574, abs=0.1)


@pytest.mark.parametrize("controlled", [False, True], ids=["plain", "control variates"])
@pytest.mark.parametrize("with_batches", [False, True], ids=["full data", "batches"])
@pytest.mark.parametrize(
    ("kernel", "adapt"),
    [
        (samplers.sgld(1e-4), samplers.limit_bias(baseline=0.0, num_rounds=3)),
        (samplers.baoab(1e-3), samplers.limit_momentum_bias(num_rounds=3)),
        (samplers.sgld(1e-4), samplers.gradient_metric(20)),
        (samplers.mclmc(1e-2), samplers.limit_energy_error(num_rounds=3, length_steps=16)),
    ],
    ids=["limit_bias", "limit_momentum_bias", "gradient_metric", "limit_energy_error"],
)
def test_every_gradient_of_a_pilot_is_counted(kernel, adapt, with_batches, controlled):
    base, generator = Regression(), torch.Generator().manual_seed(0)
    target = samplers.control_variates(base, base.anchor + 0.1) if controlled else base
    start = base.anchor.expand(4, -1)
    batches = base.batches(generator, 4) if with_batches else None
    base.calls = 0
    assert adapt(kernel, target, start, batches, generator).num_gradients == base.calls
