"""A loss that is a ratio within each batch is named where it moves λ̂; one that is a mean over samples never is."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import slt

SHORT = {"num_warmup": 20, "num_draws": 60, "num_chains": 4, "step_size": 1e-3, "progress": False}


def classes(count, ordered=False):
    """A rare class whose samples are easy."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(count, generator=generator) < 0.1).long()
    if ordered:
        y = y.sort()[0]
    x = torch.randn(count, 3, generator=generator)
    x[:, 0] = torch.where(y == 1, 1.6 + 0.4 * x[:, 0], x[:, 0])
    return fitted(nn.Linear(3, 2), (x, y), weighted), (x, y)


def fitted(model, data, loss_fn):
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(model, data)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def weighted(model, batch):
    """The mean that torch takes with weights of classes: over their sum in the batch."""
    return cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([0.55, 5.0]))


def weighted_each(model, batch):
    """A fixed factor for every sample, and a mean over them."""
    return cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([0.55, 5.0]), reduction="none")


@pytest.mark.parametrize("engine", ["batched", "in_place"])
def test_a_mean_weighted_within_minibatches_is_named(engine):
    model, data = classes(20_000)
    options = {**SHORT, "sampler": "sgld", "batch_size": 128, "engine": engine}
    estimate = slt.estimate_llc(model, data, weighted, **options)
    (problem,) = (problem for problem in estimate.verdict.problems if problem.name == "not_a_mean")
    assert "weighted within each batch" in problem.advice
    assert "not_a_mean" not in slt.estimate_llc(model, data, weighted_each, **options).verdict.names


@pytest.mark.parametrize("batch_size", [8, 32])
def test_a_mean_over_tokens_that_are_no_padding_is_named(batch_size):
    """By as many batches as it takes: 32 leave the bias of batches of 32 sequences within chance."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 13, (4000, 1), generator=generator)
    x = torch.randn(4000, 12, 4, generator=generator)
    weights = torch.randn(4, 8, generator=generator) * torch.where(lengths > 6, 0.3, 2.0).unsqueeze(-1)
    y = torch.distributions.Categorical(logits=x @ weights).sample()
    y[torch.arange(12) >= lengths] = -100

    def over_tokens(model, batch):
        return cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    def over_samples(model, batch):
        each = cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), reduction="none")
        return each.view(len(batch[1]), 12).sum(1) / 6.5

    model = fitted(nn.Linear(4, 8), (x, y), over_tokens)
    options = {**SHORT, "num_draws": 3000, "sampler": "sgld", "batch_size": batch_size}
    assert "not_a_mean" in slt.estimate_llc(model, (x, y), over_tokens, **options).verdict.names
    assert "not_a_mean" not in slt.estimate_llc(model, (x, y), over_samples, **options).verdict.names


def test_full_data_that_chains_take_in_other_chunks_is_named():
    model, data = classes(6000, ordered=True)
    options = {**SHORT, "sampler": "mala"}
    assert "not_a_mean" in slt.estimate_llc(model, data, weighted, **options).verdict.names
    assert "not_a_mean" not in slt.estimate_llc(model, data, weighted_each, **options).verdict.names
    few = tuple(tensor[::2] for tensor in data)  # which all take whole: a law of its own, and λ̂ is right
    assert "not_a_mean" not in slt.estimate_llc(model, few, weighted, **options).verdict.names
