"""What every kernel must meet, whatever its law: protocol, shapes, seeds, chains apart, saving, limits, refusals."""

import importlib
import inspect
import io
import itertools

import numpy as np
import pytest
import torch

import samplers
from samplers.state import state_constants, state_tensors
from tests.samplers.every_kernel import EVERY_KERNEL, EXACT, RESTING, STOCHASTIC
from tests.samplers.laws import Quadratic
from tests.statistics import assert_independent_mean

noise_module = importlib.import_module("samplers.noise")
SETTINGS = {"num_warmup": 5, "keep_positions": True}


@pytest.fixture(params=EVERY_KERNEL)
def entry(request):
    return EVERY_KERNEL[request.param]


def new_run(entry, *, num_chains=4, target=None, initial=None, kernel=None, **changes):
    target = target or Quadratic((1.0, 2.0, 3.0))
    return samplers.Run(
        kernel or entry.make(entry.step_size),
        entry.target(num_chains, target),
        target.anchor if initial is None else initial,
        num_chains=num_chains * entry.rungs,
        **{**SETTINGS, **changes},
    )


def drawn(entry, num_draws=40, **changes):
    run = new_run(entry, **changes)
    run.draw(num_draws)
    return run.trace()


def assert_equal_traces(one, other):
    assert torch.equal(one.positions, other.positions)
    for name, values in one.statistics.items():
        np.testing.assert_array_equal(values, other.statistics[name])
        np.testing.assert_array_equal(one.warmup[name], other.warmup[name])
    assert one.num_gradients == other.num_gradients
    assert one.configuration == other.configuration


def test_a_kernel_is_made_again_from_its_record(entry):
    kernel = entry.make(entry.step_size)
    assert getattr(samplers, kernel.name).__module__.startswith("samplers.")
    again = kernel.factory(**kernel.settings)
    assert (again.name, again.settings.keys()) == (kernel.name, kernel.settings.keys())
    assert set(kernel.settings) == set(inspect.signature(getattr(samplers, kernel.name)).parameters)
    changed = kernel.tune(step_size=0.03)
    assert (changed.name, changed.exact, changed.gradients_per_step) == (
        kernel.name,
        kernel.exact,
        kernel.gradients_per_step,
    )
    assert "0.03" in str(_settings(changed))


def _settings(kernel):
    nested = kernel.settings.get("inner")
    return {**kernel.settings, "inner": nested and nested.settings}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(entry, dtype):
    target = Quadratic((1.0, 2.0, 3.0))
    target.h, target.rotation, target.anchor = (x.to(dtype) for x in (target.h, target.rotation, target.anchor))
    target.localizer = samplers.GaussianLocalizer(target.anchor, 1.0)
    potential, rows = entry.target(4, target), 4 * entry.rungs
    kernel = entry.make(entry.step_size)
    state = kernel.init(target.anchor.expand(rows, -1).clone(), potential)
    for _ in range(3):
        info = kernel.step_(state, potential, None, torch.Generator().manual_seed(0))
    assert state.position.shape == (rows, 3)
    assert state.position.dtype == dtype
    assert {part.shape for part in info} == {(rows,)}
    assert all(bool(torch.isfinite(part).all()) for part in info)
    assert bool(((info.acceptance_rate >= 0) & (info.acceptance_rate <= 1)).all())
    if kernel.exact:
        assert not info.discretization_bias.any()
    else:
        assert bool((info.acceptance_rate == 1).all())


def test_a_seed_repeats_bitwise_and_another_does_not(entry):
    first, again, other = (drawn(entry, seed=seed) for seed in (0, 0, 1))
    assert_equal_traces(first, again)
    assert not torch.equal(first.positions, other.positions)


def test_the_record_of_a_draw_is_that_of_its_position(entry):
    trace, target = drawn(entry, thinning=3), Quadratic((1.0, 2.0, 3.0))
    flat = trace.positions.flatten(0, 1)
    np.testing.assert_allclose(trace.loss.ravel(), target.loss_and_grad(flat)[0].numpy(), rtol=1e-10)
    np.testing.assert_allclose(
        trace.statistics["localization_energy"].ravel(), target.localizer.energy(flat).numpy(), rtol=1e-10
    )


def test_thinning_keeps_every_kth_draw_of_the_same_chain(entry):
    every, third = drawn(entry, 60), drawn(entry, 20, thinning=3)
    np.testing.assert_array_equal(third.loss, every.loss[:, ::3])
    assert torch.equal(third.positions, every.positions[:, ::3])


def test_a_given_start_per_chain(entry):
    if entry.make(entry.step_size).num_adapt:
        with pytest.raises(ValueError, match="num_warmup: 3, but .* adapts in its first 4 steps"):
            drawn(entry, 3, num_warmup=3)
        return
    start = torch.arange(12.0 * entry.rungs, dtype=torch.float64).view(-1, 3)
    kept = start.clone()
    trace = drawn(entry, 3, initial=start, num_warmup=0)
    assert torch.equal(trace.positions[:, 0], kept)
    assert torch.equal(start, kept)


