"""A compiled step is the step itself up to rounding, and refuses what it cannot be."""

import io
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import samplers
from samplers import compilation
from tests.samplers.every_kernel import EVERY_KERNEL, STOCHASTIC
from tests.samplers.laws import Quadratic

TOLERANCE = {"rtol": 1e-8, "atol": 1e-10}
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler"
)


@pytest.fixture
def traced_only(monkeypatch):
    """Trace and run the graph as it is: what this package does, without the minutes of a compiler."""
    monkeypatch.setattr(compilation, "compile_graph", lambda graph, inputs: graph)


def new_run(name, *, num_chains=4, batches=None, target=None, kernel=None, **changes):
    entry, target = EVERY_KERNEL[name], target or Quadratic((1.0, 2.0, 3.0))
    settings = {"num_warmup": 5, "keep_positions": True, "num_chains": num_chains * entry.rungs, "batches": batches}
    potential = entry.target(num_chains, target)
    return samplers.Run(kernel or entry.make(entry.step_size), potential, target.anchor, **(settings | changes))


def drawn(name, num_draws=30, **changes):
    run = new_run(name, **changes)
    run.draw(num_draws)
    return run


def assert_the_same_up_to_rounding(name, **changes):
    as_it_is, compiled = (drawn(name, compile=compile, **changes) for compile in (False, True))
    one, other = as_it_is.trace(), compiled.trace()
    np.testing.assert_allclose(other.positions, one.positions, **TOLERANCE)
    for key, values in one.statistics.items():
        np.testing.assert_allclose(other.statistics[key], values, **TOLERANCE)
        np.testing.assert_allclose(other.warmup[key], one.warmup[key], **TOLERANCE)
    assert one.num_gradients == other.num_gradients
    # the random streams stand at the same place
    assert torch.equal(as_it_is.blocks[0].generator.get_state(), compiled.blocks[0].generator.get_state())
    return as_it_is, compiled


@pytest.mark.parametrize("name", EVERY_KERNEL)
def test_a_traced_step_is_the_step(name, traced_only):
    as_it_is, compiled = assert_the_same_up_to_rounding(name)
    if EVERY_KERNEL[name].rungs > 1:
        one, other = as_it_is.blocks[0].state, compiled.blocks[0].state
        assert torch.equal(one.round_trips, other.round_trips)
        assert torch.equal(one.tried, other.tried)
        assert other.tried.tolist() == [18, 17]  # of 35 steps, by turns


def test_the_random_numbers_of_everybody_else_are_left_alone(traced_only):
    before = torch.get_rng_state()
    drawn("hmc", compile=True)
    assert torch.equal(torch.get_rng_state(), before)


@needs_compiler
@pytest.mark.parametrize("name", ["sgld"])
def test_a_compiled_step_is_the_step(name):
    assert_the_same_up_to_rounding(name)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EVERY_KERNEL if name != "sgld"])
def test_every_compiled_step_is_the_step(name):
    assert_the_same_up_to_rounding(name)


def batches_of(width):
    """Batches ``(chains, width)`` of numbers, every third one of them shorter."""

    def of_a_block(generator, num_chains):
        count = 0
        while True:
            count += 1
            columns = width if count % 3 else width // 2
            yield {"x": torch.randn(num_chains, columns, generator=generator, dtype=torch.float64), "weight": 1.0}

    return of_a_block


class Batched(Quadratic):
    """A quadratic whose gradient is moved by the mean of a batch."""

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position)
        return loss, gradient + batch["weight"] * batch["x"].mean(-1, keepdim=True)


@pytest.mark.parametrize("name", ["sgld", "sgnht"])
def test_batches_are_inputs_of_any_shape(name, traced_only):
    assert name in STOCHASTIC
    assert_the_same_up_to_rounding(name, target=Batched((1.0, 2.0, 3.0)), batches=batches_of(6))


def test_blocks_of_chains_have_a_program_for_each_size(traced_only):
    target = Quadratic((1.0, 2.0, 3.0))
    target.max_chains = 3
    assert_the_same_up_to_rounding("hmc", target=target, num_chains=4)


def test_a_chain_that_diverges_is_found_as_without(traced_only):
    traces = [
        drawn("sgld", 300, kernel=samplers.sgld(torch.tensor([[0.1], [10.0], [0.1], [0.1]])), compile=compile).trace()
        for compile in (False, True)
    ]
    assert traces[0].diverged == traces[1].diverged
    assert [divergence.chain for divergence in traces[1].diverged] == [1]


def test_a_compiled_run_is_saved_and_continued_bitwise(traced_only):
    unbroken, first, second = (new_run("hmc", compile=True) for _ in range(3))
    unbroken.draw(20)
    first.draw(8)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    second.load_state_dict(stored)
    second.draw(12)
    assert torch.equal(second.trace().positions, unbroken.trace().positions)
    with pytest.raises(ValueError, match="stored: of a run with compile True, this one has False"):
        new_run("hmc", compile=False).load_state_dict(stored)


