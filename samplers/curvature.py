"""A preconditioner from the curvature at the anchor: its stiffest directions are found by products, and whitened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.adaptation import Adaptation, Adapted
from samplers.kernel import Kernel
from samplers.low_rank import LowRank
from samplers.potential import Batch, Potential
from samplers.preconditioner import Identity

Products = Callable[[Tensor], Tensor]
# Directions in which the loss bends less than this share of the floor move alike with and without it.
LEAST_SHARE = 0.1
OVERSAMPLING = 10  # directions beyond the rank that are followed as well, as Halko, Martinsson & Tropp 2011, §4.2


class Curvature(NamedTuple):
    """What the products told.

    Attributes:
        preconditioner: P = A⁻¹.
        eigenvalues: Of the Hessian of the loss, those that P knows, ``(rank,)``, the largest in size first.
        residual: Largest ‖Hv − λv‖ of them, as a share of the largest abs(λ); zero where none was kept.
        num_products: Products taken.
    """

    preconditioner: LowRank | Identity
    eigenvalues: Tensor
    residual: float
    num_products: int


def hessian_products(potential: Potential, anchor: Tensor) -> Products:
    r"""Products of the Hessian of the full-data loss at the anchor, by central differences of its gradient.

    .. math:: H v \approx \frac{\nabla L(w^* + \delta v) - \nabla L(w^* - \delta v)}{2\delta}, \qquad
              \delta = \varepsilon^{1/3} \max(1, \mathrm{rms}(w^*)) \sqrt{\mathrm{dim}}

    for v of unit length, whose entries are about 1/√dim, ε being the machine's precision. Chains are probes, so that a
    block of vectors is one call.

    Args:
        potential: Whose loss.
        anchor: w*, ``(dim,)``.

    Returns:
        ``(k, dim) → (k, dim)``; two gradients a vector.
    """
    width = torch.finfo(anchor.dtype).eps ** (1 / 3) * max(1.0, float(anchor.square().mean().sqrt()))
    width *= anchor.numel() ** 0.5
    most = potential.max_chains

    def products(vectors: Tensor) -> Tensor:
        rows = len(vectors) if most is None else most
        parts = []
        for part in vectors.split(rows):
            ahead = potential.loss_and_grad(anchor + width * part)[1].clone()
            parts.append((ahead - potential.loss_and_grad(anchor - width * part)[1]) / (2 * width))
        return torch.cat(parts)

    return products


def curvature_preconditioner(
    products: Products,
    like: Tensor,
    *,
    n_beta: float,
    localization: float,
    rank: int = 32,
    num_iterations: int = 6,
    generator: torch.Generator | None = None,
) -> Curvature:
    r"""P = A⁻¹ with A = nβ|H| + (γ + √nβ) I, H known along its stiffest directions and taken as zero elsewhere.

    .. math:: P = \frac1c \Bigl( I + V \,\mathrm{diag}\Bigl( \frac{c}{c + n\beta |\lambda_i|} - 1 \Bigr) V^T \Bigr),
              \qquad c = \gamma + \sqrt{n\beta}

    λ and V by subspace iteration with orthonormal vectors and a Rayleigh–Ritz step. In this metric a step size of
    order one suits stiff and flat directions alike. The floor √nβ is what keeps flat directions moving: the quartic
    wall of a singular direction, nβ·w⁴, has its width at w² ≈ 1/√nβ. A negative λ counts by its size, since that is the
    scale of the direction. Directions with nβ|λ| below a tenth of c are left out: P would hardly differ there.

    Args:
        products: ``(k, dim) → (k, dim)``, of the Hessian or the Gauss–Newton matrix of the loss at the anchor, such as
            :func:`hessian_products`.
        like: w*, ``(dim,)``: for dtype, device and size.
        n_beta: nβ, positive.
        localization: γ, at least 0.
        rank: Most directions to know.
        num_iterations: Of the subspace; an eigenvalue at half of the smallest kept is suppressed by 2^{-iterations}.
        generator: Of the first subspace; one seeded with 0 by default.

    Returns:
        The preconditioner, with the eigenvalues and residual by which to judge it.

    Raises:
        ValueError: ``n_beta``, ``localization``, ``rank`` or ``num_iterations`` is out of its range.
        FloatingPointError: A product is not finite.

    Source:
        Subspace iteration: Halko, Martinsson & Tropp 2011, Algorithm 4.4. The metric is that of a Laplace
        approximation with a floor.
    """
    if not n_beta > 0 or not localization >= 0 or rank < 1 or num_iterations < 1:
        raise ValueError(
            f"n_beta, localization, rank, num_iterations: {n_beta}, {localization}, {rank}, {num_iterations}; expected "
            "a positive number, one of at least 0, and two positive counts."
        )
    if generator is None:
        generator = torch.Generator(device=like.device).manual_seed(0)
    count = min(rank + OVERSAMPLING, like.numel())
    if count == like.numel():
        num_iterations = 0  # all of space is no subspace that could be improved
    kind = {"dtype": like.dtype, "device": like.device}
    basis = torch.linalg.qr(torch.randn(like.numel(), count, generator=generator, **kind))[0]
    image = _checked(products(basis.T)).T
    for _ in range(num_iterations):
        basis = torch.linalg.qr(image)[0]
        image = _checked(products(basis.T)).T
    projected = basis.T @ image
    values, vectors = torch.linalg.eigh(0.5 * (projected + projected.T))
    order = values.abs().argsort(descending=True)[:rank]
    values, vectors = values[order], vectors[:, order]
    floor = localization + n_beta**0.5
    kept = n_beta * values.abs() > LEAST_SHARE * floor
    values, vectors = values[kept], vectors[:, kept]
    num_products = count * (1 + num_iterations)
    if not len(values):
        return Curvature(Identity(), values, 0.0, num_products)
    directions = basis @ vectors
    residual = (image @ vectors - directions * values).norm(dim=0).max() / values.abs().max()
    factors = floor / (floor + n_beta * values.abs()) - 1
    return Curvature(LowRank(1 / floor, directions, factors), values, float(residual), num_products)


def _checked(image: Tensor) -> Tensor:
    if not bool(torch.isfinite(image).all()):
        raise FloatingPointError(
            "preconditioner: a product with the Hessian at the anchor is not finite. Look for overflow, or use float64."
        )
    return image


def whiten_curvature(rank: int = 32, num_iterations: int = 6, products: Products | None = None) -> Adaptation:
    r"""Adaptation of the preconditioner to the curvature of U where the chains start.

    .. math:: P = \left( n\beta |H| + (\gamma + \sqrt{n\beta})\, I \right)^{-1}

    with H the Hessian of the full-data loss along its ``rank`` stiffest directions, taken as zero along all others:
    that of :func:`curvature_preconditioner`, in units of position². Batches are not used.

    Follow it by one that finds the step size: ``in_turn(whiten_curvature(), accept_at_rate())``. Where no direction is
    stiffer than the floor the preconditioner is the identity.

    Args:
        rank: Most directions to know.
        num_iterations: Of the subspace.
        products: Of the Hessian of the loss where the chains start, ``(k, dim) → (k, dim)``; their gradients are not
            counted. By default :func:`hessian_products`, which by differences finds curvature at kinks that has none.

    Returns:
        An adaptation for a kernel with a setting ``preconditioner``, for chains with one nβ that start at one point.

    Raises:
        ValueError: ``rank`` or ``num_iterations`` is not positive; or, when it is run, nβ is not, or the kernel has no
            setting ``preconditioner``.
        FloatingPointError: When it is run: a product with the Hessian is not finite.

    Source:
        The subspace iteration is that of Halko, Martinsson & Tropp 2011, Algorithm 4.4; the floor √nβ is derived with
        :func:`curvature_preconditioner`.
    """
    if rank < 1 or num_iterations < 1:
        raise ValueError(f"rank, num_iterations: {rank}, {num_iterations}; expected two positive counts.")

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        if "preconditioner" not in kernel.settings:
            raise ValueError(
                f"kernel: {kernel.name} has no setting preconditioner; expected one that has, such as sgld or hmc."
            )
        found = curvature_preconditioner(
            hessian_products(potential, position[0]) if products is None else products,
            position[0],
            n_beta=float(potential.n_beta),
            localization=float(getattr(potential.localizer, "strength", 0.0)),
            rank=rank,
            num_iterations=num_iterations,
            generator=generator,
        )
        # the pilot's gradients are counted per chain of the block
        num_gradients = 0 if products is not None else -(-2 * found.num_products // len(position))
        return Adapted(kernel.tune(preconditioner=found.preconditioner), num_gradients)

    return adapt
