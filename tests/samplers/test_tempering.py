"""Replica exchange: every rung against its own exact law, a thin cross that no single chain crosses, planted errors."""

import importlib

import numpy as np
import pytest
import torch

import samplers
from samplers import by_rung, diagnose, hmc, ladder_potential, mala, replica_exchange
from tests.samplers.assertions import assert_moments
from tests.samplers.laws import Cross, LogGamma, Quadratic, random_rotation
from tests.samplers.momenta import mutant
from tests.statistics import assert_mean

tempering = importlib.import_module("samplers.tempering")


def run(
    potential, ladder, kernel_of, num_ladders=16, num_draws=2500, num_warmup=300, seed=0, factory=replica_exchange,
    **settings,
):  # fmt: skip
    ladder = torch.as_tensor(ladder, dtype=torch.float64)
    target = ladder_potential(potential, ladder, num_ladders)
    sampled = samplers.Run(
        factory(kernel_of(ladder.repeat(num_ladders)[:, None]), len(ladder)),
        target,
        torch.zeros(potential.dim, dtype=torch.float64),
        num_chains=len(target.n_beta),
        num_warmup=num_warmup,
        seed=seed,
        **settings,
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


@pytest.mark.slow
def test_mala_can_be_tempered_too():
    target = Quadratic((0.5, 1.0, 5.0), localization=2.0)
    assert_rungs(target, LADDER, run(target, LADDER, lambda n_beta: mala(1.0 / (n_beta * 5 + 2)), num_draws=4000))


BADLY_SCALED = (0.0, 0.099, 9.999)  # with γ = 1, a condition number of 1e4 at the coldest rung, nβ = 1000
LONG_LADDER = tuple(np.geomspace(1.0, 1e3, 7))


def assert_badly_scaled_rungs(factory=replica_exchange, num_draws=1500):
    """Mean and full covariance of every rung, each in its own law; the coldest moves along its flat line by swaps."""
    target = Quadratic(BADLY_SCALED, rotation=random_rotation(3))

    def kernel_of(n_beta):
        width = 1 / (n_beta * BADLY_SCALED[-1] + 1).sqrt()
        return hmc((0.2 * width, 1.6 * width), 6)

    sampled = run(target, LONG_LADDER, kernel_of, num_draws=num_draws, factory=factory, keep_positions=True)
    rows = by_rung(target.coordinates(sampled.trace().positions), len(LONG_LADDER))
    for n_beta, own in zip(LONG_LADDER, rows, strict=True):
        white = own * (n_beta * target.h + 1.0).sqrt().numpy()
        for one in range(3):
            assert_mean(white[..., one], 0.0)
            for other in range(one + 1):
                assert_mean(white[..., one] * white[..., other], float(one == other))


def test_the_whole_covariance_of_a_badly_scaled_gaussian_at_every_rung():
    assert_badly_scaled_rungs()


SKEWED_LADDER = (0.25, 0.5, 1.0, 2.0)


def assert_skewed_rungs(factory=replica_exchange, num_draws=1500):
    """The density of log X, X ~ Gamma(2), to the power nβ is that of log X, X ~ Gamma(2nβ), less log nβ."""

    def kernel_of(n_beta):
        return hmc((0.1 / n_beta.sqrt(), 1.2 / n_beta.sqrt()), 4)

    sampled = run(
        LogGamma().potential, SKEWED_LADDER, kernel_of, num_draws=num_draws, factory=factory, keep_positions=True
    )
    for n_beta, values in zip(SKEWED_LADDER, by_rung(sampled.trace().positions[..., 0].numpy(), 4), strict=True):
        assert_moments(LogGamma(2.0 * n_beta), values + np.log(n_beta), assert_mean)


def test_skewed_density_with_closed_moments_at_every_rung():
    assert_skewed_rungs()


PLANTED = {
    "every swap accepted": ("turn & (uniform.log() < log_alpha)", "turn"),
    "swaps of the wrong sign": ("n_beta.diff(dim=1) * loss.diff(dim=1)", "-n_beta.diff(dim=1) * loss.diff(dim=1)"),
    "losses that stay behind": (
        "take_rows_(state.inner, rows)", "state.inner.position.copy_(state.inner.position[rows])"
    ),
}  # fmt: skip
TEMPERED_LOCALIZER = (
    "loss = state.inner.loss.double()",
    "loss = (state.inner.loss + potential.localizer.energy(state.position)).double()",
)


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize(
    "assertion",
    [assert_skewed_rungs, pytest.param(assert_badly_scaled_rungs, marks=pytest.mark.slow)],
    ids=["skewed", "Gaussian"],
)
def test_planted_errors_of_the_swap_are_rejected(assertion, plant):
    with pytest.raises(AssertionError, match="standard errors"):
        assertion(mutant("tempering", *PLANTED[plant], name_of_factory="replica_exchange"), num_draws=750)


def test_swaps_that_temper_the_localizer_are_rejected():
    with pytest.raises(AssertionError, match="standard errors"):
        assert_badly_scaled_rungs(mutant("tempering", *TEMPERED_LOCALIZER, name_of_factory="replica_exchange"), 750)


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
    with pytest.raises(AssertionError, match="standard errors"):
        assert_rungs(target, LADDER, quadratic_run(target))


def assert_cross(sampled, ladder):
    """The exact 0.43754261 of (w₁w₂)² at nβ = 10⁶, γ = 1, within 4 standard errors, which are below 2 %."""
    energies = ladder[-1] * by_rung(sampled.trace().loss, len(ladder))[-1]
    assert diagnose(energies).mcse <= 0.02 * 0.43754261
    assert_mean(energies, 0.43754261)


@pytest.mark.slow
def test_the_thin_cross_that_a_single_chain_gets_wrong():
    ladder = np.geomspace(1.0, 1e6, 14)
    sampled = run(Cross(), ladder, lambda n_beta: hmc((0.15 / (n_beta + 1).sqrt(), torch.ones_like(n_beta)), 5))
    assert_cross(sampled, ladder)
    assert float(sampled.blocks[0].state.swap_rates.min()) > 0.4
    assert int(sampled.blocks[0].state.round_trips.sum()) > 1000


@pytest.mark.parametrize(
    "uniform", [pytest.param(torch.inf, marks=pytest.mark.slow), 2.0], ids=["no swaps", "only swaps that gain"]
)
def test_wrong_swaps_are_rejected_by_their_value(uniform, monkeypatch):
    """Chains that are never swapped stand in the arms of the cross with every diagnostic green, and their value is off.

    A uniform number of 2 in place of one below 1 makes only those swaps whose log α is above log 2.
    """
    ladder = np.geomspace(1.0, 1e6, 14)
    honest = tempering.torch.rand

    def planted(*size, **kind):
        of_the_swaps = len(size) == 2 and size[1] == len(ladder) - 1
        return torch.full(size, uniform, dtype=kind["dtype"]) if of_the_swaps else honest(*size, **kind)

    monkeypatch.setattr(tempering.torch, "rand", planted)
    sampled = run(
        Cross(), ladder, lambda n_beta: hmc((0.15 / (n_beta + 1).sqrt(), torch.ones_like(n_beta)), 5), num_ladders=48
    )
    found = diagnose(ladder[-1] * by_rung(sampled.trace().loss, len(ladder))[-1])
    assert found.ess > 4000
    assert found.rhat < 1.01
    with pytest.raises(AssertionError, match="standard errors"):
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


def test_a_copy_that_comes_to_the_first_rung_has_made_no_round_trip_unless_it_was_at_the_last():
    """Three copies, with every swap accepted that is tried: 0 and 1, then 1 and 2, and so on."""
    target = ladder_potential(Quadratic((1.0,)), torch.tensor([1.0, 1.0 + 1e-12, 1.0 + 2e-12], dtype=torch.float64), 1)
    kernel = replica_exchange(hmc(1e-6, 1), 3)
    state = kernel.init(torch.ones(3, 1, dtype=torch.float64), target)
    found = []
    for _ in range(6):
        kernel.step_(state, target, None, torch.Generator().manual_seed(0))
        found.append((state.replica[0].tolist(), int(state.round_trips)))
    assert [order for order, _ in found] == [[1, 0, 2], [1, 2, 0], [2, 1, 0], [2, 0, 1], [0, 2, 1], [0, 1, 2]]
    assert [trips for _, trips in found] == [0, 0, 1, 1, 2, 2]  # of copies 2 and 0; copy 1 came from between
