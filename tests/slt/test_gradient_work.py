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


def found(model, data, loss_fn, batch_size, seeds=6):
    """From four places as far off as the posterior reaches; and whether it is more than 5 % of the rise there."""
    posterior = slt.LocalPosterior(model, data, loss_fn, n_beta=145.0, localization=1.0, num_chains=4)
    works = []
    with posterior:
        for seed in range(seeds):
            aside = torch.randn(4, posterior.dim, generator=torch.Generator().manual_seed(seed)).to(posterior.anchor)
            aside /= aside.norm(dim=1, keepdim=True)
            ends = posterior.anchor + Passes(posterior).reach(aside[0], None) * aside
            rise = float(posterior.losses(ends).mean()) - posterior.loss_at_anchor()
            tolerance = 0.05 * abs(145.0 * rise)
            work = gradient_work(posterior, ends, batch_size, seed, tolerance)
            works.append((work, work.differ(tolerance)))
    return works


def linear(weight):
    model = nn.Linear(DIM, 1, bias=False)
    model.weight.data.copy_(weight)
    return model


@pytest.mark.parametrize("batch_size", [64, None])
def test_a_detached_half_is_half_of_the_rise(batch_size):
    """At the minimum of both halves exactly; each of the four rises has its own square."""
    data, solution = regression()
    for work, differ in found(linear(solution), data, half_detached, batch_size):
        assert differ
        if batch_size is None:
            assert work.num_gradients == 2 * PASSES * (16 + 2 * 32)  # and once more, to both sides
            assert 0.9 * work.rise / 2 <= work.square**0.5 < work.rise


def test_weights_on_a_grid_do_not_rise_as_their_gradient_says():
    data, solution = regression()
    options = {"sampler": "sgld", "batch_size": 64, "num_draws": 500, "progress": False}
    for seed in range(4):
        estimate = slt.estimate_llc(StraightThrough(solution), data, half_squares, seed=seed, **options)
        assert "wrong_gradient" in estimate.verdict.names


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
    assert all(differ for _, differ in found(model, (x, y), half_squares, 64))


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
    """The rise is the energy of a run whose chains are there."""
    model, data, loss_fn, batch_size = right_ones()[name]
    for size in (batch_size, None):
        assert not any(differ for _, differ in found(model, data, loss_fn, size, seeds=15))


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
        for batch_size, share in ((64, 64 / N), (None, 1.0)):
            taken = 0
            work = gradient_work(posterior, ends, batch_size, 0, 1.0)
            assert taken == 2 * PASSES * 18  # in threes
            assert work.num_gradients == pytest.approx(taken * share)
        # of more chains than there are ways some are taken
        many = posterior.anchor + torch.zeros(300, DIM)
        assert gradient_work(posterior, many, 64, 0, 1.0).num_gradients == pytest.approx(2 * 16 * PASSES * 64 / N)
        assert gradient_work(posterior, torch.full((2, DIM), torch.nan), 64, 0, 1.0) is None


def test_a_way_without_a_number_hides_nothing():
    """Of four places one is where the loss is none: half of the others' rise has no gradient."""
    data, solution = regression()

    def within(model, batch):
        return half_detached(model, batch) + 0 * torch.log(1.2 - model.weight[0, 0]).detach()

    posterior = slt.LocalPosterior(linear(solution), data, within, n_beta=145.0, localization=1.0, num_chains=4)
    ends = posterior.anchor + 0.05 * torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))
    ends[0, 0] = 1.5
    with posterior:
        for batch_size in (64, None):
            assert gradient_work(posterior, ends, batch_size, 0, 0.15).differ(0.15)
        assert gradient_work(posterior, ends[:1], 64, 0, 0.15) is None


def test_a_loss_in_sixteen_bits_that_the_interval_covers_is_not_named():
    """The rounding of both ends is no work of a gradient: 14 nats² of it were taken for one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10_000, 10, generator=generator)
    y = x.sum(1, keepdim=True) + 0.3 * torch.randn(10_000, 1, generator=generator)
    model = nn.Linear(10, 1, bias=False)
    model.weight.data.copy_(torch.linalg.lstsq(x, y).solution.T)

    def rounded(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(batch[0])
        return (outputs.float() - batch[1]).square().squeeze(-1) / (2 * 0.3**2)

    options = {"sampler": "baoab", "batch_size": 256, "num_draws": 1000, "progress": False}
    assert "wrong_gradient" not in slt.estimate_llc(model, (x, y), rounded, **options).verdict.names
