"""``estimate_llc`` by Hamiltonian paths in a metric that is found: the default of data models."""

import itertools
import math

import torch
from torch import nn

import samplers
import slt
from slt import paths
from tests.slt.models import fitted_regression, half_squares, regression_llc
from tests.statistics import MINIMUM_ESS, Z


def stiff_regression(num_samples=300):
    """Inputs whose scales differ by 10³, so that curvatures do by 10⁶; least squares exactly."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([30.0, 1.0, 0.03], dtype=torch.float64)
    x = torch.randn(num_samples, 3, generator=generator, dtype=torch.float64) * scales
    y = torch.randn(num_samples, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return model, (x, y)


def test_curvatures_of_all_sizes_are_at_their_law_with_no_knob():
    """Z = 4: a false alarm once in 16,000. MALA in the identity metric has not moved along the flattest at all."""
    model, data = stiff_regression()
    estimate = slt.estimate_llc(model, data, half_squares, localization=0.01)
    truth = regression_llc(data[0].T @ data[0] / 300, estimate.n_beta, 0.01)
    assert estimate.sampler == "hmc"
    assert estimate.verdict.ok
    assert estimate.ess >= MINIMUM_ESS
    assert abs(estimate.llc - truth) <= Z * estimate.mcse
    assert abs(estimate.llc - 0.9 * truth) > Z * estimate.mcse  # an error of a tenth would be seen
    energy = samplers.diagnose(estimate.trace.statistics["localization_energy"])
    flat = 0.5 * 0.01 / (estimate.n_beta * torch.linalg.eigvalsh(data[0].T @ data[0] / 300) + 0.01)
    assert energy.ess >= MINIMUM_ESS
    assert abs(energy.mean - float(flat.sum())) <= Z * energy.mcse


def test_a_start_without_second_derivatives_or_without_finite_ones():
    """Differences of gradients stand in; and where these are not finite either, the identity."""
    model, data, hessian = fitted_regression()

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
            return gradient

    def once(model, batch):
        return half_squares(lambda x: Once.apply(model(x)), batch)

    def infinite(model, batch):
        """|w|^1.5 at its kink: a gradient of zero, and no second derivative."""
        shift = model.weight - model.weight.detach()
        return half_squares(model, batch) + 0 * shift.abs().pow(1.5).sum()

    truth = regression_llc(hessian, len(data[0]) / math.log(len(data[0])), 1.0)
    for loss_fn, few in ((once, {"engine": "in_place", "num_chains": 4, "budget": 330}), (infinite, {"budget": 400})):
        estimate = slt.estimate_llc(model, data, loss_fn, sampler="hmc", **few)
        assert estimate.ess >= MINIMUM_ESS
        assert abs(estimate.llc - truth) <= Z * estimate.mcse


def test_many_weights_are_whitened_along_the_stiffest_alone(monkeypatch):
    monkeypatch.setattr(paths, "LARGEST_DENSE", 2)
    monkeypatch.setattr(paths, "STIFF_DIRECTIONS", 1)
    model, data = stiff_regression()
    estimate = slt.estimate_llc(model, data, half_squares, sampler="hmc", budget=400)
    assert "rank 1" in estimate.trace.configuration["preconditioner"]


class Product(nn.Module):
    """A product of matrices, of rank one at w* in every layer: all other directions are flat to second order."""

    def __init__(self, widths, scale):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        bases = [torch.randn(width, generator=generator, dtype=torch.float64) for width in widths]
        bases = [basis / basis.norm() for basis in bases]
        self.layers = nn.ParameterList([
            scale * torch.outer(after, before) for before, after in itertools.pairwise(bases)
        ])

    def forward(self, x):
        for weight in self.layers:
            x = x @ weight.T
        return x


def product_of_matrices():
    model = Product((8, 9, 7, 6), 1.0)
    x = 6 * torch.eye(8, dtype=torch.float64)  # of variance 36/8 in each input
    with torch.no_grad():
        data = (x, model(x))
    return model, data, lambda model, batch: (model(batch[0]) - batch[1]).square().sum(-1)


def test_paths_are_longer_where_walls_turn_and_fewer_then(monkeypatch):
    """For the same gradients, long paths are farther along the valleys, which λ̂ needs them to be."""
    model, data, loss_fn = product_of_matrices()
    monkeypatch.setattr(paths, "LARGEST_REFINED", 100)  # all chains start at the anchor, as those of large models
    reached = []
    for most in (100, 10):
        monkeypatch.setattr(paths, "MOST_PATH_STEPS", most)
        estimate = slt.estimate_llc(model, data, loss_fn, n=100_000, budget=300)
        steps = estimate.trace.configuration["num_steps"]
        budget, _ = estimate.config["budget"]
        assert (10 < steps <= 100) if most == 100 else steps == 10
        assert budget == round(300 * 10 / steps)
        assert estimate.config["num_warmup"][0] + estimate.trace.num_draws <= budget
        reached.append(estimate.trace.statistics["localization_energy"].mean())
    assert reached[0] > 1.3 * reached[1]


def test_paths_stay_short_where_the_metric_is_right_and_what_was_asked_for_stays():
    model, data = stiff_regression()
    estimate = slt.estimate_llc(model, data, half_squares, budget=100)
    assert estimate.trace.configuration["num_steps"] == 10
    assert estimate.config["budget"] == (100, "asked for")
    model, data, loss_fn = product_of_matrices()
    estimate = slt.estimate_llc(model, data, loss_fn, n=100_000, num_warmup=5, num_draws=7)
    assert estimate.trace.configuration["num_steps"] > 10
    assert (estimate.config["num_warmup"][0], estimate.trace.num_draws) == (5, 7)
    estimate = slt.estimate_llc(model, data, loss_fn, n=100_000, num_warmup=90, budget=100)
    assert estimate.config["num_warmup"][0] == 90
    assert math.isfinite(estimate.llc)  # what is left of the budget is still a number
