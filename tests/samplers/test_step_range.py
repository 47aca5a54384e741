"""Two step sizes around the one of dual averaging."""

import pytest
import torch

import samplers
from tests.samplers.laws import Quadratic


def found(target, metric=None, **settings):
    position = torch.zeros(16, target.dim, dtype=torch.float64)
    return samplers.accept_over_scales(**settings)(
        samplers.hmc(1.0, 5, metric), target, position, None, torch.Generator().manual_seed(0)
    )


def test_a_range_of_eight_to_both_sides_and_no_more_than_half_a_width():
    for curvature in (1.0, 1e4):
        target = Quadratic((curvature,) * 20, localization=0.0)
        low, high = found(target).kernel.settings["step_size"]
        epsilon = 8 * low
        assert 0.3 < epsilon * curvature**0.5 < 2  # stable below two widths
        assert high == pytest.approx(max(min(8 * epsilon, 0.5), 2 * low))


def test_gradients_are_those_of_the_pilot():
    assert found(Quadratic((1.0, 2.0)), num_steps=40).num_gradients == 40 * 5 + 3


def test_another_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel: mala; expected hmc"):
        samplers.accept_over_scales()(
            samplers.mala(0.1), Quadratic((1.0,)), torch.zeros(4, 1).double(), None, torch.Generator()
        )
