"""Named problems: each is found where it is planted, and not in a healthy run."""

import pytest
import torch
from torch import nn

import samplers
import slt
from tests.slt.models import fitted_regression, half_squares

HEALTHY_SEEDS = [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 20))]


@pytest.mark.parametrize("seed", HEALTHY_SEEDS)
def test_a_healthy_run_is_healthy(seed):
    model, data, _ = fitted_regression(seed=seed)
    estimate = slt.estimate_llc(model, data, half_squares, seed=seed, tolerance=0.1)
    assert estimate.verdict.ok, estimate.verdict.problems


def planted(name, **arguments):
    model, data, _ = fitted_regression()
    estimate = slt.estimate_llc(model, data, half_squares, **arguments)
    assert name in estimate.verdict.names
    problem = next(problem for problem in estimate.verdict.problems if problem.name == name)
    assert problem.evidence
    assert problem.advice
    assert name in str(problem)
    return estimate


def test_a_large_step_of_sgld():
    estimate = planted(
        "step_size_too_large", sampler=samplers.sgld(0.04), batch_size=200, num_draws=2000, localization=2.0
    )
    assert estimate.rhat < 1.05  # which R̂ does not see


def test_a_large_step_of_mala():
    planted("step_size_too_large", sampler="mala", step_size=1.0, num_draws=1000)


def test_a_small_step():
    planted("not_converged", sampler="mala", step_size=1e-7, num_draws=500)


def test_few_draws():
    planted("not_converged", num_draws=3)


def test_an_anchor_above_the_minimum():
    model, data, _ = fitted_regression()
    with torch.no_grad():
        model.weight.add_(1.0)
    estimate = slt.estimate_llc(model, data, half_squares)
    assert "not_at_a_minimum" in estimate.verdict.names
    assert estimate.llc < 0


def test_a_loss_too_large_for_its_dtype():
    model, data, _ = fitted_regression(dtype=torch.float32)
    for offset, named in ((0.0, False), (1e5, True)):
        estimate = slt.estimate_llc(
            model, data, lambda model, batch, added=offset: half_squares(model, batch) + added, num_draws=500,
            num_warmup=100,
        )  # fmt: skip
        assert ("low_precision" in estimate.verdict.names) == named


def test_a_loss_that_is_random():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 0.1 * torch.randn(len(x), 1)

    _, data, _ = fitted_regression(dtype=torch.float32)
    estimate = slt.estimate_llc(Noisy(3, 1), data, half_squares, num_draws=20, num_warmup=5)
    assert "stochastic_forward" in estimate.verdict.names
