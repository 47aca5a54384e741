"""Exact values at finite temperature: a published table, closed forms, independent reductions, and refusals."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import gamma, kv

from slt.known import Block, exact_llc
from slt.known.quadrature import QuadratureError

ROWS = json.loads((Path(__file__).parent / "finite_temperature.json").read_text())
PRINTED = 5.1e-9  # the table has eight decimals

NODES, WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(40))


def tanh_excess(truth):
    """½ E_x (a tanh(bx) − c tanh x)², x uniform on [−1, 1]."""

    def excess(w):
        a, b = w[..., :1], w[..., 1:]
        return 0.25 * (a * torch.tanh(b * NODES) - truth * torch.tanh(NODES)).square() @ WEIGHTS

    return excess


def relu_excess(w):
    a, b = w.unbind(-1)
    return ((a * b.clamp(min=0) - 1).square() + (a * (-b).clamp(min=0)).square()) / 12


def product(w):
    return w.prod(-1).square()


def cusp(w):
    return (w[..., 0].square() - w[..., 1] ** 3).square()


def quartic(w):
    return w[..., 0] ** 4


def cube(w):
    return w[..., 0].abs() ** 3


def one(*, square=0.0, excess=None):
    return Block(curvatures=(square,)) if excess is None else Block(excess, (0.0,))


RADIAL = Block(product, (0.0, 0.0), powers=(1, 1))  # ‖u vᵀ‖² = ‖u‖²‖v‖², u and v in two dimensions
FORMS = {
    "F1": {"function": lambda w: w[..., 0].square() / 2, "blocks": one(square=1.0)},
    "F2": {"function": quartic},
    "F3": {"function": product},
    "F4": {
        "function": lambda w: w[..., 0].square() + w[..., 1] ** 4,
        "blocks": (one(square=2.0), one(excess=quartic)),
        "numerical blocks": (one(excess=lambda w: w[..., 0].square()), one(excess=quartic)),
    },
    "F5": {"function": cusp},
    "F6": {"function": tanh_excess(0.0)},
    "F7": {"function": tanh_excess(1.0)},
    "F8": {"function": relu_excess},
    "F9": {"function": lambda w: product(w) / 12},
    "F10": {"function": lambda w: w[..., 0].clamp(min=0) ** 3 / 12},
    "F11": {
        "function": lambda w: w[..., 0].square() + w[..., 1].abs() ** 3,
        "blocks": (one(square=2.0), one(excess=cube)),
        "numerical blocks": (one(excess=lambda w: w[..., 0].square()), one(excess=cube)),
    },
    "F12": {"blocks": (RADIAL,)},
    "F13": {"function": lambda w: w[..., 0].square() * torch.expm1(w[..., 1].square()) / 2},
}
TABLE = [
    pytest.param(row, form, id=f"{row['id']}-{row['nbeta']:.4g}-{row['gamma']}-{form}")
    for row in ROWS
    for form in FORMS[row["id"]]
]


def compute(row, form, n_beta=1.0, localization=1.0, **options):
    """The value of a row, with nβ and γ multiplied by factors."""
    anchor = [float(x) for x in row["w_star"]] if form == "function" else None
    target = FORMS[row["id"]][form]
    return exact_llc(
        target, n_beta * row["nbeta"], localization * row["gamma"], anchor=anchor, **options
    )  # fmt: skip


def matches(found, row):
    """Within the stated error, to all printed decimals: stricter than 1e-5 by three orders."""
    return abs(found.value - row["expectation"]) <= found.error + PRINTED


def log_grid_product(n_beta, localization, dim):
    """nβ·E[(∏ w_i)²] with one variable integrated out and the trapezoidal rule in logarithms of the others.

    Given the others, ∏ = P w, the last has precision A = γ + 2nβP²: its integral is ∝ A^{−1/2} and E[w²] = 1/A. The
    integrand in the logarithms is analytic and falls off exponentially, so that the rule converges exponentially.
    """
    logarithm = np.arange(-60.0, 5.0, 0.05)
    x = np.exp(logarithm)
    one_axis = x * np.exp(-localization * x**2 / 2)
    square = x**2
    weight = one_axis
    for _ in range(dim - 2):
        square, weight = np.multiply.outer(square, x**2), np.multiply.outer(weight, one_axis)
    precision = localization + 2 * n_beta * square
    weight = weight / np.sqrt(precision)
    return float((weight * n_beta * square / precision).sum() / weight.sum())


def test_the_table_has_all_its_rows():
    assert len(ROWS) == 33
    assert {row["id"] for row in ROWS} == set(FORMS)


@pytest.mark.parametrize(("row", "form"), TABLE)
def test_published_table(row, form):
    found = compute(row, form)
    assert matches(found, row), (found, row["expectation"])
    assert found.error <= 1.01e-7 * found.value
    assert abs(found.value / row["expectation"] - 1) <= 1e-5


@pytest.mark.parametrize(("row", "form"), TABLE[::3])
def test_planted_factors_are_rejected(row, form):
    """γ without its ½ is twice γ; nβ inside K and outside again is its square."""
    assert not matches(compute(row, form, localization=2.0), row)
    assert not matches(compute(row, form, n_beta=row["nbeta"]), row)


def test_planted_measure_is_rejected():
    for row in ROWS:
        if row["id"] == "F12":
            assert not matches(exact_llc(Block(product, (0.0, 0.0)), row["nbeta"], row["gamma"]), row)


@pytest.mark.parametrize("identifier", ["F2", "F3", "F5", "F7", "F8", "F11", "F13"])
def test_a_tighter_tolerance_changes_less_than_the_stated_error(identifier):
    row = next(row for row in ROWS if row["id"] == identifier)
    best = compute(row, "function", tolerance=1e-8)
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-6):
        found = compute(row, "function", tolerance=tolerance)
        assert found.error <= 1.01 * tolerance * found.value
        assert abs(found.value - best.value) <= found.error + best.error
        assert found.num_evaluations <= best.num_evaluations


def test_the_stated_error_covers_the_true_one():
    """Quadratics; K = w⁴ by Bessel functions; (w₁w₂)² by a one-dimensional integral: each good to 1e-12."""
    for n_beta, localization in ((1.0, 1.0), (100.0, 1.0), (1e6, 1.0), (3e3, 40.0), (1e9, 1e-2)):
        truths = []
        free = n_beta / (2 * (n_beta + localization))
        truths.append((lambda w: w[..., 0].square() / 2, [0.7], free))
        stiff = 5 * n_beta / (5 * n_beta + localization) / 2
        truths.append((lambda w: w[..., 0].square() / 2 + 2.5 * w[..., 1].square(), [0.0, 0.0], free + stiff))
        # ∫ e^{−nβw⁴−γw²/2} = √(γ/2nβ)/2 e^z K_{1/4}(z), z = γ²/32nβ; its logarithmic derivative in nβ is −E[w⁴].
        scale = localization**2 / (32 * n_beta)
        slope = -(kv(-0.75, scale) + kv(1.25, scale)) / (2 * kv(0.25, scale))
        truths.append((quartic, [0.0], 0.5 + scale * (1 + slope)))
        truths.append((product, [0.0, 0.0], log_grid_product(n_beta, localization, 2)))
        for excess, anchor, truth in truths:
            shifted = (
                (lambda w, f=excess, a=anchor: f(w - torch.tensor(a, dtype=torch.float64))) if any(anchor) else excess
            )
            for tolerance in (1e-3, 1e-8):
                found = exact_llc(shifted, n_beta, localization, anchor=anchor, tolerance=tolerance)
                assert abs(found.value - truth) <= found.error + 1e-12, (n_beta, localization, anchor, found, truth)


def test_quartic_without_localiser_in_the_limit():
    """γ → 0: nβ·E[w⁴] → 1/4, by Gamma functions; a box far outside the law changes nothing."""
    ratio = gamma(1.25) / gamma(0.25)
    found = exact_llc(quartic, 1e4, 0.0, anchor=[0.0], radius=2.0)
    assert abs(found.value - ratio) <= found.error


@pytest.mark.parametrize(("n_beta", "localization"), [(100.0, 1.0), (1e4, 10.0)])
def test_product_of_three_against_a_two_dimensional_reduction(n_beta, localization):
    found = exact_llc(product, n_beta, localization, anchor=[0.0] * 3, tolerance=1e-4)
    truth = log_grid_product(n_beta, localization, 3)
    assert abs(found.value - truth) <= found.error
    assert found.error <= 1e-4 * truth


def test_a_valley_in_three_dimensions_against_its_blocks():
    whole = exact_llc(lambda w: w[..., 0].square() + product(w[..., 1:]), 100.0, 1.0, anchor=[0.0] * 3, tolerance=1e-5)
    parts = exact_llc((Block(curvatures=(2.0,)), Block(product, (0.0, 0.0))), 100.0, 1.0)
    assert parts.method == "closed form and cubature"
    assert abs(whole.value - parts.value) <= whole.error + parts.error


def test_a_narrow_curved_valley_far_from_the_axes():
    """½ (w₁cosθ + w₂sinθ)² turned by an angle at which no mesh face lies along it: the widths are 1 and 1e-3."""
    c, s = math.cos(0.7), math.sin(0.7)
    found = exact_llc(lambda w: (c * w[..., 0] + s * w[..., 1]).square() / 2, 1e6, 1.0, anchor=[0.0, 0.0])
    assert abs(found.value - 0.5 / (1 + 1e-6)) <= found.error


@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("localization", [0.0, 5.0])
def test_quadratic_in_a_box(radius, localization):
    n_beta, h = 40.0, 3.0
    precision = n_beta * h + localization
    reach = min(radius, 12 / precision**0.5)

    def moment(power):
        return quad(lambda x: x**power * math.exp(-precision * x**2 / 2), 0, reach, epsabs=0, epsrel=1e-12)[0]

    truth = n_beta * h / 2 * moment(2) / moment(0)
    closed = exact_llc(Block(curvatures=(h, h)), n_beta, localization, radius=radius)
    assert closed.value == pytest.approx(2 * truth, rel=1e-11)
    assert (closed.error, closed.num_evaluations, closed.method) == (0.0, 0, "closed form")
    numerical = exact_llc(lambda w: h / 2 * w.square().sum(-1), n_beta, localization, anchor=[0.0, 0.0], radius=radius)
    assert abs(numerical.value - 2 * truth) <= numerical.error
    free = exact_llc(Block(curvatures=(h, h)), n_beta, localization)
    assert (abs(free.value - closed.value) < 1e-9) == (radius >= 1.0)  # √A is 11: beyond 1 there is nothing


def test_quadratics_without_localiser_give_half_their_number():
    assert exact_llc(Block(curvatures=(1.0, 20.0, 3.0)), 7.0, 0.0).value == 1.5


@pytest.mark.parametrize(
    ("excess", "n_beta", "dim", "truth"),
    [
        (lambda w: w.square().sum(-1) / 2, 1e21, 2, 1.0),
        pytest.param(lambda w: w.square().sum(-1) / 2, 1e14, 3, 1.5, marks=pytest.mark.slow),  # as little of the mass
        (lambda w: w.abs().pow(0.1).sum(-1), 1e3, 1, 10.0),
    ],
)
def test_the_mass_beyond_the_box_is_small_beside_the_tolerance_or_the_value_is_refused(excess, n_beta, dim, truth):
    """Where little of the localiser's mass is left, what lies beyond the box was once a larger error than allowed."""
    try:
        found = exact_llc(excess, n_beta, 1.0, anchor=[0.0] * dim, tolerance=1e-3)
    except QuadratureError:
        return
    assert found.error <= 2e-3 * found.value
    assert abs(found.value - truth) <= found.error + 1e-6


