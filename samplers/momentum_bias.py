"""The bias of kernels with a momentum: predicted by closed forms on quadratics, and limited by their step size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.adaptation import Adaptation, Adapted, curvature_probe
from samplers.friction import FORGOTTEN_PER_STEP
from samplers.kernel import Kernel
from samplers.potential import Batch, Potential, gradients_per_call, whole_dim
from samplers.preconditioner import Identity, Preconditioner

WITH_FRICTION = ("sghmc", "sgnht", "baoab")
STABLE = 4.0  # h²A at which these kernels leave a quadratic, for small friction
LARGEST_GROWTH = 2.0  # of h from one round to the next, so that stiff walls are met at a step that they still bear
MOST_RESTARTS = 20


class GradientNoise(NamedTuple):
    """What is known of S, the covariance of √P nβ∇L̂ between batches. Units of 1/position² (of 1/P).

    Attributes:
        mean: s̄² = tr S / dim.
        weighted: tr S² / tr S, the mean weighed by the noise itself.
        along_curvature: tr(A S A) / tr A², the mean weighed by the square of the curvature A of U.
    """

    mean: float
    weighted: float
    along_curvature: float


class Measured(NamedTuple):
    """What the chains of a pilot have met at one time, averaged over chains but for the stiffness; units as above.

    Attributes:
        stiffness: Of U, by :func:`samplers.adaptation.stiffness`: the largest over chains.
        trace: tr S.
        square: tr S².
        along_curvature: tr(A S A) / tr A².
    """

    stiffness: float
    trace: float = 0.0
    square: float = 0.0
    along_curvature: float = 0.0


def measure(
    potential: Potential,
    position: Tensor,
    batches: Iterator[Batch] | None,
    num_batches: int,
    generator: torch.Generator,
    preconditioner: Preconditioner | None = None,
) -> Measured:
    r"""Curvature and the gradient's covariance between batches, without a matrix.

    .. math:: d_a = g_{2a} - g_{2a+1}, \qquad \tfrac12 E\|d_a\|^2 = \mathrm{tr}\,S, \qquad
              E\langle d_a, d_b\rangle^2 = 4\,\mathrm{tr}\,S^2 \quad (a \ne b), \qquad
              \tfrac12 E\langle d_a, A\xi\rangle^2 = \mathrm{tr}\,ASA

    with g = √P nβ∇L̂ of independent batches, one for each g, A = √P ∇²U √P and ξ ~ N(0, I). Where batches are drawn
    without replacement the traces are too large, that of S by a factor of two at the most.

    Args:
        potential: The target.
        position: ``(chains, dim)``, not changed.
        batches: Of minibatches; without them there is no noise.
        num_batches: How many to take for S, even, at least 4.
        generator: Of ξ.
        preconditioner: P; the identity by default.

    Returns:
        Numbers, not all finite where a gradient is not. Takes two gradients, and with batches ``num_batches`` more.
    """
    metric = preconditioner if preconditioner is not None else Identity()
    probe = curvature_probe(potential, position, None if batches is None else next(batches), generator, metric)
    squares = potential.sum(probe.square()).double()
    stiffness = float(squares.max()) ** 0.5
    if batches is None:
        return Measured(stiffness)
    differences = []
    for _ in range(num_batches // 2):
        # the next call may overwrite what this one returns
        difference = potential.loss_and_grad(position, next(batches))[1].clone()
        difference.sub_(potential.loss_and_grad(position, next(batches))[1]).mul_(potential.n_beta)
        differences.append(metric.apply_root_(difference))
    lengths = torch.stack([potential.sum(each.square()) for each in differences]).double()
    products = torch.stack([potential.sum(one * other) for one, other in itertools.combinations(differences, 2)])
    works = torch.stack([potential.sum(each * probe) for each in differences])
    return Measured(
        stiffness,
        float(0.5 * lengths.mean()),
        float(0.25 * products.double().square().mean()),
        float(0.5 * works.double().square().mean() / squares.mean().clamp(min=1e-300)),
    )


def largest_part(kernel: Kernel, step_size: float, stiffness: float, noise: GradientNoise) -> float:
    """The largest of the parts of the relative bias of nβ·E[loss] that :func:`limit_momentum_bias` lists.

    Args:
        kernel: ``sghmc``, ``sgnht`` or ``baoab``.
        step_size: h.
        stiffness: A, of the stiffest direction.
        noise: Of the gradient.

    Returns:
        A share; where chains have frictions of their own, the larger of those at the least and at the most.
    """
    friction = kernel.settings["friction"]
    square, most_noise = step_size**2, max(noise.weighted, noise.along_curvature)
    rates = torch.as_tensor(FORGOTTEN_PER_STEP / step_size if friction is None else friction).double()
    parts = [square * stiffness / 4]
    for forgotten in (step_size * float(rates.min()), step_size * float(rates.max())):
        if kernel.name == "sghmc":
            if forgotten > 1:  # which it refuses
                return math.inf
            # relief of noise that is not there is a bias as well
            heating = square * max(most_noise, kernel.settings["gradient_noise"]) / (2 * forgotten)
            parts += [square * stiffness / (4 - 2 * forgotten), heating]
        elif kernel.name == "baoab":
            parts.append(square * most_noise / (4 * math.tanh(0.5 * forgotten)))
        else:
            rubbed = forgotten + 0.5 * square * noise.mean
            unevenness = max(most_noise - noise.mean, noise.mean - noise.along_curvature)
            parts += [square * noise.mean * rubbed / 8, 0.5 * square * unevenness / rubbed]
    return max(parts)


def largest_step(kernel: Kernel, allowed: float, stiffness: float, noise: GradientNoise) -> float:
    """The largest h at which no part of the bias is above ``allowed``, by bisection: they all grow with h.

    Args:
        kernel: ``sghmc``, ``sgnht`` or ``baoab``.
        allowed: Of each part, a share.
        stiffness: A, of the stiffest direction.
        noise: Of the gradient.

    Returns:
        h, in units of position (of √P).
    """
    lower, upper = 0.0, math.sqrt(4 * allowed / max(stiffness, 1e-12))
    if largest_part(kernel, upper, stiffness, noise) <= allowed:
        return upper
    for _ in range(80):
        middle = 0.5 * (lower + upper)
        if largest_part(kernel, middle, stiffness, noise) <= allowed:
            lower = middle
        else:
            upper = middle
    return lower


def pooled(seen: list[Measured], dim: int) -> GradientNoise:
    """The noise over the later half of the rounds, in which the chains have forgotten where they started.

    Args:
        seen: One for each round.
        dim: The number of coordinates.

    Returns:
        The three means.
    """
    later = seen[len(seen) // 2 :]
    trace, square, along = (sum(values) / len(later) for values in list(zip(*later, strict=True))[1:])
    return GradientNoise(trace / dim, square / trace if trace > 0 else 0.0, along)


def limit_momentum_bias(
    fraction: float = 0.05, num_rounds: int = 12, round_steps: int = 40, num_batches: int = 8
) -> Adaptation:
    r"""Adaptation of the step size of ``sghmc``, ``sgnht`` or ``baoab``, by the bias that it is predicted to cause.

    h is the largest at which each part of the relative bias of nβ·E[loss], on a quadratic, is at most φ/2, with φ =
    ``fraction`` and α = hC. With ``sghmc`` and ``baoab``, in this order, they are

    .. math:: \frac{h^2 \hat A}{4 - 2\alpha}, \quad \frac{h^2 \hat s^2}{2\alpha} \qquad \text{and} \qquad
              \frac{h^2 \hat A}{4}, \quad \frac{h^2 \hat s^2}{4} \coth\frac{\alpha}{2}

    for discretisation, of which BAOAB has none on quadratics but has it elsewhere, and for the heat of gradient noise.
    With ``sgnht``, whose thermostat has the mean ζ = C + ½hs̄², they are

    .. math:: \frac{h^2 \hat A}{4}, \quad \frac{h\zeta}{8}\, h^2 \bar s^2, \quad
              \frac{h}{2\zeta} \max(\hat s^2 - \bar s^2, \; \bar s^2 - s_A^2)

    for discretisation, for that of the thermostat, (1 − C/ζ)(hζ)²/4, and for noise that it shares out unevenly. The
    noise is known by three means over directions, S being the covariance of √P nβ∇L̂ between batches and A = √P ∇²U √P:

    .. math:: \hat s^2 = \max\left( \frac{\mathrm{tr}\,S^2}{\mathrm{tr}\,S}, \; s_A^2 \right), \qquad
              s_A^2 = \frac{\mathrm{tr}\,ASA}{\mathrm{tr}\,A^2}, \qquad \bar s^2 = \frac{\mathrm{tr}\,S}{\mathrm{dim}}

    weighed by the noise, by the square of the curvature, and not at all. Flat directions do not dilute the first two.

    **The pilot** runs in rounds. Each measures curvature and noise at the positions reached and sets h anew: Â is the
    largest :func:`samplers.adaptation.stiffness` seen over chains and rounds, the noise is averaged over chains and
    over the later half of the rounds, and h grows at most twofold a round. Where a chain left the finite numbers, or
    met a wall at which h was not stable, h²Â > 4, the pilot starts again from its beginning with a tenth of h, and
    never takes more than half of the h that failed. ``limit_bias`` does not work with these kernels, since their
    measured bias fluctuates with the change of the loss in time.

    **What it does not limit.** Three means do not know every S. With one direction of curvature 10⁴ without noise,
    nine of 100 with s² = 10⁴, and 2,000 flat ones with s² = 500, BAOAB's excess was 12 to 15 % where 5 % was asked: the
    stiffest direction hides the noise of the others in s_A², and the flat ones dilute it in tr S² / tr S. The part of
    the thermostat was −1.8 % where it is predicted as −1.7 %, −5.3 for −5.0 and −17 for −14 %, at hζ = 0.32, 0.5 and
    0.8: too small where φ is large. And a pilot knows the walls that it has met. On (w₁w₂)² at γ = 1 no chain diverged
    up to nβ = 10⁶, but there 480 steps do not reach the localiser's width, and nβ·E[loss] was 0.429 ± 0.003 with
    BAOAB, 0.437 being exact; give it more rounds where chains travel far.

    Args:
        fraction: φ, the relative bias of nβ·E[loss] to allow.
        num_rounds: Number of measurements, after the last restart.
        round_steps: Steps of each round.
        num_batches: Gradients from which a round finds S, even, at least 4.

    Returns:
        An adaptation for ``sghmc``, ``sgnht`` or ``baoab``.

    Raises:
        ValueError: ``fraction`` or a count is out of its range; or, when it is run, the kernel is another.
        FloatingPointError: When it is run: the gradient is not finite close to the start, or no step size kept the
            chains within the finite numbers.

    Source:
        The laws on quadratics are those of :func:`samplers.sghmc` (after Chen, Fox & Guestrin 2014),
        :func:`samplers.baoab` (after Leimkuhler & Matthews 2013) and :func:`samplers.sgnht` (after Ding et al. 2014);
        the estimate of tr S² and the rule are derived here.
    """
    if not 0 < fraction < 1 or num_rounds < 1 or round_steps < 1 or num_batches < 4 or num_batches % 2:
        raise ValueError(
            f"fraction, num_rounds, round_steps, num_batches: {fraction}, {num_rounds}, {round_steps}, {num_batches}; "
            "expected a share between 0 and 1, positive counts, and an even number of at least 4 batches."
        )

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        if kernel.name not in WITH_FRICTION:
            raise ValueError(
                f"kernel: {kernel.name}; expected sghmc, sgnht or baoab, whose bias has these closed forms."
            )
        metric = kernel.settings["preconditioner"]

        def look(at: Tensor) -> Measured:
            return measure(potential, at, batches, num_batches, generator, metric)

        def step_for(seen: list[Measured]) -> float:
            stiffest = max(each.stiffness for each in seen)
            return largest_step(kernel, fraction / 2, stiffest, pooled(seen, whole_dim(potential)))

        gradients_of_measure = 2 + (0 if batches is None else num_batches)
        start = look(position)
        if not all(map(math.isfinite, start)):
            raise FloatingPointError(
                "step_size: none can be found, because the gradient is not finite close to the start. Look for "
                "overflow, or for a kink without gradient, or give step_size."
            )
        step_size, ceiling = step_for([start]), math.inf
        num_gradients, restarts = gradients_of_measure, 0
        state = kernel.init(position.clone(), potential)
        rounds: list[Measured] = []
        while len(rounds) < num_rounds:
            tuned = kernel.tune(step_size=step_size)
            for _ in range(round_steps):
                tuned.step_(state, potential, None if batches is None else next(batches), generator)
            found = look(state.position)
            num_gradients += round_steps + gradients_of_measure
            if not all(map(math.isfinite, found)) or step_size**2 * found.stiffness > STABLE:
                restarts += 1
                if restarts > MOST_RESTARTS:
                    raise FloatingPointError(
                        f"step_size: chains left the finite numbers at every step size down to {step_size:.1e}. The "
                        "loss is not finite near the start, or falls without bound; look for overflow, use float64, "
                        "or raise the localiser's strength."
                    )
                ceiling = 0.5 * step_size
                step_size *= 0.1
                state = kernel.init(position.clone(), potential)
                rounds.clear()
                continue
            rounds.append(found)
            step_size = min(ceiling, LARGEST_GROWTH * step_size, step_for(rounds))
        return Adapted(kernel.tune(step_size=step_size), num_gradients * gradients_per_call(potential, batches))

    return adapt
