"""What is found around an anchor, against closed forms of least squares."""

import math

import pytest
import torch

import slt
from samplers import Diagonal
from slt import surroundings
from slt.surroundings import Surroundings, gradient_noise, look_around
from tests.slt.models import fitted_regression, half_squares

SHIFT = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)


def shifted(localization=1.0):
    """A posterior whose anchor is off the minimum by SHIFT; and nβS."""
    model, data, hessian = fitted_regression(n=400)
    with torch.no_grad():
        model.weight += SHIFT
    posterior = slt.LocalPosterior(model, data, half_squares, n_beta=50.0, localization=localization)
    return posterior, data, 50.0 * hessian


@pytest.mark.parametrize("longest", [1_000_000, 1], ids=["quasi-Newton", "along the gradient"])
def test_the_fall_of_a_quadratic(longest, monkeypatch):
    """U falls by ½ gᵀ(nβS + γ)⁻¹g from where its gradient is g, to a distance of ‖(nβS + γ)⁻¹g‖."""
    monkeypatch.setattr(surroundings, "LONG_VECTOR", longest)
    posterior, _, curvature = shifted(localization=5.0)
    with posterior:
        found = look_around(posterior, 10_000.0)
    gradient = curvature @ SHIFT
    way = torch.linalg.solve(curvature + 5.0 * torch.eye(3), gradient)
    assert found.fall_of_potential == pytest.approx(float(0.5 * gradient @ way), rel=1e-3)
    assert found.distance == pytest.approx(float(way.norm()), rel=0.05)
    assert found.fall > found.fall_of_potential
    assert not found.falls_forever
    assert found.num_gradients <= 0.05 * 10_000


@pytest.mark.parametrize("metric", [None, "covariance"])
def test_the_fall_of_a_quadratic_by_three_gradients(metric):
    """In the metric of the posterior all of it; by the plain gradient, as far as a parabola along it goes."""
    posterior, _, curvature = shifted(localization=5.0)
    total = curvature + 5.0 * torch.eye(3)
    gradient = curvature @ SHIFT

    class Covariance:
        def apply_(self, x):
            return x @ torch.linalg.inv(total)

    with posterior:
        found = look_around(posterior, 20.0, Covariance() if metric else None)
    square = gradient @ gradient
    along = 0.5 * square**2 / (gradient @ total @ gradient)
    expected = 0.5 * gradient @ torch.linalg.solve(total, gradient) if metric else along
    assert found.fall_of_potential == pytest.approx(float(expected), rel=1e-3)
    assert found.distance > 0
    assert found.num_gradients == 3


def test_a_large_sample_is_looked_around_too():
    """By minibatches of a large n a run takes few full-data gradients: 5.0 for 10 was healthy, w* 5 nats up."""
    torch.manual_seed(0)
    n, dim, fall = 200_000, 20, 5.0
    x = torch.randn(n, dim)
    y = x.sum(1, keepdim=True) + torch.randn(n, 1)
    model = torch.nn.Linear(dim, 1, bias=False)
    best = torch.linalg.lstsq(x, y).solution.T
    away = torch.randn(1, dim)
    away *= (2 * fall / (n / math.log(n) * float((x @ away.T).square().mean()))) ** 0.5
    with torch.no_grad():
        model.weight.copy_(best + away)

    def loss(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().squeeze(1)

    form = {"num_draws": 300, "num_warmup": 200, "sampler": "baoab", "progress": False, "tolerance": 0.1}
    found = slt.estimate_llc(model, (x, y), loss, **form)
    assert found.num_gradients < 120
    assert "not_at_a_minimum" in found.verdict.names
    problem = next(each for each in found.verdict.problems if each.name == "not_at_a_minimum")
    assert problem.evidence["nearby"] == pytest.approx(fall, rel=0.2)
    with torch.no_grad():
        model.weight.copy_(best)
    assert "not_at_a_minimum" not in slt.estimate_llc(model, (x, y), loss, **form).verdict.names


def test_no_more_than_a_twentieth_of_the_run_is_spent():
    posterior, _, _ = shifted()
    with posterior:
        assert look_around(posterior, 11.0) is None
        assert look_around(posterior, 100.0).num_gradients == 3
        for spent in (130.0, 300.0, 1000.0):
            assert look_around(posterior, spent).num_gradients <= 0.05 * spent
        assert gradient_noise(posterior, 20, 0, num_gradients=300.0) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("outward", "forever"),
    [
        ((1.0, 0.5, 0.2, 0.01, 0.005, 0.002, 0.001), True),
        ((1e-5, 1e-9, 0.0, 0.0, 0.0, 0.0, 0.0), True),
        ((1.0, 0.5, 0.6, 0.01, 0.005, 0.002, 0.001), False),
        ((1.0, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5), False),
        ((1.0, 0.5, 0.2, 0.01, 0.005, 0.002), False),  # not far enough to say
        ((0.0,) * 7, False),
        ((1.0, 0.5, 0.2, 0.1, 0.05, 0.01, -3.0), False),
        ((), False),
    ],
)
def test_a_loss_falls_forever_if_it_falls_each_time_and_to_nothing(outward, forever):
    assert Surroundings(0.0, 0.0, 0.0, outward, 0.0).falls_forever == forever


def test_the_noise_of_minibatches():
    """nβ² tr Cov(∇ℓ) (1/b)(1 − b/n)·n/(n − 1), over 64 batches and 3 weights: to 12 %, and three of those."""
    posterior, (x, y), _ = shifted()
    with posterior:
        variance, cost = gradient_noise(posterior, 20, 0, num_gradients=10_000.0)
        residuals = x @ posterior.anchor.unsqueeze(-1) - y
    covariance = torch.cov((x * residuals).T)
    assert variance == pytest.approx(50.0**2 * float(covariance.trace()) / 20 * (1 - 20 / 400), rel=0.36)
    assert cost == pytest.approx(64 * 20 / 400)


def test_the_noise_of_minibatches_is_that_in_the_metric_of_the_kernel():
    posterior, _, _ = shifted()
    with posterior:
        plain, fourfold = (
            gradient_noise(posterior, 20, 0, num_gradients=10_000.0, metric=metric)[0]
            for metric in (None, Diagonal(torch.full_like(posterior.anchor, 4.0)))
        )
    assert fourfold == pytest.approx(4 * plain)


def test_weights_at_a_hundredth_of_a_regression_are_not_taken_for_ones_that_grow_for_ever():
    """The loss falls by two thirds at 64 times these weights, and rises again only beyond a hundred times."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(300, 1, generator=generator, dtype=torch.float64)
    model = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.fill_(0.0125)
    estimate = slt.estimate_llc(model, (x, y), half_squares, budget=300)
    assert "not_at_a_minimum" in estimate.verdict.names
    assert "no_minimum" not in estimate.verdict.names
