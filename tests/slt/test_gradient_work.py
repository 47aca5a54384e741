"""A gradient that is not that of the loss is named where a sampler follows it alone; nothing else is taken for one."""

from functools import partial

import pytest
import torch
from torch import nn

import slt
from slt.gradient_work import PASSES, gradient_work
from slt.passes import Passes

N, DIM = 1000, 6


def regression():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, DIM, generator=generator)
    y = x.sum(1, keepdim=True) + torch.randn(N, 1, generator=generator)
    return (x, y), torch.linalg.lstsq(x, y).solution.T


def half_squares(model, batch):
    return 0.5 * (model(batch[0]) - batch[1]).square().squeeze(-1)


def half_detached(model, batch):
    loss = half_squares(model, batch)
    return loss + loss.detach()


class StraightThrough(nn.Module):
    """Weights on a grid, with the gradient of weights that are not."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter((4 * weight).round() / 4)

    def forward(self, x):
        return x @ (self.weight + ((4 * self.weight).round() / 4 - self.weight).detach()).T


def found(model, data, loss_fn, batch_size, seeds=6, allowed=0.0):
    """From four places as far off as the posterior reaches; by default sixteen minibatches alone."""
    posterior = slt.LocalPosterior(model, data, loss_fn, n_beta=145.0, localization=1.0, num_chains=4)
    works = []
    with posterior:
        for seed in range(seeds):
            aside = torch.randn(4, posterior.dim, generator=torch.Generator().manual_seed(seed)).to(posterior.anchor)
            aside /= aside.norm(dim=1, keepdim=True)
            ends = posterior.anchor + Passes(posterior).reach(aside[0], None) * aside
            works.append(gradient_work(posterior, ends, batch_size, seed, allowed))
    return works


def linear(weight):
    model = nn.Linear(DIM, 1, bias=False)
    model.weight.data.copy_(weight)
    return model


@pytest.mark.parametrize("allowed", [0.0, 1e6])
def test_a_detached_half_is_half_of_the_rise(allowed):
    """Of full data at the minimum exactly: no batch and no slope of the detached half adds to it."""
    data, solution = regression()
    for work in found(linear(solution), data, half_detached, 64, allowed=allowed):
        assert work.differ(0.05 * DIM / 2)
        if allowed:
            assert work.num_gradients == 8 * PASSES
            # each of the four rises has its own square
            assert work.rise / 2 <= work.square**0.5 < work.rise


def test_weights_on_a_grid_do_not_rise_as_their_gradient_says():
    data, solution = regression()
    assert all(work.differ(0.05 * DIM / 2) for work in found(StraightThrough(solution), data, half_squares, 64))


class Routed(nn.Module):
    """Two affine maps of which the larger gate picks one, so that the loss jumps."""

    def __init__(self):
        super().__init__()
        self.gates, self.maps = nn.Linear(DIM, 2), nn.ModuleList(nn.Linear(DIM, 1) for _ in range(2))

    def forward(self, x):
        chosen = self.gates(x).argmax(1, keepdim=True)
        return torch.where(chosen == 0, self.maps[0](x), self.maps[1](x))


def test_jumps_of_the_loss_are_found():
    torch.manual_seed(0)
    (x, _), _ = regression()
    model = Routed()
    with torch.no_grad():
        y = model(x) + torch.randn(N, 1, generator=torch.Generator().manual_seed(2))
    assert all(work.differ(1.0) for work in found(model, (x, y), half_squares, 64, allowed=1e6))


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def rounded_cross_entropy(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return cross_entropy(model, batch)


def mean_squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(-1)


def rough(model, batch):
    """Waves far shorter than the posterior is wide, which its steps do not see and the gradient is mostly of."""
    return half_squares(model, batch) + 1e-3 * torch.sin(2000 * model.weight.sum())


def right_ones():
    torch.manual_seed(0)
    data, solution = regression()
    images = torch.randn(400, 1, 8, 8), torch.randint(10, (400,))
    convolution = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )
    relu = nn.Sequential(nn.Linear(DIM, 20), nn.ReLU(), nn.Linear(20, 1))
    deep = nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(6)))
    x = 20 * torch.rand(2000, 10) - 10
    with torch.no_grad():
        exact = (x, deep(x))
    doubled = tuple(each.double() for each in data)
    return {
        "at the minimum": (linear(solution), data, half_squares, 64),
        "rough on a small scale": (linear(solution).double(), doubled, rough, 64),
        "kinks": (relu, data, half_squares, 64),
        "kinks, batches of two": (relu, data, half_squares, 2),
        "convolution": (convolution, images, cross_entropy, 64),
        "computed in sixteen bits": (convolution, images, rounded_cross_entropy, 64),
        "a loss that is zero at the anchor": (deep, exact, mean_squares, 100),
    }


@pytest.mark.parametrize("name", right_ones())
def test_a_gradient_that_is_right_is_not_taken_for_wrong(name):
    """Within 5 % of the rise, which is the energy of a run whose chains are there."""
    for allowed in (0.0, 1e6):
        for work in found(*right_ones()[name], seeds=20, allowed=allowed):
            assert not work.differ(0.05 * abs(work.rise)), work


def test_the_verdict_names_it_where_the_sampler_is_not_exact():
    data, solution = regression()
    options = {"num_warmup": 50, "num_draws": 100, "num_chains": 2, "progress": False}
    model = linear(solution)
    followed = slt.estimate_llc(model, data, half_detached, sampler="sgld", batch_size=64, **options)
    assert "wrong_gradient" in followed.verdict.names
    right = slt.estimate_llc(model, data, half_squares, sampler="sgld", batch_size=64, **options)
    assert "wrong_gradient" not in right.verdict.names
    exact = slt.estimate_llc(model, data, half_detached, sampler="mala", **options)
    assert "wrong_gradient" not in exact.verdict.names


def test_what_it_took_is_counted():
    data, solution = regression()
    posterior = slt.LocalPosterior(linear(solution), data, half_squares, n_beta=145.0, localization=1.0, num_chains=4)
    ends = posterior.anchor + 0.1 * torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))
    ends[3] = torch.nan  # of a chain that diverged
    with posterior:
        taken, of_batch, of_all = 0, posterior.loss_and_grad, posterior.losses_and_grads

        def counted(method, position, *batch):
            nonlocal taken
            taken += len(position)
            return method(position, *batch)

        posterior.loss_and_grad, posterior.losses_and_grads = partial(counted, of_batch), partial(counted, of_all)
        for allowed, ways, share in ((111.0, 18, 64 / N), (112.0, 9, 1.0)):  # in threes
            taken = 0
            work = gradient_work(posterior, ends, 64, 0, allowed)
            assert taken == PASSES * ways
            assert work.num_gradients == pytest.approx(taken * share)
        # of more chains than there are ways some are taken
        many = posterior.anchor + torch.zeros(300, DIM)
        assert gradient_work(posterior, many, 64, 0, 0.0).num_gradients == pytest.approx(16 * PASSES * 64 / N)
        assert gradient_work(posterior, torch.full((2, DIM), torch.nan), 64, 0, 0.0) is None
