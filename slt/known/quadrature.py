"""Means under a tempered law in at most three dimensions, by adaptive cubature that knows when it has failed.

The integrand exp(−nβK) has thin crosses and curved valleys, of widths from 1 down to 1/√nβ, which every node of a mesh
can miss. They are found by annealing: at a small nβ the valleys are wide, so that any mesh sees them; the mesh is
refined until it resolves that law, then nβ grows fourfold, a valley becomes at most half as wide, and the mesh follows.
At the last nβ the mesh is refined for accuracy. All of this is done twice, from two different first meshes.

K is at least zero and zero at the anchor, so that the integrand lies in [0, 1] and reaches 1: subtracting the greatest
logarithm before exponentiating, as is done for general log densities, would subtract zero. It cannot overflow, and what
underflows is below 1e-308 of the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NODES = {1: 16, 2: 12, 3: 12}  # per axis, by dimension: the fewest evaluations over crosses, cusps and kinks
FIRST_LEVELS = {1: 12, 2: 6, 3: 3}  # halvings towards the anchor; annealing refines further where that is needed
SCAN = {1: 256, 2: 8, 3: 2}  # equal parts of either side in the second first mesh: narrower dips are not seen
GOLDEN = (5**0.5 - 1) / 2  # shares no face with halving
CHUNK = 2**18  # points evaluated at once: 2 MB per column
LADDER_RATIO = 4.0
UNTOUCHED = 0.9  # of the mass under the localiser alone is left at the first nβ of the ladder
ROUGHNESS = 0.2  # the two highest Legendre coefficients of a resolved cell, relative to its mean
NEGLIGIBLE = 1e-2  # of the tolerance: unresolved cells that hold less than this together are left so while annealing
FLOOR = 1e-13  # relative error that rounding leaves in sums
TINY = 1e-300  # instead of zero in a denominator
ROUNDING = 1e-9  # nβK above minus this counts as zero


class QuadratureError(ArithmeticError):
    """An integral could not be computed to the accuracy asked for, or two computations of it disagree."""


@dataclass(frozen=True)
class TemperedLaw:
    r"""The law of which a mean is wanted, in coordinates y about the anchor.

    .. math:: p(y) \propto \prod_i |y_i|^{p_i} \exp(-n\beta K(w^* + y) - \tfrac{\gamma}{2} \|y\|^2), \qquad
              y_i \in [l_i, u_i]

    Attributes:
        excess: K, ``(points, d) → (points,)``, float64, at least zero.
        n_beta: nβ.
        localization: γ.
        anchor: w*, ``(d,)``, where K is zero.
        powers: p_i, ``(d,)``; the anchor is zero wherever the power is not.
        lower: l, ``(d,)``, at most zero.
        upper: u, ``(d,)``, above zero.
    """

    excess: Callable[[Tensor], Tensor]
    n_beta: float
    localization: float
    anchor: Tensor
    powers: Tensor
    lower: Tensor
    upper: Tensor


class Mean(NamedTuple):
    """nβ·E[K] and how far it can be trusted.

    Attributes:
        value: nβ·E[K].
        error: Bound on its error, from the differences between generations of cells.
        normalizer: Z, the integral of the unnormalised density.
        num_evaluations: Points at which K was computed.
    """

    value: float
    error: float
    normalizer: float
    num_evaluations: int


class _Cells(NamedTuple):
    """Boxes, both ``(cells, d)``."""

    low: Tensor
    width: Tensor

    def take(self, chosen: Tensor | slice) -> _Cells:
        """Some of them."""
        return _Cells(self.low[chosen], self.width[chosen])

    def halves(self, axis: Tensor) -> _Cells:
        """Each cut in two across its axis ``(cells,)``; the two halves of a cell follow one another."""
        rows = torch.arange(len(axis))
        width = self.width.clone()
        width[rows, axis] /= 2
        second = self.low.clone()
        second[rows, axis] += width[rows, axis]
        return _Cells(torch.stack([self.low, second], 1).flatten(0, 1), width.repeat_interleave(2, 0))


class _Moments(NamedTuple):
    """Integrals over cells: of the density and of nβK times it, ``(cells,)``, and roughness ``(cells, d)``."""

    mass: Tensor
    energy: Tensor
    roughness: Tensor


def tempered_mean(law: TemperedLaw, tolerance: float, max_evaluations: int) -> Mean:
    """nβ·E[K], from two first meshes that have no cell in common; the second is the finer one.

    What it cannot see is a dip of K that is isolated and narrower than the second of them, about 1/4000 of the reach of
    the localiser in one dimension, 1/100 in two and 1/25 in three: one that no lesser nβ makes wide.

    Args:
        law: The law.
        tolerance: Greatest error, relative to the value.
        max_evaluations: Points at which K may be computed, both computations together. K of the cells of the annealed
            mesh is kept, so that this also bounds the memory, to 8 bytes for each.

    Returns:
        The mean from the second; its error is the greater of the two error bounds plus the difference of the means.

    Raises:
        QuadratureError: The evaluations do not suffice, or the two computations differ by more than their errors.
        ValueError: K is negative, not finite or of the wrong shape somewhere.
    """
    # Two errors and a difference of at most their sum are to stay within the tolerance.
    share = tolerance / 4
    levels = FIRST_LEVELS[len(law.anchor)]
    first = _Cubature(law, max_evaluations, 0).mean(_first_mesh(law, levels, 0.5), share)
    finer = _first_mesh(law, round(1.5 * levels), GOLDEN, SCAN[len(law.anchor)])
    second = _Cubature(law, max_evaluations, first.num_evaluations).mean(finer, share)
    difference, floor = abs(first.value - second.value), FLOOR * second.value
    if difference > first.error + second.error + floor:
        raise QuadratureError(
            f"Two computations of nβ·E[K] from different meshes gave {first.value:.10g} ± {first.error:.1g} and "
            f"{second.value:.10g} ± {second.error:.1g}: neither can be trusted. K has features that a mesh misses, "
            "such as jumps or isolated narrow dips; split it into blocks, or localise it more."
        )
    return second._replace(error=max(first.error, second.error) + difference + floor)


def _first_mesh(law: TemperedLaw, levels: int, ratio: float, scan: int = 1) -> _Cells:
    """Cells that shrink geometrically towards the anchor on every axis, with the weights' zeros as faces too.

    Args:
        law: The law.
        levels: Steps of the shrinking.
        ratio: Of the distances of faces from the anchor, from one step to the next.
        scan: Equal parts of either side of each axis that are faces as well.

    Returns:
        The cells.
    """
    axes = []
    for low, high, anchor in zip(law.lower.tolist(), law.upper.tolist(), law.anchor.tolist(), strict=True):
        steps = np.concatenate([ratio ** np.arange(levels + 1), np.arange(1, scan) / scan])
        # Networks have kinks and symmetries where a weight is zero, wherever the anchor is.
        zero = [-anchor] if low < -anchor < high else []
        faces = np.unique(np.concatenate([low * steps, [0.0], high * steps, zero]))
        axes.append((torch.from_numpy(faces[:-1]), torch.from_numpy(np.diff(faces))))
    starts, widths = zip(*axes, strict=True)
    dim = len(axes)
    return _Cells(
        torch.cartesian_prod(*starts).reshape(-1, dim).double(), torch.cartesian_prod(*widths).reshape(-1, dim).double()
    )


class _Cubature:
    """One computation: the rule, the law, and the count of evaluations."""

    def __init__(self, law: TemperedLaw, max_evaluations: int, spent: int):
        self.law = law
        self.dim = len(law.anchor)
        self.order = NODES[self.dim]
        self.max_evaluations = max_evaluations
        self.before, self.spent = spent, spent
        nodes, weights = np.polynomial.legendre.leggauss(self.order)
        self.nodes = torch.from_numpy((1 + nodes) / 2)
        self.weights = torch.from_numpy(weights / 2)
        degrees = np.arange(self.order - 2, self.order)
        highest = np.polynomial.legendre.legvander(nodes, self.order - 1)[:, degrees] * (2 * degrees + 1)
        self.highest = torch.from_numpy(highest)  # (order, 2): weighted values to coefficients relative to their mean

    def mean(self, mesh: _Cells, tolerance: float) -> Mean:
        """nβ·E[K] from this first mesh."""
        return self._refine(*self._anneal(mesh, tolerance), tolerance)

    def _anneal(self, cells: _Cells, tolerance: float) -> tuple[_Cells, Tensor]:
        """A mesh that resolves the law, roughly, wherever it has mass; and K at its nodes."""
        excess = self._excess(cells)
        n_beta = self._start(cells, excess)
        while True:
            moments = self._moments(cells, excess, n_beta)
            mass = moments.mass.sum()
            # Every pass looks only at the cells that are new since the last one.
            fresh = torch.arange(len(moments.mass))
            while True:
                rough, axis = moments.roughness.max(1)
                size = moments.mass + moments.energy
                unresolved = (rough > ROUGHNESS * size) & _largest(size, NEGLIGIBLE * tolerance * mass)
                cut = fresh[unresolved]
                if not len(cut):
                    break
                halves = cells.take(cut).halves(axis[unresolved])
                values = self._excess(halves)
                kept = torch.ones(len(cells.low), dtype=torch.bool)
                kept[cut] = False
                old = int(kept.sum())
                cells = _Cells(*(torch.cat([a[kept], b]) for a, b in zip(cells, halves, strict=True)))
                excess = torch.cat([excess[kept], values])
                fresh = torch.arange(old, len(cells.low))
                moments = self._moments(halves, values, n_beta)
            if n_beta >= self.law.n_beta:
                return cells, excess
            n_beta = min(LADDER_RATIO * n_beta, self.law.n_beta)

    def _start(self, cells: _Cells, excess: Tensor) -> float:
        """The greatest nβ of the ladder at which the law still is nearly the localiser."""
        n_beta = self.law.n_beta
        whole = float(self._moments(cells, torch.zeros_like(excess), n_beta).mass.sum())
        while float(self._moments(cells, excess, n_beta).mass.sum()) < UNTOUCHED * whole:
            n_beta /= LADDER_RATIO
        return n_beta

    def _refine(self, cells: _Cells, excess: Tensor, tolerance: float) -> Mean:
        """Cuts cells until the differences between parents and their halves add up to less than the tolerance."""
        found = self._moments(cells, excess, self.law.n_beta)
        mass, energy = found.mass, found.energy
        value = energy.sum() / mass.sum()
        # At first nothing is known but what a cell holds: what is all but empty is done with, its content being error.
        error = energy + value * mass
        done_mass = done_energy = done_error = torch.zeros((), dtype=torch.float64)
        while True:
            allowed = tolerance * (done_energy + energy.sum())
            left = done_error + error.sum()
            if left <= allowed:
                normalizer = float(done_mass + mass.sum())
                return Mean(float(value), float(left) / normalizer, normalizer, self.spent)
            kept = _largest(error, (allowed - done_error) / 2)
            done_mass, done_energy, done_error = (
                done + part[~kept].sum()
                for done, part in ((done_mass, mass), (done_energy, energy), (done_error, error))
            )
            both = kept.repeat_interleave(len(found.mass) // len(kept))
            parent = _Moments(*(part[both] for part in found))
            cells = cells.take(both).halves(parent.roughness.argmax(1))
            found = self._moments(cells, None, self.law.n_beta, float(value))
            mass, energy = found.mass.view(-1, 2).sum(1), found.energy.view(-1, 2).sum(1)
            value = (done_energy + energy.sum()) / (done_mass + mass.sum())
            # Halving shows the error along the roughest axis alone; that along all of them is of second order in
            # roughness: Gauss quadrature errs by ρ^−2q where the coefficients fall like ρ^−k, k < q.
            size = found.energy + float(value) * found.mass
            rest = (found.roughness.square() / size.clamp(min=TINY).unsqueeze(1)).sum(1).view(-1, 2).sum(1)
            error = (parent.energy - energy).abs() + value * (parent.mass - mass).abs() + rest

    def _moments(self, cells: _Cells, excess: Tensor | None, n_beta: float, offset: float = 1.0) -> _Moments:
        """Integrals over cells, in chunks.

        Args:
            cells: Of the mesh.
            excess: K at their nodes; None to compute it and not keep it.
            n_beta: nβ.
            offset: Roughness is that of (nβK + offset) times the density.

        Returns:
            Mass, energy and roughness.
        """
        if excess is None:
            self._spend(len(cells.low))
        parts = []
        for chunk in self._chunks(len(cells.low)):
            some = cells.take(chunk)
            energy = n_beta * (self._evaluate(some) if excess is None else excess[chunk])
            density = torch.exp(-energy) * self._measure(some)
            energy = energy * density
            # Integrated over the other axes first, a diagonal valley would look smooth along each: absolute values.
            grid = (energy + offset * density).reshape(-1, *[self.order] * self.dim)
            rough = [
                (grid.movedim(axis + 1, -1) @ self.highest).abs().flatten(1).sum(1) for axis in range(self.dim)
            ]  # fmt: skip
            parts.append((density.sum(1), energy.sum(1), torch.stack(rough, 1)))
        return _Moments(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _measure(self, cells: _Cells) -> Tensor:
        """Quadrature weights times ∏|y_i|^{p_i} exp(−γ/2 ‖y‖²), ``(cells, nodes)``."""
        y = cells.low.unsqueeze(-1) + cells.width.unsqueeze(-1) * self.nodes  # (cells, d, order)
        factors = cells.width.unsqueeze(-1) * self.weights * torch.exp(-self.law.localization / 2 * y.square())
        factors = factors * y.abs() ** self.law.powers.unsqueeze(-1)
        product = factors[:, 0]
        for axis in range(1, self.dim):
            product = (product.unsqueeze(-1) * factors[:, axis].unsqueeze(-2)).flatten(1)
        return product

    def _excess(self, cells: _Cells) -> Tensor:
        """K at the nodes of cells, ``(cells, nodes)``."""
        self._spend(len(cells.low))
        return torch.cat([self._evaluate(cells.take(chunk)) for chunk in self._chunks(len(cells.low))])

    def _evaluate(self, cells: _Cells) -> Tensor:
        """K at the nodes of the cells of one chunk."""
        axes = torch.meshgrid(*[self.nodes] * self.dim, indexing="ij")
        unit = torch.stack(axes, -1).reshape(-1, self.dim)
        points = self.law.anchor + cells.low.unsqueeze(1) + cells.width.unsqueeze(1) * unit
        values = checked_excess(self.law.excess, points.flatten(0, 1), self.law.n_beta)
        return values.view(len(cells.low), -1)

    def _spend(self, cells: int) -> None:
        """Count evaluations, or refuse them."""
        self.spent += cells * self.order**self.dim
        if self.spent > self.max_evaluations:
            earlier = f", {self.before:,} of them for a first computation" if self.before else ""
            raise QuadratureError(
                f"max_evaluations: {self.max_evaluations:,} are too few, {self.spent:,} or more are needed{earlier}; "
                "no value can be trusted. Allow more or a greater tolerance, or split K into blocks of fewer "
                "coordinates."
            )

    def _chunks(self, cells: int) -> Iterator[slice]:
        """Slices of as many cells as are evaluated at once."""
        step = max(1, CHUNK // self.order**self.dim)
        return (slice(start, start + step) for start in range(0, cells, step))


def checked_excess(excess: Callable[[Tensor], Tensor], points: Tensor, n_beta: float) -> Tensor:
    """K at points, made sure to be what was promised.

    Args:
        excess: ``(points, d) → (points,)``.
        points: ``(points, d)``, float64.
        n_beta: nβ, the scale on which rounding below zero is forgiven.

    Returns:
        K, at least zero, ``(points,)``.

    Raises:
        ValueError: K is not a float64 tensor of that shape, not finite or negative.
    """
    with torch.no_grad():
        values = excess(points)
    if not isinstance(values, Tensor) or values.shape != points.shape[:-1] or values.dtype != torch.float64:
        got = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"excess: gave {got} at points of shape {tuple(points.shape)}; expected a float64 tensor of shape "
            f"{tuple(points.shape[:-1])}, one value per point."
        )
    if not bool(values.isfinite().all()):
        where = points[~values.isfinite()][0].tolist()
        raise ValueError(
            f"excess: K = {float(excess(points[~values.isfinite()][:1]))} at w = {where}; expected finite."
        )
    if len(values) and float(n_beta * values.min()) < -ROUNDING:
        where = points[values.argmin()].tolist()
        raise ValueError(
            f"excess: K = {float(values.min()):.6g} at w = {where}; expected at least 0, the value at the anchor. "
            "An excess loss is taken from a minimum: subtract the least loss, or move the anchor there."
        )
    return values.clamp(min=0)


def _largest(errors: Tensor, allowed: Tensor) -> Tensor:
    """True for all but the smallest errors, whose sum stays within what is allowed."""
    order = errors.argsort()
    fits = errors[order].cumsum(0) <= allowed
    kept = torch.ones(len(errors), dtype=torch.bool)
    kept[order[fits]] = False
    return kept
