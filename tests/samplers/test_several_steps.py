"""Steps that are taken several at once: which batches they get, and where a run stops among them."""

import pytest
import torch

from samplers.capture import STEPS_BEFORE, CapturedStep, take
from samplers.kernel import Info
from samplers.sgld import sgld
from slt.data import TensorData
from tests.samplers.laws import Quadratic

CPU = torch.device("cpu")


class Replayed:
    """In the place of a graph: takes the steps, and counts its replays."""

    def __init__(self, kernel, potential, num_steps=1):
        self.kernel, self.potential, self.num_steps, self.replays = kernel, potential, num_steps, 0

    def replay(self, state, batches, generator):
        assert len(batches) == self.num_steps
        self.replays += 1
        return [self.kernel.step_(state, self.potential, batch, generator) for batch in batches]


def rows(potential):
    """A potential that keeps the rows of every batch that it sees."""
    seen = []
    whole = potential.loss_and_grad

    def loss_and_grad(position, batch=None):
        seen.append(None if batch is None else batch.rows.tolist())
        return whole(position)

    potential.loss_and_grad = loss_and_grad
    return seen


@pytest.mark.parametrize(("batch_size", "size"), [(None, 8), (5, 8), (9, 5), (14, 7), (60, 2)])
def test_steps_taken_at_once_are_the_steps_one_by_one(batch_size, size):
    """Epochs of 20, 11, 7 and 1 batches; that of the next epoch is drawn after the noise of the last step of this."""
    kernel, data = sgld(0.1), TensorData(torch.arange(100.0), CPU)
    drawn = []
    for several in (False, True):
        potential = Quadratic((1.0, 2.0, 3.0))
        seen, generator = rows(potential), torch.Generator().manual_seed(0)
        state = kernel.init(torch.zeros(4, 3, dtype=torch.float64), potential)
        batches = None if batch_size is None else data.minibatches(batch_size)(generator, 4)
        step_ = kernel.step_
        if several:
            step_ = CapturedStep(kernel, potential, 64)
            step_._graph = Replayed(kernel, potential)
            step_._several = Replayed(kernel, potential, size)
        infos = []
        for count in (64, 1, 30, 33):
            take(step_, state, potential, batches, generator, count, infos)
        assert len(infos) == 128
        drawn.append((seen, state.position.clone(), torch.stack([info.loss for info in infos])))
        if several and batch_size == 60:
            assert step_._several.replays == 0
        elif several:
            assert step_._several.replays * size > 128 / 2
    assert drawn[0][0] == drawn[1][0]
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert torch.equal(drawn[0][2], drawn[1][2])


def test_as_many_are_one_graph_as_make_an_epoch_the_fewest_replays():
    step_ = CapturedStep(sgld(0.1), Quadratic((1.0,)), 64)
    state = sgld(0.1).init(torch.zeros(2, 1, dtype=torch.float64), step_.potential)
    assert step_._size(state) == 1
    step_._graph, step_._singles = Replayed(step_.kernel, step_.potential), STEPS_BEFORE
    for epoch, size in {7: 7, 8: 8, 10: 5, 11: 5, 78: 7, 1000: 8}.items():
        step_._epoch = epoch
        assert step_._size(state) == size


def test_an_error_among_steps_keeps_what_was_taken_before():
    def step_(state, potential, batch, generator):
        if len(infos) == 3:
            raise KeyboardInterrupt
        return Info(*torch.zeros(4, 1))

    infos = []
    with pytest.raises(KeyboardInterrupt):
        take(step_, None, None, None, None, 10, infos)
    assert len(infos) == 3
