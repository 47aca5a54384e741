"""Every figure that the toolkit draws. Light, labelled with units, readable in grey; takes and returns axes."""

from slt.plots.chains import plot_estimate, plot_ranks
from slt.plots.parts import plot_parts
from slt.plots.step_sizes import plot_step_sizes
from slt.plots.style import save_figure
from slt.plots.temperatures import plot_rlct, plot_temperatures
from slt.plots.training import plot_sweep
from slt.plots.truth import plot_truth, plot_validations

__all__ = [
    "plot_estimate",
    "plot_parts",
    "plot_ranks",
    "plot_rlct",
    "plot_step_sizes",
    "plot_sweep",
    "plot_temperatures",
    "plot_truth",
    "plot_validations",
    "save_figure",
]
