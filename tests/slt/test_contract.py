"""What a loss, a module and data must not do: refused, or served by another engine, and all comes back as it was."""

import numpy as np
import pytest
import torch
from torch import nn

import slt
from tests.slt.models import fitted_regression, mean_squared, perceptron
from tests.slt.test_posterior import posterior


def test_a_weight_read_from_elsewhere_as_well_is_refused():
    """Tied through a list: of the two places where the weight is used, one would stay."""

    class HalfTied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(3, 2, bias=False)
            self.kept = [self.encoder.weight]

        def forward(self, x):
            return self.encoder(x) @ self.kept[0]

    x = torch.randn(9, 3)
    with pytest.raises(ValueError, match="encoder.weight from another reference"):
        posterior(HalfTied(), (x, x), mean_squared)


def test_a_batch_that_the_loss_changes_is_refused_and_stays_the_users():
    x, y = torch.randn(9, 3), torch.randn(9, 1)
    kept = x.clone()

    def halves(model, batch):
        batch[0].div_(2)
        return mean_squared(model, batch)

    with pytest.raises(ValueError, match=r"changes a tensor of its batch in place, of shape \(7, 3\)"):
        posterior(nn.Linear(3, 1), (x, y), halves)
    assert torch.equal(x, kept)


class Clamped(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.clamp_(min=0)
        return super().forward(x)


@pytest.mark.parametrize(
    ("model", "x"),
    [(Clamped(3, 2), torch.randn(9, 3)), (nn.Embedding(5, 2, max_norm=0.1), torch.arange(9) % 5)],
    ids=["clamp_", "max_norm"],
)
def test_a_forward_pass_that_changes_weights_is_refused_and_they_stay(model, x):
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="its forward pass changes weight in place"):
        posterior(model, (x, torch.randn(9, 2)), mean_squared)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    "chosen", [lambda weight: weight.requires_grad, lambda weight: isinstance(weight, nn.Parameter)]
)
def test_a_penalty_over_parameters_that_are_none_under_vmap_is_not_lost(chosen):
    """It is zero at the anchor, where a comparison alone would not see it."""
    model, data, _ = fitted_regression()
    with torch.no_grad():
        model.weight.zero_()

    def penalized(model, batch):
        return mean_squared(model, batch) + sum(w.square().sum() for w in model.parameters() if chosen(w))

    with posterior(model, data, penalized, engine="auto") as potential:
        assert potential.engine.name == "in_place"
        assert "differs from the plain one" in potential.engine_reason
        loss, _ = potential.loss_and_grad(torch.full((1, 3), 2.0, dtype=torch.float64))
    with torch.no_grad():
        model.weight.fill_(2.0)
    assert float(loss) == pytest.approx(float(mean_squared(model, data).detach()) + 12.0)
    with pytest.raises(ValueError, match="engine: 'batched' was asked for, but its vectorised loss"):
        posterior(model, data, penalized, engine="batched")


def test_hooks_and_containers_are_not_left_with_tensors_of_many_chains():
    model, data, loss_fn = perceptron()
    seen = {}
    handle = model[0].register_forward_hook(lambda module, inputs, output: seen.update(last=output))
    estimate = slt.estimate_llc(model, data, loss_fn, sampler="sgld", step_size=1e-4, num_draws=3, num_warmup=0)
    assert "forward hooks" in estimate.config["engine"][1]
    assert np.isfinite(float(seen["last"].detach().mean()))
    handle.remove()

    class Keeps(nn.Linear):
        def __init__(self):
            super().__init__(3, 1)
            self.activations = {"all": []}

        def forward(self, x):
            self.activations["all"] = [super().forward(x)]
            return self.activations["all"][0]

    keeps, (x, y) = Keeps(), (torch.randn(9, 3), torch.randn(9, 1))
    with posterior(keeps, (x, y), mean_squared, engine="auto") as potential:
        assert "keeps tensors in .activations['all'][0]" in potential.engine_reason
    assert np.isfinite(float(keeps.activations["all"][0].detach().mean()))


def test_data_with_a_graph_or_of_inference_mode():
    model = nn.Linear(3, 1)
    x = torch.randn(9, 3)
    with torch.inference_mode():
        y = torch.randn(9, 1)
    for targets in (y, model(x)):
        for engine in ("batched", "in_place"):
            with posterior(model, (x, targets), mean_squared, engine=engine) as potential:
                for _ in range(2):
                    potential.loss_and_grad(potential.anchor[None].clone())


@pytest.mark.parametrize(
    ("loss_fn", "told"),
    [(nn.functional.mse_loss, "mse_loss takes outputs"), (nn.MSELoss(), "MSELoss takes outputs"), (None, "None is no")],
)
def test_what_is_no_loss_of_a_module_and_a_batch_is_told_so(loss_fn, told):
    model, data, _ = perceptron()
    with pytest.raises(TypeError, match=f"loss_fn: {told}.*expected loss_fn\\(model, batch\\)"):
        posterior(model, data, loss_fn)


@pytest.mark.parametrize("engine", ["auto", "in_place"])
def test_what_is_random_in_a_few_samples_is_named_as_that(engine):
    """One number in two hundred is dropped: of the seven samples that are looked at before the run hardly any."""
    model, data, _ = fitted_regression(n=2000)

    def rarely(model, batch):
        return mean_squared(model, (nn.functional.dropout(batch[0], 0.005), batch[1]))

    few = {"sampler": "sgld", "step_size": 1e-4, "num_draws": 5, "num_warmup": 0, "num_chains": 2, "engine": engine}
    assert "stochastic_forward" in slt.estimate_llc(model, data, rarely, **few).verdict.names
