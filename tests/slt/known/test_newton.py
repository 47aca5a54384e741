"""λ and m from the Newton polyhedron, against proven values and against an enumeration that shares no code with it.

The enumeration works on the other side of the duality: it finds the facets of Γ by trying every hyperplane through
monomials and coordinate directions, enters Γ along t(1 + h), and takes the codimension of the smallest face there.
Everything is exact, so that no assertion here has a false-alarm rate; seeds only choose which polyhedra are looked at.
"""

import random
import subprocess
import sys
from fractions import Fraction
from itertools import combinations, permutations, product

import numpy as np
import pytest

from slt.known.formulas.coefficient import LearningCoefficient
from slt.known.formulas.elementary import independent_product, independent_sum, normal_crossing
from slt.known.newton import newton_polyhedron, newton_polyhedron_of, sum_of_squares
from slt.known.polyhedron import compact_faces, optimum
from slt.known.positivity import positive_roots

HALF = Fraction(1, 2)


def pair(found):
    return found.rlct, found.multiplicity


def assert_equal(found, truth):
    assert tuple(found) == tuple(truth), f"found (λ, m) = {found}, truth {truth}"


def by_enumeration(exponents, prior):
    """λ and m, for up to three variables, from the facets of Γ and the face that the ray t(1 + h) meets first."""
    dim = len(prior)
    measure = [1 + h for h in prior]
    units = [tuple(int(i == j) for j in range(dim)) for i in range(dim)]
    facets = set()
    for base in exponents:
        differences = [tuple(a - b for a, b in zip(row, base, strict=True)) for row in exponents if row != base]
        for chosen in combinations([*units, *differences], dim - 1):
            if dim == 1:
                normal = (1,)
            elif dim == 2:
                normal = (chosen[0][1], -chosen[0][0])
            else:
                normal = tuple(int(entry) for entry in np.cross(chosen[0], chosen[1]))
            for sign in (1, -1):
                signed = tuple(sign * entry for entry in normal)
                level = sum(a * b for a, b in zip(signed, base, strict=True))
                heights = [sum(a * b for a, b in zip(signed, row, strict=True)) for row in exponents]
                if any(signed) and min(signed) >= 0 and min(heights) >= level:
                    facets.add((signed, level))
    entries = {
        facet: Fraction(facet[1], sum(c * t for c, t in zip(facet[0], measure, strict=True))) for facet in facets
    }
    enters = max(entries.values())
    met = [normal for (normal, _), entry in entries.items() if entry == enters]
    levels = {(normal, level) for normal, level in facets if normal in met and entries[normal, level] == enters}
    on_face = [row for row in exponents if all(sum(map(int.__mul__, normal, row)) == level for normal, level in levels)]
    spanning = [tuple(a - b for a, b in zip(row, on_face[0], strict=True)) for row in on_face]
    spanning += [unit for unit in units if all(sum(map(int.__mul__, normal, unit)) == 0 for normal in met)]
    return 1 / enters, dim - int(np.linalg.matrix_rank(np.array(spanning)))


def random_polyhedron(rng, most_variables=3, most_monomials=6, highest=6):
    dim = rng.randint(1, most_variables)
    rows = [
        tuple(rng.randint(0, highest) if rng.random() < 0.7 else 0 for _ in range(dim))
        for _ in range(rng.randint(1, most_monomials))
    ]
    rows = [row for row in rows if any(row)] or [(1,) * dim]
    return rows, [rng.choice((0, 0, 0, 1, 2)) for _ in range(dim)]


