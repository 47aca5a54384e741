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


def test_sequences_that_weigh_by_their_tokens_are_not():
    """Of 5 to 20 tokens each, padded: a batch's mean is over tokens, and a few per cent off that over sequences."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(7, (100, 20), generator=generator)
    lengths = torch.randint(5, 21, (100, 1), generator=generator)
    labels = torch.where(torch.arange(20) < lengths, tokens.roll(-1, 1), -100)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))

    def next_token(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    first = tokens[:7], labels[:7]
    with torch.no_grad():
        ones = [float(next_token(model, tuple(part[one : one + 1] for part in first))) for one in range(7)]
        apart = abs(float(next_token(model, first)) / (sum(ones) / 7) - 1)
    assert 1e-4 < apart < 0.1  # it is no mean over sequences, and no further from it
    form = {"sampler": "sgld", "step_size": 1e-4, "num_draws": 50, "num_warmup": 0, "num_chains": 2, "batch_size": 50}
    assert "not_a_mean" not in slt.estimate_llc(model, (tokens, labels), next_token, **form).verdict.names


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
