"""Multiplications of a pass, counted where a weight is used at many places, decide whether full data are affordable."""

import pytest
import torch
from torch import nn

import slt
from slt.arithmetic import multiplications_per_sample
from slt.calibrate import EXACT_LIMIT, PRODUCTS, make_plan
from slt.data import as_data


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def images(count):
    return torch.randn(count, 1, 8, 8), torch.randint(10, (count,))


def weights_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def counted(model, data, loss_fn):
    return multiplications_per_sample(model, as_data(data, torch.device("cpu")), loss_fn, weights_of(model))


def test_a_convolution_multiplies_at_every_place():
    # 9 entries, 8 channels and 64 places; 9, 8 × 16 and 16; and a linear layer
    assert counted(convolutional(), images(30), cross_entropy) == 9 * 8 * 64 + 9 * 8 * 16 * 16 + 16 * 10


def test_a_perceptron_of_vectors_multiplies_once_a_weight():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 10))
    assert counted(model, (torch.randn(30, 3), torch.randint(10, (30,))), cross_entropy) == weights_of(model)


def test_a_sequence_multiplies_for_each_token():
    class Readout(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    def next_token(model, batch):
        return nn.functional.cross_entropy(model(batch[0])[:, :-1].flatten(0, 1), batch[0][:, 1:].flatten())

    tokens = torch.randint(7, (30, 12))
    assert counted(Readout(), (tokens,), next_token) == 12 * 4 * 7


def plan_of(model, data, **asked):
    options = {
        "sampler": "auto", "step_size": None, "batch_size": None, "num_chains": None, "num_warmup": None,
        "num_draws": None, "thinning": 1, "budget": None, "seed": 0, "tolerance": 0.05, "anchor_samples": None,
        "control_variates": None, **asked,
    }  # fmt: skip
    with slt.LocalPosterior(model, data, cross_entropy, n_beta=50.0, localization=1.0) as posterior:
        return make_plan(posterior, baseline=2.0, **options)


@pytest.mark.parametrize(("count", "sampler"), [(100, "hmc"), (1000, "baoab")])
def test_what_is_affordable_is_known_by_the_products_of_a_pass(count, sampler):
    model = convolutional()
    assert count * weights_of(model) < EXACT_LIMIT  # by the weights alone both would be
    plan = plan_of(model, images(count))
    assert plan.kernel.name == sampler
    assert "products" in plan.reasons["sampler"]


def test_of_dear_steps_a_default_budget_has_fewer():
    model, data = convolutional(), images(1000)
    products = 9 * 8 * 64 + 9 * 8 * 16 * 16 + 16 * 10
    assert plan_of(model, data).budget == int((PRODUCTS / (8 * 512 * products) - 450) / 1.25)
    assert plan_of(model, data, num_chains=4).budget == int((PRODUCTS / (4 * 512 * products) - 450) / 1.25)
    paired = plan_of(model, data, sampler="sgld", control_variates=True).budget
    assert paired == int(PRODUCTS / (2 * 8 * 512 * products))
    assert plan_of(model, data, batch_size=64).budget == 12_000
    assert plan_of(model, data, num_chains=512).budget == 1000
    assert plan_of(model, data, num_chains=512, budget=7000).budget == 7000
    assert "dear" in plan_of(model, data).reasons["budget"]
