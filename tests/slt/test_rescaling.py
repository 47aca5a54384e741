"""λ̂ in the curvature metric: the closed form, and the same number at every scale of the weights."""

import copy

import numpy as np
import pytest
import torch

import slt
from slt.callbacks import LLCMonitor
from tests.slt.models import fitted_regression, half_squares
from tests.slt.test_metric import relu, rescaled
from tests.statistics import MINIMUM_ESS, Z

SCALES = torch.tensor([1e3, 1.0, 1e-3], dtype=torch.float64)


def exact(hessian, n_beta, localization, metric):
    """½ tr( nβS (nβS + γ diag D)⁻¹ )."""
    stiffness = n_beta * hessian + localization * torch.diag(metric)
    return float(0.5 * torch.linalg.solve(stiffness, n_beta * hessian).trace())


def of_inputs_rescaled():
    model, (x, y), hessian = fitted_regression()
    with torch.no_grad():
        model.weight.div_(SCALES)
    return model, (x * SCALES, y), hessian * SCALES * SCALES.unsqueeze(1)


@pytest.mark.parametrize(
    ("make", "sampler"),
    [(fitted_regression, "mala"), (of_inputs_rescaled, "mala"), (of_inputs_rescaled, "replica_exchange")],
)
def test_the_closed_form(make, sampler):
    model, data, hessian = make()
    estimate = slt.estimate_llc(
        model, data, half_squares, n_beta=4.0, localization=2.0, metric="curvature", sampler=sampler,
        num_chains=32 if sampler == "mala" else 8, num_draws=500, num_warmup=100,
    )  # fmt: skip
    truth = exact(hessian, 4.0, 2.0, hessian.diagonal())
    assert estimate.ess >= MINIMUM_ESS
    assert abs(estimate.llc - truth) <= Z * estimate.mcse
    isotropic = exact(hessian, 4.0, 2.0, torch.ones(3))
    if make is of_inputs_rescaled:  # as_it_is, the inputs are white, and the two metrics alike
        assert abs(estimate.llc - isotropic) > 2 * Z * estimate.mcse


def test_a_metric_that_is_given():
    model, data, hessian = fitted_regression()
    metric = torch.tensor([0.1, 5.0, 20.0], dtype=torch.float64)
    estimate = slt.estimate_llc(
        model, data, half_squares, n_beta=4.0, metric=metric, num_chains=128, num_draws=250, num_warmup=100
    )
    assert abs(estimate.llc - exact(hessian, 4.0, 1.0, metric)) <= Z * estimate.mcse
    assert "γ 1 (given metric)" in repr(estimate)
    check = estimate.cross_check()  # the localiser's energy is that of the metric
    truth = exact(hessian, 4.0 * 1.001, 1.0, metric) - exact(hessian, 4.0, 1.0, metric)
    found = check.sensitivity_to_localization
    assert abs(found.value + truth / 0.001) <= Z * found.mcse  # λ̂ depends on nβ/γ alone


