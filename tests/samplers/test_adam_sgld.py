"""Adam-SGLD: the published recursion, and the exact joint law of position and averaged gradient."""

import pytest
import torch

from samplers import GaussianLocalizer
from samplers.adam_sgld import adam_sgld
from tests.samplers.laws import Quadratic, random_rotation
from tests.samplers.momenta import REJECTED, mutant
from tests.samplers.test_rmsprop_sgld import (
    adapted,
    assert_skewed,
    assert_standard,
    hessians,
    metric_of,
    stationary_covariance,
    whitened,
)
from tests.statistics import assert_mean

BADLY_SCALED = (0.5, 99.5, 9999.5)  # with γ = 0.5, a condition number of 1e4; m̂ has a law in every direction
STABILIZATION, NUM_ADAPT, DECAY_MEAN = 0.05, 100, 0.7


def covariance_of(target, metric, step_size, decay_mean=DECAY_MEAN):
    """The law of (w, nβ m̂) of each chain before a step, ``(chains, 2 dim, 2 dim)``.

    y' = c y + (1 − c)(H w + sη), w' = w − ½εP(y' + γw) + √(εP) ξ.
    """
    of_loss, whole = hessians(target)
    identity = torch.eye(target.dim, dtype=torch.float64).expand(len(metric), -1, -1)
    scaled = step_size * torch.diag_embed(metric)
    of_localizer, fresh = whole - of_loss, (1 - decay_mean) * of_loss.expand_as(identity)
    upper = torch.cat([identity - 0.5 * scaled @ (fresh + of_localizer), -0.5 * decay_mean * scaled], -1)
    lower = torch.cat([fresh, decay_mean * identity], -1)
    gradient_noise = (1 - decay_mean) * target.noise_variance**0.5
    kicks = torch.cat([-0.5 * gradient_noise * scaled, gradient_noise * identity], -2)
    noise = kicks @ kicks.mT
    noise[:, : target.dim, : target.dim] += scaled
    return stationary_covariance(torch.cat([upper, lower], -2), noise)


def make(factory, step_size):
    return factory(step_size, DECAY_MEAN, decay=0.8, stabilization=STABILIZATION, num_adapt=NUM_ADAPT)


def joint(state, target):
    return torch.cat([state.position, target.n_beta * state.mean], -1)


def assert_law_is_kept(factory=adam_sgld, noise=100.0, num_chains=2000, num_steps=400, step_size=0.001):
    """Chains put into the laws of their own metrics are in them after as many steps as the softest direction allows."""
    target = Quadratic(BADLY_SCALED, localization=0.5, noise=noise, rotation=random_rotation(3))
    generator = torch.Generator().manual_seed(0)
    kernel = make(factory, step_size)
    state = adapted(kernel, target, num_chains, generator, NUM_ADAPT)
    covariance = covariance_of(target, metric_of(state, STABILIZATION), step_size)
    start = torch.randn(num_chains, 6, 1, dtype=torch.float64, generator=generator)
    position, mean = (torch.linalg.cholesky(covariance) @ start).squeeze(-1).chunk(2, -1)
    state.position.copy_(position)
    state.mean.copy_(mean)
    for _ in range(num_steps):
        kernel.step_(state, target, None, generator)
    assert_standard(whitened(covariance, joint(state, target)))


def assert_law(factory=adam_sgld, noise=0.01, num_draws=400, thinning=5):
    """From the anchor, with draws of chains that mix: mean, full covariance of (w, m̂), nβ·E[loss], predicted bias."""
    target = Quadratic((3.0, 0.02), n_beta=50.0, localization=2.0, noise=noise, rotation=random_rotation(2))
    step_size, num_chains = 0.001, 128
    generator = torch.Generator().manual_seed(0)
    kernel = make(factory, step_size)
    state = adapted(kernel, target, num_chains, generator, NUM_ADAPT + 300)
    metric = metric_of(state, STABILIZATION)
    covariance = covariance_of(target, metric, step_size)
    of_loss, _ = hessians(target)
    states, losses, biases = [], [], []
    for draw in range(num_draws * thinning):
        before = joint(state, target)
        info = kernel.step_(state, target, None, generator)
        if draw % thinning == 0:
            states.append(before)
            losses.append(info.loss)
            biases.append(info.discretization_bias)
    white = torch.stack([whitened(covariance, values) for values in states], 1).numpy()
    for one in range(4):
        assert_mean(white[..., one], 0.0)
        for other in range(one + 1):
            assert_mean(white[..., one] * white[..., other], float(one == other))
    exact = 0.5 * (of_loss * covariance[:, :2, :2]).sum((1, 2))
    assert_mean((target.n_beta * torch.stack(losses, 1) - exact[:, None]).numpy(), 0.0)
    of_mean = covariance[:, 2:, 2:].diagonal(dim1=1, dim2=2)  # of nβ m̂, the same before and after a step
    after = DECAY_MEAN * covariance[:, :2, 2:] + (1 - DECAY_MEAN) * covariance[:, :2, :2] @ of_loss  # Cov(w, nβ m̂')
    moment = of_mean + 2.0 * after.diagonal(dim1=1, dim2=2)
    predicted = 0.125 * step_size * (1 + DECAY_MEAN) / (1 - DECAY_MEAN) * (metric * moment).sum(-1)
    assert_mean((torch.stack(biases, 1) - predicted[:, None]).numpy(), 0.0)


@pytest.mark.parametrize("noise", [0.0, 100.0], ids=["full gradient", "noisy gradient"])
def test_the_whole_covariance_of_a_badly_scaled_gaussian_is_kept(noise):
    assert_law_is_kept(noise=noise)