POLYNOMIALS = {
    # name: ({exponents: coefficient}, prior exponents, 1/t₀, m, label). Where the label is "exact" 1/t₀ is λ, proven by
    # the sum and product rules or because K is comparable to a sum of squares of monomials.
    "x^2 + y^2 + z^2": ({(2, 0, 0): HALF, (0, 2, 0): HALF, (0, 0, 2): HALF}, None, Fraction(3, 2), 1, "exact"),
    "(xy)^2": ({(2, 2): 1}, None, HALF, 2, "exact"),
    "x^2 y^4": ({(2, 4): 1}, None, Fraction(1, 4), 1, "exact"),
    "x^4 + y^2": ({(4, 0): 1, (0, 2): 1}, None, Fraction(3, 4), 1, "exact"),
    "(xyz)^2": ({(2, 2, 2): 1}, None, HALF, 3, "exact"),
    "x^2 y^2 + x^6 + y^6": ({(2, 2): 1, (6, 0): 1, (0, 6): 1}, None, HALF, 2, "exact"),
    "x^2 + (yz)^2": ({(2, 0, 0): 1, (0, 2, 2): 1}, None, Fraction(1), 2, "exact"),
    "x^4 + y^6": ({(4, 0): 1, (0, 6): 1}, None, Fraction(5, 12), 1, "exact"),
    "(xy)^2 + z^4": ({(2, 2, 0): 1, (0, 0, 4): 1}, None, Fraction(3, 4), 2, "exact"),
    "(xy)^2, prior |x|": ({(2, 2): 1}, [1, 0], HALF, 1, "exact"),
    "x^2 + |y|^(7/2)": ({(2, 0): 1, (0, Fraction(7, 2)): 1}, None, HALF + Fraction(2, 7), 1, "exact"),
    "x^2 + (a y^2)^2": ({(2, 0, 0): 1, (0, 2, 4): 1}, None, Fraction(3, 4), 1, "exact"),
    "|a|^2 |b|^2, twice": (
        {(*a, *b): 1 for a in ((2, 0), (0, 2)) for b in ((2, 0), (0, 2))},
        None,
        Fraction(1),
        2,
        "exact",
    ),
    "x^2 + xy + y^2": ({(2, 0): 1, (1, 1): 1, (0, 2): 1}, None, Fraction(1), 1, "exact"),
    "x^4 - x^2 y^2 + y^4": ({(4, 0): 1, (2, 2): -1, (0, 4): 1}, None, HALF, 1, "exact"),
    # (x^2 - y^3)^2 has λ = 5/12 (weighted-homogeneous), but the polyhedron alone does not prove it
    "(x^2 - y^3)^2": ({(4, 0): 1, (2, 3): -2, (0, 6): 1}, None, Fraction(5, 12), 1, "upper"),
    # λ = 1/2 for the next four: they vanish on smooth curves
    "(x - y)^2": ({(2, 0): 1, (1, 1): -2, (0, 2): 1}, None, Fraction(1), 1, "upper"),
    "(x + y)^2": ({(2, 0): 1, (1, 1): 2, (0, 2): 1}, None, Fraction(1), 1, "upper"),
    "(2x + y^2 + x^2)^2": (
        {(2, 0): 4, (1, 2): 4, (0, 4): 1, (3, 0): 4, (2, 2): 2, (4, 0): 1},
        None,
        Fraction(3, 4),
        1,
        "upper",
    ),
    "(x - y - z)^2": (
        {(2, 0, 0): 1, (0, 2, 0): 1, (0, 0, 2): 1, (1, 1, 0): -2, (1, 0, 1): -2, (0, 1, 1): 2},
        None,
        Fraction(3, 2),
        1,
        "upper",
    ),
    "x^3": ({(3,): 1}, None, Fraction(1, 3), 1, "upper"),
    "x^2 - y^2": ({(2, 0): 1, (0, 2): -1}, None, Fraction(1), 1, "upper"),
}


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_known_polynomials(name):
    terms, prior, rlct, multiplicity, label = POLYNOMIALS[name]
    found = newton_polyhedron(list(terms), prior, coefficients=list(terms.values()))
    assert_equal(pair(found), (rlct, multiplicity))
    assert found.bound == label, found.condition
    assert_equal(pair(newton_polyhedron(list(terms), prior)), (rlct, multiplicity))


