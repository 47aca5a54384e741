"""Named problems: each is found where it is planted, and not in a healthy run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import samplers
import slt
from slt.problems.chains import filled, not_converged, slow_directions
from slt.problems.steps import gradient_noise
from tests.slt.models import cross_entropy, fitted_regression, half_squares, regression_llc
from tests.slt.verdicts import named
from tests.statistics import MINIMUM_ESS, Z

HEALTHY_SEEDS = [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 20))]


@pytest.mark.parametrize("seed", HEALTHY_SEEDS)
def test_a_healthy_run_is_healthy(seed):
    model, data, _ = fitted_regression(seed=seed)
    estimate = slt.estimate_llc(model, data, half_squares, seed=seed, tolerance=0.1)
    assert estimate.verdict.ok, estimate.verdict.problems


def planted(name, **arguments):
    model, data, _ = fitted_regression()
    estimate = slt.estimate_llc(model, data, half_squares, **arguments)
    named(estimate, name)
    return estimate


def test_a_large_step_of_sgld():
    estimate = planted(
        "step_size_too_large", sampler=samplers.sgld(0.04), batch_size=200, num_draws=2000, localization=2.0
    )
    assert estimate.rhat < 1.05  # which R̂ does not see


def test_a_large_step_of_mala():
    planted("step_size_too_large", sampler="mala", step_size=1.0, num_draws=1000)


def test_a_small_step():
    planted("not_converged", sampler="mala", step_size=1e-7, num_draws=500)


def test_few_draws():
    planted("not_converged", num_draws=3)


@pytest.mark.parametrize(("rhat", "ess", "found"), [(1.049, 101.0, False), (1.051, 101.0, True), (1.049, 99.0, True)])
def test_the_limits_of_convergence_are_those_of_the_readme(rhat, ess, found):
    evidence = SimpleNamespace(
        diagnostics=samplers.Diagnostics(5.0, 1.0, ess**-0.5, ess, rhat), energies=np.full((4, 100), 5.0), llc=5.0,
        tolerance=0.25, trace=SimpleNamespace(configuration={}, surviving=np.ones(4, bool)),
    )  # fmt: skip
    assert bool(not_converged(evidence)) == found


@pytest.mark.parametrize(
    ("apart", "slope", "found"), [(0.5, 0.0, False), (0.8, 0.0, False), (0.8, 2.0, True), (1.3, 0.0, True)]
)
def test_slow_directions_of_many_weights_count_where_they_show(apart, slope, found):
    """R̂ of 1.1, 1.2 to 1.5, and above: the second is a problem by the slope of the energy alone."""
    offsets = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None] * apart / 0.65
    slow = (500 + torch.randn(8, 2000, dtype=torch.float64) + offsets).numpy()
    energies = 10 + slope * (slow - 500) + 0.1 * torch.randn(8, 2000, dtype=torch.float64).numpy()
    rhat = samplers.diagnose(slow).rhat
    assert {0.5: rhat < 1.2, 0.8: 1.2 < rhat < 1.5, 1.3: rhat > 1.5}[apart]
    evidence = SimpleNamespace(
        localization_energies=slow, energies=energies, diagnostics=object(), dim=1000, full_data=True, aimed=False,
        vectorised=False, tolerance=0.5,
    )  # fmt: skip
    assert bool(slow_directions(evidence)) == found


def test_noise_counts_where_it_keeps_chains_from_arriving():
    evidence = SimpleNamespace(noise_bias=0.04, bias=0.05, batch_size=8, tolerance=0.1, own_batches=False)
    for others, found in ((("not_converged",), True), (("slow_directions",), True), (("imprecise",), False)):
        assert bool(gradient_noise(evidence, others)) == found


def test_a_run_too_short_to_look_around_says_so():
    model, data, _ = fitted_regression()
    short = slt.estimate_llc(
        model, data, half_squares, sampler="sgld", step_size=1e-3, batch_size=20, num_draws=20, num_warmup=5,
        num_chains=2,
    )  # fmt: skip
    assert "not_looked_around" in {note.name for note in short.verdict.notes}
    long = slt.estimate_llc(model, data, half_squares, sampler="mala", step_size=0.02, num_draws=60, num_warmup=5)
    assert "not_looked_around" not in {note.name for note in long.verdict.notes}


def test_draws_on_their_way_from_the_anchor():
    """Over fifteen relaxation times of the energy, by so many chains that ESS is content: a fifteenth too low."""
    model, data, hessian = fitted_regression()
    estimate = slt.estimate_llc(
        model, data, half_squares, sampler=samplers.sgld(2e-3), num_chains=256, num_draws=200, num_warmup=0,
        localization=2.0,
    )  # fmt: skip
    assert estimate.ess > 100
    assert named(estimate, "not_converged").evidence["drift (errors)"] > 4
    assert estimate.llc < 0.97 * regression_llc(hessian, estimate.n_beta, 2.0)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_draws_that_begin_at_the_anchor_and_are_few(seed):
    """λ̂ is 4 % low in the mean; R̂, ESS and drift do not tell, but how long the chains remember does."""
    model, data, _ = fitted_regression()
    few = {"sampler": "sgld", "seed": seed, "localization": 2.0}
    short = slt.estimate_llc(model, data, half_squares, num_warmup=0, num_draws=300, **few)
    assert "not_converged" in short.verdict.names
    assert "not_converged" not in slt.estimate_llc(model, data, half_squares, **few).verdict.names


def flat_regression():
    """A fitted regression beside two weights that the loss hardly knows: nβ h is 0.04 for them and γ is 1."""
    _, (x, y), _ = fitted_regression(n=1000)
    wide = nn.Linear(5, 1, bias=False, dtype=x.dtype)
    x = torch.cat([x, 0.02 * torch.randn(1000, 2, dtype=x.dtype, generator=torch.Generator().manual_seed(0))], 1)
    with torch.no_grad():
        wide.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return wide, (x, y)


def test_flat_directions_that_the_loss_does_not_see():
    model, data = flat_regression()
    few = {"num_draws": 1500, "num_warmup": 200}
    slow = slt.estimate_llc(model, data, half_squares, sampler="mala", step_size=5e-4, num_chains=16, **few)
    assert slow.rhat < 1.05
    assert slow.ess > 100
    figures = named(slow, "slow_directions").evidence
    assert figures["in the second"] > figures["its mean in the first half"]
    filled = slt.estimate_llc(model, data, half_squares, sampler="mala", localization=30.0, **few)
    assert "slow_directions" not in filled.verdict.names


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_arms_between_which_chains_do_not_move(seed):
    """Of w₁w₂ = 0, which are a thousand times as long as wide; from the anchor it was not named in one run of four."""
    case = slt.known.case("poly_xy2")
    estimate = slt.estimate_llc(
        case.build(), None, case.loss_fn, n_beta=1e6, localization=1.0, sampler="hmc", budget=600, seed=seed
    )
    assert estimate.rhat < 1.05
    assert named(estimate, "slow_directions").evidence["rhat of the localiser's energy"] > 1.2


def test_flat_directions_are_filled_where_chains_agree():
    def energy(rhat, ess=200.0, deviation=1.0):
        return samplers.Diagnostics(5.0, deviation, deviation / ess**0.5, ess, rhat)

    assert filled(energy(1.09), 1.1)
    assert not filled(energy(1.11), 1.1)
    assert not filled(energy(1.0, ess=15.0), 1.1)
    assert filled(energy(float("nan"), deviation=0.0), 1.1)  # without a localiser


@pytest.mark.parametrize(
    ("aimed", "apart", "is_named"), [(True, 0.12, False), (True, 0.4, True), (False, 0.4, False), (False, 0.6, True)]
)
def test_a_run_that_aims_at_filled_directions_is_held_to_that(aimed, apart, is_named):
    """Between an R̂ of 1.05, at which rounds end, and one of 1.1, λ̂ of a thin law was 10 % too low with no problem."""
    offsets = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None] * apart / 0.65  # whose deviation is 0.65
    energies = (5 + torch.randn(8, 2000, dtype=torch.float64) + offsets).numpy()
    evidence = SimpleNamespace(
        localization_energies=energies, diagnostics=object(), dim=4, full_data=True, aimed=aimed, vectorised=False
    )
    found = slow_directions(evidence)
    assert bool(found) == is_named
    assert samplers.diagnose(energies).rhat == pytest.approx((1 + apart**2) ** 0.5, abs=0.02)


@pytest.mark.slow
def test_rounds_go_on_until_flat_directions_are_filled(monkeypatch):
    model, data, _ = fitted_regression()
    settings = {"tolerance": 0.2, "budget": 1200, "seed": 0}
    once = slt.estimate_llc(model, data, half_squares, **settings)
    monkeypatch.setattr("slt.rounds.filled", lambda *_: False)
    again = slt.estimate_llc(model, data, half_squares, **settings)
    assert once.verdict.ok
    assert once.trace.num_draws < 400 < again.trace.num_draws
    np.testing.assert_array_equal(again.trace.loss[:, : once.trace.num_draws], once.trace.loss)
    monkeypatch.setattr("slt.rounds.LARGEST_REFINED", 1)  # nor of many weights
    assert slt.estimate_llc(model, data, half_squares, **settings).trace.num_draws == once.trace.num_draws
    draws = {"sampler": "sgld", "num_warmup": 200, "budget": 4000, "tolerance": 0.5}
    assert slt.estimate_llc(model, data, half_squares, **draws).trace.num_draws < 3000  # not by minibatches


def elsewhere(kernel, shift):
    """The same kernel with a quarter of its chains started elsewhere."""

    def init(position, potential):
        moved = position.clone()
        moved[: len(moved) // 4] += shift
        return kernel.init(moved, potential)

    return kernel._replace(init=init)


def double_well(model):
    """Two equal minima of (w² − 4)², at ±2."""
    return (model.weight.square() - 4).square().sum()


@pytest.mark.parametrize("shift", [pytest.param(0.0, marks=pytest.mark.slow), -4.0])
def test_chains_in_another_well(shift):
    """Of the same loss, so that only the localiser's energy tells."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(2.0)
    estimate = slt.estimate_llc(
        model, None, double_well, n_beta=100.0, localization=0.1, sampler=elsewhere(samplers.mala(6e-4), shift),
        num_draws=2000,
    )  # fmt: skip
    assert estimate.rhat < 1.05
    if shift:
        assert named(estimate, "left_the_basin").evidence["chains in the higher"] == 2
    else:
        assert estimate.verdict.ok


