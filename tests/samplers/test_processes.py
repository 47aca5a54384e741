"""Runs that processes share: the draws of one process bit by bit, errors and losses of one process told by all."""

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

import samplers
from samplers.processes import Processes
from tests.processes import finish, started
from tests.samplers.laws import Quadratic

CURVATURE = (1.0, 4.0, 0.5)
multiprocessing.set_forkserver_preload([__name__])


class Batches:
    """Offsets of the loss's minimum, drawn from the block's own stream."""

    def __call__(self, generator, num_chains):
        while True:
            yield torch.randn(num_chains, 3, generator=generator, dtype=torch.float64)


class Shifted(Quadratic):
    """A quadratic whose minimum is moved by the batch."""

    def loss_and_grad(self, position, batch=None):
        return super().loss_and_grad(position if batch is None else position - 0.1 * batch)


def exact_run(group):
    """Paths with step sizes from a pilot, whose chains start apart, in three blocks."""
    target = Quadratic(CURVATURE, n_beta=20.0)
    run = samplers.Run(
        samplers.hmc(0.1, num_steps=3), target, target.anchor, num_chains=5, num_warmup=4, block_size=2,
        keep_positions=True, process_group=group,
    )  # fmt: skip
    run.adapt(samplers.in_turn(samplers.accept_over_scales(num_steps=20), samplers.disperse(num_steps=2)))
    run.draw(7)
    run.draw(9)
    return run.trace()


def stochastic_run(group):
    target = Shifted(CURVATURE)
    return samplers.sample(
        samplers.sgld(0.05), target, target.anchor, batches=Batches(), num_chains=4, num_warmup=3, num_draws=20,
        thinning=2, block_size=1, process_group=group,
    )  # fmt: skip


class Cliff(Quadratic):
    """A quadratic that is no number beyond a place, where half of the chains start."""

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position)
        return torch.where(position[..., 0] > 5, torch.nan, loss), gradient


def diverging_run(group):
    target = Cliff(CURVATURE)
    start = torch.tensor([0.0, 6.0, 6.0, 0.0], dtype=torch.float64)[:, None] * torch.ones(3, dtype=torch.float64)
    return samplers.sample(
        samplers.sgld(0.01), target, start, num_chains=4, num_warmup=0, num_draws=5, block_size=2,
        keep_positions=True, process_group=group,
    )  # fmt: skip


RUNS = (exact_run, stochastic_run, diverging_run)


def content(trace):
    return {
        "statistics": {name: torch.from_numpy(values) for name, values in trace.statistics.items()},
        "warmup": {name: torch.from_numpy(values) for name, values in trace.warmup.items()},
        "positions": trace.positions,
        "diverged": [tuple(each) for each in trace.diverged],
        "num_gradients": trace.num_gradients,
        "configuration": repr(trace.configuration),
    }


def start(rank, count, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)


def shared_runs(rank, folder):
    start(rank, 4, folder)
    pair = dist.new_group([0, 1])
    for number, group in ((2, pair), (4, dist.group.WORLD)):
        if rank < number:
            torch.save([content(run(group)) for run in RUNS], f"{folder}/{number}_{rank}.pt")
    if rank == 2:  # not of the pair
        with pytest.raises(ValueError, match="process_group: this process does not belong"):
            Processes(pair)
    dist.barrier()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[name])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(1e300), other[name].nan_to_num(1e300)), name
        else:
            assert value == other[name], name


def test_two_and_four_processes_draw_what_one_does(tmp_path):
    finish(shared_runs, tmp_path, 4)
    alone = [content(run(None)) for run in RUNS]
    assert [len(each["diverged"]) for each in alone] == [0, 0, 2]
    for count in (2, 4):
        for rank in range(count):
            for one, other in zip(alone, torch.load(tmp_path / f"{count}_{rank}.pt"), strict=True):
                assert_same(one, other)


class Failing(Quadratic):
    """A quadratic that cannot be computed in the second process."""

    def loss_and_grad(self, position, batch=None):
        if dist.get_rank() == 1:
            raise FloatingPointError("no loss here")
        return super().loss_and_grad(position)


def failing(rank, folder):
    start(rank, 2, folder)
    target = Failing(CURVATURE)
    form = {"num_chains": 2, "num_warmup": 0, "num_draws": 3, "process_group": dist.group.WORLD}
    with pytest.raises(FloatingPointError, match="no loss here"):
        samplers.sample(samplers.sgld(0.01), target, target.anchor, **form)

    def adapt(*_):
        raise OSError("of the first")

    run = samplers.Run(samplers.mala(0.01), Quadratic(CURVATURE), target.anchor, num_chains=2, num_warmup=0,
                       process_group=dist.group.WORLD)  # fmt: skip
    with pytest.raises(OSError, match="of the first"):
        run.adapt(adapt)
    with pytest.raises(ValueError, match="shared by processes"):
        run.state_dict()


def test_an_error_of_one_process_is_that_of_all(tmp_path):
    finish(failing, tmp_path, 2)


class Killing(Quadratic):
    """A quadratic that kills the second process."""

    def loss_and_grad(self, position, batch=None):
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss_and_grad(position)


def bereft(rank, folder):
    start(rank, 2, folder)
    target = Killing(CURVATURE)
    with pytest.raises(RuntimeError, match="process_group: process 0 of 2 lost another one"):
        samplers.sample(
            samplers.sgld(0.01), target, target.anchor, num_chains=2, num_warmup=0, num_draws=3,
            process_group=dist.group.WORLD,
        )  # fmt: skip
    Path(folder, "told").touch()


def test_a_process_that_is_killed_is_told_by_the_others(tmp_path):
    processes = started(bereft, tmp_path, 2).processes
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    assert (tmp_path / "told").exists()
