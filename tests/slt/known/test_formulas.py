"""Closed forms against each other, against the published table, and against deliberately wrong ones."""

import json
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path

import pytest

from slt.known.formulas import (
    LearningCoefficient,
    deep_linear,
    independent_product,
    independent_sum,
    morse_bott,
    normal_crossing,
    reduced_rank,
    reduced_rank_at,
    regular,
    relu_copies,
    relu_minimal,
    tanh_1d,
    tanh_copies,
    tanh_surplus,
)

PUBLISHED = {row["name"]: row for row in json.loads((Path(__file__).parent / "known_cases.json").read_text())}
SIZES = [(m, h, n, r) for m, h, n in product(range(1, 9), repeat=3) for r in range(min(m, h, n) + 1)]


def coefficient(rlct, multiplicity=1):
    return LearningCoefficient(Fraction(rlct), multiplicity)


def check_two_theorems_agree(deep, shallow):
    """Two layers of the deep linear theorem against reduced-rank regression, every size up to 8 and every rank."""
    assert len(SIZES) == 1808  # Σ over sizes of min(M, H, N) + 1
    for m, h, n, r in SIZES:
        assert deep((m, h, n), r) == shallow(m, h, n, r), (m, h, n, r)


def check_tanh(formula):
    for hidden, rlct, multiplicity in [
        (1, "1/2", 2), (2, "2/3", 1), (3, "5/6", 1), (4, "1", 2), (5, "11/10", 1), (6, "6/5", 1), (7, "13/10", 1),
        (8, "7/5", 1), (9, "3/2", 2), (10, "11/7", 1),
    ]:  # fmt: skip
        assert formula(hidden) == coefficient(rlct, multiplicity)
    for name, hidden in [("tanh_H1_zero", 1), ("tanh_H2_zero", 2)]:  # confirmed by volumes
        row = PUBLISHED[name]
        assert formula(hidden) == coefficient(row["lambda_exact"], row["m"])


def test_two_layers_of_the_deep_theorem_are_reduced_rank_regression():
    check_two_theorems_agree(deep_linear, reduced_rank)


def test_wrong_formulas_are_caught():
    """The sign of r² in the deep linear theorem; a formula for reduced rank that counts dimensions; 3/4 for tanh."""

    def wrong_sign(widths, rank):
        found = deep_linear(widths, rank)
        return found._replace(rlct=found.rlct + rank * rank)

    def wrong_count(inputs, hidden, outputs, rank):
        return coefficient(Fraction(rank * (inputs + outputs - rank), 2))

    def wrong_tanh(hidden):
        return coefficient("3/4") if hidden == 2 else tanh_1d(hidden)

    with pytest.raises(AssertionError):
        check_two_theorems_agree(wrong_sign, reduced_rank)
    with pytest.raises(AssertionError):
        check_two_theorems_agree(deep_linear, wrong_count)
    with pytest.raises(AssertionError):
        check_tanh(wrong_tanh)


@pytest.mark.parametrize("widths", [(2, 3, 5, 4), (7, 1, 3, 3, 6), (4, 4, 2, 9), (5, 6, 7, 8, 9)])
def test_deep_linear_does_not_depend_on_the_order_of_the_widths(widths):
    assert len({deep_linear(order, 0) for order in permutations(widths)}) == 1
    inner = {deep_linear((widths[0], *order, widths[-1]), 1) for order in permutations(widths[1:-1])}
    assert len(inner) == 1


def test_a_wide_layer_changes_nothing_and_a_narrow_one_bounds():
    assert deep_linear((4, 30, 5), 2) == deep_linear((4, 31, 5), 2) == coefficient(Fraction(4 * 5, 2))
    for m, h, n, r in SIZES:
        found = deep_linear((m, h, n), r)
        assert found.rlct <= Fraction(m * n, 2)  # no worse than a free matrix
        assert found.rlct <= Fraction(m * h + h * n, 2)  # nor than a regular model
        assert found.rlct >= Fraction(r * (m + n - r), 2)  # nor better than the rank of the Hessian at any zero


def test_the_least_local_value_is_the_global_one():
    """Over all ranks (p, q) that layers with a product of rank r can have; λ and, at the aligned point, m."""
    for m, h, n, r in SIZES:
        ranks = [(p, q) for p in range(r, min(m, h) + 1) for q in range(r, min(h, n) + 1) if p + q - r <= h]
        found = {(p, q): reduced_rank_at(m, h, n, first_rank=p, second_rank=q, rank=r) for p, q in ranks}
        assert min(value.rlct for value in found.values()) == reduced_rank(m, h, n, r).rlct, (m, h, n, r)
        if r < min(m, h, n):
            assert found[r, r] == reduced_rank(m, h, n, r), (m, h, n, r)


