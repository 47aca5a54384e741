"""Metropolis-adjusted microcanonical dynamics against the continuous law; planted errors must fail."""

import importlib

import numpy as np
import pytest
import torch

import samplers
from samplers import Diagonal, from_log_density
from samplers.adjusted_mclmc import adjusted_mclmc
from tests.samplers.assertions import assert_law_is_kept, assert_quadratic
from tests.samplers.laws import LogGamma, Quadratic, random_rotation
from tests.samplers.momenta import REJECTED, mutant
from tests.samplers.test_mclmc import assert_log_gammas, in_law
from tests.statistics import assert_independent_mean, assert_mean

adjusted_module = importlib.import_module("samplers.adjusted_mclmc")


def run(kernel, potential, *, num_chains=512, num_warmup=40, num_draws=80, thinning=1, initial=None):
    return samplers.sample(
        kernel,
        potential,
        torch.zeros(potential.dim, dtype=torch.float64) if initial is None else initial,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        thinning=thinning,
        keep_positions=True,
    )


def assert_gaussian(target, trace):
    """Mean and full covariance in the coordinates of the law, and nβ·E[loss]."""
    assert_quadratic(target, trace)
    own = target.coordinates(trace.positions) * target.stiffness.sqrt().numpy()
    for first in range(target.dim):
        for second in range(first):
            assert_mean(own[..., first] * own[..., second], 0.0)


@pytest.mark.parametrize("rotated", [False, True])
def test_continuous_law_where_the_unadjusted_path_is_far_off(rotated):
    target = Quadratic((0.1, 1.0, 20.0), rotation=random_rotation(3) if rotated else None)
    trace = run(adjusted_mclmc(0.45, 6), target)  # two widths of the stiffest direction in a step
    assert_gaussian(target, trace)
    assert 0.4 < trace.statistics["acceptance_rate"].mean() < 0.9


def test_the_whole_covariance_of_a_rotated_badly_scaled_gaussian():
    """Condition number 1e4, with step sizes from a half to 30 of the stiffest widths; from independent draws of it."""
    target = Quadratic((0.0, 99.0, 9999.0), rotation=random_rotation(3))
    kernel = adjusted_mclmc((0.005, 0.3), 12)
    assert_gaussian(target, run(kernel, target, num_warmup=0, num_draws=80, thinning=3, initial=in_law(target, 512)))
    assert_law_is_kept(kernel, target, 1 / target.stiffness, 20)


def test_step_sizes_per_chain_and_a_preconditioner():
    target = Quadratic((1e-2, 1.0, 100.0), n_beta=2.0, localization=0.0)
    steps = torch.linspace(0.4, 1.5, 512, dtype=torch.float64)[:, None]
    for step_size in (steps, (0.5 * steps, 2 * steps)):
        assert_gaussian(target, run(adjusted_mclmc(step_size, 6, Diagonal(1 / target.stiffness)), target))


@pytest.mark.parametrize("step_size", [0.8, 1.6, (0.1, 2.0)], ids=["one scale", "large steps", "mixed scales"])
def test_independent_log_gammas_with_closed_moments(step_size):
    law, dim = LogGamma(), 4
    target = from_log_density(lambda w: (law.shape * w - w.exp()).sum(-1), dim)
    assert_log_gammas(law, run(adjusted_mclmc(step_size, 4), target).positions)


def test_two_dimensions_the_least():
    target = Quadratic((3.0, 0.5), rotation=random_rotation(2))
    assert_gaussian(target, run(adjusted_mclmc(0.5, 5), target))


def log_alpha_of_the_source(target, position, velocity, step, count):
    """The energy difference of one path by the formulas of the source: cosh, sinh and a loop over half-kicks."""
    dim, gained = target.dim, torch.zeros(len(position), dtype=torch.float64)

    def energy_and_gradient(at):
        loss, gradient = target.loss_and_grad(at)
        total = gradient * target.n_beta
        return loss * target.n_beta + target.localizer.add_gradient_(total, at), total

    start, gradient = energy_and_gradient(position)
    end = start
    for _ in range(count):
        for half in range(2):
            norm = gradient.norm(dim=-1, keepdim=True)
            downhill, strength = -gradient / norm, 0.5 * step * norm / (dim - 1)
            along = (downhill * velocity).sum(-1, keepdim=True)
            factor = strength.cosh() + along * strength.sinh()
            velocity = (velocity + downhill * (strength.sinh() + along * (strength.cosh() - 1))) / factor
            gained = gained + (dim - 1) * factor.log().squeeze(-1)
            if half == 0:
                position = position + step * velocity
                end, gradient = energy_and_gradient(position)
    return start - end - gained


