"""What every exact kernel must meet: the continuous law on quadratics, and a skewed density."""

from tests.statistics import assert_mean


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
