"""The step-size rule of microcanonical chains: it meets its aim, covers scales, and is frozen."""

import numpy as np
import pytest
import torch

import samplers
from samplers import Diagonal, GaussianLocalizer
from samplers.energy_error import EnergyErrors, Pilot, limit_energy_error
from samplers.mclmc import mclmc
from tests.samplers.laws import Quadratic

SHORT = {"num_rounds": 8, "round_steps": 20, "length_steps": 200}


def adapted(potential, *, kernel=None, batches=None, num_chains=32, start=0.0, seed=1, **changes):
    position = torch.full((num_chains, potential.dim), start, dtype=torch.float64)
    adapt = limit_energy_error(**{**SHORT, **changes})
    return adapt(kernel or mclmc(1.0), potential, position, batches, torch.Generator().manual_seed(seed))


def measured(target, found, num_chains=64, warmup=100, pairs=200):
    """E[ΔE²]/dim at the step size that was found, by chains in their stationary law."""
    position = torch.zeros(num_chains, target.dim, dtype=torch.float64)
    pilot = Pilot(found.kernel, target, position, None, torch.Generator().manual_seed(2))
    step_size = found.kernel.settings["step_size"]
    pilot.energy_error(step_size, warmup)
    return pilot.energy_error(step_size, pairs)


@pytest.mark.parametrize("curvature", [(1.0, 1.0), (1.0, 99.0, 9999.0), (4.0,) * 50])
@pytest.mark.parametrize("aim", [5e-4, 1e-5])
def test_the_energy_error_per_dimension_is_met(curvature, aim):
    target = Quadratic(curvature)
    assert measured(target, adapted(target, target=aim)) == pytest.approx(aim, rel=0.5)


def test_a_density_that_is_not_gaussian():
    target = samplers.from_log_density(lambda w: (2 * w - w.exp()).sum(-1), dim=8)
    assert measured(target, adapted(target)) == pytest.approx(5e-4, rel=0.5)