def test_acceptance_is_that_of_the_formulas_of_the_source(monkeypatch):
    target = Quadratic((0.5, 3.0, 9.0), n_beta=2.0, rotation=random_rotation(3))
    kernel = adjusted_mclmc(0.4, 4)
    position = torch.randn(50, 3, dtype=torch.float64)
    noise = torch.randn(50, 3, dtype=torch.float64)
    monkeypatch.setattr(adjusted_module, "standard_normal", lambda *_: noise.clone())
    state = kernel.init(position.clone(), target)
    info = kernel.step_(state, target, None, torch.Generator().manual_seed(0))
    expected = log_alpha_of_the_source(target, position, noise / noise.norm(dim=-1, keepdim=True), 0.4, 4)
    torch.testing.assert_close(info.acceptance_rate, expected.clamp(max=0).exp())
    assert 0.3 < float(info.acceptance_rate.min()) < 0.9


def test_the_energy_error_of_a_path_is_of_second_order():
    """Halving ε quarters it, over a path of the same length."""
    law = from_log_density(lambda w: (2 * w - w.exp()).sum(-1), dim=3)
    errors = []
    for step, count in ((0.08, 5), (0.04, 10), (0.02, 20)):
        kernel = adjusted_mclmc(step, count)
        position = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        info = kernel.step_(kernel.init(position, law), law, None, torch.Generator().manual_seed(1))
        errors.append(float(-info.acceptance_rate.log().sum()))
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert 3.5 < errors[1] / errors[2] < 4.5


def test_without_a_gradient_a_path_is_a_straight_line_of_known_length():
    flat = Quadratic((0.0, 0.0, 0.0), localization=0.0)
    kernel = adjusted_mclmc(0.3, 7)
    state = kernel.init(torch.zeros(5000, 3, dtype=torch.float64), flat)
    generator = torch.Generator().manual_seed(0)
    info = kernel.step_(state, flat, None, generator)
    torch.testing.assert_close(info.acceptance_rate, torch.ones(5000, dtype=torch.float64))
    torch.testing.assert_close(state.position.norm(dim=-1), torch.full((5000,), 2.1, dtype=torch.float64))
    for _ in range(2):
        kernel.step_(state, flat, None, generator)
    assert_independent_mean(state.position.square().sum(-1), 3 * 2.1**2)
    assert_independent_mean(state.position[:, 0], 0.0)
    assert_independent_mean(state.position[:, 0] * state.position[:, 1], 0.0)


def test_replica_exchange_around_it_samples_every_rung():
    target, rungs = Quadratic((1.0, 30.0), localization=2.0), torch.tensor([0.5, 3.0, 20.0], dtype=torch.float64)
    kernel = samplers.replica_exchange(adjusted_mclmc((0.03, 1.0), 5), len(rungs))
    trace = run(kernel, samplers.ladder_potential(target, rungs, 200), num_chains=600)
    losses = samplers.by_rung(trace.loss, len(rungs))
    for rung, n_beta in enumerate(rungs.tolist()):
        stiffness = n_beta * target.h + 2.0
        assert_mean(losses[rung], float((0.5 * target.h / stiffness).sum()))


def test_one_scale_too_large_for_the_wall_is_seen_in_the_acceptance_and_mixed_scales_go_on():
    target = Quadratic((0.0, 1e6))
    single = run(adjusted_mclmc(1.0), target, num_draws=50, num_warmup=0)
    mixed = run(adjusted_mclmc((3e-4, 1.0)), target, num_draws=50, num_warmup=0)
    assert single.statistics["acceptance_rate"].mean() < 0.05
    assert mixed.statistics["acceptance_rate"].mean() > 0.1


