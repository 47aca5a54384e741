"""An estimate that is killed while it runs goes on from its file, and gives bitwise what it would have given."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import slt
from slt import files, rounds
from slt.running import RunningFile
from tests.slt.models import fitted_regression, half_squares

ROOT = Path(__file__).resolve().parents[2]


class KilledError(BaseException):
    """Nothing catches it, like SIGKILL."""


def killed_after(monkeypatch, writes):
    """Every run dies once its file was written so many times."""
    keep = RunningFile.keep
    count = {"writes": 0}

    def keep_and_die(file, run):
        keep(file, run)
        count["writes"] += 1
        if count["writes"] == writes:
            raise KilledError

    monkeypatch.setattr(RunningFile, "keep", keep_and_die)


def product(model):
    return (model.weight[0, 0] * model.weight[0, 1]) ** 2


def crossing():
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    return model


def same(one, other):
    assert one.llc == other.llc
    assert one.interval == other.interval
    assert one.num_gradients == other.num_gradients
    assert one.config == other.config
    assert np.array_equal(one.trace.warmup["loss"], other.trace.warmup["loss"])
    for name, values in one.trace.statistics.items():
        assert np.array_equal(values, other.trace.statistics[name]), name


CASES = {
    "paths on data": {"num_warmup": 40, "num_draws": 200},
    "minibatches": {"batch_size": 20, "budget": 800, "keep_positions": True},
    "minibatches beside the anchor's": {"batch_size": 20, "budget": 800, "control_variates": True},
    "one chain after another": {"engine": "in_place", "sampler": "mala", "num_draws": 60, "num_warmup": 10},
    "mala, thinned": {"sampler": "mala", "thinning": 3, "num_draws": 60, "num_warmup": 50},
}


@pytest.mark.parametrize("name", CASES)
def test_what_was_killed_twice_goes_on_bitwise(name, tmp_path, monkeypatch):
    model, data, _ = fitted_regression()
    options = {"progress": False, **CASES[name]}
    whole = slt.estimate_llc(model, data, half_squares, **options)
    file = {"save_to": tmp_path / "run.pt", "save_every": 0.0}
    for writes in (1, 2):
        with monkeypatch.context() as patched:
            killed_after(patched, writes)
            with pytest.raises(KilledError):
                slt.estimate_llc(model, data, half_squares, **options, **file)
        assert file["save_to"].is_file()
    again = slt.estimate_llc(model, data, half_squares, **options, **file)
    same(whole, again)
    if whole.trace.positions is not None:
        assert torch.equal(whole.trace.positions, again.trace.positions)
    assert not file["save_to"].exists()


def test_chains_whose_step_is_lowered_on_the_way_go_on_bitwise(tmp_path, monkeypatch):
    model, data, _ = fitted_regression()
    options = {"progress": False, "sampler": "baoab", "batch_size": 5, "budget": 800, "tolerance": 1e-4}
    at_first = slt.estimate_llc(model, data, half_squares, **options).step_size
    monkeypatch.setattr(rounds, "lowering", lambda kernel, energy, bias, fraction: 0.8 if bias > 0 else 1.0)
    monkeypatch.setattr(rounds, "HEAT_STEPS", 100)
    whole = slt.estimate_llc(model, data, half_squares, **options)
    assert whole.step_size < 0.7 * at_first
    file = {"save_to": tmp_path / "run.pt", "save_every": 0.0}
    for writes in (1, 3, 2):  # 64 steps each, of what is left
        with monkeypatch.context() as patched:
            killed_after(patched, writes)
            with pytest.raises(KilledError):
                slt.estimate_llc(model, data, half_squares, **options, **file)
    same(whole, slt.estimate_llc(model, data, half_squares, **options, **file))


def test_a_ladder_goes_on_bitwise(tmp_path, monkeypatch):
    options = {"n_beta": 100.0, "num_draws": 400, "num_warmup": 100, "progress": False}
    whole = slt.estimate_llc(crossing(), None, product, **options)
    assert whole.sampler == "replica_exchange"
    file = {"save_to": tmp_path / "run.pt", "save_every": 0.0}
    with monkeypatch.context() as patched:
        killed_after(patched, 3)
        with pytest.raises(KilledError):
            slt.estimate_llc(crossing(), None, product, **options, **file)
    same(whole, slt.estimate_llc(crossing(), None, product, **options, **file))


def test_a_file_of_something_else_is_refused_and_kept(tmp_path, monkeypatch):
    model, data, _ = fitted_regression()
    file = {"save_to": tmp_path / "run.pt", "save_every": 0.0, "progress": False}
    with monkeypatch.context() as patched:
        killed_after(patched, 1)
        with pytest.raises(KilledError):
            slt.estimate_llc(model, data, half_squares, **file)
    before = file["save_to"].read_bytes()
    with pytest.raises(ValueError, match="save_to: .* holds a run of other weights"):
        slt.estimate_llc(model, data, half_squares, seed=1, **file)
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1e-9
    with pytest.raises(ValueError, match="save_to: .* holds a run of other weights"):
        slt.estimate_llc(model, data, half_squares, **file)
    assert file["save_to"].read_bytes() == before


def test_a_damaged_file_is_put_aside_and_a_second_writer_refused(tmp_path):
    model, data, _ = fitted_regression()
    path = tmp_path / "run.pt"
    options = {"progress": False, "sampler": "mala", "num_draws": 20, "num_warmup": 5, "save_to": path}
    path.write_bytes(b"half of a state")
    with pytest.warns(UserWarning, match="cannot be read"):
        slt.estimate_llc(model, data, half_squares, **options)
    assert (tmp_path / "run.pt.unreadable").read_bytes() == b"half of a state"
    with RunningFile(path, "another", 60.0), pytest.raises(ValueError, match="in use by another process"):
        slt.estimate_llc(model, data, half_squares, **options)
    with pytest.raises(ValueError, match="save_every: -1"):
        slt.estimate_llc(model, data, half_squares, **{**options, "save_every": -1})
    (tmp_path / "a file").write_text("")
    with pytest.raises(ValueError, match="save_to: .* cannot be written"):
        slt.estimate_llc(model, data, half_squares, **{**options, "save_to": tmp_path / "a file" / "run.pt"})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_is_told_once_and_harms_nothing(tmp_path, monkeypatch):
    model, data, _ = fitted_regression()
    options = {"progress": False, "sampler": "mala", "num_draws": 300, "num_warmup": 50}
    whole = slt.estimate_llc(model, data, half_squares, **options)
    path = tmp_path / "run.pt"
    save = torch.save
    good = []

    def full(state, place):
        """A device without room, of which torch's own writer says something else than Python's."""
        save(state, "/dev/full" if good else place)
        good.append(Path(place).read_bytes())

    monkeypatch.setattr(files.torch, "save", full)
    monkeypatch.setattr(RunningFile, "remove", lambda file: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimate = slt.estimate_llc(model, data, half_squares, **options, save_to=path, save_every=0.0)
    assert sum("cannot be written" in str(warning.message) for warning in caught) == 1
    assert path.read_bytes() == good[0]
    same(whole, estimate)


def test_a_sweep_goes_on_in_the_middle_of_an_estimate(tmp_path, monkeypatch):
    model, data, _ = fitted_regression()
    series = {step: {name: value * (1 + 0.01 * step) for name, value in model.state_dict().items()} for step in (0, 1)}
    options = {"progress": False, "sampler": "mala", "num_draws": 200, "num_warmup": 20, "save_every": 0.0}
    slt.sweep(model, series, data, half_squares, store=tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        killed_after(patched, 4)  # in the second checkpoint
        with pytest.raises(KilledError):
            slt.sweep(model, series, data, half_squares, store=tmp_path / "cut", **options)
    assert len(list((tmp_path / "cut" / "running").glob("*.pt"))) == 1
    restored = []
    restore = RunningFile.restore
    monkeypatch.setattr(RunningFile, "restore", lambda file, run: restored.append(restore(file, run)) or restored[-1])
    slt.sweep(model, series, data, half_squares, store=tmp_path / "cut", **options)
    assert restored == [True]
    for name in ("sweep.csv", "sweep.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "cut" / "running").iterdir())


def test_an_estimate_of_a_sweep_that_cannot_go_on_bitwise_begins_anew(tmp_path, monkeypatch):
    """Of a machine with another number of threads; a file of the user's own is refused instead."""
    model, data, _ = fitted_regression()
    options = {"progress": False, "sampler": "mala", "num_draws": 200, "num_warmup": 20, "save_every": 0.0}
    with monkeypatch.context() as patched:
        killed_after(patched, 2)
        with pytest.raises(KilledError):
            slt.sweep(model, {0: model.state_dict()}, data, half_squares, store=tmp_path, **options)
    with monkeypatch.context() as patched:
        killed_after(patched, 2)
        with pytest.raises(KilledError):
            slt.estimate_llc(model, data, half_squares, save_to=tmp_path / "run.pt", **options)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    row = slt.sweep(model, {0: model.state_dict()}, data, half_squares, store=tmp_path, **options).rows[0]
    assert row.estimate is not None
    assert row.estimate.trace.configuration["threads"] == 77
    with pytest.raises(ValueError, match="of a run with threads"):
        slt.estimate_llc(model, data, half_squares, save_to=tmp_path / "run.pt", **options)


SCRIPT = """
import sys, json, torch, slt
from tests.slt.models import fitted_regression, half_squares
model, data, _ = fitted_regression()
with torch.no_grad():  # the last digits of a least-squares solution are not the same in every process
    model.weight.copy_(model.weight.round(decimals=6))
found = slt.estimate_llc(
    model, data, half_squares, batch_size=20, num_draws=4000, progress=False, save_to=sys.argv[1], save_every=0.02
)
print(json.dumps([found.llc, *found.interval, found.num_gradients, float(found.trace.loss.sum())]))
"""


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path):
    """Each time ``kill -9`` at a random moment, then again until it ends: twenty results like the unbroken one."""

    def start(path):
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)

    began = time.monotonic()
    whole, _ = start(tmp_path / "whole.pt").communicate()
    seconds = time.monotonic() - began
    generator = np.random.default_rng(0)
    went_on = 0
    for number in range(20):
        path = tmp_path / f"{number}.pt"
        process = start(path)
        time.sleep(generator.uniform(0.2, 1.0) * seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        went_on += path.is_file()
        found, _ = start(path).communicate()
        assert json.loads(found) == json.loads(whole)
        assert not path.exists()
    assert went_on >= 5  # the kills hit runs, and not their beginnings alone
