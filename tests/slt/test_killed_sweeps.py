"""Sweeps that are killed: their store is free, and they end as if they had not been."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from slt.store import EstimateStore

ROOT = Path(__file__).parents[2]
HOLD_AND_FORK = """
import os, sys, time
from slt.store import EstimateStore

store = EstimateStore(sys.argv[1])
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_killed_sweep_forked_does_not_keep_its_store(tmp_path):
    command = [sys.executable, "-c", HOLD_AND_FORK, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with pytest.raises(ValueError, match="in use by another process"):
                EstimateStore(tmp_path)
            process.kill()
            process.wait()
            os.kill(child, 0)  # it lives
            with EstimateStore(tmp_path) as store:
                assert store.load("none") is None
        finally:
            os.kill(child, signal.SIGKILL)


SHORT_DIGITS = ["--sampler", "mala", "--num-draws", "30", "--num-warmup", "5", "--num-chains", "2"]


@pytest.mark.slow
def test_killed_at_three_moments_it_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    """24 checkpoints of the digits; ``kill -9`` once 1, 8 and 15 estimates are there, and a random while later."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    digits = importlib.import_module("digits")
    for step, model in digits.train(240):
        if step % 10 == 0 and step:
            save_file(model.state_dict(), tmp_path / f"step-{step:03d}.safetensors")

    def start(folder):
        command = [sys.executable, "-m", "slt", "sweep", "examples/digits.py:task", str(tmp_path / "step-*")]
        return subprocess.Popen(
            [*command, "--store", str(folder), *SHORT_DIGITS], cwd=ROOT, stdout=subprocess.DEVNULL
        )  # fmt: skip

    assert start(tmp_path / "whole").wait() in (0, 3)
    generator = np.random.default_rng(0)
    estimates = tmp_path / "killed" / "estimates"
    for finished in (1, 8, 15):
        process = start(tmp_path / "killed")
        while len(list(estimates.glob("*.nc"))) < finished and process.poll() is None:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 1))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in estimates.glob("*.nc") if "partial" not in path.name}
    assert start(tmp_path / "killed").wait() in (0, 3)
    for name in ("sweep.csv", "sweep.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    after = {path.name: path.stat().st_mtime_ns for path in estimates.iterdir()}
    assert len(after) == 24
    assert before.items() <= after.items()  # no finished one was made again
