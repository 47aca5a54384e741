"""SGNHT: the continuous law of position, momentum and thermostat; planted errors must fail."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from samplers import Diagonal
from samplers.baoab import baoab
from samplers.sghmc import sghmc
from samplers.sgnht import sgnht
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


def continuous_law(target, step_size):
    """Covariance of (w, q), to first order in h²s² for the momentum that the state holds.

    It lacks the kick at the position, so that it is half a step older, whence Cov(w, q) = h/2; and as the kick adds
    h²s² and the two are at temperature one in the mean, it is at 1 − h²s²/2.
    """
    covariances = torch.empty(target.dim, 2, 2, dtype=torch.float64)
    covariances[:, 0, 0] = 1 / target.stiffness
    covariances[:, 0, 1] = covariances[:, 1, 0] = step_size / 2
    covariances[:, 1, 1] = 1 - 0.5 * step_size**2 * target.noise_variance
    return covariances


def assert_thermostat(target, found, step_size, friction, rate=None, chains=slice(None)):
    """N(C + hs²/2, ν²/dim): its mean absorbs the gradient noise."""
    mean = friction + 0.5 * step_size * target.noise_variance
    thermostat = found.thermostat[chains]
    assert_mean(thermostat, mean)
    assert_mean((thermostat - mean) ** 2, (rate or friction) ** 2 / target.dim)


def from_the_law(target, num_chains, seed=9):
    """Positions drawn from the target: slow directions then need no warm-up."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(num_chains, target.dim, dtype=torch.float64, generator=generator)
    return (draws / target.stiffness.sqrt()) @ target.rotation.T


@pytest.mark.parametrize(
    "step_size",
    [pytest.param(0.002, marks=pytest.mark.slow), 0.004],
    ids=["a step", "twice the step"],
)
@pytest.mark.parametrize(
    "heating", [pytest.param(0.0, marks=pytest.mark.slow), 1.0], ids=["full gradient", "noisy gradient"]
)
def test_law_on_a_rotated_badly_scaled_quadratic(heating, step_size):
    """With gradient noise of two thirds of the injected noise, of which the kernel is not told."""
    target = Quadratic(BADLY_SCALED, noise=2 * heating / step_size, rotation=random_rotation(3))
    settings = {"num_chains": 320, "num_draws": 150, "thinning": round(0.048 / step_size)}
    start = from_the_law(target, 320)
    found = trajectory(sgnht(step_size, 1.5), target, start=start, num_warmup=round(6 / step_size), **settings)
    assert_joint_law(target, found, continuous_law(target, step_size))
    assert_thermostat(target, found, step_size, 1.5)


def test_thermostat_takes_out_the_gradient_noise_that_heats_sghmc():
    target, step_size, friction = Quadratic((4.0, 20.0, 10.0), noise=100.0), 0.02, 2.0
    law = continuous_law(target, step_size)
    found = trajectory(sgnht(step_size, friction), target)
    assert_joint_law(target, found, law)
    assert_thermostat(target, found, step_size, friction)
    for kernel in (sghmc(step_size, friction), baoab(step_size, friction)):
        with pytest.raises(AssertionError, match="standard errors"):
            assert_joint_law(target, trajectory(kernel, target), law)


def test_law_with_n_beta_a_preconditioner_and_a_rate_of_its_own():
    target = Quadratic((0.3, 0.02), n_beta=50.0, localization=2.0)
    scale = torch.tensor([0.1, 2.0], dtype=torch.float64)
    found = trajectory(sgnht(0.05, 1.0, Diagonal(scale), 2.0), target)
    law = continuous_law(target, 0.05)
    law[:, 0, 1] *= scale.sqrt()
    law[:, 1, 0] *= scale.sqrt()
    assert_joint_law(target, found, law)
    assert_thermostat(target, found, 0.05, 1.0, 2.0)


