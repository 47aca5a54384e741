"""Passes in sequence that nobody asked for by size hold no more samples than a machine that trains the model."""

import numpy as np
import torch
from torch import nn

import slt
from slt.data import TensorData
from slt.engines import activations, in_place
from slt.engines.activations import bytes_per_sample
from slt.parameters import SampledParameters
from tests.slt.test_posterior import posterior

WIDTH = 500


class Wide(nn.Module):
    """Keeps the exponentials of a thousand numbers of each sample for their gradient; notes how many it was given."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((WIDTH,), 0.1, dtype=torch.float64))
        self.given = []

    def forward(self, x):
        self.given.append(len(x))
        return (x * self.scale).exp()


def loss_fn(model, batch):
    return 0.5 * (model(batch) - 1).square().mean(1)


DATA = torch.randn(40, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def limit(monkeypatch, samples):
    """As if so many samples filled a machine."""
    data = TensorData(DATA, torch.device("cpu"))
    of_one = bytes_per_sample(data, loss_fn, SampledParameters(Wide()))
    assert 2 * 8 * WIDTH <= of_one <= 6 * 8 * WIDTH
    monkeypatch.setattr(in_place, "MOST_BYTES", samples * of_one)


def test_the_full_data_are_taken_in_pieces_of_what_fits_and_the_loss_is_the_same(monkeypatch):
    with posterior(Wide(), DATA, loss_fn, engine="in_place") as potential:
        position = potential.anchor[None] * 1.1
        loss, gradient = (found.clone() for found in potential.loss_and_grad(position))
        assert max(potential.model.given) == 40
    limit(monkeypatch, 6)
    with posterior(Wide(), DATA, loss_fn, engine="in_place") as potential:
        potential.anchor_loss()
        found, other = potential.loss_and_grad(position)
        assert max(potential.model.given[-14:]) == 6
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(other, gradient)


def test_no_pass_of_an_estimate_by_minibatches_is_larger_than_what_fits(monkeypatch):
    limit(monkeypatch, 9)
    model, few = Wide(), {"num_draws": 5, "num_warmup": 0, "num_chains": 2, "step_size": 1e-4, "engine": "in_place"}
    estimate = slt.estimate_llc(model, DATA, loss_fn, sampler="sgld", **few)
    assert estimate.config["batch_size"] == (9, f"whose activations are at most {activations.MOST_BYTES >> 30} GiB")
    assert np.isfinite(estimate.llc)
    assert max(model.given) <= 14  # of seven samples given twice, whether their loss is a sum
    model.given.clear()
    asked = slt.estimate_llc(model, DATA, loss_fn, sampler="sgld", batch_size=20, **few)
    assert asked.config["batch_size"] == (20, "asked for")
    assert max(model.given) == 20


def test_batches_whose_first_tensor_is_one_number():
    model = nn.Linear(3, 1)
    batches = [{"scale": torch.tensor(2.0), "x": torch.randn(size, 3)} for size in (4, 6)]
    with posterior(model, batches, lambda model, batch: (batch["scale"] * model(batch["x"])).square().mean()) as found:
        assert found.engine.name == "in_place"
        found.loss_and_grad(found.anchor[None].clone())
