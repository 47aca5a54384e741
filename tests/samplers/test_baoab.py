"""BAOAB against the exact law of the discretised chain, position and momentum; planted errors must fail."""

import pytest
import torch

from samplers import Diagonal
from samplers.baoab import baoab
from tests.samplers.laws import LogGamma, Quadratic, baoab_covariance, random_rotation
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
STEP_SIZE, FRICTION = 0.015, 2.0  # h²A = 2.25 of 4 in the stiffest direction, where SGHMC's variance is 2.3 / A


def assert_law(target, kernel=None, step_size=STEP_SIZE, friction=FRICTION, scale=1.0, **settings):
    kernel = kernel or baoab(step_size, friction)
    law = baoab_covariance(target.stiffness, step_size, friction, target.noise_variance, scale)
    assert_joint_law(target, trajectory(kernel, target, **settings), law)


@pytest.mark.parametrize("noise", [0.0, 100.0], ids=["full gradient", "noisy gradient"])
def test_law_of_the_discretised_chain_on_a_rotated_badly_scaled_quadratic(noise):
    assert_law(Quadratic(BADLY_SCALED, noise=noise, rotation=random_rotation(3)), num_chains=256)


def test_law_with_n_beta_and_a_diagonal_preconditioner():
    target = Quadratic((0.3, 0.02), n_beta=50.0, localization=2.0, noise=0.01)
    scale = torch.tensor([0.1, 2.0], dtype=torch.float64)
    assert_law(target, baoab(0.5, 0.8, Diagonal(scale)), 0.5, 0.8, scale=scale.numpy())


def test_numbers_per_chain_have_each_their_own_law():
    target = Quadratic((30.0, 5.0), noise=9.0)
    steps, frictions = (0.05, 0.3), (4.0, 2.0)
    columns = [torch.tensor(pair, dtype=torch.float64).repeat(64)[:, None] for pair in (steps, frictions)]
    found = trajectory(baoab(*columns), target)
    for which, (step_size, friction) in enumerate(zip(steps, frictions, strict=True)):
        law = baoab_covariance(target.stiffness, step_size, friction, target.noise_variance)
        assert_joint_law(target, found, law, slice(which, None, 2))


def test_closed_forms_of_the_docstring_are_the_discrete_lyapunov_solution():
    stiffness = torch.tensor([0.5, 3.0, 80.0], dtype=torch.float64)
    for step_size, friction, noise in ((0.1, 3.0, 0.0), (0.2, 1.0, 5.0), (0.05, 200.0, 9.0)):
        found = torch.as_tensor(baoab_covariance(stiffness, step_size, friction, noise))
        kept = torch.tensor(-step_size * friction, dtype=torch.float64).exp()
        heat = step_size**2 * noise / (4 - step_size**2 * stiffness) * (1 + kept) / (1 - kept)
        torch.testing.assert_close(found[:, 0, 0], (1 + heat) / stiffness)
        if not noise:
            torch.testing.assert_close(found[:, 1, 1], torch.ones(3, dtype=torch.float64))
            torch.testing.assert_close(found[:, 0, 1], torch.full((3,), step_size / 2, dtype=torch.float64))


def test_skewed_density_with_closed_moments():
    """The continuous law, at a step which, doubled, changes nothing beyond error."""
    law = LogGamma()
    for step_size, thinning in ((0.1, 6), (0.2, 3)):
        found = trajectory(baoab(step_size, 1.5), law.potential, num_warmup=200, thinning=thinning)
        assert_skewed(law, found)
        assert_mean(found.momentum[..., 0] ** 2, 1.0)


def test_at_large_friction_a_step_is_that_of_sgld_with_the_mean_of_two_noises():
    step_size, count = 0.3, 40
    target = Quadratic((1.0, 30.0), n_beta=0.5, noise=0.5)
    kernel = baoab(step_size, 1e6)
    state = kernel.init(torch.ones(3, 2, dtype=torch.float64), target)
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        kernel.step_(state, target, None, generator)
    again, generator = Quadratic((1.0, 30.0), n_beta=0.5, noise=0.5), torch.Generator().manual_seed(0)
    position, last, epsilon = (
        torch.ones(3, 2, dtype=torch.float64),
        torch.zeros(3, 2, dtype=torch.float64),
        step_size**2,
    )
    for _ in range(count):
        noise = torch.randn(3, 2, dtype=torch.float64, generator=generator)
        drift = again.n_beta * again.loss_and_grad(position)[1]
        again.localizer.add_gradient_(drift, position)
        position = position - 0.5 * epsilon * drift + epsilon**0.5 * 0.5 * (noise + last)
        last = noise
    torch.testing.assert_close(state.position, position, rtol=1e-10, atol=1e-12)


