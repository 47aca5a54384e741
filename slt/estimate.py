"""``LLCEstimate``: the number, its interval, its verdict and everything that it took to get them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray
from numpy.typing import NDArray

from samplers import Trace
from samplers.files import tree_written_whole
from slt.estimators import CrossCheck, cross_check
from slt.verdict import Problem, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = 1  # of the file that save() writes


class Rungs(NamedTuple):
    """λ̂(nβ) over a ladder at one γ; arrays ``(rungs,)``, from the hottest to the posterior itself.

    Attributes:
        n_beta: nβ.
        llc: nβ (E[L] − L(w*)).
        mcse: Its standard error.
        variance: (nβ)² Var[L], which is λ̂ less its derivative by log nβ.
    """

    n_beta: NDArray[np.float64]
    llc: NDArray[np.float64]
    mcse: NDArray[np.float64]
    variance: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LLCEstimate:
    """λ̂ = nβ (E[L_n(w)] − L_n(w*)) under the stated law, with its error and a verdict.

    Attributes:
        llc: λ̂, dimensionless: the mean over the draws, less ``step_size_bias``. Not a number if a chain diverged and
            survivors were not allowed.
        mcse: Its Monte Carlo standard error, from the effective sample size.
        interval: Of 95 %, for λ̂ at the stated nβ and γ: ±1.96 times mcse and nβ·baseline_error together, and higher by
            the predicted step-size bias, which may have been too large.
        rhat: Rank-normalised split R̂ of the loss, by minibatches less each draw's own step-size bias.
        ess: Effective sample size of its mean.
        loss_at_anchor: L_n(w*), in nats: over the full data, or over ``anchor_samples`` of them.
        n: The number of samples; None for an exact loss.
        n_beta: nβ.
        localization: γ, in nats per squared unit of weight, times the metric.
        sampler: The kernel.
        step_size: ε, in units of the metric; ``[low, high]`` where it is a range, a list where each chain has its own,
            not a number of kernels without one. The last, where it was lowered on the way, and
            ``trace.configuration["earlier_settings"]`` has the others.
        step_size_bias: Predicted excess of the draws' mean due to ε; zero for exact kernels.
        num_gradients: Gradients spent, in full-data gradients, over all chains, warm-up and calibration included.
        seconds: Wall time.
        verdict: Named problems, or healthy.
        trace: The draws.
        config: Every choice that was made: name → (value, reason).
        baseline_error: Standard error of ``loss_at_anchor``, in nats; 0 where it is over the full data.
    """

    llc: float
    mcse: float
    interval: tuple[float, float]
    rhat: float
    ess: float
    loss_at_anchor: float
    n: int | None
    n_beta: float
    localization: float
    sampler: str
    step_size: float | list[float]
    step_size_bias: float
    num_gradients: float
    seconds: float
    verdict: Verdict
    trace: Trace
    config: dict[str, tuple[Any, str]]
    baseline_error: float = 0.0

    @property
    def metric(self) -> str:
        """Of the localiser: ``"identity"``, ``"curvature"`` or ``"given"``."""
        return self.config.get("metric", ("identity", ""))[0]

    @property
    def rungs(self) -> Rungs | None:
        """λ̂ at all inverse temperatures of replica exchange; None of other samplers."""
        found = self.trace.configuration.get("rungs")
        return None if found is None else Rungs(*(np.array(found[name], dtype=float) for name in Rungs._fields))

    def __repr__(self) -> str:
        low, high = self.interval
        width = max(self.mcse, 1e-12)
        digits = min(6, max(0, 1 - _exponent(width))) if width < 10 else 0
        dash = "–" if low >= 0 else " to "
        metric = "" if self.metric == "identity" else f" ({self.metric} metric)"
        return (
            f"LLC {self.llc:.{digits}f} ± {self.mcse:.{digits}f} (95 %: {low:.{digits}f}{dash}{high:.{digits}f}) "
            f"at nβ {self.n_beta:.4g}, γ {self.localization:.4g}{metric} · {self.verdict}"
        )

    def summary(self) -> str:
        """The whole result in lines of text: numbers, settings with their reasons, problems with their advice."""
        lines = [
            repr(self),
            "",
            f"  R̂ {self.rhat:.3f}   ESS {self.ess:.0f}   predicted step-size bias {self.step_size_bias:.3g}",
            f"  loss at the anchor {self.loss_at_anchor:.6g} nats" + self._of_samples(),
            f"  {self.num_gradients:,.0f} full-data gradients in {self.seconds:.1f} s",
        ]
        held = self.held_by_localizer
        if np.isfinite(held):
            lines.append(
                f"  the localiser rather than the loss holds {held:.3g} of {self.config['parameters'][0]:,} directions"
            )
        lines.append("")
        width = max(len(name) for name in self.config)
        lines += [f"  {name:<{width}}  {_short(value):<12}  {reason}" for name, (value, reason) in self.config.items()]
        lines += ["", "  verdict: " + ("healthy" if self.verdict.ok else "")]
        lines += [f"    {problem}" for problem in self.verdict.problems]
        lines += [f"    note: {note}" for note in self.verdict.notes]
        return "\n".join(line.rstrip() for line in lines)

    def _of_samples(self) -> str:
        """Over how many samples the loss at the anchor is."""
        if self.n is None:
            return ""
        some = self.config["anchor_samples"][0]
        count = f"n = {self.n:,}" if some is None or some >= self.n else f"about {some:,} of n = {self.n:,}"
        return f" over {count} samples"

    @property
    def held_by_localizer(self) -> float:
        r"""The number of directions that the localiser holds rather than the loss, not counted in λ̂.

        .. math:: E[\gamma \, \lVert w - w^* \rVert^2_D],

        of which a direction that the loss does not see has 1, one that the loss holds next to nothing, and one that
        both hold a share. Of the chains that did not diverge; not a number where none is left. λ̂ tells of the loss,
        and of its minimum within reach of γ: a direction that γ holds altogether might be one that λ has at a lower γ.
        """
        energies = self.trace.statistics["localization_energy"][self.trace.surviving]
        return 2 * float(energies.mean()) if energies.size else math.nan

    def cross_check(self) -> CrossCheck:
        """λ̂ beside what the same draws say by their variance and slope, and how it changes with nβ and γ.

        >>> print(estimate.cross_check())  # doctest: +SKIP

        Returns:
            Numbers with errors; see :class:`slt.estimators.CrossCheck`. Of the chains that did not diverge.

        Raises:
            ValueError: The losses are of minibatches, whose own variance would be taken for the posterior's; or too
                few draws are left.
        """
        if not self.trace.configuration.get("full_data"):
            raise ValueError(
                "cross_check: the losses of this estimate are of minibatches, whose variance is not that of the law; "
                "expected a run on full data, such as sampler='mala'."
            )
        alive = self.trace.surviving
        return cross_check(
            self.trace.loss[alive],
            self.trace.statistics["localization_energy"][alive],
            baseline=self.loss_at_anchor,
            n_beta=self.n_beta,
            baseline_error=self.baseline_error,
        )

    def plot(self) -> list[Axes]:
        """Loss traces and the running λ̂ of every chain; see :func:`slt.plots.plot_estimate`."""
        from slt.plots import plot_estimate

        return plot_estimate(self)

    def to_dict(self) -> dict[str, Any]:
        """The result without its draws, in types that JSON knows; not-a-number becomes None."""
        record = {
            name: getattr(self, name)
            for name in (
                "llc", "mcse", "interval", "rhat", "ess", "loss_at_anchor", "n", "n_beta", "localization", "metric",
                "sampler", "step_size", "step_size_bias", "num_gradients", "seconds", "config", "baseline_error",
            )
        }  # fmt: skip
        record["ok"] = self.verdict.ok
        record["problems"] = [problem._asdict() for problem in self.verdict.problems]
        record["notes"] = [note._asdict() for note in self.verdict.notes]
        return plain(record)

    def to_datatree(self) -> xarray.DataTree:
        """The trace's tree, with the result in its attributes."""
        tree = self.trace.to_datatree()
        tree.attrs["llc_estimate"] = json.dumps({"format": FORMAT, **self.to_dict()})
        return tree

    def save(self, path: str | Path) -> None:
        """Write everything as netCDF, for :func:`load_estimate`.

        Args:
            path: The file, which is replaced in one operation.

        Raises:
            FileNotFoundError: There is no folder for it.
            OSError: It cannot be written, such as on a full disk; what was there stays.
        """
        folder = Path(path).parent
        if not folder.is_dir():
            raise FileNotFoundError(f"path: {str(path)!r}; expected a file in a folder, and {str(folder)!r} is none.")
        tree_written_whole(Path(path), self.to_datatree())


