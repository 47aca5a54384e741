"""Volumes against closed forms, slopes against exact learning coefficients, and errors that must be caught.

Statistical assertions compare the mean over seeds with the truth in units of its standard error *as seen by the seeds*
(so that correlations between particles count too) by Student's law, at a false-alarm rate of 1e-4 each; there are
about 20. Seeds are fixed. Slopes carry, besides, the bias of finite ε, for which the registry's bound of 3 % stands: it
is 3.6 standard errors where c₀ is fitted (a false alarm in 3,000), and five or more elsewhere.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from slt.known import volume
from slt.known.volume import volume_slope

FALSE_ALARM = 1e-4
SEEDS = tuple(range(12))
CHECKED_LEVELS = (2, 5, 8, -1)


def box_product(dim):
    """P(∏ w_i² < e^−L) in the box [−1, 1]^dim: −log ∏|w_i| has the gamma law of that many exponentials."""
    return lambda depth: stats.gamma(dim).logsf(depth / 2)


def ball(dim):
    """P(‖w‖² < e^−L) in the box [−1, 1]^dim, while the ball lies inside it."""
    log_unit_ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1) - dim * math.log(2)
    return lambda depth: log_unit_ball - dim / 2 * depth


CLOSED = {
    "disc": (lambda w: w.square().sum(-1), 2, ball(2), 1.0, 1),
    "ball": (lambda w: w.square().sum(-1), 3, ball(3), 1.5, 1),
    "xy2": (lambda w: w.square().prod(-1), 2, box_product(2), 0.5, 2),
    "xyz2": (lambda w: w.square().prod(-1), 3, box_product(3), 0.5, 3),
}


def assert_zero_mean(errors):
    """Assert that the mean of independent errors is zero."""
    count = len(errors)
    bound = stats.t(count - 1).isf(FALSE_ALARM / 2) * np.std(errors, ddof=1) / math.sqrt(count)
    mean = float(np.mean(errors))
    assert abs(mean) <= bound, f"mean error {mean:+.4f}, bound {bound:.4f}"


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name == "xyz2" else [pytest.mark.slow]) for name in CLOSED],
)
def closed(request):
    excess, dim, log_volume, rlct, multiplicity = CLOSED[request.param]
    found = volume_slope(
        excess,
        anchor=[0.0] * dim,
        radius=1.0,
        multiplicity=multiplicity,
        num_particles=1000,
        last_log_epsilon=-30,
        seeds=SEEDS,
    )
    return found, log_volume, rlct


def volume_errors(found, log_volume, level):
    pairs = zip(found.log_epsilon, found.log_volume, strict=True)
    return np.array([values[level] - log_volume(-levels[level]) for levels, values in pairs])


def test_log_volumes_are_the_closed_form_level_by_level(closed):
    found, log_volume, _ = closed
    assert found.log_volume[0][0] == 0
    for level in CHECKED_LEVELS:
        assert_zero_mean(volume_errors(found, log_volume, level))


def test_log_volumes_scatter_hardly_more_than_independent_particles_would(closed):
    found, log_volume, _ = closed
    standardized = []
    for levels, values in zip(found.log_epsilon, found.log_volume, strict=True):
        shares = np.exp(np.diff(values))
        deviation = math.sqrt(np.sum((1 - shares) / shares / 1000))
        standardized.append((values[-1] - log_volume(-levels[-1])) / deviation)
    # χ² of 12 seeds; a factor 1.5 is left for what the moves do not forget.
    assert np.sum(np.square(standardized)) <= 1.5**2 * stats.chi2(len(SEEDS)).isf(FALSE_ALARM)


def test_a_volume_that_shrinks_five_percent_too_fast_is_rejected(closed):
    found, log_volume, rlct = closed
    with pytest.raises(AssertionError, match="mean error"):
        assert_zero_mean(volume_errors(found, lambda depth: log_volume(depth) - 0.05 * rlct * depth, -1))


@pytest.mark.parametrize("broken", [pytest.param("a drift outwards", marks=pytest.mark.slow), "no Jacobian"])
def test_moves_that_are_not_symmetric_are_rejected(monkeypatch, broken):
    draw = volume._Proposals.draw

    def wrong(proposals, kind, w, other):
        proposed, log_jacobian, cells = draw(proposals, kind, w, other)
        if broken == "no Jacobian":
            return proposed, torch.zeros_like(log_jacobian), cells
        return w + (proposed - w) * torch.where((proposed - w) * w > 0, 1.2, 1.0), log_jacobian, cells

    monkeypatch.setattr(volume._Proposals, "draw", wrong)
    excess, dim, log_volume, _, multiplicity = CLOSED["xy2"]
    found = volume_slope(
        excess, anchor=[0.0] * dim, radius=1.0, multiplicity=multiplicity, num_particles=1000, seeds=SEEDS
    )
    with pytest.raises(AssertionError, match="mean error"):
        assert_zero_mean(volume_errors(found, log_volume, -1))


def test_the_logarithm_is_needed_where_the_multiplicity_is_not_one(closed):
    found, _, rlct = closed
    assert found.slope == pytest.approx(rlct, rel=0.03)
    if math.isnan(found.log_offset):
        assert found.raw_slope == found.slope
    else:
        assert found.raw_slope < 0.95 * rlct


def two_tanh_units(w):
    """½ E (a₁ tanh b₁x + a₂ tanh b₂x)², x uniform on [−2, 2], by Gauss–Legendre quadrature on the half line."""
    nodes, masses = np.polynomial.legendre.leggauss(12)
    x, mass = torch.from_numpy(nodes + 1), torch.from_numpy(masses / 2)
    output = w[:, :1] * torch.tanh(w[:, 1:2] * x) + w[:, 2:3] * torch.tanh(w[:, 3:] * x)
    return 0.5 * output.square() @ mass


def assert_slope(found, rlct):
    """The registry's bound, 3 % for slopes, of which the spread may make up no more than half."""
    assert found.spread <= 0.015 * rlct
    assert abs(found.slope - rlct) <= 0.03 * rlct, f"slope {found.slope:.4f}, expected {rlct:.4f}"


