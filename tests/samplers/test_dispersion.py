"""Chains that start apart: in the law, on both sides of what separates them, and no other chain than asked for."""

import math

import pytest
import torch

import samplers
from tests.samplers.laws import Quadratic
from tests.statistics import assert_independent_mean

STEPS = (0.05, 0.5)


def starts(target, position, kernel=None, **settings):
    """Where chains that were to start at ``position`` start."""
    kernel = samplers.hmc(STEPS, 10) if kernel is None else kernel
    adapted = samplers.disperse(**settings)(kernel, target, position, None, torch.Generator().manual_seed(0))
    assert adapted.kernel.settings["num_steps"] == kernel.settings["num_steps"]
    return adapted


def test_chains_end_in_the_law():
    """From ten widths away; a rung alone would leave them there."""
    target = Quadratic((1.0, 3.0), n_beta=1000.0)
    whitened = samplers.hmc(STEPS, 10, samplers.Diagonal(1 / target.stiffness))
    away = torch.full((4000, 2), 0.3, dtype=torch.float64)
    found = starts(target, away, whitened).initial
    for place, stiffness in enumerate(target.stiffness):
        assert_independent_mean(found[:, place].numpy(), 0.0)
        assert_independent_mean(found[:, place].square().numpy(), float(1 / stiffness))


class Arms:
    """½(w₁w₂)² · nβ, localised at the origin: four arms, equally likely by symmetry."""

    def __init__(self, n_beta):
        self.n_beta, self.dim, self.max_chains = n_beta, 2, None
        self.localizer = samplers.GaussianLocalizer(torch.zeros(2, dtype=torch.float64), 1.0)

    def loss_and_grad(self, position, batch=None):
        product = position.prod(-1)
        return 0.5 * product.square(), product.unsqueeze(-1) * position.flip(-1)

    def sum(self, x):
        return x.sum(-1)


def share_of_the_other_arm(hottest, num_steps=40):
    """Of chains that were to start in the first."""
    target = Arms(1e6)
    place = torch.tensor([2.0, 0.0], dtype=torch.float64).expand(1000, 2)
    kernel = samplers.hmc((0.02, 0.5), 10, samplers.Diagonal(torch.full((2,), 1e-3, dtype=torch.float64)))
    found = starts(target, place, kernel, hottest=hottest, num_steps=num_steps).initial
    return float((found.abs().argmax(-1) == 1).double().mean())


def test_chains_are_shared_out_over_arms_between_which_they_do_not_move():
    """A binomial share of 1,000 chains: beyond four deviations once in 16,000 runs."""
    assert abs(share_of_the_other_arm(10.0) - 0.5) < 4 * math.sqrt(0.25 / 1000)
    assert 0.35 < share_of_the_other_arm(10.0, num_steps=8) < 0.5  # a few steps remember where they came from
    assert share_of_the_other_arm(5e5) < 0.01  # where they are hardly heated


def test_gradients_are_those_of_every_rung():
    target = Quadratic((1.0, 2.0), n_beta=1000.0)
    whitened = samplers.hmc(STEPS, 10, samplers.Diagonal(1 / target.stiffness))
    found = starts(target, torch.zeros(4, 2, dtype=torch.float64), whitened, num_steps=3)
    # two rungs to each factor of ten, nβ itself, and a look whether small steps are accepted
    assert found.num_gradients == 6 * (3 * 10 + 1)
    assert found.kernel.settings["step_size"] == STEPS


def test_the_smallest_step_is_halved_where_a_chain_refuses_it():
    """Steps of two to three widths are unstable; of a quarter none is refused."""
    target = Quadratic((1.0,), n_beta=1e4)
    width = float(target.stiffness[0]) ** -0.5
    place = torch.zeros(8, 1, dtype=torch.float64)
    low, high = starts(target, place, samplers.hmc((2.5 * width, 40 * width), 10)).kernel.settings["step_size"]
    assert low in [2.5 * width / 2**halvings for halvings in (1, 2, 3)]
    assert high == 40 * width


def test_chains_that_are_hot_already_start_where_they_were_to_start():
    found = starts(Quadratic((1.0,), n_beta=8.0), torch.zeros(4, 1, dtype=torch.float64))
    assert found.initial is None
    assert found.num_gradients == 0


def test_every_chain_of_a_run_starts_in_one_of_the_places():
    target = Quadratic((1.0, 2.0), n_beta=100.0)
    target.max_chains = 3
    run = samplers.Run(samplers.hmc(STEPS, 3), target, target.anchor, num_chains=7, num_warmup=0, keep_positions=True)
    run.adapt(samplers.in_turn(samplers.disperse(), samplers.disperse(num_steps=2)))
    run.draw(2)
    first = run.trace().positions[:, 0]
    assert len(first.unique(dim=0)) == 3
    assert torch.equal(first[:3], first[3:6])
    assert torch.equal(first[0], first[6])
    again = samplers.Run(samplers.hmc(STEPS, 3), target, target.anchor, num_chains=7, num_warmup=0, keep_positions=True)
    again.adapt(samplers.in_turn(samplers.disperse(), samplers.disperse(num_steps=2)))
    resumed = samplers.Run(
        samplers.hmc(STEPS, 3), target, target.anchor, num_chains=7, num_warmup=0, keep_positions=True
    )
    resumed.load_state_dict(again.state_dict())  # before its first step
    resumed.draw(2)
    assert torch.equal(resumed.trace().positions, run.trace().positions)


def test_what_cannot_be_heated_is_refused():
    place = torch.zeros(4, 1, dtype=torch.float64)
    for kernel in (samplers.mala(0.1), samplers.hmc(0.1, 3)):
        with pytest.raises(ValueError, match=r"expected hmc\(\(low, high\)\)"):
            starts(Quadratic((1.0,)), place, kernel)
    with pytest.raises(ValueError, match="one nβ for all chains"):
        starts(Quadratic((1.0,), n_beta=torch.ones(4, 1)), place)
    for wrong in ({"hottest": 0.0}, {"num_steps": 0}):
        with pytest.raises(ValueError, match="hottest, num_steps: "):
            samplers.disperse(**wrong)
