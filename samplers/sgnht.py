"""The stochastic gradient Nosé–Hoover thermostat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.friction import friction_or_default
from samplers.kernel import Info, Kernel, add_scaled_, check_positive
from samplers.noise import ColumnStreams, shards_of, standard_normal
from samplers.potential import Batch, Potential, per_chain, sum_over_pieces, whole_dim
from samplers.preconditioner import Identity, Preconditioner


@dataclass
class SGNHTState:
    """Position and momentum ``(chains, dim)``, thermostat ``(chains, 1)``, and the random streams of a long vector.

    The thermostat is the friction now at work, in units of 1/position. The momentum lacks both half-kicks at the
    position.
    """

    position: Tensor
    momentum: Tensor
    thermostat: Tensor
    streams: ColumnStreams


def sgnht(
    step_size: float | Tensor,
    friction: float | Tensor | None = None,
    preconditioner: Preconditioner | None = None,
    thermostat_rate: float | Tensor | None = None,
) -> Kernel:
    r"""Stochastic gradient Nosé–Hoover thermostat: a friction that adapts until the momenta have temperature one.

    .. math:: dw = \sqrt P\, q\, dt, \qquad dq = -\sqrt P\,\widehat{\nabla U}(w)\, dt - \zeta q\, dt + \sqrt{2C}\, dB,
              \qquad d\zeta = \nu^2 \left( \|q\|^2 / \mathrm{dim} - 1 \right) dt

    with friction C, which sets the noise, thermostat ζ and its rate ν. Targets, as h → 0 at fixed hs²,

    .. math:: \exp\left( -U(w) - \tfrac12 \|q\|^2 - \tfrac{\mathrm{dim}}{2\nu^2} (\zeta - C - \tfrac12 h s^2)^2 \right)

    where s² is the variance, unknown to the kernel, of every entry of √P ĝ, ĝ being the stochastic ∇U: gradient noise
    acts as so much more noise, and the mean of ζ absorbs it, where SGHMC and BAOAB are heated by it. There is one
    thermostat for all coordinates, and it holds their mean temperature: where the variance differs between
    coordinates, those with more of it stay too hot and the others too cold.

    A step is the symmetric splitting, one gradient each, with the thermostat moved before and after the friction,

    .. math:: q^+ = q - h \sqrt P\,\widehat{\nabla U}(w), \quad
              \zeta \leftarrow \zeta + \tfrac h2 \nu^2 \left( \tfrac{\|q^+\|^2}{\mathrm{dim}} - 1 \right), \quad
              q' = e^{-h\zeta} q^+ + \sqrt{C\,\frac{1 - e^{-2h\zeta}}{\zeta}}\;\xi, \quad
              \zeta \leftarrow \zeta + \tfrac h2 \nu^2 \left( \tfrac{\|q'\|^2}{\mathrm{dim}} - 1 \right), \quad
              w' = w + \tfrac h2 \sqrt P\,(q^+ + q')

    At ν → 0 it is BAOAB. The momentum starts at zero and the thermostat at C.

    **At finite step** the mean of ‖q⁺‖² + ‖q‖² over a stationary chain is 2 dim exactly, whatever the noise. With ζ at
    its mean and T = C/ζ the share of the injected noise, E⟨w − w*, ∇U⟩ is dim · (1 − (1 − T)(1 − c)² / 2(1 + c²)),
    c = exp(−hζ): off by (hζ)²/4 at the most. Euler's step, the one in the source, has that error in the first order,
    −hζ/2. The mean of ζ is above C + hs²/2 by order h². Gradient noise is shared out unevenly, stiff directions of
    curvature A being hotter than flat ones by (1 − T) h²A/4.

    ``Info.discretization_bias`` measures what a common thermostat cannot hold, the excess of the loss's directions:
    −⅛ coth(hC/2) · h ⟨nβ √P ∇L̂, q + q⁺⟩ + ½ (1 − ζ/C)(dim − 2 · localization_energy), heat of the gradient less that
    which the thermostat takes out of these directions, whose number is found by E⟨w − w*, nβ∇L⟩ = dim −
    E⟨w − w*, ∇(localiser)⟩ for a quadratic localiser. On quadratics its mean is zero for full-data gradients, and
    with noise 1/T times the excess of nβ·E[loss], or more in flat directions with noise of their own. It fluctuates
    as that of BAOAB does.

    Args:
        step_size: h, a number or ``(chains, 1)``. Units of position (U and q are dimensionless).
        friction: C, a number or ``(chains, 1)``. Units of 1/position. By default 0.1/h: without gradient noise a
            momentum is forgotten in ten steps, the usual 0.9 of gradient descent with momentum.
        preconditioner: P, frozen; the identity by default.
        thermostat_rate: ν, a number or ``(chains, 1)``. Units of 1/position. By default C, for which temperature and
            thermostat settle within about 1/C: with small noise they are an oscillator of frequency √2 ν damped by C.
            The source has ν = 1 in the units of the parameters, which for small h settles in about 1/h steps.

    Returns:
        A kernel that takes minibatch or full-data gradients.

    Raises:
        ValueError: ``step_size``, ``friction`` or ``thermostat_rate`` is not finite and positive, or has another shape
            than those.

    Source:
        Ding, Fang, Babbush, Chen, Skeel & Neven 2014, Algorithm 1, for the equations at ν = 1; the splitting is the
        one called BADODAB in Leimkuhler & Shang 2016, cut where the gradient is taken. The identities are derived
        here.
    """
    step_size = check_positive("step_size", step_size)
    noise_rate = friction_or_default(friction, step_size)
    response = noise_rate if thermostat_rate is None else check_positive("thermostat_rate", thermostat_rate)
    metric = preconditioner if preconditioner is not None else Identity()
    drift_scale, half_step = -step_size, 0.5 * step_size
    thermostat_scale = 0.5 * step_size * response**2
    free_variance = 2 * noise_rate * step_size  # of the noise of a step where the thermostat is zero
    half_forgotten = half_step * noise_rate
    tanh = half_forgotten.tanh() if isinstance(half_forgotten, Tensor) else math.tanh(half_forgotten)
    work_scale = per_chain(-0.125 * step_size / tanh)
    inverse_friction = per_chain(1 / noise_rate)

    def init(position: Tensor, potential: Potential) -> SGNHTState:
        thermostat = position.new_zeros(position.shape[0], 1) + noise_rate
        streams = ColumnStreams(shards_of(potential))
        return SGNHTState(position, torch.zeros_like(position), thermostat.to(position.dtype), streams)

    def adapt_(thermostat: Tensor, squares: tuple[Tensor, ...], potential: Potential) -> None:
        excess = sum_over_pieces(potential, squares) / whole_dim(potential) - 1
        add_scaled_(thermostat, excess.unsqueeze(-1), thermostat_scale)

    @torch.no_grad()
    def step_(state: SGNHTState, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        position, momentum, thermostat = state.position, state.momentum, state.thermostat
        loss, gradient = potential.loss_and_grad(position, batch)
        cooling = 1 - thermostat.squeeze(-1) * inverse_friction

        def kick_(columns: slice, own: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            moving, loss_force = momentum[:, columns], gradient[:, columns]
            force = loss_force * potential.n_beta
            energy = potential.localizer.add_gradient_(force, position[:, columns], columns)
            metric.apply_root_(force, columns)
            metric.apply_root_(loss_force, columns)
            work = torch.linalg.vecdot(loss_force, moving)
            add_scaled_(moving, force, drift_scale)
            work = work + torch.linalg.vecdot(loss_force, moving)
            return energy, work, torch.linalg.vecdot(moving, moving)

        energies, works, squares = zip(
            *state.streams.map(kick_, position, generator, whole=metric.mixes_columns), strict=True
        )
        adapt_(thermostat, squares, potential)
        exponent = thermostat * step_size * -2
        exponent = torch.where(exponent == 0, 1e-30, exponent)  # the ratio below has a limit there, not a value
        kept = (0.5 * exponent).exp()
        noise_scale = (exponent.expm1() / exponent * free_variance).sqrt()

        def rub_and_drift_(columns: slice, own: torch.Generator) -> Tensor:
            part, moving = position[:, columns], momentum[:, columns]
            travel = moving.clone()
            moving.mul_(kept)
            add_scaled_(moving, standard_normal(part, own), noise_scale)
            add_scaled_(part, metric.apply_root_(travel.add_(moving), columns), half_step)
            return torch.linalg.vecdot(moving, moving)

        adapt_(
            thermostat,
            tuple(state.streams.map(rub_and_drift_, position, generator, whole=metric.mixes_columns)),
            potential,
        )
        energy = sum_over_pieces(potential, energies)
        work = sum_over_pieces(potential, works) * per_chain(potential.n_beta)
        bias = work * work_scale + 0.5 * cooling * (whole_dim(potential) - 2 * energy)
        return Info(loss, energy, torch.ones_like(energy), bias)

    settings = {
        "step_size": step_size,
        "friction": friction,
        "preconditioner": preconditioner,
        "thermostat_rate": thermostat_rate,
    }
    return Kernel(init, step_, "sgnht", settings, sgnht, exact=False)
