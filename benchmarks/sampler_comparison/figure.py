"""The figure: errors above, effective sample sizes per gradient below, one column for each target."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

ERROR_LIMIT = 0.3  # of the axis; beyond it a triangle at the edge
HUES = ("#3b6fb6", "#c8553d")


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the figure as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import PercentFormatter

    names = list(next(iter(results.values()))["samplers"])
    places = {name: place for place, name in enumerate(reversed(names))}
    figure, axes = plt.subplots(
        2, len(results), figsize=(2.5 * len(results) + 1.5, 8.5), sharey=True, sharex="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for column, target in enumerate(results.values()):
        errors, sizes = axes[:, column]
        errors.axvline(0, color="0.6", linewidth=1)
        for name, found in target["samplers"].items():
            place = places[name]
            if "failure" in found:
                errors.text(0, place, "no result", ha="center", va="center", fontsize=7, color="0.4")
                continue
            error, width = found["relative_error"], 2 * found["relative_error_mcse"]
            hue = HUES[abs(found["z"]) > 2]
            if abs(error) > ERROR_LIMIT:
                side = 1 if error > 0 else -1
                errors.plot(side * ERROR_LIMIT, place, marker=">" if side > 0 else "<", color=hue)
                errors.text(side * 0.9 * ERROR_LIMIT, place, f"{error:+.0%}", fontsize=7, va="center",
                            ha="right" if side > 0 else "left")  # fmt: skip
            else:
                errors.errorbar(error, place, xerr=width, fmt="o", markersize=4, color=hue)
            sizes.plot(found["ess_per_thousand_gradients"], place, "o", color="0.2", markersize=4)
            sizes.plot(found["ess_least_per_thousand_gradients"], place, "o", mfc="none", color="0.2", markersize=4)
        errors.set_title(textwrap.fill(target["title"], 26), fontsize=9)
        errors.set_xlim(-1.08 * ERROR_LIMIT, 1.08 * ERROR_LIMIT)
        errors.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        errors.set_xlabel("error of λ̂ ± 2 MCSE")
        sizes.set_xscale("log")
        sizes.set_xlabel("ESS per 1000 gradients")
        for axis in (errors, sizes):
            axis.grid(axis="y", color="0.93")
            axis.set_axisbelow(True)
            axis.set_yticks(list(places.values()), list(places))
            axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "At equal numbers of full-data gradients. Above: red, more than two standard errors off. "
        "Below: ESS of nβ·loss (filled), the smaller of it and of the localiser's energy (open)",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