@pytest.mark.parametrize("width", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dim", [5, 50])
def test_both_numbers_go_with_the_width_and_the_root_of_the_dimension(width, dim):
    settings = adapted(Quadratic((width**-2,) * dim, localization=0.0)).kernel.settings
    assert 0.5 < settings["step_size"] / (width * dim**0.5) < 0.75
    assert settings["decoherence_length"] == pytest.approx(0.8**0.5 * width * dim**0.5, rel=0.4)


def test_the_length_is_the_fixed_point_of_the_rule_from_any_shorter_one():
    """0.4 · distance per effective sample falls like 1/ℓ₀ on a Gaussian: their geometric mean does not move."""
    target, step_size = Quadratic((1.0,) * 20, localization=0.0), 0.2 * 20**0.5
    found = []
    for first in (0.3, 0.5, 0.9):  # in widths
        kernel, length = mclmc(step_size), first * 20**0.5
        start = torch.randn(64, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        pilot = Pilot(kernel, target, start, None, torch.Generator().manual_seed(1))
        pilot.state = kernel.init(start.clone(), target)
        pilot.steps_per_effective_sample(step_size, length, 50)
        steps = pilot.steps_per_effective_sample(step_size, length, 300)
        found.append((length * 0.4 * step_size * steps) ** 0.5 / 20**0.5)
    assert found == pytest.approx([0.8**0.5] * 3, rel=0.2)


def test_a_start_at_which_the_step_size_is_wrong_by_orders_of_magnitude():
    """The stiffness is measured without the preconditioner, which changes the step size by a factor of 1e2 to 1e3."""
    scale = torch.tensor([1e-4, 1e4, 1.0, 1e-2, 1.0], dtype=torch.float64)
    target = Quadratic((1 / scale).tolist(), localization=0.0)
    whitened = adapted(target, kernel=mclmc(1.0, preconditioner=Diagonal(scale)))
    plain = adapted(Quadratic((1.0,) * 5, localization=0.0))
    for name in ("step_size", "decoherence_length"):
        assert whitened.kernel.settings[name] == pytest.approx(plain.kernel.settings[name], rel=0.2)
    for factor in (1e-6, 1e6):
        narrow = adapted(target, kernel=mclmc(1.0, preconditioner=Diagonal(factor * scale)))
        expected = plain.kernel.settings["step_size"] / factor**0.5
        assert narrow.kernel.settings["step_size"] == pytest.approx(expected, rel=0.1)


class Tilted(Quadratic):
    """Each batch tilts the loss, and its gradient with it."""

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position)
        return (loss, gradient) if batch is None else (loss + position @ batch, gradient + batch)


def test_losses_of_two_batches_are_not_compared():
    def tilts():
        generator = torch.Generator().manual_seed(3)
        while True:
            yield 0.3 * torch.randn(20, dtype=torch.float64, generator=generator)

    with_batches = adapted(Tilted((1.0,) * 20), batches=tilts())
    without = adapted(Quadratic((1.0,) * 20))
    # the losses of two batches differ by 0.3 · √2 · √20 · 1 nats: 0.18 nats² per dimension, where 5e-4 is aimed at
    for name in ("step_size", "decoherence_length"):
        assert with_batches.kernel.settings[name] == pytest.approx(without.kernel.settings[name], rel=0.15)


def test_what_was_found_is_recorded_and_repeats_the_run_without_the_pilot():
    def run(kernel, adapt):
        target = Quadratic((1.0, 30.0, 2.0))
        return samplers.sample(kernel, target, target.anchor, num_chains=8, num_warmup=20, num_draws=50, adapt=adapt)

    found = run(mclmc(1.0), limit_energy_error(**SHORT))
    again = run(mclmc(found.configuration["step_size"], found.configuration["decoherence_length"]), None)
    np.testing.assert_array_equal(found.loss, again.loss)
    assert found.num_gradients > again.num_gradients


def test_single_precision():
    target = Quadratic((1.0, 10.0, 100.0))
    target.h, target.rotation, target.anchor = (x.float() for x in (target.h, target.rotation, target.anchor))
    target.localizer = GaussianLocalizer(target.anchor, 1.0)
    found = limit_energy_error(**SHORT)(mclmc(1.0), target, torch.zeros(32, 3), None, torch.Generator().manual_seed(1))
    expected = adapted(Quadratic((1.0, 10.0, 100.0))).kernel.settings["step_size"]
    assert found.kernel.settings["step_size"] == pytest.approx(expected, rel=0.2)


def test_errors_are_summed_from_the_second_step_on_and_forgotten():
    errors = EnergyErrors.of(torch.zeros(1, 2))
    zero, numbers = torch.zeros(1, dtype=torch.float64), [5.0, 4.0, 4.5, 4.25]
    biases = [float(errors.record_(zero + value, zero, zero, zero, -0.5)) for value in numbers]
    expected_sum, mean = 0.0, 0.0
    for place, value in enumerate(numbers):
        error = value - numbers[place - 1] if place > 1 else 0.0
        expected_sum = expected_sum * np.exp(-0.5) + error
        mean += (value - mean) * 4 / (place + 4)
        assert biases[place] == pytest.approx(expected_sum * (value - mean))
    assert float(errors.latest) == pytest.approx(-0.25)


def test_half_kicks_count_to_the_step_that_they_belong_to():
    """A step begins after the first half of the kick at its start, and ends with the first half of the next one."""
    errors = EnergyErrors.of(torch.zeros(1, 2))
    zero = torch.zeros(1, dtype=torch.float64)
    for energy, first, second in ((1.0, 0.1, 0.2), (2.0, 0.3, 0.4), (3.0, 0.5, 0.6)):
        errors.record_(zero + energy, zero + 0.25, zero + first, zero + second, 0.0)
    assert float(errors.latest) == pytest.approx((3.25 + 0.5) - (2.25 - 0.4))


def test_a_loss_that_is_finite_nowhere_near_is_an_error():
    target = samplers.from_log_density(lambda w: torch.where(w.abs() < 1e-300, w, torch.nan).sum(-1), dim=2)
    with pytest.raises(FloatingPointError, match="step_size"):
        adapted(target)


def test_a_flat_loss_is_an_error():
    with pytest.raises(FloatingPointError, match=r"step_size: .*The loss is flat"):
        adapted(Quadratic((0.0, 0.0), localization=0.0), round_steps=2)


def test_other_kernels_are_refused():
    with pytest.raises(ValueError, match=r"kernel: sgld; expected mclmc"):
        adapted(Quadratic((1.0, 2.0)), kernel=samplers.sgld(1.0))


@pytest.mark.parametrize(
    "changes", [{"target": 0.0}, {"target": float("nan")}, {"num_rounds": 0}, {"round_steps": 1}, {"length_steps": 3}]
)
def test_bad_aims_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        limit_energy_error(**changes)