def test_chains_farther_than_the_localizer_lets_them_go():
    model, data, _ = fitted_regression()
    estimate = slt.estimate_llc(
        model, data, half_squares, sampler=elsewhere(samplers.mala(1e-6), 5.0), num_draws=500, num_warmup=0
    )
    assert named(estimate, "left_the_basin").evidence["localiser's energy"] > 30


def test_an_anchor_above_the_minimum():
    model, data, _ = fitted_regression()
    with torch.no_grad():
        model.weight.add_(1.0)
    estimate = slt.estimate_llc(model, data, half_squares, num_warmup=100, num_draws=500)
    assert named(estimate, "not_at_a_minimum").evidence["nearby"] > 10
    assert estimate.llc < 0


@pytest.mark.parametrize(("shift", "found"), [(0.0, False), (0.14, True), (0.35, True)])
def test_what_the_loss_falls_by_nearby_is_found_by_minibatches_too(shift, found):
    """λ̂ is positive still; the fall is that of the quadratic, ½ nβ δᵀSδ, less what the localiser holds back."""
    model, data, hessian = fitted_regression(n=1000)
    with torch.no_grad():
        model.weight[0, 0] += shift / hessian[0, 0] ** 0.5 * 0.5
    estimate = slt.estimate_llc(
        model, data, half_squares, sampler="sgld", batch_size=200, num_warmup=100, num_draws=700
    )
    assert ("not_at_a_minimum" in estimate.verdict.names) == found
    if found:
        fall = named(estimate, "not_at_a_minimum").evidence["nearby"]
        exact = 0.5 * estimate.n_beta * (shift / 2) ** 2
        assert fall == pytest.approx(exact, rel=0.05)