def test_an_acceptance_rate_is_met_by_dual_averaging():
    """Many curvatures: with equal ones all paths swing alike, and the rate does not fall steadily with the step."""
    target = Quadratic(torch.logspace(-1.5, 0, 30, dtype=torch.float64))
    trace = samplers.sample(
        adjusted_mclmc(1.0), target, target.anchor, num_chains=32, num_warmup=50, num_draws=100,
        adapt=samplers.accept_at_rate(0.9, num_steps=200),
    )  # fmt: skip
    assert trace.statistics["acceptance_rate"].mean() == pytest.approx(0.9, abs=0.05)


def test_a_proposal_that_leaves_the_finite_numbers_is_refused():
    potential = from_log_density(lambda w: torch.where(w[:, 0] < 1, -0.5 * w.square().sum(-1), torch.nan), dim=2)
    trace = run(adjusted_mclmc((0.1, 1.0), 4), potential)
    assert not trace.diverged
    assert float(trace.positions[..., 0].max()) < 1
    grid = np.linspace(-9, 1, 200_001)
    density = np.exp(-0.5 * grid**2)
    assert_mean(trace.positions[..., 0].numpy(), float((grid * density).sum() / density.sum()))


PLANTED = {
    "no Metropolis test": ("log_alpha, uniform, localization)", "torch.zeros_like(log_alpha), uniform, localization)"),
    "no kinetic energy": ("log_alpha = before - after - gained", "log_alpha = before - after"),
    "kinetic energy of the wrong sign": ("log_alpha = before - after - gained", "log_alpha = before - after + gained"),
    "dim in place of dim - 1": (
        "return kick.energy(potential.dim)",
        "return kick.energy(potential.dim + 1)",
    ),
    "no refreshment": ("velocity = standard_normal(position, generator)", "velocity = torch.ones_like(position)"),
    "a whole kick at the end": (
        "step if place < num_steps - 1 else 0.5 * step",
        "step",
    ),
    "tempered localiser": (
        "+ localization.double()",
        "+ localization.double() * potential.n_beta",
    ),
}


def assert_planted(factory):
    target = Quadratic((0.3, 0.02, 0.1), n_beta=50.0, localization=2.0)
    assert_gaussian(target, run(factory(0.45, 4), target))


def test_without_a_planted_error_nothing_is_rejected():
    assert_planted(adjusted_mclmc)


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_errors_are_rejected(plant):
    with pytest.raises(AssertionError, match=REJECTED):
        assert_planted(mutant("adjusted_mclmc", *PLANTED[plant]))


@pytest.mark.parametrize("plant", ["no Metropolis test", "kinetic energy of the wrong sign", "dim in place of dim - 1"])
def test_planted_errors_are_rejected_by_the_skewed_density(plant):
    """At a step at which the honest kernel passes."""
    law, dim = LogGamma(), 4
    target = from_log_density(lambda w: (law.shape * w - w.exp()).sum(-1), dim)
    kernel = mutant("adjusted_mclmc", *PLANTED[plant])(1.6, 4)
    with pytest.raises(AssertionError, match=REJECTED):
        assert_log_gammas(law, run(kernel, target).positions)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"step_size": (1.0, 0.1)}, "in this order"),
        ({"step_size": (torch.ones(2, 1), torch.tensor([[2.0], [0.5]]))}, "in this order"),
        ({"step_size": (1.0, 2.0, 3.0)}, "one step size, or two"),
        ({"step_size": (0.0, 1.0)}, "step_size: 0.0"),
        ({"step_size": 1.0, "num_steps": 0}, "num_steps: 0"),
    ],
)
def test_bad_settings_are_named(settings, match):
    with pytest.raises(ValueError, match=match):
        adjusted_mclmc(**settings)


def test_one_dimension_is_refused():
    with pytest.raises(ValueError, match=r"dim: 1; expected at least 2 .* Use hmc"):
        adjusted_mclmc(0.1).init(torch.zeros(3, 1, dtype=torch.float64), Quadratic((1.0,)))
