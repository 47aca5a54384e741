"""The series that is diagnosed: each draw less its own heat, by minibatches, and as it is elsewhere."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import samplers
import slt
from samplers import diagnose
from slt.energies import energies_of, predicted_bias

N_BETA = 50.0


def heated(bias_of_heat=1.0):
    """Four chains of energy 3 ± 1, of which one is heated by five from its middle on, and says so."""
    generator = np.random.default_rng(0)
    energy = generator.normal(3.0, 1.0, (4, 2000))
    heat = np.zeros_like(energy)
    heat[0, 1000:] = 5.0
    statistics = {"loss": 0.1 + (energy + heat) / N_BETA, "discretization_bias": 0.02 + bias_of_heat * heat}
    return SimpleNamespace(loss=statistics["loss"], statistics=statistics, surviving=np.ones(4, dtype=bool)), energy


def form(batch_size=10, paired=False):
    posterior = SimpleNamespace(n_beta=N_BETA, data=SimpleNamespace(size=1000))
    return posterior, SimpleNamespace(batch_size=batch_size, paired=paired)


def test_by_minibatches_each_draw_loses_its_own_heat():
    trace, energy = heated()
    found, left = energies_of(*form(), trace, 0.1)
    assert left == 0
    np.testing.assert_allclose(found, energy - 0.02)
    raw = diagnose(N_BETA * (trace.loss - 0.1))
    clean = diagnose(found)
    assert raw.rhat > 1.2  # one chain apart from the others
    assert clean.rhat < 1.01
    assert clean.mcse < 0.1 * raw.mcse
    assert clean.mean == pytest.approx(raw.mean - predicted_bias(trace))


@pytest.mark.parametrize("plan", [{"batch_size": None}, {"paired": True}], ids=["full data", "beside the anchor"])
def test_elsewhere_the_mean_is_left_to_be_taken_off(plan):
    trace, _ = heated()
    found, left = energies_of(*form(**plan), trace, 0.1)
    np.testing.assert_array_equal(found, N_BETA * (trace.loss - 0.1))
    assert left == pytest.approx(0.02 + 5 / 8)


@pytest.mark.parametrize(("bias_of_heat", "left"), [(-1.0, 0.0), (math.nan, math.nan)])
def test_a_bias_below_zero_or_unknown_takes_nothing_off(bias_of_heat, left):
    trace, _ = heated(bias_of_heat)
    found, still = energies_of(*form(), trace, 0.1)
    np.testing.assert_array_equal(found, N_BETA * (trace.loss - 0.1))
    assert still == pytest.approx(left, nan_ok=True)


def test_an_estimate_is_the_mean_of_its_energies():
    torch.manual_seed(0)
    x = torch.randn(200, 3)
    model, data = nn.Linear(3, 1), (x, x.sum(1, keepdim=True) + torch.randn(200, 1))

    def half_squares(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().mean(1)

    options = {"sampler": samplers.baoab(0.02), "batch_size": 20, "num_chains": 4, "num_warmup": 100, "num_draws": 400}
    found = slt.estimate_llc(model, data, half_squares, **options)
    energies = found.n_beta * (found.trace.loss - found.loss_at_anchor)
    bias = found.trace.statistics["discretization_bias"]
    assert found.step_size_bias == pytest.approx(bias.mean())
    assert found.step_size_bias > 0
    assert found.llc == pytest.approx((energies - bias).mean())
    assert found.mcse == pytest.approx(diagnose(energies - bias, 10).mcse)  # by epochs of ten batches
    low, high = found.interval
    assert low == pytest.approx(found.llc - 1.96 * found.mcse, rel=1e-4)
    assert high == pytest.approx(found.llc + 1.96 * found.mcse + found.step_size_bias, rel=1e-4)
