"""Estimates beside exact values, through the same call that users make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from slt.estimate import LLCEstimate
from slt.known.cases import Case, ExactValue, cases
from slt.llc import estimate_llc

# A healthy estimate further off than this is an error of the software. For a normal error it happens once in 16,000.
Z_LIMIT = 4.0


@dataclass(frozen=True)
class Validation:
    """One estimate beside the exact value.

    Attributes:
        case: The known case.
        exact: The exact value, with its nβ and γ.
        estimate: The estimate.
    """

    case: Case
    exact: ExactValue
    estimate: LLCEstimate

    @property
    def z(self) -> float:
        """Error in Monte Carlo standard errors."""
        return (self.estimate.llc - self.exact.value) / self.estimate.mcse

    @property
    def ok(self) -> bool:
        """Whether the estimate is healthy and within four standard errors."""
        return self.estimate.verdict.ok and abs(self.z) <= Z_LIMIT

    def __str__(self) -> str:
        estimate = self.estimate
        interval = f"{estimate.interval[0]:.4f} … {estimate.interval[1]:.4f}"
        error = estimate.llc / self.exact.value - 1
        return (
            f"{self.case.name:<14}  {self.exact.n_beta:>8.4g}  {self.exact.localization:>5.4g}  "
            f"{self.exact.value:>8.4f}  {estimate.llc:>8.4f}  {interval:>17}  {error:>+7.1%}  {self.z:>+5.1f}  "
            f"{estimate.verdict}"
        )


HEADER = (
    f"{'case':<14}  {'nβ':>8}  {'γ':>5}  {'exact':>8}  {'estimate':>8}  {'95 % interval':>17}  {'error':>7}  "
    f"{'z':>5}  verdict"
)


def validate(chosen: Iterable[Case] | None = None, **options: Any) -> Iterable[Validation]:
    """Estimates of every exact value, one after another as they are done.

    Args:
        chosen: Which cases; all that have exact values by default.
        options: Further arguments of :func:`slt.estimate_llc`.

    Yields:
        One validation per exact value.
    """
    for known in cases() if chosen is None else chosen:
        for exact in known.exact:
            estimate = estimate_llc(
                known.build(),
                None,
                known.loss_fn,
                n_beta=exact.n_beta,
                localization=exact.localization,
                **options,
            )
            yield Validation(known, exact, estimate)