def test_bare_exponents_are_exact_only_where_no_coefficient_can_spoil_it():
    assert newton_polyhedron([(2, 2), (6, 0), (0, 6)]).bound == "exact"
    assert newton_polyhedron([(4, 0), (0, 4), (3, 3)]).bound == "exact"  # (3, 3) is inside
    assert newton_polyhedron([(4, 0), (2, 2), (0, 4)]).bound == "upper"  # as (x² − y²)², whose λ is 1/2
    assert newton_polyhedron([(2, 0), (0, 3)]).bound == "upper"
    assert newton_polyhedron([(2, 0), (0, Fraction(5, 2))]).bound == "exact"


@pytest.mark.parametrize("units", [2, 3])
def test_tanh_units_in_raw_coordinates_give_an_upper_bound(units):
    generators = [
        {
            tuple(entry for j in range(units) for entry in ((1, 2 * order + 1) if i == j else (0, 0))): 1
            for i in range(units)
        }
        for order in range(units)
    ]
    found = sum_of_squares(generators)
    assert found.bound == "upper"
    assert found.rlct == Fraction(units, 2)
    assert found.rlct > {2: Fraction(2, 3), 3: Fraction(5, 6)}[units]


def test_sums_of_squares():
    assert_equal(pair(sum_of_squares([{(1, 1): 1}])), (HALF, 2))
    both = sum_of_squares([{(1, 0): 1, (0, 1): 1}, {(1, 0): 1, (0, 1): -1}])
    assert_equal(pair(both), (Fraction(1), 1))
    assert both.bound == "exact"
    assert sum_of_squares([{(1, 0): 1, (0, 1): 1}]).bound == "upper"
    # on the two-dimensional face x + y + z is zero somewhere, but x alone is not
    mixed = [{(1, 0, 0): 1, (0, 1, 0): 1, (0, 0, 1): 1}, {(1, 0, 0): 1}, {(0, 1, 0): 1}]
    assert sum_of_squares(mixed).bound == "exact"
    assert sum_of_squares(mixed[:2]).bound == "upper"  # both are zero at x = 0, y = −z: the edge of y and z shows it
    # x⁴ + y⁴ + z⁴ = 5x²yz has solutions, where only the second generator keeps K away from zero
    crossed = [{(4, 0, 0): 1, (0, 4, 0): 1, (0, 0, 4): 1, (2, 1, 1): -5}, {(2, 1, 1): 1}]
    assert sum_of_squares(crossed)[:3] == (Fraction(3, 8), 1, "exact")
    assert sum_of_squares(crossed[:1]).bound == "upper"
    # both have the edge from x² to y⁴, but only y² is on it: y³ lies above, and on x = y² K is y⁶, so that λ is 2/3
    assert sum_of_squares([{(1, 0): 1, (0, 2): -1}, {(0, 2): 1}]).bound == "exact"
    assert sum_of_squares([{(1, 0): 1, (0, 2): -1}, {(0, 3): 1}]).bound == "upper"
    assert sum_of_squares([{(2, 0): 1, (1, 1): 1, (0, 2): 1}]).bound == "exact"  # the square of a definite form


def test_binary_forms_are_exact_just_where_they_are_definite():
    for a, b, c in product((1, 4), range(-7, 8), (1, 3)):
        terms = {(2, 0): a, (1, 1): b, (0, 2): c} if b else {(2, 0): a, (0, 2): c}
        found = newton_polyhedron(list(terms), coefficients=list(terms.values()))
        assert (found.bound == "exact") == (b * b < 4 * a * c), (a, b, c, found.condition)
        even = {tuple(2 * power for power in row): value for row, value in terms.items()}  # in x² and y²: b > 0 is fine
        found = newton_polyhedron(list(even), coefficients=list(even.values()))
        assert (found.bound == "exact") == (b > 0 or b * b < 4 * a * c), (a, b, c, found.condition)


