"""Steps replayed from a CUDA graph are the steps themselves: bitwise, with minibatches, saved and continued."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import samplers
import slt
from samplers.run import Run
from tests.samplers.every_kernel import EVERY_KERNEL
from tests.samplers.laws import Quadratic

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


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


@pytest.mark.parametrize("name", EVERY_KERNEL)
def test_every_kernel_draws_what_it_draws_without_a_graph(name, monkeypatch):
    entry = EVERY_KERNEL[name]
    potential = QuadraticOnDevice()
    if entry.rungs > 1:
        potential = samplers.ladder_potential(potential, torch.tensor([1.0, 2.0, 4.0]).double().cuda(), 4)

    def make():
        start = torch.zeros(3, dtype=torch.float64, device="cuda")
        rows = 4 * entry.rungs
        return Run(entry.make(entry.step_size), potential, start, num_chains=rows, num_warmup=20, keep_positions=True)

    captured, plain = traces(make, monkeypatch)
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