def test_without_a_gradient_the_momentum_keeps_its_law_and_the_position_diffuses():
    flat = Quadratic((0.0,), localization=0.0)
    found = trajectory(baoab(0.1, 2.0), flat, num_chains=1024, num_warmup=100, num_draws=801, thinning=1)
    assert_mean(found.momentum[..., 0] ** 2, 1.0)
    moved = found.position[:, 200::200, 0] - found.position[:, :-200:200, 0]  # four times 200 steps
    kept, count = torch.tensor(-0.2, dtype=torch.float64).exp().item(), 200
    single = (1 + kept) / 2  # variance of a displacement / h; those k apart covary by (1 + c)² c^(k − 1) / 4
    paired = sum((count - lag) * (1 + kept) ** 2 / 4 * kept ** (lag - 1) for lag in range(1, count))
    assert_mean((moved**2).numpy(), 0.1**2 * (count * single + 2 * paired))


def test_without_noise_the_chain_is_the_linear_map(monkeypatch):
    without_noise(monkeypatch, "baoab")
    target = Quadratic((3.0,), localization=0.0)
    kernel = baoab(0.2, 1.0)
    state = kernel.init(torch.full((1, 1), 2.0, dtype=torch.float64), target)
    for _ in range(7):
        kernel.step_(state, target, None, torch.Generator())
    kick = torch.tensor([[1.0, 0.0], [-0.2 * 3, 1.0]], dtype=torch.float64)
    drift = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=torch.float64)
    rub = torch.diag(torch.tensor([0.0, -0.2], dtype=torch.float64).exp())
    once = drift @ rub @ drift @ kick
    expected = torch.linalg.matrix_power(once, 7) @ torch.tensor([2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([state.position[0, 0], state.momentum[0, 0]]), expected)


SHORT = {"num_draws": 300, "num_warmup": 200, "thinning": 3}
PLANTED = {
    "noise of first order": ("square_root(1 - kept**2)", "square_root(2 * step_size * rate)"),
    "friction of the wrong sign": ("moving.mul_(kept)", "moving.mul_(1 / kept)"),
    "a missing half-kick": ("drift_scale, half_step = -step_size", "drift_scale, half_step = -0.5 * step_size"),
    "both drifts after the friction": ("travel.add_(moving)", "moving * 2"),
    "tempered localiser": (
        "add_gradient_(force, part, columns)",
        "add_gradient_(force.div_(potential.n_beta), part, columns); force.mul_(potential.n_beta)",
    ),
}


def planted_target(noise):
    return Quadratic((0.3, 0.02), n_beta=50.0, localization=2.0, noise=noise)


@pytest.mark.parametrize("noise", [0.0, 0.001], ids=["full gradient", "noisy gradient"])
def test_without_a_planted_error_nothing_is_rejected(noise):
    assert_law(planted_target(noise), baoab(0.15, 0.5), 0.15, 0.5, **SHORT)


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("noise", [0.0, 0.001], ids=["full gradient", "noisy gradient"])
def test_planted_errors_are_rejected(plant, noise):
    with pytest.raises(AssertionError, match=REJECTED):
        assert_law(planted_target(noise), mutant("baoab", *PLANTED[plant])(0.15, 0.5), 0.15, 0.5, **SHORT)


def test_a_kick_too_large_is_rejected_by_the_skewed_density():
    law = LogGamma()
    broken = mutant("baoab", "drift_scale, half_step = -step_size", "drift_scale, half_step = -1.1 * step_size")
    with pytest.raises(AssertionError, match=REJECTED):
        assert_skewed(law, trajectory(broken(0.2, 1.5), law.potential, num_warmup=200, thinning=4))


@pytest.mark.parametrize("noise", [0.0, 9.0], ids=["full gradient", "noisy gradient"])
def test_predicted_bias_is_that_of_the_exact_law(noise):
    """Info.discretization_bias: exactly what the docstring says, and the actual bias in stiff directions."""
    target = Quadratic((100.0, 40.0), noise=noise)
    step_size, friction = 0.1, 3.0
    found = trajectory(baoab(step_size, friction), target)
    law = torch.as_tensor(baoab_covariance(target.stiffness, step_size, friction, noise))
    kept = torch.tensor(-step_size * friction, dtype=torch.float64).exp()
    share = target.h / target.stiffness
    actual = 0.5 * share * (law[:, 0, 0] * target.stiffness - 1)
    of_flat = (1 - share) * 0.125 * (1 + kept) / (1 - kept) * step_size**2 * noise
    assert_mean(found.bias, float((actual + of_flat).sum()))
    assert float(of_flat.sum()) <= 0.05 * float(actual.sum()) + 1e-12


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"step_size": 0.0}, "step_size: 0.0; expected finite"),
        ({"step_size": float("inf")}, "step_size: inf; expected finite"),
        ({"step_size": 0.1, "friction": 0.0}, "friction: 0.0; expected finite"),
        ({"step_size": 0.1, "friction": torch.ones(3)}, r"friction: a tensor of shape \(3,\); expected a number"),
    ],
)
def test_bad_settings_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        baoab(**settings)