def test_ternary_forms_are_exact_just_where_they_are_definite():
    rng = random.Random(5)
    labels = {True: 0, False: 0}
    for _ in range(150):
        entries = {(i, j): rng.randint(-4, 4) if i != j else rng.randint(1, 5) for i in range(3) for j in range(i, 3)}
        twice = np.array([[entries[min(i, j), max(i, j)] * (1 + (i == j)) for j in range(3)] for i in range(3)])
        minors = [round(np.linalg.det(twice[:size, :size])) for size in (1, 2, 3)]  # whole numbers, far below 2⁵³
        definite = min(minors) > 0
        labels[definite] += 1
        terms = {tuple((i == place) + (j == place) for place in range(3)): v for (i, j), v in entries.items() if v}
        found = newton_polyhedron([tuple(map(int, row)) for row in terms], coefficients=list(terms.values()))
        assert (found.bound == "exact") == definite, (terms, found.condition)
    assert min(labels.values()) > 30


def test_what_is_labelled_exact_is_nowhere_small_beside_its_monomials():
    """The label means K ≥ c Σ|w^α| near the origin; a K that comes within 1e-4 of zero there would refute it."""
    rng, draws = random.Random(12), np.random.default_rng(12)
    labels = {"exact": 0, "upper": 0}
    smallest = {"exact": np.inf, "upper": np.inf}
    for _ in range(200):
        dim = rng.randint(2, 3)
        terms = {tuple(rng.choice((2, 4, 6)) * (i == j) for j in range(dim)): rng.randint(1, 4) for i in range(dim)}
        for _ in range(rng.randint(1, 3)):
            row = tuple(rng.randint(0, 3) for _ in range(dim))
            if sum(row) > 1:
                terms.setdefault(row, rng.choice((-3, -2, -1, 1, 2)))
        found = newton_polyhedron(list(terms), coefficients=list(terms.values()))
        # down the ray of weights by which each face in turn is singled out, in every quadrant
        scales = np.exp(-draws.uniform(0, 20, (4000, 1)) * draws.dirichlet(np.ones(dim), 4000) * dim)
        points = 1e-3 * draws.choice([-1, 1], (4000, dim)) * scales
        values = np.array([np.prod(points ** np.array(row), axis=1) for row in terms])
        coefficients = np.array(list(terms.values()))
        ratio = (coefficients @ values) / np.abs(values).sum(axis=0)
        labels[found.bound] += 1
        smallest[found.bound] = min(smallest[found.bound], ratio.min())
    assert min(labels.values()) > 30
    assert smallest["exact"] > 1e-4
    assert smallest["upper"] < 0


def test_positive_roots_are_counted_exactly():
    rng = random.Random(2)
    for _ in range(300):
        roots = [rng.choice((-3, -2, -1, 1, 2, 3, 7)) for _ in range(rng.randint(0, 5))]
        coefficients = [Fraction(rng.choice((-2, 1, 3)))]
        for root in roots:
            coefficients = [low - root * high for low, high in zip([0, *coefficients], [*coefficients, 0], strict=True)]
        for _ in range(rng.randint(0, 2)):  # u² − u + 1 has no real root, so that nothing may change
            longer = [*coefficients, 0, 0]
            coefficients = [
                value - (longer[i - 1] if i else 0) + (longer[i - 2] if i > 1 else 0) for i, value in enumerate(longer)
            ]
        assert positive_roots(coefficients) == len({root for root in roots if root > 0}), roots


