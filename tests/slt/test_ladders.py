"""Replica exchange for a posterior: its ladder, what it finds where one chain does not, and what is refused."""

import math

import pytest
import torch
from torch import nn

import slt
from samplers import tempering
from slt import known, ladders
from slt.posterior import LocalPosterior
from tests.statistics import MINIMUM_ESS, Z

CROSS, CROSS_VALUE = "poly_xy2", 0.43754261  # (w₁w₂)² at nβ = 10⁶ and γ = 1, by quadrature


class Quadratic(nn.Module):
    """½ Σ h w², at its minimum."""

    def __init__(self, curvature):
        super().__init__()
        self.curvature = torch.tensor(curvature, dtype=torch.float64)
        self.w = nn.Parameter(torch.zeros(len(curvature), dtype=torch.float64))

    def forward(self):
        return 0.5 * (self.curvature * self.w**2).sum()


def exact_loss(model):
    return model()


def estimated(model, **settings):
    return slt.estimate_llc(model, None, exact_loss, **{"n_beta": 1000.0, "localization": 1.0, **settings})


def exact_value(curvature, n_beta, localization):
    return 0.5 * sum(n_beta * h / (n_beta * h + localization) for h in curvature)


def assert_value(estimate, value):
    assert estimate.ess >= MINIMUM_ESS
    assert abs(estimate.llc - value) <= Z * estimate.mcse


def cross(**settings):
    case = known.case(CROSS)
    return slt.estimate_llc(case.build(), None, case.loss_fn, n_beta=1e6, localization=1.0, **settings)


def test_the_thin_cross_without_a_knob():
    estimate = cross()
    assert estimate.sampler == "replica_exchange"
    assert estimate.verdict.ok
    assert_value(estimate, CROSS_VALUE)


@pytest.mark.slow
def test_one_chain_at_one_scale_is_wrong_there_with_the_loss_at_ease():
    """What the ladder is for; if this fails, MALA has become better and the choice should be made anew.

    R̂ and ESS of the loss see nothing. The distance from the anchor does: its valleys have not been walked through.
    """
    estimate = cross(sampler="mala")
    assert estimate.verdict.names[0] == "slow_directions"
    assert not {"not_converged", "left_the_basin"} & set(estimate.verdict.names)
    assert estimate.rhat < 1.01
    assert estimate.ess >= MINIMUM_ESS
    assert estimate.llc < 0.95 * CROSS_VALUE


@pytest.mark.slow
@pytest.mark.parametrize("curvature", [(1.0,), (0.01, 1.0, 100.0), (3.0,) * 12])
def test_quadratics_have_their_closed_value(curvature):
    estimate = estimated(Quadratic(curvature))
    assert estimate.verdict.ok
    assert_value(estimate, exact_value(curvature, 1000.0, 1.0))


