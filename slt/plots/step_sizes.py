"""λ̂ along a ladder of step sizes."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from slt.estimate import LLCEstimate
from slt.plots.style import ACCENT, DARK, LIGHT, finish
from slt.problems.evidence import Z_95


def plot_step_sizes(
    estimates: Sequence[LLCEstimate], exact: LLCEstimate | float | None = None, axes: Axes | None = None
) -> list[Axes]:
    """λ̂ against the step size, with Monte Carlo intervals, and the mean of the draws, which has the predicted bias.

    The bias of a step is predicted from the run itself (``estimate.step_size_bias``). Where the prediction is right,
    the marks of λ̂, from which it is taken, lie on a level; where steps are too large for it, they leave it. With
    ``exact`` a curve shows where the means should lie: at that value and the predicted bias.

    >>> ladder = [slt.estimate_llc(model, data, loss_fn, sampler="sgld", step_size=e) for e in (1e-5, 1e-4, 1e-3)]
    ... # doctest: +SKIP
    >>> plot_step_sizes(ladder, exact=slt.estimate_llc(model, data, loss_fn))  # doctest: +SKIP

    Args:
        estimates: Of one model, at one nβ and γ, with several step sizes.
        exact: Of an exact sampler, or the value, such as a known one; drawn as a level.
        axes: To draw on; a new figure by default.

    Returns:
        The axes, in a list.

    Raises:
        ValueError: There are no estimates, or they are not of one nβ and γ.
    """
    laws = {(each.n_beta, each.localization, each.metric) for each in estimates}
    if len(laws) != 1:
        raise ValueError(f"estimates: of {len(laws)} laws; expected at least one estimate, and all of one nβ and γ.")
    if axes is None:
        axes = plt.subplots(figsize=(9, 4), layout="constrained")[1]
    ladder = sorted(estimates, key=lambda each: float(np.mean(each.step_size)))
    step = np.array([float(np.mean(each.step_size)) for each in ladder])
    llc, mcse, bias = (np.array([getattr(each, name) for each in ladder]) for name in ("llc", "mcse", "step_size_bias"))
    healthy = np.array([each.verdict.ok for each in ladder], dtype=bool)
    if exact is not None:
        level = exact if isinstance(exact, float | int) else exact.llc
        if isinstance(exact, LLCEstimate):
            axes.axhspan(*exact.interval, color=ACCENT, alpha=0.15, linewidth=0)
        axes.axhline(level, color=ACCENT, linewidth=1.5, label=f"exact: {level:.3g}")
        axes.plot(step, level + bias, "--", color=ACCENT, linewidth=1.2, label="exact, and the predicted bias")
    for mask, face, label in ((healthy, DARK, "healthy"), (~healthy, "white", "a problem is named")):
        if mask.any():
            axes.errorbar(
                step[mask], llc[mask], yerr=Z_95 * mcse[mask], fmt="o", color=DARK, markerfacecolor=face, capsize=3,
                linewidth=1.2, label=f"λ̂, 95 %: {label}",
            )  # fmt: skip
    axes.plot(
        step,
        llc + bias,
        "s",
        color=DARK,
        markersize=5,
        markerfacecolor=LIGHT,
        zorder=4,
        label="mean of the draws",
    )
    n_beta, localization, _ = next(iter(laws))
    axes.set(xscale="log", xlabel="step size ε   [squared units of weight, or of the metric]", ylabel="λ̂")
    axes.set_title(f"nβ {n_beta:.4g}, γ {localization:.4g}", fontsize=10)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    finish((axes,))
    return [axes]
