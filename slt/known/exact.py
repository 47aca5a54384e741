"""nβ·E[K] at finite temperature, exactly: what λ̂ estimates, by closed forms and quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from scipy.special import gammainc, gammaincc
from torch import Tensor

from slt.known.block import MAXIMUM_COORDINATES, Block
from slt.known.quadrature import QuadratureError, TemperedLaw, checked_excess, tempered_mean

TAIL = 45.0  # γR²/2 at the edge of the box that stands for the whole space, at least: e^−45 is 3e-20
MAX_EVALUATIONS = 50_000_000
TOLERANCES = (1e-11, 0.1)  # below, rounding; above, the error estimate means little
ANCHOR_EXCESS = 1e-9  # of nβK at w*: above, K is not an excess over w*
PROBES = 64  # points at which a function of norms is made sure to be even


@runtime_checkable
class HasBlocks(Protocol):
    """A case of the registry, for one."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The parts of K."""
        ...


class ExactLLC(NamedTuple):
    """nβ·E[K] under a localised tempered law.

    Attributes:
        value: nβ·E[K], dimensionless.
        error: Bound on its error: zero for closed forms, which are good to rounding.
        method: ``"closed form"``, ``"cubature"``, or both.
        num_evaluations: Points at which K was computed.
    """

    value: float
    error: float
    method: str
    num_evaluations: int


def exact_llc(
    target: Block | Sequence[Block] | HasBlocks | Callable[[Tensor], Tensor],
    n_beta: float,
    localization: float,
    *,
    anchor: Sequence[float] | Tensor | None = None,
    radius: float | None = None,
    tolerance: float = 1e-7,
    max_evaluations: int = MAX_EVALUATIONS,
) -> ExactLLC:
    r"""nβ·E[K] under the localised tempered law, with a bound on its error: what λ̂(nβ, γ) estimates.

    .. math:: p(w) \propto \exp\left(-n\beta K(w) - \tfrac{\gamma}{2} \|w - w^*\|^2\right)

    on all of space, or on the box :math:`\|w - w^*\|_\infty \le R`. A sum of blocks in separate coordinates is the sum
    over them. A block with curvatures h has the closed form ½ Σ nβh/(nβh + γ), and one in terms of incomplete Gamma
    functions in a box; others are integrated numerically, each to the tolerance relative to itself.

    What no quadrature can see: an isolated dip of K narrower than about 1/4000 of the localiser's reach 9.5/√γ in one
    dimension, 1/100 in two and 1/25 in three, and rounding. K must be right to well below 1/nβ: where it is a
    difference of numbers of order one, as 1 − cos w is, nβ must stay below about 1e12.

    Args:
        target: A case, a block, blocks whose sum is K, or a function ``(..., d) → (...)`` of float64 tensors, at least
            zero, with an ``anchor``.
        n_beta: nβ, positive.
        localization: γ, at least zero.
        anchor: w*, d numbers, where K is zero; for functions only.
        radius: R; all of space by default.
        tolerance: Greatest relative error of the numerical integrals, from 1e-11 to 0.1.
        max_evaluations: Points at which K may be computed for one block. Memory is bounded by 8 bytes for each.

    Returns:
        Value, error bound, method and number of evaluations.

    Raises:
        ValueError: An argument is out of its range; K is negative, not finite, not zero at the anchor, or of the wrong
            shape; there is nothing to integrate, or a part of more than three coordinates; a norm in a box; or γ = 0 in
            all of space, unless all is quadratic.
        QuadratureError: No value can be trusted; an ``ArithmeticError``.

    Source:
        Closed form and truncation: Gaussian integrals; cubature: :mod:`slt.known.quadrature`.
    """
    _check_numbers(n_beta, localization, radius, tolerance, max_evaluations)
    blocks = _blocks(target, anchor)
    for block in blocks:
        _check_block(block, n_beta, localization, radius)
    value = error = 0.0
    spent = 0
    for block in blocks:
        if block.curvatures:
            value += sum(_quadratic(h, n_beta, localization, radius) for h in block.curvatures)
            continue
        found = _integrated(block, n_beta, localization, radius, tolerance, max_evaluations)
        value, error, spent = value + found.value, error + found.error, spent + found.num_evaluations
    methods = ("closed form", any(block.curvatures for block in blocks)), ("cubature", spent > 0)
    return ExactLLC(value, error, " and ".join(name for name, used in methods if used), spent)


