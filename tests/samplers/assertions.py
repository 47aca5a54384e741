"""What every exact kernel must meet: the continuous law on quadratics, and a skewed density."""

import itertools

import torch

from tests.statistics import assert_independent_mean, assert_mean


def assert_quadratic(target, trace):
    own = target.coordinates(trace.positions)
    for place, stiffness in enumerate(target.stiffness):
        assert_mean(own[..., place], 0.0)
        assert_mean(own[..., place] ** 2, float(1 / stiffness))
    share = target.n_beta * target.h / target.stiffness
    assert_mean(target.n_beta * trace.loss, float(0.5 * share.sum()))


def assert_moments(law, values, assertion):
    """Three moments of a density that is not symmetric, by ``assert_mean`` or ``assert_independent_mean``."""
    centred = values - law.mean
    assertion(values, law.mean)
    assertion(centred**2, law.variance)
    assertion(centred**3, law.third)


def assert_skewed(law, trace):
    assert_moments(law, trace.positions[..., 0].numpy(), assert_mean)


def assert_skewed_at_small_steps(
    kernel_at, law, step_sizes, potential=None, batches=None, time=10.0, num_chains=5_000, seed=0
):
    """Independent chains from the origin end in the continuous law, at a step which, doubled, changes nothing.

    ``time`` is the sum of the steps: of ten, e⁻¹⁰ of the start is left.
    """
    potential = potential or law.potential
    for step_size in step_sizes:
        generator = torch.Generator().manual_seed(seed)
        of_step = batches(generator, num_chains) if batches else itertools.repeat(None)
        kernel = kernel_at(step_size)
        state = kernel.init(torch.zeros(num_chains, 1, dtype=torch.float64), potential)
        for _ in range(round(time / step_size)):
            kernel.step_(state, potential, next(of_step), generator)
        assert_moments(law, state.position[:, 0].numpy(), assert_independent_mean)


def assert_law_is_kept(
    kernel, target, variance, num_steps, num_chains=5_000, seed=0, potential=None, batches=None, deviation=2**0.5
):
    """Chains that start in the law N(0, variance), in its own coordinates, are in it after so many steps.

    Mean and full covariance, from independent chains. It asks nothing of the kernel's speed, so that any condition
    number will do; a kernel that does nothing passes, and must fail elsewhere. ``deviation`` is that of the square of
    a coordinate over its variance: None, as found, where the law is not Gaussian.
    """
    potential = potential or target
    generator = torch.Generator().manual_seed(seed)
    of_step = batches(generator, num_chains) if batches else itertools.repeat(None)
    start = torch.randn(num_chains, target.dim, dtype=torch.float64, generator=generator) * variance.sqrt()
    state = kernel.init(start @ target.rotation.T, potential)
    for _ in range(num_steps):
        kernel.step_(state, potential, next(of_step), generator)
    own = (target.coordinates(state.position) / variance.sqrt().numpy()).T
    for one, values in enumerate(own):
        assert_independent_mean(values, 0.0, deviation=1.0)
        for other in range(one + 1):
            assert_independent_mean(
                values * own[other], float(one == other), deviation=deviation if one == other else 1.0
            )
