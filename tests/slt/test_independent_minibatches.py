"""Minibatches are of independent samples, and their losses are less those of their samples at w*."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import slt
from slt.data import TensorData
from tests.statistics import assert_mean

N, DIM, BATCH = 2000, 20, 16


def regression(n=N, dim=DIM):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, dim, generator=generator)
    y = x.sum(-1, keepdim=True) + torch.randn(n, 1, generator=generator)
    model = torch.nn.Linear(dim, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return model, (x, y)


def half_squares(model, batch):
    """Of each sample."""
    return 0.5 * (model(batch[0]) - batch[1]).square().squeeze(-1)


def mean_of_half_squares(model, batch):
    return half_squares(model, batch).mean()


def excess_of_recorded_losses():
    """nβ times the losses that a run kept, less those of all data at the very same weights, ``(chain, draw)``."""
    model, data = regression()
    found = slt.estimate_llc(
        model, data, half_squares, sampler="baoab", batch_size=BATCH, num_chains=64, num_draws=1000, num_warmup=300,
        keep_positions=True, progress=False,
    )  # fmt: skip
    x, y = (each.double() for each in data)
    best = torch.linalg.lstsq(x, y).solution
    offset = found.trace.positions.double() - best.squeeze(1)
    of_all = 0.5 * ((offset @ (x.T @ x / N)) * offset).sum(-1) + 0.5 * (y - x @ best).square().mean()
    return found.n_beta * (found.trace.loss - of_all.numpy())


def test_the_losses_of_batches_are_those_of_the_data_in_the_mean():
    """λ̂ is 10, and would be 0.6 too high by the batches that are left of an epoch."""
    assert_mean(excess_of_recorded_losses(), 0.0)


def test_batches_of_epochs_would_be_found_out(monkeypatch):
    """A planted error: the batches left of an epoch are those to which the chain was not pulled."""
    monkeypatch.setattr(TensorData, "minibatches", TensorData.epochs)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(excess_of_recorded_losses(), 0.0)


@pytest.mark.parametrize("loss_fn", [half_squares, mean_of_half_squares])
@pytest.mark.parametrize("engine", ["batched", "in_place"])
def test_at_the_anchor_every_batch_has_the_loss_of_the_data(engine, loss_fn):
    model, data = regression()
    with slt.LocalPosterior(model, data, loss_fn, n_beta=10.0, localization=1.0, engine=engine) as posterior:
        chains = 1 if engine == "in_place" else 3
        anchor = posterior.anchor.expand(chains, -1).contiguous()
        batches = posterior.minibatches(BATCH)(torch.Generator().manual_seed(0), chains)
        before = torch.stack([posterior.loss_and_grad(anchor, next(batches))[0] for _ in range(20)])
        cost = posterior.centre_samples()
        assert cost == pytest.approx(1 / 3)
        batches = posterior.minibatches(BATCH)(torch.Generator().manual_seed(0), chains)
        after = torch.stack([posterior.loss_and_grad(anchor, next(batches))[0] for _ in range(20)])
        assert before.std() > 0.01
        torch.testing.assert_close(after, torch.full_like(after, posterior.loss_at_anchor()))


def test_gradients_stay_and_losses_lose_the_same_wherever_the_chain_is():
    model, data = regression()
    of_samples = half_squares(model, data).detach()
    with slt.LocalPosterior(model, data, half_squares, n_beta=10.0, localization=1.0) as posterior:
        places = torch.stack([posterior.anchor, posterior.anchor + 0.3])
        batch = next(posterior.minibatches(BATCH)(torch.Generator().manual_seed(0), 2))
        losses, gradients = (each.clone() for each in posterior.loss_and_grad(places, batch))
        posterior.centre_samples()
        centred, same = posterior.loss_and_grad(places, batch)
        torch.testing.assert_close(same, gradients)
        excess = (of_samples - of_samples.mean())[batch.rows].mean(1)
        torch.testing.assert_close(losses - centred, excess, rtol=1e-4, atol=1e-6)


def test_no_losses_of_samples_are_taken_where_there_are_none(monkeypatch):
    """Of batches of the user's, of a loss that refuses single samples, and of one that is not finite for one."""
    model, (x, y) = regression(n=40)

    def of_many(model, batch):
        assert len(batch[0]) > 1
        return mean_of_half_squares(model, batch)

    def of_one_without(model, batch):
        return half_squares(model, batch) + torch.where(batch[1].squeeze(-1) == y[30], torch.inf, 0.0)

    for loss_fn in (of_many, of_one_without):
        with slt.LocalPosterior(model, (x, y), loss_fn, n_beta=10.0, localization=1.0) as posterior:
            assert posterior.centre_samples() == 0.0
            assert posterior.engine.excess is None
    monkeypatch.setattr("slt.data.MEMORY_LIMIT", 100)
    streamed = DataLoader(TensorDataset(x, y), batch_size=10)
    with slt.LocalPosterior(model, streamed, half_squares, n_beta=10.0, localization=1.0) as posterior:
        assert posterior.centre_samples() == 0.0


def test_a_run_says_so_in_its_noise():
    """nβ·loss varies by what the weights make of it, √(d/2), and by the batch's slope; not by the noise of a loss."""
    model, data = regression()
    form = {"sampler": "sgld", "step_size": 1e-6, "num_draws": 100, "num_warmup": 0, "batch_size": BATCH}
    found = slt.estimate_llc(model, data, half_squares, progress=False, **form)
    at_anchor = math.sqrt(float(half_squares(model, data).detach().var()) / BATCH)
    assert found.trace.loss[:, :10].std() < 0.3 * at_anchor