def test_full_data_can_be_tempered_too():
    torch.manual_seed(0)
    x = torch.randn(200, 3, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-0.5], [2.0]], dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -0.5, 2.0]]))

    def half_squares(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().mean()

    estimate = slt.estimate_llc(model, (x, y), half_squares, n_beta=40.0, localization=2.0, sampler="replica_exchange")
    curvature = torch.linalg.eigvalsh(x.T @ x / len(x)).tolist()
    assert_value(estimate, exact_value(curvature, 40.0, 2.0))


def ladder_of(model, n_beta=1e4, localization=1.0):
    posterior = LocalPosterior(model, None, exact_loss, n_beta=n_beta, localization=localization)
    with posterior:
        return ladders.make_ladder(posterior, 4, seed=0)


def test_the_ladder_goes_from_the_localiser_to_the_posterior():
    ladder = ladder_of(Quadratic((2.0, 2.0)))
    rungs = ladder.potential.n_beta[: ladder.num_rungs, 0]
    assert ladder.potential.n_beta.shape == (4 * ladder.num_rungs, 1)
    assert float(rungs[-1]) == 1e4
    assert 0.2 < float(rungs[0]) * 2.0 < 2.0  # nβA = γ, with A found to a factor of two
    ratios = rungs.log().diff()
    assert float(ratios.max()) < 0.8 * math.sqrt(2) + 1e-9
    torch.testing.assert_close(ratios, ratios.mean().expand_as(ratios))
    low, high = ladder.step_size
    assert 0.15 / math.sqrt(2e4) / 2 < low < 0.15 / math.sqrt(2e4) * 2
    assert high == 1.0


def test_the_ladder_does_not_depend_on_the_unit_of_the_weights():
    """w → w/10 with h → 100 h and γ → 100 γ is the same posterior."""
    one, other = ladder_of(Quadratic((2.0, 0.5))), ladder_of(Quadratic((200.0, 50.0)), localization=100.0)
    torch.testing.assert_close(one.potential.n_beta, other.potential.n_beta, rtol=1e-4, atol=0)
    assert other.step_size == pytest.approx([value / 10 for value in one.step_size], rel=1e-4)


def test_many_weights_have_no_more_rungs_than_can_be_paid():
    ladder = ladder_of(Quadratic((1.0,) * 40))
    assert ladder.num_rungs == ladders.MOST_RUNGS
    rungs = ladder.potential.n_beta[: ladder.num_rungs, 0]
    assert float(rungs.log().diff().max()) < 0.8 / math.sqrt(10) + 1e-9  # colder at its first rung, not wider


def test_what_was_run_is_on_record():
    estimate = estimated(Quadratic((1.0, 2.0)), num_draws=300, num_warmup=50, num_chains=3, keep_positions=True)
    trace, rungs = estimate.trace, estimate.trace.configuration["num_rungs"]
    assert trace.loss.shape == (3, 300)
    assert trace.positions.shape == (3, 300, 2)
    losses = Quadratic((1.0, 2.0)).curvature * trace.positions.square() / 2
    torch.testing.assert_close(losses.sum(-1), torch.from_numpy(trace.loss))
    found = ladder_of(Quadratic((1.0, 2.0)), n_beta=1000.0)
    assert trace.num_gradients == 3 * rungs * (1 + 5 * 350) + found.num_gradients
    assert trace.num_gradients < estimate.num_gradients <= 1.05 * trace.num_gradients  # with a look around the anchor
    assert len(trace.configuration["swap_rates"]) == rungs - 1
    assert estimate.config["sampler"] == (
        "replica_exchange", "the loss is exact and has few weights: valleys of all widths are reached"
    )  # fmt: skip
    assert "rungs from nβ" in estimate.config["step_size"][1]
    assert "replica_exchange" in estimate.summary()


def test_an_estimate_is_saved_and_read(tmp_path):
    estimate = estimated(Quadratic((1.0, 2.0)), num_draws=100, num_warmup=20)
    estimate.save(tmp_path / "estimate.nc")
    again = slt.load_estimate(tmp_path / "estimate.nc")
    assert (again.llc, again.step_size, again.sampler) == (estimate.llc, estimate.step_size, estimate.sampler)
    assert again.trace.configuration == estimate.trace.configuration


def test_a_ladder_without_swaps_is_named(monkeypatch):
    honest = tempering.torch.rand

    def never(*size, **kind):
        of_the_swaps = len(size) == 2 and size[1] > 1
        return torch.full(size, torch.inf, dtype=kind["dtype"]) if of_the_swaps else honest(*size, **kind)

    monkeypatch.setattr(tempering.torch, "rand", never)
    estimate = estimated(Quadratic((1.0, 2.0)), num_draws=500)
    assert "not_converged" in estimate.verdict.names
    (problem,) = [each for each in estimate.verdict.problems if "round trips" in each.evidence]
    assert problem.evidence["round trips"] == 0


@pytest.mark.parametrize(
    "settings", [{"localization": 0.0}, {"step_size": 0.1}, {"engine": "in_place"}], ids=lambda value: next(iter(value))
)
def test_a_ladder_that_cannot_be_made_is_refused(settings):
    with pytest.raises(ValueError, match="sampler: 'replica_exchange' without a localiser, with a step_size, in"):
        estimated(Quadratic((1.0,)), sampler="replica_exchange", **settings)


@pytest.mark.parametrize(
    ("model", "settings", "sampler"),
    [
        (Quadratic((1.0,) * (ladders.LARGEST_DIM + 1)), {}, "hmc"),
        (Quadratic((1.0,)), {"step_size": 0.1}, "mala"),
        (Quadratic((1.0,)), {"engine": "in_place"}, "mala"),
        (Quadratic((1.0,)), {"localization": 0.0}, "hmc"),
    ],
)
def test_a_single_chain_takes_its_place(model, settings, sampler):
    estimate = estimated(model, num_draws=20, num_warmup=5, **settings)
    assert estimate.sampler == sampler
    assert estimate.config["sampler"][1] == f"the loss is exact, and {sampler.upper()} has no step-size bias"


class Loss(nn.Module):
    """Any function of a vector of weights, at zero."""

    def __init__(self, function, dim=1):
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.zeros(dim, dtype=torch.float64))

    def forward(self):
        return self.function(self.w)


