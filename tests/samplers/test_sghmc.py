"""SGHMC against the exact law of the discretised chain, position and momentum; planted errors must fail."""

import pytest
import torch

import samplers
from samplers import Diagonal
from samplers.sghmc import sghmc
from tests.samplers.laws import LogGamma, Quadratic, random_rotation, sghmc_covariance
from tests.samplers.momenta import (
    REJECTED,
    assert_joint_law,
    assert_skewed,
    mutant,
    trajectory,
    without_noise,
)
from tests.statistics import assert_mean

BADLY_SCALED = (0.0, 99.0, 9999.0)  # with γ = 1, a condition number of 1e4
STEP_SIZE, FRICTION = 0.01, 2.0  # h²A = 1 in the stiffest direction: the discretisation is a third of the answer there


def assert_law(target, kernel=None, step_size=STEP_SIZE, friction=FRICTION, scale=1.0, **settings):
    kernel = kernel or sghmc(step_size, friction)
    law = sghmc_covariance(target.stiffness, step_size, friction, target.noise_variance, scale=scale)
    assert_joint_law(target, trajectory(kernel, target, **settings), law)


@pytest.mark.parametrize("noise", [0.0, 100.0], ids=["full gradient", "noisy gradient"])
def test_law_of_the_discretised_chain_on_a_rotated_badly_scaled_quadratic(noise):
    assert_law(Quadratic(BADLY_SCALED, noise=noise, rotation=random_rotation(3)), num_chains=256)


def test_law_with_n_beta_and_a_diagonal_preconditioner():
    target = Quadratic((0.3, 0.02), n_beta=50.0, localization=2.0, noise=0.01)
    scale = torch.tensor([0.1, 2.0], dtype=torch.float64)
    assert_law(target, sghmc(0.5, 0.8, Diagonal(scale)), 0.5, 0.8, scale=scale.numpy())


def test_numbers_per_chain_have_each_their_own_law():
    target = Quadratic((30.0, 5.0), noise=9.0)
    steps, frictions = (0.05, 0.2), (4.0, 2.0)
    columns = [torch.tensor(pair, dtype=torch.float64).repeat(64)[:, None] for pair in (steps, frictions)]
    found = trajectory(sghmc(*columns), target)
    for which, (step_size, friction) in enumerate(zip(steps, frictions, strict=True)):
        law = sghmc_covariance(target.stiffness, step_size, friction, target.noise_variance)
        assert_joint_law(target, found, law, slice(which, None, 2))


def test_closed_forms_of_the_docstring_are_the_discrete_lyapunov_solution():
    stiffness = torch.tensor([0.5, 3.0, 80.0], dtype=torch.float64)
    for step_size, friction, noise, relief in ((0.1, 3.0, 0.0, 0.0), (0.2, 1.0, 5.0, 2.0), (0.05, 20.0, 9.0, 0.0)):
        found = sghmc_covariance(stiffness, step_size, friction, noise, relief)
        forgotten = step_size * friction
        heat = 1 + step_size**2 * (noise - relief) / (2 * forgotten)
        pace = step_size**2 * stiffness
        momentum = heat / (1 - forgotten / 2 - pace / 4)
        position = heat / (stiffness * (1 - pace / (4 - 2 * forgotten)))
        torch.testing.assert_close(torch.as_tensor(found[:, 0, 0]), position)
        torch.testing.assert_close(torch.as_tensor(found[:, 1, 1]), momentum)
        torch.testing.assert_close(torch.as_tensor(found[:, 0, 1]), step_size / 2 * momentum)


def test_known_gradient_noise_is_taken_off_the_injected_noise():
    target = Quadratic((4.0, 20.0), noise=16.0)
    exact = sghmc_covariance(target.stiffness, 0.1, 2.0)
    corrected = trajectory(sghmc(0.1, 2.0, gradient_noise=16.0), target)
    assert_joint_law(target, corrected, exact)
    partly = trajectory(sghmc(0.1, 2.0, gradient_noise=8.0), target)
    assert_joint_law(target, partly, sghmc_covariance(target.stiffness, 0.1, 2.0, 16.0, gradient_noise=8.0))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_joint_law(target, trajectory(sghmc(0.1, 2.0), target), exact)


def test_skewed_density_with_closed_moments():
    """The continuous law, at a step which, doubled, changes nothing beyond error."""
    law = LogGamma()
    for step_size, thinning in ((0.04, 8), (0.08, 4)):
        assert_skewed(law, trajectory(sghmc(step_size, 1.5), law.potential, num_warmup=300, thinning=thinning))


def test_without_friction_to_spare_a_step_is_that_of_sgld():
    step_size = 0.1
    runs = []
    for kernel in (sghmc(step_size, 1 / step_size), samplers.sgld(2 * step_size**2)):
        target = Quadratic((1.0, 30.0), n_beta=2.0, noise=0.5)
        runs.append(
            samplers.sample(
                kernel, target, target.anchor, num_chains=3, num_warmup=0, num_draws=50, keep_positions=True
            )
        )
    torch.testing.assert_close(runs[0].positions, runs[1].positions, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        *(torch.as_tensor(run.statistics["discretization_bias"]) for run in runs), rtol=1e-10, atol=1e-12
    )


