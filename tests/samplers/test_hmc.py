"""HMC against the continuous law, at one scale and over many; planted errors must fail."""

import importlib

import numpy as np
import pytest
import torch

import samplers
from samplers import Diagonal
from tests.samplers.assertions import assert_quadratic, assert_skewed
from tests.samplers.laws import LogGamma, Quadratic, random_rotation
from tests.statistics import assert_mean

hmc_module = importlib.import_module("samplers.hmc")


def run(potential, step_size, num_steps=6, preconditioner=None, num_chains=128, num_draws=1250, num_warmup=300):
    """Many chains and few draws: a path costs more than its chains."""
    return samplers.sample(
        samplers.hmc(step_size, num_steps, preconditioner),
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
    trace = run(target, 0.25)  # leapfrog's frequency is 8 % off in the stiffest direction
    assert_quadratic(target, trace)
    assert 0.5 < trace.statistics["acceptance_rate"].mean() < 0.98


def test_the_whole_covariance_of_a_badly_scaled_gaussian():
    """Condition number 1e4, rotated: every entry of the covariance, with step sizes from 0.3 to 3 stiffest widths."""
    target = Quadratic((0.0, 10.0, 9999.0), rotation=random_rotation(3))
    trace = run(target, (0.003, 0.03), num_steps=40, num_draws=600)
    assert_quadratic(target, trace)
    own = target.coordinates(trace.positions) * target.stiffness.sqrt().numpy()
    for first in range(3):
        for second in range(first):
            assert_mean(own[..., first] * own[..., second], 0.0)


def test_step_sizes_per_chain_and_a_preconditioner():
    target = Quadratic((0.1, 1.0, 100.0), n_beta=2.0)
    steps = torch.linspace(0.3, 1.2, 128, dtype=torch.float64)[:, None]
    assert_quadratic(target, run(target, (0.5 * steps, steps), preconditioner=Diagonal(1 / target.stiffness)))


def test_skewed_density_with_closed_moments():
    law = LogGamma()
    assert_skewed(law, run(law.potential, (0.1, 1.2), num_steps=4, num_draws=750))


def test_one_leapfrog_step_is_mala_s_proposal():
    """With one step the proposal is w − ε²/2 ∇U + ε ξ: MALA's at step size ε², and so is its acceptance."""
    target = Quadratic((0.5, 3.0), rotation=random_rotation(2))
    position = torch.randn(50, 2, dtype=torch.float64)
    one, other = samplers.hmc(0.4, 1), samplers.mala(0.16, small_step_share=0.0)
    states = [kernel.init(position.clone(), target) for kernel in (one, other)]
    noise = torch.randn(50, 2, dtype=torch.float64)
    mala_module = importlib.import_module("samplers.mala")
    with pytest.MonkeyPatch.context() as patch:
        for module in (hmc_module, mala_module):
            patch.setattr(module, "standard_normal", lambda *_: noise.clone())
        infos = [
            kernel.step_(state, target, None, torch.Generator().manual_seed(0))
            for kernel, state in zip((one, other), states, strict=True)
        ]
    torch.testing.assert_close(infos[0].acceptance_rate, infos[1].acceptance_rate)


def test_energy_error_is_of_second_order():
    """Halving ε quarters the error of H over a path of the same length; leapfrog without a half-kick is of first."""
    law = LogGamma()
    errors = []
    for step, count in ((0.2, 5), (0.1, 10), (0.05, 20)):
        kernel = samplers.hmc(step, count)
        state = kernel.init(torch.linspace(-1, 1, 64, dtype=torch.float64)[:, None], law.potential)
        info = kernel.step_(state, law.potential, None, torch.Generator().manual_seed(1))
        errors.append(float(-info.acceptance_rate.clamp(min=1e-300).log().sum()))
    assert 3.0 < errors[0] / errors[1] < 5.5
    assert 3.0 < errors[1] / errors[2] < 5.5


def test_gradients_are_counted():
    trace = run(Quadratic((1.0,)), 0.5, num_steps=5, num_chains=3, num_draws=10, num_warmup=2)
    assert trace.num_gradients == 3 * (1 + 12 * 5)
    assert trace.configuration["num_steps"] == 5
    assert run(Quadratic((1.0,)), (0.1, 0.5), num_chains=2, num_draws=2, num_warmup=0).configuration["step_size"] == [
        0.1,
        0.5,
    ]


def _doubled_noise(monkeypatch):
    honest = hmc_module.standard_normal
    monkeypatch.setattr(hmc_module, "standard_normal", lambda *arguments: honest(*arguments) * 2**0.5)


def _no_metropolis(monkeypatch):
    honest = hmc_module.torch.rand

    def always_accepting(*size, **kind):
        return honest(*size, **kind) if len(size) == 2 else torch.zeros(size, dtype=kind["dtype"])

    monkeypatch.setattr(hmc_module.torch, "rand", always_accepting)


def _reversed_kick(monkeypatch):
    honest = hmc_module.add_scaled_
    monkeypatch.setattr(
        hmc_module,
        "add_scaled_",
        lambda target, x, scale: honest(target, x, scale if not _is_kick(scale) else -scale),
    )


def _is_kick(scale):
    return float(torch.as_tensor(scale).max()) < 0


@pytest.mark.parametrize("plant", [_doubled_noise, _no_metropolis, _reversed_kick])
def test_planted_errors_are_rejected(plant, monkeypatch):
    plant(monkeypatch)
    target = Quadratic((0.1, 1.0, 20.0))
    with pytest.raises(AssertionError, match="standard errors|too few draws"):
        assert_quadratic(target, run(target, 0.35, num_steps=4, num_draws=750))


def test_one_scale_too_large_for_the_wall_is_seen_in_the_acceptance_and_mixed_scales_go_on():
    target = Quadratic((0.0, 1e6))
    single = run(target, 1.0, num_draws=100, num_warmup=0)
    mixed = run(target, (3e-4, 1.0), num_draws=100, num_warmup=0)
    assert single.statistics["acceptance_rate"].mean() < 0.01
    assert mixed.statistics["acceptance_rate"].mean() > 0.1


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"step_size": 0.0}, "step_size: 0.0"),
        ({"step_size": (1.0, 0.1)}, "in this order"),
        ({"step_size": (1.0, 2.0, 3.0)}, "one step size, or two"),
        ({"step_size": (0.0, 1.0)}, "step_size: 0.0"),
        ({"step_size": 1.0, "num_steps": 0}, "num_steps: 0"),
    ],
)
def test_bad_settings_are_named(settings, match):
    with pytest.raises(ValueError, match=match):
        samplers.hmc(**settings)


def test_minibatches_are_refused():
    with pytest.raises(ValueError, match="batches: given to hmc"):
        samplers.Run(samplers.hmc(0.1), Quadratic((1.0,)), torch.zeros(1, dtype=torch.float64),
                     batches=lambda generator, count: iter([]), num_chains=1, num_warmup=0)  # fmt: skip


def test_a_proposal_that_leaves_the_finite_numbers_is_refused():
    potential = samplers.from_log_density(lambda w: torch.where(w < 1, -0.5 * w.square(), torch.nan).sum(-1), dim=1)
    trace = run(potential, (0.05, 0.5))
    assert not trace.diverged
    assert float(trace.positions.max()) < 1
    density = np.exp(-0.5 * np.linspace(-9, 1, 200_001) ** 2)
    mean = float((np.linspace(-9, 1, 200_001) * density).sum() / density.sum())
    assert_mean(trace.positions[..., 0].numpy(), mean)
