"""What is written down gives what the loss itself gives, bit by bit, or the loss itself goes on to serve."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import slt
from slt import known
from slt.engines import batched, recording
from slt.engines.recording import Notes, NotFixedError, Recording, difference, same_bits, write_down
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


def calls_after(losses_of, count=60):
    """How often a function was called in so many calls of its recording, whose results are held against it."""
    function = Counted(losses_of)
    recorded = Recording(function)
    for position in positions(count):
        loss, gradient = recorded(position, None, 0.5)
        expected = Counted(losses_of)(position, None, 0.5)
        assert torch.equal(loss, expected[0])
        assert torch.equal(gradient, expected[1])
        gradient.mul_(7.0)  # it belongs to the caller
    return function.calls


def smooth(position, data):
    return (position.sin() * position.roll(1, 1)).square().sum(1)


def test_after_some_calls_the_function_is_called_for_checks_alone():
    # before, at the call at which it is written down and to write it down, at four more, and every tenth of 56
    assert calls_after(smooth) == 3 + 2 + 4 + 5


def test_what_is_no_constant_is_not_written_down_as_one():
    """Fixed as the losses are at one position, and for a check there."""
    state, state_of_two = torch.zeros(()), torch.ones(2, 2)
    (position,) = positions(1)
    for losses_of, why in (
        (lambda w: w.square().sum(1) + 0.0 * torch.rand(4, dtype=torch.float64), "rand"),
        (lambda w: w.square().sum(1) * float(w.detach().sum()), "_local_scalar_dense"),
        (lambda w: w.square().sum(1) * len(w.detach()[w.detach() > 0]), "index"),
        (lambda w: w.square().sum(1) * state.add_(1), "writes to a constant"),
        (lambda w: w.square().sum(1) * state_of_two[0].mul_(2).sum(), "writes to a constant"),
        (lambda w: w.square().sum(1) * torch.ones(4).unsqueeze_(0)[0].to(w), "unsqueeze_"),
        (lambda w: w.square().sum(1) * torch.tensor([1.0, 2.0]).add_(1)[0].to(w), "writes to a constant"),
        (lambda w: w.detach().mul_(1.0).square().sum(1), "writes to a constant or an argument"),
    ):
        with pytest.raises(NotFixedError, match=why), Notes([position]):
            losses_of(position)
        assert write_down(lambda losses_of=losses_of: [losses_of(position)], [position]) is None
    assert write_down(lambda: [position.square().relu_().sum(1)], [position]) is not None


def test_what_takes_long_or_much_memory_is_not_written_down(monkeypatch):
    (position,) = positions(1)

    def long():
        return [sum((position * position for _ in range(40)), start=position)]

    assert torch.equal(write_down(long, [position])(position)[0], long()[0])
    monkeypatch.setattr(recording, "MOST_OPERATIONS", 60)
    assert write_down(long, [position]) is None
    monkeypatch.setattr(recording, "MOST_OPERATIONS", 100)
    monkeypatch.setattr(recording, "MOST_BYTES", 50 * position.nbytes)
    assert write_down(long, [position]) is None


def test_torchs_own_functions_stand_for_its_own_operations_alone():
    @torch.library.custom_op("slt_test::exp", mutates_args=())
    def bounded(x: torch.Tensor) -> torch.Tensor:
        return x.clamp(max=2.0).exp()

    program = write_down(lambda: [bounded(torch.ones(3))], [])
    assert program is not None
    (near,) = torch.ones(1, 3)
    program = write_down(lambda: [bounded(near)], [near])
    assert torch.equal(program(5 * near)[0], torch.full((3,), 2.0).exp())


def test_attention_that_drops_nothing_is_written_down():
    query = torch.randn(2, 1, 5, 4)

    def attention(dropout):
        return [nn.functional.scaled_dot_product_attention(query, query, query, dropout_p=dropout)]

    assert torch.equal(write_down(lambda: attention(0.0), [query])(query)[0], attention(0.0)[0])
    assert write_down(lambda: attention(0.5), [query]) is None


def test_numbers_that_python_reads_past_torch_are_found():
    def read(position, _):
        return position.square().sum(1) * position.detach().numpy().sum()

    assert calls_after(read) == 61
    recorded, (first, *others) = Recording(Counted(read)), positions(4)
    for _ in range(30):  # which does not tell
        recorded(first, None, 1.0)
    for position in others:
        assert torch.equal(recorded(position, None, 1.0)[0], Counted(read)(position, None, 1.0)[0])


def test_the_form_tells_shapes_and_strides_from_each_other():
    base = torch.randn(3, 4, dtype=torch.float64)
    recorded = Recording(Counted(lambda position, data: position.square().sum(1) * data[0].sum() / data.shape[0]))
    for index in range(60):
        position = base.T if index % 2 else base.T.contiguous()
        for data in (torch.ones(2, 3), torch.ones(3, 2), torch.ones(2, 3).T):
            loss, gradient = recorded(position, data, 1.0)
            expected = recorded.function(position, data, 1.0)
            assert same_bits(loss, expected[0])
            assert same_bits(gradient, expected[1])
    assert len(recorded._recorded) == 6
    assert None not in recorded._recorded.values()


def test_what_the_same_bits_are():
    values = torch.tensor([[1.0, torch.nan], [2.0, 3.0]])
    assert same_bits(values, values.clone())
    assert not same_bits(values, values.T.contiguous().T)
    assert not same_bits(values, values.double())
    assert not same_bits(values, values.nan_to_num())
    assert not same_bits(values, torch.nextafter(values, torch.tensor(9.0)))


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
    assert recorded.differed[1] == pytest.approx(2 * recorded.differed[0])


def test_a_loss_that_changes_on_the_way_is_named():
    model, data, _ = perceptron()
    calls = [0]

    def changing(model, batch):
        calls[0] += 1
        return mean_squared(model, batch) * (1.0 if calls[0] < 50 else 1.5)

    few = {"num_draws": 600, "num_warmup": 20, "num_chains": 2, "seed": 0, "sampler": "sgld", "step_size": 1e-4}
    named = slt.estimate_llc(model, data, changing, progress=False, **few).verdict.names
    assert "stochastic_forward" in named
    named = slt.estimate_llc(model, data, mean_squared, progress=False, **few).verdict.names
    assert "stochastic_forward" not in named


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
    assert len(recorded._recorded) == 4
    assert None not in recorded._recorded.values()


def test_chains_that_are_lost_stay_so():
    recorded = Recording(Counted(lambda position, _: position.sqrt().sum(1)))
    for position in positions(30):
        position = position.abs()
        position[1] = -1.0
        loss, gradient = recorded(position, None, 1.0)
        assert loss.isnan().tolist() == [False, True, False, False]
        assert gradient[1].isnan().all()
    assert None not in recorded._recorded.values()


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
                assert bool(kind._recorded) == (threshold == 3)
                assert None not in kind._recorded.values()
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
        assert None not in potential.engine._shared._recorded.values()


class Scaled(nn.Module):
    """A layer with a frozen weight, a buffer and a number."""

    def __init__(self):
        super().__init__()
        self.layer, self.frozen = nn.Linear(3, 2).double(), nn.Linear(2, 2).double().requires_grad_(False)
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.factor = 1.0

    def forward(self, x):
        return self.frozen(self.layer(x)) * self.scale * self.factor


def test_what_is_constant_is_read_where_it_is_and_anew_when_the_posterior_is_entered():
    model, data = Scaled(), (torch.randn(20, 3).double(), torch.randn(20, 2).double())

    def loss(potential):
        for _ in range(20):
            found, _ = potential.loss_and_grad(position)
        assert None not in potential.engine._shared._recorded.values()
        assert torch.equal(found, potential.engine._shared.function(position, potential.engine.data.tree, 1.0)[0])
        return float(found[0])

    potential = posterior(model, data, mean_squared, engine="batched")
    position = potential.anchor.repeat(2, 1)
    with potential:
        before = loss(potential)
        with torch.no_grad():
            model.frozen.weight.mul_(2.0)
            model.scale.mul_(3.0)
        in_place = loss(potential)
        assert in_place != before
    model.scale, model.factor = model.scale * 0.5, 7.0
    with potential:
        assert loss(potential) != in_place


def test_a_program_is_not_kept_where_it_fails():
    recorded = Recording(Counted(smooth))
    for position in positions(20):
        recorded(position, None, 1.0)
    ((form, good),) = recorded._recorded.items()
    assert good.trials == recording.CHECKED_AT_FIRST
    good.program = None
    loss, _ = recorded(position, None, 1.0)
    assert torch.equal(loss, smooth(position, None))
    assert recorded._recorded[form] is None
    assert recorded.differed is None


def test_two_losses_that_differ_are_found_beside_chains_that_are_lost():
    losses = torch.tensor([torch.nan, torch.inf, 1.0, 2.0])
    assert difference(losses, losses.clone()) is None
    assert difference(losses, losses * (1 + 1e-6)) is None
    assert difference(losses, losses + torch.tensor([0.0, 0.0, 0.0, 0.1])) == pytest.approx((2.0, 2.1))
    assert difference(losses, torch.tensor([torch.nan, 7.0, 1.0, 2.0])) == (torch.inf, 7.0)


def test_no_more_than_so_many_forms_are_remembered(monkeypatch):
    monkeypatch.setattr(recording, "MOST_FORMS", 3)
    recorded = Recording(Counted(lambda position, data: position.square().sum(1) * data[1]))
    for position in positions(20):
        for number in range(6):
            assert torch.equal(recorded(position, [position, number], 1.0)[0], position.square().sum(1) * number)
    assert len(recorded._calls) == len(recorded._recorded) == 3


def test_entries_that_are_taken_by_their_numbers_are_written_down():
    values, places = torch.randn(4, 3), torch.tensor([2, 0, 1, 1])
    program = write_down(lambda: [values[torch.arange(4), places]], [values])
    assert torch.equal(program(2 * values)[0], 2 * values[torch.arange(4), places])


def test_autocast_is_another_form():
    recorded = Recording(Counted(lambda position, _: (position @ torch.ones(3, 5)).sum(1)))
    for position in positions(12):
        position = position.float()
        plain = recorded(position, None, 1.0)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = recorded(position, None, 1.0)[0]
        assert plain.dtype == torch.float32
        assert rounded.dtype == torch.bfloat16
    assert len(recorded._recorded) == 2


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
