"""Cooling in a ball: nβ·E[L] and log Z at every rung against closed forms; the moves, the ball and planted errors."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import gammainc, gammaln
from scipy.stats import norm
from scipy.stats import t as student

from samplers.ball import BallLocalizer
from samplers.cooling import cool
from samplers.scale_moves import ScaleMoves, groups_of_shapes, scaling_patterns
from samplers.zero_variance import without_known_noise, zero_mean_functions
from tests.statistics import Z

POPULATIONS, PARTICLES = 16, 256


def descend(loss, dim, radius=1.0, top=1e6, anchor=None, **options):
    """A ladder for a loss of flat weights, with its gradients by autograd."""

    def loss_and_grad(position):
        with torch.enable_grad():
            leaf = position.detach().requires_grad_()
            values = loss(leaf)
            return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]

    center = torch.zeros(dim, dtype=torch.float64) if anchor is None else anchor
    options = {"num_populations": POPULATIONS, "num_particles": PARTICLES, "budget": 10_000_000, **options}
    return cool(loss, loss_and_grad, BallLocalizer(center, radius), largest_n_beta=top, **options)


def assert_replicated(values, truth, allowed=0.0):
    """The mean of independent populations: t-quantile at the false-alarm rate of Z standard errors, but for a bias."""
    bound = float(student.isf(norm.sf(Z), len(values) - 1))
    error = abs(values.mean() - truth)
    assert error <= allowed + bound * values.std(ddof=1) / len(values) ** 0.5, f"{values.mean():.5g}, truth {truth:.5g}"


def power_mean(n_beta, share, radius_term):
    """nβ·E[K] of K = a·r^p with w in a ball: λ P(λ + 1, x)/P(λ, x), λ = dim/p, x = nβ·a·R^p."""
    x = n_beta * radius_term
    return share * gammainc(share + 1, x) / gammainc(share, x)


def cross_mean(n_beta):
    """nβ·E[K] of (w₁w₂)² in the unit disk, by quadrature over the angle."""

    def moments(order):
        def at(log_angle):  # θ = e^s: the mass lies at every scale of the angle
            angle = math.exp(log_angle)
            scale = n_beta * math.sin(2 * angle) ** 2 / 4
            weight = 0.5 * gammainc(0.5 + order, scale) * math.gamma(0.5 + order) / 2
            return weight * scale**-0.5 * angle

        return quad(at, -40, math.log(math.pi / 4), limit=400, epsabs=0, epsrel=1e-9)[0]

    return moments(1) / moments(0)


LAWS = {
    "quadratic": (lambda w: 0.5 * w.square().sum(-1), 3, lambda t: power_mean(t, 1.5, 0.5)),
    "quartic": (lambda w: w[:, 0] ** 4, 1, lambda t: power_mean(t, 0.25, 1.0)),
    "cross": (lambda w: (w[:, 0] * w[:, 1]) ** 2, 2, cross_mean),
}


def assert_law(found, mean_at):
    """At every third rung, plain and with the noise taken out; one in N particles of bias is allowed."""
    for place in range(0, len(found.n_beta), 3):
        truth = mean_at(found.n_beta[place])
        for curve in (found.mean, found.plain_mean):
            assert_replicated(curve[:, place], truth, allowed=truth / PARTICLES)
        assert_replicated(found.variance[:, place], truth_variance(mean_at, found.n_beta[place]), allowed=0.02)


def truth_variance(mean_at, n_beta, step=1e-3):
    """M − dM/d log nβ."""
    slope = (mean_at(n_beta * math.exp(step)) - mean_at(n_beta * math.exp(-step))) / (2 * step)
    return mean_at(n_beta) - slope


@pytest.mark.parametrize("name", LAWS)
def test_every_rung_has_the_mean_and_variance_of_its_law(name):
    loss, dim, mean_at = LAWS[name]
    assert_law(descend(loss, dim), mean_at)


def test_the_error_is_that_of_the_law_and_a_wrong_law_would_be_seen():
    loss, dim, mean_at = LAWS["cross"]
    found = descend(loss, dim)
    with pytest.raises(AssertionError, match="truth"):
        assert_law(found, lambda t: mean_at(t) * 1.06)


def test_log_z_of_a_quadratic():
    found = descend(LAWS["quadratic"][0], 3)
    x = 0.5 * found.n_beta[-1]
    truth = gammaln(2.5) - 1.5 * math.log(x) + math.log(gammainc(1.5, x))
    assert_replicated(found.log_z[:, -1], truth, allowed=0.02)


def test_an_anchor_elsewhere_and_a_prior():
    """A prior |w|^½ in one dimension turns λ = ½ of a quadratic into ¾; moves about zero are part of the mix."""
    anchor = torch.tensor([0.7], dtype=torch.float64)
    found = descend(
        lambda w: 0.5 * (w[:, 0] - 0.7).square(), 1, 0.5, anchor=anchor,
        log_prior=lambda w: 0.5 * (w[:, 0] - 0.7).abs().log(),
    )  # fmt: skip
    place = len(found.n_beta) - 1
    assert_replicated(found.mean[:, place], power_mean(found.n_beta[place], 0.75, 0.125), allowed=0.01)


def test_a_missing_ball_would_be_seen(monkeypatch):
    loss, dim, mean_at = LAWS["cross"]
    monkeypatch.setattr(BallLocalizer, "energy", lambda self, position: position.new_zeros(len(position)))
    with pytest.raises(AssertionError, match="truth"):
        assert_law(descend(loss, dim), mean_at)


def test_scalings_without_their_jacobian_would_be_seen(monkeypatch):
    honest = ScaleMoves.propose

    def wrong(self, position, others):
        proposed, log_jacobian, cells = honest(self, position, others)
        return proposed, torch.zeros_like(log_jacobian), cells

    monkeypatch.setattr(ScaleMoves, "propose", wrong)
    loss, dim, mean_at = LAWS["quadratic"]
    with pytest.raises(AssertionError, match="truth"):
        assert_law(descend(loss, dim), mean_at)


def test_particles_that_cannot_move_are_named(monkeypatch):
    def still(self, position, others):
        count = position.shape[0] * position.shape[1]
        return position + 10.0, position.new_zeros(position.shape[:2]), torch.zeros(count, dtype=torch.long)

    monkeypatch.setattr(ScaleMoves, "propose", still)
    found = descend(LAWS["quadratic"][0], 3)
    assert found.ended == "frozen"
    assert found.memory[-1] > 0.99
    assert found.acceptance == 0


def test_the_same_seed_gives_the_same_ladder():
    loss, dim, _ = LAWS["cross"]
    first, second = (descend(loss, dim, top=1e3, seed=3) for _ in range(2))
    assert np.array_equal(first.mean, second.mean)
    assert not np.array_equal(first.mean, descend(loss, dim, top=1e3, seed=4).mean)


def test_zero_mean_functions_have_mean_zero_and_take_noise_out():
    """Exact draws from a quadratic cut by its ball; without the window the mean is not zero."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(200_000, 2, generator=generator, dtype=torch.float64)
    inside = normal[normal.square().sum(-1) < 4][:160_000].view(8, 20_000, 2)
    anchor, flat = torch.zeros(2, dtype=torch.float64), inside.flatten(0, 1)
    known = zero_mean_functions(flat, flat, 1.0, anchor, 2.0, True)
    error = known.mean(0) / (known.std(0) / len(known) ** 0.5)
    assert float(error.abs().max()) < Z
    naive = flat * flat - 1  # of the field x alone, which crosses the sphere
    assert float((naive.mean(0) / (naive.std(0) / len(naive) ** 0.5)).abs().max()) > Z
    values = 0.5 * inside.square().sum(-1)
    cleaned = without_known_noise(values, [known.view(8, 20_000, -1)])
    assert float(cleaned.std()) < 0.5 * float(values.std())
    assert abs(float(cleaned.mean() - values.mean())) < Z * float(values.std()) / len(flat) ** 0.5