def test_numbers_per_chain_have_each_their_own_law():
    target = Quadratic((30.0, 5.0), noise=25.0)
    numbers = ((0.02, 0.04), (2.0, 3.0), (3.0, 1.5))
    step_sizes, frictions, rates = (torch.tensor(n, dtype=torch.float64).repeat(64)[:, None] for n in numbers)
    found = trajectory(sgnht(step_sizes, frictions, thermostat_rate=rates), target)
    for which, (step_size, friction, rate) in enumerate(zip(*numbers, strict=True)):
        chains = slice(which, None, 2)
        assert_joint_law(target, found, continuous_law(target, step_size), chains)
        assert_thermostat(target, found, step_size, friction, rate, chains)


@pytest.mark.slow
def test_skewed_density_with_closed_moments():
    """The continuous law, at a step which, doubled, changes nothing beyond error."""
    law = LogGamma()
    for step_size, thinning in ((0.025, 10), (0.05, 5)):
        found = trajectory(sgnht(step_size, 1.5), law.potential, num_warmup=500, num_draws=300, thinning=thinning)
        assert_skewed(law, found)
        assert_mean(found.momentum[..., 0] ** 2, 1.0)
        assert_mean(found.thermostat, 1.5)
        assert_mean((found.thermostat - 1.5) ** 2, 1.5**2)


def test_the_temperature_of_both_momenta_of_a_step_is_one_at_any_step():
    """E[‖q⁺‖² + ‖q‖²] = 2 dim, however large the step and the gradient noise; and the virial is what is promised."""
    target, step_size, friction = Quadratic([4.0] * 16 + [8.0] * 16, noise=40.0), 0.1, 2.0
    found = trajectory(sgnht(step_size, friction), target, num_chains=128)
    noise = target.noise_variance
    force = found.position * target.stiffness
    kicked = (found.momentum - step_size * force).square().sum(-1) + target.dim * step_size**2 * noise
    both = kicked + found.momentum.square().sum(-1)
    assert_mean(both.numpy() / target.dim, 2.0)
    thermostat = float(found.thermostat.mean())
    kept, share = math.exp(-step_size * thermostat), friction / thermostat
    virial = 1 - (1 - share) * (1 - kept) ** 2 / (2 * (1 + kept**2))
    assert virial < 0.99
    assert abs(virial - 1) < (step_size * thermostat) ** 2 / 4
    measured = (found.position * force).sum(-1).mean(1).double() / target.dim
    error = float(measured.std()) / len(measured) ** 0.5
    assert float(measured.mean()) == pytest.approx(virial, abs=4 * error + 0.002)  # ζ at its mean: good to O(1/dim)


def test_without_a_response_the_thermostat_is_the_friction_of_baoab():
    states = []
    for kernel in (sgnht(0.2, 1.3, thermostat_rate=1e-30), baoab(0.2, 1.3)):
        target = Quadratic((1.0, 30.0), n_beta=2.0, noise=0.5)
        state = kernel.init(torch.ones(3, 2, dtype=torch.float64), target)
        generator = torch.Generator().manual_seed(0)
        info = [kernel.step_(state, target, None, generator) for _ in range(50)][-1]
        states.append((state.position, state.momentum, info.discretization_bias))
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_thermostat_of_zero_is_a_number_like_any_other():
    target = Quadratic((1.0, 3.0))
    kernel = sgnht(0.1, 1.0, thermostat_rate=1e-30)
    moved = []
    for thermostat in (0.0, 1e-9, -1e-9):
        state = kernel.init(torch.ones(3, 2, dtype=torch.float64), target)
        state.thermostat.fill_(thermostat)
        kernel.step_(state, target, None, torch.Generator().manual_seed(0))
        moved.append(state.position)
    torch.testing.assert_close(moved[1], moved[0])
    torch.testing.assert_close(moved[2], moved[0])


