"""Minibatch chains that are heated behind their pilot get a smaller step, by what the last steps of theirs say."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import samplers
import slt
from samplers.block import Block
from samplers.processes import Processes
from slt import rounds
from slt.look import _of_noise
from slt.rounds import HEAT_STEPS, _cool, _next_end
from tests.slt.models import fitted_regression, half_squares

ENERGY = 100.0


def cooled(heat, *, num_warmup=50, num_draws=3000, thinning=1, tuned_at=None):
    """The factor by which the step of a run with such a heat in each of its steps, ``(chains, steps)``, is lowered."""
    generator = np.random.default_rng(0)
    steps = {"loss": ENERGY + generator.normal(size=heat.shape), "discretization_bias": heat}
    kernel, found = samplers.baoab(0.1), []
    run = SimpleNamespace(
        kernel=kernel, processes=Processes(None), num_warmup=num_warmup, num_draws=num_draws, thinning=thinning,
        earlier_settings=[] if tuned_at is None else [{"draws": tuned_at, "step_size": 0.2}],
        recent_steps=lambda first: {name: values[:, first:] for name, values in steps.items()},
        tune=lambda step_size: found.append(step_size / kernel.settings["step_size"]),
    )  # fmt: skip
    _cool(run, 1.0, 0.0)
    return found[0] if found else 1.0


def heat_of(*stretches):
    """Of four chains, stretch by stretch."""
    return np.concatenate([np.full((4, count), value) for count, value in stretches], axis=1)


def test_the_last_steps_count():
    assert cooled(heat_of((50 + 2000, 0.0), (1000, 4.0))) == pytest.approx(0.5**0.5, abs=0.01)
    assert cooled(heat_of((50 + 2000, 50.0), (1000, 1.0))) == 1.0


def test_of_those_that_were_as_large():
    """The step was lowered after draw 2,900: what heated chains before was another."""
    heat = heat_of((50 + 2900, 50.0), (100, 1.0))
    assert cooled(heat) < 1
    assert cooled(heat, tuned_at=2900) == 1.0


def test_thinning_changes_nothing():
    heat = heat_of((50 + 2000, 0.0), (1000, 4.0))
    assert cooled(heat, num_draws=30, thinning=100) == cooled(heat)


def test_chains_that_diverged_do_not_count():
    heat = heat_of((3050, 4.0))
    heat[0, 2900:] = np.nan
    assert cooled(heat) == pytest.approx(0.5**0.5, abs=0.01)
    assert cooled(np.full((4, 3050), np.nan)) == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a mean of nothing
        assert cooled(heat_of((1000, 4.0))) == 1.0  # all of them, long before


@pytest.mark.parametrize(("end", "following"), [(100, 200), (300, 600), (400, 800), (500, 900), (799, None)])
def test_rounds_double_until_the_budget_is_spent(end, following):
    assert _next_end(SimpleNamespace(budget=1000, num_warmup=100, thinning=1), end) == following


def test_a_run_is_cut_into_pieces_that_make_its_rounds(monkeypatch):
    """Where no step is lowered the draws are those of one piece, bit by bit; and it is lowered between pieces alone."""
    model, data, _ = fitted_regression()
    options = {"sampler": "baoab", "batch_size": 20, "num_draws": 450, "progress": False}
    whole = slt.estimate_llc(model, data, half_squares, **options)
    monkeypatch.setattr(rounds, "HEAT_STEPS", 100)
    monkeypatch.setattr(rounds, "lowering", lambda *_: 1.0)
    pieces = slt.estimate_llc(model, data, half_squares, **options)
    assert HEAT_STEPS > 450
    assert np.array_equal(whole.trace.loss, pieces.trace.loss)
    assert "earlier_settings" not in pieces.trace.configuration
    monkeypatch.setattr(rounds, "lowering", lambda *_: 0.5)
    lowered = slt.estimate_llc(model, data, half_squares, **options)
    steps = [each["step_size"] for each in lowered.trace.configuration["earlier_settings"]]
    assert [each["draws"] for each in lowered.trace.configuration["earlier_settings"]] == [100, 200, 300, 400]
    assert steps == pytest.approx([whole.step_size * 0.5**place for place in range(4)])
    assert lowered.step_size == pytest.approx(whole.step_size / 16)
    assert np.array_equal(whole.trace.loss[:, :100], lowered.trace.loss[:, :100])
    assert not np.array_equal(whole.trace.loss[:, 100:], lowered.trace.loss[:, 100:])


def test_a_chain_that_diverges_ends_no_round(monkeypatch):
    fetch = Block.fetch

    def and_lose_one(block, infos):
        fetch(block, infos)
        block.first_bad_step[0] = 300

    monkeypatch.setattr(Block, "fetch", and_lose_one)
    monkeypatch.setattr(rounds, "HEAT_STEPS", 100)
    model, data, _ = fitted_regression()
    options = {"sampler": "baoab", "batch_size": 20, "num_draws": 450, "allow_survivors": True, "progress": False}
    found = slt.estimate_llc(model, data, half_squares, **options)
    assert [each.chain for each in found.trace.diverged] == [0]
    assert found.trace.num_draws == 450


def test_noise_is_judged_by_the_steps_that_were_taken():
    """A hundred draws of 0.2 and three hundred of 0.1; h·C is 0.1 with both."""
    configuration = {"earlier_settings": [{"draws": 100, "step_size": 0.2}]}
    trace = SimpleNamespace(configuration=configuration, num_draws=400)
    expected = (100 * 0.2**2 + 300 * 0.1**2) / 400 / 8 / math.tanh(0.05)
    assert _of_noise(SimpleNamespace(kernel=samplers.baoab(0.1)), trace) == pytest.approx(expected)
