"""Stochastic gradient Langevin dynamics in RMSprop's metric, adapted in warm-up and then frozen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.kernel import Info, Kernel, add_scaled_, check_positive, square_root
from samplers.noise import ColumnStreams, shards_of, standard_normal
from samplers.potential import Batch, Potential, per_chain, sum_over_pieces


@dataclass
class RMSpropSGLDState:
    """What the next step needs.

    Attributes:
        position: ``(chains, dim)``.
        mean_square: V̂, the bias-corrected running mean of squares of the loss gradient, ``(chains, dim)``.
        age: Steps taken, ``(chains, 1)``, a tensor, so that a captured step counts on.
        streams: The random streams of a long vector.
    """

    position: Tensor
    mean_square: Tensor
    age: Tensor
    streams: ColumnStreams


def rmsprop_sgld(
    step_size: float | Tensor,
    decay: float | Tensor = 0.99,
    stabilization: float | Tensor = 0.1,
    num_adapt: int | None = 500,
) -> Kernel:
    r"""RMSprop-preconditioned SGLD: a metric from each chain's own gradients, adapted in warm-up and then frozen.

    .. math:: \hat V_t = \hat V_{t-1} + \frac{1 - b}{1 - b^t} (g_t^2 - \hat V_{t-1}), \qquad
              P = \frac{1}{\sqrt{\hat V} + a}, \qquad
              w \leftarrow w - \tfrac{\epsilon}{2} P\,\widehat{\nabla U}(w) + \sqrt{\epsilon P}\,\xi

    with g the gradient of the loss alone, without nβ and without the localiser, squared and divided entry by entry; b
    = ``decay``, a = ``stabilization``, ξ ~ N(0, I). V̂ is Adam's bias-corrected mean, (1 − b)/(1 − bᵗ) Σ bᵗ⁻ˢ g_s².

    **Frozen**, the default: V̂ changes in the first ``num_adapt`` steps and never again. From then on the kernel is
    :func:`samplers.sgld` with the preconditioner P, one for each chain, and targets exp(−U) as ε → 0. On a quadratic
    with Hessian A and additive gradient noise of variance s² its law is Gaussian, with the covariance Σ = MΣMᵀ + εP +
    ¼ε²s²P² where M = I − ½εPA. **Draws must begin after the freeze**, hence ``num_warmup`` must not be less than
    ``num_adapt``, and should be more by the time in which the chain forgets where it was then.

    **Never frozen**, ``num_adapt=None``, as published. It breaks the law. P follows the position, and no step has the
    term Γ = ½∇·P that would pay for it: where the memory 1/(1 − b) is short against the time of mixing, the law is not
    exp(−U) but exp(−U)/P, with full-data gradients (abs(g) + a) exp(−U) in each coordinate, and that for ε → 0. On a
    quadratic with a → 0 this doubles the variance, and with it λ̂. P also contains the very gradient that it multiplies,
    so that their noises correlate, and a step too large ends in finite, wrong values instead of divergence, since P
    shrinks as the gradient grows. Where gradient noise far exceeds the gradient, V̂ is nearly constant and all this
    small. Measured on unit Gaussians, nβ = 1, at the default b and a, for ε = 0.003, 0.01, 0.03, 0.1: variances of
    1.63, 1.44, 1.25, 1.12 with full-data gradients, and of 1.07, 1.07, 1.07, 1.10 with gradient noise of three times
    the gradient's own deviation; frozen 0.99, 1.00, 1.01, 1.02 and 0.98, 1.00, 1.02, 1.07 (± 0.014 or less), which
    are its discretisation.

    A chain that moves little in 1/(1 − b) steps freezes a metric of where it was then: valid, but of no use. For a
    metric from all chains, for any kernel, see :func:`samplers.gradient_metric`, which needs a pilot run. This kernel
    is the published one, whose metric costs no gradient.

    ``Info.discretization_bias`` = (ε/8) ⟨nβ ∇L̂, ĝ⟩_P as for :func:`samplers.sgld`, ĝ being the stochastic ∇U.

    Args:
        step_size: ε, a number or ``(chains, 1)``. Units of position (P has those of position too; U has none).
        decay: b in (0, 1), a number or ``(chains, 1)``. The default is the source's.
        stabilization: a > 0, a number or ``(chains, 1)``; units of the loss gradient. P is at most 1/a. No number
            suits every loss: 0.1 is devinterp's default; Li et al. took 1e-5, at which directions without a gradient
            move at 1e5 times ε.
        num_adapt: Steps in which the metric adapts, or None for never frozen. Five times the memory at the default b.

    Returns:
        A kernel that takes minibatch or full-data gradients. It keeps one vector per chain beside the position.

    Raises:
        ValueError: ``step_size`` or ``stabilization`` is not finite and positive, or has another shape than those;
            ``decay`` is not between 0 and 1; or ``num_adapt`` is not positive.

    Source:
        Li, Chen, Carlson & Carin 2016, *Preconditioned SGLD for deep neural networks*, Algorithm 1, without Γ;
        Hitchcock & Hoogland 2025, Algorithm 3 (arXiv 2507.21449): the loss gradient alone, bias-corrected. That the
        metric freezes is ours.
    """
    step_size = check_positive("step_size", step_size)
    decay = check_decay("decay", decay)
    stabilization = check_positive("stabilization", stabilization)
    check_num_adapt(num_adapt)
    drift_scale = step_size * -0.5
    noise_scale = square_root(step_size)
    bias_scale = per_chain(step_size * 0.125)

    def init(position: Tensor, potential: Potential) -> RMSpropSGLDState:
        streams = ColumnStreams(shards_of(potential))
        return RMSpropSGLDState(position, torch.zeros_like(position), new_age(position), streams)

    @torch.no_grad()
    def step_(state: RMSpropSGLDState, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        position = state.position
        loss, gradient = potential.loss_and_grad(position, batch)
        state.age += 1
        weight = running_weight(decay, state.age, num_adapt).to(position.dtype)

        def update_(columns: slice, own: torch.Generator) -> tuple[Tensor, Tensor]:
            part, loss_gradient = position[:, columns], gradient[:, columns]
            mean_square = state.mean_square[:, columns].lerp_(loss_gradient.square(), weight)
            metric = mean_square.sqrt().add_(stabilization).reciprocal_()
            drift = loss_gradient * potential.n_beta
            energy = potential.localizer.add_gradient_(drift, part, columns)
            drift.mul_(metric)
            inner = torch.linalg.vecdot(loss_gradient, drift)
            add_scaled_(part, drift, drift_scale)
            add_scaled_(part, standard_normal(part, own).mul_(metric.sqrt_()), noise_scale)
            return energy, inner

        energies, inner_products = zip(*state.streams.map(update_, position, generator), strict=True)
        energy = sum_over_pieces(potential, energies)
        inner = sum_over_pieces(potential, inner_products) * per_chain(potential.n_beta)
        return Info(loss, energy, torch.ones_like(energy), inner * bias_scale)

    settings = {"step_size": step_size, "decay": decay, "stabilization": stabilization, "num_adapt": num_adapt}
    return Kernel(init, step_, "rmsprop_sgld", settings, rmsprop_sgld, exact=False, num_adapt=num_adapt or 0)


def new_age(position: Tensor) -> Tensor:
    """Zero steps, ``(chains, 1)``."""
    return torch.zeros(position.shape[0], 1, dtype=torch.int64, device=position.device)


def running_weight(decay: float | Tensor, age: Tensor, num_adapt: int | None = None) -> Tensor:
    """(1 − b)/(1 − bᵗ), the weight of the t-th value in a bias-corrected running mean; zero once it is frozen.

    Args:
        decay: b.
        age: t, ``(chains, 1)``, at least 1.
        num_adapt: The last t that counts, or None.

    Returns:
        The weight, ``(chains, 1)``, float64.
    """
    weight = (1 - decay) / (1 - decay ** age.double())
    return weight if num_adapt is None else torch.where(age <= num_adapt, weight, 0.0)


def check_decay(name: str, value: float | Tensor) -> float | Tensor:
    """The value, as a Python number where it is one.

    Args:
        name: Of the argument, for the message.
        value: A number or ``(chains, 1)``.

    Returns:
        The same value.

    Raises:
        ValueError: It is not between 0 and 1, or a tensor of another shape than ``()`` or ``(chains, 1)``.
    """
    value = check_positive(name, value)
    if not bool((torch.as_tensor(value) < 1).all()):
        raise ValueError(f"{name}: {value!r}; expected a decay between 0 and 1, both excluded, such as 0.99.")
    return value


def check_num_adapt(num_adapt: int | None) -> None:
    """Refuses a number of adapting steps that is not positive.

    Args:
        num_adapt: The number, or None.

    Raises:
        ValueError: It is less than 1.
    """
    if num_adapt is not None and num_adapt < 1:
        raise ValueError(
            f"num_adapt: {num_adapt}; expected at least one step of warm-up, or None for a metric that is never frozen."
        )