@pytest.mark.slow
def test_two_tanh_units_have_two_thirds_and_not_three_quarters():
    found = volume_slope(two_tanh_units, anchor=[0.0] * 4, radius=1.0, num_particles=3000, seeds=range(4))
    assert_slope(found, 2 / 3)
    with pytest.raises(AssertionError, match="slope"):
        assert_slope(found, 3 / 4)


def test_an_open_set_of_zeros_has_no_slope():
    # a relu(bx + c) at (1, 1, −1) on [−1, 1]: K ~ max(b + c, 0)³, zero on half of the box.
    found = volume_slope(lambda w: w.sum(-1).clamp(min=0) ** 3, anchor=[0.0, 0.0], radius=0.3, num_particles=2000)
    assert abs(found.slope) <= 0.02
    assert found.log_volume[0][-1] == pytest.approx(math.log(0.5), abs=0.1)


def test_a_prior_and_bounds_of_the_weights_count():
    # (w₁w₂)² under the density |w₁| has (1/2, 1): normal crossing with h = (1, 0).
    log_prior = SimpleNamespace(
        excess_flat=lambda w: w.square().prod(-1), anchor=torch.zeros(2), radius=1.0,
        log_prior=lambda w: w[:, 0].abs().log(), multiplicity=1,
    )  # fmt: skip
    assert volume_slope(log_prior, num_particles=4000).slope == pytest.approx(0.5, rel=0.03)
    # K = w² for w ≥ 0: the volume is √ε as a share of the box, which is [0, 1].
    found = volume_slope(
        lambda w: w[:, 0].square(), anchor=[0.0], radius=1.0, lower=0.0, num_particles=1000, seeds=SEEDS
    )
    assert_zero_mean(volume_errors(found, lambda depth: -depth / 2, -1))


def test_a_chart_leaves_the_slope_as_it_is():
    # K = u² + v⁴ behind a shear that curves: λ = 3/4 in any coordinates.
    def excess(w):
        return (w[:, 0] - w[:, 1].sin()).square() + w[:, 1] ** 4

    chart = SimpleNamespace(to_weights=lambda z: torch.stack([z[:, 0] + z[:, 1].sin(), z[:, 1]], -1), radius=0.5)
    for given in (None, chart):
        found = volume_slope(excess, anchor=[0.0, 0.0], radius=0.5, chart=given, num_particles=4000)
        assert found.slope == pytest.approx(0.75, rel=0.03)


def test_a_run_repeats_bitwise_from_its_seed():
    def run(*seeds):
        return volume_slope(
            lambda w: w.square().prod(-1), anchor=[0.0, 0.0], radius=1.0, num_particles=300, seeds=seeds
        )

    first, again, alone = run(3, 5), run(3, 5), run(5)
    assert (first.slope, first.spread, first.acceptance) == (again.slope, again.spread, again.acceptance)
    for one, other in zip(first.log_volume, again.log_volume, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.log_volume[1], alone.log_volume[0])
    assert not np.array_equal(first.log_volume[0], first.log_volume[1])
    assert math.isnan(alone.spread)