def enumerated_cases():
    """A few degenerate polyhedra, and random ones, half of them with low exponents, where ties (m > 1) are common."""
    rng = random.Random(11)
    yield [(2, 2, 0), (0, 2, 2), (2, 0, 2)], [0, 0, 0]
    yield [(1, 1, 1), (3, 0, 0), (0, 3, 0), (0, 0, 3)], [0, 0, 0]  # four equalities at one vertex
    yield [(4, 0, 0), (0, 4, 0), (2, 2, 0), (1, 3, 0), (0, 0, 2)], [1, 1, 0]
    yield [(4, 0, 2), (2, 2, 2), (0, 4, 2)], [0, 0, 0]  # a tie, with three equalities of rank two
    yield [(6, 0, 2), (3, 3, 2), (0, 6, 2), (0, 0, 8)], [0, 0, 0]
    yield from (random_polyhedron(rng, highest=highest) for highest in (2, 6) for _ in range(150))


def test_agrees_with_an_enumeration_of_the_faces():
    ties = 0
    for exponents, prior in enumerated_cases():
        found = newton_polyhedron(exponents, prior)
        assert_equal(pair(found), by_enumeration(exponents, prior))
        assert all(sum(map(lambda c, a: c * a, found.weights, row)) >= 1 for row in exponents)
        assert min(found.weights) >= 0
        assert sum(c * (1 + h) for c, h in zip(found.weights, prior, strict=True)) == found.rlct
        ties += found.multiplicity > 1
    assert ties > 10


def no_prior(exponents, prior):
    return pair(newton_polyhedron(exponents))


def always_simple(exponents, prior):
    return newton_polyhedron(exponents, prior).rlct, 1


def dimension_of_the_face(exponents, prior):
    found = newton_polyhedron(exponents, prior)
    return found.rlct, len(prior) + 1 - found.multiplicity


def counts_tight_monomials(exponents, prior):
    """m from the number of equalities at the optimum where their rank is what counts."""
    found = newton_polyhedron(exponents, prior)
    tight = sum(sum(map(lambda c, a: c * a, found.weights, row)) == 1 for row in set(exponents))
    return found.rlct, 1 + max(len(prior) - tight - found.weights.count(0), 0)


def shifted(exponents, prior):
    found = newton_polyhedron(exponents, prior)
    return found.rlct, found.multiplicity + 1


@pytest.mark.parametrize(
    "wrong", [no_prior, always_simple, dimension_of_the_face, counts_tight_monomials, shifted], ids=lambda f: f.__name__
)
def test_planted_errors_are_rejected(wrong):
    with pytest.raises(AssertionError, match="found"):
        for exponents, prior in enumerated_cases():
            assert_equal(wrong(exponents, prior), by_enumeration(exponents, prior))


def test_the_order_of_variables_and_monomials_does_not_matter():
    rng = random.Random(3)
    for _ in range(40):
        exponents, prior = random_polyhedron(rng, most_variables=4)
        expected = pair(newton_polyhedron(exponents, prior))
        for order in rng.sample(list(permutations(range(len(prior)))), k=min(3, len(list(permutations(prior))))):
            permuted = [tuple(row[place] for place in order) for row in rng.sample(exponents, k=len(exponents))]
            assert pair(newton_polyhedron(permuted, [prior[place] for place in order])) == expected


def test_scaling_all_exponents_divides_rlct():
    rng = random.Random(4)
    for _ in range(40):
        exponents, prior = random_polyhedron(rng, most_variables=5, most_monomials=9)
        found = newton_polyhedron(exponents, prior)
        for factor in (2, 1000, Fraction(1, 3)):
            scaled = newton_polyhedron([tuple(factor * power for power in row) for row in exponents], prior)
            assert pair(scaled) == (found.rlct / factor, found.multiplicity)


def test_a_monomial_inside_the_polyhedron_changes_nothing():
    rng = random.Random(6)
    for _ in range(50):
        exponents, prior = random_polyhedron(rng, most_variables=4)
        shares = [rng.randint(0, 3) for _ in exponents]
        shares[0] += 1
        mean = [sum(s * row[i] for s, row in zip(shares, exponents, strict=True)) for i in range(len(prior))]
        inside = tuple(Fraction(total, sum(shares)) + rng.choice((0, 1, Fraction(1, 2))) for total in mean)
        assert pair(newton_polyhedron([*exponents, inside], prior)) == pair(newton_polyhedron(exponents, prior))


