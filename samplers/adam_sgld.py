"""Stochastic gradient Langevin dynamics in Adam's metric and along its averaged gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.kernel import Info, Kernel, add_scaled_, check_positive, square_root
from samplers.noise import ColumnStreams, shards_of, standard_normal
from samplers.potential import Batch, Potential, per_chain, sum_over_pieces
from samplers.rmsprop_sgld import check_decay, check_num_adapt, new_age, running_weight


@dataclass
class AdamSGLDState:
    """What the next step needs.

    Attributes:
        position: ``(chains, dim)``.
        mean: m̂, the bias-corrected running mean of the loss gradient, ``(chains, dim)``.
        mean_square: V̂, that of its squares, ``(chains, dim)``.
        age: Steps taken, ``(chains, 1)``, a tensor, so that a captured step counts on.
        streams: The random streams of a long vector.
    """

    position: Tensor
    mean: Tensor
    mean_square: Tensor
    age: Tensor
    streams: ColumnStreams


def adam_sgld(
    step_size: float | Tensor,
    decay_mean: float | Tensor = 0.9,
    decay: float | Tensor = 0.999,
    stabilization: float | Tensor = 0.1,
    num_adapt: int | None = 500,
) -> Kernel:
    r"""Adam-preconditioned SGLD: RMSprop's metric, frozen after warm-up, and a running mean of gradients as drift.

    .. math:: \hat m_t = \hat m_{t-1} + \frac{1 - c}{1 - c^t} (g_t - \hat m_{t-1}), \qquad
              w \leftarrow w - \tfrac{\epsilon}{2} P (n\beta\, \hat m_t + \nabla\mathrm{localiser}(w))
              + \sqrt{\epsilon P}\,\xi, \qquad P = \frac{1}{\sqrt{\hat V} + a}

    with g the gradient of the loss alone, c = ``decay_mean``, and V̂ the mean of g² as in
    :func:`samplers.rmsprop_sgld`, with b = ``decay``. V̂ changes in the first ``num_adapt`` steps and never again; m̂ is
    part of the dynamics and goes on. Targets exp(−U) as ε → 0.

    **The law.** With P frozen, (w, m̂) is a linear chain on a quadratic, and its covariance the solution of a discrete
    Lyapunov equation. In one coordinate of curvature A without localiser, with e = εP, additive gradient noise of
    variance s² and r = (1 − c)/(1 + c),

    .. math:: \mathrm{Var}(n\beta\,\hat m) = \frac{A + r s^2}{1 - r e A / 4}, \qquad
              \mathrm{Var}\,w = \frac1A \left(1 + \frac{e}{4r} \mathrm{Var}(n\beta\,\hat m)\right), \qquad
              \mathrm{Cov}(w, n\beta\,\hat m) = 1 - \tfrac{e}{4} \mathrm{Var}(n\beta\,\hat m)

    (m̂ before the step), stable for reA < 4; c = 0 gives :func:`samplers.rmsprop_sgld`. **Averaging the gradient does
    not help**: to first order in e the excess of the variance is (e/4)(A/r + s²), so that gradient noise heats the
    chain as before, and the discretisation bias in stiff directions is 1/r times that of ``rmsprop_sgld`` at the same
    ε, 19 times at the default c. The largest stable step grows by 1/r too, to a law that is mostly bias. The kernel is
    here because it is published and compared with.

    **Draws must begin after the freeze**: ``num_warmup`` must not be less than ``num_adapt``. ``num_adapt=None`` never
    freezes, as published, and breaks what it breaks in :func:`samplers.rmsprop_sgld`, less by the longer memory of V̂.
    Measured on unit Gaussians, nβ = 1, full data, at the other defaults, for ε = 0.003, 0.01, 0.03, 0.1: variances of
    1.24, 1.13, 1.16, 1.39; frozen 1.00, 1.04, 1.12, 1.37 (± 0.01), which are its discretisation.

    The bias is measured, not only known on quadratics. In a stationary chain ‖w − w*‖² and ⟨w − w*, m̂⟩ do not change in
    the mean, hence E⟨w − w*, ∇U⟩ = dim + (ε/4) E[‖f‖²_P + 2c/(1 − c) ⟨f, nβ m̂⟩_P], f being the drift that the step
    takes in place of ∇U; without discretisation it is dim. ``Info.discretization_bias`` = (ε/8)(1 + c)/(1 − c)
    ⟨nβ m̂, f⟩_P is half of that excess, the part of the loss alone: an unbiased estimate of the excess of nβ·E[loss] in
    stiff directions and an upper bound, by up to 1/r, in flat ones, which have little of it.

    Args:
        step_size: ε, a number or ``(chains, 1)``. Units of position (P has those of position too; U has none).
        decay_mean: c in (0, 1), a number or ``(chains, 1)``. The default is Adam's.
        decay: b in (0, 1), a number or ``(chains, 1)``. The default is Adam's: with it, V̂ at the freeze is nearly
            the plain mean over the ``num_adapt`` steps.
        stabilization: a > 0, a number or ``(chains, 1)``; units of the loss gradient. As in ``rmsprop_sgld``.
        num_adapt: Steps in which the metric adapts, or None for never frozen.

    Returns:
        A kernel that takes minibatch or full-data gradients. It keeps two vectors per chain beside the position.

    Raises:
        ValueError: ``step_size`` or ``stabilization`` is not finite and positive, or has another shape than those; a
            decay is not between 0 and 1; or ``num_adapt`` is not positive.

    Source:
        Hitchcock & Hoogland 2025, Algorithm 2 (arXiv 2507.21449). Kim, Song & Liang 2020 (arXiv 2009.09535) call
        another kernel Adam-SGLD: isotropic noise, and m/√V added to the gradient, which shifts the target on purpose.
        The law and the identities are derived here; that the metric freezes is ours.
    """
    step_size = check_positive("step_size", step_size)
    decay_mean = check_decay("decay_mean", decay_mean)
    decay = check_decay("decay", decay)
    stabilization = check_positive("stabilization", stabilization)
    check_num_adapt(num_adapt)
    drift_scale = step_size * -0.5
    noise_scale = square_root(step_size)
    bias_scale = per_chain(step_size * 0.125 * (1 + decay_mean) / (1 - decay_mean))

    def init(position: Tensor, potential: Potential) -> AdamSGLDState:
        mean, mean_square = torch.zeros_like(position), torch.zeros_like(position)
        return AdamSGLDState(position, mean, mean_square, new_age(position), ColumnStreams(shards_of(potential)))

    @torch.no_grad()
    def step_(state: AdamSGLDState, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        position = state.position
        loss, gradient = potential.loss_and_grad(position, batch)
        state.age += 1
        weight = running_weight(decay, state.age, num_adapt).to(position.dtype)
        mean_weight = running_weight(decay_mean, state.age).to(position.dtype)

        def update_(columns: slice, own: torch.Generator) -> tuple[Tensor, Tensor]:
            part, loss_gradient = position[:, columns], gradient[:, columns]
            mean = state.mean[:, columns].lerp_(loss_gradient, mean_weight)
            mean_square = state.mean_square[:, columns].lerp_(loss_gradient.square_(), weight)
            metric = mean_square.sqrt().add_(stabilization).reciprocal_()
            drift = mean * potential.n_beta
            energy = potential.localizer.add_gradient_(drift, part, columns)
            drift.mul_(metric)
            inner = torch.linalg.vecdot(mean, drift)
            add_scaled_(part, drift, drift_scale)
            add_scaled_(part, standard_normal(part, own).mul_(metric.sqrt_()), noise_scale)
            return energy, inner

        energies, inner_products = zip(*state.streams.map(update_, position, generator), strict=True)
        energy = sum_over_pieces(potential, energies)
        inner = sum_over_pieces(potential, inner_products) * per_chain(potential.n_beta)
        return Info(loss, energy, torch.ones_like(energy), inner * bias_scale)

    settings = {
        "step_size": step_size,
        "decay_mean": decay_mean,
        "decay": decay,
        "stabilization": stabilization,
        "num_adapt": num_adapt,
    }
    return Kernel(init, step_, "adam_sgld", settings, adam_sgld, exact=False, num_adapt=num_adapt or 0)