def test_adaptation_comes_before_the_program(traced_only):
    traces = []
    for compile in (False, True):
        run = new_run("mala", compile=compile)
        run.adapt(samplers.accept_at_rate())
        run.draw(10)
        traces.append(run.trace())
    assert traces[0].configuration["step_size"] == traces[1].configuration["step_size"]
    np.testing.assert_allclose(traces[1].positions, traces[0].positions, **TOLERANCE)


class Noisy(Quadratic):
    """A loss with noise of its own at every call."""

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position)
        return loss + torch.from_numpy(np.random.default_rng().normal(size=len(loss))), gradient


class Counting(Quadratic):
    """A loss that changes from call to call."""

    calls = 0

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position)
        self.calls += 1
        return loss + self.calls, gradient


@pytest.mark.parametrize("kind", [Noisy, Counting])
def test_a_loss_that_is_not_fixed_is_found(kind, traced_only):
    with pytest.raises(ValueError, match="compile: the compiled step of sgld differs .* in its loss"):
        drawn("sgld", compile=True, target=kind((1.0, 2.0, 3.0)))


class Branching(Quadratic):
    """A loss that looks at its values."""

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position)
        return (loss, gradient) if bool((loss > 1.0).any()) else (loss, gradient.clone())


def test_a_loss_that_decides_by_its_values_is_refused(traced_only):
    with pytest.raises(ValueError, match="compile: a step of sgld cannot be traced and compiled"):
        drawn("sgld", compile=True, target=Branching((1.0, 2.0, 3.0)))


def test_the_fast_tanh_is_close_relative_to_itself():
    x = torch.cat([torch.logspace(-30, 2, 200_001), torch.linspace(0.2, 0.3, 50_001)])
    x = torch.cat([x, -x, torch.tensor([0.0, float("inf"), -float("inf")])])
    exact = x.double().tanh()
    found = compilation.fast_tanh(x).double()
    assert float(((found - exact).abs() / exact.abs().clamp(min=1e-38)).max()) < 4e-7
    assert bool(compilation.fast_tanh(torch.tensor([float("nan")])).isnan())


class Tanh(Quadratic):
    """A float32 loss with a tanh in it, and its gradient by autograd."""

    def loss_and_grad(self, position, batch=None):
        with torch.enable_grad():
            leaf = position.detach().requires_grad_()
            loss = leaf.tanh().square().sum(-1)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_of_another_scale_is_found_at_the_smallest_step(dtype, traced_only, monkeypatch):
    """At a position of five and a step of a millionth, the noise is a five-thousandth of the position."""
    target = samplers.from_log_density(lambda w: -0.5 * w.square().sum(-1), dim=2)
    form = {"num_chains": 2, "num_warmup": 0, "num_draws": 3, "compile": True}
    samplers.sample(samplers.sgld(1e-6), target, torch.full((2,), 5.0, dtype=dtype), **form)
    honest = compilation.Program.numbers
    monkeypatch.setattr(
        compilation.Program, "numbers", lambda self, generator: [1.4 * each for each in honest(self, generator)]
    )
    with pytest.raises(ValueError, match="compile: the compiled step of sgld differs .* in its position"):
        samplers.sample(samplers.sgld(1e-6), target, torch.full((2,), 5.0, dtype=dtype), **form)


def test_tanh_is_replaced_in_float32_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(compilation, "compile_graph", lambda graph, inputs: seen.append(graph.code) or graph)
    for dtype in (torch.float32, torch.float64):
        target = Tanh((1.0, 2.0))
        start = torch.ones(2, dtype=dtype)
        target.localizer = samplers.GaussianLocalizer(start, 1.0)
        kernel = samplers.hmc(0.1, 2)
        form = {"num_chains": 2, "num_warmup": 0, "num_draws": 5, "compile": True}
        compiled = samplers.sample(kernel, target, start, **form)
        as_it_is = samplers.sample(kernel, target, start, **(form | {"compile": False}))
        np.testing.assert_allclose(compiled.loss, as_it_is.loss, rtol=1e-5 if dtype == torch.float32 else 1e-12)
    assert ["aten.tanh.default" in code for code in seen] == [False, True]


@dataclass
class CountingState:
    """A state that counts its steps in Python."""

    position: torch.Tensor
    count: int = 0


def test_a_state_with_python_numbers_that_change_is_refused(traced_only):
    def step_(state, potential, batch, generator):
        state.count += 1
        zeros = torch.zeros(len(state.position))
        return samplers.Info(potential.loss_and_grad(state.position)[0], zeros, zeros, zeros)

    kernel = samplers.sgld(0.1)._replace(init=lambda position, potential: CountingState(position), step_=step_)
    with pytest.raises(ValueError, match="its state holds Python numbers that change"):
        drawn("sgld", kernel=kernel, compile=True)


def test_long_vectors_are_refused(traced_only, monkeypatch):
    monkeypatch.setattr(compilation, "CHUNK_COLUMNS", 2)
    with pytest.raises(ValueError, match="compile: sgld on 3 coordinates; expected at most 2"):
        drawn("sgld", compile=True)
