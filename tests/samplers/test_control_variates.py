"""Control variates: noise that does not depend on w vanishes, and what is left has the variance of the docstring."""

import pytest
import torch

import samplers
from samplers.control_variates import control_variates
from tests.samplers.assertions import assert_law_is_kept, assert_skewed_at_small_steps
from tests.samplers.laws import LogGamma, Quadratic, random_rotation, sgld_variance
from tests.samplers.momenta import REJECTED, mutant
from tests.statistics import assert_independent_mean, assert_mean

STEP_SIZE = 0.02


class ReusedBuffer:
    """One gradient buffer, used again by every call, as a potential may."""

    buffer = None

    def filled(self, gradient):
        if self.buffer is None or self.buffer.shape != gradient.shape:
            self.buffer = torch.empty_like(gradient)
        return self.buffer.copy_(gradient)


class Batched(ReusedBuffer, Quadratic):
    """A batch adds δ to the curvatures and η to the slope, each chain its own."""

    def loss_and_grad(self, position, batch=None):
        curvature, slope = (0.0, 0.0) if batch is None else batch
        own = position @ self.rotation
        loss = (0.5 * (self.h + curvature) * own.square() + slope * own).sum(-1)
        return loss, self.filled(((self.h + curvature) * own + slope) @ self.rotation.T)


def batches_of(target, of_curvature, of_slope):
    """Batches with these variances of δ and η."""

    def batches(generator, count):
        while True:
            pair = torch.randn(2, count, target.dim, dtype=torch.float64, generator=generator)
            yield pair[0] * of_curvature**0.5, pair[1] * of_slope**0.5

    return batches


def sample(kernel, potential, batches, num_chains=128, num_warmup=300, num_draws=800, **settings):
    return samplers.sample(
        kernel, potential, torch.zeros(potential.dim, dtype=torch.float64), batches=batches, num_chains=num_chains,
        num_warmup=num_warmup, num_draws=num_draws, keep_positions=True, **settings,
    )  # fmt: skip


def variance_of(stiffness, n_beta, of_curvature, additive, step_size=STEP_SIZE):
    """(1 + εs²/4) / (A (1 − εA/4) − ε nβ² v/4), s² being the additive part of the gradient noise."""
    multiplicative = 0.25 * step_size * n_beta**2 * of_curvature
    return (1 + 0.25 * step_size * additive) / (stiffness * (1 - step_size * stiffness / 4) - multiplicative)


def assert_law(target, trace, variance):
    """Mean, full covariance and nβ·E[loss] in the coordinates of the law."""
    own = target.coordinates(trace.positions)
    for one in range(target.dim):
        assert_mean(own[..., one], 0.0)
        for other in range(one + 1):
            assert_mean(own[..., one] * own[..., other], float(variance[one]) if one == other else 0.0)
    assert_mean(target.n_beta * trace.loss, float((0.5 * target.n_beta * target.h * variance).sum()))


def multiplicative_target():
    return Batched((1.5, 0.5), n_beta=20.0, localization=2.0, rotation=random_rotation(2))


def assert_multiplicative_law(factory=control_variates, offset=0.25):
    """Random curvatures and slopes, and an anchor off the centre of the law."""
    target = multiplicative_target()
    own_anchor = torch.tensor([offset, -2 * offset], dtype=torch.float64)
    trace = sample(
        samplers.sgld(STEP_SIZE), factory(target, target.rotation @ own_anchor), batches_of(target, 0.3, 4.0)
    )
    additive = target.n_beta**2 * 0.3 * own_anchor.square()
    assert_law(target, trace, variance_of(target.stiffness, target.n_beta, 0.3, additive))


def test_the_noise_of_random_slopes_vanishes_altogether():
    target = Batched((1.5, 0.5), n_beta=20.0, localization=2.0, rotation=random_rotation(2))
    anchor = torch.tensor([0.4, -1.0], dtype=torch.float64)
    trace = sample(samplers.sgld(STEP_SIZE), control_variates(target, anchor), batches_of(target, 0.0, 4.0))
    assert_law(target, trace, sgld_variance(target.stiffness, STEP_SIZE))
    without = sample(samplers.sgld(STEP_SIZE), target, batches_of(target, 0.0, 4.0))
    assert_law(target, without, sgld_variance(target.stiffness, STEP_SIZE, 20.0**2 * 4.0))


