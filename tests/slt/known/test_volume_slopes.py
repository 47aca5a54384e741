"""λ of every case of at most six weights against volumes: slow, minutes in all.

The bound is 3 % of λ, or 0.02 where λ = 0. The statistical error of a slope is mostly below 1 % (``spread``), at worst
about 1.5 %, and the bias of finite ε up to 2 %; an error of λ by 5 % fails. m is seen only indirectly, and where λ ≤ 1.
"""

import pytest

from slt.known import case, cases, volume_slope

# relu3d_H2_dup has eight weights: the one check by volumes of more than two inputs
SMALL = [known for known in cases() if known.dim <= 6] + [case("relu3d_H2_dup")]


def check_slope(known, found, rlct=None):
    rlct = float(known.rlct if rlct is None else rlct)
    assert abs(found.slope - rlct) <= (0.03 * rlct if rlct else 0.02)
    if known.multiplicity > 1 and rlct <= 1:  # the logarithm shows: without it the slope is visibly below λ
        assert found.raw_slope < rlct - 0.01 * (known.multiplicity - 1)


@pytest.mark.slow
@pytest.mark.parametrize("known", SMALL, ids=lambda known: known.name)
def test_volumes_scale_with_lambda(known):
    check_slope(known, volume_slope(known))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("tanh_H2_zero", 0.75),  # three quarters is the value of an activation with even and odd powers
        ("rrr_222_r1", 1.5),  # r(M + N − r)/2 counts dimensions and forgets the block that is left
        ("rrr_222_r1", 3.0),  # the sign of r² the other way round
        ("relu_b_H2_dup", 1.25),  # the exponent of tanh
        ("tanh_H2_k1_dup", 4 / 3),  # the exponent of ReLU
    ],
)
def test_a_wrong_lambda_is_rejected_by_the_same_bound(name, wrong):
    known = case(name)
    found = volume_slope(known)
    check_slope(known, found)
    with pytest.raises(AssertionError):
        check_slope(known, found, wrong)
