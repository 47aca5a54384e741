"""A monitor of one rank in a training of several: no rank waits for another, and none trains otherwise."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from slt.callbacks import LLCMonitor
from tests.processes import finish
from tests.slt.models import half_squares

multiprocessing.set_forkserver_preload([__name__])
SHORT = {"num_draws": 10, "num_warmup": 5, "num_chains": 2, "sampler": "mala", "step_size": 1e-3}
STEPS = 3


def trained(rank, ranks, engine="auto", norm=nn.BatchNorm1d):
    """The weights and buffers after a training in which the ranks among those given make estimates."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(2, 4), norm(4), nn.Linear(4, 1))
    x, y = torch.randn(32, 2), torch.randn(32, 1)
    model = nn.parallel.DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = LLCMonitor((x, y), half_squares, every=2, engine=engine, **SHORT)
    for step in range(STEPS):
        if rank in ranks:
            monitor.step(model, step)
        optimizer.zero_grad()
        half_squares(model, (x[rank::2], y[rank::2])).mean().backward()
        optimizer.step()
    return list(inner.state_dict().values()), monitor


def watched(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    plain, _ = trained(rank, ())
    for engine in ("auto", "in_place"):
        after, monitor = trained(rank, (0,), engine)
        assert sorted(monitor.estimates) == ([0, 2] if rank == 0 else []), monitor.logged
        assert all(torch.equal(one, other) for one, other in zip(plain, after, strict=True))
    _, monitor = trained(rank, (0, 1), norm=nn.LayerNorm)  # without buffers, which each rank has for itself
    torch.save({step: found.llc for step, found in monitor.estimates.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_one_rank_of_a_wrapped_model_makes_estimates_alone(tmp_path):
    finish(watched, tmp_path, 2)
    told = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]  # where each makes them, they are the same
    assert list(told[0]) == [0, 2]
    assert told[0] == told[1]


@pytest.mark.parametrize("compiled", [False, True])
def test_the_estimate_is_that_of_the_module_inside(compiled, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        inner, data = nn.Linear(2, 1), (torch.randn(32, 2), torch.randn(32, 1))
        wrapped = nn.parallel.DistributedDataParallel(inner)
        found = LLCMonitor(data, half_squares, every=1, parameters="weight", **SHORT).step(
            torch.compile(wrapped) if compiled else wrapped, 0
        )
    finally:
        dist.destroy_process_group()
    alone = LLCMonitor(data, half_squares, every=1, parameters="weight", **SHORT).step(inner, 0)
    assert found is not None
    assert alone is not None
    assert found.llc == alone.llc
