"""Replica exchange: every rung against its own exact law, a thin cross that no single chain crosses, planted errors."""

import importlib

import numpy as np
import pytest
import torch

import samplers
from samplers import by_rung, diagnose, hmc, ladder_potential, mala, replica_exchange
from tests.samplers.laws import Quadratic, random_rotation
from tests.statistics import Z, assert_mean

tempering = importlib.import_module("samplers.tempering")


class Cross:
    """K = (w₁w₂)² about the origin under γ/2 ‖w‖²."""

    dim, n_beta, max_chains = 2, 1.0, None

    def __init__(self, localization=1.0):
        self.localizer = samplers.GaussianLocalizer(torch.zeros(2, dtype=torch.float64), localization)

    def loss_and_grad(self, position, batch=None):
        first, second = position.unbind(-1)
        product = first * second
        return product.square(), 2 * product.unsqueeze(-1) * torch.stack([second, first], -1)

    def sum(self, x):
        return x.sum(-1)


def run(potential, ladder, kernel_of, num_ladders=16, num_draws=2500, num_warmup=300, seed=0):
    ladder = torch.as_tensor(ladder, dtype=torch.float64)
    target = ladder_potential(potential, ladder, num_ladders)
    sampled = samplers.Run(
        replica_exchange(kernel_of(ladder.repeat(num_ladders)[:, None]), len(ladder)),
        target,
        torch.zeros(potential.dim, dtype=torch.float64),
        num_chains=len(target.n_beta),
        num_warmup=num_warmup,
        seed=seed,
    )
    sampled.draw(num_draws)
    return sampled


def assert_rungs(target, ladder, sampled):
    """nβ·E[loss] of every rung is that of its own law: nβ is tempered, the localiser is not."""
    rows = by_rung(sampled.trace().loss, len(ladder))
    for n_beta, losses in zip(ladder, rows, strict=True):
        share = n_beta * target.h / (n_beta * target.h + target.localizer.strength)
        assert_mean(n_beta * losses, float(0.5 * share.sum()))


LADDER = (0.5, 2.0, 8.0, 32.0)


def quadratic_run(target):
    return run(target, LADDER, lambda n_beta: hmc((0.2 / (n_beta * 5 + 2).sqrt(), 1.5 / (n_beta * 5 + 2).sqrt()), 4),
               num_draws=1500)  # fmt: skip


def test_every_rung_has_its_own_law():
    target = Quadratic((0.5, 1.0, 5.0), localization=2.0, rotation=random_rotation(3))
    sampled = quadratic_run(target)
    assert_rungs(target, LADDER, sampled)
    state = sampled.blocks[0].state
    assert bool(((state.swap_rates > 0.2) & (state.swap_rates < 1)).all())
    assert int(state.round_trips.min()) > 20


def test_mala_can_be_tempered_too():
    target = Quadratic((0.5, 1.0, 5.0), localization=2.0)
    assert_rungs(target, LADDER, run(target, LADDER, lambda n_beta: mala(1.0 / (n_beta * 5 + 2)), num_draws=4000))