def _blocks(
    target: Block | Sequence[Block] | HasBlocks | Callable[[Tensor], Tensor], anchor: Sequence[float] | Tensor | None
) -> tuple[Block, ...]:
    """The target as blocks."""
    if callable(target):
        if anchor is None:
            raise ValueError("anchor: None for a function; expected w*, one number per coordinate, where K is zero.")
        numbers = torch.as_tensor(anchor, dtype=torch.float64)
        if numbers.ndim != 1 or len(numbers) == 0 or not bool(numbers.isfinite().all()):
            raise ValueError(f"anchor: {anchor!r}; expected a vector of finite numbers, one per coordinate of w.")
        return (Block(target, tuple(numbers.tolist())),)
    if anchor is not None:
        raise ValueError(f"anchor: {anchor!r} for blocks, which have anchors of their own; leave it out.")
    found = target.blocks if isinstance(target, HasBlocks) else (target,) if isinstance(target, Block) else target
    if not isinstance(found, Sequence) or not all(isinstance(block, Block) for block in found):
        raise ValueError(
            f"target: {type(target).__name__}; expected a case, a Block, a sequence of them, or a function."
        )
    if not found:
        raise ValueError(
            f"target: no blocks. K is not known to fall into parts of at most {MAXIMUM_COORDINATES} coordinates, or "
            "the prior is not flat, or the model not defined everywhere; give blocks, or estimate the value."
        )
    return tuple(found)


def _check_numbers(
    n_beta: float, localization: float, radius: float | None, tolerance: float, max_evaluations: int
) -> None:
    if not (math.isfinite(n_beta) and n_beta > 0):
        raise ValueError(f"n_beta: {n_beta}; expected a positive finite number, n times β.")
    if not (math.isfinite(localization) and localization >= 0):
        raise ValueError(f"localization: {localization}; expected γ, finite and at least 0.")
    if radius is not None and not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius: {radius}; expected a positive finite number, or None for all of space.")
    if not TOLERANCES[0] <= tolerance <= TOLERANCES[1]:
        raise ValueError(f"tolerance: {tolerance}; expected a relative error from {TOLERANCES[0]} to {TOLERANCES[1]}.")
    if max_evaluations < 1:
        raise ValueError(f"max_evaluations: {max_evaluations}; expected a positive number of points.")


def _check_block(block: Block, n_beta: float, localization: float, radius: float | None) -> None:
    """Refuse a block of which there is no mean, or none that can be computed here."""
    if block.curvatures:
        if not all(math.isfinite(h) and h >= 0 for h in block.curvatures):
            raise ValueError(f"curvatures: {block.curvatures}; expected finite numbers of at least 0.")
        if localization == 0 and radius is None and 0 in block.curvatures:
            raise ValueError(
                "localization: 0 and a curvature of 0: the law has no finite mass; give γ > 0, or a radius."
            )
        return
    dim = len(block.anchor)
    if dim > MAXIMUM_COORDINATES:
        raise ValueError(
            f"target: a part of K has {dim} coordinates, and quadrature is for at most {MAXIMUM_COORDINATES}; split it "
            "into blocks, use norms as coordinates where only they enter K, or estimate the value by sampling."
        )
    if dim == 0 or block.excess is None:
        raise ValueError(f"target: {block} has no excess with an anchor, and no curvatures; expected one or the other.")
    if not all(math.isfinite(x) for x in block.anchor):
        raise ValueError(f"anchor: {block.anchor}; expected finite numbers.")
    if localization == 0 and radius is None:
        raise ValueError(
            "localization: 0 without a radius: the law need not have a finite mass; give γ > 0, or a radius."
        )
    if not block.powers:
        return
    if len(block.powers) != dim or any(power < 0 or power != int(power) for power in block.powers):
        raise ValueError(f"powers: {block.powers}; expected {dim} whole numbers of at least 0, one per coordinate.")
    if any(power and place for power, place in zip(block.powers, block.anchor, strict=True)):
        raise ValueError(
            f"powers: {block.powers} at the anchor {block.anchor}; a coordinate with a power is a norm, and its anchor "
            "must be 0 for the localiser to be a function of it."
        )
    if radius is not None and any(block.powers):
        raise ValueError(
            f"radius: {radius} with powers {block.powers}: the box is no function of the norms; leave the radius out."
        )
    generator = torch.Generator().manual_seed(0)
    points = torch.randn((PROBES, dim), dtype=torch.float64, generator=generator)
    mirrored = torch.where(torch.tensor(block.powers) > 0, -points, points)
    values, others = (checked_excess(block.excess, w, n_beta) for w in (points, mirrored))
    if not torch.allclose(values, others, rtol=1e-9, atol=0.0):
        raise ValueError(f"powers: {block.powers}, but K is not even in the coordinates that have one, as in a norm.")


