"""The grid of losses: found where there is one, and their own last place where there is none."""

import numpy as np
import pytest

from slt.resolution import common_unit


def losses(dtype, count=20, seed=0):
    return (np.random.default_rng(seed).random(count) / 2 + 0.5).astype(dtype)


@pytest.mark.parametrize(("dtype", "last"), [(np.float64, 2.0**-53), (np.float32, 2.0**-24)])
def test_of_numbers_of_chance_it_is_their_last_place(dtype, last):
    """All of twenty end in two zeros with probability 4⁻²⁰."""
    for seed in range(50):
        assert last <= common_unit(losses(dtype, seed=seed)) < 4 * last


def test_what_a_constant_leaves():
    thousand = np.float32(1000)  # numbers from 512 to 1,024 are 2⁻¹⁴ apart
    assert common_unit(losses(np.float32) + thousand - thousand) == 2.0**-14
    assert common_unit(losses(np.float64) + 2.0**40 - 2.0**40) == 2.0**-12


def test_zeros_and_infinities_say_nothing_and_few_losses_neither():
    known = np.array([[0.0, 3.0, -6.0, 1.5], [9.0, np.nan, np.inf, -np.inf]])
    assert common_unit(known) == 0.5
    assert common_unit(np.array([0.0, 3.0, 6.0, 9.0, 3.0])) == 0.0
    assert common_unit(np.zeros(20)) == 0.0
    assert common_unit(np.array([2.0**-1074, 1.0, 2.0, 3.0])) == 2.0**-1074
