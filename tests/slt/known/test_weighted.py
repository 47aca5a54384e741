"""Weighted-homogeneous losses: proven values, and the Newton polyhedron where both apply. Everything is exact."""

from fractions import Fraction
from itertools import product

import pytest

from slt.known.formulas.coefficient import LearningCoefficient
from slt.known.newton import newton_polyhedron
from slt.known.weighted import check_weighted_homogeneous, weighted_homogeneous

HALF = Fraction(1, 2)


def coefficient(found):
    return LearningCoefficient(found.rlct, found.multiplicity)


def assert_equal(found, truth):
    assert tuple(found) == tuple(truth), f"found (λ, m) = {tuple(found)}, truth {tuple(truth)}"


def test_weighted_homogeneous():
    assert_equal(weighted_homogeneous([3, 2], 12, (HALF, 1)), (Fraction(5, 12), 1))  # (x² − y³)²
    assert_equal(weighted_homogeneous([3, 2], 12), (Fraction(5, 12), 1))
    assert_equal(weighted_homogeneous([1, 0, 1, 0], 2, (Fraction(2, 3), 1)), (Fraction(2, 3), 1))  # two tanh units
    assert_equal(weighted_homogeneous([1, 0], 2, LearningCoefficient(HALF, 1)), (HALF, 2))  # (a b)²: a tie
    assert_equal(weighted_homogeneous([1, 1], 2, (HALF, 1)), (HALF, 1))  # (x − y)²
    assert_equal(weighted_homogeneous([Fraction(1, 2), Fraction(1, 3)], 2), (Fraction(5, 12), 1))
    check_weighted_homogeneous([(4, 0), (2, 3), (0, 6)], [3, 2], 12)
    with pytest.raises(ValueError, match=r"exponents\[1\]: \(2, 2\) has weighted degree 10; expected 12"):
        check_weighted_homogeneous([(4, 0), (2, 2)], [3, 2], 12)


def test_weighted_homogeneous_repeats_the_polyhedron_one_variable_at_a_time():
    """(w₁ ⋯ w_j)^{2k}: on the sphere of the last variable the product of the others is left; the tie adds 1 to m."""
    for count, k in product((2, 3, 4), (1, 2)):
        smaller = coefficient(newton_polyhedron([(2 * k,) * (count - 1)]))
        found = weighted_homogeneous([0] * (count - 1) + [1], 2 * k, smaller)
        assert_equal(found, coefficient(newton_polyhedron([(2 * k,) * count])))
        with pytest.raises(AssertionError, match="found"):  # planted: the tie forgotten
            assert_equal(smaller, coefficient(newton_polyhedron([(2 * k,) * count])))
    for powers in product((2, 4, 6), repeat=3):  # Brieskorn–Pham: positive off the origin
        rows = [tuple(power * (i == j) for j in range(3)) for i, power in enumerate(powers)]
        found = weighted_homogeneous([Fraction(1, power) for power in powers], 1)
        assert_equal(found, coefficient(newton_polyhedron(rows)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, -1], 2), "weights: .* at least 0"),
        (([0, 0], 2), "weights: .* not all of them 0"),
        (([1.0], 2), "weights: .* ints or Fractions"),
        (([1], 0), "degree: 0; expected an int or Fraction above 0"),
        (([1], 2, (HALF, 0)), "sphere: .* m a whole number of at least 1"),
        (([1], 2, (0.5, 1)), "sphere: .* an int or Fraction"),
        (([1], 2, (HALF,)), "sphere: "),
    ],
)
def test_weighted_homogeneous_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        weighted_homogeneous(*arguments)