@pytest.mark.parametrize(
    ("widths", "rank", "rlct", "multiplicity"),
    [
        ((1, 1, 1), 0, "1/2", 2), ((2, 2, 2), 0, "3/2", 1), ((2, 1, 2), 0, "1", 2), ((2, 2, 2), 1, "2", 2),
        ((3, 2, 2), 1, "5/2", 1), ((2, 3, 2), 1, "2", 1), ((1,) * 4, 0, "1/2", 3), ((1,) * 5, 0, "1/2", 4),
        ((2,) * 4, 0, "3/2", 3), ((3,) * 4, 1, "4", 3), ((2, 1, 1, 2), 0, "1/2", 1), ((3, 1, 2, 2), 0, "1", 2),
        ((5, 4, 3, 5), 2, "9", 1), ((10,) * 5, 4, "87/2", 5),
    ],
)  # fmt: skip
def test_published_values_of_linear_networks(widths, rank, rlct, multiplicity):
    assert deep_linear(widths, rank) == coefficient(rlct, multiplicity)


def test_tanh_values():
    check_tanh(tanh_1d)
    assert tanh_1d(2, outputs=2) == coefficient(1, 2)
    for hidden in range(1, 60):  # the general formula for one output is the one with the square root
        k = max(i for i in range(hidden + 1) if i * i <= hidden)
        assert tanh_1d(hidden).rlct == Fraction(2 * k * (k + 1) + 2 * hidden, 4 * (1 + 2 * k))
    assert tanh_surplus(1) == coefficient(1)
    assert tanh_surplus(2) == coefficient("3/2", 2)
    assert [tanh_copies(p).rlct for p in (1, 2, 3, 4)] == [1, Fraction(5, 4), Fraction(3, 2), Fraction(7, 4)]


def test_relu_values():
    assert relu_minimal(13, 3) == coefficient(5)
    assert relu_copies(1) == coefficient(1)
    assert relu_copies(2) == coefficient("4/3")
    assert relu_copies(2, inputs=3) == coefficient("13/6")


def test_sums_and_products():
    crossing = normal_crossing([1, 1])
    assert normal_crossing([1, 2], [1, 1]) == coefficient("1/2")
    assert independent_sum(crossing, crossing, regular(3)) == coefficient("5/2", 3)
    assert independent_product(crossing, normal_crossing([1])) == coefficient("1/2", 3)
    assert independent_product(regular(2), normal_crossing([2])) == coefficient("1/4")
    assert morse_bott(3) == regular(3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: regular(-1), "dim: -1"),
        (lambda: regular(1.5), "dim: 1.5"),
        (lambda: normal_crossing([0, 0]), "k: "),
        (lambda: normal_crossing([1, -1]), "k: "),
        (lambda: normal_crossing([1], [0, 0]), "h: 2 exponents"),
        (lambda: normal_crossing([1.1, 1]), r"k: \[1.1, 1\]; expected a sequence of whole numbers or Fractions"),
        (lambda: normal_crossing(2), "k: 2"),
        (lambda: deep_linear(3, 0), "widths: 3"),
        (lambda: tanh_surplus(0), "hidden: 0"),
        (lambda: normal_crossing([1], [-1]), "h: "),
        (lambda: independent_sum(), "terms: none"),
        (lambda: independent_product(), "factors: none"),
        (lambda: reduced_rank(3, 2, 3, 3), "rank: 3; expected at most .* = 2"),
        (lambda: reduced_rank_at(3, 2, 3, first_rank=3, second_rank=1, rank=1), "first_rank: 3"),
        (lambda: reduced_rank_at(3, 2, 3, first_rank=1, second_rank=3, rank=1), "second_rank: 3"),
        (lambda: reduced_rank_at(3, 3, 3, first_rank=3, second_rank=3, rank=1), "rank: 1; expected from .* = 3"),
        (lambda: reduced_rank_at(3, 3, 3, first_rank=1, second_rank=2, rank=2), "rank: 2"),
        (lambda: deep_linear([3], 0), "widths: "),
        (lambda: deep_linear([3, 2], 3), "rank: 3; expected at most the smallest width, 2"),
        (lambda: deep_linear([3, -2], 0), r"widths\[1\]: -2"),
        (lambda: tanh_1d(0), "hidden: 0"),
        (lambda: tanh_copies(0), "copies: 0"),
        (lambda: relu_minimal(2, 3), "parameters: 2"),
        (lambda: relu_copies(2, inputs=1), "copies, inputs: 2, 1"),
    ],
)
def test_the_violated_condition_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
