"""A law that ends among its chains is named, with what is not finite there; what merely overflows is not."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import samplers
import slt
from slt import known
from tests.slt.models import half_squares
from tests.slt.verdicts import named

SEEDS = range(3)
FEW = {"num_draws": 200, "num_warmup": 50, "num_chains": 4}


def masked_root(seed, *, right=False):
    """Outputs √(wx), and 0 where it is negative: torch.where gives the loss there, and NaN for its gradient."""

    def root(z):
        return torch.where(z > 0, torch.where(z > 0, z, 1.0).sqrt() if right else z.sqrt(), 0.0)

    torch.manual_seed(seed)
    x, model = 0.5 * torch.rand(300, 1) + 0.75, nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.04)
        y = root(model(x))
    return model, (x, y), lambda model, batch: 0.5 * (root(model(batch[0])) - batch[1]).square().squeeze(1)


def binary_cross_entropy(model, batch):
    return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1], reduction="none").squeeze(1)


def by_hand(model, batch):
    """0 · log 0 where float32 rounds the probability to one: not a number beyond a logit of 16.6."""
    p = torch.sigmoid(model(batch[0]))
    return -(batch[1] * p.log() + (1 - batch[1]) * (1 - p).log()).squeeze(1)


def logistic(seed):
    """A fitted regression whose largest logit is 16.2."""
    torch.manual_seed(seed)
    x = 4 * torch.randn(1000, 1)
    y = (torch.rand(1000, 1) < torch.sigmoid(x)).float()
    model = nn.Linear(1, 1, bias=False)

    def fit():
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = binary_cross_entropy(model, (x, y)).mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    fit()
    x[int((x * y).argmax())] = 16.2 / float(model.weight.detach())
    fit()
    return model, (x, y)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gradient_that_is_not_finite_where_the_loss_is(seed):
    """λ̂ is 0.916 over the line and 0.541 over its positive half, where all paths stay."""
    estimate = slt.estimate_llc(*masked_root(seed), tolerance=0.15, seed=seed)
    problem = named(estimate, "not_finite_nearby")
    assert problem.evidence["not finite"] == "gradient"
    assert problem.evidence["loss there"] == pytest.approx(0.02, rel=0.05)
    assert problem.evidence["share of proposals that meet it"] > 0.05
    assert "torch.where" in problem.advice


def test_the_right_form_of_it_is_healthy():
    estimate = slt.estimate_llc(*masked_root(0, right=True), tolerance=0.15, budget=600)
    assert "not_finite_nearby" not in estimate.verdict.names
    assert estimate.llc > 0.7


@pytest.mark.parametrize("seed", SEEDS)
def test_a_loss_that_is_not_finite(seed):
    """λ̂ is 0.38 where 0.49 is exact."""
    model, data = logistic(seed)
    estimate = slt.estimate_llc(model, data, by_hand, tolerance=0.12, seed=seed)
    problem = named(estimate, "not_finite_nearby")
    assert problem.evidence["not finite"] == "loss"
    assert problem.evidence["loss there"] == "nan"
    assert "binary_cross_entropy_with_logits" in problem.advice


def test_the_right_form_of_that_is_healthy():
    model, data = logistic(0)
    estimate = slt.estimate_llc(model, data, binary_cross_entropy, tolerance=0.12)
    assert estimate.verdict.ok, estimate.verdict.problems


def test_it_is_found_in_the_metric_of_the_curvature():
    model, data = logistic(0)
    estimate = slt.estimate_llc(model, data, by_hand, metric="curvature", **FEW)
    assert "not_finite_nearby" in estimate.verdict.names


def test_it_is_found_one_chain_at_a_time():
    model, data = logistic(0)
    few = {"num_draws": 60, "num_warmup": 20, "num_chains": 2, "step_size": 0.02, "sampler": "hmc"}
    estimate = slt.estimate_llc(model, data, by_hand, engine="in_place", **few)
    assert "not_finite_nearby" in estimate.verdict.names


@pytest.mark.parametrize("name", ["poly_xyz2", "dln_1111_r0", "relu_nb_H1_zero"])
def test_paths_that_overflow_are_no_edge(name):
    """Of steps over all scales a quarter is thrown out of stiff places, to infinity."""
    case = known.case(name)
    estimate = slt.estimate_llc(case.build(), None, case.loss_fn, n_beta=1e4, **FEW)
    assert estimate.trace.statistics["not_finite"].mean() > 0.1
    assert "not_finite_nearby" not in estimate.verdict.names


class Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))


def with_a_wall(at, beyond=math.nan):
    """A quadratic that ends so many widths of the law from its minimum."""

    def loss(model):
        w = model.w[0]
        return torch.where(w < at * 0.1, 0.5 * w.square(), beyond)

    return loss


@pytest.mark.parametrize(("at", "found"), [(0.5, True), (1.5, True), (5.0, False)])
@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_a_wall_is_named_where_it_cuts_off_what_counts(at, found, beyond):
    """In widths of the law: 1.5 of them leave out 7 % of it, five 3e-7."""
    estimate = slt.estimate_llc(Weight(), None, with_a_wall(at, beyond), n_beta=99.0, sampler="hmc", tolerance=0.1)
    assert ("not_finite_nearby" in estimate.verdict.names) == found


@pytest.mark.parametrize("sampler", ["mala", "replica_exchange", "hmc"])
def test_other_samplers_name_it_too(sampler):
    few = {"n_beta": 75.0, "localization": 25.0, "sampler": sampler, **FEW}
    assert "not_finite_nearby" in slt.estimate_llc(Weight(), None, with_a_wall(1.0), **few).verdict.names
    assert "not_finite_nearby" not in slt.estimate_llc(Weight(), None, with_a_wall(math.inf), **few).verdict.names


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, dtype=torch.float64))


def test_a_kernel_of_ones_own_names_it_too():
    def loss(model):
        return torch.where(model.w[0] < 0.1, 0.5 * model.w.square().sum(), math.nan)

    kernel = samplers.adjusted_mclmc(0.1, 6)
    estimate = slt.estimate_llc(Weights(), None, loss, n_beta=99.0, sampler=kernel, **FEW)
    assert "not_finite_nearby" in estimate.verdict.names


def test_a_barrier_that_the_loss_climbs_is_no_edge():
    """−log(1 − w²) is NaN beyond one, and its law (1 − w²)^nβ has nothing there."""
    estimate = slt.estimate_llc(
        Weight(), None, lambda model: -torch.log(1 - model.w[0].square()), n_beta=100.0, sampler="hmc", step_size=0.4,
        num_draws=500,
    )  # fmt: skip
    assert "not_finite_nearby" not in estimate.verdict.names


def test_healthy_runs_take_nothing_to_know():
    torch.manual_seed(0)
    x, model = torch.randn(200, 2), nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    with torch.no_grad():
        y = model(x) + torch.randn(200, 1)
    estimate = slt.estimate_llc(model, (x, y), half_squares, budget=200, num_draws=100)
    assert not estimate.trace.statistics["not_finite"].any()
    assert "not_finite_nearby" not in estimate.verdict.names


def test_the_count_is_saved_with_the_estimate(tmp_path):
    model, data = logistic(0)
    estimate = slt.estimate_llc(model, data, by_hand, **FEW)
    assert "not_finite_nearby" in estimate.verdict.names
    estimate.save(tmp_path / "estimate.nc")
    again = slt.load_estimate(tmp_path / "estimate.nc")
    assert again.verdict == estimate.verdict
    np.testing.assert_array_equal(again.trace.statistics["not_finite"], estimate.trace.statistics["not_finite"])