def separated(steps):
    """Logistic regression on separable data, after so many steps of gradient descent."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + 0.5 * x[:, 1] > 0).long()
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model, (x, y)).backward()
        optimizer.step()
    return model, (x, y)


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        (5, "not_at_a_minimum"),
        (300, "no_minimum"),
        pytest.param(20_000, "no_minimum", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("sampler", ["mala", "sgld"])
def test_a_loss_that_falls_forever(steps, name, sampler):
    model, data = separated(steps)
    estimate = slt.estimate_llc(model, data, cross_entropy, sampler=sampler, num_warmup=100, num_draws=500)
    assert name in estimate.verdict.names
    assert len({"no_minimum", "not_at_a_minimum"} & set(estimate.verdict.names)) == 1


@pytest.mark.slow
def test_overlapping_classes_have_a_minimum():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + torch.randn(500, generator=generator, dtype=torch.float64) > 0).long()
    model = nn.Linear(3, 2).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")
    optimizer.step(lambda: [optimizer.zero_grad(), loss := cross_entropy(model, (x, y)), loss.backward()][1])
    estimate = slt.estimate_llc(model, (x, y), cross_entropy, num_warmup=200, num_draws=1000)
    assert estimate.verdict.ok, estimate.verdict.problems


def test_a_batch_of_two():
    model, data, _ = fitted_regression()
    by_size = {
        size: slt.estimate_llc(
            model, data, half_squares, sampler="sgld", step_size=3e-3, batch_size=size, num_draws=1500, num_warmup=300
        )
        for size in (2, 150)
    }
    assert named(by_size[2], "gradient_noise").evidence["of noise"] > 0.5 * by_size[2].step_size_bias
    assert "gradient_noise" not in by_size[150].verdict.names


@pytest.mark.parametrize(("localization", "found"), [(1.0, False), (1000.0, True)])
def test_a_localizer_that_takes_all(localization, found):
    """The figure is −∂log λ̂/∂log γ, in closed form here."""
    model, data, hessian = fitted_regression()
    estimate = slt.estimate_llc(
        model, data, half_squares, localization=localization, sampler="mala", num_warmup=100, num_draws=1000
    )
    assert ("localization_too_strong" in estimate.verdict.names) == found
    if found:
        sensitivity = named(estimate, "localization_too_strong").evidence["∂log λ̂/∂log γ"]
        more, less = (regression_llc(hessian, estimate.n_beta, localization * factor) for factor in (1.01, 1 / 1.01))
        assert sensitivity == pytest.approx(np.log(more / less) / (2 * np.log(1.01)), abs=0.1)
    else:
        assert not estimate.verdict.notes


@pytest.mark.parametrize(("samples", "found"), [(20, True), pytest.param(None, False, marks=pytest.mark.slow)])
def test_a_baseline_of_few_samples(samples, found):
    """The interval covers λ̂ all the same: its width is that of the baseline."""
    model, data, hessian = fitted_regression(n=2000)
    estimate = slt.estimate_llc(
        model, data, half_squares, anchor_samples=samples, sampler="mala", num_draws=1000, num_warmup=300
    )
    assert ("noisy_baseline" in estimate.verdict.names) == found
    assert (estimate.baseline_error > 0) == found
    assert ("over about 20 of n = 2,000 samples" if found else "over n = 2,000 samples") in estimate.summary()
    error = np.hypot(estimate.mcse, estimate.n_beta * estimate.baseline_error)
    assert estimate.ess >= MINIMUM_ESS
    assert abs(estimate.llc - regression_llc(hessian, estimate.n_beta, 1.0)) <= Z * error
    assert np.diff(estimate.interval)[0] == pytest.approx(2 * 1.96 * error, rel=1e-3)


def test_the_error_of_a_baseline_is_its_spread():
    """Over 60 seeds: the spread has an error of 9 %, the mean of the errors one of 2 %; four of those."""
    model, data, _ = fitted_regression(n=2000)
    found = []
    for seed in range(60):
        posterior = slt.LocalPosterior(model, data, half_squares, n_beta=1.0, localization=1.0, seed=seed)
        with posterior:
            found.append((*posterior.anchor_loss(500), posterior.loss_at_anchor()))
    losses, errors, exact = np.array(found).T
    assert errors.mean() / losses.std() == pytest.approx(1, abs=0.4)
    assert abs(losses.mean() - exact[0]) <= 4 * losses.std() / 60**0.5


def test_a_mean_over_few_samples_is_refused_where_it_has_no_error():
    model, data, _ = fitted_regression()
    with pytest.raises(ValueError, match="anchor_samples: 10.*at least 16"):
        slt.estimate_llc(model, data, half_squares, anchor_samples=10)
    with pytest.raises(ValueError, match="anchor_samples: 10, but data is None"):
        slt.estimate_llc(model, None, lambda model: half_squares(model, data).mean(), n_beta=9.0, anchor_samples=10)


def test_a_loss_that_is_random():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 0.1 * torch.randn(len(x), 1)

    _, data, _ = fitted_regression(dtype=torch.float32)
    estimate = slt.estimate_llc(Noisy(3, 1), data, half_squares, num_draws=20, num_warmup=5)
    assert "stochastic_forward" in estimate.verdict.names


def test_a_bad_batch_is_told_from_a_large_step():
    model, data, _ = fitted_regression()
    calls = torch.zeros((), dtype=torch.int64)  # a tensor: calls of Python are not made at every step

    def bad(model, batch):
        calls.add_(1)
        return half_squares(model, batch) * torch.where(calls == 900, torch.nan, 1.0)

    few = {"num_draws": 1000, "num_warmup": 100}
    batch = named(slt.estimate_llc(model, data, bad, sampler="sgld", **few), "diverged_chain")
    assert "batch" in batch.advice
    step = named(slt.estimate_llc(model, data, half_squares, sampler=samplers.sgld(50.0), **few), "diverged_chain")
    assert "step_size" in step.advice


def test_notes_leave_the_verdict_ok_and_are_kept(tmp_path):
    """λ̂ of (w₁w₂)² at γ = 10 climbs with nβ; the number is right."""
    case = slt.known.case("relu_nb_H1_zero")
    estimate = slt.estimate_llc(
        case.build(), None, case.loss_fn, n_beta=120.0, localization=1.0, sampler="mala", num_chains=64,
        num_draws=2000,
    )  # fmt: skip
    assert estimate.verdict.ok, estimate.verdict.problems
    (note,) = estimate.verdict.notes
    assert note.name == "multiplicity_bias"
    assert str(note) in estimate.summary()
    estimate.save(tmp_path / "estimate.nc")
    assert slt.load_estimate(tmp_path / "estimate.nc").verdict == estimate.verdict


@pytest.mark.parametrize(("llc", "high"), [(2.0, 0.2), (500.0, 1.5)], ids=["small", "beyond any slope"])
def test_estimates_that_disagree(llc, high):
    """One draw in twenty at a far higher energy: the variance is far above the mean, though R̂ and ESS are content."""
    from slt.problems.evidence import Evidence
    from slt.verdict import judge

    generator = np.random.default_rng(0)

    def verdict(high):
        loss = 0.01 * generator.gamma(llc, size=(8, 2000)) + high * (generator.random((8, 2000)) < 0.05)
        other = generator.exponential(size=(8, 2000))
        ones, none = np.ones_like(loss), np.zeros_like(loss)
        statistics = {"loss": loss, "localization_energy": other, "acceptance_rate": ones, "discretization_bias": none}
        trace = samplers.Trace(statistics, {name: values[:, :0] for name, values in statistics.items()},
                               configuration={"full_data": True})  # fmt: skip
        energy = samplers.diagnose(100.0 * loss)
        return judge(Evidence(
            trace=trace, llc=energy.mean, energies=100.0 * loss, diagnostics=energy, baseline=0.0, baseline_error=0.0,
            n_beta=100.0, localization=1.0, dim=4, bias=0.0, tolerance=0.1, half_width=0.05, aimed=False,
            random_values=None, rounding=0.0, rounding_of_positions=0.0, dtype="float64", surroundings=None,
            noise_bias=0.0, batch_size=None,
        ))  # fmt: skip

    assert "estimates_disagree" in verdict(high).names
    assert "estimates_disagree" not in verdict(0.0).names


def test_a_step_whose_bias_is_not_known_is_named():
    """MCLMC by minibatches does not know its bias: λ̂ is not a number, which no threshold is below."""
    model, data, _ = fitted_regression()
    few = {"num_draws": 40, "num_warmup": 10, "num_chains": 2, "sampler": samplers.mclmc(0.1)}
    estimate = slt.estimate_llc(model, data, half_squares, batch_size=20, **few)
    assert np.isnan(estimate.llc)
    assert "not known with minibatches" in named(estimate, "step_size_too_large").advice
    full = slt.estimate_llc(model, data, half_squares, **few)
    assert np.isfinite(full.llc)
    assert full.config["batch_size"] == (None, "full data: the bias of mclmc is not known without")