def _quadratic(curvature: float, n_beta: float, localization: float, radius: float | None) -> float:
    r"""½ nβh E[y²] for p ∝ exp(−A y²/2), A = nβh + γ: nβh/(2A) on the line.

    On [−R, R] that is multiplied by P(3/2, u)/P(1/2, u), u = AR²/2, P being the regularised incomplete Gamma function.

    Args:
        curvature: h.
        n_beta: nβ.
        localization: γ.
        radius: R; None for the line.

    Returns:
        The share of this direction in nβ·E[K].
    """
    if curvature == 0:
        return 0.0
    precision = n_beta * curvature + localization
    free = n_beta * curvature / (2 * precision)
    if radius is None:
        return free
    edge = precision * radius**2 / 2
    return float(free * gammainc(1.5, edge) / gammainc(0.5, edge))


def _integrated(
    block: Block, n_beta: float, localization: float, radius: float | None, tolerance: float, max_evaluations: int
) -> ExactLLC:
    """One block by cubature, the mass outside the box that is integrated over counted as error."""
    assert block.excess is not None
    anchor = torch.tensor(block.anchor, dtype=torch.float64)
    powers = torch.tensor(block.powers or (0,) * len(anchor), dtype=torch.float64)
    at_anchor = n_beta * float(checked_excess(block.excess, anchor.unsqueeze(0), n_beta))
    if at_anchor > ANCHOR_EXCESS:
        raise ValueError(
            f"anchor: nβK(w*) = {at_anchor:.6g} at {block.anchor}; expected 0. K is the excess over its value at w*."
        )
    # The share of the box that e^−nβK leaves may be as small as (γ/nβ)^(d/2), for a K without flat directions; the mass
    # outside is to be small beside that too.
    tail = TAIL + 0.5 * len(anchor) * math.log1p(n_beta / localization) if localization > 0 else math.inf
    reach = math.inf if localization == 0 else math.sqrt(2 * tail / localization)
    edge = reach if radius is None else min(reach, radius)
    upper = torch.full_like(anchor, edge)
    law = TemperedLaw(
        excess=block.excess,
        n_beta=n_beta,
        localization=localization,
        anchor=anchor,
        powers=powers,
        lower=torch.where(powers > 0, 0.0, -upper),
        upper=upper,
    )
    mean = tempered_mean(law, tolerance, max_evaluations)
    error = mean.error
    if edge == reach:
        # Outside, K ≥ 0 leaves at most the localiser's mass in Z, and x e^−x ≤ 1/e at most that over e in nβ·E[K]·Z.
        error += _outside(powers.tolist(), localization, tail) * (math.exp(-1) + mean.value) / mean.normalizer
    if not error <= 2 * tolerance * max(mean.value, tolerance):
        raise QuadratureError(
            f"localization: {localization}; beyond {reach:.3g} from the anchor nβ·E[K] = {mean.value:.6g} may miss "
            f"{error:.1e}, more than the tolerance of {tolerance:.0e} of it: no value can be trusted. Give a radius."
        )
    return ExactLLC(mean.value, error, "cubature", mean.num_evaluations)


def _outside(powers: list[float], localization: float, tail: float) -> float:
    """The localiser's mass, with the measure, where a coordinate exceeds the box; at most."""
    masses, outside = [], 0.0
    for power in powers:
        half = (power + 1) / 2
        masses.append(math.gamma(half) * (localization / 2) ** -half * (0.5 if power else 1.0))
        outside += float(gammaincc(half, tail))
    return math.prod(masses) * outside
