"""A sweep of several processes: the table of one, nothing made twice, and what a killed one had made by the others."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn

import slt
from slt import ranks, sweep_work
from slt import store as stores
from slt.files import InUseError
from slt.store import EstimateStore
from slt.turns import in_turns
from tests.jobs import UNTRAINED
from tests.processes import finish, started
from tests.slt.models import fitted_regression, half_squares

multiprocessing.set_forkserver_preload([__name__])
SHORT = {"num_draws": 40, "num_warmup": 10, "num_chains": 2, "progress": False, "batch_size": 20, "sampler": "sgld"}
STEPS = (10, 20, 30, 40, 50)


def series():
    model, data, _ = fitted_regression()
    with torch.no_grad():  # the last digits of a solution depend on where it lies in memory
        weights = {name: value.round(decimals=6) for name, value in model.state_dict().items()}
    states = {step: {name: value * (1 + 0.001 * step) for name, value in weights.items()} for step in STEPS}
    states[30] = {"another": torch.zeros(1)}  # does not fit the model
    return model, states, data


def swept(folder, parts=None):
    model, states, data = series()
    return slt.sweep(model, states, data, half_squares, store=folder, parts=parts, **SHORT)


def of_a_run(rank, folder, count):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), TORCHELASTIC_RUN_ID="a test")
    made = []
    honest = sweep_work.estimate_llc

    def noted(model, *arguments, **options):
        made.append(float(next(model.parameters()).detach().flatten()[0]))
        time.sleep(0.1)  # so that every process has its turn
        return honest(model, *arguments, **options)

    sweep_work.estimate_llc = noted
    return made


PARTS = {"whole": None, "first": {"weight": torch.tensor([[True, False, False]])}}


def three(rank, folder):
    made = of_a_run(rank, folder, 3)
    sweep = swept(f"{folder}/shared", PARTS)
    torch.save({"made": made, "table": sweep.table(), "law": sweep.law}, f"{folder}/{rank}.pt")


def test_three_processes_make_the_table_of_one_and_nothing_twice(tmp_path):
    finish(three, tmp_path, 3)
    alone = swept(tmp_path / "alone", PARTS)
    assert "failed" in alone.table()
    told = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    assert {each["table"] for each in told} == {alone.table()}
    assert {each["law"] for each in told} == {alone.law}
    assert sum(len(each["made"]) for each in told) == 2 * (len(STEPS) - 1)
    assert all(each["made"] for each in told)
    for name in ("sweep.csv", "sweep.json"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not list((tmp_path / "shared" / "running").iterdir())
    assert len(list((tmp_path / "shared" / "laws").glob("*.pt"))) == 2


class Flagged(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.register_buffer("flag", torch.zeros(()))

    def forward(self, x):
        if self.flag:
            raise TypeError("here alone")
        return self.linear(x)


def with_errors(folder):
    linear, states, data = series()
    flagged = {
        step: {"linear.weight": states[step]["weight"], "flag": torch.tensor(float(step == 20))}
        for step in (10, 20, 40, 50)
    }
    options = {**SHORT, "sampler": "mala", "step_size": 0.02, "batch_size": None, "engine": "in_place"}
    return slt.sweep(Flagged(linear), flagged, data, half_squares, store=folder, **options)


def errors_of_one(rank, folder):
    of_a_run(rank, folder, 2)
    honest, made = sweep_work.estimate_llc, []

    def fragile(*arguments, **options):
        made.append(1)
        if rank == 1 and len(made) > 1:  # its first is the failure of the checkpoint, or an estimate
            raise RuntimeError("out of memory")
        return honest(*arguments, **options)

    sweep_work.estimate_llc = fragile
    if rank == 1:
        time.sleep(0.3)
    torch.save(with_errors(f"{folder}/shared").table(), f"{folder}/{rank}.pt")


def test_errors_of_one_process_are_not_those_of_the_table(tmp_path):
    """Of a checkpoint that is the first of one process, and of the memory of one."""
    finish(errors_of_one, tmp_path, 2)
    alone = with_errors(tmp_path / "alone").table()
    assert "TypeError: here alone" in alone
    assert torch.load(tmp_path / "0.pt") == alone
    for line in torch.load(tmp_path / "1.pt").splitlines():  # what it could not, it says
        assert line in alone.splitlines() or line.endswith("failed: RuntimeError: out of memory")
    # the checkpoint that fails in both has the error of the one that came to it last
    shared, single = ((tmp_path / name / "sweep.csv").read_text() for name in ("shared", "alone"))
    assert shared.replace("RuntimeError: out of memory", "TypeError: here alone") == single


def one_of_them_dies(rank, folder):
    made = of_a_run(rank, folder, 2)
    honest = sweep_work.estimate_llc

    def deadly(*arguments, **options):
        if len(made) == 1 and led[0] == (Path(folder).name == "first"):
            Path(folder, "dead").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(*arguments, **options)

    led = []  # whether it had the lock at first; another takes it from who is gone
    join = EstimateStore._join

    def noted(store):
        join(store)
        led.append(store.first)

    EstimateStore._join = noted
    sweep_work.estimate_llc = deadly
    swept(f"{folder}/shared", PARTS)


@pytest.mark.parametrize("who", ["first", "other"])
def test_what_a_process_had_that_is_killed_is_made_by_the_others(tmp_path, who):
    folder = tmp_path / who
    folder.mkdir()
    processes = started(one_of_them_dies, folder, 2).processes
    for process in processes:
        process.join(120)
    assert (folder / "dead").is_file()
    assert sorted(process.exitcode for process in processes) == [-signal.SIGKILL, 0]
    swept(tmp_path / "alone", PARTS)
    for name in ("sweep.csv", "sweep.json"):
        assert (folder / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_only_processes_of_one_run_share_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "JOINING", 0.5)
    with EstimateStore(tmp_path, "one") as first:
        with EstimateStore(tmp_path, "one") as second:
            assert (first.first, second.first) == (True, False)
            assert not second.take_lead()
        for other in ("", "two"):
            with pytest.raises(InUseError, match="in use by another process"):
                EstimateStore(tmp_path, other)
    with EstimateStore(tmp_path), pytest.raises(InUseError, match="in use by another process"):
        EstimateStore(tmp_path, "one")


def test_a_run_of_one_machine_is_not_that_of_another(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("TORCHELASTIC_RUN_ID", "none"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    told = {}
    for address in ("127.0.0.1", "head"):
        monkeypatch.setenv("MASTER_ADDR", address)
        for machine in ("one", "two"):
            monkeypatch.setattr("socket.gethostname", lambda machine=machine: machine)
            told[address, machine] = ranks.run()
    assert told["127.0.0.1", "one"] != told["127.0.0.1", "two"]
    assert told["head", "one"] == told["head", "two"]


def test_a_law_is_found_once_and_a_damaged_one_again(tmp_path, monkeypatch):
    model, states, data = series()
    slt.sweep(model, states, data, half_squares, store=tmp_path, **SHORT)
    found = []
    honest = sweep_work.find_law
    monkeypatch.setattr(sweep_work, "find_law", lambda *arguments: found.append(1) or honest(*arguments))
    again = slt.sweep(model, states, data, half_squares, store=tmp_path, **SHORT)
    assert not found
    assert again.law.startswith("sampler sgld, of step size")
    slt.sweep(model, states, data, half_squares, store=tmp_path, **{**SHORT, "batch_size": 10})
    assert len(found) == 1
    for law in (tmp_path / "laws").glob("*.pt"):
        law.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"laws/.*cannot be read"):
        repeated = slt.sweep(model, states, data, half_squares, store=tmp_path, **SHORT)
    assert len(found) == 2
    assert repeated.table() == again.table()


def test_turns_wait_for_what_another_process_has(monkeypatch):
    monkeypatch.setattr("slt.turns.WAIT", 0.01)
    free = threading.Event()

    def attempt(task):
        if task == "b" and not free.is_set():
            threading.Timer(0.05, free.set).start()
            return None
        return task.upper()

    assert list(in_turns("abc", attempt)) == [("a", "A"), ("c", "C"), ("b", "B")]


def test_what_a_sweep_does_by_itself_is_refused():
    model, states, data = series()
    with pytest.raises(ValueError, match="save_to: given to a sweep; expected a store"):
        slt.sweep(model, states, data, half_squares, save_to="run.pt")
    with pytest.raises(ValueError, match="process_group: given to a sweep; expected torchrun and a store"):
        slt.sweep(model, states, data, half_squares, process_group=object())


@pytest.mark.slow
def test_torchrun_spreads_the_checkpoints(tmp_path):
    (tmp_path / "job.py").write_text(UNTRAINED)
    for step in (1, 2, 3, 4):
        torch.save({"weight": torch.tensor([[1.0, -0.5, 0.2]]) * (1 + 0.01 * step)}, tmp_path / f"step-{step}.pt")
    command = ["-m", "slt", "sweep", "job.py:task", "step-*.pt", "--num-draws", "200"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    form = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
    one = subprocess.run([sys.executable, *command, "--store", "one"], **form, check=False)
    two = subprocess.run([sys.executable, *torchrun, *command, "--store", "two"], **form, check=True)
    assert two.stdout == one.stdout
    assert (tmp_path / "one" / "sweep.csv").read_bytes() == (tmp_path / "two" / "sweep.csv").read_bytes()
    refused = subprocess.run([sys.executable, *torchrun, *command], **form, check=False)
    assert "--store: not given, but torchrun started 2 processes" in refused.stderr
