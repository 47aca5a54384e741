"""Steps replayed from a CUDA graph are the steps themselves: bitwise, with minibatches, saved and continued."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import samplers
import slt
from samplers import capture
from samplers.graph import Graph
from samplers.run import Run
from tests.samplers.every_kernel import EVERY_KERNEL
from tests.samplers.laws import Quadratic

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def _whatever_a_launch_takes(monkeypatch):
    """Where others use the device too, a small step takes longer than its launch, and would not be captured."""
    monkeypatch.setattr(capture, "LEAST_LAUNCHED", 0.0)


class QuadraticOnDevice(Quadratic):
    def __init__(self):
        super().__init__((1.0, 2.0, 3.0))
        self.h, self.rotation, self.anchor = self.h.cuda(), self.rotation.cuda(), self.anchor.cuda()
        self.localizer = samplers.GaussianLocalizer(self.anchor, 1.0)


def traces(make_run, monkeypatch, num_draws=150):
    """Of the same run, with and without graphs."""
    captured = make_run()
    captured.draw(num_draws)
    with monkeypatch.context() as patched:
        patched.setattr(Run, "_step_", property(lambda run: run.kernel.step_))
        plain = make_run()
        plain.draw(num_draws)
    return captured.trace(), plain.trace()


def run_of(entry, **form):
    """Of a kernel on a quadratic of three weights, or on a ladder of it."""
    potential = QuadraticOnDevice()
    if entry.rungs > 1:
        potential = samplers.ladder_potential(potential, torch.tensor([1.0, 2.0, 4.0]).double().cuda(), 4)
    start = torch.zeros(3, dtype=torch.float64, device="cuda")
    return Run(entry.make(entry.step_size), potential, start, num_chains=4 * entry.rungs, num_warmup=20, **form)


@pytest.mark.parametrize("name", EVERY_KERNEL)
def test_every_kernel_draws_what_it_draws_without_a_graph(name, monkeypatch):
    captured, plain = traces(lambda: run_of(EVERY_KERNEL[name], keep_positions=True), monkeypatch)
    assert captured.configuration["cuda_graph"] == "every step"
    assert captured.positions is not None
    assert torch.equal(captured.positions, plain.positions)
    for statistic, values in captured.statistics.items():
        assert np.array_equal(values, plain.statistics[statistic]), statistic


def network_and_data(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).to("cuda", dtype)
    x = torch.randn(500, 2, device="cuda", dtype=dtype)
    with torch.no_grad():
        return model, (x, model(x) + 0.5 * torch.randn(500, 1, device="cuda", dtype=dtype))


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def test_minibatches_are_gathered_in_the_graph(monkeypatch):
    model, data = network_and_data()
    posterior = slt.LocalPosterior(model, data, squares, n_beta=50.0, localization=1.0, engine="batched")

    def make():
        return Run(
            samplers.sgld(1e-3), posterior, posterior.anchor, batches=posterior.minibatches(100), num_chains=4,
            num_warmup=0, keep_positions=True,
        )  # fmt: skip

    with posterior:
        captured, plain = traces(make, monkeypatch)
    assert captured.configuration["cuda_graph"] == "every step"
    assert captured.positions is not None
    assert plain.positions is not None
    # float32, with atomic additions in another order
    moved = (plain.positions - plain.positions[:, :1]).abs().max()
    assert (captured.positions - plain.positions).abs().max() < 1e-3 * moved


@pytest.mark.parametrize("name", EVERY_KERNEL)
def test_every_kernel_draws_the_same_by_several_steps_in_a_graph(name, monkeypatch):
    runs = []

    def make():
        runs.append(run_of(EVERY_KERNEL[name]))
        return runs[-1]

    captured, plain = traces(make, monkeypatch, num_draws=1300)
    assert runs[0]._program._several.num_steps == 8
    for statistic, values in captured.statistics.items():
        assert np.array_equal(values, plain.statistics[statistic]), statistic


@pytest.mark.parametrize(("batch_size", "num_steps"), [(70, 7), (50, 5), (45, 5), (10, 8), (500, 8)])
def test_graphs_of_several_steps_stay_within_an_epoch(batch_size, num_steps, monkeypatch):
    """Epochs of 7, 10, 11 and 50 batches, of which the last step draws the next: the same but for rounding."""
    model, data = network_and_data(torch.float64)
    posterior = slt.LocalPosterior(model, data, squares, n_beta=50.0, localization=1.0, engine="batched")
    batches = posterior.minibatches(batch_size) if batch_size < 500 else None
    runs = []

    def make():
        runs.append(Run(samplers.sgld(1e-3), posterior, posterior.anchor, batches=batches, num_chains=4, num_warmup=0))
        return runs[-1]

    with posterior:
        captured, plain = traces(make, monkeypatch, num_draws=1400)
    assert captured.configuration["cuda_graph"] == "every step"
    assert runs[0]._program._several.num_steps == num_steps
    np.testing.assert_allclose(captured.loss, plain.loss, rtol=1e-6)


@pytest.mark.parametrize("at", [100, 1111, 1250])
def test_a_run_saved_among_graphs_of_several_steps_goes_on_bitwise(at):
    potential = QuadraticOnDevice()

    def make():
        start = torch.zeros(3, dtype=torch.float64, device="cuda")
        return Run(samplers.sgld(0.1), potential, start, num_chains=4, num_warmup=10)

    whole, first, second = make(), make(), make()
    whole.draw(2500)
    first.draw(at)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.draw(2500 - at)
    assert np.array_equal(whole.trace().loss, second.trace().loss)


def test_a_step_that_the_device_takes_long_for_is_launched_and_says_so(monkeypatch):
    monkeypatch.setattr(capture, "LEAST_LAUNCHED", 0.5)

    class Large(QuadraticOnDevice):
        matrix = torch.eye(4096, device="cuda")

        def loss_and_grad(self, position, batch=None):
            product = self.matrix
            for _ in range(40):
                product = product @ self.matrix
            loss, gradient = super().loss_and_grad(position, batch)
            return loss * product[0, 0], gradient

    start = torch.zeros(3, dtype=torch.float64, device="cuda")
    trace = samplers.sample(samplers.sgld(0.1), Large(), start, num_chains=4, num_warmup=10, num_draws=20)
    assert "as long as its launch" in trace.configuration["cuda_graph"]


def test_a_graph_leaves_no_workspaces_of_the_streams_that_made_it():
    model, data = network_and_data()
    posterior = slt.LocalPosterior(model, data, squares, n_beta=50.0, localization=1.0, engine="batched")
    before = torch.cuda.memory_allocated()
    with posterior:
        run = Run(samplers.sgld(1e-3), posterior, posterior.anchor, num_chains=4, num_warmup=0)
        run.draw(20)
        assert run.trace().configuration["cuda_graph"] == "every step"
        assert torch.cuda.memory_allocated() - before < 4_000_000  # one is 8 MB or more


def test_several_steps_that_do_not_fit_are_taken_one_by_one(monkeypatch):
    """What breaks off the second capture leaves the chain and its generator as they were."""
    capture, potential, runs = Graph, QuadraticOnDevice(), []

    def breaking(kernel, potential, state, batches, generator, window, kind):
        if len(batches) == 1:
            return capture(kernel, potential, state, batches, generator, window, kind)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            kernel.step_(state, potential, batches[0], generator)
            float(state.position.sum())  # synchronises
        raise AssertionError("captured what synchronises")

    def make():
        start = torch.zeros(3, dtype=torch.float64, device="cuda")
        runs.append(Run(samplers.sgld(0.1), potential, start, num_chains=4, num_warmup=10))
        return runs[-1]

    monkeypatch.setattr("samplers.capture.Graph", breaking)
    captured, plain = traces(make, monkeypatch, num_draws=1300)
    assert runs[0]._program._several is None
    assert np.array_equal(captured.loss, plain.loss)


def test_a_saved_run_goes_on_bitwise():
    potential = QuadraticOnDevice()

    def make():
        start = torch.zeros(3, dtype=torch.float64, device="cuda")
        return Run(samplers.sgld(0.1), potential, start, num_chains=4, num_warmup=10, keep_positions=True)

    whole, first, second = make(), make(), make()
    whole.draw(200)
    first.draw(100)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.draw(100)
    assert torch.equal(whole.trace().positions, second.trace().positions)


def test_a_loss_that_synchronises_runs_without_a_graph_and_says_so():
    class Synchronising(QuadraticOnDevice):
        def loss_and_grad(self, position, batch=None):
            loss, gradient = super().loss_and_grad(position, batch)
            return loss * (1.0 if float(loss.sum()) > -1 else 2.0), gradient

    start = torch.zeros(3, dtype=torch.float64, device="cuda")
    trace = samplers.sample(samplers.sgld(0.1), Synchronising(), start, num_chains=4, num_warmup=10, num_draws=100)
    assert trace.configuration["cuda_graph"] != "every step"
    assert np.isfinite(trace.loss).all()


def test_a_loss_with_a_stream_of_its_own_runs_without_a_graph_and_says_so():
    class Noisy(QuadraticOnDevice):
        def loss_and_grad(self, position, batch=None):
            loss, gradient = super().loss_and_grad(position, batch)
            return loss + torch.randn_like(loss), gradient

    start = torch.zeros(3, dtype=torch.float64, device="cuda")
    trace = samplers.sample(samplers.sgld(0.1), Noisy(), start, num_chains=4, num_warmup=10, num_draws=100)
    assert "loss" in trace.configuration["cuda_graph"]


def test_calls_without_a_knob_are_exact_on_the_device():
    torch.manual_seed(0)
    x = torch.randn(200, 3, dtype=torch.float64)
    model = nn.Linear(3, 1).double()
    y = x @ torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64) + torch.randn(200, 1, dtype=torch.float64)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(200, 1, dtype=torch.float64)], 1), y).solution
    with torch.no_grad():
        model.weight.copy_(solution[:3].T)
        model.bias.copy_(solution[3])

    def half_squares(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().squeeze(-1)

    estimate = slt.estimate_llc(model, (x, y), half_squares, device="cuda")
    design = torch.cat([x, torch.ones(200, 1, dtype=torch.float64)], 1)
    scaled = estimate.n_beta * torch.linalg.eigvalsh(design.T @ design / 200)
    truth = float((0.5 * scaled / (scaled + 1.0)).sum())
    assert estimate.ess > 400
    assert abs(estimate.llc - truth) < 4.5 * estimate.mcse  # once in 100,000
    assert estimate.trace.configuration["cuda_graph"] == "every step"