@pytest.mark.parametrize("noise", [0.0, 0.01], ids=["full gradient", "noisy gradient"])
def test_law_from_the_anchor_with_n_beta_and_a_localizer(noise):
    assert_law(noise=noise)


def test_closed_forms_of_the_docstring_are_the_discrete_lyapunov_solution():
    target = Quadratic((0.5, 3.0, 80.0), localization=0.0)
    for step_size, decay_mean, noise in ((0.1, 0.9, 0.0), (0.3, 0.5, 5.0), (0.02, 0.97, 9.0)):
        target.noise = noise
        found = covariance_of(target, torch.ones(1, 3, dtype=torch.float64), step_size, decay_mean)[0]
        ratio, stiffness = (1 - decay_mean) / (1 + decay_mean), target.stiffness
        of_mean = (stiffness + ratio * noise) / (1 - ratio * step_size * stiffness / 4)
        torch.testing.assert_close(found.diagonal()[3:], of_mean)
        torch.testing.assert_close(found.diagonal()[:3], (1 + step_size / 4 / ratio * of_mean) / stiffness)
        torch.testing.assert_close(found[:3, 3:].diagonal(), 1 - step_size / 4 * of_mean)


def test_the_predicted_bias_is_the_actual_one_in_stiff_directions_and_above_it_in_flat_ones():
    step_size, factor = 0.001, 0.125 * 0.001 * (1 + DECAY_MEAN) / (1 - DECAY_MEAN)
    for curvature, tolerance in ((300.0, 0.02), (0.1, None)):
        target = Quadratic((curvature,), localization=2.0, noise=4.0)
        found = covariance_of(target, torch.ones(1, 1, dtype=torch.float64), step_size)[0]
        actual = 0.5 * curvature * float(found[0, 0]) - 0.5 * curvature / (curvature + 2.0)
        after = DECAY_MEAN * found[0, 1] + (1 - DECAY_MEAN) * curvature * found[0, 0]
        predicted = factor * float(found[1, 1] + 2.0 * after)
        if tolerance is not None:
            assert predicted == pytest.approx(actual, rel=tolerance)
        assert predicted > actual


PLANTED = {
    "unfrozen metric": ("(decay, state.age, num_adapt)", "(decay, state.age)"),
    "noise √(2ε)": ("noise_scale = square_root(step_size)", "noise_scale = square_root(2 * step_size)"),
    "drift ε": ("drift_scale = step_size * -0.5", "drift_scale = -step_size"),
    "the last gradient in place of its mean": ("].lerp_(loss_gradient, mean_weight)", "].copy_(loss_gradient)"),
    "mean frozen with the metric": ("(decay_mean, state.age)", "(decay_mean, state.age, num_adapt)"),
    "localiser averaged too": (
        "drift = mean * potential.n_beta\n            energy = potential.localizer.add_gradient_(drift, part, columns)",
        "energy = potential.localizer.add_gradient_(mean, part, columns)\n            drift = mean * potential.n_beta",
    ),
}  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_errors_are_rejected(plant):
    with pytest.raises(AssertionError, match=REJECTED):
        assert_law(mutant("adam_sgld", *PLANTED[plant]))


@pytest.mark.parametrize("plant", ["unfrozen metric", "noise √(2ε)", "drift ε"])
def test_planted_errors_do_not_keep_the_law(plant):
    with pytest.raises(AssertionError, match="standard errors"):
        assert_law_is_kept(mutant("adam_sgld", *PLANTED[plant]))


@pytest.mark.parametrize("num_adapt", [None, 6], ids=["never frozen", "frozen after six steps"])
def test_steps_are_those_of_the_published_recursion(num_adapt):
    """m and V of the loss gradient alone, each corrected by 1 − bᵗ; the localiser enters the drift as it is."""
    target = Quadratic((3.0, 0.5), n_beta=7.0, noise=0.3)
    target.localizer = GaussianLocalizer(torch.ones(2, dtype=torch.float64), 2.0)
    again = Quadratic((3.0, 0.5), n_beta=7.0, noise=0.3)
    kernel = adam_sgld(0.3, 0.7, decay=0.9, stabilization=0.2, num_adapt=num_adapt)
    state = kernel.init(torch.zeros(4, 2, dtype=torch.float64), target)
    generator, same = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    position = torch.zeros(4, 2, dtype=torch.float64)
    first, second, corrected = (torch.zeros_like(position) for _ in range(3))
    for age in range(1, 13):
        kernel.step_(state, target, None, generator)
        gradient = again.loss_and_grad(position)[1]
        first = 0.7 * first + 0.3 * gradient
        if num_adapt is None or age <= num_adapt:
            second = 0.9 * second + 0.1 * gradient**2
            corrected = second / (1 - 0.9**age)
        metric = 1 / (corrected.sqrt() + 0.2)
        drift = 7.0 * first / (1 - 0.7**age) + 2.0 * (position - 1.0)
        noise = torch.randn(4, 2, dtype=torch.float64, generator=same)
        position = position - 0.15 * metric * drift + (0.3 * metric).sqrt() * noise
        torch.testing.assert_close(state.position, position)
        torch.testing.assert_close(state.mean_square, corrected)


def test_skewed_density_with_closed_moments():
    assert_skewed(lambda step: adam_sgld(step, 0.5, stabilization=1.0, num_adapt=50), (0.01, 0.02))


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"decay_mean": 1.0}, "decay_mean"), ({"decay": 1.5}, "decay"), ({"num_adapt": -3}, "num_adapt")],
)
def test_bad_settings_are_refused(settings, name):
    with pytest.raises(ValueError, match=f"{name}: "):
        adam_sgld(0.1, **settings)
