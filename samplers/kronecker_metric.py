"""A preconditioner for matrices of weights, and starts: of the Gaussian law that meets walls as stiff as it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.adaptation import Adaptation, Adapted, stiffness
from samplers.kernel import Kernel
from samplers.kronecker import Kronecker, KroneckerBlock
from samplers.noise import normal_vectors, shards_of
from samplers.potential import Batch, Potential, gradients_per_call

# A basis costs size³ to find, and size · weights a step; longer sides keep the basis that they have.
LARGEST_SIDE = 1024
SAMPLES_PER_SIDE = 4  # of a side's vectors, for each of its entries: fewer would leave directions without a curvature
# An entry's own curvature is of as many samples as there are probes; that of its row and column is worth as many as:
SMOOTHING = 4.0
NEWEST = 0.25  # power of what a round finds in A; a quartic wall, which overshoots, is then met in one round
MOST_REFUSED = 8  # rounds in which the law was too wide for finite gradients
NARROWER = 16.0  # times A after such a round
STARTS = 4  # where chains are advanced one after the other, and one is known


def kronecker_metric(shapes: Sequence[Sequence[int]], num_rounds: int = 12, num_probes: int = 32) -> Adaptation:
    r"""Adaptation of a preconditioner and of the starts: of the Gaussian law that meets walls as stiff as it is.

    .. math:: w = w_0 + \sqrt P \xi, \qquad y = \nabla U(w) - \nabla U(w_0), \qquad P^{-1} = E[y y^T]

    Where the gradient is linear across the law, y = H√Pξ, hence E[yyᵀ] = HPH, and P = H⁻¹. Elsewhere H is a mean of the
    curvatures across the law's own width: of a wall nβw⁴/4 it is 1.97 √nβ, where the Gaussian that is nearest in KL
    divergence has 1.73 √nβ. At a singular minimum this is what the Hessian at the minimum does not know: the walls of
    its flat directions. A kink counts by what it is worth across the law.

    P is :class:`samplers.Kronecker`: of each matrix of weights the two bases are the eigenvectors of E[YYᵀ] and
    E[YᵀY], and in them a curvature for each entry, shrunk to the product of its row and column. Rounds begin with the
    multiple of the identity that is as stiff as the start, so that the law grows from within the walls, and each
    replaces P⁻¹ by its weighted geometric mean with E[yyᵀ], as 3 to 1, which halves the error of log P⁻¹. Both
    gradients of y are of the same batch, whose noise they share. A side that is longer than 1,024, or has fewer than
    four vectors for each of its entries, keeps its own basis.

    The chains of the first block start in N(w₀, P), those of others likewise: R̂ then compares chains that began apart.

    Args:
        shapes: Of the weights, in the order of a position, which they fill. Of more than two axes the first is that of
            the rows; a vector is a row.
        num_rounds: Of these.
        num_probes: Draws of each round, of two gradients each; rounded up to whole blocks of chains.

    Returns:
        An adaptation for a kernel with a setting ``preconditioner``. One that finds the step size must follow.

    Raises:
        ValueError: ``num_rounds`` or ``num_probes`` is not positive; or, when it is run, the kernel has no setting
            ``preconditioner``, the shapes do not fill a position, vectors are shards, or chains have an nβ each.
        FloatingPointError: When it is run: gradients are not finite close to the start.

    Source:
        Gupta, Koren & Singer 2018 (one factor for each side of a matrix, from its gradients); Opper & Archambeau 2009,
        §2 (the Gaussian nearest in KL divergence has the mean curvature as its inverse covariance). The fixed point
        and its rounds are derived here.
    """
    if num_rounds < 1 or num_probes < 1:
        raise ValueError(f"num_rounds, num_probes: {num_rounds}, {num_probes}; expected two positive counts.")
    matrices = [(shape[0] if len(shape) > 1 else 1, math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape))
                for shape in shapes]  # fmt: skip

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        if "preconditioner" not in kernel.settings:
            raise ValueError(
                f"kernel: {kernel.name} has no setting preconditioner; expected one that has, such as baoab or sgld."
            )
        if shards_of(potential) is not None:
            raise ValueError("potential: its vectors are shards; a preconditioner of matrices needs them whole.")
        if sum(rows * columns for rows, columns in matrices) != potential.dim or isinstance(potential.n_beta, Tensor):
            raise ValueError(
                f"shapes: {sum(rows * columns for rows, columns in matrices)} weights in all, for positions of "
                f"{potential.dim} at nβ {potential.n_beta}; expected the same number, and one nβ for all chains."
            )
        chains = len(position)
        calls = -(-num_probes // chains)
        batch = None if batches is None else next(batches)
        level = stiffness(potential, position, batch, generator)
        metric = Kronecker([
            KroneckerBlock(None, None, position.new_full(matrix, max(level, 1e-30) ** -0.5)) for matrix in matrices
        ])  # fmt: skip
        memory: list[_Sides] = [_Sides() for _ in matrices]
        finished = refused = num_calls = 0
        while finished < num_rounds:
            found = []
            for _ in range(calls):
                moved = metric.apply_root_(normal_vectors(position, generator, None))
                found.append(_change_of_gradient(potential, position, moved, batches))
            num_calls += 2 * calls
            changes = torch.cat(found)
            if bool(torch.isfinite(changes).all()):
                metric = _refit(metric, changes, float(getattr(potential.localizer, "strength", 0.0)), memory)
                finished, refused = finished + 1, 0
                continue
            refused += 1
            finished += 0 < finished < num_rounds - 1  # a law that grew too wide has had its round
            if refused > MOST_REFUSED:
                raise FloatingPointError(
                    "preconditioner: gradients are not finite close to the start, at every width of the law. Look for "
                    "overflow, or use float64."
                )
            metric = _narrower(metric)
        centers = position if chains > 1 else position.expand(STARTS, -1)
        initial = metric.apply_root_(normal_vectors(centers, generator, None)).add_(centers)
        taken = (num_calls + 2) * gradients_per_call(potential, batches)
        return Adapted(kernel.tune(preconditioner=metric), taken, initial)

    return adapt


def _change_of_gradient(
    potential: Potential, position: Tensor, moved: Tensor, batches: Iterator[Batch] | None
) -> Tensor:
    """∇U(w₀ + moved) − ∇U(w₀), of one batch, ``(chains, dim)``."""
    batch = None if batches is None else next(batches)
    # a call may overwrite what the one before it returned
    change = potential.loss_and_grad(position + moved, batch)[1].clone()
    change.sub_(potential.loss_and_grad(position, batch)[1]).mul_(potential.n_beta)
    anchored = torch.zeros_like(change)
    potential.localizer.add_gradient_(change, position + moved)
    potential.localizer.add_gradient_(anchored, position)
    return change.sub_(anchored)


def _narrower(metric: Kronecker) -> Kronecker:
    return Kronecker([block._replace(root=block.root / NARROWER**0.5) for block in metric.blocks])


@dataclass
class _Sides:
    """E[YYᵀ] and E[YᵀY] of a matrix, over the rounds so far; None where a side keeps its own basis."""

    left: Tensor | None = None
    right: Tensor | None = None


def _refit(metric: Kronecker, changes: Tensor, least: float, memory: list[_Sides]) -> Kronecker:
    """P of the next round, from y ``(probes, dim)``; P⁻¹ is at least the localiser."""
    blocks = []
    for start, block, sides in zip(metric.starts, metric.blocks, memory, strict=False):
        rows, columns = block.root.shape
        own = changes[:, start : start + rows * columns].unflatten(1, (rows, columns)).double()
        if _wanted(rows, len(own) * columns):
            sides.left = _remembered(sides.left, own)
        if _wanted(columns, len(own) * rows):
            sides.right = _remembered(sides.right, own.transpose(1, 2))
        left, right = _basis(sides.left), _basis(sides.right)
        inside = own if left is None else left.T @ own
        inside = inside if right is None else inside @ right
        squares = inside.square().mean(0)
        mean = squares.mean()
        if mean > 0:
            product = squares.mean(1, keepdim=True) * squares.mean(0) / mean
            squares = (len(own) * squares + SMOOTHING * product) / (len(own) + SMOOTHING)
        before = _curvature_along(block, left, right)
        # A ← A^(1/2) · (A # E[yyᵀ])^(1/2), in the new bases; without any gradient, half of the way to the localiser
        squares = squares.clamp(min=max(least, 1e-12 * float(before.max())) ** 2 / before)
        curvature = before ** (1 - NEWEST) * squares**NEWEST
        root = curvature.rsqrt().to(block.root)
        blocks.append(KroneckerBlock(_like(left, root), _like(right, root), root))
    return Kronecker(blocks)


def _wanted(size: int, samples: int) -> bool:
    return 1 < size <= LARGEST_SIDE and samples >= SAMPLES_PER_SIDE * size


def _remembered(mean: Tensor | None, matrices: Tensor) -> Tensor:
    """The mean of M Mᵀ, ``(rows, rows)``, over ``(k, rows, columns)`` and what is left of earlier rounds."""
    newest = (matrices @ matrices.transpose(1, 2)).mean(0)
    return newest if mean is None else torch.lerp(mean, newest, NEWEST)


def _basis(mean: Tensor | None) -> Tensor | None:
    return None if mean is None else torch.linalg.eigh(mean)[1]


def _curvature_along(block: KroneckerBlock, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Of P⁻¹ the diagonal in other bases, ``(rows, columns)``: on the safe side, that of stiffness, of its spread."""
    found = block.root.double() ** -2
    turned_left, turned_right = _turn(block.left, left), _turn(block.right, right)
    found = found if turned_left is None else turned_left.square() @ found
    return found if turned_right is None else found @ turned_right.T.square()


def _turn(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """From an old basis to a new one; None where both are the identity."""
    if old is None or new is None:
        return new.T if new is not None else None if old is None else old.double()
    return new.T @ old.double()


def _like(basis: Tensor | None, root: Tensor) -> Tensor | None:
    return None if basis is None else basis.to(root)
