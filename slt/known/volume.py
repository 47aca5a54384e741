"""Learning coefficients from volumes alone: V(ε) = vol{K < ε} over many decades, by multilevel splitting.

Nothing here is shared with the estimators: no gradient, no temperature, no chain of theirs.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Array = NDArray[np.float64]

# A fifth of the particles survives a level: fewer evaluations per nat of log V than with gentler levels.
SURVIVING_SHARE = 0.2
# ... but log ε falls by no more than this at once, so that a small λ still gets a dozen levels.
LARGEST_FALL = 3.0
# ... and by no less, or the particles have stopped moving: λ would be above 30.
LEAST_FALL = 0.05
# The first levels still see the box and the higher terms of K.
DISCARDED_SHARE = 0.35
# Bins of one nat of the scales of proposals, downwards from e times the width of the box (or the difference).
LARGEST_LOG_SCALE = 1.0
# Below this, K of an order-one network is a difference of rounding errors.
LEAST_LOG_EPSILON = -60.0
MINIMUM_PARTICLES = 100
LARGEST_DIM_OF_SETS = 7
# With two seeds the error of λ̂ is then about 0.4 % at λ = 1; c₀ is fitted at the cost of twice the error.
PLAIN_PARTICLES, LOGARITHM_PARTICLES = 4000, 8000


@dataclass(frozen=True)
class VolumeSlope:
    r"""λ from the scaling of volumes, V(ε) ~ c ε^λ (−log ε + c₀)^{m−1}.

    Attributes:
        slope: λ̂: slope of log V − (m − 1) log(−log ε + c₀) against log ε over the last 65 % of the levels, all seeds
            together, with c₀ fitted where m > 1.
        raw_slope: The same without the logarithm: below λ where m > 1, by about (m − 1)/(−log ε).
        spread: Standard error of ``slope`` as seen by the seeds, standard deviation/√seeds: with two, half their
            difference. It cannot see what all seeds share, the bias of finite ε (1–2 %) and of slow mixing. NaN for
            one seed.
        log_epsilon: Per seed the levels log ε, descending, ``(levels,)``; the first is the largest K that was met.
        log_volume: Per seed log V at those levels, ``(levels,)``, V being a share of the box, or of its prior mass.
        log_offset: c₀; NaN where m = 1.
        seconds: Wall time.
        num_evaluations: Of K, at one particle each.
        acceptance: Share of the proposals that were accepted.
    """

    slope: float
    raw_slope: float
    spread: float
    log_epsilon: tuple[Array, ...] = field(repr=False)
    log_volume: tuple[Array, ...] = field(repr=False)
    log_offset: float
    seconds: float
    num_evaluations: int
    acceptance: float


def volume_slope(
    target: Any,
    *,
    anchor: Sequence[float] | Tensor | None = None,
    radius: float | None = None,
    multiplicity: int | None = None,
    chart: Any = None,
    log_prior: Function | None = None,
    lower: float | Sequence[float] | Tensor | None = None,
    num_particles: int | None = None,
    num_sweeps: int = 2,
    last_log_epsilon: float = -40.0,
    seeds: Sequence[int] = (0, 1),
) -> VolumeSlope:
    r"""The slope of log V(ε) against log ε, which is λ as ε → 0, without any estimator.

    .. math:: V(\epsilon) = \operatorname{vol}\{\|w - w^*\|_\infty < R,\; K(w) < \epsilon\}
              \sim c\, \epsilon^\lambda (-\log \epsilon)^{m-1}

    Particles start uniform in the box and descend through levels of ε. At each, the share that lies below the next
    level is one factor of V; those are resampled and moved by Markov chains that leave the uniform law on
    {K < ε} invariant. The increments of log V are independent with variance (1 − p)/(pN), by which they are weighted.

    A slope that disagrees is not yet evidence against λ: where thin curved level sets are hard to move on, give a
    ``chart``. Repeat with more sweeps to see.

    Args:
        target: K, ``(particles, dim) → (particles,)`` in float64, zero at the anchor; or an object with the attributes
            ``excess_flat`` (that function), ``anchor``, ``radius``, ``multiplicity`` and, where they apply, ``chart``,
            ``log_prior`` and ``lower``, such as a :class:`slt.known.Case`. What is given here goes before attributes.
        anchor: w*, ``(dim,)``.
        radius: Half-width R of the box, which should hold no stratum with a smaller λ.
        multiplicity: m; 1 by default. With a wrong m the slope is wrong too.
        chart: None, or an object with ``to_weights``, ``(particles, dim) → (particles, dim)``, taking the origin to w*
            with a nonzero Jacobian, and ``radius``. The box is then one of its coordinates; λ and m are the same.
        log_prior: ``(particles, dim) → (particles,)``, log density of the prior up to a constant; None for a flat one.
        lower: Lower bounds of the weights, one or ``(dim,)``: the box is cut there. Not together with a chart.
        num_particles: N, of each seed; 4000 by default, and 8000 where m > 1. With two seeds the standard error of λ̂ is
            at best about √(0.05 λ/N), and twice that where m > 1, since c₀ is fitted too.
        num_sweeps: Through all kinds of moves, per level.
        last_log_epsilon: log ε at the last level, in nats: deeper has less bias and costs in proportion.
        seeds: One run each; a run repeats bitwise from its seed.

    Returns:
        The slope and the volumes.

    Raises:
        ValueError: An argument is missing or out of range, or K is not a function as described.
        RuntimeError: The particles stopped moving on the way down.

    Source:
        Watanabe 2009, §7.1 (volume and zeta function); Cérou, Del Moral, Furon & Guyader 2012 (multilevel splitting).
    """
    started = time.perf_counter()
    excess = getattr(target, "excess_flat", target)
    elsewhere = anchor is not None or radius is not None
    anchor = getattr(target, "anchor", None) if anchor is None else anchor
    radius = getattr(target, "radius", None) if radius is None else radius
    multiplicity = getattr(target, "multiplicity", 1) if multiplicity is None else multiplicity
    chart = getattr(target, "chart", None) if chart is None else chart
    _require(
        chart is None or not elsewhere or not hasattr(target, "excess_flat"), "chart", chart,
        "none beside an anchor or a radius of its own: coordinates start at the case's anchor and have a radius; "
        "dataclasses.replace(case, chart=None) leaves them out",
    )  # fmt: skip
    log_prior = getattr(target, "log_prior", None) if log_prior is None else log_prior
    lower = getattr(target, "lower", None) if lower is None else lower
    _require(callable(excess), "target", target, "a function of weights, or an object with the attribute excess_flat")
    _require(anchor is not None, "anchor", anchor, "the weights w*, since the target has none")
    _require(radius is not None and 0 < radius < math.inf, "radius", radius, "a positive half-width of the box")
    _require(_whole(multiplicity, 1), "multiplicity", multiplicity, "a whole number of at least 1")
    power = int(multiplicity or 1) - 1  # of the logarithm
    num_particles = (PLAIN_PARTICLES if power == 0 else LOGARITHM_PARTICLES) if num_particles is None else num_particles
    _require(_whole(num_particles, MINIMUM_PARTICLES), "num_particles", num_particles, f"at least {MINIMUM_PARTICLES}")
    _require(_whole(num_sweeps, 1), "num_sweeps", num_sweeps, "a whole number of at least 1")
    _require(
        LEAST_LOG_EPSILON <= last_log_epsilon < 0,
        "last_log_epsilon",
        last_log_epsilon,
        f"between {LEAST_LOG_EPSILON:g}, where rounding takes over, and 0",
    )
    _require(
        len(seeds) > 0 and len(set(seeds)) == len(seeds) and all(_whole(seed, 0) for seed in seeds),
        "seeds",
        seeds,
        "distinct whole numbers, at least one",
    )
    with torch.no_grad():
        law = _law(excess, anchor, float(radius), chart, log_prior, lower, math.exp(last_log_epsilon))  # type: ignore[arg-type]
        runs = [_descend(law, num_particles, num_sweeps, last_log_epsilon, int(seed)) for seed in seeds]
    slope, offset = _fit(runs, power)
    raw_slope, _ = _fit(runs, 0)
    each = [_fit([run], power)[0] for run in runs]
    return VolumeSlope(
        slope=slope,
        raw_slope=raw_slope,
        spread=float(np.std(each, ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan,
        log_epsilon=tuple(run.log_epsilon for run in runs),
        log_volume=tuple(run.log_volume for run in runs),
        log_offset=offset,
        seconds=time.perf_counter() - started,
        num_evaluations=sum(run.num_evaluations for run in runs),
        acceptance=float(np.mean([run.acceptance for run in runs])),
    )


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}: {value!r}; expected {expected}.")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


class _Law(NamedTuple):
    """K and the prior in the coordinates of the particles, their box, and points ``(points, dim)`` to scale about."""

    excess: Function
    log_prior: Function | None
    low: Tensor
    high: Tensor
    centers: Tensor


class _Run(NamedTuple):
    log_epsilon: Array
    log_volume: Array
    num_evaluations: int
    acceptance: float


def _law(
    excess: Function, anchor: Sequence[float] | Tensor, radius: float, chart: Any, log_prior: Function | None,
    lower: float | Sequence[float] | Tensor | None, smallest: float,
) -> _Law:  # fmt: skip
    center = torch.as_tensor(anchor, dtype=torch.float64).detach()
    _require(center.dim() == 1 and len(center) > 0, "anchor", anchor, "a vector of at least one weight")
    _require(bool(center.isfinite().all()), "anchor", anchor, "finite weights")
    low, high = center - radius, center + radius
    if lower is not None:
        _require(chart is None, "lower", lower, "None beside a chart, whose box has no such bounds")
        bound = torch.as_tensor(lower, dtype=torch.float64)
        _require(
            bound.shape in {(), center.shape}, "lower", lower, f"one bound, or one for each of {len(center)} weights"
        )
        _require(bool((bound <= center).all()), "lower", lower, "bounds that the anchor fulfils")
        low = torch.maximum(low, bound)
    if chart is not None:
        to_weights = chart.to_weights
        _require(0 < chart.radius < math.inf, "chart.radius", chart.radius, "a positive half-width of the box")
        high = torch.full_like(center, chart.radius)
        center, low = torch.zeros_like(center), -high
        plain_excess, plain_prior = excess, log_prior
        excess = lambda z: plain_excess(to_weights(z))  # noqa: E731
        # The density of w, not of z: they differ by the Jacobian, bounded above and below, which λ and m do not see.
        log_prior = None if plain_prior is None else lambda z: plain_prior(to_weights(z))
    values = excess(center.expand(2, -1).clone())
    _require(
        isinstance(values, Tensor) and values.shape == (2,), "target", excess, "one value per particle (particles,)"
    )
    _require(values.dtype == torch.float64, "target", values.dtype, "values in float64: ε goes down to 1e-17 or less")
    _require(0 <= float(values[0]) < smallest, "target", float(values[0]), f"K at the anchor below {smallest:.1e}")
    # Besides w*, where K is homogeneous, zero: networks of homogeneous activations have their rescalings about it.
    centers = torch.stack([center, torch.zeros_like(center)]) if bool((center != 0).any()) else center.unsqueeze(0)
    return _Law(excess, log_prior, low, high, centers)


def _descend(law: _Law, count: int, sweeps: int, last: float, seed: int) -> _Run:
    """All levels of one population."""
    population = _Population(law, count, last, seed)
    if law.log_prior is not None:
        weights = law.log_prior(population.w)
        population.keep(torch.multinomial((weights - weights.max()).exp(), count, True, generator=population.generator))
        population.move(math.inf, sweeps)
    _require(
        bool(population.k.isfinite().all() and (population.k >= 0).all()),
        "target", law.excess, "finite K of at least zero everywhere in the box; a smaller radius may help",
    )  # fmt: skip
    log_epsilon, log_volume = [math.log(max(float(population.k.max()), math.exp(last)))], [0.0]
    _require(
        log_epsilon[0] - last > 5 * LARGEST_FALL,
        "last_log_epsilon", last, f"five levels or more below the largest log K in the box, {log_epsilon[0]:.1f}",
    )  # fmt: skip
    while log_epsilon[-1] > last:
        fall = max(log_epsilon[-1] - LARGEST_FALL, last)
        epsilon = max(math.exp(fall), float(population.k.quantile(SURVIVING_SHARE)))
        if epsilon > math.exp(fall) and log_epsilon[-1] - math.log(epsilon) < LEAST_FALL:
            raise RuntimeError(
                f"The particles stopped moving at log ε = {log_epsilon[-1]:.1f}: the level sets are thin and curved. "
                "Give a chart adapted to K, more particles and sweeps, or a higher last_log_epsilon."
            )
        survivors = torch.nonzero(population.k < epsilon)[:, 0]
        log_epsilon.append(fall if epsilon == math.exp(fall) else math.log(epsilon))
        log_volume.append(log_volume[-1] + math.log(len(survivors) / count))
        population.resample(survivors)
        population.move(epsilon, sweeps)
    return _Run(
        np.array(log_epsilon), np.array(log_volume), population.evaluations, population.accepted / population.tried
    )


class _Population:
    """Particles of the prior law on the box and {K < ε}."""

    def __init__(self, law: _Law, count: int, last: float, seed: int):
        self.law = law
        self.generator = torch.Generator().manual_seed(seed)
        self.proposals = _Proposals(law.high - law.low, law.centers, last, self.generator)
        self.w = law.low + (law.high - law.low) * self.proposals.uniform(count, len(law.low))
        self.k = law.excess(self.w)
        self.evaluations, self.accepted, self.tried = count, 0, 0

    def keep(self, chosen: Tensor) -> None:
        self.w, self.k = self.w[chosen], self.k[chosen]

    def resample(self, survivors: Tensor) -> None:
        """Fill the population with copies of survivors, as equally as can be, in random order."""
        count = len(self.w)
        start = self.proposals.uniform(1)
        places = ((start + torch.arange(count)) * (len(survivors) / count)).long().clamp_(max=len(survivors) - 1)
        survivors = survivors[torch.randperm(len(survivors), generator=self.generator)]
        # Random order over all: copies of one particle must not all lie in the same half.
        self.keep(survivors[places][torch.randperm(count, generator=self.generator)])

    def move(self, epsilon: float, sweeps: int) -> None:
        """Leave the law on {K < ε} invariant, and forget where the particles came from."""
        count = len(self.w)
        first, second = slice(0, count // 2), slice(count // 2, count)
        for _ in range(sweeps):
            for kind, name in enumerate(self.proposals.kinds):
                if name in DIFFERENCES:
                    # Each half is held fixed while the other moves along its differences.
                    self._update(first, kind, self.w[second], epsilon)
                    self._update(second, kind, self.w[first], epsilon)
                else:
                    for _ in range(self.proposals.rounds if name in SCALINGS else 1):
                        self._update(slice(0, count), kind, self.w, epsilon)
        self.proposals.learn()

    def _update(self, part: slice, kind: int, other: Tensor, epsilon: float) -> None:
        law, w = self.law, self.w[part]
        proposed, log_ratio, cells = self.proposals.draw(kind, w, other)
        inside = ((proposed >= law.low) & (proposed <= law.high)).all(-1)
        proposed = torch.where(inside.unsqueeze(-1), proposed, w)
        k = law.excess(proposed)
        _require(not bool((k < 0).any()), "target", float(k.min()), "K of at least zero everywhere in the box")
        accepted = inside & (k < epsilon)
        if law.log_prior is not None:
            log_ratio = log_ratio + law.log_prior(proposed) - law.log_prior(w)
        accepted &= self.proposals.uniform(len(w)).log() < log_ratio
        self.w[part] = torch.where(accepted.unsqueeze(-1), proposed, w)
        self.k[part] = torch.where(accepted, k, self.k[part])
        self.proposals.record(kind, cells, accepted)
        self.evaluations += len(w)
        self.accepted += int(accepted.sum())
        self.tried += len(w)


SCALINGS = ("scaling about the anchor", "scaling about zero")
DIFFERENCES = ("difference", "difference of neighbours", "difference in a subset")


class _Proposals:
    """Moves on many scales, the mix of which is learnt from the levels before.

    *Increments* are Gaussian along one coordinate, along a random direction, or in a random subset of the coordinates;
    or a multiple, Gaussian too, of the difference of two particles of the other half. Their law is symmetric about zero
    and depends neither on the particle that moves nor on others of its half: accepting where K < ε in the box is a
    Metropolis step with a symmetric proposal. *Scalings* multiply some coordinates of w − c by e^t and others by e^−t,
    c being w* or zero and t symmetric about zero: a group of maps, accepted with their Jacobian. They follow tubes and
    cones such as a₁b₁ + a₂b₂ = 0, which increments leave at once. Both leave the law on {K < ε} invariant, with a prior
    after multiplication by the ratio of its densities. The table that scales are drawn from is fixed during a level.

    Singular level sets have every scale between √ε and the box: hence a scale per particle, not one for all.
    """

    def __init__(self, width: Tensor, centers: Tensor, last: float, generator: torch.Generator):
        self.width, self.centers, self.generator = width, centers, generator
        dim = len(width)
        self.kinds = [*range(dim), "direction", "difference", "difference of neighbours"]
        if dim > 1:
            self.kinds += ["subset", "difference in a subset"]
        self.kinds += SCALINGS[: len(centers)]
        # For two tanh units at the origin this many scalings, not one, brought the scatter of λ̂ from 2.2 % to 0.8 %.
        self.rounds = math.ceil(2 * dim / len(centers))
        # The stiffest direction has the scale √ε of the last level, at a slope of e⁵ per width of the box.
        self.bins = math.ceil(-last / 2) + 5
        self.signs = _signs(dim)
        rows = [len(self.signs) if kind in SCALINGS else 1 for kind in self.kinds]
        self.accepted = [torch.zeros(count * self.bins, dtype=torch.float64) for count in rows]
        self.tried = [torch.zeros_like(cells) for cells in self.accepted]
        self.learn()

    def learn(self) -> None:
        """Draw most what is accepted now and then: what always is moves nothing, and what never is moves nowhere."""
        self.cumulative = []
        for kind, accepted, tried in zip(self.kinds, self.accepted, self.tried, strict=True):
            if kind in SCALINGS:
                # Of many patterns of signs few follow the level sets: those that can make long moves.
                length = (LARGEST_LOG_SCALE - torch.arange(self.bins, dtype=torch.float64)).exp().clamp(max=1)
                rate = (accepted + 0.05) / (tried + 2)
                weights = (rate * length.repeat(len(self.signs))) + 1e-4 / len(rate)
            else:
                rate = (accepted + 0.5) / (tried + 1)
                weights = (1 - rate) * (rate + 0.04)
            self.cumulative.append((weights / weights.sum()).cumsum(-1))
            accepted *= 0.5
            tried *= 0.5

    def record(self, kind: int, cells: Tensor, accepted: Tensor) -> None:
        """Count what was accepted."""
        count = len(self.tried[kind])
        self.tried[kind] += torch.bincount(cells, minlength=count)
        self.accepted[kind] += torch.bincount(cells, weights=accepted.double(), minlength=count)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def draw(self, kind: int, w: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Proposals of a kind ``(particles, dim)``, their log Jacobians and cells of its table, ``(particles,)``."""
        count, name = len(w), self.kinds[kind]
        cells = torch.searchsorted(self.cumulative[kind], self.uniform(count)).clamp_(max=len(self.tried[kind]) - 1)
        size = (LARGEST_LOG_SCALE - cells % self.bins - self.uniform(count)).exp() * self.normal(count)
        if name in SCALINGS:
            center = self.centers[SCALINGS.index(name)]
            exponents = size.unsqueeze(-1) * self.signs[cells // self.bins]
            return center + (w - center) * exponents.exp(), exponents.sum(-1), cells
        return w + self._increments(name, size.unsqueeze(-1), other), torch.zeros_like(size), cells

    def _increments(self, name: int | str, size: Tensor, other: Tensor) -> Tensor:
        count, dim = len(size), len(self.width)
        if isinstance(name, int):
            return size * torch.zeros(dim, dtype=torch.float64).index_fill(0, torch.tensor([name]), self.width[name])
        subset = torch.ones(dim, dtype=torch.float64)
        if "subset" in name:
            members = int(torch.randint(2, dim + 1, (1,), generator=self.generator))
            subset[torch.randperm(dim, generator=self.generator)[members:]] = 0
        if name not in DIFFERENCES:
            return size * self.normal(count, dim) * (self.width * subset)
        first = torch.randint(0, len(other), (count,), generator=self.generator)
        if name == "difference of neighbours":
            place = int(torch.randint(0, dim, (1,), generator=self.generator))
            other = other[other[:, place].argsort()]
            gap = (self.uniform(count) * math.log(len(other) / 4)).exp().long()
        else:
            gap = torch.randint(1, len(other), (count,), generator=self.generator)
        return size * (other[first] - other[(first + gap) % len(other)]) * subset


def _signs(dim: int) -> Tensor:
    """Patterns ``(patterns, dim)`` of +1, −1 and 0: sets of one sign, all or the small ones, and opposed pairs."""
    sizes = range(1, dim + 1) if dim <= LARGEST_DIM_OF_SETS else (1, 2, dim)
    sets = [members for size in sizes for members in itertools.combinations(range(dim), size)]
    rows = torch.zeros(len(sets) + math.comb(dim, 2), dim, dtype=torch.float64)
    for row, members in zip(rows, sets, strict=False):
        row[list(members)] = 1
    for row, (first, second) in zip(rows[len(sets) :], itertools.combinations(range(dim), 2), strict=True):
        row[first], row[second] = 1, -1
    return rows


def _fit(runs: Sequence[_Run], power: int) -> tuple[float, float]:
    """λ̂ and c₀ by weighted least squares on the increments of log V, which are independent of each other."""
    log_epsilon, log_volume = [], []
    for run in runs:
        start = round(DISCARDED_SHARE * (len(run.log_epsilon) - 1))
        log_epsilon.append(run.log_epsilon[start:])
        log_volume.append(run.log_volume[start:])
    falls = -np.concatenate([np.diff(values) for values in log_epsilon])
    losses = -np.concatenate([np.diff(values) for values in log_volume])
    # The variance (1 − p)/(pN) with p = exp(−λ · fall) of a first fit: with the p observed, low ones would weigh less.
    variances = np.expm1(max(losses.sum() / falls.sum(), 0.05) * falls)

    def slope(values: Array) -> float:
        return float((falls * values / variances).sum() / (falls**2 / variances).sum())

    if power == 0:
        return slope(losses), math.nan
    # −log ε + c₀ is counted from the top of the box, where it should be of order one; half and twice the depth at which
    # the fit starts bound it, since its noise would otherwise find its way into λ.
    top = float(np.mean([run.log_epsilon[0] for run in runs]))
    depth = top - float(np.mean([values[0] for values in log_epsilon]))

    def corrected(offset: float) -> Array:
        gains = np.concatenate([np.diff(np.log(offset - values)) for values in log_epsilon])
        return losses + power * gains

    def misfit(offset: float) -> float:
        values = corrected(offset)
        return float((((values - slope(values) * falls) ** 2) / variances).sum())

    offsets = np.linspace(top - depth / 2, top + depth, 400)
    best = float(min(offsets, key=misfit))
    return slope(corrected(best)), best
