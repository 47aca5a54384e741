"""Underdamped Langevin dynamics by the BAOAB splitting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.friction import exponential, friction_or_default
from samplers.kernel import Info, Kernel, add_scaled_, check_positive, square_root
from samplers.noise import ColumnStreams, shards_of, standard_normal
from samplers.potential import Batch, Potential, per_chain, sum_over_pieces
from samplers.preconditioner import Identity, Preconditioner


@dataclass
class BAOABState:
    """Position and momentum ``(chains, dim)``, and the random streams of a long vector.

    The momentum lacks both half-kicks at the position.
    """

    position: Tensor
    momentum: Tensor
    streams: ColumnStreams


def baoab(
    step_size: float | Tensor,
    friction: float | Tensor | None = None,
    preconditioner: Preconditioner | None = None,
) -> Kernel:
    r"""Underdamped Langevin dynamics by BAOAB: kick, drift, exact friction and noise, drift, kick.

    .. math:: q^+ = q - h \sqrt P\,\widehat{\nabla U}(w), \qquad q' = c\, q^+ + \sqrt{1 - c^2}\,\xi, \qquad
              w' = w + \tfrac h2 \sqrt P\,(q^+ + q'), \qquad c = e^{-hC}, \quad \xi \sim N(0, I)

    with friction C. The two half-kicks around a position are one kick by one gradient, so that a step takes one
    gradient and no gradient is kept: the positions are those of BAOAB, and the momentum in the state lacks the
    half-kick that its own has. Targets exp(−U(w) − ½‖q‖²) as h → 0. The momentum starts at zero, and is forgotten at
    the rate C.

    With full-data gradients the law of the position is **exact on quadratics at any stable h**, h²A < 4: variance 1/A
    along an eigenvector of curvature A (P = I), Var q = 1 and Cov(w, q) = h/2. Additive gradient noise of variance s²
    heats it,

    .. math:: \mathrm{Var}\,w = \frac1A \left(1 + \frac{h^2 s^2}{4 - h^2 A} \cdot \frac{1 + c}{1 - c}\right)

    On other targets the bias of full-data gradients is of order h².

    **Relation to SGLD.** The chain moves along flat directions, and is heated by gradient noise, as SGLD would with
    ε = h²(1 + c)/(1 − c), which is 2h/C for small h. As C → ∞ the step becomes that of SGLD with ε = h² and, in place
    of ξ, the mean of this step's ξ and the last one's.

    The bias is measured, not only known on quadratics. In a stationary chain ‖w − w*‖², ⟨w − w*, q⟩ and ‖q‖² do not
    change in the mean, hence E⟨w − w*, ∇U⟩ = dim + ¼ (1 + c)/(1 − c) · E[‖q⁺‖² − ‖q‖²], without discretisation dim.
    ``Info.discretization_bias`` = −⅛ (1 + c)/(1 − c) · h ⟨nβ √P ∇L̂, q + q⁺⟩ is half of that excess, the part of the
    loss alone. On quadratics its mean is zero with full-data gradients, as the bias is; with gradient noise it is an
    unbiased estimate of the excess of nβ·E[loss] in stiff directions and an upper bound in flat ones. A draw of it
    fluctuates with the change of the loss in time: its mean over T steps is known within the fluctuation of
    nβ·L / 2hCT, and while the loss rises from its minimum it is too low by as much. It is
    therefore a check of a long stationary run, and no guide for :func:`samplers.limit_bias`, whose rounds are short.

    Args:
        step_size: h, a number or ``(chains, 1)``. Units of position (U and q are dimensionless).
        friction: C, a number or ``(chains, 1)``. Units of 1/position. By default 0.1/h: a momentum is forgotten in
            ten steps, the usual 0.9 of gradient descent with momentum.
        preconditioner: P, frozen; the identity by default.

    Returns:
        A kernel that takes minibatch or full-data gradients.

    Raises:
        ValueError: ``step_size`` or ``friction`` is not finite and positive, or has another shape than those.

    Source:
        Leimkuhler & Matthews 2013, *Rational construction of stochastic numerical methods for molecular sampling*
        (BAOAB, its exactness on quadratics and its limit of large friction). The identities are derived here.
    """
    step_size = check_positive("step_size", step_size)
    rate = friction_or_default(friction, step_size)
    metric = preconditioner if preconditioner is not None else Identity()
    kept = exponential(-step_size * rate)
    drift_scale, half_step = -step_size, 0.5 * step_size
    noise_scale = square_root(1 - kept**2)
    bias_scale = per_chain(-0.125 * step_size * (1 + kept) / (1 - kept))

    def init(position: Tensor, potential: Potential) -> BAOABState:
        return BAOABState(position, torch.zeros_like(position), ColumnStreams(shards_of(potential)))

    @torch.no_grad()
    def step_(state: BAOABState, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        position, momentum = state.position, state.momentum
        loss, gradient = potential.loss_and_grad(position, batch)

        def update_(columns: slice, own: torch.Generator) -> tuple[Tensor, Tensor]:
            part, moving, loss_force = position[:, columns], momentum[:, columns], gradient[:, columns]
            force = loss_force * potential.n_beta
            energy = potential.localizer.add_gradient_(force, part, columns)
            metric.apply_root_(force, columns)
            metric.apply_root_(loss_force, columns)
            work = torch.linalg.vecdot(loss_force, moving)
            add_scaled_(moving, force, drift_scale)
            work = work + torch.linalg.vecdot(loss_force, moving)
            travel = moving.clone()
            moving.mul_(kept)
            add_scaled_(moving, standard_normal(part, own), noise_scale)
            add_scaled_(part, metric.apply_root_(travel.add_(moving), columns), half_step)
            return energy, work

        energies, works = zip(*state.streams.map(update_, position, generator, whole=metric.mixes_columns), strict=True)
        energy = sum_over_pieces(potential, energies)
        work = sum_over_pieces(potential, works) * per_chain(potential.n_beta)
        return Info(loss, energy, torch.ones_like(energy), work * bias_scale)

    settings = {"step_size": step_size, "friction": friction, "preconditioner": preconditioner}
    return Kernel(init, step_, "baoab", settings, baoab, exact=False)
