"""``RLCTEstimate``: λ, its multiplicity, the curve that they were read from, and a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slt.estimate import plain
from slt.temperature_fit import TemperatureFit
from slt.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]


class Curve(NamedTuple):
    """λ̂(nβ) in the ball, over the ladder; arrays ``(rungs,)``.

    Attributes:
        n_beta: nβ.
        llc: nβ (E[L] − L(w*)).
        mcse: Its standard error, from independent populations.
        variance: (nβ)² Var[L], which is λ̂ less its derivative by log nβ.
        memory: Correlation of log L before and after the moves of a rung; near one where they stand still.
        fitted: Whether the rung is part of the fit.
        populations: λ̂(nβ) of each population, ``(populations, rungs)``.
    """

    n_beta: Array
    llc: Array
    mcse: Array
    variance: Array
    memory: Array
    fitted: NDArray[np.bool_]
    populations: Array


@dataclass(frozen=True, eq=False)
class RLCTEstimate:
    """λ and its multiplicity m at an anchor, with an interval and a verdict.

    Attributes:
        rlct: λ, dimensionless. Not a number where the ladder was too short for a fit.
        interval: Of 95 %, over noise, over m where it is undecided, and over the power laws beside the logarithm.
        multiplicity: m, or None where the ladder does not decide it.
        multiplicity_weights: Posterior probabilities of m = 1, 2, …
        curve: λ̂(nβ) with errors.
        fit: The fit, a :class:`slt.temperature_fit.TemperatureFit`; None where the ladder was too short for one.
        radius: R of the ball around w*.
        n: Samples; None for an exact loss. With data, λ is that of the empirical loss up to nβ = n.
        loss_at_anchor: L(w*), in nats.
        num_evaluations: Of the loss over the full data; a gradient counts three.
        seconds: Wall time.
        verdict: Named problems, or healthy.
        config: Every choice that was made: name → (value, reason).
    """

    rlct: float
    interval: tuple[float, float]
    multiplicity: int | None
    multiplicity_weights: tuple[float, ...]
    curve: Curve
    fit: TemperatureFit | None
    radius: float
    n: int | None
    loss_at_anchor: float
    num_evaluations: int
    seconds: float
    verdict: Verdict
    config: dict[str, tuple[Any, str]]

    def __repr__(self) -> str:
        low, high = self.interval
        multiplicity = "undecided" if self.multiplicity is None else str(self.multiplicity)
        upto = f"up to nβ {self.curve.n_beta[-1]:.3g}" + ("" if self.n is None else f" on n = {self.n:,} samples")
        return (
            f"RLCT {self.rlct:.4g} (95 %: {low:.4g}–{high:.4g}), multiplicity {multiplicity}, "
            f"radius {self.radius:.3g}, {upto} · {self.verdict}"
        )

    def summary(self) -> str:
        """The whole result in lines of text: numbers, the curve, settings with their reasons, problems."""
        weights = ", ".join(f"m = {place + 1}: {weight:.3f}" for place, weight in enumerate(self.multiplicity_weights))
        lines = [repr(self), "", f"  {weights}", "", f"  {'log nβ':>8} {'λ̂(nβ)':>9} {'mcse':>8} {'variance':>9} fitted"]
        curve = self.curve
        lines += [
            f"  {math.log(curve.n_beta[place]):8.2f} {curve.llc[place]:9.4f} {curve.mcse[place]:8.4f} "
            f"{curve.variance[place]:9.4f} {'yes' if curve.fitted[place] else 'no'}"
            for place in range(0, len(curve.n_beta), max(1, len(curve.n_beta) // 12))
        ]
        width = max(len(name) for name in self.config)
        lines += ["", f"  {self.num_evaluations:,} evaluations in {self.seconds:.1f} s", ""]
        lines += [f"  {name:<{width}}  {value!s:<12}  {reason}" for name, (value, reason) in self.config.items()]
        lines += ["", "  verdict: " + ("healthy" if self.verdict.ok else "")]
        lines += [f"    {problem}" for problem in self.verdict.problems]
        return "\n".join(line.rstrip() for line in lines)

    def plot(self) -> list[Axes]:
        """The curve λ̂(nβ), with λ and its interval; see :func:`slt.plots.plot_rlct`."""
        from slt.plots import plot_rlct

        return plot_rlct(self)

    def to_dict(self) -> dict[str, Any]:
        """The result and its curve in types that JSON knows; not-a-number and infinity become None."""
        record: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "rlct", "interval", "multiplicity", "multiplicity_weights", "radius", "n", "loss_at_anchor",
                "num_evaluations", "seconds", "config",
            )
        }  # fmt: skip
        curve = self.curve._asdict()
        del curve["populations"]
        record["curve"] = {name: values.tolist() for name, values in curve.items()}
        record["ok"] = self.verdict.ok
        record["problems"] = [problem._asdict() for problem in self.verdict.problems]
        return plain(record)
