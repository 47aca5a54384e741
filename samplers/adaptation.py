"""Step sizes and preconditioners, found in a pilot run and then frozen.

An adaptation is a function of the kernel and the target that returns numbers. It never runs while draws are taken, so
the law of the draws is that of a kernel with fixed settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.kernel import Kernel
from samplers.potential import Batch, Potential, per_chain


class Adapted(NamedTuple):
    """What an adaptation found.

    Attributes:
        kernel: With its numbers set.
        num_gradients: Steps taken, each one gradient per chain.
    """

    kernel: Kernel
    num_gradients: int


Adaptation = Callable[[Kernel, Potential, Tensor, Iterator[Batch] | None, torch.Generator], Adapted]


def stiffness(potential: Potential, position: Tensor, batch: Batch, generator: torch.Generator) -> float:
    r"""A step-size-free measure of the largest curvature of U: ‖∇²U ξ‖ for ξ ~ N(0, I), the largest over chains.

    Its square estimates ‖∇²U‖²_F, so that it is seldom below the largest eigenvalue. A finite difference of two
    gradients on the same batch.

    Args:
        potential: The target.
        position: ``(chains, dim)``, not changed.
        batch: The batch for both gradients.
        generator: Of the direction.

    Returns:
        The measure, in units of 1/position².

    Raises:
        FloatingPointError: The gradient is not finite there.
    """
    dtype_epsilon = torch.finfo(position.dtype).eps
    direction = torch.randn(position.shape, dtype=position.dtype, device=position.device, generator=generator)
    width = dtype_epsilon ** (1 / 3) * max(1.0, float(position.square().mean().sqrt()))

    def gradient(at: Tensor) -> Tensor:
        _, loss_gradient = potential.loss_and_grad(at, batch)
        total = loss_gradient * potential.n_beta
        potential.localizer.add_gradient_(total, at)
        return total

    change = (gradient(position + width * direction) - gradient(position)) / width
    measure = float(potential.sum(change.square()).sqrt().max())
    if not math.isfinite(measure):
        raise FloatingPointError(
            "step_size: none can be found, because the gradient is not finite close to the anchor. Look for overflow, "
            "or for a kink without gradient, or give step_size."
        )
    return measure


def accept_at_rate(target: float = 0.574, num_steps: int = 400) -> Adaptation:
    r"""Adaptation of one step size for all chains, by dual averaging towards a mean acceptance rate.

    .. math:: \log\epsilon_{t+1} = \mu - \frac{\sqrt t}{0.05}\,\frac{1}{t + 10} \sum_{s \le t} (\delta - \alpha_s)

    The log step sizes are averaged with weights t^{-0.75}. The constants are those of the source.

    Args:
        target: δ. The default is the optimum of MALA in high dimension (Roberts & Rosenthal 1998, Theorem 3).
        num_steps: Length of the pilot run, in steps.

    Returns:
        An adaptation for a Metropolis-corrected kernel with a setting ``step_size``.

    Raises:
        ValueError: ``target`` is outside (0, 1), or ``num_steps`` is not positive.

    Source:
        Hoffman & Gelman 2014, §3.2.1, eq. 6.
    """
    if not 0 < target < 1 or num_steps < 1:
        raise ValueError(f"target, num_steps: {target}, {num_steps}; expected a rate in (0, 1) and at least one step.")

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        log_start = math.log(1.0 / max(stiffness(potential, position, None, generator), 1e-12))
        log_step, log_average, shortfall = log_start, log_start, 0.0
        state = kernel.init(position, potential)
        for step in range(1, num_steps + 1):
            info = kernel.tune(step_size=math.exp(log_step)).step_(state, potential, None, generator)
            shortfall += target - float(info.acceptance_rate.mean())
            log_step = log_start + math.log(10) - math.sqrt(step) / 0.05 / (step + 10) * shortfall
            weight = step**-0.75
            log_average = weight * log_step + (1 - weight) * log_average
        return Adapted(kernel.tune(step_size=math.exp(log_average)), num_steps + 3)

    return adapt


def limit_bias(baseline: float, fraction: float = 0.02, num_rounds: int = 12, round_steps: int = 40) -> Adaptation:
    r"""Adaptation of one step size for all chains, by the discretisation bias that it is predicted to cause.

    Aims at ``Info.discretization_bias`` = fraction · max(0.4, nβ |E[loss] − baseline|), in rounds. Each round
    multiplies ε by the ratio of aim to measurement, at most tenfold; after a round in which a chain left the finite
    numbers, the pilot starts again from its beginning with a tenth of ε.

    Args:
        baseline: The loss at the anchor, in nats, over which the energy is counted.
        fraction: The relative bias to allow, 2 % by default: below the 5 % tolerance of an estimate.
        num_rounds: Number of measurements.
        round_steps: Steps of each.

    Returns:
        An adaptation for an unadjusted kernel with a setting ``step_size``.

    Raises:
        ValueError: ``fraction`` or a count is not positive.
        FloatingPointError: No step size kept the chains within the finite numbers.
    """
    if fraction <= 0 or num_rounds < 1 or round_steps < 1:
        raise ValueError(
            f"fraction, num_rounds, round_steps: {fraction}, {num_rounds}, {round_steps}; expected positive numbers."
        )

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        first_batch = None if batches is None else next(batches)
        step_size = 0.1 / max(stiffness(potential, position, first_batch, generator), 1e-12)
        state = kernel.init(position.clone(), potential)
        num_gradients = 2
        settled: list[float] = []
        finished = restarts = 0
        while finished < num_rounds:
            tuned = kernel.tune(step_size=step_size)
            infos = [
                tuned.step_(state, potential, None if batches is None else next(batches), generator)
                for _ in range(round_steps)
            ]
            num_gradients += round_steps
            energy = (torch.stack([info.loss for info in infos]).double() - baseline) * per_chain(potential.n_beta)
            bias = float(torch.stack([info.discretization_bias for info in infos]).double().mean())
            if not bool(torch.isfinite(energy).all()) or not math.isfinite(bias):
                restarts += 1
                if restarts > 20:
                    raise FloatingPointError(
                        f"step_size: chains left the finite numbers at every step size down to {step_size:.1e}. The "
                        "loss is not finite near the anchor; look for overflow, or use float64."
                    )
                step_size *= 0.1
                state = kernel.init(position.clone(), potential)
                settled.clear()
                continue
            allowed = fraction * max(0.4, abs(float(energy.mean())))
            step_size *= min(10.0, max(0.1, allowed / bias)) if bias > 0 else 0.5
            finished += 1
            if finished > num_rounds // 2:
                settled.append(math.log(step_size))
        return Adapted(kernel.tune(step_size=math.exp(sum(settled) / len(settled))), num_gradients)

    return adapt
