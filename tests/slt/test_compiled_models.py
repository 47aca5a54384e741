"""A model that torch.compile made, or a loss that calls such a function, is as compiled after an estimate as before."""

import pytest
import torch
from torch import nn

import slt
from tests.slt.models import fitted_regression, half_squares

pytestmark = [
    pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6 has no stance"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # of the compiler itself
]


@pytest.fixture
def calls():
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


def compiled(what, calls):
    """Compiled by a backend that changes nothing and keeps count."""

    def backend(graph, inputs):
        def call(*arguments):
            calls.append(len(arguments))
            return graph.forward(*arguments)

        return call

    return torch.compile(what, backend=backend)


def wrapped(model, calls):
    return compiled(model, calls), half_squares


def a_part(model, calls):
    return nn.Sequential(compiled(model, calls), nn.Identity()), half_squares


def of_the_loss(model, calls):
    squares = compiled(lambda outputs, targets: 0.5 * (outputs - targets).square().squeeze(-1), calls)
    return model, lambda model, batch: squares(model(batch[0]), batch[1])


@pytest.mark.parametrize("make", [wrapped, a_part, of_the_loss])
def test_training_goes_on_compiled(make, calls):
    model, data, _ = fitted_regression()
    model, loss_fn = make(model, calls)

    def step():
        before = len(calls)
        model.train()
        loss_fn(model, data).mean().backward()
        return len(calls) - before

    assert step() == 1
    made = len(calls)
    estimate = slt.estimate_llc(model, data, loss_fn, num_warmup=10, num_draws=20, num_chains=2)
    assert estimate.config["engine"][0] == "batched"
    assert len(calls) == made  # it ran as it was written
    assert [step(), step()] == [1, 1]


def test_compiled_or_not_it_is_the_same_number(calls):
    model, data, _ = fitted_regression()
    options = {"num_warmup": 10, "num_draws": 20, "num_chains": 2}
    plain = slt.estimate_llc(model, data, half_squares, **options)
    assert slt.estimate_llc(compiled(model, calls), data, half_squares, **options).llc == plain.llc
