"""Proposals that are refused as not finite: counted by every exact kernel, and by nothing else."""

import numpy as np
import pytest
import torch

import samplers
from samplers import Run, sample

START = torch.tensor([1.0, 1.0], dtype=torch.float64)


def half_of_a_gaussian(w):
    """Not a number where the first coordinate is negative."""
    return torch.where(w[:, 0] > 0, -0.5 * w.square().sum(-1), torch.nan)


def without_a_gradient(w):
    """A Gaussian whose gradient is not a number where the first coordinate is negative."""
    root = torch.where(w[:, 0] > 0, w[:, 0].sqrt(), 0.0)
    return -0.5 * w.square().sum(-1) + 0.0 * root


HALF = samplers.from_log_density(half_of_a_gaussian, dim=2)
WHOLE = samplers.from_log_density(lambda w: -0.5 * w.square().sum(-1), dim=2)
NO_GRADIENT = samplers.from_log_density(without_a_gradient, dim=2)
KERNELS = [samplers.mala(0.8), samplers.hmc(0.3, 4), samplers.adjusted_mclmc(0.5)]
RUN = {"num_chains": 16, "num_warmup": 20, "num_draws": 300, "progress": False}


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("target", [HALF, NO_GRADIENT], ids=["loss", "gradient"])
def test_they_are_told_apart_from_those_that_are_refused_by_chance(kernel, target):
    trace = sample(kernel, target, START, keep_positions=True, **RUN)
    refused = trace.statistics["not_finite"]
    assert 0.02 < refused.mean() < 0.9
    assert set(np.unique(refused)) == {0.0, 1.0}
    assert (trace.statistics["acceptance_rate"][refused == 1] == 0).all()
    assert (trace.statistics["acceptance_rate"][refused == 0] > 0).all()
    stayed = (trace.positions[:, 1:] == trace.positions[:, :-1]).all(-1).numpy()
    assert stayed[refused[:, :-1] == 1].all()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_where_all_is_finite_there_is_none(kernel):
    trace = sample(kernel, WHOLE, START, **RUN)
    assert not trace.statistics["not_finite"].any()
    assert not trace.warmup["not_finite"].any()


def test_a_kernel_that_refuses_nothing_has_none():
    assert not sample(samplers.sgld(0.1), WHOLE, START, **RUN).statistics["not_finite"].any()
    info = samplers.Info(torch.zeros(3), torch.zeros(3), torch.ones(3), torch.zeros(3))
    assert info.not_finite.dtype == torch.bool
    assert info.not_finite.tolist() == [False] * 3


def test_those_of_a_ladder_are_of_its_rungs():
    """The cold rung is twice as near to the wall, in steps, and more: the hot one is wide."""
    target = samplers.ladder_potential(HALF, torch.tensor([0.05, 4.0], dtype=torch.float64), 16)
    kernel = samplers.replica_exchange(samplers.hmc(0.3, 3), 2)
    trace = sample(kernel, target, START, **{**RUN, "num_chains": 32})
    hot, cold = samplers.by_rung(trace.statistics["not_finite"], 2)
    assert cold.mean() > 2 * hot.mean() > 0


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_their_count_goes_on_with_a_run(kernel):
    arguments = {"num_chains": 8, "num_warmup": 10, "progress": False}
    whole, first, second = (Run(kernel, HALF, START, **arguments) for _ in range(3))
    whole.draw(100)
    first.draw(40)
    second.load_state_dict(first.state_dict())
    second.draw(60)
    counts = [run.trace().statistics["not_finite"] for run in (whole, second)]
    assert counts[0].any()
    assert (counts[0] == counts[1]).all()


def test_a_run_that_was_saved_before_they_were_counted_goes_on():
    arguments = {"num_chains": 8, "num_warmup": 10, "progress": False}
    first, second = (Run(KERNELS[1], HALF, START, **arguments) for _ in range(2))
    first.draw(40)
    stored = first.state_dict()
    for block in stored["blocks"]:
        for window in block["windows"]:
            del window["not_finite"]
    second.load_state_dict(stored)
    second.draw(60)
    counts = second.trace().statistics["not_finite"]
    assert not counts[:, :40].any()
    assert counts[:, 40:].any()


def test_a_compiled_step_counts_the_same():
    found = [sample(KERNELS[1], HALF, START, compile=compiled, **RUN) for compiled in (False, True)]
    counts = [trace.statistics["not_finite"] for trace in found]
    assert counts[0].any()
    assert (counts[0] == counts[1]).all()
