"""Microcanonical Langevin Monte Carlo: a velocity of unit length, which the gradient and noise turn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers.energy_error import EnergyErrors
from samplers.friction import friction_or_default
from samplers.kernel import Info, Kernel, add_scaled_, check_positive, square_root
from samplers.noise import ColumnStreams, shards_of, standard_normal
from samplers.potential import Batch, Potential, per_chain, sum_over_pieces, whole_dim
from samplers.preconditioner import Identity, Preconditioner


@dataclass
class MCLMCState:
    """What the next step needs.

    Attributes:
        position: ``(chains, dim)``.
        velocity: ``(chains, dim)``, of length one; it lacks the half-kick at the position. Zero before the first
            step, which draws it.
        errors: What discretisation did to the energy, per chain.
        streams: The random streams of a long vector.
    """

    position: Tensor
    velocity: Tensor
    errors: EnergyErrors
    streams: ColumnStreams


class Kick(NamedTuple):
    """How the gradient turns a unit velocity: u ← keep · u + turn · force.

    Attributes:
        keep: ``(chains, 1)``.
        turn: ``(chains, 1)``.
        strength: δ, ``(chains,)``, float64.
        uphill: −s, the cosine of the velocity with the gradient, ``(chains,)``, float64.
    """

    keep: Tensor
    turn: Tensor
    strength: Tensor
    uphill: Tensor

    def energy(self, dim: int, share: float = 1.0) -> Tensor:
        """Kinetic energy ΔK that this share of the kick, from its beginning on, adds; ``(chains,)``, float64, nats."""
        # log(D/2) as log1p, since δ is small in high dimension
        missing = torch.expm1(self.strength * (-2 * share))
        return (torch.log1p(missing * (0.5 + 0.5 * self.uphill)) + self.strength * share) * (dim - 1)


def mclmc(
    step_size: float | Tensor,
    decoherence_length: float | Tensor | None = None,
    preconditioner: Preconditioner | None = None,
) -> Kernel:
    r"""Microcanonical Langevin Monte Carlo: kick, half a flight, partial refreshment, half a flight; never refused.

    .. math:: u^+ = B_\epsilon(u), \qquad
              u' = \frac{u^+ + \nu\,\xi}{\|u^+ + \nu\,\xi\|}, \qquad
              w' = w + \tfrac{\epsilon}{2} \sqrt P\,(u^+ + u'), \qquad
              \nu^2 = \frac{e^{2\epsilon/\ell} - 1}{d}, \quad \xi \sim N(0, I)

    where ‖u‖ = 1, d = dim, ℓ is the decoherence length, and the kick B solves u̇ = −(1 − uuᵀ) √P∇U / (d − 1) exactly.
    With e = −√P∇U / ‖√P∇U‖, s = ⟨e, u⟩ and δ = ε ‖√P∇U‖ / (d − 1),

    .. math:: B_\epsilon(u) = \frac{u + e\,(\sinh\delta + s(\cosh\delta - 1))}{\cosh\delta + s\,\sinh\delta}, \qquad
              \Delta K = (d - 1) \log(\cosh\delta + s\,\sinh\delta)

    ΔK is minus the logarithm of the Jacobian of the kick on the sphere, and takes the part of a kinetic energy: U + ΣΔK
    is constant without discretisation, and no refreshment changes it. Targets exp(−U) for w, and the uniform law on
    the sphere for u, as ε → 0. The factor d − 1 is that of the sphere: with d instead of it the law is exp(−U (d−1)/d).

    The two half-kicks around a position are one kick by one gradient, as in :func:`samplers.baoab`, so that a step
    takes one gradient and keeps none. In a stationary chain E⟨w − a, P^{-1/2} u⟩ = ε/2 for any a, exactly, at any ε.

    **Bias.** Of order ε². On isotropic Gaussians of 2, 5 and 20 dimensions at h = ε/(σ√d) = 0.8 the excess of E[U] was
    2, 4 and 5 % of d/2, which is 0.08 h² at most; on independent log-gammas, 14 %. Refreshment between the half-kicks,
    as in the source, gave up to four times that below 20 dimensions and as much there; its minimal-norm integrator,
    of two gradients a step, gave as much at equal gradients on Gaussians, with the other sign, and less on log-gammas.

    ``Info.discretization_bias`` estimates the excess of nβ·E[loss] by linear response. From the law π a step leads to
    the density e^{ΔE} π, ΔE being the error that discretisation made in U + ΣΔK on the way there. Hence

    .. math:: E[f] - E_\pi[f] = \sum_{k \ge 0} \mathrm{Cov}(\Delta E_{t-k}, f_t) + O(\epsilon^4), \qquad
              f = n\beta L

    the sum being of past errors, forgotten over ten decoherence lengths, times the deviation of nβ·L from its mean so
    far. Its mean over a stationary run is known better than the excess itself (0.489 ± 0.002 for 0.50 ± 0.01 in the
    case of 20 dimensions); where the bias is large it exaggerates it. Single draws of it fluctuate, and it means
    nothing before the chain is stationary: it is no guide for :func:`samplers.limit_bias`;
    :func:`samplers.limit_energy_error` sets both numbers. With a batch it is not a number, because the energies of two
    batches cannot be compared.

    **Minibatches.** No friction balances the noise of a gradient here, and none is needed as long as it is isotropic
    (after P): it then turns the velocity as the refreshment does, and cannot heat it. Anisotropic noise drives the
    velocity into the noisy directions, and the law with it. On 32 equal directions at h = 0.15, with noise of ten
    times the variance of the gradient, A·E[w²] was 1.016 ± 0.004 (BAOAB at the same h: 1.75); with that noise in half
    of the directions, 1.27 in those and 0.75 in the others. Gradients of networks are anisotropic: there, prefer
    :func:`samplers.sgld` or :func:`samplers.sgnht`.

    Args:
        step_size: ε, the distance that a step travels, a number or ``(chains, 1)``. Units of position, after P^{-1/2}:
            a step of :func:`samplers.hmc` travels √dim times its ε.
        decoherence_length: ℓ, the distance after which a direction is forgotten, a number or ``(chains, 1)``. The same
            units. By default ten steps, as in :func:`samplers.baoab`; σ√dim is near the optimum on a Gaussian.
        preconditioner: P, frozen; the identity by default.

    Returns:
        A kernel that takes minibatch or full-data gradients, of two dimensions at least: in one, a unit velocity has
        no direction to turn to, and its ``init`` raises ValueError.

    Raises:
        ValueError: ``step_size`` or ``decoherence_length`` is not finite and positive, or has another shape than those.

    Source:
        Robnik, De Luca, Silverstein & Seljak 2023, *Microcanonical Hamiltonian Monte Carlo*, JMLR 24 (dynamics, kick
        and refreshment); Robnik & Seljak 2024, *Fluctuation without dissipation* (the stochastic equation and its
        law); Sommer et al. 2026, arXiv 2602.06500 (the bias of anisotropic noise). The order of the substeps, the
        identity and the estimate of the bias are derived here.
    """
    step_size = check_positive("step_size", step_size)
    forgetting = 1 / _length_or_default(decoherence_length, step_size)
    metric = preconditioner if preconditioner is not None else Identity()
    half_step, turned = 0.5 * step_size, 2 * step_size * forgetting
    scattered = square_root(turned.expm1() if isinstance(turned, Tensor) else math.expm1(turned))
    memory = per_chain(-0.1 * step_size * forgetting)  # logarithm of what ten decoherence lengths leave of an error

    def init(position: Tensor, potential: Potential) -> MCLMCState:
        check_dimensions(whole_dim(potential), "baoab")
        streams = ColumnStreams(shards_of(potential))
        return MCLMCState(position, torch.zeros_like(position), EnergyErrors.of(position), streams)

    @torch.no_grad()
    def step_(state: MCLMCState, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        position, velocity = state.position, state.velocity
        loss, force = potential.loss_and_grad(position, batch)

        def over_columns(work: Callable[[slice, torch.Generator], Any]) -> list[Any]:
            return state.streams.map(work, position, generator, whole=metric.mixes_columns)

        def weigh_(columns: slice, own: torch.Generator) -> Tensor:
            pull, moving = force[:, columns], velocity[:, columns]
            pull.mul_(potential.n_beta)
            energy = potential.localizer.add_gradient_(pull, position[:, columns], columns)
            metric.apply_root_(pull, columns)
            return torch.stack([energy, *inner_products(pull, moving)])

        dim = whole_dim(potential)
        sums = sum_over_pieces(potential, over_columns(weigh_))
        localization, products = sums[0], sums[1:]
        kick = isokinetic_kick(products, step_size, dim)
        noise_scale = scattered / dim**0.5

        def fly_(columns: slice, own: torch.Generator) -> Tensor:
            moving = velocity[:, columns]
            moving.mul_(kick.keep).addcmul_(force[:, columns], kick.turn)
            add_scaled_(position[:, columns], metric.apply_root_(moving.clone(), columns), half_step)
            add_scaled_(moving, standard_normal(moving, own), noise_scale)
            return torch.linalg.vecdot(moving, moving)

        squares = sum_over_pieces(potential, over_columns(fly_))
        shrinking = squares.clamp(min=torch.finfo(squares.dtype).tiny).rsqrt().unsqueeze(-1)

        def land_(columns: slice, own: torch.Generator) -> None:
            moving = velocity[:, columns]
            moving.mul_(shrinking)
            add_scaled_(position[:, columns], metric.apply_root_(moving.clone(), columns), half_step)

        over_columns(land_)
        tempered = loss.double() * per_chain(potential.n_beta)
        first_half = kick.energy(dim, 0.5)
        second_half = kick.energy(dim) - first_half
        bias = state.errors.record_(tempered, localization.double(), first_half, second_half, memory)
        unknown = torch.full_like(bias, torch.nan)
        return Info(loss, localization, torch.ones_like(localization), bias if batch is None else unknown)

    settings = {
        "step_size": step_size,
        "decoherence_length": decoherence_length,
        "preconditioner": preconditioner,
    }
    return Kernel(init, step_, "mclmc", settings, mclmc, exact=False)


def _length_or_default(length: float | Tensor | None, step_size: float | Tensor) -> float | Tensor:
    return 1 / friction_or_default(None, step_size) if length is None else check_positive("decoherence_length", length)


def check_dimensions(dim: int, instead: str) -> None:
    """Refuse a single dimension, in which a velocity of unit length cannot turn.

    Args:
        dim: Of the potential.
        instead: The kernel to name in the message.

    Raises:
        ValueError: ``dim`` is less than two.
    """
    if dim < 2:
        raise ValueError(
            f"dim: {dim}; expected at least 2 for microcanonical dynamics: in one dimension a velocity of unit length "
            f"has no direction to turn to. Use {instead}."
        )


def inner_products(force: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """⟨f, f⟩, ⟨f, u⟩ and ⟨u, u⟩, each ``(chains,)``: all that a kick needs to know of the two vectors."""
    return (
        torch.linalg.vecdot(force, force),
        torch.linalg.vecdot(force, velocity),
        torch.linalg.vecdot(velocity, velocity),
    )


def isokinetic_kick(products: Tensor, step_size: float | Tensor, dim: int) -> Kick:
    r"""The kick by √P∇U over a time ε, in a form without overflow or cancellation for any δ.

    With q = e^{−δ} and D = (1 + s) + q²(1 − s), which is 2q (cosh δ + s sinh δ),

    .. math:: u \leftarrow \frac{2q}{D} u + (1 - q)\,\frac{(1 + s) + q(1 - s)}{D} e, \qquad
              \Delta K = (d - 1) \left(\delta + \log\tfrac D2\right)

    The length of u is kept, so that rounding errors in it do not spread, and a velocity of zero stays zero. s is kept
    above −1 by the precision to which it is known: at −1 with δ large, uphill along the gradient, D is zero.

    Args:
        products: ⟨f, f⟩, ⟨f, u⟩ and ⟨u, u⟩, stacked, ``(3, chains)``, with f = √P∇U.
        step_size: ε, a number or ``(chains, 1)``.
        dim: d.

    Returns:
        The kick, its coefficients in the dtype of the products.
    """
    precision, tiny = torch.finfo(products.dtype).eps, torch.finfo(torch.float64).tiny
    force_square, work, speed_square = products.double().unbind(0)
    norm, speed = force_square.sqrt(), speed_square.sqrt()
    uphill = (work / (norm * speed).clamp(min=tiny)).clamp(-1, 1 - precision)
    above, below = 1 - uphill, 1 + uphill
    strength = norm * per_chain(step_size) / (dim - 1)
    lost = torch.expm1(-strength)  # q − 1
    shrunk = 1 + lost
    denominator = torch.addcmul(above, shrunk * shrunk, below)
    turn = torch.addcmul(above, shrunk, below) * lost * speed / (denominator * norm).clamp(min=tiny)
    keep = 2 * shrunk / denominator
    coefficients = torch.stack([keep, turn]).unsqueeze(-1).to(products.dtype)
    return Kick(coefficients[0], coefficients[1], strength, uphill)