def load_estimate(path: str | Path) -> LLCEstimate:
    """The estimate that :meth:`LLCEstimate.save` wrote.

    Args:
        path: A netCDF file.

    Returns:
        The estimate as it was: the same numbers, draws, configuration and verdict.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds no estimate, one of another format, or one that was changed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: {str(path)!r} is not a file; expected one written by LLCEstimate.save().")
    try:
        with xarray.open_datatree(path, engine="h5netcdf") as opened:
            tree = opened.load()
    except (OSError, KeyError) as error:
        raise ValueError(
            f"path: {str(path)!r} is not a netCDF file written by LLCEstimate.save() ({error})."
        ) from error
    if "llc_estimate" not in tree.attrs:
        raise ValueError(f"path: {str(path)!r} holds no estimate; expected a file written by LLCEstimate.save().")
    try:
        record = json.loads(tree.attrs["llc_estimate"])
        found = record.pop("format")
        if found != FORMAT:
            raise ValueError(f"format {found!r}; this version reads format {FORMAT}. Make it again, or use its version")
        return _estimate(record, tree)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"path: {str(path)!r} holds an estimate that cannot be read ({type(error).__name__}: {error})."
        ) from error


def _estimate(record: dict[str, Any], tree: xarray.DataTree) -> LLCEstimate:
    """From the attribute of a tree, without its format."""
    record.pop("ok")
    record.pop("metric", None)  # stands in config
    for name in ("n_beta", "localization", "loss_at_anchor"):
        record[name] = float(record[name])
    problems, notes = (tuple(_problem(**found) for found in record.pop(name, ())) for name in ("problems", "notes"))
    for name in ("llc", "mcse", "rhat", "ess", "step_size_bias"):
        record[name] = float("nan") if record[name] is None else record[name]
    record["interval"] = tuple(float("nan") if bound is None else bound for bound in record["interval"])
    record["config"] = {name: (value, reason) for name, (value, reason) in record["config"].items()}
    return LLCEstimate(**record, verdict=Verdict(problems, notes), trace=Trace.from_datatree(tree))


def _problem(name: str, evidence: dict[str, Any], advice: str) -> Problem:
    """From JSON, which has None for figures that are not finite."""
    figures = {key: math.nan if value is None else value for key, value in evidence.items()}
    return Problem(name, figures, advice)


def plain(value: Any) -> Any:
    """The value in types that JSON knows: lists for tuples, None for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _exponent(value: float) -> int:
    return int(f"{value:e}".split("e")[1])
