"""The trace as a tree and as a file."""

import numpy as np
import pytest
import torch
import xarray

import samplers
from samplers import Trace
from tests.samplers.laws import Quadratic


@pytest.fixture
def trace():
    target = Quadratic((1.0, 2.0, 3.0))
    return samplers.sample(
        samplers.sgld(torch.full((4, 1), 0.05, dtype=torch.float64)),
        target,
        target.anchor,
        num_chains=4,
        num_warmup=6,
        num_draws=9,
        keep_positions=True,
    )


def assert_equal(one, other):
    for name, values in one.statistics.items():
        np.testing.assert_array_equal(values, other.statistics[name])
        np.testing.assert_array_equal(one.warmup[name], other.warmup[name])
    assert (one.positions is None) == (other.positions is None)
    if one.positions is not None:
        assert torch.equal(one.positions, other.positions)
    for name in ("diverged", "interrupted", "num_gradients", "configuration"):
        assert getattr(one, name) == getattr(other, name)


def test_tree_has_explicit_coordinates(trace):
    tree = trace.to_datatree()
    assert isinstance(tree, xarray.DataTree)
    assert dict(tree["sample_stats"].sizes) == {"chain": 4, "draw": 9}
    assert tree["posterior/position"].dims == ("chain", "draw", "coordinate")
    for group in ("sample_stats", "posterior"):
        np.testing.assert_array_equal(tree[group].coords["chain"], np.arange(4))
        np.testing.assert_array_equal(tree[group].coords["draw"], np.arange(9))
    np.testing.assert_array_equal(tree["sample_stats/loss"], trace.loss)


def test_netcdf_round_trip(trace, tmp_path):
    trace.diverged = (samplers.Divergence(2, 11),)
    trace.statistics["loss"][2, 5:] = np.nan
    trace.save(tmp_path / "trace.nc")
    assert_equal(trace, Trace.load(tmp_path / "trace.nc"))
    trace.positions = None
    trace.save(tmp_path / "trace.nc")
    assert_equal(trace, Trace.load(tmp_path / "trace.nc"))


def test_a_run_without_warmup_round_trips(tmp_path):
    target = Quadratic((1.0, 2.0))
    trace = samplers.sample(samplers.sgld(0.1), target, target.anchor, num_chains=2, num_warmup=0, num_draws=5)
    trace.save(tmp_path / "trace.nc")
    assert_equal(trace, Trace.load(tmp_path / "trace.nc"))


def test_configuration_repeats_the_run(trace):
    settings = trace.configuration
    target = Quadratic((1.0, 2.0, 3.0))
    kernel = samplers.sgld(torch.tensor(settings["step_size"], dtype=torch.float64)[:, None])
    again = samplers.sample(
        kernel,
        target,
        target.anchor,
        **{name: settings[name] for name in ("num_chains", "num_warmup", "num_draws", "thinning", "seed")},
    )
    np.testing.assert_array_equal(again.loss, trace.loss)


def test_another_tree_is_refused():
    with pytest.raises(ValueError, match="to_datatree"):
        Trace.from_datatree(xarray.DataTree())