def test_zero_excess_is_zero():
    found = exact_llc(lambda w: torch.zeros_like(w[..., 0]), 10.0, 1.0, anchor=[0.0, 0.0])
    assert found.value == 0.0
    assert found.error < 1e-15


def test_a_case_is_the_sum_of_its_blocks():
    blocks = (Block(curvatures=(2.0,)), Block(quartic, (0.0,)))
    known = SimpleNamespace(blocks=blocks)
    assert exact_llc(known, 100.0, 1.0) == exact_llc(blocks, 100.0, 1.0)
    assert exact_llc([blocks[1]], 100.0, 1.0) == exact_llc(blocks[1], 100.0, 1.0)


def needles(w, width=0.005, place=3.0001):
    """Two needles in a plateau, the second of which only a fine mesh sees."""
    x = w[..., 0]
    return 1 - torch.exp(-((x / width) ** 2) / 2) - torch.exp(-(((x - place) / width) ** 2) / 2)


def test_what_two_meshes_see_differently_is_refused():
    with pytest.raises(QuadratureError, match="neither can be trusted"):
        exact_llc(needles, 30.0, 1.0, anchor=[0.0])


def test_too_few_evaluations_are_refused_with_the_figures():
    with pytest.raises(ArithmeticError, match="max_evaluations: 20,000 are too few.*no value can be trusted"):
        exact_llc(product, 1e6, 1.0, anchor=[0.0, 0.0], max_evaluations=20_000)
    with pytest.raises(QuadratureError, match="max_evaluations"):
        exact_llc(lambda w: torch.sin(1e6 * w[..., 0]).square(), 30.0, 1.0, anchor=[0.0], max_evaluations=10**6)


