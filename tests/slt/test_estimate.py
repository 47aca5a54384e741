"""Saving, loading and drawing an estimate."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import samplers
import slt
from slt.plots import plot_estimate, save_figure
from tests.slt.full_disk import fill_disk
from tests.slt.models import fitted_regression, half_squares


@pytest.fixture(scope="module")
def estimate():
    model, data, _ = fitted_regression()
    return slt.estimate_llc(model, data, half_squares, num_draws=100, num_warmup=20, keep_positions=True)


def test_round_trip(estimate, tmp_path):
    estimate.save(tmp_path / "estimate.nc")
    loaded = slt.load_estimate(tmp_path / "estimate.nc")
    assert repr(loaded) == repr(estimate)
    assert loaded.summary() == estimate.summary()
    assert loaded.config == estimate.config
    assert loaded.verdict == estimate.verdict
    np.testing.assert_array_equal(loaded.trace.loss, estimate.trace.loss)
    assert torch.equal(loaded.trace.positions, estimate.trace.positions)


def test_a_failed_estimate_round_trips(tmp_path):
    model, data, _ = fitted_regression()
    failed = slt.estimate_llc(model, data, half_squares, sampler=samplers.sgld(50.0), num_draws=2000)
    failed.save(tmp_path / "estimate.nc")
    loaded = slt.load_estimate(tmp_path / "estimate.nc")
    assert np.isnan(loaded.llc)
    assert loaded.verdict == failed.verdict
    assert loaded.trace.diverged == failed.trace.diverged
    plt.close(plot_estimate(loaded)[0].figure)


def test_json_has_no_nan(estimate):
    record = json.loads(json.dumps(estimate.to_dict(), allow_nan=False))
    assert record["llc"] == estimate.llc
    assert record["ok"] == estimate.verdict.ok


def test_what_is_no_estimate_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a file"):
        slt.load_estimate(tmp_path / "missing.nc")
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(ValueError, match="not a netCDF file"):
        slt.load_estimate(tmp_path / "text.nc")
    target = samplers.from_log_density(lambda w: -w.square().sum(-1), 1)
    trace = samplers.sample(samplers.mala(0.1), target, torch.zeros(1), num_chains=2, num_warmup=0, num_draws=5)
    trace.save(tmp_path / "trace.nc")
    with pytest.raises(ValueError, match="no estimate"):
        slt.load_estimate(tmp_path / "trace.nc")


@pytest.mark.parametrize(
    "save", [lambda estimate, path: estimate.save(path), lambda estimate, path: estimate.trace.save(path)]
)
def test_a_full_disk_leaves_what_was_there(save, estimate, tmp_path, monkeypatch):
    path = tmp_path / "estimate.nc"
    path.write_text("precious")
    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        save(estimate, path)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda record: record | {"format": 99}, "format 99; this version reads format 1"),
        (lambda record: record | {"shiny": 1}, "shiny"),
        (lambda record: {name: value for name, value in record.items() if name != "llc"}, "llc"),
        (lambda record: record | {"n_beta": None}, "NoneType"),
        (lambda record: record | {"problems": [{"name": "other"}]}, "evidence"),
        (lambda record: "cut", "JSONDecodeError"),
    ],
)
def test_a_file_of_another_format_or_that_was_changed_is_refused(estimate, change, told, tmp_path):
    tree = estimate.to_datatree()
    record = change(json.loads(tree.attrs["llc_estimate"]))
    tree.attrs["llc_estimate"] = record if isinstance(record, str) else json.dumps(record)
    tree.to_netcdf(tmp_path / "changed.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=rf"changed.nc' holds an estimate that cannot be read .*{told}"):
        slt.load_estimate(tmp_path / "changed.nc")


def test_plot_takes_and_returns_axes(estimate, tmp_path):
    left, right = estimate.plot()
    assert "nats" in left.get_ylabel()
    assert "λ̂" in right.get_ylabel()
    assert len(right.lines) == estimate.trace.num_chains + 1
    save_figure([left, right], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    _, axes = plt.subplots(1, 2)
    assert plot_estimate(estimate, axes)[0] is axes[0]
    plt.close("all")


class SomeSeen(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
        self.unseen = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))


def test_directions_that_the_localiser_holds_are_counted():
    """Three that no loss sees, and of each of the others γ/(nβ + γ): 0.05 here.

    Half the energies' squares of 8 normal weights: an ESS of 400 makes the error √(2 · 3/400) = 0.12; five of them are
    allowed, which chance exceeds once in two million.
    """
    found = slt.estimate_llc(
        SomeSeen(), None, lambda model: 0.5 * model.seen.square().sum(), n_beta=99.0, localization=1.0, progress=False
    )
    assert samplers.diagnose(found.trace.statistics["localization_energy"]).ess > 400
    assert found.held_by_localizer == pytest.approx(3.05, abs=0.6)
    assert f"holds {found.held_by_localizer:.3g} of 8 directions" in found.summary()
