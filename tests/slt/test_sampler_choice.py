"""Which sampler and batch the call takes for data, as the README's table has it."""

import pytest

import slt
from slt import calibrate
from tests.slt.models import fitted_regression, half_squares


@pytest.mark.parametrize(
    ("options", "sampler"),
    [({}, "hmc"), ({"step_size": 0.02}, "mala"), ({"batch_size": 20}, "baoab"),
     ({"batch_size": 20, "step_size": 1e-3}, "sgld"), ({"engine": "in_place"}, "baoab"),
     ({"engine": "in_place", "step_size": 1e-3}, "sgld")],
)  # fmt: skip
def test_the_sampler_of_data_is_that_of_the_readme(options, sampler):
    model, data, _ = fitted_regression()
    found = slt.estimate_llc(model, data, half_squares, num_draws=20, num_warmup=5, num_chains=2, **options)
    assert found.sampler == sampler


def test_beyond_four_million_weights_minibatches_are_sampled_by_sgld(monkeypatch):
    assert calibrate.LARGEST_WHITENED == 2**22
    monkeypatch.setattr("slt.calibrate.LARGEST_WHITENED", 2)
    model, data, _ = fitted_regression()
    found = slt.estimate_llc(model, data, half_squares, num_draws=20, num_warmup=5, num_chains=2, batch_size=20)
    assert found.sampler == "sgld"


def test_a_batch_of_more_than_all_samples_is_all_of_them():
    model, data, _ = fitted_regression()
    few = {"sampler": "sgld", "step_size": 1e-3, "num_draws": 10, "num_warmup": 0, "num_chains": 2}
    more, all_of_them = (slt.estimate_llc(model, data, half_squares, batch_size=size, **few) for size in (2000, 200))
    assert more.config["batch_size"] == (200, "all samples: more were asked for")
    assert (more.llc, more.num_gradients) == (all_of_them.llc, all_of_them.num_gradients)
