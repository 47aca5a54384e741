"""What discretisation does to the energy of a microcanonical chain: kept step by step, and a rule that limits it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.adaptation import Adaptation, Adapted, stiffness
from samplers.diagnostics import diagnose
from samplers.kernel import Kernel
from samplers.noise import shards_of
from samplers.potential import Batch, Potential, gradients_per_call

ORDER = 6  # E[ΔE²] ∝ ε⁶: leapfrog's energy error per step is of third order
LARGEST_CHANGE = 10.0  # of the step size, from one round to the next
MOST_SEARCHES = 20  # rounds that do not count, because the step size was wrong by more than that
UNTURNED, TURNED = 1e10, 10.0  # ℓ/ε without refreshment, and with that of mclmc by default
FIRST_LENGTH = 2.0  # ℓ/ε of the first pilot: below the optimum, above which the ESS of what oscillates is too low
ESS_SHARE = 0.4  # ℓ in units of the distance travelled per effective sample
LENGTH_ROUNDS = 3  # each twice as long as the one before
PROJECTIONS = 8


@dataclass
class EnergyErrors:
    """The energy errors of each chain, all ``(chains,)``, float64, nats.

    Attributes:
        pending: U at the last position, less the kinetic energy gained since: what U less the gain up to the next
            position would be, without discretisation.
        latest: Error of the last step, which ended at the position where the step under way began.
        remembered: Sum of all errors, those of long ago forgotten.
        mean_loss: Of nβ·loss so far, with weights that grow like the cube of the step, so that the start is forgotten.
        steps: How many were begun.
    """

    pending: Tensor
    latest: Tensor
    remembered: Tensor
    mean_loss: Tensor
    steps: Tensor

    @classmethod
    def of(cls, position: Tensor) -> EnergyErrors:
        """Nothing known yet, for these chains ``(chains, dim)``."""
        return cls(*position.new_zeros(5, position.shape[0], dtype=torch.float64).unbind(0))

    def record_(
        self, loss: Tensor, localization: Tensor, first_half: Tensor, second_half: Tensor, memory: float | Tensor
    ) -> Tensor:
        """Close the step that ended at this position, and begin the next; the estimated excess of nβ·E[loss].

        Args:
            loss: nβ·loss here, ``(chains,)``, float64.
            localization: Energy of the localiser here.
            first_half: Kinetic energy of the half-kick here that closes the step.
            second_half: That of the half-kick that begins the next.
            memory: Logarithm of what one step leaves of an error in ``remembered``, a number or ``(chains,)``.

        Returns:
            ``(chains,)``, nats: the remembered errors times the deviation of nβ·loss from its mean.
        """
        energy = loss + localization
        closed = energy + first_half - self.pending
        # the first step begins without a velocity, and has no error
        self.latest.copy_(torch.where(self.steps > 1, closed, torch.zeros_like(closed)))
        self.pending.copy_(energy - second_half)
        self.steps += 1
        self.mean_loss += (loss - self.mean_loss) * (4 / (self.steps + 3))
        self.remembered.mul_(memory.exp() if isinstance(memory, Tensor) else math.exp(memory)).add_(self.latest)
        return self.remembered * (loss - self.mean_loss)


def limit_energy_error(
    target: float = 5e-4, num_rounds: int = 12, round_steps: int = 40, length_steps: int = 400
) -> Adaptation:
    r"""Adaptation of step size and decoherence length of a microcanonical chain, by the energy error of its steps.

    **Step size.** Aims at E[ΔE²]/dim = target, in rounds. ΔE is the error of U + ΣΔK in one leapfrog step; its square
    grows like ε⁶, and each round multiplies ε by the sixth root of the ratio of aim to measurement, at most tenfold.
    It is measured in every second step, in which the velocity is not refreshed half-way, so that it is the
    integrator's alone; and the step after it takes the same batch, so that losses of two batches are never compared
    (nor is it seen what minibatches do to the law: see :func:`samplers.mclmc`). Where a chain left the finite
    numbers, or ε was more than ten times too large, the pilot starts again from its beginning with a tenth of ε.

    **Decoherence length.** The source sets ℓ = 0.4 · (distance travelled per effective sample), the ESS being that of
    a pilot with some ℓ₀. On a Gaussian of width σ the autocorrelation time of positions is ∝ 1/ℓ₀, so that the rule
    overshoots by as much as ℓ₀ was short. The geometric mean of ℓ₀ and the rule's ℓ is its fixed point, √0.8 σ√dim
    for small ε, from any ℓ₀ below it. It is taken three times, because a pilot sees no more than its length. ESS is
    the harmonic mean over random projections, in which the wide and slow directions prevail.

    Both are then frozen numbers.

    Args:
        target: Of E[ΔE²]/dim, nats². 5e-4 is the source's; on isotropic Gaussians it leads to ε = 0.45 to 0.65 σ√dim
            and an excess of E[U] of 1 to 3.5 %. The excess goes with target^{1/3}: 5e-6 leaves a fifth of it, for
            twice the steps.
        num_rounds: Number of measurements of the energy error.
        round_steps: Steps of each.
        length_steps: Steps of the last and longest pilot for ℓ.

    Returns:
        An adaptation for :func:`samplers.mclmc`.

    Raises:
        ValueError: ``target`` or a count is too small; or, when it is run, the kernel is not :func:`samplers.mclmc`,
            or vectors are shards.
        FloatingPointError: No step size kept the chains within the finite numbers.

    Source:
        Robnik, De Luca, Silverstein & Seljak 2023, JMLR 24 (the ESS rule, 0.4); Robnik, Cohn-Gordon & Seljak 2024,
        arXiv 2412.08876 (the energy error per dimension bounds the bias on Gaussians). The measurement without
        refreshment and the fixed point are derived here.
    """
    if not target > 0 or num_rounds < 1 or round_steps < 2 or length_steps < 16:
        raise ValueError(
            f"target, num_rounds, round_steps, length_steps: {target}, {num_rounds}, {round_steps}, {length_steps}; "
            "expected a positive number, and at least 1, 2 and 16."
        )

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ) -> Adapted:
        if kernel.name != "mclmc":
            raise ValueError(f"kernel: {kernel.name}; expected mclmc, whose steps have an energy error to limit.")
        if shards_of(potential) is not None:
            raise ValueError(
                "potential: its vectors are shards; give step_size and decoherence_length of mclmc instead."
            )
        pilot = Pilot(kernel, potential, position, batches, generator)
        step_size = pilot.find_step_size(target, num_rounds, round_steps // 2)
        length = FIRST_LENGTH * step_size
        for halvings in reversed(range(LENGTH_ROUNDS)):
            steps = pilot.steps_per_effective_sample(step_size, length, length_steps // 2**halvings)
            length = math.sqrt(length * ESS_SHARE * step_size * steps)
        return Adapted(kernel.tune(step_size=step_size, decoherence_length=length), pilot.num_gradients)

    return adapt


class Pilot:
    """Chains that are moved at one setting after another, to measure what a setting does.

    Args:
        kernel: :func:`samplers.mclmc`, with any settings.
        potential: The target.
        position: Where the chains start, ``(chains, dim)``, not changed.
        batches: Of minibatches, or None.
        generator: Of all noise.
    """

    def __init__(
        self,
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
    ):
        self.kernel, self.potential, self.start = kernel, potential, position
        self.batches, self.generator = batches, generator
        self.num_gradients = 0
        self.gradients_per_call = gradients_per_call(potential, batches)
        self.state: Any = None

    def _batch(self) -> Batch:
        return None if self.batches is None else next(self.batches)

    def _step(self, kernel: Kernel, batch: Batch) -> None:
        kernel.step_(self.state, self.potential, batch, self.generator)
        self.num_gradients += self.gradients_per_call

    def energy_error(self, step_size: float, pairs: int) -> float:
        """E[ΔE²]/dim over so many steps of all chains, each followed by one with refreshment; nats²."""
        turning, straight = (
            self.kernel.tune(step_size=step_size, decoherence_length=length * step_size)
            for length in (TURNED, UNTURNED)
        )
        if self.state is None:
            self.state = self.kernel.init(self.start.clone(), self.potential)
            self._step(turning, self._batch())
        squares = []
        for _ in range(pairs):
            batch = self._batch()
            self._step(straight, batch)
            self._step(turning, batch)
            squares.append(self.state.errors.latest.square())
        return float(torch.stack(squares).mean()) / self.potential.dim

    def find_step_size(self, target: float, num_rounds: int, pairs: int) -> float:
        """The step size at which the energy error meets the target, averaged over the second half of the rounds.

        Args:
            target: Of E[ΔE²]/dim.
            num_rounds: Rounds that count.
            pairs: Measurements in each.

        Returns:
            ε.

        Raises:
            FloatingPointError: None was found.
        """
        batch = self._batch()
        curvature = stiffness(self.potential, self.start, batch, self.generator)
        self.num_gradients += 2 * self.gradients_per_call
        step_size = 0.1 * math.sqrt(self.potential.dim / max(curvature, 1e-12))
        settled: list[float] = []
        finished = searches = 0
        while finished < num_rounds:
            measured = self.energy_error(step_size, pairs)
            change = 0.0 if not math.isfinite(measured) else (target / max(measured, 1e-300)) ** (1 / ORDER)
            if 1 / LARGEST_CHANGE < change < LARGEST_CHANGE:
                finished += 1
                step_size *= change
                if finished > num_rounds // 2:
                    settled.append(math.log(step_size))
                continue
            searches += 1
            if searches > MOST_SEARCHES:
                raise FloatingPointError(
                    f"step_size: at {step_size:.1e} the energy error per dimension is {measured:.1e} nats², and none "
                    f"near {target:.1e} was found. The loss is flat, or not finite, near the start; look for overflow, "
                    "or use float64."
                )
            if change >= LARGEST_CHANGE:
                step_size *= LARGEST_CHANGE
            else:
                step_size /= LARGEST_CHANGE
                self.state = None
        return math.exp(sum(settled) / len(settled))

    def steps_per_effective_sample(self, step_size: float, length: float, num_steps: int) -> float:
        """Steps per effective sample of random projections of the position, the mean over projections.

        Args:
            step_size: ε.
            length: ℓ.
            num_steps: How far to move the chains.

        Returns:
            Steps of one chain per effective sample.

        Raises:
            FloatingPointError: A chain left the finite numbers.
        """
        kernel = self.kernel.tune(step_size=step_size, decoherence_length=length)
        shape, like = (self.potential.dim, PROJECTIONS), self.start
        directions = torch.randn(shape, dtype=like.dtype, device=like.device, generator=self.generator)
        projected = []
        for _ in range(num_steps):
            self._step(kernel, self._batch())
            projected.append(self.state.position @ directions)
        draws = torch.stack(projected, 1).double().cpu().numpy()
        if not bool(torch.isfinite(self.state.position).all()):
            raise FloatingPointError(
                f"decoherence_length: chains left the finite numbers at step size {step_size:.1e}. Lower target, or "
                "use float64."
            )
        ess = [diagnose(draws[..., place]).ess for place in range(PROJECTIONS)]
        return sum(draws.shape[0] * num_steps / each for each in ess) / PROJECTIONS
