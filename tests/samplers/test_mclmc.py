"""Microcanonical Langevin against the continuous law, and what holds exactly at any step; planted errors must fail."""

import importlib
import math

import numpy as np
import pytest
import torch
from scipy.special import gammaln, hyp1f1

from samplers import Diagonal, baoab, diagnose, from_log_density
from samplers.mclmc import isokinetic_kick, mclmc
from tests.samplers.laws import LogGamma, Quadratic, random_rotation
from tests.samplers.momenta import REJECTED, mutant
from tests.statistics import assert_independent_mean, assert_mean

BADLY_SCALED = (0.0, 99.0, 9999.0)  # with γ = 1, a condition number of 1e4


class Found:
    """Arrays ``(chain, draw, …)`` of the states from which steps were taken, and of what the steps said."""

    def __init__(self, kernel, target, *, num_chains=512, num_warmup=100, num_draws=80, thinning=3, start=None):
        generator = torch.Generator().manual_seed(0)
        origin = torch.zeros(num_chains, target.dim, dtype=torch.float64)
        state = kernel.init(origin if start is None else start.clone(), target)
        for _ in range(num_warmup):
            kernel.step_(state, target, None, generator)
        positions, velocities, infos = [], [], []
        for _ in range(num_draws):
            positions.append(state.position.clone())
            velocities.append(state.velocity.clone())
            infos.append(kernel.step_(state, target, None, generator))
            for _ in range(thinning - 1):
                kernel.step_(state, target, None, generator)
        self.position, self.velocity = torch.stack(positions, 1), torch.stack(velocities, 1)
        self.loss = torch.stack([info.loss for info in infos], 1).numpy()
        self.bias = torch.stack([info.discretization_bias for info in infos], 1).numpy()