@pytest.mark.parametrize("kernel", [samplers.sgld(0.02), samplers.sghmc(0.1), samplers.sgnht(0.1), samplers.baoab(0.1)])
def test_any_kernel_then_moves_as_with_full_data(kernel):
    """Random slopes alone: positions and biases are those of full data, given the same noise of the kernel."""
    target = multiplicative_target()
    wrapped = control_variates(target, torch.ones(2, dtype=torch.float64))
    slopes = batches_of(target, 0.0, 9.0)(torch.Generator().manual_seed(1), 8)
    one, other = (kernel.init(torch.zeros(8, 2, dtype=torch.float64), target) for _ in range(2))
    generator, same = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    for _ in range(30):
        with_batch = kernel.step_(one, wrapped, next(slopes), generator)
        full = kernel.step_(other, target, None, same)
        torch.testing.assert_close(one.position, other.position)
        torch.testing.assert_close(with_batch.localization_energy, full.localization_energy)


@pytest.mark.parametrize("offset", [0.0, 0.25], ids=["anchor at the centre", "anchor off the centre"])
def test_the_noise_of_random_curvatures_is_left_with_its_variance(offset):
    assert_multiplicative_law(offset=offset)


def test_without_control_variates_the_slopes_heat_too():
    target = multiplicative_target()
    trace = sample(samplers.sgld(STEP_SIZE), target, batches_of(target, 0.3, 4.0))
    assert_law(target, trace, variance_of(target.stiffness, target.n_beta, 0.3, target.n_beta**2 * 4.0))


PLANTED = {
    "sign of the correction": ("self.gradient - gradient_there", "gradient_there - self.gradient"),
    "the anchor on another batch": (
        "self.base.loss_and_grad(self.anchor.expand_as(position), batch)",
        "self.base.loss_and_grad(self.anchor.expand_as(position), tuple(part.roll(1, 0) for part in batch))",
    ),
    "the anchor's full gradient forgotten": ("self.gradient - gradient_there", "-gradient_there"),
    "another anchor for the batch": ("self.anchor.expand_as(position), batch", "0 * position, batch"),
    "an overwritten gradient": ("add_(correction)", "add_(self.gradient - gradient_there)"),
}


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_errors_are_rejected(plant):
    with pytest.raises(AssertionError, match=REJECTED):
        assert_multiplicative_law(mutant("control_variates", *PLANTED[plant]))


def assert_badly_scaled(factory=control_variates, num_steps=1000):
    """Mean and full covariance at condition number 1e4, rotated, with an anchor off the centre of the law.

    At ε = 1e-4 the random slopes alone would heat the stiffest direction, where εA = 1, by a quarter. What is left of
    the random curvatures heats it by nearly a half, and adds a twentieth to the variance of every direction.
    """
    target = Batched((0.0, 99.0, 9999.0), rotation=random_rotation(3))
    step_size = 1e-4
    of_curvature = 0.05 * target.stiffness * 4 / step_size
    own_anchor = torch.tensor([1.0, 0.2, 0.03], dtype=torch.float64)
    variance = variance_of(target.stiffness, 1.0, of_curvature, of_curvature * own_anchor.square(), step_size)
    assert_law_is_kept(
        samplers.sgld(step_size), target, variance, num_steps, deviation=None,
        potential=factory(target, target.rotation @ own_anchor), batches=batches_of(target, of_curvature, 1e4),
    )  # fmt: skip


def test_the_whole_covariance_of_a_badly_scaled_gaussian_is_kept():
    assert_badly_scaled()


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_errors_do_not_keep_it(plant):
    with pytest.raises(AssertionError, match="standard errors"):
        assert_badly_scaled(mutant("control_variates", *PLANTED[plant]), num_steps=100)


def test_without_control_variates_it_is_not_kept():
    with pytest.raises(AssertionError, match="standard errors"):
        assert_badly_scaled(lambda potential, anchor: potential, num_steps=100)


class SkewedBatches(ReusedBuffer):
    """LogGamma, whose batches have a factor 1 + δ before exp w and a slope η, each chain its own."""

    dim, n_beta, max_chains, localizer = 1, 1.0, None, samplers.Unlocalized()

    def loss_and_grad(self, position, batch=None):
        change, slope = (0.0, 0.0) if batch is None else batch
        scaled = (1 + change) * position.exp()
        return (scaled - (2.0 + slope) * position).sum(-1), self.filled(scaled - (2.0 + slope))

    def sum(self, x):
        return x.sum(-1)


