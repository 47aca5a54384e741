"""Stochastic gradient Hamiltonian Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.friction import friction_or_default
from samplers.kernel import Info, Kernel, add_scaled_, check_positive, square_root
from samplers.noise import ColumnStreams, shards_of, standard_normal
from samplers.potential import Batch, Potential, per_chain, sum_over_pieces, whole_dim
from samplers.preconditioner import Identity, Preconditioner


@dataclass
class SGHMCState:
    """Position and momentum ``(chains, dim)``, and the random streams of a long vector."""

    position: Tensor
    momentum: Tensor
    streams: ColumnStreams


def sghmc(
    step_size: float | Tensor,
    friction: float | Tensor | None = None,
    preconditioner: Preconditioner | None = None,
    gradient_noise: float = 0.0,
) -> Kernel:
    r"""Stochastic gradient Hamiltonian Monte Carlo: momentum with friction, and the noise that balances it.

    .. math:: q \leftarrow (1 - \alpha)\, q - h \sqrt P\, \widehat{\nabla U}(w) + \sqrt{2\alpha - h^2 \hat V}\,\xi,
              \qquad w \leftarrow w + h \sqrt P\, q, \qquad \alpha = h C, \quad \xi \sim N(0, I)

    with friction C and V̂ = ``gradient_noise``. Targets exp(−U(w) − ½‖q‖²) as h → 0, and is biased at any finite h. The
    momentum starts at zero, and is forgotten at the rate C.

    On a quadratic with curvature A along an eigenvector of P = I and additive gradient noise of variance s² the chain
    is linear, its law Gaussian, and stable for h²A < 4 − 2α. With σ² = (2α + h²(s² − V̂)) / 2α,

    .. math:: \mathrm{Var}\,w = \frac{\sigma^2}{A \left(1 - h^2 A / (4 - 2\alpha)\right)}, \qquad
              \mathrm{Var}\,q = \frac{\sigma^2}{1 - \alpha/2 - h^2 A / 4}, \qquad
              \mathrm{Cov}(w, q) = \tfrac h2 \mathrm{Var}\,q

    **Relation to SGLD.** At α = 1 a step is exactly that of SGLD with ε = 2h². Below, the chain moves along flat
    directions as SGLD would with ε = 2h²/α = 2h/C, and gradient noise heats it as much, by 1 + εs²/4; its
    discretisation bias in stiff directions, h²A / (4 − 2α) in place of εA/4, is smaller by the factor α / (2 − α).

    The bias is measured, not only known on quadratics. In a stationary chain ‖w − w*‖², ⟨w − w*, q⟩ and ‖q‖² do not
    change in the mean, hence E⟨w − w*, ∇U⟩ = (1 − α/2) E‖q‖² = dim + E[½h²‖√P ĝ‖² − (1 − α) h ⟨q, √P ĝ⟩] / α (less
    dim · h²V̂ / 2α), ĝ being the stochastic ∇U and q the momentum before the step; without discretisation it is dim.
    ``Info.discretization_bias`` is half of that excess with nβ ∇L̂ for one ĝ in each product: on quadratics an
    unbiased estimate of the excess of nβ·E[loss] in stiff directions and an upper bound, by the gradient noise, in
    flat ones. Where V̂ > 0 its part of the bound is taken off, as if all directions were stiff. A draw of it
    fluctuates with ⟨q, ∇L⟩, which is the change of the loss in time: its mean over T steps is known within
    the fluctuation of nβ·L / 2αT, and while the loss rises from its minimum it is too low by as much. It is
    therefore a check of a long stationary run, and no guide for :func:`samplers.limit_bias`, whose rounds are short.

    Args:
        step_size: h, a number or ``(chains, 1)``. Units of position (U and q are dimensionless).
        friction: C, a number or ``(chains, 1)``. Units of 1/position, at most 1/h. By default 0.1/h: a momentum is
            forgotten in ten steps, the usual 0.9 of gradient descent with momentum.
        preconditioner: P, frozen; the identity by default.
        gradient_noise: V̂, an estimate of the variance of an entry of √P ĝ, of which the injected noise is relieved.
            At V̂ = s² the law is that without gradient noise. At the default of 0 the kernel makes no such claim.

    Returns:
        A kernel that takes minibatch or full-data gradients.

    Raises:
        ValueError: ``step_size`` or ``friction`` is not finite and positive, or has another shape than those;
            h · friction is above 1; or ``gradient_noise`` is negative, or more than the injected noise 2C/h.

    Source:
        Chen, Fox & Guestrin 2014, Algorithm 2, with M = I and B̂ = hV̂/2; they move the position first, which is the
        same sequence of positions. The identities are derived here.
    """
    step_size = check_positive("step_size", step_size)
    rate = friction_or_default(friction, step_size)
    metric = preconditioner if preconditioner is not None else Identity()
    forgotten = step_size * rate
    if not bool((torch.as_tensor(forgotten) <= 1 + 1e-6).all()):
        raise ValueError(
            f"friction: {friction!r} at step_size {step_size!r}; expected at most 1 / step_size, where a step "
            "is that of sgld. Lower one of them."
        )
    noise_variance = 2 * forgotten - step_size**2 * gradient_noise
    if not gradient_noise >= 0 or not bool((torch.as_tensor(noise_variance) >= 0).all()):
        raise ValueError(
            f"gradient_noise: {gradient_noise!r}; expected a variance from 0 to 2 · friction / step_size, so that the "
            "injected noise can be relieved of it. Lower step_size, or raise friction."
        )
    kept = 1 - forgotten
    drift_scale = -step_size
    noise_scale = square_root(noise_variance)
    square_scale = per_chain(0.25 * step_size**2 / forgotten)
    work_scale = per_chain(-0.5 * kept * step_size / forgotten)
    relief = per_chain(0.25 * step_size**2 * gradient_noise / forgotten)

    def init(position: Tensor, potential: Potential) -> SGHMCState:
        return SGHMCState(position, torch.zeros_like(position), ColumnStreams(shards_of(potential)))

    @torch.no_grad()
    def step_(state: SGHMCState, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        position, momentum = state.position, state.momentum
        loss, gradient = potential.loss_and_grad(position, batch)

        def update_(columns: slice, own: torch.Generator) -> tuple[Tensor, Tensor]:
            part, moving, loss_force = position[:, columns], momentum[:, columns], gradient[:, columns]
            force = loss_force * potential.n_beta
            energy = potential.localizer.add_gradient_(force, part, columns)
            metric.apply_root_(force, columns)
            metric.apply_root_(loss_force, columns)
            excess = torch.linalg.vecdot(loss_force, force) * square_scale
            excess = excess + torch.linalg.vecdot(loss_force, moving) * work_scale
            moving.mul_(kept)
            add_scaled_(moving, force, drift_scale)
            add_scaled_(moving, standard_normal(part, own), noise_scale)
            add_scaled_(part, metric.apply_root_(moving.clone(), columns), step_size)
            return energy, excess

        energies, excesses = zip(
            *state.streams.map(update_, position, generator, whole=metric.mixes_columns), strict=True
        )
        energy = sum_over_pieces(potential, energies)
        excess = sum_over_pieces(potential, excesses) * per_chain(potential.n_beta)
        return Info(loss, energy, torch.ones_like(energy), excess - whole_dim(potential) * relief)

    settings = {
        "step_size": step_size,
        "friction": friction,
        "preconditioner": preconditioner,
        "gradient_noise": gradient_noise,
    }
    return Kernel(init, step_, "sghmc", settings, sghmc, exact=False)