def test_sum_and_product_rules():
    rng = random.Random(7)
    ties = 0
    for _ in range(50):
        first, first_prior = random_polyhedron(rng, most_variables=2, most_monomials=3, highest=3)
        second, second_prior = random_polyhedron(rng, most_variables=2, most_monomials=3, highest=3)
        parts = [
            LearningCoefficient(*pair(newton_polyhedron(first, first_prior))),
            LearningCoefficient(*pair(newton_polyhedron(second, second_prior))),
        ]
        ties += parts[0].rlct == parts[1].rlct
        apart = [row + (0,) * len(second_prior) for row in first] + [(0,) * len(first_prior) + row for row in second]
        assert_equal(pair(newton_polyhedron(apart, first_prior + second_prior)), independent_sum(*parts))
        times = [left + right for left in first for right in second]
        assert_equal(pair(newton_polyhedron(times, first_prior + second_prior)), independent_product(*parts))
    assert ties > 5


def test_one_monomial_is_a_normal_crossing():
    rng = random.Random(8)
    for _ in range(50):
        k = [rng.randint(0, 3) for _ in range(5)] + [1]
        h = [rng.choice((0, 1, 2, Fraction(-1, 2))) for _ in range(6)]
        found = newton_polyhedron([tuple(2 * value for value in k)], h, coefficients=[3])
        assert_equal(pair(found), normal_crossing(k, h))  # type: ignore[arg-type]
        assert found.bound == "exact"


def test_larger_and_lopsided_polyhedra_are_confirmed():
    rng = random.Random(9)
    for highest in (2, 1000, 10**6):
        for _ in range(15):
            rows = [tuple(rng.randint(0, highest) * rng.randint(0, 1) for _ in range(6)) for _ in range(20)]
            rows = [row for row in rows if any(row)]
            found = newton_polyhedron(rows)
            assert all(sum(map(lambda c, a: c * a, found.weights, row)) >= 1 for row in rows)
            assert sum(found.weights) == found.rlct


def test_an_unconfirmed_optimum_is_refused(monkeypatch):
    class Wrong:
        x = np.full(4, 0.3)

    monkeypatch.setattr("scipy.optimize.linprog", lambda *_, **__: Wrong())
    with pytest.raises(ArithmeticError, match="not confirmed"):
        optimum([(Fraction(2), Fraction(4))], (Fraction(1), Fraction(1)))


def test_compact_faces_of_a_simplex_with_an_inner_point():
    corners = [(Fraction(3), Fraction(0), Fraction(0)), (Fraction(0), Fraction(3), Fraction(0))]
    corners += [(Fraction(0), Fraction(0), Fraction(3)), (Fraction(1), Fraction(1), Fraction(1))]
    faces = compact_faces(corners)
    assert faces is not None
    assert sorted(len(face.members) for face in faces) == [1, 1, 1, 2, 2, 2, 4]
    for face in faces:
        heights = {row: sum(a * b for a, b in zip(face.normal, row, strict=True)) for row in corners}
        assert min(face.normal) > 0
        assert {row for row, height in heights.items() if height == min(heights.values())} == set(face.members)
        assert min(heights.values()) == face.level


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([],), {}, "exponents: none"),
        (([(2, 0), (0,)],), {}, "exponents: entry 1 has 1 exponents, the first 2"),
        (([(2, -1)],), {}, r"exponents: entry 0 is \(2, -1\); expected whole numbers"),
        (([(2, 1.5)],), {}, r"exponents: entry 0 is \(2, 1.5\); expected whole numbers"),
        (([(2, True)],), {}, "exponents: entry 0"),
        (([2, 3],), {}, "exponents: entry 0 is 2; expected a row"),
        (([(2, 0), (0, 0)],), {}, "exponents: entry 1 .* constant term"),
        (([(2, 0)], [0]), {}, "prior_exponents: 1 for 2 variables"),
        (([(2, 0)], [0, -1]), {}, "prior_exponents: .* above −1"),
        (([(2, 0)], [0, 0.5]), {}, "prior_exponents: .* above −1"),
        (([(2, 0)],), {"coefficients": [1, 2]}, "coefficients: 2 for 1 monomials"),
        (([(2, 0)],), {"coefficients": [0]}, "coefficients: 0; expected an int or Fraction that is not 0"),
        (([(2, 0)],), {"coefficients": [0.5]}, "coefficients: 0.5; expected an int or Fraction"),
        (([(2, 0), (2, 0)],), {"coefficients": [1, 1]}, r"coefficients: w1\^2 is listed twice"),
    ],
)
def test_bad_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        newton_polyhedron(*arguments, **options)


