"""Stages of development: found where they are, and not where they are not."""

import numpy as np
import pytest

from slt.stages import find_stages


def noisy(levels, error, seed):
    return np.asarray(levels, dtype=float) + error * np.random.default_rng(seed).standard_normal(len(levels))


def test_jumps_are_found_where_they_are():
    """Of ten standard errors, over a hundred seeds: always within one checkpoint, and seldom beside one that is not."""
    levels = np.concatenate([np.full(10, 2.0), np.full(10, 5.0), np.full(10, 9.0)])
    right = 0
    for seed in range(100):
        stages = find_stages(np.arange(1, 31), noisy(levels, 0.2, seed), np.full(30, 0.2), log=False)
        firsts = [stage.first for stage in stages]
        assert all(min(abs(first - jump) for first in firsts) <= 1 for jump in (10, 20))
        if len(stages) == 3:
            right += 1
            assert all(stage.plateau for stage in stages)
            assert [stage.level for stage in stages] == pytest.approx([2, 5, 9], abs=0.3)
    assert right >= 85  # 93 % of four hundred


def test_a_constant_is_one_plateau():
    """The criterion finds a stage too many in 6 % of series of noise alone, of 3,000, on either axis.

    Of 200 more than 25 have one with probability 3·10⁻⁴, if it is so.
    """
    for log in (True, False):
        more = 0
        for seed in range(200):
            stages = find_stages(np.arange(40), noisy(np.full(40, 3.0), 0.1, seed), np.full(40, 0.1), log=log)
            more += len(stages) > 1
        assert more <= 25


def test_a_rise_is_a_stage_that_is_no_plateau():
    steps = np.unique(np.geomspace(1, 10_000, 40).astype(int))
    values = np.clip(np.log(steps) - 3.0, 0.0, 4.0)
    stages = find_stages(steps, values, np.full(len(steps), 0.05))
    assert [stage.plateau for stage in stages] == [True, False, True]
    assert stages[1].change == pytest.approx(4.0, abs=0.6)
    assert stages[0].end < np.exp(3.5)
    assert stages[-1].start > np.exp(6.4)


def test_the_axis_is_that_of_the_figure_by_default():
    even, early = np.arange(0, 1001, 50), np.unique(np.geomspace(1, 10_000, 40).astype(int))
    for steps, log in ((even, False), (early, True)):
        x = np.log1p(steps) if log else steps
        (stage,) = find_stages(steps, 3.0 * x / x[-1], np.full(len(steps), 0.01))
        assert not stage.plateau


def test_a_stage_around_an_outlier_is_no_plateau():
    (stage,) = find_stages([1, 10, 100, 1000, 2000], [2, 2, -13, 2, 2], [0.2] * 5)
    assert not stage.plateau
    (stage,) = find_stages([1, 10, 100, 1000, 2000], [2, 2, 2, 2, 2.1], [0.2] * 5)
    assert stage.plateau


def test_failed_checkpoints_are_left_out_and_few_give_none():
    values = [1.0, np.nan, 1.0, 1.0, 5.0, 5.0, 5.0, np.nan]
    stages = find_stages(range(8), values, [0.1] * 8, log=False)
    assert [(stage.first, stage.last) for stage in stages] == [(0, 3), (4, 6)]
    assert find_stages([1, 2], [1.0, 2.0], [0.1, 0.1]) == []
    with pytest.raises(ValueError, match="same number"):
        find_stages([1, 2, 3], [1.0, 2.0], [0.1, 0.1])
    with pytest.raises(ValueError, match="do not increase"):
        find_stages([1, 3, 2], [1.0, 2.0, 3.0], [0.1] * 3)
