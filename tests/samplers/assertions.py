"""What every exact kernel must meet: the continuous law on quadratics, and a skewed density."""

import torch

from tests.statistics import assert_independent_mean, assert_mean


def assert_quadratic(target, trace):
    own = target.coordinates(trace.positions)
    for place, stiffness in enumerate(target.stiffness):
        assert_mean(own[..., place], 0.0)
        assert_mean(own[..., place] ** 2, float(1 / stiffness))
    share = target.n_beta * target.h / target.stiffness
    assert_mean(target.n_beta * trace.loss, float(0.5 * share.sum()))


def assert_skewed(law, trace):
    values = trace.positions[..., 0].numpy()
    centred = values - law.mean
    assert_mean(values, law.mean)
    assert_mean(centred**2, law.variance)
    assert_mean(centred**3, law.third)


def assert_law_is_kept(kernel, target, variance, num_steps, num_chains=5_000, seed=0):
    """Chains that start in the law N(0, variance), in its own coordinates, are in it after so many steps.

    Mean and full covariance, from independent chains. It asks nothing of the kernel's speed, so that any condition
    number will do; a kernel that does nothing passes, and must fail elsewhere.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(num_chains, target.dim, dtype=torch.float64, generator=generator) * variance.sqrt()
    state = kernel.init(start @ target.rotation.T, target)
    for _ in range(num_steps):
        kernel.step_(state, target, None, generator)
    own = (target.coordinates(state.position) / variance.sqrt().numpy()).T
    for one, values in enumerate(own):
        assert_independent_mean(values, 0.0, deviation=1.0)
        for other in range(one + 1):
            assert_independent_mean(values * own[other], float(one == other), deviation=2**0.5 if one == other else 1.0)