def test_too_few_samples_leave_values_as_they_are():
    values, known = torch.randn(4, 8), torch.randn(4, 8, 5)
    assert without_known_noise(values, [known]) is values


def test_patterns_and_groups():
    groups = groups_of_shapes([(2, 3), (2,), (1,)])
    assert groups == [[0, 1, 2, 3, 4, 5], [0, 1, 2], [3, 4, 5], [0, 3], [1, 4], [2, 5], [6, 7]]
    small = scaling_patterns(2, [])
    assert sorted(small.tolist()) == [[0, 1], [1, -1], [1, 0], [1, 1]]
    large = scaling_patterns(9, groups)
    assert len(torch.unique(large, dim=0)) == len(large)
    assert set(large.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_a_ball_is_uniform_inside_and_infinite_outside():
    ball = BallLocalizer(torch.tensor([1.0, 2.0], dtype=torch.float64), 0.5)
    drawn = ball.draw(10_000, torch.Generator().manual_seed(0))
    assert bool((ball.energy(drawn) == 0).all())
    share = (drawn - ball.anchor).square().sum(-1) / 0.25  # uniform in the disk: r² is uniform
    assert abs(float(share.mean()) - 0.5) < Z / (12 * 10_000) ** 0.5
    assert bool((ball.energy(ball.anchor + torch.tensor([[0.6, 0.0]])) == math.inf).all())
    gradient = torch.ones(1, 2, dtype=torch.float64)
    assert float(ball.add_gradient_(gradient, ball.anchor[None])) == 0
    assert gradient.tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="columns"):
        ball.add_gradient_(gradient, ball.anchor[None], slice(0, 1))
    with pytest.raises(ValueError, match="radius"):
        BallLocalizer(ball.anchor, 0.0)
    with pytest.raises(ValueError, match="anchor"):
        BallLocalizer(ball.anchor[None], 1.0)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="num_populations"):
        descend(LAWS["quartic"][0], 1, num_particles=7)
    with pytest.raises(ValueError, match="finite at"):
        descend(lambda w: w[:, 0] * math.nan, 1)