class Counting(Quadratic):
    """A quadratic that counts its calls, and keeps the batches."""

    def __init__(self):
        super().__init__((1.0, 2.0, 3.0))
        self.batches = []

    def loss_and_grad(self, position, batch=None):
        self.batches.append(batch)
        return super().loss_and_grad(position)


def test_gradients_are_counted(entry):
    target = Counting()
    trace = drawn(entry, 10, target=target, thinning=2)
    assert trace.num_gradients == len(target.batches) * 4 * entry.rungs


@pytest.mark.parametrize("name", STOCHASTIC)
def test_every_gradient_of_a_stochastic_kernel_is_that_of_the_next_batch(name):
    target = Counting()
    drawn(EVERY_KERNEL[name], 10, target=target, batches=lambda generator, count: itertools.count())
    assert target.batches == list(range(15))


@pytest.mark.parametrize("name", EXACT)
def test_exact_kernels_refuse_minibatches(name):
    with pytest.raises(ValueError, match="batches: given to .* exact only with the full-data gradient"):
        new_run(EVERY_KERNEL[name], batches=lambda generator, count: itertools.count())


def through_a_file(stored):
    file = io.BytesIO()
    torch.save(stored, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def test_a_run_is_saved_and_continued_bitwise(entry):
    """In warm-up, among the draws, and again: the whole is the unbroken run, bit for bit."""
    whole = drawn(entry, 130, num_warmup=7, thinning=2)
    run = new_run(entry, num_warmup=7, thinning=2)
    for count in (1, 29, 100):
        run.draw(count)
        stored, run = through_a_file(run.state_dict()), new_run(entry, num_warmup=7, thinning=2)
        run.load_state_dict(stored)
    assert_equal_traces(run.trace(), whole)


def test_a_step_reads_nothing_back(entry, monkeypatch):
    """No step turns a tensor into a number, which would synchronise a device and forbid a CUDA graph."""
    rows = 3 * entry.rungs
    for step_size in (entry.step_size, torch.full((rows, 1), entry.step_size, dtype=torch.float64)):
        target = entry.target(3, n_beta=torch.full((rows, 1), 2.0, dtype=torch.float64))
        kernel = entry.make(step_size)
        state = kernel.init(torch.ones(rows, 3, dtype=torch.float64), target)

        def refuse(*arguments):
            raise AssertionError("a step reads a tensor back")

        with monkeypatch.context() as patch:
            for name in ("__bool__", "__float__", "__int__", "__index__", "item", "tolist", "numpy", "cpu"):
                patch.setattr(torch.Tensor, name, refuse)
            for _ in range(3):
                kernel.step_(state, target, None, torch.Generator())


class Tables:
    """In place of torch's random numbers, the rows of fixed tables that belong to some of the chains."""

    def __init__(self, chains: range, total: int):
        self.chains, self.total, self.calls = chains, total, 0

    def _rows(self, distribution, shape, dtype):
        shape = tuple(shape[0]) if not isinstance(shape[0], int) else shape
        self.calls += 1
        per_chain = shape[0] // len(self.chains)
        table = distribution(
            per_chain * self.total, *shape[1:], dtype=dtype, generator=torch.Generator().manual_seed(self.calls)
        )
        return table[self.chains.start * per_chain : self.chains.stop * per_chain]

    def patch(self, patch):
        for name in ("randn", "rand"):
            honest = getattr(torch, name)
            patch.setattr(
                torch,
                name,
                lambda *shape, dtype=None, honest=honest, **kind: self._rows(honest, shape, dtype),
            )


def test_chains_together_move_as_each_alone(entry):
    """Given its random numbers, its nβ and its step size, a chain does not know of the others."""
    total, rows = 3, 3 * entry.rungs
    scales = torch.linspace(0.3, 1.0, rows, dtype=torch.float64)[:, None]
    n_beta = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)

    def moved(chains):
        own = slice(chains.start * entry.rungs, chains.stop * entry.rungs)
        target = entry.target(len(chains), n_beta=n_beta[chains.start : chains.stop])
        kernel = entry.make(entry.step_size * scales[own])
        state = kernel.init(torch.ones(len(scales[own]), 3, dtype=torch.float64), target)
        with pytest.MonkeyPatch.context() as patch:
            Tables(chains, total).patch(patch)
            infos = [kernel.step_(state, target, None, torch.Generator()) for _ in range(20)]
        return state.position, *infos[-1]

    together = moved(range(total))
    for chain in range(total):
        own = slice(chain * entry.rungs, (chain + 1) * entry.rungs)
        for whole, alone in zip(together, moved(range(chain, chain + 1)), strict=True):
            torch.testing.assert_close(whole[own], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_vector_in_chunks_moves_as_a_whole_one(name, monkeypatch):
    """Without noise, the chunks in which a long vector is updated must not change the move, nor what is said of it."""
    entry, target = EVERY_KERNEL[name], Quadratic((1.0, 2.0, 3.0, 4.0, 5.0), n_beta=2.0)
    start = torch.arange(1.0, 6.0, dtype=torch.float64)
    monkeypatch.setattr(torch, "randn", lambda *shape, dtype=None, **_: torch.zeros(*shape, dtype=dtype))

    def moved():
        kernel = entry.make(entry.step_size)
        state = kernel.init(start.expand(2, -1).clone(), target)
        infos = [kernel.step_(state, target, None, torch.Generator()) for _ in range(3)]
        return state.position, *infos[-1]

    whole = moved()
    monkeypatch.setattr(noise_module, "CHUNK_COLUMNS", 4)
    monkeypatch.setattr(noise_module, "PIECE_COLUMNS", 2)
    for one, other in zip(moved(), whole, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", RESTING)
def test_without_noise_a_chain_at_the_anchor_rests(name, monkeypatch):
    entry = EVERY_KERNEL[name]
    monkeypatch.setattr(torch, "randn", lambda *shape, dtype=None, **_: torch.zeros(*shape, dtype=dtype))
    target = entry.target(4)
    kernel = entry.make(entry.step_size)
    state = kernel.init(torch.zeros(4 * entry.rungs, 3, dtype=torch.float64), target)
    for _ in range(5):
        kernel.step_(state, target, None, torch.Generator())
    assert not state.position.any()


@pytest.mark.parametrize("name", RESTING)
def test_without_noise_a_chain_falls_towards_the_anchor(name, monkeypatch):
    entry = EVERY_KERNEL[name]
    monkeypatch.setattr(torch, "randn", lambda *shape, dtype=None, **_: torch.zeros(*shape, dtype=dtype))
    target = entry.target(2)
    kernel = entry.make(0.1 * entry.step_size)
    start = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64).expand(2 * entry.rungs, -1)
    state = kernel.init(start.clone(), target)
    for _ in range(3):
        kernel.step_(state, target, None, torch.Generator().manual_seed(0))
    assert bool((state.position.abs() < start.abs()).all())
    assert bool((state.position * start > 0).all())


def test_without_a_gradient_every_move_is_accepted_and_of_known_size(entry):
    flat = Quadratic((0.0, 0.0), localization=0.0)
    num_chains, num_steps = 4096, 8
    target = entry.target(num_chains, flat)
    kernel = entry.make(entry.step_size)
    state = kernel.init(torch.zeros(num_chains * entry.rungs, 2, dtype=torch.float64), target)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        info = kernel.step_(state, target, None, generator)
        assert float(info.acceptance_rate.min()) == pytest.approx(1.0, abs=1e-12)
    moved = state.position[:: entry.rungs].numpy()
    assert_independent_mean(moved.sum(-1), 0.0)
    if entry.flat_variance is not None:
        variance = num_steps * entry.flat_variance(entry.step_size)
        assert_independent_mean(moved[:, 0] ** 2, variance)
        assert_independent_mean(moved[:, 0] * moved[:, 1], 0.0)


class Poisoned(Quadratic):
    """The loss and gradient of chain 1 are not numbers, from the 20th call on."""

    def __init__(self):
        super().__init__((1.0, 2.0, 3.0))
        self.calls = 0

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position)
        self.calls += 1
        if self.calls > 20:
            loss[1], gradient[1] = torch.nan, torch.nan
        return loss, gradient


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stochastic_chain_without_a_finite_gradient_is_reported(name):
    trace = drawn(EVERY_KERNEL[name], target=Poisoned())
    assert trace.diverged == (samplers.Divergence(chain=1, step=20),)
    assert np.isfinite(trace.loss[[0, 2, 3]]).all()
    assert np.isnan(trace.loss[1, 15:]).all()


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_chain_refuses_a_move_without_a_finite_gradient(name):
    trace = drawn(EVERY_KERNEL[name], target=Poisoned())
    assert not trace.diverged
    assert torch.isfinite(trace.positions).all()
    assert (trace.statistics["acceptance_rate"][1, -10:] == 0).all()


@pytest.mark.parametrize(
    "step_size",
    [0.0, -1.0, float("nan"), float("inf"), torch.ones(3), torch.zeros(3, 1)],
    ids=["zero", "negative", "not a number", "infinite", "a row", "zeros"],
)
def test_bad_step_sizes_are_refused(entry, step_size):
    with pytest.raises(ValueError, match="step_size: "):
        entry.make(step_size)


def test_a_step_leaves_every_tensor_of_its_state_where_it_was(entry):
    """A captured graph finds its state by address: what a step binds anew, a replay would read stale for ever."""
    potential, kernel = entry.target(4), entry.make(entry.step_size)
    rows = 4 * entry.rungs
    state = kernel.init(torch.zeros(rows, 3, dtype=torch.float64), potential)
    generator = torch.Generator().manual_seed(0)
    kernel.step_(state, potential, None, generator)
    before = [(owner, name, getattr(owner, name)) for owner, name in state_tensors(state)]
    constants = state_constants(state)
    for _ in range(3):
        kernel.step_(state, potential, None, generator)
    assert before
    for owner, name, tensor in before:
        assert getattr(owner, name) is tensor, name
    assert state_constants(state) == constants