GOOD = {"target": lambda w: w.square().sum(-1), "anchor": [0.0, 0.0], "radius": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 3}, "target: 3; expected a function"),
        ({"anchor": None}, "anchor: None; expected the weights"),
        ({"anchor": [[0.0]]}, "anchor: .* a vector"),
        ({"anchor": [math.nan, 0.0]}, "anchor: .* finite"),
        ({"anchor": [1.0, 0.0]}, "target: 1.0; expected K at the anchor below"),
        ({"radius": 0.0}, "radius: 0.0; expected a positive"),
        ({"multiplicity": 0}, "multiplicity: 0; expected a whole number"),
        ({"multiplicity": 1.5}, "multiplicity: 1.5"),
        ({"num_particles": 10}, "num_particles: 10; expected at least 100"),
        ({"num_sweeps": 0}, "num_sweeps: 0"),
        ({"last_log_epsilon": 1.0}, "last_log_epsilon: 1.0; expected between -60"),
        ({"last_log_epsilon": -5.0}, "last_log_epsilon: -5.0; expected five levels or more"),
        ({"seeds": ()}, r"seeds: \(\); expected distinct"),
        ({"seeds": (1, 1)}, r"seeds: \(1, 1\)"),
        ({"lower": [0.0]}, "lower: .* one for each of 2"),
        ({"lower": 0.5}, "lower: 0.5; expected bounds that the anchor fulfils"),
        ({"lower": 0.0, "chart": SimpleNamespace(to_weights=lambda z: z, radius=1.0)}, "lower: 0.0; .* chart"),
        ({"chart": SimpleNamespace(to_weights=lambda z: z, radius=-1.0)}, "chart.radius: -1.0"),
        ({"target": lambda w: w.square()}, "target: .* one value per particle"),
        ({"target": lambda w: w.float().square().sum(-1)}, "target: torch.float32; .* float64"),
        ({"target": lambda w: w.prod(-1)}, "target: .* at least zero everywhere"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {**GOOD, **change}
    with pytest.raises(ValueError, match=message):
        volume_slope(arguments.pop("target"), **arguments)


def test_particles_that_cannot_descend_are_reported():
    def excess(w):
        return torch.where((w == 0).all(-1), 0.0, 1 + w.square().sum(-1))

    with pytest.raises(RuntimeError, match=r"stopped moving at log ε = 0\.\d"):
        volume_slope(excess, anchor=[0.0, 0.0], radius=1.0, num_particles=300)


KNOWN = Path(volume.__file__).parent
OF_FORMULAS = ("newton", "polyhedron", "positivity", "weighted", "formulas")


@pytest.mark.parametrize(
    ("files", "allowed"),
    [([KNOWN / "volume.py"], ()),
     ([*KNOWN.glob("formulas/*.py"), *(KNOWN / f"{name}.py" for name in OF_FORMULAS[:-1])], OF_FORMULAS)],
    ids=["volumes", "formulas"],
)  # fmt: skip
def test_it_shares_no_code_with_the_estimators_or_with_another_way_to_the_truth(files, allowed):
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not any(node.level for node in relative), path
        modules = {node.module for node in relative}
        modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        own = {tuple(name.split(".")) for name in modules if name.split(".")[0] in {"slt", "samplers"}}
        assert all(name[:2] == ("slt", "known") and name[2:3] and name[2] in allowed for name in own), (path, own)


@pytest.mark.parametrize("elsewhere", [{"radius": 0.01}, {"anchor": [0.0, 0.0]}])
def test_an_anchor_or_radius_of_its_own_is_refused_beside_a_chart(elsewhere):
    """It would be ignored: coordinates start at the case's anchor, and have a radius of their own."""
    chart = SimpleNamespace(to_weights=lambda z: z, radius=0.5)
    target = SimpleNamespace(
        excess_flat=lambda w: w.square().sum(-1), anchor=[0.0, 0.0], radius=1.0, multiplicity=1, chart=chart
    )
    with pytest.raises(ValueError, match="chart: .*beside an anchor or a radius"):
        volume_slope(target, **elsewhere)


def test_a_negative_excess_is_refused_wherever_it_is_met():
    with pytest.raises(ValueError, match="target: -.*at least zero"):
        volume_slope(lambda w: w.square().sum(-1) - 1e-3 * w[:, 0].abs().sqrt() * (w[:, 0] != 0), anchor=[0.0, 0.0],
                     radius=1.0, num_particles=200)  # fmt: skip
