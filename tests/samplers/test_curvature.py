"""The preconditioner from curvature: eigenpairs, its matrix, and what it does for a stiff Gaussian of dimension 200."""

import pytest
import torch

import samplers
from samplers import Identity, accept_at_rate, curvature_preconditioner, hessian_products, in_turn

from samplers import whiten_curvature  # isort: skip
from tests.samplers.laws import Quadratic, random_rotation
from tests.statistics import assert_mean

STIFF = torch.logspace(2, 4, 10, dtype=torch.float64)


def stiff_target(dim=200, n_beta=100.0):
    """Ten directions of curvature nβh from 1e4 to 1e6, the others flat but for γ = 1: a condition number of 1e6."""
    h = torch.cat([torch.zeros(dim - len(STIFF), dtype=torch.float64), STIFF])
    return Quadratic(h, n_beta=n_beta, rotation=random_rotation(dim))


def test_products_are_those_of_the_hessian():
    target = Quadratic((1.0, -2.0, 30.0), n_beta=7.0, rotation=random_rotation(3))
    vectors = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hessian = target.rotation @ torch.diag(target.h) @ target.rotation.T
    anchor = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for most in (None, 2):
        target.max_chains = most
        torch.testing.assert_close(hessian_products(target, anchor)(vectors), vectors @ hessian, rtol=1e-8, atol=1e-8)


def test_products_in_float32_do_not_drown_in_rounding():
    """In ten thousand dimensions the entries of a unit vector are small against those of the anchor."""
    dim = 10_000
    h = torch.linspace(1.0, 100.0, dim)
    potential = samplers.from_log_density(lambda w: -0.5 * (h * w.square()).sum(-1), dim)
    vectors = torch.nn.functional.normalize(torch.randn(3, dim, generator=torch.Generator().manual_seed(0)))
    found = hessian_products(potential, torch.ones(dim))(vectors)
    assert float((found - vectors * h).norm() / (vectors * h).norm()) < 1e-3


def test_the_preconditioner_is_the_inverse_of_a_with_its_floor():
    target = stiff_target()
    found = curvature_preconditioner(
        hessian_products(target, target.anchor), target.anchor, n_beta=100.0, localization=1.0, rank=16
    )
    torch.testing.assert_close(found.eigenvalues, STIFF.flip(0), rtol=1e-6, atol=0)
    assert found.residual < 1e-6
    assert found.num_products == 26 * 7
    floor = 1.0 + 100.0**0.5
    exact = target.rotation @ torch.diag(1 / (100.0 * target.h + floor)) @ target.rotation.T
    own = found.preconditioner.apply_(torch.eye(200, dtype=torch.float64))
    torch.testing.assert_close(own, exact, rtol=1e-5, atol=1e-8)


def test_directions_that_are_softer_than_the_floor_are_left_out_and_negative_ones_count_by_size():
    target = Quadratic((1e-4, 5.0, -3.0), n_beta=100.0)
    found = curvature_preconditioner(
        hessian_products(target, target.anchor), target.anchor, n_beta=100.0, localization=1.0
    )
    torch.testing.assert_close(found.eigenvalues, torch.tensor([5.0, -3.0], dtype=torch.float64))
    flat = Quadratic((0.0, 0.0), n_beta=100.0)
    found = curvature_preconditioner(hessian_products(flat, flat.anchor), flat.anchor, n_beta=100.0, localization=1.0)
    assert isinstance(found.preconditioner, Identity)


def whitened_squares(target, kernel, adapt, num_draws):
    """A·w² of every coordinate in its own axes, one on average under the law, and the trace."""
    trace = samplers.sample(kernel, target, target.anchor, num_chains=64, num_warmup=200, num_draws=num_draws,
                            adapt=adapt, keep_positions=True)  # fmt: skip
    return target.coordinates(trace.positions) ** 2 * target.stiffness.numpy(), trace


# five steps of order one are about a quarter of the period of the flat directions, whose squares half a period would
# leave as they are
@pytest.mark.parametrize(
    "make",
    [lambda: samplers.mala(1.0), pytest.param(lambda: samplers.hmc(1.0, 5), marks=pytest.mark.slow)],
    ids=["mala", "hmc"],
)
def test_stiff_and_flat_directions_mix_at_one_step_of_order_one(make):
    target = stiff_target()
    plain, _ = whitened_squares(target, make(), accept_at_rate(), num_draws=50)
    assert plain[..., :190].mean() < 0.1  # still at the anchor, at the step that the stiffest wall allows
    squares, trace = whitened_squares(target, make(), in_turn(whiten_curvature(16), accept_at_rate()), num_draws=400)
    assert 0.1 < trace.configuration["step_size"] < 4
    assert_mean(target.n_beta * trace.loss, float(0.5 * (target.n_beta * target.h / target.stiffness).sum()))
    for place in (0, 50, 190, 199):
        assert_mean(squares[..., place], 1.0)


@pytest.mark.parametrize(
    "changes", [{"n_beta": 0.0}, {"localization": -1.0}, {"rank": 0}, {"num_iterations": 0}], ids=str
)
def test_bad_arguments_are_refused(changes):
    target = Quadratic((1.0,))
    arguments = {"n_beta": 1.0, "localization": 1.0, **changes}
    with pytest.raises(ValueError, match=next(iter(changes))):
        curvature_preconditioner(hessian_products(target, target.anchor), target.anchor, **arguments)


def test_a_product_that_is_not_finite_is_an_error():
    with pytest.raises(FloatingPointError, match="Hessian at the anchor is not finite"):
        curvature_preconditioner(lambda v: v / 0.0, torch.zeros(3), n_beta=1.0, localization=1.0)


def test_an_adaptation_of_bad_settings_or_of_a_kernel_without_a_preconditioner_is_refused():
    with pytest.raises(ValueError, match="rank, num_iterations: 0, 6"):
        whiten_curvature(0)
    target, start = stiff_target(), torch.zeros(2, 200, dtype=torch.float64)
    with pytest.raises(ValueError, match="kernel: rmsprop_sgld has no setting preconditioner"):
        whiten_curvature()(samplers.rmsprop_sgld(0.1), target, start, None, torch.Generator())