FLAT = Block(product, (0.0, 0.0))


@pytest.mark.parametrize(
    ("message", "target", "options"),
    [
        ("4 coordinates.*at most 3.*norms", Block(product, (0.0,) * 4), {}),
        ("5 coordinates", product, {"anchor": [0.0] * 5}),
        ("no blocks", SimpleNamespace(blocks=()), {}),
        ("no blocks", (), {}),
        ("target: str", "poly_xy2", {}),
        ("target: SimpleNamespace", SimpleNamespace(), {}),
        ("target: Block.*has no excess with an anchor, and no curvatures", Block(), {}),
        ("n_beta: 0", FLAT, {"n_beta": 0.0}),
        ("n_beta: nan", FLAT, {"n_beta": math.nan}),
        ("n_beta: inf", FLAT, {"n_beta": math.inf}),
        ("localization: -1", FLAT, {"localization": -1.0}),
        ("localization: nan", FLAT, {"localization": math.nan}),
        ("localization: 0.* without a radius", FLAT, {"localization": 0.0}),
        ("localization: 0.*curvature of 0", Block(curvatures=(1.0, 0.0)), {"localization": 0.0}),
        ("radius: 0", FLAT, {"radius": 0.0}),
        ("radius: -2", Block(curvatures=(1.0,)), {"radius": -2.0}),
        ("radius: nan", FLAT, {"radius": math.nan}),
        ("radius: 1.0 with powers", RADIAL, {"radius": 1.0}),
        ("tolerance: 0", FLAT, {"tolerance": 0.0}),
        ("tolerance: nan", FLAT, {"tolerance": math.nan}),
        ("max_evaluations: 0", FLAT, {"max_evaluations": 0}),
        ("curvatures", Block(curvatures=(-1.0,)), {}),
        ("powers: \\(1,\\).*2 whole", Block(product, (0.0, 0.0), powers=(1,)), {}),
        ("powers: \\(1, -1\\)", Block(product, (0.0, 0.0), powers=(1, -1)), {}),
        ("powers.*anchor", Block(product, (1.0, 0.0), powers=(1, 0)), {}),
        ("powers.*not even", Block(lambda r: r[..., 0].clamp(min=0) ** 2, (0.0,), powers=(1,)), {}),
        ("anchor: None", product, {}),
        ("anchor: nβK.* = 100 at", product, {"anchor": [1.0, 1.0]}),
        ("anchor: \\[nan", product, {"anchor": [math.nan, 0.0]}),
        ("anchor: \\[\\]", product, {"anchor": []}),
        ("anchor.*for blocks", FLAT, {"anchor": [0.0, 0.0]}),
        ("excess: K = -", lambda w: w.prod(-1), {"anchor": [0.0, 0.0]}),
        ("excess: K = inf", lambda w: torch.expm1(1e4 * w[..., 0].square()), {"anchor": [0.0]}),
        ("excess: K = nan", lambda w: w[..., 0].clamp(min=0) / w[..., 0] * 0, {"anchor": [0.0]}),
        ("excess: gave .*shape \\(1, 2\\).*one value per point", torch.square, {"anchor": [0.0, 0.0]}),
        ("excess: gave torch.float32", lambda w: w.float().prod(-1), {"anchor": [0.0, 0.0]}),
        ("excess: gave float", lambda w: 0.0, {"anchor": [0.0, 0.0]}),
    ],
)  # fmt: skip
def test_refusals(message, target, options):
    options = {"n_beta": 100.0, "localization": 1.0, **options}
    with pytest.raises(ValueError, match=message):
        exact_llc(target, options.pop("n_beta"), options.pop("localization"), **options)
