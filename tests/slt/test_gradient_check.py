"""A gradient that is not that of the loss is named where a sampler follows it alone; nothing else is taken for one."""

import pytest
import torch
from torch import nn

import slt
from slt.gradient_check import check_gradient

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
    posterior = slt.LocalPosterior(model, data, loss_fn, n_beta=145.0, localization=1.0, num_chains=4)
    with posterior:
        return [check_gradient(posterior, batch_size, seed).wrong for seed in range(seeds)]


def linear(weight):
    model = nn.Linear(DIM, 1, bias=False)
    model.weight.data.copy_(weight)
    return model


def test_a_detached_half_is_a_slope_of_twice_the_gradient():
    data, solution = regression()
    for slopes in found(linear(solution), data, half_detached, 64):
        assert slopes is not None
        assert slopes.slope == pytest.approx(2 * slopes.gradient, rel=0.02)


def test_weights_on_a_grid_have_no_slope():
    data, solution = regression()
    every = found(StraightThrough(solution), data, half_squares, 64)
    assert all(slopes is not None and abs(slopes.slope) < 0.2 * slopes.gradient for slopes in every)


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
    assert found(*right_ones()[name]) == [None] * 6


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
    with posterior:
        taken, loss_and_grad = 0, posterior.loss_and_grad

        def counted(*arguments):
            nonlocal taken
            taken += 1
            return loss_and_grad(*arguments)

        posterior.loss_and_grad = counted
        found = check_gradient(posterior, 64, 0)
    assert found.num_passes == taken
    assert 14 < taken < 60  # two places that agree, of seven passes each, and the way there
