"""A dense preconditioner from the positions and gradients of a pilot run: the metric of least Fisher divergence."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from samplers.adaptation import Adaptation, Adapted
from samplers.kernel import Kernel
from samplers.low_rank import LowRank
from samplers.potential import Batch, Potential
from samplers.preconditioner import Identity

TRANSIENT = 3  # one part in so many of the pilot is left out at its beginning
# A sample of every chain and step is worth half of an independent one, so that the identity counts by 2·dim samples.
SHRINKAGE = 2.0


def fisher_metric(num_steps: int = 200) -> Adaptation:
    r"""Adaptation of one dense preconditioner for all chains, from the positions and gradients of a pilot run.

    .. math:: P = B \left( C \,\#\, F^{-1} \right) B, \qquad
              C = \mathrm{Cov}(B^{-1} w), \quad F = \mathrm{Cov}(B\, \nabla U(w)), \qquad
              X \,\#\, Y = X^{1/2} (X^{-1/2}\, Y X^{-1/2})^{1/2} X^{1/2}

    with B the root of the preconditioner that the kernel has. On a Gaussian law C and F⁻¹ are the same matrix, and P
    its covariance; elsewhere their geometric mean is the metric in which the law is nearest to a standard normal one
    in Fisher divergence. C knows how far chains go, F which walls they meet there: the curvature at one point, such as
    a trained minimum, knows the flat directions of that point only, and these turn as the weights move.

    Both are pooled over the chains and the later two thirds of the pilot, and shrunk to the identity, which is the old
    metric, by 2·dim / (samples). The gradients are those that an exact kernel has at hand: none is taken for this.

    Args:
        num_steps: Steps of the pilot.

    Returns:
        An adaptation for an exact kernel with a setting ``preconditioner``, for a few thousand coordinates at most: it
        takes the roots of dense matrices, and a step then costs 4·dim² operations a chain.

    Raises:
        ValueError: ``num_steps`` is below 3; or, when it is run, the kernel is not exact or has no setting
            ``preconditioner``.
        FloatingPointError: When it is run: positions or gradients of the pilot are not finite, or no chain moved.

    Source:
        Seyboldt, Carlson & Carpenter 2026, *Preconditioning Hamiltonian Monte Carlo by minimizing Fisher divergence*,
        for the divergence and its minimum; the shrinkage is derived here.
    """
    if num_steps < TRANSIENT:
        raise ValueError(f"num_steps: {num_steps}; expected at least {TRANSIENT} steps.")

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        if not kernel.exact or "preconditioner" not in kernel.settings:
            raise ValueError(
                f"kernel: {kernel.name}; expected an exact kernel with a setting preconditioner, such as hmc or mala."
            )
        state = kernel.init(position.clone(), potential)
        positions, gradients = [], []
        for step in range(num_steps):
            kernel.step_(state, potential, None, generator)
            if step < num_steps // TRANSIENT:
                continue
            total = state.gradient * potential.n_beta
            potential.localizer.add_gradient_(total, state.position)
            positions.append(state.position.double().clone())
            gradients.append(total.double())
        metric = kernel.settings["preconditioner"] or Identity()
        root = metric.apply_root_(torch.eye(potential.dim, dtype=position.dtype, device=position.device)).double()
        found = _fisher(torch.cat(positions), torch.cat(gradients), root)
        scales, directions = torch.linalg.eigh(found)
        middle = float(scales.median())
        preconditioner = LowRank(middle, directions.to(position.dtype), scales / middle - 1)
        num_gradients = num_steps * kernel.gradients_per_step + 1
        return Adapted(kernel.tune(preconditioner=preconditioner), num_gradients)

    return adapt


def _fisher(positions: Tensor, gradients: Tensor, root: Tensor) -> Tensor:
    """P, ``(dim, dim)``, from ``(samples, dim)`` each and the root B of the old one; float64."""
    if not bool(torch.isfinite(positions).all() and torch.isfinite(gradients).all()):
        raise FloatingPointError("preconditioner: positions or gradients of the pilot are not finite.")
    if not bool((positions != positions[0]).any()):
        raise FloatingPointError("preconditioner: no chain of the pilot moved. A step size must be found first.")
    samples, dim = positions.shape
    share = min(1.0, SHRINKAGE * dim / samples)
    identity = torch.eye(dim, dtype=positions.dtype, device=positions.device)

    def covariance(rows: Tensor) -> Tensor:
        centred = rows - rows.mean(0)
        return (1 - share) * (centred.T @ centred) / samples + share * identity

    spread = covariance(torch.linalg.solve(root, positions.T).T)
    walls = covariance(gradients @ root)
    half, inverse_half = _power(spread, 0.5), _power(spread, -0.5)
    mean = half @ _power(inverse_half @ _power(walls, -1.0) @ inverse_half, 0.5) @ half
    found = root @ mean @ root
    return 0.5 * (found + found.T)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.T))
    return (vectors * values.clamp(min=1e-300) ** exponent) @ vectors.T