def _tempered_localizer(monkeypatch):
    """As if the whole of U were divided by the temperature: the localiser of each rung scales with nβ."""

    class Scaled(samplers.GaussianLocalizer):
        def add_gradient_(self, gradient, position, columns=slice(None)):
            factor = torch.tensor(LADDER, dtype=torch.float64).repeat(len(position) // len(LADDER)) / LADDER[-1]
            offset = position - self.anchor
            gradient.add_(offset * factor[:, None], alpha=self.strength)
            return 0.5 * self.strength * factor * offset.square().sum(-1)

    monkeypatch.setattr(tempering.LadderPotential, "localizer", property(
        lambda self: Scaled(self.base.localizer.anchor, self.base.localizer.strength)))  # fmt: skip


def _every_swap_accepted(monkeypatch):
    honest = tempering.torch.rand
    monkeypatch.setattr(tempering.torch, "rand", lambda *size, **kind: (
        torch.zeros(size, dtype=kind["dtype"]) if len(size) == 2 and size[1] == len(LADDER) - 1
        else honest(*size, **kind)))  # fmt: skip


@pytest.mark.parametrize("plant", [_tempered_localizer, _every_swap_accepted])
def test_planted_errors_are_rejected(plant, monkeypatch):
    target = Quadratic((0.5, 1.0, 5.0), localization=2.0)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        assert_rungs(target, LADDER, quadratic_run(target))


def assert_cross(sampled, ladder):
    """The exact 0.43754261 of (w₁w₂)² at nβ = 10⁶, γ = 1, within 4 standard errors, which are below 2 %."""
    found = diagnose(ladder[-1] * by_rung(sampled.trace().loss, len(ladder))[-1])
    assert found.ess >= 400
    assert found.mcse <= 0.02 * 0.43754261
    assert abs(found.mean - 0.43754261) <= Z * found.mcse


def test_the_thin_cross_that_a_single_chain_gets_wrong():
    ladder = np.geomspace(1.0, 1e6, 14)
    sampled = run(Cross(), ladder, lambda n_beta: hmc((0.15 / (n_beta + 1).sqrt(), torch.ones_like(n_beta)), 5))
    assert_cross(sampled, ladder)
    assert float(sampled.blocks[0].state.swap_rates.min()) > 0.4
    assert int(sampled.blocks[0].state.round_trips.sum()) > 1000


def test_without_swaps_the_same_ladder_is_rejected(monkeypatch):
    """The same chains, never swapped, stand in the arms of the cross: the assertion above must fail."""
    ladder = np.geomspace(1.0, 1e6, 14)
    honest = tempering.torch.rand

    def never(*size, **kind):
        of_the_swaps = len(size) == 2 and size[1] == len(ladder) - 1
        return torch.full(size, 2.0, dtype=kind["dtype"]) if of_the_swaps else honest(*size, **kind)

    monkeypatch.setattr(tempering.torch, "rand", never)
    sampled = run(Cross(), ladder, lambda n_beta: hmc((0.15 / (n_beta + 1).sqrt(), torch.ones_like(n_beta)), 5))
    with pytest.raises(AssertionError):
        assert_cross(sampled, ladder)


def test_a_seed_repeats_bitwise_and_rows_keep_their_rung():
    target = Quadratic((0.5, 5.0))
    first, again, other = (
        run(target, LADDER, lambda _: hmc(0.2, 2), num_ladders=2, num_draws=20, num_warmup=0, seed=seed)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.trace().loss, again.trace().loss)
    assert not np.array_equal(first.trace().loss, other.trace().loss)
    state = first.blocks[0].state
    assert torch.equal(state.replica.sort(-1).values, torch.arange(4).expand(2, 4))
    loss, gradient = target.loss_and_grad(state.position)
    torch.testing.assert_close(state.inner.loss, loss)  # what is swapped stays together
    torch.testing.assert_close(state.inner.gradient, gradient)


def test_bad_settings_are_named():
    potential = Quadratic((1.0,))
    with pytest.raises(ValueError, match="inner: sgld is not exact"):
        replica_exchange(samplers.sgld(0.1), 3)
    with pytest.raises(ValueError, match="num_rungs: 1"):
        replica_exchange(hmc(0.1), 1)
    for ladder in ([1.0], [2.0, 1.0], [-1.0, 1.0], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="n_beta: "):
            ladder_potential(potential, torch.tensor(ladder), 2)
    with pytest.raises(ValueError, match="num_chains: 3"):
        samplers.sample(replica_exchange(hmc(0.1), 2), potential, torch.zeros(1, dtype=torch.float64), num_chains=3,
                        num_warmup=0, num_draws=1)  # fmt: skip


def test_a_ladder_of_another_length_is_refused():
    """24 rows are six ladders of four rungs, and would pass for eight of three."""
    target = samplers.ladder_potential(Quadratic((0.5, 5.0)), torch.tensor(LADDER, dtype=torch.float64), 6)
    kernel = samplers.replica_exchange(hmc(0.1, 2), num_rungs=3)
    with pytest.raises(ValueError, match="num_rungs: 3, but the inverse temperatures of the potential are not ladders"):
        samplers.sample(kernel, target, torch.zeros(2, dtype=torch.float64), num_chains=24, num_warmup=0, num_draws=5)