def test_bad_generators():
    with pytest.raises(ValueError, match="generators: .* at least one"):
        sum_of_squares([])
    with pytest.raises(ValueError, match="generators: entry 1 .* constant term"):
        sum_of_squares([{(1, 0): 1, (0, 0): -1}])
    with pytest.raises(ValueError, match="generators: entry 1 has 1 exponents"):
        sum_of_squares([{(1, 0): 1}, {(1,): 1}])
    with pytest.raises(ValueError, match="generators: 0.1; expected an int or Fraction"):
        sum_of_squares([{(1, 0): 0.1}])  # type: ignore[list-item]


def test_numpy_integers_do_not_overflow():
    rows = list(np.array([[2**40, 0], [0, 2**40 + 1]]))
    assert newton_polyhedron(rows).rlct == Fraction(1, 2**40) + Fraction(1, 2**40 + 1)


def test_sympy_expressions():
    sympy = pytest.importorskip("sympy")
    x, y, z = sympy.symbols("x y z")
    assert_equal(pair(newton_polyhedron_of((x * y) ** 2 + z**4)), (Fraction(3, 4), 2))
    cusp = newton_polyhedron_of((x**2 - y**3) ** 2)
    assert (cusp.bound, cusp.rlct) == ("upper", Fraction(5, 12))
    assert newton_polyhedron_of(sympy.Rational(1, 3) * (x**2 + x * y + y**2)).bound == "exact"
    assert_equal(pair(newton_polyhedron_of((x * y) ** 2, prior_exponents=[1, 0])), (HALF, 1))
    assert_equal(pair(newton_polyhedron_of(x**2 * y**4, symbols=[y, x, z], prior_exponents=[2, 0, 0])), (HALF, 1))
    assert len(newton_polyhedron_of(x**2, symbols=[x, y, z]).weights) == 3
    for expression, message in (
        (x**2 + 1, "constant term"),
        (sympy.Integer(0) * x, "depends on at least one variable"),
        (sympy.sin(x) ** 2, "expected a polynomial"),
        (1 / x, "expected a polynomial"),
        (sympy.sqrt(2) * x**2, "rational numbers"),
        (0.1 * x**2, "rational numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            newton_polyhedron_of(expression)
    with pytest.raises(ValueError, match="rational numbers"):
        newton_polyhedron_of(x**2 * y, symbols=[x])


def test_without_sympy_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sympy", None)
    with pytest.raises(ImportError, match="pip install sympy"):
        newton_polyhedron_of(None)  # type: ignore[arg-type]


def test_importing_the_calculator_does_not_import_sympy():
    code = "import sys; sys.modules['sympy'] = None; import slt.known.newton"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_sympy_expression_goes_through_the_same_call():
    sympy = pytest.importorskip("sympy")
    x, y = sympy.symbols("x y")
    expression = x**2 * y**2 + x**6 + y**6
    assert newton_polyhedron(expression) == newton_polyhedron_of(expression)
    with pytest.raises(ValueError, match="coefficients: given beside a sympy expression"):
        newton_polyhedron(expression, coefficients=[1, 1, 1])
