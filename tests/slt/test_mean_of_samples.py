"""A loss of a batch that is not the mean over its samples is named; means, padded a little or not, are not."""

import pytest
import torch
from torch import nn

import slt
from slt.mean_of_samples import check_mean
from slt.parameters import SampledParameters


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


def trained(model, data, loss_fn):
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(model, data).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


@pytest.mark.parametrize("reduce", [torch.Tensor.mean, lambda loss: loss.mean(-1)], ids=["0-d", "(batch,)"])
def test_broadcasting_is_named_where_training_has_made_all_outputs_equal(reduce):
    """At w* the loss of a batch is then the mean of its samples' losses; aside of it, it is not."""
    _, data = regression(100)
    torch.manual_seed(0)

    def loss_fn(model, batch):
        return reduce(0.5 * (model(batch[0]) - batch[1]).square())

    model = trained(nn.Linear(3, 1), data, loss_fn)
    form = {"sampler": "sgld", "step_size": 1e-4, "num_draws": 20, "num_warmup": 0, "num_chains": 2}
    assert "not_a_mean" in slt.estimate_llc(model, data, loss_fn, **form).verdict.names
    right = slt.estimate_llc(model, data, half_squares, **form)
    assert "not_a_mean" not in right.verdict.names


@pytest.mark.parametrize("reduce", [torch.Tensor.mean, lambda loss: loss], ids=["0-d", "(batch,)"])
def test_a_loss_that_is_nothing_but_rounding_at_the_anchor_is_asked_aside(reduce):
    """Of a noiseless teacher in float32: of the same sample it is another in a batch of another size."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(90, outputs, bias=False) for outputs in (90, 90, 1)))
    x = 20 * torch.rand(200, 90) - 10
    data = x, model(x).detach()

    def squares(model, batch):
        return reduce((model(batch[0]) - batch[1]).square().mean(-1))

    few = data[0][:8], data[1][:8]
    with torch.no_grad():
        together = (model(few[0]) - few[1]).square().mean()
        alone = torch.stack([(model(few[0][[one]]) - few[1][[one]]).square().mean() for one in range(8)]).mean()
    assert abs(together - alone) > 0.1 * max(together, alone)  # or this would be no test of it
    form = {"sampler": "sgld", "step_size": 1e-9, "num_draws": 20, "num_warmup": 0, "num_chains": 2, "batch_size": 50}
    assert "not_a_mean" not in slt.estimate_llc(model, data, squares, **form).verdict.names
    fourth = slt.estimate_llc(model, data, lambda model, batch: squares(model, batch).mean().square(), **form)
    assert "not_a_mean" in fourth.verdict.names


@pytest.mark.parametrize("parameters", [None, "*.bias"])
def test_rounding_of_weights_that_are_not_sampled_is_rounding_too(parameters):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 4))
    with torch.no_grad():
        for layer in model[::2]:
            layer.bias.zero_()
    x = torch.randn(200, 64)
    data = x, model(x).detach()

    def squares(model, batch):
        return (model(batch[0]) - batch[1]).square().mean(-1)

    sampled = SampledParameters(model, parameters)
    assert check_mean(model, tuple(part[:64] for part in data), squares, sampled) is None
    grown = check_mean(model, data, lambda model, batch: squares(model, batch).mean() * len(batch[0]) ** 0.5, sampled)
    assert grown is not None


def contrastive_of_each(model, batch):
    outputs = model(batch[0]) @ batch[1].unsqueeze(0)
    return nn.functional.cross_entropy(outputs, torch.arange(len(outputs)), reduction="none")


def over_the_batch(model, batch):
    outputs = model(batch[0])
    return 0.5 * ((outputs - outputs.mean(0)).squeeze(1) - batch[1]).square()


@pytest.mark.parametrize("loss_fn", [contrastive_of_each, over_the_batch])
def test_losses_of_each_sample_that_depend_on_the_others_are_named(loss_fn):
    assert "not_a_mean" in estimated(loss_fn).verdict.names


def test_a_loss_that_takes_two_samples_at_least_is_asked_of_two():
    """In eval mode too such a BatchNorm has the mean of the batch."""
    _, data = regression()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1))
    model = trained(model, data, half_squares)
    form = {"sampler": "sgld", "step_size": 1e-4, "num_draws": 20, "num_warmup": 0, "num_chains": 2, "batch_size": 16}
    assert "not_a_mean" in slt.estimate_llc(model, data, half_squares, **form).verdict.names


def test_a_sum_is_refused_where_its_loss_is_zero():
    model, (x, _) = regression()
    data = x, model(x).detach()

    def squares(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().sum()

    with pytest.raises(ValueError, match="samples that are given twice"):
        slt.estimate_llc(model, data, squares)


@pytest.mark.parametrize("decay", [1e-3, 0.05, 10.0])
def test_a_sum_is_refused_beside_weight_decay(decay):
    """Which is not doubled with the samples: λ̂ was 2.0 for 0.7, and healthy. Added to a mean it is none."""
    model, data = regression()

    def of_weights(model):
        return decay * sum(parameter.square().sum() for parameter in model.parameters())

    few = {"num_draws": 10, "num_warmup": 5, "num_chains": 2, "sampler": "mala", "progress": False}
    with pytest.raises(ValueError, match="as much more each time that they are given again"):
        slt.estimate_llc(model, data, lambda model, batch: half_squares(model, batch).sum() + of_weights(model), **few)
    slt.estimate_llc(model, data, lambda model, batch: half_squares(model, batch).mean() + of_weights(model), **few)


def test_a_mean_of_weights_by_class_is_one():
    """Of samples aside of the anchor too: it lies between their losses."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 4, generator=generator), torch.randint(3, (300,), generator=generator)
    weight = torch.tensor([1.0, 1.1, 0.9])
    model = trained(
        nn.Linear(4, 3), (x, y), lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    )

    def weighted(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], weight=weight)

    form = {"sampler": "sgld", "step_size": 1e-4, "num_draws": 20, "num_warmup": 0, "num_chains": 2}
    assert "not_a_mean" not in slt.estimate_llc(model, (x, y), weighted, **form).verdict.names


def test_a_ladder_of_a_loss_that_is_no_mean_says_so():
    found = slt.estimate_rlct(*regression(50), broadcast, budget=20_000, max_rounds=1, num_particles=50)
    assert "not_a_mean" in found.verdict.names
