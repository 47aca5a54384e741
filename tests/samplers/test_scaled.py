"""A potential in the units of its localiser: the same law, and the same chains however the weights are scaled."""

import numpy as np
import pytest
import torch

import samplers
from samplers import GaussianLocalizer, Unlocalized, natural_units
from tests.samplers.laws import Quadratic
from tests.statistics import assert_mean

CURVATURE = (3.0, 0.2, 0.004)
METRIC = torch.tensor([2.0, 0.5, 0.03], dtype=torch.float64)
SCALES = torch.tensor([1e4, 1.0, 1e-4], dtype=torch.float64)


class Localised(Quadratic):
    """A quadratic with its localiser in a metric, in weights that are multiplied by ``scale``."""

    def __init__(self, scale=None, metric=METRIC, strength=2.0, **settings):
        scale = torch.ones(3, dtype=torch.float64) if scale is None else scale
        super().__init__(torch.as_tensor(CURVATURE, dtype=torch.float64) / scale**2, n_beta=50.0, **settings)
        self.localizer = GaussianLocalizer(self.anchor, strength, metric / scale**2)


class OneAtATime(Localised):
    """Binds its weights to the first position that it gets, and writes every gradient to one buffer."""

    max_chains = 1

    def __init__(self):
        super().__init__()
        self.places, self.buffer = set(), torch.zeros(1, 3, dtype=torch.float64)

    def loss_and_grad(self, position, batch=None):
        self.places.add(position.data_ptr())
        loss, gradient = super().loss_and_grad(position, batch)
        return loss, self.buffer.copy_(gradient)


def exact_energy(metric=METRIC, strength=2.0):
    """nβ·E[loss] = Σ ½ nβh / (nβh + γD)."""
    h = torch.as_tensor(CURVATURE, dtype=torch.float64)
    return float((0.5 * 50.0 * h / (50.0 * h + strength * metric)).sum())


def sample(potential, kernel=None, num_draws=50, num_chains=4, **settings):
    kernel = kernel or samplers.mala(0.2)
    return samplers.sample(
        kernel, potential, potential.localizer.anchor, num_chains=num_chains, num_warmup=100, num_draws=num_draws,
        keep_positions=True, **settings,
    )  # fmt: skip


def test_losses_energies_and_gradients_are_those_of_the_base():
    base = Localised()
    scaled = natural_units(base)
    u = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    w = scaled.positions(u)
    loss, gradient = scaled.loss_and_grad(u.detach())
    torch.testing.assert_close(loss, base.loss_and_grad(w)[0])
    torch.testing.assert_close(scaled.localizer.energy(u), base.localizer.energy(w))
    (of_autograd,) = torch.autograd.grad((0.5 * base.h * w.square()).sum(), u)
    torch.testing.assert_close(gradient, of_autograd)
    torch.testing.assert_close(scaled.positions(scaled.anchor), base.anchor)


def assert_law(trace, metric=METRIC):
    assert_mean(50.0 * trace.loss, exact_energy(metric))
    h = torch.as_tensor(CURVATURE, dtype=torch.float64)
    for place, variance in enumerate(1 / (50.0 * h + 2.0 * METRIC)):
        assert_mean(trace.positions[..., place] ** 2, float(variance))


def test_the_law_is_that_of_the_localiser_in_its_metric():
    scaled = natural_units(Localised())
    trace = sample(scaled, samplers.hmc((0.1, 1.0), 6), num_chains=256, num_draws=400)
    trace.positions[:] = scaled.positions(trace.positions)
    assert_law(trace)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_law(trace, METRIC.flip(0))


@pytest.mark.parametrize(
    "kernel",
    [
        samplers.mala(0.2),
        samplers.hmc((0.1, 1.0), 4),
        samplers.sgld(0.01),
        samplers.baoab(0.1),
        samplers.mclmc(0.1, 2),
    ],
    ids=lambda kernel: kernel.name,
)
def test_chains_do_not_know_the_scale_of_the_weights(kernel):
    one, other = Localised(), Localised(SCALES)
    first, second = (sample(natural_units(base), kernel) for base in (one, other))
    np.testing.assert_allclose(second.loss, first.loss, rtol=1e-9)
    torch.testing.assert_close(second.positions, first.positions, rtol=1e-9, atol=1e-12)
    in_weights = [sample(base, samplers.mala(0.2)) for base in (one, other)]
    assert np.abs(in_weights[1].loss / in_weights[0].loss - 1).max() > 0.1  # a planted error: the weights' own units


def test_replica_exchange_does_not_know_the_scale_of_the_weights():
    rungs = torch.tensor([0.5, 5.0, 50.0], dtype=torch.float64)
    kernel = samplers.replica_exchange(samplers.hmc((0.05, 1.0), 4), 3)
    losses = [
        sample(samplers.ladder_potential(natural_units(base), rungs, 2), kernel, num_chains=6).loss
        for base in (Localised(), Localised(SCALES))
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9)


def test_a_base_that_holds_one_chain_is_given_one_place():
    base = OneAtATime()
    trace = sample(natural_units(base), num_chains=2)
    assert len(base.places) == 1
    expected = sample(natural_units(Localised()), num_chains=1)
    np.testing.assert_allclose(trace.loss[:1], expected.loss, rtol=1e-12)


def test_without_a_metric_the_units_are_those_of_the_weights():
    base = Quadratic(CURVATURE)
    u = torch.randn(4, 3, dtype=torch.float64)
    for one, other in zip(natural_units(base).loss_and_grad(u), base.loss_and_grad(u), strict=True):
        assert torch.equal(one, other)


def test_what_has_no_units_is_refused():
    base = Localised(metric=torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="metric: 1 of 3 entries are zero"):
        natural_units(base)
    base.localizer = Unlocalized()
    with pytest.raises(TypeError, match="Unlocalized; expected a GaussianLocalizer"):
        natural_units(base)
