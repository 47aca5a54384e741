"""The dense metric of a pilot: the covariance of a Gaussian law, what shrinks it, and what it is refused for."""

import sys

import pytest
import torch

import samplers
from samplers.fisher_metric import fisher_metric
from tests.samplers.assertions import assert_quadratic
from tests.samplers.laws import Quadratic, random_rotation

MODULE = sys.modules["samplers.fisher_metric"]  # the package holds the function by this name

CURVATURE = (0.1, 1.0, 30.0, 1000.0)


def run_of(adaptation, kernel, target, num_chains=32, seed=0):
    position = torch.zeros(num_chains, target.dim, dtype=torch.float64)
    return adaptation(kernel, target, position, None, torch.Generator().manual_seed(seed))


def matrix_of(kernel, dim):
    return kernel.settings["preconditioner"].apply_(torch.eye(dim, dtype=torch.float64))


def whitened(kernel, target):
    """Eigenvalues of √P A √P, all one for P = A⁻¹."""
    root = kernel.settings["preconditioner"].apply_root_(torch.eye(target.dim, dtype=torch.float64))
    hessian = target.rotation @ torch.diag(target.stiffness) @ target.rotation.T
    return torch.linalg.eigvalsh(root @ hessian @ root)


def test_on_a_gaussian_law_it_is_the_covariance():
    """A second pilot, in the metric of the first, has all but nothing left to do: what is left is chance.

    The first alone leaves √((1/A + k) / (A + k)) in place of 1/A, with the share k of the identity.
    """
    target = Quadratic(CURVATURE, rotation=random_rotation(4))
    first = samplers.in_turn(samplers.accept_at_rate(), fisher_metric(300))
    adapted = run_of(first, samplers.hmc(1.0, 10), target)
    share = 2 * 4 / (32 * 200)
    stiffness = target.stiffness
    left = stiffness * (((1 - share) / stiffness + share) / ((1 - share) * stiffness + share)).sqrt()
    torch.testing.assert_close(whitened(adapted.kernel, target), left.sort().values, rtol=0.1, atol=0.0)
    twice = run_of(
        samplers.in_turn(first, samplers.accept_at_rate(), fisher_metric(300)), samplers.hmc(1.0, 10), target
    )
    values = whitened(twice.kernel, target)
    assert values.min() > 0.9
    assert values.max() < 1.1  # with the identity they span 1.1 to 1001


def test_without_the_gradients_chains_that_have_not_travelled_would_be_taken_at_their_word(monkeypatch):
    """MALA at a step that the stiffest wall allows has not crossed the flat directions: F knows them all the same."""
    target = Quadratic((0.0, 1.0, 1e4), localization=0.01)
    kernel = samplers.mala(1e-4, small_step_share=0.0)
    flattest = torch.linalg.eigvalsh(matrix_of(run_of(fisher_metric(200), kernel, target).kernel, 3))[-1]
    power = MODULE._power
    monkeypatch.setattr(
        MODULE,
        "_power",
        lambda matrix, exponent: torch.eye(3).double() if exponent == -1.0 else power(matrix, exponent),
    )
    alone = torch.linalg.eigvalsh(matrix_of(run_of(fisher_metric(200), kernel, target).kernel, 3))[-1]
    assert flattest > 2 * alone


def test_a_short_pilot_leaves_the_old_metric():
    """With fewer samples than twice the dimension all of the weight is the identity's, in the old metric."""
    target = Quadratic(CURVATURE)
    old = torch.tensor([0.5, 0.5, 0.02, 0.001], dtype=torch.float64)
    adapted = run_of(fisher_metric(6), samplers.hmc(0.1, 3, samplers.Diagonal(old)), target, num_chains=2)
    torch.testing.assert_close(matrix_of(adapted.kernel, 4), torch.diag(old))
    assert adapted.num_gradients == 6 * 3 + 1


def test_the_law_in_the_metric_is_exact():
    target = Quadratic((0.1, 1.0, 100.0), n_beta=3.0, rotation=random_rotation(3))
    adapt = samplers.in_turn(samplers.accept_at_rate(), fisher_metric(200), samplers.accept_over_scales())
    trace = samplers.sample(
        samplers.hmc(1.0, 5), target, target.anchor, num_chains=64, num_warmup=100, num_draws=500, adapt=adapt,
        keep_positions=True,
    )  # fmt: skip
    assert_quadratic(target, trace)


def test_what_it_is_refused_for():
    with pytest.raises(ValueError, match="num_steps: 2"):
        fisher_metric(2)
    with pytest.raises(ValueError, match="kernel: sgld; expected an exact kernel with a setting preconditioner"):
        run_of(fisher_metric(), samplers.sgld(0.1), Quadratic((1.0,)))
    with pytest.raises(FloatingPointError, match="no chain of the pilot moved"):
        run_of(fisher_metric(20), samplers.hmc(1e6, 2), Quadratic((1.0, 1.0)))