def test_without_a_gradient_the_momentum_keeps_its_law_and_the_position_diffuses():
    flat = Quadratic((0.0,), localization=0.0)
    found = trajectory(sghmc(0.1, 2.0), flat, num_chains=1024, num_warmup=100, num_draws=801, thinning=1)
    assert_mean(found.momentum[..., 0] ** 2, 1 / (1 - 0.1))
    moved = found.position[:, 200::200, 0] - found.position[:, :-200:200, 0]  # four times 200 steps
    kept, count = 0.8, 200  # sum of an AR(1) process: Var = Var q · (n + 2 Σ (n − k) a^k)
    factor = count + 2 * sum((count - lag) * kept**lag for lag in range(1, count))
    assert_mean((moved**2).numpy(), 0.1**2 / 0.9 * factor)


def test_without_noise_the_chain_is_the_linear_map(monkeypatch):
    without_noise(monkeypatch, "sghmc")
    target = Quadratic((3.0,), localization=0.0)
    kernel = sghmc(0.2, 1.0)
    state = kernel.init(torch.full((1, 1), 2.0, dtype=torch.float64), target)
    for _ in range(7):
        kernel.step_(state, target, None, torch.Generator())
    once = torch.tensor([[1 - 0.04 * 3, 0.2 * 0.8], [-0.2 * 3, 0.8]], dtype=torch.float64)
    expected = torch.linalg.matrix_power(once, 7) @ torch.tensor([2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([state.position[0, 0], state.momentum[0, 0]]), expected)


SHORT = {"num_draws": 300, "num_warmup": 200, "thinning": 3}
PLANTED = {
    "doubled noise": ("noise_scale = square_root(noise_variance)", "noise_scale = square_root(2 * noise_variance)"),
    "friction of the wrong sign": ("kept = 1 - forgotten", "kept = 1 + forgotten"),
    "friction of half the size": ("kept = 1 - forgotten", "kept = 1 - 0.5 * forgotten"),
    "half a kick": ("drift_scale = -step_size", "drift_scale = -0.5 * step_size"),
    "tempered localiser": (
        "add_gradient_(force, part, columns)",
        "add_gradient_(force.div_(potential.n_beta), part, columns); force.mul_(potential.n_beta)",
    ),
}


def planted_target(noise):
    return Quadratic((0.3, 0.02), n_beta=50.0, localization=2.0, noise=noise)


@pytest.mark.parametrize("noise", [0.0, 0.01], ids=["full gradient", "noisy gradient"])
def test_without_a_planted_error_nothing_is_rejected(noise):
    assert_law(planted_target(noise), sghmc(0.1, 0.5), 0.1, 0.5, **SHORT)


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("noise", [0.0, 0.01], ids=["full gradient", "noisy gradient"])
def test_planted_errors_are_rejected(plant, noise):
    with pytest.raises(AssertionError, match=REJECTED):
        assert_law(planted_target(noise), mutant("sghmc", *PLANTED[plant])(0.1, 0.5), 0.1, 0.5, **SHORT)


def test_a_kick_too_large_is_rejected_by_the_skewed_density():
    law = LogGamma()
    broken = mutant("sghmc", "drift_scale = -step_size", "drift_scale = -1.1 * step_size")
    with pytest.raises(AssertionError, match=REJECTED):
        assert_skewed(law, trajectory(broken(0.08, 1.5), law.potential, num_warmup=300))


@pytest.mark.parametrize("gradient_noise", [0.0, 6.0])
def test_predicted_bias_is_that_of_the_exact_law(gradient_noise):
    """Info.discretization_bias: exactly what the docstring says, and the actual bias in stiff directions."""
    target = Quadratic((100.0, 40.0), noise=9.0)
    step_size, friction = 0.1, 3.0
    found = trajectory(sghmc(step_size, friction, gradient_noise=gradient_noise), target)
    law = torch.as_tensor(sghmc_covariance(target.stiffness, step_size, friction, 9.0, gradient_noise))
    share = target.h / target.stiffness
    actual = 0.5 * share * (law[:, 0, 0] * target.stiffness - 1)
    of_flat = (1 - share) * step_size * (9.0 - gradient_noise) / (4 * friction)
    assert_mean(found.bias, float((actual + of_flat).sum()))
    assert float(of_flat.sum()) < 0.05 * float(actual.sum())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"step_size": 0.0}, "step_size: 0.0; expected finite"),
        ({"step_size": float("nan")}, "step_size: nan; expected finite"),
        ({"step_size": 0.1, "friction": -1.0}, "friction: -1.0; expected finite"),
        ({"step_size": 0.1, "friction": torch.ones(3)}, r"friction: a tensor of shape \(3,\); expected a number"),
        ({"step_size": 0.1, "friction": 11.0}, "friction: 11.0 at step_size 0.1; expected at most 1 / step_size"),
        ({"step_size": 0.1, "gradient_noise": -1.0}, "gradient_noise: -1.0; expected a variance from 0"),
        (
            {"step_size": 0.1, "friction": 1.0, "gradient_noise": 21.0},
            "gradient_noise: 21.0; expected a variance from 0",
        ),
    ],
)
def test_bad_settings_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        sghmc(**settings)