def test_without_a_gradient_momentum_and_thermostat_keep_their_law():
    flat = Quadratic((0.0, 0.0), localization=0.0)
    found = trajectory(sgnht(0.05, 2.0), flat)
    for place in range(2):
        assert_mean(found.momentum[..., place] ** 2, 1.0)
    assert_thermostat(flat, found, 0.05, 2.0)


def test_without_noise_the_chain_is_the_map_of_the_docstring(monkeypatch):
    without_noise(monkeypatch, "sgnht")
    target = Quadratic((3.0, 1.0), localization=0.0)
    kernel = sgnht(0.2, 1.0, thermostat_rate=1.5)
    state = kernel.init(torch.tensor([[2.0, -1.0]], dtype=torch.float64), target)
    position, momentum, thermostat = [2.0, -1.0], [0.0, 0.0], 1.0
    for _ in range(7):
        kernel.step_(state, target, None, torch.Generator())
        kicked = [q - 0.2 * h * w for q, h, w in zip(momentum, (3.0, 1.0), position, strict=True)]
        thermostat += 0.1 * 1.5**2 * (sum(q**2 for q in kicked) / 2 - 1)
        momentum = [math.exp(-0.2 * thermostat) * q for q in kicked]
        position = [w + 0.1 * (a + b) for w, a, b in zip(position, kicked, momentum, strict=True)]
        thermostat += 0.1 * 1.5**2 * (sum(q**2 for q in momentum) / 2 - 1)
    assert state.position[0].tolist() == pytest.approx(position)
    assert state.momentum[0].tolist() == pytest.approx(momentum)
    assert float(state.thermostat) == pytest.approx(thermostat)


SHORT = {"num_draws": 300, "num_warmup": 300, "thinning": 4}
PLANTED = {
    "frozen thermostat": ("thermostat_scale = 0.5", "thermostat_scale = 1e-9"),
    "ignored thermostat": ("exponent = thermostat * step_size", "exponent = (0 * thermostat + noise_rate) * step_size"),
    "doubled noise": ("free_variance = 2 * noise_rate", "free_variance = 4 * noise_rate"),
    "a missing half-kick": ("drift_scale, half_step = -step_size", "drift_scale, half_step = -0.5 * step_size"),
    "thermostat of another temperature": ("/ whole_dim(potential) - 1", "/ whole_dim(potential) - 1.1"),
    "tempered localiser": (
        "add_gradient_(force, position[:, columns], columns)",
        "add_gradient_(force.div_(potential.n_beta), position[:, columns], columns); force.mul_(potential.n_beta)",
    ),
}


def planted_target(heating):
    return Quadratic((0.3, 0.02), n_beta=50.0, localization=2.0, noise=heating / (0.5 * 0.05 * 50**2))


def assert_planted(heating, factory):
    target = planted_target(heating)
    found = trajectory(factory(0.05, 1.0), target, **SHORT)
    assert_joint_law(target, found, continuous_law(target, 0.05))
    assert_thermostat(target, found, 0.05, 1.0)


@pytest.mark.parametrize("heating", [0.0, 0.5], ids=["full gradient", "noisy gradient"])
def test_without_a_planted_error_nothing_is_rejected(heating):
    assert_planted(heating, sgnht)


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize(
    "heating", [0.0, pytest.param(0.5, marks=pytest.mark.slow)], ids=["full gradient", "noisy gradient"]
)
def test_planted_errors_are_rejected(plant, heating):
    with pytest.raises(AssertionError, match=REJECTED):
        assert_planted(heating, mutant("sgnht", *PLANTED[plant]))


@pytest.mark.slow
def test_a_thermostat_that_does_nothing_fails_in_the_position_alone():
    """As by far the commonest defect of this kernel would: its state moves, and no step reads it."""
    target = planted_target(0.5)

    def assert_position(factory):
        found = trajectory(factory(0.05, 1.0), target, **SHORT)
        assert_mean(target.coordinates(found.position)[..., 0] ** 2, float(1 / target.stiffness[0]))

    assert_position(sgnht)
    for plant in ("frozen thermostat", "ignored thermostat"):
        with pytest.raises(AssertionError, match="standard errors"):
            assert_position(mutant("sgnht", *PLANTED[plant]))