def taught():
    """A ReLU network at the truth of noisy data: near a minimum."""
    model, (x, _), _ = relu()
    noise = torch.randn(len(x), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return model, (x, model(x).detach() + noise), half_squares_over_outputs


def half_squares_over_outputs(model, batch):
    return 0.5 * (model(batch[0]) - batch[1]).square().sum(-1)


SAMPLERS = {
    "mala": {"sampler": "mala", "step_size": 0.02},
    "sgld": {"sampler": "sgld", "batch_size": 20, "step_size": 0.0005},
    "replica exchange": {"sampler": "replica_exchange", "num_chains": 2},
    "in place": {"engine": "in_place", "batch_size": 20, "step_size": 0.0005},
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_chains_of_a_relu_network_do_not_know_its_scales(sampler):
    """By layer, and by unit: the losses of all draws are the same but for rounding.

    The chains are short: on a loss that is not convex, and has kinks, they grow rounding exponentially.
    """
    model, data, loss_fn = taught()
    settings = {"num_chains": 2, "num_warmup": 5, "num_draws": 20, **SAMPLERS[sampler]}

    def losses(factors, metric):
        other, _ = rescaled(model, factors)
        return slt.estimate_llc(other, data, loss_fn, n_beta=20.0, metric=metric, **settings).trace.loss

    reference = losses(1.0, "curvature")
    assert reference.std() > 0
    for factors in (1e-4, 1e4, torch.logspace(-2, 2, 6)):
        np.testing.assert_allclose(losses(factors, "curvature"), reference, rtol=1e-7)
    plain = losses(1.0, "identity")
    assert not np.allclose(losses(1e4, "identity"), plain, rtol=0.01)  # the planted error


def test_a_singular_anchor_at_zero_has_the_identity():
    known = slt.known.case("poly_xy2")
    both = [
        slt.estimate_llc(known.build(), None, known.loss_fn, n_beta=100.0, metric=metric, num_draws=50, num_warmup=20)
        for metric in ("identity", "curvature")
    ]
    np.testing.assert_allclose(both[1].trace.loss, both[0].trace.loss, rtol=1e-12)


def test_positions_come_back_as_weights():
    model, data, loss_fn = relu()
    estimate = slt.estimate_llc(
        model, data, loss_fn, n_beta=20.0, metric="curvature", num_draws=20, num_warmup=5, keep_positions=True
    )
    with slt.LocalPosterior(model, data, loss_fn, n_beta=20.0, localization=1.0, metric="curvature") as posterior:
        positions = estimate.trace.positions
        loss, _ = posterior.loss_and_grad(positions[:, -1])
        energy = posterior.localizer.energy(positions[:, -1])
    np.testing.assert_allclose(loss.numpy(), estimate.trace.loss[:, -1], rtol=1e-10)
    np.testing.assert_allclose(
        energy.numpy(), estimate.trace.statistics["localization_energy"][:, -1], rtol=1e-8, atol=1e-12
    )


def test_the_result_says_which_metric(tmp_path):
    model, data, loss_fn = relu()
    few = {"num_draws": 20, "num_warmup": 5, "num_chains": 2}
    estimate = slt.estimate_llc(model, data, loss_fn, metric="curvature", **few)
    plain = slt.estimate_llc(model, data, loss_fn, **few)
    assert estimate.metric == estimate.to_dict()["metric"] == "curvature"
    assert "γ 1 (curvature metric)" in repr(estimate)
    assert "the Hessian's diagonal at w*, entry by entry, of 80 samples" in estimate.summary()
    assert estimate.num_gradients > plain.num_gradients
    assert plain.metric == "identity"
    assert "metric)" not in repr(plain)
    estimate.save(tmp_path / "estimate.nc")
    loaded = slt.load_estimate(tmp_path / "estimate.nc")
    assert (loaded.metric, repr(loaded)) == ("curvature", repr(estimate))


def test_sweeps_and_monitors_pass_it_on(tmp_path):
    model, data, loss_fn = relu()
    few = {"num_draws": 20, "num_warmup": 5, "num_chains": 2, "metric": "curvature"}
    torch.save(model.state_dict(), tmp_path / "step-1.pt")
    result = slt.sweep(model, tmp_path / "step-1.pt", data, loss_fn, **few)
    assert result.rows[0].to_dict()["metric"] == "curvature"
    monitor = LLCMonitor(data, loss_fn, every=1, **few)
    before = copy.deepcopy(model.state_dict())
    assert monitor.step(model, 0).metric == "curvature"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_units_permuted():
    """The law is the permuted one: in units of the metric, losses and gradients of permuted positions are the same."""
    model, data, loss_fn = taught()
    order = torch.randperm(6)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight[order])
        other[0].bias.copy_(model[0].bias[order])
        other[2].weight.copy_(model[2].weight[:, order])
    settings = {"n_beta": 20.0, "localization": 1.0, "metric": "curvature"}
    first, second = (slt.LocalPosterior(each, data, loss_fn, **settings) for each in (model, other))
    places = first.sampled.unflatten(torch.arange(first.dim))
    moved = torch.cat([
        {"0.weight": places["0.weight"][order], "0.bias": places["0.bias"][order],
         "2.weight": places["2.weight"][:, order], "2.bias": places["2.bias"]}[name].flatten()
        for name in second.sampled.names
    ])  # fmt: skip
    u = torch.randn(3, first.dim, dtype=torch.float64)
    with first:
        loss, gradient = first.target.loss_and_grad(u)
    with second:
        permuted_loss, permuted = second.target.loss_and_grad(u[:, moved])
    torch.testing.assert_close(permuted_loss, loss)
    torch.testing.assert_close(permuted, gradient[:, moved])
