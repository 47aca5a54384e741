"""λ̂ as it must come out, by quadrature, of two units on one input: what a chain that missed a part would get wrong.

Given both b, the loss and the localiser are quadratic in both a, whose law is normal: what is left is an integral over
two numbers. It is done by Gauss–Legendre, on panels that halve towards b = ±1, where the posterior has walls of the
width (nβ/σ²)^(−1/2), and meet at b = 0, where ReLU has its kink.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

REACH = 7.0  # of b from ±1, in widths of a localiser of γ = 1
NODES = 8  # of a panel
BINS = 4_000  # of inputs: their means stand for the samples, at a relative error of the loss of 1e-6


def expected_llc(
    x: Array, y: Array, a: Array, b: Array, *, relu: bool, noise: float, n_beta: float, localization: float = 1.0
) -> float:
    r"""nβ (E[L] − L(w*)) under exp(−nβ L − γ‖w − w*‖²/2), L the mean of (Σ a_i φ(b_i x) − y)²/(2σ²).

    Args:
        x: Inputs.
        y: Outputs.
        a: Of the anchor, two.
        b: Of the anchor, two.
        relu: φ, or tanh.
        noise: σ.
        n_beta: nβ.
        localization: γ.

    Returns:
        λ̂ in the limit of many draws.
    """
    x, y, share = binned(x, y)
    nodes, weights = panels(1 / math.sqrt(n_beta / noise**2))
    units = _activation(np.outer(x, nodes), relu)
    at_anchor = _activation(np.outer(x, b), relu) @ a
    both = (units * share[:, None]).T @ units
    slope = units.T @ (share * y)
    strength = n_beta / noise**2
    own = np.diag(both)
    first, second, cross = strength * own[:, None] + localization, strength * own + localization, strength * both
    right_1, right_2 = strength * slope[:, None] + localization * a[0], strength * slope + localization * a[1]
    determinant = first * second - cross**2
    mean_1 = (second * right_1 - cross * right_2) / determinant
    mean_2 = (first * right_2 - cross * right_1) / determinant
    square = mean_1**2 * own[:, None] + 2 * mean_1 * mean_2 * both + mean_2**2 * own
    constant = share @ (y**2 - (y - at_anchor) ** 2)
    excess = (square - 2 * mean_1 * slope[:, None] - 2 * mean_2 * slope + constant) / 2
    spread_of_a = (second * own[:, None] - 2 * cross * both + first * own) / determinant / 2
    distance = (mean_1 - a[0]) ** 2 + (mean_2 - a[1]) ** 2 + (nodes[:, None] - b[0]) ** 2 + (nodes - b[1]) ** 2
    logarithm = -strength * excess - localization * distance / 2 - np.log(determinant) / 2
    density = np.exp(logarithm - logarithm.max()) * np.outer(weights, weights)
    return float(strength * (density * (excess + spread_of_a)).sum() / density.sum())


def binned(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Means of x and y over narrow bins of x, and the share of samples in each; few samples as they are."""
    if len(x) <= BINS:
        return x, y, np.full(len(x), 1 / len(x))
    widest = float(np.abs(x).max())
    place = np.minimum(((x / widest + 1) / 2 * BINS).astype(np.int64), BINS - 1)  # an even number: 0 is an edge
    count = np.bincount(place, minlength=BINS)
    full = count > 0
    means = [np.bincount(place, values, BINS)[full] / count[full] for values in (x, y)]
    return means[0], means[1], count[full] / len(x)


def panels(wall: float) -> tuple[Array, Array]:
    """Gauss–Legendre nodes and weights over b, on panels that halve towards ±1 down to the width of a wall."""
    distances = [REACH]
    while distances[-1] > wall:
        distances.append(distances[-1] / 2)
    above = [1.0, *(1 + distance for distance in distances), *(1 - distance for distance in distances if distance < 1)]
    edges = np.unique([0.0, *above, *(-edge for edge in above)])
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    return (middle[:, None] + half[:, None] * nodes).ravel(), (half[:, None] * weights).ravel()


def _activation(values: Array, relu: bool) -> Array:
    return np.maximum(values, 0.0) if relu else np.tanh(values)
