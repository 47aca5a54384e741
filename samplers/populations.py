"""What tempered sequential Monte Carlo leaves behind: every population at every rung, log Z and its errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

CONFIDENCE = 0.95
LARGEST_SPREAD = 1.0  # of log Z over populations; beyond it the mean of Z is that of the luckiest population
NOT_FINITE, DEGENERATE, STUCK = "loss not finite", "weights degenerate", "particles did not move"

Array = NDArray[np.float64]


class PopulationFailure(NamedTuple):
    """A population that was stopped: it has no log Z.

    Attributes:
        population: Its number.
        n_beta: The rung at which it failed.
        reason: ``"loss not finite"``, ``"weights degenerate"`` or ``"particles did not move"``.
        particles: Particles without a finite loss; effective ones; or ones that moved.
    """

    population: int
    n_beta: float
    reason: str
    particles: float


@dataclass(frozen=True)
class SMCResult:
    """Populations at every rung of their ladder. Arrays ``(rungs, populations)`` are not a number from a failure on.

    Attributes:
        n_beta: nβ of the rungs, ``(rungs,)``, the start and the target included.
        log_z_by_population: log Z(nβ) − log Z(start), ``(rungs, populations)``.
        mean_loss_by_population: E[L] in nats, ``(rungs, populations)``.
        variance_loss_by_population: Var[L] in nats², about the mean over populations.
        ess: Effective particles as the weights had left them, before resampling.
        acceptance_rate: Mean over particles and moves; at the start, where nothing moves, not a number.
        num_ancestors: Distinct particles of the start that have descendants. Where moves mix well it may be small.
        num_distinct: Distinct particles after the moves.
        resampled: Which populations were resampled on arrival at a rung.
        failures: The populations that were stopped.
        num_gradients: Loss gradients taken, in calls per particle summed over particles.
        positions: Of the last rung, ``(populations, particles, dim)``.
        losses: There, ``(populations, particles)``.
        weights: Normalised within each population, ``(populations, particles)``.
    """

    n_beta: Array
    log_z_by_population: Array
    mean_loss_by_population: Array
    variance_loss_by_population: Array
    ess: Array
    acceptance_rate: Array
    num_ancestors: Array
    num_distinct: Array
    resampled: NDArray[np.bool_]
    failures: tuple[PopulationFailure, ...]
    num_gradients: int
    positions: Tensor
    losses: Tensor
    weights: Tensor

    @property
    def log_z_by_rung(self) -> Array:
        """Log Z(nβ) − log Z(start), ``(rungs,)``: the logarithm of the mean of Z over populations."""
        with np.errstate(invalid="ignore"):  # of populations that failed
            return np.logaddexp.reduce(self.log_z_by_population, axis=1) - math.log(self.num_populations)

    @property
    def log_z_error_by_rung(self) -> Array:
        """Its standard error by the jackknife over populations, ``(rungs,)``."""
        count = self.num_populations
        log_z = self.log_z_by_population
        with np.errstate(invalid="ignore"):
            without = np.stack([np.logaddexp.reduce(np.delete(log_z, one, 1), axis=1) for one in range(count)], 1)
        return np.sqrt((count - 1) * without.var(axis=1))

    @property
    def log_z(self) -> float:
        """Log Z(target) − log Z(start); not a number if any population failed."""
        return float(self.log_z_by_rung[-1])

    @property
    def log_z_standard_error(self) -> float:
        """Standard error of :attr:`log_z`."""
        return float(self.log_z_error_by_rung[-1])

    @property
    def log_z_interval(self) -> tuple[float, float]:
        """95 % interval of log Z, with the t-quantile for as many populations."""
        half = float(stdtrit(self.num_populations - 1, 0.5 + CONFIDENCE / 2)) * self.log_z_standard_error
        return self.log_z - half, self.log_z + half

    @property
    def mean_loss(self) -> Array:
        """E[L] at every rung, ``(rungs,)``, nats."""
        return self.mean_loss_by_population.mean(1)

    @property
    def mean_loss_error(self) -> Array:
        """Its standard error over populations, ``(rungs,)``."""
        return self.mean_loss_by_population.std(axis=1, ddof=1) / self.num_populations**0.5

    @property
    def variance_loss(self) -> Array:
        """Var[L] at every rung, ``(rungs,)``, nats²."""
        return self.variance_loss_by_population.mean(1)

    @property
    def variance_loss_error(self) -> Array:
        """Its standard error over populations, ``(rungs,)``."""
        return self.variance_loss_by_population.std(axis=1, ddof=1) / self.num_populations**0.5

    @property
    def num_populations(self) -> int:
        """The number of populations, failed ones included."""
        return self.log_z_by_population.shape[1]

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps the result from being believed, in words with figures; empty where nothing does."""
        found = []
        for reason in (NOT_FINITE, DEGENERATE, STUCK):
            failed = [failure for failure in self.failures if failure.reason == reason]
            if failed:
                found.append(
                    f"{reason} in {len(failed)} of {self.num_populations} populations, first at nβ "
                    f"{min(failure.n_beta for failure in failed):.4g}"
                )
        spread = float(self.log_z_by_population[-1].std(ddof=1))
        if spread > LARGEST_SPREAD:
            found.append(
                f"log Z differs by {spread:.2g} between populations: more particles or moves are needed before its "
                "standard error means anything"
            )
        return tuple(found)
