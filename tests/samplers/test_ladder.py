"""Ladder spacing: against the exact swap law of isotropic Gaussians, and the index process it predicts."""

import numpy as np
import pytest
import torch
from scipy.special import betainc, gammaln

import samplers
from samplers import by_rung, hmc, ladder_potential, replica_exchange
from samplers.ladder import predicted_round_trip_rate, respaced, spaced_ladder
from tests.samplers.laws import Cross, Quadratic
from tests.samplers.test_smc import planted
from tests.statistics import assert_independent_mean, assert_mean

DIM = 4
HIGH = 1e4


def target(localization=1.0):
    return Quadratic((1.0,) * DIM, localization=localization)


def kernel_at(n_beta):
    return hmc((0.4 / (1 + n_beta) ** 0.5, 1 / (1 + n_beta) ** 0.5), 4)


def exact_rejections(n_beta, dim=DIM):
    """Of swaps between neighbours for L = ½‖w‖² under γ = 1: nβ + γ is the inverse scale of a Gamma law of shape dim/2.

    The acceptance is twice the probability that the colder of the two has the larger loss.
    """
    stiffness = np.asarray(n_beta) + 1
    share = stiffness[1:] / (stiffness[1:] + stiffness[:-1])
    return 1 - 2 * (1 - betainc(dim / 2, dim / 2, share))


def exact_barrier(low, high, dim=DIM):
    """∫ ½ E|L − L'| dnβ: half the mean difference of a Gamma law, Γ(a + ½) / (√π Γ(a)), over nβ + γ."""
    return np.exp(gammaln(dim / 2 + 0.5) - gammaln(dim / 2)) / np.pi**0.5 * np.log((high + 1) / (low + 1))


@pytest.mark.parametrize("low", [0.0, 1.0])
def test_exact_rates_lead_to_the_ladder_that_is_geometric_in_the_stiffness(low):
    ladder = np.linspace(low, HIGH, 30) if low else np.concatenate([[0.0], np.geomspace(1e-3, HIGH, 29)])
    for _ in range(12):
        ladder = respaced(ladder, exact_rejections(ladder), 30)
    geometric = np.geomspace(low + 1, HIGH + 1, 30)
    np.testing.assert_allclose(ladder + 1, geometric, rtol=0.02)
    rejections = exact_rejections(ladder)
    assert rejections.max() / rejections.min() < 1.05
    assert ladder[0] == low
    assert ladder[-1] == HIGH


def test_the_sum_of_rejections_converges_to_the_barrier_from_below():
    errors = []
    for count in (13, 25, 49):
        ladder = np.geomspace(1, HIGH + 1, count) - 1
        errors.append(1 - exact_rejections(ladder).sum() / exact_barrier(0, HIGH))
    assert errors[0] > errors[1] > errors[2] > 0
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 4, rtol=0.15)  # of second order


def assert_swaps(potential, found):
    """Swaps are accepted as often as the exact law of the ladder says, and refused equally often."""
    rejections = exact_rejections(found.n_beta.numpy())
    assert np.ptp(rejections) < 0.12, rejections  # a fifth of their mean; of the first, geometric, ladder it is 0.35
    ladder, count = found.n_beta, 32
    rows = ladder_potential(potential, ladder, count)
    trace = samplers.sample(replica_exchange(kernel_at(rows.n_beta), len(ladder)), rows,
                            torch.zeros(DIM, dtype=torch.float64), num_chains=len(rows.n_beta), num_warmup=50,
                            num_draws=250)  # fmt: skip
    losses = by_rung(trace.loss, len(ladder))
    for place, rejection in enumerate(rejections):
        log_alpha = float(ladder[place + 1] - ladder[place]) * (losses[place + 1] - losses[place])
        assert_mean(np.exp(np.minimum(log_alpha, 0)), 1 - rejection)


def test_a_pilot_finds_it_and_the_number_of_rungs():
    counted, taken = target(), []
    honest = counted.loss_and_grad

    def counting(position, batch=None):
        taken.append(len(position))
        return honest(position, batch)

    counted.loss_and_grad = counting
    found = spaced_ladder(counted, kernel_at, (0.0, HIGH), torch.zeros(DIM, dtype=torch.float64))
    assert_swaps(target(), found)
    assert len(found.n_beta) == 14  # 2Λ = 12.8 at this ladder, and 12.7 to 12.9 in every pilot tried
    assert abs(found.barrier - exact_rejections(found.n_beta.numpy()).sum()) < 0.15
    assert found.round_trip_rate == predicted_round_trip_rate(found.rejection_rates)
    assert found.num_gradients == sum(taken)


