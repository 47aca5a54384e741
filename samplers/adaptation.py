"""Step sizes and preconditioners, found in a pilot run and then frozen.

An adaptation is a function of the kernel and the target that returns numbers. It never runs while draws are taken, so
the law of the draws is that of a kernel with fixed settings, unless a caller changes them by :meth:`samplers.Run.tune`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.kernel import Kernel
from samplers.noise import normal_vectors, shards_of
from samplers.potential import Batch, Potential, gradients_per_call, per_chain
from samplers.preconditioner import Identity, Preconditioner

WITH_A_MEASURED_BIAS = ("sgld", "rmsprop_sgld", "adam_sgld")  # in a round as short as those of limit_bias
# Where the largest speed lies in high dimension: Roberts & Rosenthal 1998, Theorem 3; Beskos et al. 2013, §4.
OPTIMAL_RATES = {"mala": 0.574, "hmc": 0.651}
RATE_OF_OTHERS = 0.8


class Adapted(NamedTuple):
    """What an adaptation found.

    Attributes:
        kernel: With its numbers set.
        num_gradients: Taken, of every chain.
        initial: ``(chains of a block, dim)``, where chains start; None for where they were to start.
    """

    kernel: Kernel
    num_gradients: int
    initial: Tensor | None = None


Adaptation = Callable[[Kernel, Potential, Tensor, Iterator[Batch] | None, torch.Generator], Adapted]


def curvature_probe(
    potential: Potential,
    position: Tensor,
    batch: Batch,
    generator: torch.Generator,
    preconditioner: Preconditioner | None = None,
) -> Tensor:
    r"""√P ∇²U √P ξ, ξ ~ N(0, I), one ξ for each chain: a finite difference of two gradients on the same batch.

    Args:
        potential: The target.
        position: ``(chains, dim)``, not changed.
        batch: The batch for both gradients.
        generator: Of the direction.
        preconditioner: P; the identity by default.

    Returns:
        ``(chains, dim)``, in units of 1/position² (of 1/P).
    """
    dtype_epsilon = torch.finfo(position.dtype).eps
    direction = normal_vectors(position, generator, shards_of(potential))
    metric = preconditioner if preconditioner is not None else Identity()
    metric.apply_root_(direction)
    # the step from the position is as long as its precision asks for, whatever the unit of P
    width = dtype_epsilon ** (1 / 3) * max(1.0, _root_mean_square(potential, position))
    width /= max(_root_mean_square(potential, direction), 1e-30)

    def gradient(at: Tensor) -> Tensor:
        _, loss_gradient = potential.loss_and_grad(at, batch)
        total = loss_gradient * potential.n_beta
        potential.localizer.add_gradient_(total, at)
        return total

    change = (gradient(position + width * direction) - gradient(position)) / width
    return metric.apply_root_(change)


def _root_mean_square(potential: Potential, vectors: Tensor) -> float:
    if shards_of(potential) is None:
        return float(vectors.square().mean().sqrt())
    both = potential.sum(torch.stack([vectors.square(), torch.ones_like(vectors)])).sum(1)
    return math.sqrt(float(both[0] / both[1]))


def stiffness(
    potential: Potential,
    position: Tensor,
    batch: Batch,
    generator: torch.Generator,
    preconditioner: Preconditioner | None = None,
) -> float:
    r"""A step-size-free measure of the largest curvature of U: ‖√P ∇²U √P ξ‖, ξ ~ N(0, I), the largest over chains.

    Its square estimates ‖√P ∇²U √P‖²_F, so that it is seldom below the largest eigenvalue; from one
    :func:`curvature_probe`.

    Args:
        potential: The target.
        position: ``(chains, dim)``, not changed.
        batch: The batch for both gradients.
        generator: Of the direction.
        preconditioner: P; the identity by default.

    Returns:
        The measure, in units of 1/position² (of 1/P).

    Raises:
        FloatingPointError: The gradient is not finite there.
    """
    probe = curvature_probe(potential, position, batch, generator, preconditioner)
    measure = float(potential.sum(probe.square()).sqrt().max())
    if not math.isfinite(measure):
        raise FloatingPointError(
            "step_size: none can be found, because the gradient is not finite close to the anchor. Look for overflow, "
            "or for a kink without gradient, or give step_size."
        )
    return measure


def accept_at_rate(target: float | None = None, num_steps: int = 400) -> Adaptation:
    r"""Adaptation of one step size for all chains, by dual averaging towards a mean acceptance rate.

    .. math:: \log\epsilon_{t+1} = \mu - \frac{\sqrt t}{0.05}\,\frac{1}{t + 10} \sum_{s \le t} (\delta - \alpha_s)

    The log step sizes are averaged with weights t^{-0.75}. The constants are those of the source.

    It takes the rate to fall with the step. That of paths with one number of steps, of ``hmc`` and ``adjusted_mclmc``,
    does not where few frequencies decide it: with curvatures 0.01, 1 and 10⁴ and five steps of HMC it was 0.95 at
    h√A = 1.6, 0.53 at 1.8 and 0.97 at 1.9, and the step that was found had a rate of 0.95 to 0.99. Look at the rate of
    the draws.

    Args:
        target: δ. By default the optimum in high dimension: 0.574 for ``mala``, 0.651 for ``hmc``; 0.8 for others.
        num_steps: Length of the pilot run, in steps.

    Returns:
        An adaptation for a Metropolis-corrected kernel with a setting ``step_size``, which becomes one number: the
        single-scale option of kernels that can draw it over many.

    Raises:
        ValueError: ``target`` is outside (0, 1), or ``num_steps`` is not positive; or, when it is run, the kernel is
            not exact, and accepts every move.
        FloatingPointError: When it is run: the gradient is not finite close to the start.

    Source:
        Hoffman & Gelman 2014, §3.2.1, eq. 6.
    """
    if (target is not None and not 0 < target < 1) or num_steps < 1:
        raise ValueError(f"target, num_steps: {target}, {num_steps}; expected a rate in (0, 1) and at least one step.")

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        if not kernel.exact:
            raise ValueError(
                f"kernel: {kernel.name} accepts every move, at any step size; expected an exact kernel, such as mala "
                "or hmc. For others there are limit_bias, limit_momentum_bias and limit_energy_error."
            )
        inner = kernel.settings.get("inner", kernel)
        rate = OPTIMAL_RATES.get(inner.name, RATE_OF_OTHERS) if target is None else target
        metric = inner.settings.get("preconditioner")
        largest = max(stiffness(potential, position, None, generator, metric), 1e-12)
        # ε of Langevin kernels has units of position², the step of all others of position
        log_start = -math.log(largest) * (1.0 if inner.name == "mala" else 0.5)
        log_step, log_average, shortfall = log_start, log_start, 0.0
        state = kernel.init(position, potential)
        for step in range(1, num_steps + 1):
            info = kernel.tune(step_size=math.exp(log_step)).step_(state, potential, None, generator)
            shortfall += rate - float(info.acceptance_rate.mean())
            log_step = log_start + math.log(10) - math.sqrt(step) / 0.05 / (step + 10) * shortfall
            weight = step**-0.75
            log_average = weight * log_step + (1 - weight) * log_average
        num_gradients = num_steps * kernel.gradients_per_step + 3
        return Adapted(kernel.tune(step_size=math.exp(log_average)), num_gradients)

    return adapt


def limit_bias(baseline: float, fraction: float = 0.02, num_rounds: int = 12, round_steps: int = 40) -> Adaptation:
    r"""Adaptation of one step size for all chains, by the discretisation bias that it is predicted to cause.

    .. math:: \epsilon \leftarrow \epsilon \, \frac{a}{b}, \qquad
              a = \phi \max(0.4, \; n\beta\, |\langle L \rangle - L_0|), \qquad
              b = \langle \mathrm{discretization\_bias} \rangle

    in rounds, with φ = ``fraction``, L₀ = ``baseline``, and means over the steps and chains of a round. The ratio is
    kept within a factor of ten; after a round in which a chain left the finite numbers, the pilot starts again from
    its beginning with a tenth of ε. What is returned is the geometric mean of ε over the later half of the rounds.

    Args:
        baseline: The loss at the anchor, in nats, over which the energy is counted.
        fraction: The relative bias to allow, 2 % by default: below the 5 % tolerance of an estimate.
        num_rounds: Number of measurements.
        round_steps: Steps of each.

    Returns:
        An adaptation for ``sgld``, ``rmsprop_sgld`` or ``adam_sgld``, whose draws of the bias are its own: those of
        kernels with a momentum fluctuate with the change of the loss in time, and exact kernels have none.

    Raises:
        ValueError: ``fraction`` or a count is not positive; or, when it is run, the kernel is another.
        FloatingPointError: When it is run: no step size kept the chains within the finite numbers.

    Source:
        The rule is derived here; the identity behind ``Info.discretization_bias`` with :func:`samplers.sgld`. The
        floor of 0.4, just below the ½ of one regular direction, is for chains that have yet to rise from the anchor.
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
        if kernel.name not in WITH_A_MEASURED_BIAS:
            raise ValueError(
                f"kernel: {kernel.name}; expected sgld, rmsprop_sgld or adam_sgld. For kernels with a momentum there "
                "is limit_momentum_bias, for mclmc limit_energy_error, for exact kernels accept_at_rate."
            )
        first_batch = None if batches is None else next(batches)
        metric = kernel.settings.get("preconditioner")
        step_size = 0.1 / max(stiffness(potential, position, first_batch, generator, metric), 1e-12)
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
        num_gradients *= kernel.gradients_per_step * gradients_per_call(potential, batches)
        return Adapted(kernel.tune(step_size=math.exp(sum(settled) / len(settled))), num_gradients)

    return adapt