def well(n_beta, depth_scale):
    """nβ·E[1 − exp(−a w²)] in one dimension with γ = 1, by a sum over a fine grid."""
    w = torch.linspace(-12.0, 12.0, 2_000_001, dtype=torch.float64)
    loss = 1 - (-depth_scale * w**2).exp()
    weight = (-n_beta * loss - 0.5 * w**2).exp()
    return float(n_beta * (weight * loss).sum() / weight.sum())


@pytest.mark.slow
def test_a_narrow_well_in_a_plateau():
    """Far from the anchor there is no curvature."""
    estimate = estimated(Loss(lambda w: 1 - (-500 * w.square().sum()).exp()), n_beta=20.0)
    assert estimate.verdict.ok
    assert_value(estimate, well(20.0, 500.0))


@pytest.mark.parametrize(("n_beta", "dim"), [(1e4, 1), pytest.param(100.0, 5, marks=pytest.mark.slow)])
def test_a_kink(n_beta, dim):
    """|w| has no curvature but at the anchor; nβ E|w| is one for each weight, up to γ/(nβ)²."""
    estimate = estimated(Loss(lambda w: w.abs().sum(), dim), n_beta=n_beta)
    assert estimate.verdict.ok
    assert_value(estimate, dim * (1 - 2 / n_beta**2))


@pytest.mark.slow
def test_walls_of_the_stiffest_kind_are_not_taken_for_a_step_that_is_too_large():
    estimate = estimated(Quadratic((100.0, 100.0)), n_beta=1e6)
    assert estimate.verdict.ok
    assert float(estimate.trace.statistics["acceptance_rate"].mean()) < 0.25  # where MALA would be called so
    assert_value(estimate, 1.0)


def test_a_constant_loss_is_named_at_once():
    estimate = estimated(Loss(lambda w: 1.0 + 0 * w.sum()))
    assert estimate.trace.num_draws == 1000
    (problem,) = [each for each in estimate.verdict.problems if each.name == "not_converged"]
    assert "the loss was the same in every draw" in problem.advice


@pytest.mark.parametrize("sampler", ["mala", "replica_exchange"])
def test_a_budget_of_one_step(sampler):
    estimate = estimated(Quadratic((1.0,)), sampler=sampler, budget=1)
    assert estimate.trace.num_draws == 1
    assert estimate.verdict.names == ("not_converged",)
    with pytest.raises(ValueError, match="budget: 10 steps, of which 3 are warm-up, and a draw takes 8"):
        estimated(Quadratic((1.0,)), sampler=sampler, budget=10, thinning=8)


class Steep(Quadratic):
    """Not finite beyond ‖w‖ = 1."""

    def forward(self):
        return super().forward() / (self.w.square().sum() < 1.0)


def test_a_loss_that_is_finite_only_near_the_anchor():
    with pytest.raises(FloatingPointError, match="localization: 0.01 lets the weights go where the loss or"):
        estimated(Steep((1.0, 1.0)), localization=0.01, sampler="replica_exchange")
    estimate = estimated(Steep((1.0, 1.0)), localization=0.01, num_draws=20, num_warmup=5)
    assert estimate.sampler == "mala"
    assert "not finite wherever the localiser lets the weights go" in estimate.config["sampler"][1]