@pytest.mark.parametrize("plant", ["tempered localiser", "rates from the wrong end"])
def test_planted_errors_are_rejected(plant, monkeypatch):
    if plant == "rates from the wrong end":
        of = planted("ladder", "respaced(ladder, rates, count)", "respaced(ladder, rates[::-1], count)")
        find = of.spaced_ladder
    else:
        find = spaced_ladder

        def tempered(self, position, columns=None):
            return 0.5 * self.strength * position.square().sum(-1)

        def add_gradient_(self, gradient, position, columns=None):
            scale = torch.linspace(0.05, 1.0, len(position), dtype=torch.float64)  # some other law in every row
            gradient.add_(position * scale[:, None], alpha=self.strength)
            return scale * tempered(self, position)

        monkeypatch.setattr(samplers.GaussianLocalizer, "add_gradient_", add_gradient_)
    found = find(target(), kernel_at, (0.0, HIGH), torch.zeros(DIM, dtype=torch.float64), num_rounds=2)
    with pytest.raises(AssertionError):
        assert_swaps(target(), found)


@pytest.mark.parametrize("rates", [(0.0,) * 6, (0.5,) * 7, (0.1, 0.7, 0.3, 0.5)])
def test_predicted_round_trips_are_those_of_independent_swaps(rates):
    """The index process itself: positions on the ladder, swapped with the given probabilities in even and odd turns."""
    generator = np.random.default_rng(1)
    ladders, rungs, steps = 4000, len(rates) + 1, 600
    copies = np.tile(np.arange(rungs), (ladders, 1))
    returning = np.zeros((ladders, rungs), dtype=bool)
    rows, trips = np.arange(ladders), np.zeros(ladders)
    for step in range(2 * steps):
        for place in range(step % 2, rungs - 1, 2):
            swap = generator.random(ladders) >= rates[place]
            pair = copies[:, place : place + 2]
            copies[:, place : place + 2] = np.where(swap[:, None], pair[:, ::-1], pair)
        trips += returning[rows, copies[:, 0]] * (step >= steps)
        returning[rows, copies[:, 0]] = False
        returning[rows, copies[:, -1]] = True
    if any(rates):
        assert_independent_mean(trips / steps, predicted_round_trip_rate(rates))
    else:
        np.testing.assert_allclose(trips / steps, 0.5, atol=2 / steps)
        assert predicted_round_trip_rate(rates) == 0.5
    assert predicted_round_trip_rate([0.2, 1.0]) == 0.0


def test_the_thin_cross():
    """(w₁w₂)² up to nβ = 10⁶: eight rungs, half of the swaps accepted, and copies travel."""
    found = spaced_ladder(Cross(), lambda t: hmc((0.15 / (t + 1) ** 0.5, 1.0), 5), (0.0, 1e6),
                          torch.zeros(2, dtype=torch.float64))  # fmt: skip
    assert 7 <= len(found.n_beta) <= 9
    assert 0.4 < found.rejection_rates.min() < found.rejection_rates.max() < 0.6
    rows = ladder_potential(Cross(), found.n_beta, 16)
    run = samplers.Run(replica_exchange(hmc((0.15 / (rows.n_beta + 1) ** 0.5, torch.ones_like(rows.n_beta)), 5),
                                        len(found.n_beta)), rows, torch.zeros(2, dtype=torch.float64),
                       num_chains=len(rows.n_beta), num_warmup=0)  # fmt: skip
    run.draw(1500)
    state = run.blocks[0].state
    assert 0.5 < float(state.round_trips.sum()) / (16 * 1500) / found.round_trip_rate < 1.1


def test_a_pilot_returns_the_number_of_rungs_that_is_asked_for_and_repeats():
    one, two = (
        spaced_ladder(target(), kernel_at, (1.0, 100.0), torch.zeros(DIM, dtype=torch.float64), num_rungs=5,
                      num_rounds=2, round_steps=20, num_ladders=4) for _ in range(2)
    )  # fmt: skip
    assert len(one.n_beta) == 5
    assert torch.equal(one.n_beta, two.n_beta)
    assert one.n_beta[0] == 1.0
    assert one.n_beta[-1] == 100.0


def test_bad_settings_are_named():
    start = torch.zeros(DIM, dtype=torch.float64)
    for ends in ((1.0, 1.0), (-1.0, 1.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="n_beta: "):
            spaced_ladder(target(), kernel_at, ends, start)
    with pytest.raises(ValueError, match="num_rounds"):
        spaced_ladder(target(), kernel_at, (1.0, 2.0), start, num_rounds=0)
    with pytest.raises(ValueError, match="initial: shape"):
        spaced_ladder(target(), kernel_at, (1.0, 2.0), start[:2])
    with pytest.raises(ValueError, match="rejection_rates: "):
        respaced([1.0, 2.0], [0.5, 0.5], 3)
    with pytest.raises(ValueError, match="not exact"):
        spaced_ladder(target(), lambda _: samplers.sgld(0.1), (1.0, 2.0), start)


def test_a_loss_that_is_not_finite_is_an_error():
    broken = samplers.from_log_density(lambda w: (w / 0).sum(-1), dim=1)
    with pytest.raises(FloatingPointError, match="initial: "):
        spaced_ladder(broken, lambda _: hmc(0.1), (1.0, 2.0), torch.zeros(1), round_steps=4, num_rounds=1)