def in_law(target, num_chains, seed=7):
    """Independent positions in the law of a quadratic."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(num_chains, target.dim, dtype=torch.float64, generator=generator)
    return (own / target.stiffness.sqrt()) @ target.rotation.T


def assert_gaussian(target, found):
    """Mean and full covariance in the coordinates of the law, each of width one, and nβ·E[loss]."""
    own = target.coordinates(found.position) * target.stiffness.sqrt().numpy()
    for one in range(target.dim):
        assert_mean(own[..., one], 0.0)
        for other in range(one + 1):
            assert_mean(own[..., one] * own[..., other], float(one == other))
    assert_mean(target.n_beta * found.loss, float((0.5 * target.n_beta * target.h / target.stiffness).sum()))


@pytest.mark.parametrize("width", [0.15, 0.3])
def test_the_whole_covariance_of_a_rotated_badly_scaled_gaussian(width):
    """The continuous law at a step which, doubled, changes nothing beyond error: ε in widths of the stiffest wall."""
    target = Quadratic(BADLY_SCALED, rotation=random_rotation(3))
    kernel = mclmc(width * 0.01 * 3**0.5, 1.0)
    found = Found(kernel, target, num_warmup=300, num_draws=100, thinning=6, start=in_law(target, 512))
    assert_gaussian(target, found)


@pytest.mark.parametrize("width", [0.1, 0.2])
def test_the_whole_covariance_with_a_preconditioner(width):
    target = Quadratic((1e-2, 1.0, 100.0), n_beta=2.0, localization=0.0)
    kernel = mclmc(width * 3**0.5, 1.5, Diagonal(1 / target.stiffness))
    assert_gaussian(target, Found(kernel, target, thinning=4))


@pytest.mark.parametrize("width", [0.1, 0.2])
def test_independent_log_gammas_with_closed_moments(width):
    law, dim = LogGamma(), 4
    target = from_log_density(lambda w: (law.shape * w - w.exp()).sum(-1), dim)
    found = Found(mclmc(width * dim**0.5, 2.0), target)
    assert_log_gammas(law, found.position)


def assert_log_gammas(law, positions):
    for values in positions.numpy().transpose(2, 0, 1):
        centred = values - law.mean
        assert_mean(values, law.mean)
        assert_mean(centred**2, law.variance)
        assert_mean(centred**3, law.third)


def test_steps_and_lengths_per_chain():
    target = Quadratic((3.0, 0.5), n_beta=2.0)
    steps, lengths = _columns((0.03, 0.09), 256), _columns((0.3, 1.0), 256)
    found = Found(mclmc(steps, lengths), target)
    own = target.coordinates(found.position)
    for which in range(2):
        for place, stiffness in enumerate(target.stiffness):
            assert_mean(own[which::2, :, place] ** 2, float(1 / stiffness))


def _columns(pair, repeats):
    return torch.tensor(pair, dtype=torch.float64).repeat(repeats)[:, None]


@pytest.mark.parametrize("width", [0.3, 1.0], ids=["small step", "large step"])
def test_position_and_velocity_have_a_scalar_product_of_half_a_step(width):
    """E⟨w − a, P^{-1/2} u⟩ = ε/2, and −ε/2 after the kick, exactly at any step and any refreshment."""
    target = Quadratic((4.0, 1.0, 0.25, 9.0), localization=0.0)
    scale = torch.tensor([0.5, 1.0, 3.0, 0.1], dtype=torch.float64)
    step = width * 2
    for length in (0.5, 5.0):
        kernel = mclmc(step, length, Diagonal(scale))
        found = Found(kernel, target, thinning=1, num_draws=200)
        whitened = (found.position - 0.3) / scale.sqrt()
        assert_mean((whitened * found.velocity).sum(-1).numpy(), step / 2)
        # the velocity after the kick, from the path: w' = w + (ε/2) √P (u⁺ + u')
        moved = (found.position[:, 1:] - found.position[:, :-1]) / scale.sqrt()
        kicked = 2 * moved / step - found.velocity[:, 1:]
        assert_mean((whitened[:, :-1] * kicked).sum(-1).numpy(), -step / 2)


def test_the_velocity_is_isotropic_and_of_length_one():
    target = Quadratic((1.0, 5.0, 30.0), localization=0.0)
    found = Found(mclmc(0.05, 0.5), target)
    torch.testing.assert_close(found.velocity.norm(dim=-1), torch.ones(512, 80, dtype=torch.float64))
    for one in range(3):
        assert_mean(found.velocity[..., one].numpy(), 0.0)
        for other in range(one + 1):
            product = (found.velocity[..., one] * found.velocity[..., other]).numpy()
            assert_mean(product, 1 / 3 if one == other else 0.0)


def kept_per_step(scatter: float, dim: int) -> float:
    """E⟨u, u'⟩ for u' = (u + νξ)/‖u + νξ‖: the mean resultant length of a projected normal law."""
    factor = math.exp(gammaln((dim + 1) / 2) - gammaln(dim / 2 + 1)) / (2**0.5 * scatter)
    return factor * float(hyp1f1(0.5, dim / 2 + 1, -0.5 / scatter**2))


def assert_flights(factory, dim):
    """E‖w_T − w_0‖² in closed form, from the mean cosine of one refreshment; and the cosine of many."""
    flat, step, count, chains = Quadratic((0.0,) * dim, localization=0.0), 0.3, 12, 10_000
    kernel = factory(step, _columns((1.0, 3.0), chains // 2))
    generator = torch.Generator().manual_seed(0)
    state = kernel.init(torch.zeros(chains, dim, dtype=torch.float64), flat)
    kernel.step_(state, flat, None, generator)
    start, first = state.position.clone(), state.velocity.clone()
    for _ in range(count):
        kernel.step_(state, flat, None, generator)
    moved, cosine = (state.position - start).square().sum(-1), (first * state.velocity).sum(-1)
    # flights: halves with u_0 and u_T, wholes between; directions k refreshments apart have a cosine of kept^k
    weights = np.array([0.5] + [1.0] * (count - 1) + [0.5])
    apart = np.abs(np.subtract.outer(np.arange(count + 1), np.arange(count + 1)))
    for which, length in enumerate((1.0, 3.0)):
        kept = kept_per_step(((math.exp(2 * step / length) - 1) / dim) ** 0.5, dim)
        assert kept == pytest.approx(math.exp(-step / length), rel=0.1 if dim == 2 else 0.04)
        assert_independent_mean(cosine[which::2], kept**count)
        assert_independent_mean(moved[which::2], float(step**2 * weights @ kept**apart @ weights))


@pytest.mark.parametrize("dim", [2, 5])
def test_without_a_gradient_chains_fly_straight_and_turn(dim):
    assert_flights(mclmc, dim)


def test_a_refreshment_of_the_wrong_size_is_rejected_by_the_flights():
    with pytest.raises(AssertionError, match=REJECTED):
        assert_flights(mutant("mclmc", "2 * step_size * forgetting", "step_size * forgetting"), 5)


def straight(step):
    """A kernel whose velocity meets no noise to speak of."""
    return mclmc(step, 1e12 * step)


def moving_state(kernel, target, num_chains=64):
    """Positions and velocities from the law of a target around the origin, with nothing pending."""
    generator = torch.Generator().manual_seed(5)
    state = kernel.init(torch.randn(num_chains, target.dim, dtype=torch.float64, generator=generator), target)
    velocity = torch.randn(num_chains, target.dim, dtype=torch.float64, generator=generator)
    state.velocity.copy_(velocity / velocity.norm(dim=-1, keepdim=True))
    state.errors.steps.fill_(1)
    return state


def skewed(dim=4):
    return from_log_density(lambda w: (2 * w - w.exp()).sum(-1), dim)


def test_the_energy_error_of_a_step_is_of_third_order():
    errors = []
    for step in (0.04, 0.02, 0.01):
        kernel, target = straight(step), skewed()
        state = moving_state(kernel, target)
        for _ in range(2):
            kernel.step_(state, target, None, torch.Generator().manual_seed(0))
        errors.append(float(state.errors.latest.square().mean().sqrt()))
    assert 7 < errors[0] / errors[1] < 9
    assert 7 < errors[1] / errors[2] < 9


def test_without_refreshment_the_energy_stays_and_the_path_comes_back():
    """The sum of the errors over a path does not grow with its length; and the flipped velocity leads back."""
    step, count = 0.1, 300
    kernel, target = straight(step), skewed()
    state = moving_state(kernel, target)
    generator = torch.Generator().manual_seed(0)
    begin, direction = state.position.clone(), state.velocity.clone()
    sums, largest = torch.zeros(64, dtype=torch.float64), []
    for place in range(count + 1):
        last = state.position.clone()
        kernel.step_(state, target, None, generator)
        sums += state.errors.latest
        largest.append(float(sums.abs().max()))
        if place == 0:
            kicked = state.velocity.clone()
    assert max(largest[200:]) < 1.5 * max(largest[:100]) < 0.1
    # the last step kicked at w_T and flew on; reversed from there, its kick is undone first
    state.position.copy_(last)
    state.velocity.neg_()
    for _ in range(count):
        kernel.step_(state, target, None, generator)
    # of the noise of 1e-6 per step, that is left which a path of 300 steps makes of it
    torch.testing.assert_close(state.position, begin, rtol=0, atol=1e-2)
    torch.testing.assert_close(state.velocity, -kicked, rtol=0, atol=1e-2)
    assert not torch.allclose(direction, kicked, atol=0.05)


def products_of(force, velocity):
    return torch.stack([(force * force).sum(-1), (force * velocity).sum(-1), (velocity * velocity).sum(-1)])


def kicked(force, velocity, step, dim):
    kick = isokinetic_kick(products_of(force, velocity), step, dim)
    return kick.keep * velocity + kick.turn * force, kick.energy(dim)


def unit(shape, dtype=torch.float64, seed=1):
    values = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return values / values.norm(dim=-1, keepdim=True)


def test_the_kick_solves_its_equation():
    """Against many small explicit steps of u̇ = −(1 − uuᵀ) ∇U/(d − 1), whose kinetic energy is −∫⟨u, ∇U⟩."""
    velocity, force, dim, count = unit((32, 3)), 4 * torch.randn(32, 3, dtype=torch.float64), 3, 4000
    turned, gained = kicked(force, velocity, 0.5, dim)
    own, energy = velocity.clone(), torch.zeros(32, dtype=torch.float64)
    for _ in range(count):
        middle = own
        for _ in range(3):
            slope = -(force - middle * (middle * force).sum(-1, keepdim=True)) / (dim - 1)
            middle = own + 0.25 / count * slope
        energy -= (middle * force).sum(-1) * 0.5 / count
        own = own + 0.5 / count * slope
    torch.testing.assert_close(turned, own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gained, energy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [1e-9, 1e-3, 1.0, 30.0, 1e5, 1e200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_kick_of_any_strength_is_finite_and_keeps_the_length(strength, dtype):
    if strength == 1e200 and dtype == torch.float32:
        strength = 1e15
    dim = 8
    velocity = unit((64, dim), dtype)
    force = (dim - 1) * strength * torch.cat([unit((32, dim), dtype, 2), velocity[32:48], -velocity[48:]])
    if strength == 1e200:
        force *= 1e-60  # its square must be finite
    turned, gained = kicked(force, velocity, 1.0, dim)
    assert bool(torch.isfinite(gained).all())
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    ordinary = turned[:32].norm(dim=-1)
    torch.testing.assert_close(ordinary, torch.ones_like(ordinary), rtol=0, atol=tolerance)
    # uphill along the gradient it may stay or turn back: the two vectors say no more
    assert bool(torch.isfinite(turned[32:48]).all())
    # downhill along the gradient nothing turns, and the energy is the work
    torch.testing.assert_close(turned[48:], velocity[48:], rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-9)
    work = force[48:].norm(dim=-1).double()
    torch.testing.assert_close(gained[48:], work, rtol=1e-5, atol=1e-9)


def test_kicks_by_one_force_add_up():
    velocity, force = unit((32, 5)), 6 * torch.randn(32, 5, dtype=torch.float64)
    whole, energy = kicked(force, velocity, 0.7, 5)
    half, first = kicked(force, velocity, 0.35, 5)
    both, second = kicked(force, half, 0.35, 5)
    torch.testing.assert_close(both, whole)
    torch.testing.assert_close(first + second, energy)
    kick = isokinetic_kick(products_of(force, velocity), 0.7, 5)
    torch.testing.assert_close(kick.energy(5, 0.5), first)


def test_the_kick_s_energy_is_minus_the_logarithm_of_its_jacobian():
    velocity, force = unit((1, 3)), torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    _, gained = kicked(force, velocity, 0.8, 3)

    def image(tangent):
        moved = velocity + tangent @ basis
        return kicked(force, moved / moved.norm(dim=-1, keepdim=True), 0.8, 3)[0]

    basis = torch.linalg.svd(velocity)[2][1:]
    jacobian = torch.autograd.functional.jacobian(image, torch.zeros(1, 2, dtype=torch.float64)).reshape(3, 2)
    volume = torch.linalg.det(jacobian.T @ jacobian).sqrt()
    assert float(gained) == pytest.approx(-math.log(float(volume)))


@pytest.mark.parametrize(("width", "tolerance"), [(0.8, 0.1), (0.5, 0.2)])
def test_estimated_bias_is_the_measured_excess(width, tolerance):
    """Linear response, where the excess is known to a few per cent of it; four of its errors are allowed."""
    dim, n_beta = 20, 3.0
    target = Quadratic((0.7,) * dim, n_beta=n_beta, localization=0.9)
    kernel = mclmc(width * dim**0.5 / 3**0.5, (dim / 3) ** 0.5)
    found = Found(kernel, target, num_chains=1024, num_warmup=150, num_draws=100, thinning=3)
    energy = diagnose(n_beta * found.loss)
    excess = energy.mean - 0.5 * dim * 0.7
    estimate = diagnose(found.bias)
    assert excess > 10 * energy.mcse  # there is something to predict
    assert estimate.mcse < energy.mcse
    assert estimate.mean == pytest.approx(excess, abs=tolerance * excess + 4 * energy.mcse)


def test_with_a_batch_the_bias_is_not_a_number():
    class Batched(Quadratic):
        def loss_and_grad(self, position, batch=None):
            return super().loss_and_grad(position)

    target, kernel = Batched((1.0, 2.0)), mclmc(0.1)
    state = kernel.init(torch.zeros(4, 2, dtype=torch.float64), target)
    info = kernel.step_(state, target, 1, torch.Generator())
    assert bool(info.discretization_bias.isnan().all())


class NoisyInSome(Quadratic):
    """Gradient noise in the coordinates where ``variances`` is not zero."""

    def __init__(self, curvature, variances, **settings):
        super().__init__(curvature, **settings)
        self.variances = torch.as_tensor(variances, dtype=torch.float64)

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position, batch)
        draws = torch.randn(gradient.shape, dtype=torch.float64, generator=self.generator)
        return loss, gradient + self.variances.sqrt() * draws


def test_isotropic_noise_of_the_gradient_biases_less_than_anisotropic_noise_does():
    """The figures of the docstring: noise of ten times the variance of the gradient."""
    dim, curvature, noise = 32, 10.0, 100.0
    step = 0.15 / curvature**0.5
    half = [noise] * (dim // 2) + [0.0] * (dim // 2)

    def variances(kernel, target):
        position = (
            Found(kernel, target, num_chains=256, num_warmup=120, thinning=2).position
            if kernel.name == "mclmc"
            else _positions(kernel, target)
        )
        shares = (curvature * position.square()).view(*position.shape[:2], 2, -1).mean(-1).numpy()
        return [diagnose(shares[..., place]).mean for place in range(2)]

    kernel = mclmc(step * dim**0.5, (dim / curvature) ** 0.5)
    isotropic = variances(kernel, Quadratic((curvature,) * dim, localization=0.0, noise=noise))
    assert isotropic == pytest.approx([1.0, 1.0], abs=0.04)
    heated = variances(baoab(step, curvature**0.5), Quadratic((curvature,) * dim, localization=0.0, noise=noise))
    assert min(heated) > 1.6
    anisotropic = variances(kernel, NoisyInSome((curvature,) * dim, half, localization=0.0))
    assert anisotropic == pytest.approx([1.27, 0.75], abs=0.03)


def _positions(kernel, target, num_chains=256, num_warmup=120, num_draws=160):
    generator = torch.Generator().manual_seed(0)
    state = kernel.init(torch.zeros(num_chains, target.dim, dtype=torch.float64), target)
    kept = []
    for step in range(num_warmup + num_draws):
        kernel.step_(state, target, None, generator)
        if step >= num_warmup:
            kept.append(state.position.clone())
    return torch.stack(kept, 1)


PLANTED = {
    "dim in place of dim - 1": ("per_chain(step_size) / (dim - 1)", "per_chain(step_size) / dim"),
    "no refreshment": ("noise_scale = scattered / dim**0.5", "noise_scale = 1e-9"),
    "kick uphill": ("torch.stack([keep, turn])", "torch.stack([keep, -turn])"),
    "half a kick": ("(products, step_size, dim)", "(products, 0.5 * step_size, dim)"),
    "a velocity of any length": ("moving.mul_(shrinking)", "moving.mul_(1.01)"),
    "tempered localiser": (
        "add_gradient_(pull, position[:, columns], columns)",
        "add_gradient_(pull.div_(potential.n_beta), position[:, columns], columns); pull.mul_(potential.n_beta)",
    ),
}


def assert_planted(factory):
    target = Quadratic((0.3, 0.02, 0.1), n_beta=50.0, localization=2.0)
    assert_gaussian(target, Found(factory(0.1, 0.7), target))


def test_without_a_planted_error_nothing_is_rejected():
    assert_planted(mclmc)


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_errors_are_rejected(plant):
    with pytest.raises(AssertionError, match=REJECTED):
        assert_planted(mutant("mclmc", *PLANTED[plant]))


@pytest.mark.parametrize("plant", ["dim in place of dim - 1", "kick uphill", "half a kick"])
def test_planted_errors_are_rejected_by_the_skewed_density(plant):
    law = LogGamma()
    target = from_log_density(lambda w: (law.shape * w - w.exp()).sum(-1), dim=4)
    kernel = mutant("mclmc", *PLANTED[plant])(0.3, 2.0)
    with pytest.raises(AssertionError, match=REJECTED):
        assert_log_gammas(law, Found(kernel, target).position)


def test_long_vectors_in_chunks_move_as_whole_ones(monkeypatch):
    """With a velocity of its own, and no noise."""
    noise_module = importlib.import_module("samplers.noise")
    kernel, target = straight(0.2), Quadratic((1.0, 2.0, 3.0, 4.0, 5.0), n_beta=2.0)

    def moved():
        state = moving_state(kernel, target, 3)
        infos = [kernel.step_(state, target, None, torch.Generator().manual_seed(0)) for _ in range(4)]
        return state.position, state.velocity, *infos[-1]

    whole = moved()
    monkeypatch.setattr(noise_module, "CHUNK_COLUMNS", 4)
    monkeypatch.setattr(noise_module, "PIECE_COLUMNS", 2)
    for one, other in zip(moved(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_single_precision_at_the_scale_of_a_network():
    target = Quadratic((1.0,) * 1024, n_beta=4.0, localization=1.0)
    target.h, target.rotation, target.anchor = target.h.float(), target.rotation.float(), target.anchor.float()
    target.localizer = type(target.localizer)(target.anchor, 1.0)
    kernel = mclmc(0.3 * 32 / 5**0.5, 32 / 5**0.5)
    state = kernel.init(in_law(Quadratic((1.0,) * 1024, n_beta=4.0), 16).float(), target)
    generator = torch.Generator().manual_seed(0)
    losses = torch.stack([kernel.step_(state, target, None, generator).loss for _ in range(60)])
    assert state.position.dtype == torch.float32
    exact = 0.5 * 1024 / 5
    # E[L] is biased by less than 0.08 · 0.3² of it; the mean of 16 chains, taken as of one draw each, is known to 1.1 %
    assert float(losses[20:].mean()) == pytest.approx(exact, abs=0.0072 * exact + 4 * exact * (2 / 1024 / 16) ** 0.5)


def test_one_dimension_is_refused():
    with pytest.raises(ValueError, match=r"dim: 1; expected at least 2 .* Use baoab"):
        mclmc(0.1).init(torch.zeros(3, 1, dtype=torch.float64), Quadratic((1.0,)))


@pytest.mark.parametrize("length", [0.0, -1.0, float("nan"), torch.ones(3)])
def test_bad_lengths_are_refused(length):
    with pytest.raises(ValueError, match="decoherence_length: "):
        mclmc(0.1, length)