def test_a_kick_too_large_is_rejected_by_the_skewed_density():
    law = LogGamma()
    broken = mutant("sgnht", "drift_scale, half_step = -step_size", "drift_scale, half_step = -1.1 * step_size")
    with pytest.raises(AssertionError, match=REJECTED):
        assert_skewed(law, trajectory(broken(0.1, 1.5), law.potential, num_warmup=300))


class NoisyInSome(Quadratic):
    """Gradient noise in the coordinates where ``variances`` is not zero."""

    def __init__(self, curvature, variances, **settings):
        super().__init__(curvature, **settings)
        self.variances = torch.as_tensor(variances, dtype=torch.float64)

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position, batch)
        draws = torch.randn(gradient.shape, dtype=torch.float64, generator=self.generator)
        return loss, gradient + self.variances.sqrt() * draws


def held_at_its_mean(target, variances, step_size, friction, thermostat):
    """Covariances under BAOAB with this friction and the noise of another, and dim less the mean temperature."""
    of_each = [
        baoab_covariance(stiffness[None], step_size, thermostat, float(variance), noise_rate=friction)[0]
        for stiffness, variance in zip(target.stiffness, variances, strict=True)
    ]
    law = torch.as_tensor(np.array(of_each))
    before = law[:, 1, 1]
    stiffness = target.stiffness
    force_square = stiffness**2 * law[:, 0, 0] + variances
    kicked = before + step_size**2 * force_square - 2 * step_size * stiffness * law[:, 0, 1]
    return law, float(0.5 * (before + kicked).sum() - target.dim)


@pytest.mark.slow
def test_predicted_bias_is_what_a_common_thermostat_cannot_hold():
    """Half of the loss's directions are noisy; those of the localiser alone are not, and are cooled for nothing."""
    curvature = [30.0] * 16 + [10.0] * 16 + [0.0] * 32
    variances = torch.tensor([60.0] * 16 + [0.0] * 48, dtype=torch.float64)
    target = NoisyInSome(curvature, variances, localization=4.0)
    step_size, friction = 0.05, 2.0
    found = trajectory(sgnht(step_size, friction), target, num_chains=64)
    mean = brentq(lambda at: held_at_its_mean(target, variances, step_size, friction, at)[1], friction, 3 * friction)
    law, _ = held_at_its_mean(target, variances, step_size, friction, mean)
    share = target.h / target.stiffness
    excess = float((0.5 * share * (law[:, 0, 0] * target.stiffness - 1)).sum())
    exact = float((0.5 * share).sum())
    measured = found.loss.mean() - exact
    assert measured == pytest.approx(excess, rel=0.15)  # ζ at its mean: good to O(1/dim)
    assert found.bias.mean() == pytest.approx(excess * mean / friction, rel=0.15)
    assert excess > 0.1 * exact


def test_predicted_bias_of_full_data_gradients_is_none():
    target = Quadratic([4.0] * 32 + [20.0] * 32)
    assert_mean(trajectory(sgnht(0.1, 1.0), target, num_chains=64).bias, 0.0)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"step_size": -1.0}, "step_size: -1.0; expected finite"),
        ({"step_size": 0.1, "friction": float("nan")}, "friction: nan; expected finite"),
        ({"step_size": 0.1, "thermostat_rate": 0.0}, "thermostat_rate: 0.0; expected finite"),
        (
            {"step_size": 0.1, "thermostat_rate": torch.ones(3)},
            r"thermostat_rate: a tensor of shape \(3,\); expected a number",
        ),
    ],
)
def test_bad_settings_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        sgnht(**settings)