def assert_skewed(factory=control_variates, step_sizes=(0.015, 0.03)):
    """Slopes of deviation 10 would heat by more than a third at the smaller step; δ is left, too small to be seen."""
    potential = SkewedBatches()
    anchor = torch.tensor([LogGamma().mean], dtype=torch.float64)
    assert_skewed_at_small_steps(
        samplers.sgld, LogGamma(), step_sizes, factory(potential, anchor), batches_of(potential, 0.1, 100.0)
    )


def test_skewed_density_with_closed_moments():
    assert_skewed()


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_errors_are_rejected_by_the_skewed_density(plant):
    with pytest.raises(AssertionError, match="standard errors"):
        assert_skewed(mutant("control_variates", *PLANTED[plant]), (0.03,))


def test_without_control_variates_the_skewed_density_is_missed():
    with pytest.raises(AssertionError, match="standard errors"):
        assert_skewed(lambda potential, anchor: potential, (0.03,))


def test_full_data_passes_as_it_is_and_exact_kernels_are_unaffected():
    target = multiplicative_target()
    wrapped = control_variates(target, torch.ones(2, dtype=torch.float64))
    settings = {"num_chains": 8, "num_warmup": 20, "num_draws": 30}
    one, other = (sample(samplers.mala(0.1), potential, None, **settings) for potential in (wrapped, target))
    assert torch.equal(one.positions, other.positions)
    assert (wrapped.dim, wrapped.n_beta, wrapped.max_chains) == (2, 20.0, None)
    assert wrapped.localizer is target.localizer


def assert_exact_at_the_anchor(factory=control_variates):
    """There a batch gives the loss and the gradient of the full data, or those that were given for them."""
    target = multiplicative_target()
    anchor = torch.tensor([0.4, -1.0], dtype=torch.float64)
    loss, gradient = (part[0].clone() for part in target.loss_and_grad(anchor.unsqueeze(0)))
    batch = next(batches_of(target, 0.3, 4.0)(torch.Generator().manual_seed(0), 5))
    for shift, given in ((0.0, ()), (1.0, (loss + 1.0, gradient + 1.0))):
        losses, gradients = factory(target, anchor, *given).loss_and_grad(anchor.expand(5, -1), batch)
        torch.testing.assert_close(losses, (loss + shift).expand(5))
        torch.testing.assert_close(gradients, (gradient + shift).expand(5, -1))


def test_a_batch_at_the_anchor_gives_the_values_of_full_data():
    assert_exact_at_the_anchor()


@pytest.mark.parametrize("planted", ["loss_there - self.loss", "self.loss - 0 * loss_there", "-loss_there"])
def test_planted_errors_of_the_loss_are_rejected(planted):
    with pytest.raises(AssertionError, match="not close"):
        assert_exact_at_the_anchor(mutant("control_variates", "self.loss - loss_there", planted))


def test_the_noise_of_the_loss_grows_with_the_square_of_the_distance():
    """Var of the loss at a distance d along a coordinate: δ²d⁴/4, where without its slope it were η²d² and more."""
    target = Batched((1.5,), n_beta=20.0)
    wrapped = control_variates(target, torch.tensor([0.5], dtype=torch.float64))
    batch = next(batches_of(target, 0.3, 4.0)(torch.Generator().manual_seed(0), 20_000))
    losses, _ = wrapped.loss_and_grad(torch.full((20_000, 1), 0.6, dtype=torch.float64), batch)
    centred = losses.numpy() - 0.5 * 1.5 * 0.6**2
    assert_independent_mean(centred, 0.0)
    assert_independent_mean(centred**2, 0.3 * (0.6 - 0.5) ** 4 / 4)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"anchor": torch.zeros(3)}, "anchor"),
        ({"anchor": torch.full((2,), torch.nan)}, "anchor"),
        ({"anchor": torch.zeros(2), "gradient": torch.zeros(2, 2)}, "gradient"),
        ({"anchor": torch.zeros(2), "loss": torch.tensor(torch.inf)}, "loss"),
    ],
)
def test_bad_anchors_are_refused(arguments, name):
    doubles = {key: value.double() for key, value in arguments.items()}
    with pytest.raises(ValueError, match=f"{name}: "):
        control_variates(multiplicative_target(), **doubles)
