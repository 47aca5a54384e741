"""What is written down gives what the loss itself gives, bit by bit, or the loss itself goes on to serve."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import slt
from slt import known
from slt.engines import batched, recording
from slt.engines.recording import Recording
from tests.slt.models import convolution, mean_squared, perceptron, tied_transformer
from tests.slt.test_posterior import posterior


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(recording, "CALLS_UNTIL_RECORDED", 3)
    monkeypatch.setattr(recording, "CHECKED_EVERY", 10)


class Counted:
    """A function of positions and data that counts its calls."""

    def __init__(self, losses_of):
        self.losses_of, self.calls = losses_of, 0

    def __call__(self, position, data, weight):
        self.calls += 1
        with torch.enable_grad():
            leaf = position.detach().requires_grad_()
            losses = self.losses_of(leaf, data) * weight
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), gradient


def positions(count, chains=4, dim=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(chains, dim, dtype=torch.float64, generator=generator) for _ in range(count)]


def calls_after(losses_of, count=60, data=None):
    """How often a function was called in so many calls of its recording, whose results are held against it."""
    function = Counted(losses_of)
    recorded = Recording(function)
    for position in positions(count):
        loss, gradient = recorded(position, data, 0.5)
        expected = Counted(losses_of)(position, data, 0.5)
        assert torch.equal(loss, expected[0])
        assert torch.equal(gradient, expected[1])
        gradient.mul_(7.0)  # it belongs to the caller
    return function.calls


def smooth(position, data):
    return (position.sin() * position.roll(1, 1)).square().sum(1)


def test_after_some_calls_the_function_is_called_for_checks_alone():
    assert calls_after(smooth) == 3 + 1 + 4 + 5  # before, to write it down, at first, and every tenth of 57


def test_a_gradient_that_is_a_constant_is_not_handed_out_twice():
    slope = torch.arange(3, dtype=torch.float64)
    assert calls_after(lambda position, _: position @ slope) <= 60


@pytest.mark.parametrize(
    "losses_of",
    [
        lambda position, _: position.square().sum(1) + 0.0 * torch.rand(4, dtype=torch.float64),
        lambda position, _: position.square().sum(1) * (2.0 if float(position.detach().sum()) > 0 else 1.0),
        lambda position, _: position.square().sum(1) * len(position.detach()[position.detach() > 0]),
    ],
)
def test_what_draws_or_reads_numbers_is_not_written_down(losses_of):
    assert calls_after(losses_of) == 61


def test_numbers_that_python_reads_past_torch_are_found_at_once():
    assert calls_after(lambda position, _: position.square().sum(1) * position.detach().numpy().sum()) == 61


def test_a_loss_that_changes_outside_is_found_at_the_next_check():
    factor = [1.0]
    function = Counted(lambda position, _: factor[0] * position.square().sum(1))
    recorded = Recording(function)
    for index, position in enumerate(positions(60)):
        if index == 31:
            factor[0] = 2.0
        loss, _ = recorded(position, None, 1.0)
        wrong = not torch.equal(loss, factor[0] * position.square().sum(1))
        assert not wrong or index in range(31, 42)
    assert not wrong


def test_pieces_of_one_form_are_arguments_and_what_was_read_off_the_first_is_found_at_the_second():
    first, second = (torch.full((2, 3), value, dtype=torch.float64) for value in (1.0, 2.0))

    def with_data(position, data):
        return (position.unsqueeze(1) - data).square().sum((1, 2))

    def read(position, data):
        return with_data(position, data) * float(data.numpy().mean())

    for losses_of, most in ((with_data, 20), (read, 61)):
        function = Counted(losses_of)
        recorded = Recording(function)
        for index, position in enumerate(positions(60)):
            data = (first, second)[index % 2]
            loss, gradient = recorded(position, data, 1.0)
            expected = Counted(losses_of)(position, data, 1.0)
            assert torch.equal(loss, expected[0])
            assert torch.equal(gradient, expected[1])
        assert function.calls <= most
    assert function.calls == 61


def test_every_form_is_written_down_by_itself():
    function = Counted(smooth)
    recorded = Recording(function)
    for chains in (4, 3, 4):
        for position in positions(12, chains=chains):
            loss, _ = recorded(position, None, 1.0)
            assert torch.equal(loss, smooth(position, None))
    for position in positions(12):
        loss, _ = recorded(position, None, 0.25)
        assert torch.equal(loss, smooth(position, None) * 0.25)
        assert recorded(position.float(), None, 1.0)[0].dtype == torch.float32
    assert len(recorded._programs) == 4


def test_chains_that_are_lost_stay_so():
    recorded = Recording(Counted(lambda position, _: position.sqrt().sum(1)))
    for position in positions(30):
        position = position.abs()
        position[1] = -1.0
        loss, gradient = recorded(position, None, 1.0)
        assert loss.isnan().tolist() == [False, True, False, False]
        assert gradient[1].isnan().all()
    assert None not in recorded._programs.values()


@pytest.mark.parametrize("limit", [batched.ACTIVATION_LIMIT, 20_000])
@pytest.mark.parametrize("make", [perceptron, convolution, tied_transformer])
def test_models_of_all_kinds(make, limit, monkeypatch):
    monkeypatch.setattr(batched, "ACTIVATION_LIMIT", limit)
    model, data, loss_fn = make()
    model.eval()
    found = []
    for threshold in (3, 10**9):
        monkeypatch.setattr(recording, "CALLS_UNTIL_RECORDED", threshold)
        with posterior(model, data, loss_fn, engine="batched", num_chains=2) as potential:
            generator, anchor = torch.Generator().manual_seed(0), potential.anchor
            results = []
            batches = potential.minibatches(10)(torch.Generator().manual_seed(1), 2)
            for _ in range(12):
                position = anchor + 0.1 * torch.randn(2, len(anchor), dtype=anchor.dtype, generator=generator)
                results += [*potential.loss_and_grad(position), *potential.loss_and_grad(position, next(batches))]
            for kind in (potential.engine._shared, potential.engine._own):
                programs = list(kind._programs.values())
                assert bool(programs) == (threshold == 3)
                assert all(programs)
        found.append(results)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("sampler", ["hmc", "sgld"])
def test_an_estimate_is_the_same_to_the_last_bit(sampler, monkeypatch):
    model, data, _ = perceptron()
    few = {"num_draws": 20, "num_warmup": 20, "num_chains": 2, "seed": 0, "sampler": sampler, "progress": False}
    losses = []
    for threshold in (3, 10**9):
        monkeypatch.setattr(recording, "CALLS_UNTIL_RECORDED", threshold)
        losses.append(slt.estimate_llc(model, data, mean_squared, **few).trace.loss)
    assert np.array_equal(*losses)


def test_a_loss_without_data(monkeypatch):
    case = known.case("poly_xy2")
    with posterior(case.build(), None, case.loss_fn) as potential:
        for position in positions(30, dim=potential.dim):
            loss, _ = potential.loss_and_grad(position)
            assert torch.equal(loss, potential.engine._shared.function(position, None, 1.0)[0])
        assert all(potential.engine._shared._programs.values())


def test_frozen_weights_and_buffers_are_read_where_they_are():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    model[0].weight.requires_grad_(False)
    data = (torch.randn(20, 3).double(), torch.randn(20, 2).double())
    with posterior(model, data, mean_squared, engine="batched") as potential:
        position = potential.anchor.repeat(2, 1)
        for _ in range(10):
            before, _ = potential.loss_and_grad(position)
        with torch.no_grad():
            model[0].weight.mul_(2.0)
        after, _ = potential.loss_and_grad(position)
        assert all(potential.engine._shared._programs.values())
        assert torch.equal(after, potential.engine._shared.function(position, potential.engine.data.tree, 1.0)[0])
        assert not torch.equal(after, before)


def test_what_others_write_down_is_the_function_itself():
    case = known.case("poly_xy2")
    with posterior(case.build(), None, case.loss_fn) as potential:
        place = positions(1, dim=potential.dim)[0]
        for _ in range(12):
            expected = potential.loss_and_grad(place)
        graph = make_fx(lambda there: potential.loss_and_grad(there))(place)
        for _ in range(12):  # the tenth of these would be a check
            assert torch.equal(graph(place)[0], expected[0])
            make_fx(lambda there: potential.loss_and_grad(there))(place)
        assert torch.equal(graph(2 * place)[0], potential.loss_and_grad(2 * place)[0])
