"""Estimates beside exact values, through the same call that users make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slt.estimate import LLCEstimate
from slt.known.case import Case
from slt.known.registry import cases
from slt.llc import estimate_llc

# The bound of a row: a healthy estimate further off than this is an error of the software. For a normal error it
# happens once in 16,000.
Z_LIMIT = 4.0
DEFAULT_N_BETA, DEFAULT_LOCALIZATION = 1000.0, 1.0  # of cases without exact values

# One row of each kind: regular, quartic, normal crossing, cusp, a sum, a kink, a zero λ, a product, tanh and ReLU at
# singular and regular points, a divergence of mixtures.
QUICK = (
    "quadratic", "quartic", "poly_xy2", "poly_cusp2", "poly_x4+y2", "square_plus_cube", "half_cube",
    "outer_product_2_2", "tanh_one_unit_zero", "tanh_one_unit", "relu_nb_H1_true1", "gmm_chi_square",
)  # fmt: skip


@dataclass(frozen=True)
class Validation:
    """One estimate beside the truth.

    Attributes:
        case: The known case.
        n_beta: nβ.
        localization: γ.
        exact: nβ·E[K] at that nβ and γ; None where it is not known.
        seed: Of the estimate.
        estimate: The estimate.
    """

    case: Case
    n_beta: float
    localization: float
    exact: float | None
    seed: int
    estimate: LLCEstimate

    @property
    def relative_error(self) -> float | None:
        """λ̂/exact − 1."""
        return None if self.exact is None else self.estimate.llc / self.exact - 1

    @property
    def z(self) -> float | None:
        """Error in Monte Carlo standard errors."""
        return None if self.exact is None else (self.estimate.llc - self.exact) / self.estimate.mcse

    @property
    def covered(self) -> bool | None:
        """Whether the 95 % interval contains the exact value."""
        low, high = self.estimate.interval
        return None if self.exact is None else bool(low <= self.exact <= high)

    @property
    def failed(self) -> bool:
        """Whether there is no number."""
        return not np.isfinite(self.estimate.llc)

    @property
    def outside(self) -> bool:
        """Whether the estimate is called healthy, and more than four standard errors off: wrong silently."""
        return self.estimate.verdict.ok and self.z is not None and not abs(self.z) <= Z_LIMIT

    def to_dict(self) -> dict[str, Any]:
        """The row in types that JSON knows; not-a-number becomes None."""
        estimate = self.estimate.to_dict()
        kept = ("llc", "mcse", "interval", "rhat", "ess", "num_gradients", "seconds", "sampler", "step_size")
        return {
            "case": self.case.name, "family": self.case.family, "rlct": str(self.case.rlct),
            "multiplicity": self.case.multiplicity, "n_beta": self.n_beta, "localization": self.localization,
            "seed": self.seed, "exact": self.exact, **{name: estimate[name] for name in kept},
            "covered": self.covered, "relative_error": _finite(self.relative_error), "z": _finite(self.z),
            "bound": None if self.exact is None else f"|z| <= {Z_LIMIT:g} where healthy", "outside": self.outside,
            "problems": list(self.estimate.verdict.names),
        }  # fmt: skip

    def __str__(self) -> str:
        estimate = self.estimate
        interval = f"{estimate.interval[0]:.4f} … {estimate.interval[1]:.4f}"
        exact = "" if self.exact is None else f"{self.exact:.4f}"
        covered = {None: "", True: "yes", False: "NO"}[self.covered]
        error = "" if self.relative_error is None else f"{self.relative_error:+.1%}"
        z = "" if self.z is None else f"{self.z:+.1f}"
        return (
            f"{self.case.name:<23}  {self.case.rlct!s:>5}  {self.case.multiplicity:>1}  {self.n_beta:>8.4g}  "
            f"{self.localization:>5.4g}  {exact:>8}  {estimate.llc:>8.4f}  {interval:>17}  {covered:>3}  {error:>7}  "
            f"{z:>5}  {estimate.ess:>6.0f}  {estimate.num_gradients:>9,.0f}  {estimate.seconds:>5.1f}  "
            f"{estimate.verdict}{'  OUTSIDE ITS BOUND' if self.outside else ''}"
        )


HEADER = (
    f"{'case':<23}  {'λ':>5}  {'m':>1}  {'nβ':>8}  {'γ':>5}  {'exact':>8}  {'λ̂':>8}  {'95 % interval':>17}  {'in?':>3}"
    f"  {'error':>7}  {'z':>5}  {'ESS':>6}  {'gradients':>9}  {'s':>5}  verdict"
)


def targets(known: Case, *, every: bool = True) -> list[tuple[float, float, float | None]]:
    """Where a case is estimated: nβ, γ and the exact value there, or None where it is not known.

    Args:
        known: The case.
        every: Whether to take all its rows with exact values, or the first alone.

    Returns:
        Its rows; where it has none, one at nβ = 1000 and γ = 1 without an exact value.
    """
    if known.exact:
        rows = known.exact if every else known.exact[:1]
        return [(row.n_beta, row.localization, row.value) for row in rows]
    return [(DEFAULT_N_BETA, DEFAULT_LOCALIZATION, None)]


def validate(
    chosen: Iterable[Case] | None = None, *, quick: bool = False, seeds: Sequence[int] = (0,), **options: Any
) -> Iterator[Validation]:
    """Estimates of known cases, one after another as they are done.

    Args:
        chosen: Which cases; by default all whose prior is flat and whose weights are free, as the estimator takes
            them to be.
        quick: A dozen cases alone, one row each.
        seeds: Every row is estimated with each of them.
        options: Further arguments of :func:`slt.estimate_llc`.

    Yields:
        One validation per row and seed.

    Raises:
        ValueError: A chosen case has a prior or a support, which the estimator cannot sample.
        KeyboardInterrupt: Ctrl-C. The estimate that it cuts short is no validation of the call, and dropped.
    """
    found = tuple(cases(name=name)[0] for name in QUICK) if quick else cases()
    found = tuple(known for known in found if known.plain) if chosen is None else tuple(chosen)
    bounded = [known.name for known in found if not known.plain]
    if bounded:
        raise ValueError(
            f"chosen: {', '.join(bounded)} with a prior or a bounded support, which estimate_llc cannot sample; leave "
            "them out. Their λ is checked by volume_slope."
        )
    for known in found:
        for n_beta, localization, exact in targets(known, every=not quick):
            for seed in seeds:
                estimate = estimate_llc(
                    known.build(), None, known.loss_fn, n_beta=n_beta, localization=localization, seed=seed, **options
                )
                if estimate.trace.interrupted:
                    raise KeyboardInterrupt
                yield Validation(known, n_beta, localization, exact, seed, estimate)


@dataclass(frozen=True)
class Summary:
    """What a number of validations say together.

    Attributes:
        rows: How many there are.
        exact: How many of them have an exact value, over which the next three are taken.
        median_error: Median of the absolute relative error.
        percentile_95_error: Its 95th percentile.
        coverage: Share of 95 % intervals that contain the exact value.
        healthy: Rows in which no problem is named.
        healthy_coverage: Coverage over those with an exact value.
        outside: Names of healthy rows beyond their bound.
        failures: Names of rows without a number.
    """

    rows: int
    exact: int
    median_error: float
    percentile_95_error: float
    coverage: float
    healthy: int
    healthy_coverage: float
    outside: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed, and nothing is outside its stated bound."""
        return not self.outside and not self.failures

    def to_dict(self) -> dict[str, Any]:
        """The summary in types that JSON knows; not-a-number becomes None."""
        return {
            name: value if not isinstance(value, float) else _finite(value) for name, value in asdict(self).items()
        } | {"ok": self.ok}

    def __str__(self) -> str:
        if not self.exact:
            return f"{self.rows} rows, {self.healthy} healthy; none has an exact value: nothing to compare with"
        lines = [
            f"{self.rows} rows, {self.healthy} healthy; {self.exact} with an exact value",
            f"relative error: median {self.median_error:.1%}, 95th percentile {self.percentile_95_error:.1%}",
            f"coverage of 95 % intervals: {self.coverage:.0%}; of the healthy rows {self.healthy_coverage:.0%}",
        ]
        if self.outside:
            lines.append(
                f"outside the bound of {Z_LIMIT:g} standard errors although healthy: {', '.join(self.outside)}"
            )
        if self.failures:
            lines.append(f"without a number: {', '.join(self.failures)}")
        return "\n".join(lines)


def summarize(validations: Sequence[Validation]) -> Summary:
    """The summary of validations.

    Args:
        validations: As :func:`validate` yields them.

    Returns:
        Their summary; not-a-number where nothing has an exact value.
    """
    known = [row for row in validations if row.exact is not None]
    errors = np.abs([row.relative_error for row in known if not row.failed and row.relative_error is not None])
    covered = [bool(row.covered) for row in known]
    healthy = [bool(row.covered) for row in known if row.estimate.verdict.ok]
    return Summary(
        rows=len(validations),
        exact=len(known),
        median_error=float(np.median(errors)) if len(errors) else np.nan,
        percentile_95_error=float(np.percentile(errors, 95)) if len(errors) else np.nan,
        coverage=float(np.mean(covered)) if covered else np.nan,
        healthy=sum(row.estimate.verdict.ok for row in validations),
        healthy_coverage=float(np.mean(healthy)) if healthy else np.nan,
        outside=tuple(_label(row) for row in validations if row.outside),
        failures=tuple(_label(row) for row in validations if row.failed),
    )


def _label(row: Validation) -> str:
    return f"{row.case.name} at nβ {row.n_beta:.4g}, γ {row.localization:.4g}, seed {row.seed}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
