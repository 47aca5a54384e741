"""Losses that are rounded, random, or another one at the baseline: named where planted, and not elsewhere."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import slt
from tests.slt.models import fitted_regression, half_squares, regression_llc
from tests.slt.verdicts import named


def test_a_loss_too_large_for_its_dtype():
    model, data, _ = fitted_regression(dtype=torch.float32)
    for offset, found in ((0.0, False), (1e5, True)):
        estimate = slt.estimate_llc(
            model, data, lambda model, batch, added=offset: half_squares(model, batch) + added, sampler="mala",
            num_draws=500, num_warmup=100,
        )  # fmt: skip
        assert ("low_precision" in estimate.verdict.names) == found


@pytest.mark.parametrize("engine", ["batched", "in_place"])
@pytest.mark.parametrize(("offset", "found"), [(1e3, True), (1.0, False)])
def test_a_constant_that_was_taken_off_too_late_has_taken_digits_with_it(engine, offset, found):
    """At nβ = 10⁴, 1,000 in float32 leaves steps of 0.6 nats, which made λ̂ 1.184 ± 0.025 where 1.000 is exact."""
    model, data, _ = fitted_regression(dtype=torch.float32)
    estimate = slt.estimate_llc(
        model, data, lambda model, batch: (half_squares(model, batch).mean() + offset) - offset, n_beta=1e4,
        sampler="mala", step_size=0.01, num_chains=2, num_draws=100, num_warmup=100, engine=engine,
    )  # fmt: skip
    assert ("low_precision" in estimate.verdict.names) == found


def test_rounding_is_not_measured_by_the_number_that_it_has_spoilt():
    """At nβ = 10¹⁰ in float32 λ̂ is some 10⁵, and five per cent of that would hide any rounding."""
    model, data, _ = fitted_regression(dtype=torch.float32)
    estimate = slt.estimate_llc(model, data, half_squares, n_beta=1e10, num_draws=200, num_warmup=50)
    assert abs(estimate.llc) > 100
    named(estimate, "low_precision")


@pytest.mark.parametrize(("chance", "found"), [(0.5, True), (0.0, False)])
def test_a_loss_that_is_random_where_it_is_not_zero(chance, found):
    model, draws = nn.Linear(2, 1, bias=False).double(), random.Random(0)
    nn.init.zeros_(model.weight)
    estimate = slt.estimate_llc(
        model, None, lambda model: model.weight.square().sum() * (1 + chance * draws.random()), n_beta=100.0,
        sampler="mala", step_size=0.1, num_draws=100, num_warmup=50,
    )  # fmt: skip
    assert ("stochastic_forward" in estimate.verdict.names) == found


def test_a_loss_that_refuses_weights_where_no_chain_comes_is_sampled():
    model, data, _ = fitted_regression()
    anchor = model.weight.detach().clone()

    def strict(model, batch):
        if float((model.weight.detach() - anchor).abs().max()) > 0.2:
            raise ValueError("scale: expected a positive number")
        return half_squares(model, batch)

    estimate = slt.estimate_llc(
        model, data, strict, n_beta=1e4, engine="in_place", sampler="mala", step_size=3e-5, num_draws=100,
        num_warmup=50,
    )  # fmt: skip
    assert "stochastic_forward" not in estimate.verdict.names
    assert np.isfinite(estimate.llc)


@pytest.mark.parametrize(("factor", "found"), [(0.9, True), (1.0, False)])
def test_a_loss_that_is_another_one_when_the_baseline_is_taken(factor, found):
    """A schedule of thirty calls was over when the chains began: λ̂ was 8.7 where 1.5 is exact, and healthy."""
    model, data, _ = fitted_regression(dtype=torch.float32)
    calls = 0

    def warming_up(model, batch):
        nonlocal calls
        calls += 1
        return half_squares(model, batch) * (factor if calls <= 30 else 1.0)

    estimate = slt.estimate_llc(model, data, warming_up, sampler="sgld", num_draws=200, num_warmup=100)
    assert ("stochastic_forward" in estimate.verdict.names) == found


@pytest.mark.parametrize(("offset", "found"), [(1e6, True), (1.0, False)])
def test_weights_whose_numbers_are_farther_apart_than_the_law_is_wide(offset, found):
    """float32 has no number within 0.06 of a million; the law of these weights is 0.1 wide."""

    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((4,), offset))

        def forward(self, x):
            return x @ (self.weight - offset)

    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    y = 0.1 * torch.randn(500, generator=torch.Generator().manual_seed(1))
    model = Offset()
    estimate = slt.estimate_llc(
        model, (x, y), lambda model, batch: 5 * (model(batch[0]) - batch[1]) ** 2, num_draws=200, num_warmup=50
    )
    assert ("low_precision" in estimate.verdict.names) == found


@pytest.mark.parametrize("engine", ["batched", "in_place"])
def test_sixteen_bits_are_named_and_the_position_keeps_its_small_steps(engine):
    model, (x, y), hessian = fitted_regression(dtype=torch.float32)
    data = (x.bfloat16(), y.bfloat16())
    estimate = slt.estimate_llc(
        model.bfloat16(), data, half_squares, engine=engine, sampler="mala", step_size=1e-2, num_draws=400,
        num_warmup=100, num_chains=4,
    )  # fmt: skip
    assert named(estimate, "low_precision").evidence["dtype"] == "bfloat16"
    assert model.weight.dtype == torch.bfloat16
    # steps of less than the spacing of bfloat16 add up: the chains are near the law all the same
    assert estimate.llc == pytest.approx(regression_llc(hessian, estimate.n_beta, 1.0), rel=0.3)
