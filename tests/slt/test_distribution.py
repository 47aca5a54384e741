"""One estimate in several processes: the numbers of one process, and refusals."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

import slt
from slt.ranks import all_processes
from tests.jobs import FITTED
from tests.processes import finish
from tests.slt.models import fitted_regression, half_squares

multiprocessing.set_forkserver_preload([__name__])


def regression():
    """A model whose weights are the same in every process: the last digits of a solution depend on where it lies."""
    model, data, _ = fitted_regression()
    with torch.no_grad():
        model.weight.copy_(model.weight.round(decimals=6))
    return model, data


def on_full_data(group):
    """With a step size from a pilot, in rounds until the interval is narrow."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.randn(60, 2, dtype=torch.float64)
    data = (x, model(x).detach() + 0.1 * torch.randn(60, 1, dtype=torch.float64))
    return slt.estimate_llc(model, data, half_squares, sampler="mala", budget=400, block_size=3, process_group=group)


def by_minibatches(group):
    model, data = regression()
    return slt.estimate_llc(
        model, data, half_squares, sampler="sgld", batch_size=20, num_chains=4, num_warmup=20, num_draws=30,
        block_size=1, keep_positions=True, process_group=group,
    )  # fmt: skip


def one_after_another(group):
    model, data = regression()
    model, data = model.float(), tuple(part.float() for part in data)
    return slt.estimate_llc(
        model, data, half_squares, engine="in_place", num_chains=3, num_draws=20, num_warmup=10, process_group=group
    )


def cooled(group):
    """Minibatch chains whose step is lowered every forty steps, by how warm all of them are."""
    model, data = regression()

    def lowering(kernel, energy, bias, fraction):
        assert energy.shape[1] == 4
        return float(0.8 + 0.1 * (energy.mean() + bias).tanh())

    with patch.multiple(slt.rounds, HEAT_STEPS=40, lowering=lowering):
        found = slt.estimate_llc(
            model, data, half_squares, sampler="baoab", batch_size=20, num_chains=4, num_warmup=100, num_draws=100,
            block_size=1, process_group=group,
        )  # fmt: skip
    assert len(found.trace.configuration["earlier_settings"]) == 2
    return found


ESTIMATES = (on_full_data, by_minibatches, one_after_another, cooled)


def content(estimate):
    record = {name: value for name, value in estimate.to_dict().items() if name != "seconds"}
    return {
        "record": repr({name: value for name, value in record.items() if name != "config"}),
        "loss": torch.from_numpy(estimate.trace.loss),
        "positions": estimate.trace.positions,
        "config": {name: value for name, (value, _) in estimate.config.items()},
    }


def shared(rank, folder):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=Path(folder, "port").read_text(),
        TORCHELASTIC_USE_AGENT_STORE="True",  # the test has the store, and with it the port
        TORCHELASTIC_RESTART_COUNT="0",  # which torch 2.4 wants to know then
    )  # fmt: skip
    with all_processes() as group:
        found = [content(estimate(group)) for estimate in ESTIMATES]
        torch.save(found, f"{folder}/{rank}.pt")
        model, data, _ = fitted_regression()
        with pytest.raises(ValueError, match="save_to: .*none of its processes has the states"):
            slt.estimate_llc(model, data, half_squares, save_to=f"{folder}/run.pt", process_group=group)
        with pytest.raises(ValueError, match="sampler: 'replica_exchange' .*in blocks or processes"):
            slt.estimate_llc(model, data, half_squares, sampler="replica_exchange", process_group=group)
        x, y = data
        for unlike in ((x, y + rank), (x[rank:], y[rank:])):
            with pytest.raises(ValueError, match=r"data, loss_fn: in process 1 they are not those of the first \("):
                slt.estimate_llc(model, unlike, half_squares, process_group=group)
        moved, _, _ = fitted_regression()
        with torch.no_grad():
            moved.weight.add_(1e-2 * rank)
        with pytest.raises(ValueError, match=r"first \(.*other weights\)"):
            slt.estimate_llc(moved, data, half_squares, process_group=group)
        # of one process alone, before any draw: the others neither wait nor take it for their next call
        broken = (x * (float("nan") if rank else 1.0), y)
        with pytest.raises(slt.arguments.WeightsError, match="losses are not finite at the anchor"):
            slt.estimate_llc(model, broken, half_squares, process_group=group)
        even = slt.estimate_llc(
            model, data, half_squares, num_chains=3, num_warmup=60, num_draws=20, process_group=group
        )
        assert even.config["block_size"] == (2, "an even share of 2 processes")
        assert even.trace.loss.shape == (3, 20)
    assert not dist.is_initialized()


def test_two_processes_estimate_what_one_does(tmp_path):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # on whatever port is free
    Path(tmp_path, "port").write_text(str(store.port))
    finish(shared, tmp_path, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = [content(estimate(None)) for estimate in ESTIMATES]
    finally:
        torch.set_num_threads(threads)
    for rank in (0, 1):
        for one, other in zip(alone, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            assert one["record"] == other["record"]
            assert one["config"] == other["config"]
            assert torch.equal(one["loss"], other["loss"])
            assert one["positions"] is None or torch.equal(one["positions"], other["positions"])


def test_blocks_are_recorded():
    model, data, _ = fitted_regression()
    few = {"num_warmup": 60, "num_draws": 10}
    assert slt.estimate_llc(model, data, half_squares, **few).config["block_size"] == (8, "all together")
    assert slt.estimate_llc(model, data, half_squares, block_size=3, **few).config["block_size"] == (3, "asked for")
    with pytest.raises(ValueError, match="block_size: 0"):
        slt.estimate_llc(model, data, half_squares, block_size=0)


@pytest.mark.slow
def test_torchrun_spreads_the_chains(tmp_path):
    (tmp_path / "job.py").write_text(FITTED)
    command = ["-m", "slt", "estimate", "job.py:task", "--json", "--num-draws", "10", "--block-size", "4"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = [
        subprocess.run(
            [sys.executable, *start, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for start in ([], torchrun)
    ]
    one, two = (
        [line for line in each.stdout.splitlines() if '"seconds"' not in line and " processes" not in line]
        for each in told
    )
    assert [each.returncode for each in told] == [3, 0]  # torchrun would take a problem's for a failure
    assert one == two, told[1].stderr
    assert len(one) > 10
