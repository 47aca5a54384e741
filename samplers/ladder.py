"""Ladders for replica exchange: found in a pilot so that all swaps are refused equally often, and then frozen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from samplers.kernel import Kernel
from samplers.potential import Potential
from samplers.seeds import ADAPTATION, block_generator
from samplers.tempering import ladder_potential, replica_exchange

FIRST_RATIO = 3.0  # of neighbouring rungs before anything is known: at λ = 1/2 a swap is refused in a third of cases
LEAST_REJECTION = 1e-3  # of a pair, in the interpolation: where no swap is ever refused the barrier still must rise
FINENESS = 4096  # points on which the interpolated barrier is inverted

Array = NDArray[np.float64]


class SpacedLadder(NamedTuple):
    """A ladder on which swaps are refused equally often, and what a pilot measured on it.

    Attributes:
        n_beta: nβ of the rungs, ``(rungs,)``, float64, from the hottest up; for :func:`samplers.ladder_potential`.
        rejection_rates: Of the swaps between neighbours, ``(rungs − 1,)``, measured on this ladder in the last round.
        barrier: Λ, their sum, which estimates the communication barrier between the first rung and the last. With
            many rungs it converges from below; on Gaussians it is 8 % short where half of the swaps are refused.
        round_trip_rate: Predicted round trips per ladder and step, if each step of the kernel forgot the loss. Compare
            it with ``state.round_trips`` of a long run: fewer mean that the kernel mixes slowly at some rung.
        num_gradients: Loss gradients taken, in calls per chain summed over chains.
    """

    n_beta: Tensor
    rejection_rates: Array
    barrier: float
    round_trip_rate: float
    num_gradients: int


def predicted_round_trip_rate(rejection_rates: ArrayLike) -> float:
    r"""Round trips per ladder and step of replica exchange whose kernel forgets the loss in every step.

    .. math:: \tau = \left( 2 + 2 \sum_i \frac{r_i}{1 - r_i} \right)^{-1}

    Args:
        rejection_rates: r_i of neighbouring rungs, ``(rungs − 1,)``, in [0, 1].

    Returns:
        τ, at most one half; zero where a swap is never accepted.

    Source:
        Syed, Bouchard-Côté, Deligiannidis & Doucet 2022, §3.5, for swaps of even and odd pairs in turns.
    """
    rates = np.asarray(rejection_rates, dtype=np.float64)
    return 0.0 if (rates >= 1).any() else float(1 / (2 + 2 * (rates / (1 - rates)).sum()))


def respaced(n_beta: ArrayLike, rejection_rates: ArrayLike, num_rungs: int) -> Array:
    r"""Rungs between the same ends with equal parts of the communication barrier between neighbours.

    .. math:: \Lambda(t_i) = \sum_{j < i} r_j, \qquad \Lambda(t^*_k) = \frac{k}{R - 1}\,\Lambda(t_{R-1})

    with Λ between the old rungs by monotone cubic interpolation in log(t + c), c being the second rung where the first
    is 0, and 0 otherwise.

    Args:
        n_beta: Old rungs, ``(rungs,)``, increasing, at least 0.
        rejection_rates: r of neighbouring rungs, ``(rungs − 1,)``.
        num_rungs: R, of the new ladder, at least 2.

    Returns:
        New rungs, ``(R,)``, increasing.

    Raises:
        ValueError: Shapes do not fit, or a rate is outside [0, 1].

    Source:
        Syed, Bouchard-Côté, Deligiannidis & Doucet 2022, §5.1–5.3.
    """
    from scipy.interpolate import PchipInterpolator  # slow to import, and few need it

    rungs, rates = np.asarray(n_beta, dtype=np.float64), np.asarray(rejection_rates, dtype=np.float64)
    if rungs.ndim != 1 or rates.shape != (len(rungs) - 1,) or num_rungs < 2 or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(
            f"rejection_rates: {rates.tolist()} for {len(rungs)} rungs, num_rungs: {num_rungs}; expected one rate in "
            "[0, 1] for each pair of neighbours, and at least 2 rungs."
        )
    shift = rungs[1] if rungs[0] == 0 else 0.0
    place = np.log(rungs + shift)
    barrier = np.concatenate([[0.0], np.cumsum(rates.clip(min=LEAST_REJECTION))])
    fine = np.unique(np.concatenate([np.linspace(place[0], place[-1], FINENESS), place]))
    levels = np.linspace(0, barrier[-1], num_rungs)
    found = np.exp(np.interp(levels, PchipInterpolator(place, barrier)(fine), fine)) - shift
    found[0], found[-1] = rungs[0], rungs[-1]
    return found


def spaced_ladder(
    potential: Potential,
    kernel_at: Callable[[Tensor], Kernel],
    n_beta: tuple[float, float],
    initial: Tensor,
    *,
    num_rungs: int | None = None,
    num_ladders: int = 16,
    num_rounds: int = 4,
    round_steps: int = 50,
    seed: int = 0,
) -> SpacedLadder:
    r"""A ladder between two inverse temperatures on which all swaps of replica exchange are refused equally often.

    Rounds of replica exchange, each with twice the steps of the one before, from where that one stopped; the first
    half of a round is not counted. After a round the rungs are respaced from its rejection rates (``respaced``).
    The last round is run on the ladder that is returned, and measures it. nβ·L is tempered, the localiser is not.

    **How many rungs.** Without ``num_rungs`` there are ⌈2Λ⌉ intervals: swaps are then accepted in half of the cases,
    which gives most round trips for a number of chains. More rungs than that cost as much as more ladders and bring
    fewer round trips, but finer ladders serve :func:`samplers.log_z_by_thermodynamic_integration`.

    The numbers are frozen: use them with :func:`samplers.ladder_potential` and ``kernel_at`` of its rows.

    Args:
        potential: The target; its own nβ is replaced.
        kernel_at: nβ of every row, ``(rows, 1)`` → an exact kernel with the loss in its state, with settings for these
            rows: ``lambda t: hmc((0.15 / (1 + t) ** 0.5, 1.0), 5)``.
        n_beta: Of the first rung, at least 0, and of the last. The first should be so hot that its chain crosses the
            whole localiser; at 0 it is the localiser's own.
        initial: ``(dim,)``, where all chains start.
        num_rungs: Of the ladder, at least 2; by default from Λ.
        num_ladders: Independent ladders, which are averaged over.
        num_rounds: Of respacing; one more measures.
        round_steps: Of the first round.
        seed: Of everything random.

    Returns:
        The ladder, its rejection rates, barrier and round-trip rate.

    Raises:
        ValueError: An argument is out of its range.
        FloatingPointError: A loss was not finite.

    Source:
        Syed, Bouchard-Côté, Deligiannidis & Doucet 2022, §5.
    """
    low, high = map(float, n_beta)
    if not 0 <= low < high < math.inf:
        raise ValueError(f"n_beta: {n_beta}; expected two finite numbers of at least 0, the first below the second.")
    if num_ladders < 1 or num_rounds < 1 or round_steps < 4 or (num_rungs is not None and num_rungs < 2):
        raise ValueError(
            f"num_ladders, num_rounds, round_steps, num_rungs: {num_ladders}, {num_rounds}, {round_steps}, "
            f"{num_rungs}; expected at least 1, 1, 4, and 2 or None."
        )
    if tuple(initial.shape) != (potential.dim,):
        raise ValueError(f"initial: shape {tuple(initial.shape)}; expected {(potential.dim,)}, where all chains start.")
    pilot = _Pilot(potential, kernel_at, num_ladders, block_generator(seed, ADAPTATION, initial.device))
    ladder = _first_ladder(potential, low, high, initial, num_rungs)
    positions = initial.detach().expand(num_ladders, len(ladder), -1)
    for place in range(num_rounds):
        rates, positions = pilot.round(ladder, positions, round_steps * 2**place)
        count = num_rungs if num_rungs is not None else max(2, math.ceil(2 * rates.sum()) + 1)
        following = respaced(ladder, rates, count)
        # every new rung goes on from the old one with the nearest share of the barrier
        nearest = np.rint(np.interp(following, ladder, np.arange(len(ladder)))).astype(int)
        ladder, positions = following, positions[:, torch.from_numpy(nearest).to(positions.device)]
    rates, _ = pilot.round(ladder, positions, round_steps * 2**num_rounds)
    return SpacedLadder(
        n_beta=torch.as_tensor(ladder, dtype=torch.float64, device=initial.device),
        rejection_rates=rates,
        barrier=float(rates.sum()),
        round_trip_rate=predicted_round_trip_rate(rates),
        num_gradients=pilot.num_gradients,
    )


def _first_ladder(potential: Potential, low: float, high: float, initial: Tensor, num_rungs: int | None) -> Array:
    """A geometric ladder. From nβ = 0, the lowest positive rung is where nβ·L is of order one under the localiser."""
    hot = low
    if low == 0:
        strength = getattr(potential.localizer, "strength", 1.0)
        hot = min(strength, high / 4) if strength > 0 else high / 4
    count = num_rungs if num_rungs is not None else max(3, math.ceil(math.log(high / hot, FIRST_RATIO)) + 1)
    if low > 0 or count == 2:
        return np.array([low, high]) if count == 2 else np.geomspace(low, high, count)
    return np.concatenate([[0.0], np.geomspace(hot, high, count - 1)])


class _Pilot:
    """Ladders that are run for a number of steps to see how often swaps are refused."""

    def __init__(
        self,
        potential: Potential,
        kernel_at: Callable[[Tensor], Kernel],
        num_ladders: int,
        generator: torch.Generator,
    ):
        self.potential, self.kernel_at = potential, kernel_at
        self.num_ladders, self.generator = num_ladders, generator
        self.num_gradients = 0

    def round(self, ladder: Array, positions: Tensor, num_steps: int) -> tuple[Array, Tensor]:
        """Rejection rates in the second half of so many steps, and where the chains are then.

        Args:
            ladder: nβ, ``(rungs,)``.
            positions: ``(ladders, rungs, dim)``.
            num_steps: Of both halves together.

        Returns:
            Rates ``(rungs − 1,)`` and positions ``(ladders, rungs, dim)``.

        Raises:
            FloatingPointError: A chain has no finite loss.
        """
        rungs = torch.as_tensor(ladder, dtype=torch.float64, device=positions.device).to(positions.dtype)
        target = ladder_potential(self.potential, rungs, self.num_ladders)
        kernel = replica_exchange(self.kernel_at(target.n_beta), len(ladder))
        position = positions.reshape(-1, positions.shape[-1]).clone()
        half = num_steps // 2
        state = kernel.init(position, target)
        tried, accepted = state.tried.clone(), state.accepted.clone()
        for step in range(2 * half):
            if step == half:
                tried, accepted = state.tried.clone(), state.accepted.clone()
            kernel.step_(state, target, None, self.generator)
        self.num_gradients += len(position) * (1 + 2 * half * kernel.gradients_per_step)
        if not bool(torch.isfinite(state.inner.loss).all()):
            raise FloatingPointError(
                f"initial: {int((~torch.isfinite(state.inner.loss)).sum())} of {len(position)} chains have a loss that "
                "is not finite; expected a start with a finite loss and gradient."
            )
        count = (state.tried - tried) * self.num_ladders
        rates = (1 - (state.accepted - accepted) / count).clamp(0.0, 1.0).cpu().numpy()
        return rates, state.position.view(positions.shape)
