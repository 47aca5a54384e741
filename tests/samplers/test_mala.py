"""MALA against the continuous law, at steps where an unadjusted chain is far off; planted errors must fail."""

import importlib

import pytest
import torch

import samplers
from samplers import Diagonal, Unlocalized
from tests.samplers.assertions import assert_law_is_kept, assert_quadratic, assert_skewed
from tests.samplers.laws import LogGamma, Quadratic, random_rotation
from tests.statistics import assert_mean

mala_module = importlib.import_module("samplers.mala")


def run(potential, step_size, preconditioner=None, num_chains=192, num_draws=2000, num_warmup=1000):
    """Many chains and few draws: a step costs more than its chains."""
    return samplers.sample(
        samplers.mala(step_size, preconditioner),
        potential,
        torch.zeros(potential.dim, dtype=torch.float64),
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_draws=num_draws,
        keep_positions=True,
    )


@pytest.mark.parametrize("rotated", [False, True])
def test_continuous_law_on_quadratics(rotated):
    target = Quadratic((0.1, 1.0, 20.0), rotation=random_rotation(3) if rotated else None)
    trace = run(target, 0.12)  # εA/4 = 0.63 in the stiffest direction: SGLD's variance there is 2.7 times too large
    assert_quadratic(target, trace)
    assert 0.3 < trace.statistics["acceptance_rate"].mean() < 0.95


def test_the_whole_covariance_of_a_badly_scaled_gaussian_is_kept():
    """Condition number 1e4, rotated, at ε = 0.5 to 1.5 of the stiffest variance."""
    target = Quadratic((0.0, 99.0, 9999.0), rotation=random_rotation(3))
    for step_size in (5e-5, 1.5e-4):
        assert_law_is_kept(samplers.mala(step_size), target, 1 / target.stiffness, num_steps=500)


def test_continuous_law_under_a_preconditioner_and_step_sizes_per_chain():
    target = Quadratic((0.1, 1.0, 100.0), n_beta=2.0)
    scale = 1 / target.stiffness
    steps = torch.linspace(0.3, 1.5, 192, dtype=torch.float64)[:, None]
    assert_quadratic(target, run(target, steps, Diagonal(scale)))


def test_skewed_density_with_closed_moments():
    law = LogGamma()
    assert_skewed(law, run(law.potential, 0.8))


def _doubled_noise(monkeypatch):
    honest = mala_module.standard_normal
    monkeypatch.setattr(mala_module, "standard_normal", lambda *arguments: honest(*arguments) * 2**0.5)


def _no_metropolis(monkeypatch):
    honest = mala_module.torch.rand

    def always_accepting(*size, **kind):
        uniform_of_the_decision = isinstance(size[0], int)  # the draw of the step size asks for a shape
        return torch.zeros(size, dtype=kind["dtype"]) if uniform_of_the_decision else honest(*size, **kind)

    monkeypatch.setattr(mala_module.torch, "rand", always_accepting)


def _uncorrected_proposal(monkeypatch):
    """Accept by energy alone, as if the proposal were symmetric: the drift terms of the ratio vanish."""
    honest = mala_module.Identity.apply_root_
    calls = {"count": 0}

    def every_second_is_the_mean_drift(self, x, columns=slice(None)):
        calls["count"] += 1
        return honest(self, x, columns) if calls["count"] % 2 else torch.zeros_like(x)

    monkeypatch.setattr(mala_module.Identity, "apply_root_", every_second_is_the_mean_drift)


@pytest.mark.parametrize("plant", [_doubled_noise, _no_metropolis, _uncorrected_proposal])
def test_planted_errors_are_rejected(plant, monkeypatch):
    law, target = LogGamma(), Quadratic((1.0, 20.0))
    plant(monkeypatch)
    shorter = {"num_draws": 1000, "num_warmup": 500}
    with pytest.raises(AssertionError, match="standard errors"):
        assert_skewed(law, run(law.potential, 0.8, **shorter))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_quadratic(target, run(target, 0.12, **shorter))


def test_a_missing_localizer_is_rejected(monkeypatch):
    target = Quadratic((1.5, 20.0))
    assert_quadratic(target, run(target, 0.1))
    monkeypatch.setattr(samplers.GaussianLocalizer, "add_gradient_", Unlocalized.add_gradient_)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_quadratic(target, run(target, 0.1, num_draws=1000))


def test_proposals_without_a_finite_energy_are_refused():
    """Uniform on [0, 1]: outside, the density is zero, or not a number; the chain must stay inside."""
    for outside in (-torch.inf, torch.nan):
        potential = samplers.from_log_density(
            lambda w, bad=outside: torch.where((w > 0) & (w < 1), 0.0 * w, bad * torch.ones_like(w)).sum(-1), dim=1
        )
        trace = samplers.sample(
            samplers.mala(0.3),
            potential,
            torch.full((1,), 0.5, dtype=torch.float64),
            num_chains=96,
            num_warmup=100,
            num_draws=1000,
            keep_positions=True,
        )
        assert not trace.diverged
        values = trace.positions[..., 0].numpy()
        assert values.min() > 0
        assert values.max() < 1
        assert_mean(values, 0.5)
        assert_mean(values**2, 1 / 3)


def test_minibatches_are_refused():
    target = Quadratic((1.0, 2.0))
    with pytest.raises(ValueError, match="exact only with the full-data gradient"):
        samplers.sample(
            samplers.mala(0.1), target, target.anchor, batches=lambda *_: iter([None]), num_chains=2, num_warmup=0,
            num_draws=5,
        )  # fmt: skip
