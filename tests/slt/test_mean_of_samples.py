"""A loss of a batch that is not the mean over its samples is named; means, padded a little or not, are not."""

import pytest
import torch
from torch import nn

import slt


def regression(n=400, dim=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, dim, generator=generator)
    y = x.sum(1) + torch.randn(n, generator=generator)
    model = nn.Linear(dim, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y.unsqueeze(1)).solution.T)
    return model, (x, y)


def half_squares(model, batch):
    return 0.5 * (model(batch[0]).squeeze(1) - batch[1]).square()


def broadcast(model, batch):
    return 0.5 * (model(batch[0]) - batch[1]).square().mean()


def root_of_mean(model, batch):
    return half_squares(model, batch).mean().sqrt()


def contrastive(model, batch):
    outputs = model(batch[0]) @ batch[1].unsqueeze(0)
    return nn.functional.cross_entropy(outputs, torch.arange(len(outputs)))


def estimated(loss_fn, **options):
    form = {"sampler": "sgld", "step_size": 1e-4, "num_draws": 50, "num_warmup": 0, "num_chains": 2, "batch_size": 64}
    return slt.estimate_llc(*regression(), loss_fn, **(form | options))


@pytest.mark.parametrize("loss_fn", [broadcast, root_of_mean, contrastive])
@pytest.mark.parametrize("sampler", ["sgld", "mala"])
def test_what_is_no_mean_is_named_with_its_figures(loss_fn, sampler):
    found = estimated(loss_fn, sampler=sampler, batch_size=64 if sampler == "sgld" else None)
    (problem,) = [problem for problem in found.verdict.problems if problem.name == "not_a_mean"]
    together, alone = problem.evidence.values()
    model, data = regression()
    first = tuple(tensor[:7] for tensor in data)
    with torch.no_grad():
        ones = [float(loss_fn(model, tuple(tensor[one : one + 1] for tensor in first))) for one in range(7)]
        assert together == pytest.approx(float(loss_fn(model, first)), rel=1e-5)
    assert alone == pytest.approx(sum(ones) / 7, rel=1e-5)


@pytest.mark.parametrize("loss_fn", [half_squares, lambda model, batch: half_squares(model, batch).mean()])
def test_means_are_not(loss_fn):
    assert "not_a_mean" not in estimated(loss_fn).verdict.names


def test_a_loss_that_takes_no_single_sample_is_not_asked():
    def of_several(model, batch):
        if len(batch[0]) < 2:
            raise ValueError("two at least")
        return half_squares(model, batch).mean()

    assert "not_a_mean" not in estimated(of_several).verdict.names


def test_a_random_loss_is_named_as_that():
    def noisy(model, batch):
        return half_squares(model, batch).mean() * (1 + torch.randn(()))

    names = estimated(noisy, engine="in_place").verdict.names
    assert "stochastic_forward" in names
    assert "not_a_mean" not in names
