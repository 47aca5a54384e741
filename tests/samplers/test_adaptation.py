"""Step sizes found in a pilot run: they meet their aim, and are frozen."""

import numpy as np
import pytest
import torch

import samplers
from tests.samplers.laws import Quadratic


def run(kernel, target, adapt, **changes):
    arguments = {"num_chains": 16, "num_warmup": 500, "num_draws": 2000, **changes}
    return samplers.sample(kernel, target, target.anchor, adapt=adapt, **arguments)


@pytest.mark.parametrize("curvature", [(1.0,) * 3, (1e-2, 1.0, 1e4), (1.0,) * 40])
def test_acceptance_rate_is_met(curvature):
    trace = run(samplers.mala(1.0), Quadratic(curvature), samplers.accept_at_rate(0.574))
    assert trace.statistics["acceptance_rate"].mean() == pytest.approx(0.574, abs=0.1)


@pytest.mark.parametrize("noise", [0.0, 25.0])
@pytest.mark.parametrize("curvature", [(1.0, 3.0, 2.0), (1.0, 30.0, 1000.0)])
def test_bias_is_limited(curvature, noise):
    target = Quadratic(curvature, noise=noise)
    trace = run(samplers.sgld(1.0), target, samplers.limit_bias(baseline=0.0, fraction=0.05))
    exact = float(0.5 * (target.h / target.stiffness).sum())
    assert trace.statistics["discretization_bias"].mean() == pytest.approx(0.05 * exact, rel=0.5)
    assert not trace.diverged


def test_what_was_found_is_recorded_and_repeats_the_run_without_the_pilot():
    target = Quadratic((1.0, 30.0))
    found = run(samplers.sgld(1.0), target, samplers.limit_bias(baseline=0.0))
    again = run(samplers.sgld(found.configuration["step_size"]), Quadratic((1.0, 30.0)), None)
    np.testing.assert_array_equal(found.loss, again.loss)
    assert found.num_gradients > again.num_gradients


def test_a_loss_that_is_finite_nowhere_near_is_an_error():
    potential = samplers.from_log_density(lambda w: (w / 0.0).sum(-1), dim=2)
    with pytest.raises(FloatingPointError, match="step_size"):
        samplers.sample(
            samplers.sgld(1.0), potential, torch.ones(2), num_chains=2, num_warmup=0, num_draws=5,
            adapt=samplers.limit_bias(baseline=0.0),
        )  # fmt: skip


@pytest.mark.parametrize(
    "make", [lambda: samplers.accept_at_rate(1.5), lambda: samplers.accept_at_rate(num_steps=0),
             lambda: samplers.limit_bias(0.0, fraction=0.0)],
)  # fmt: skip
def test_bad_aims_are_refused(make):
    with pytest.raises(ValueError, match="target|fraction"):
        make()
