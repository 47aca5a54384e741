"""What the verdict looks at: the figures of a run, and how a problem is written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from samplers import Diagnostics, Trace
from slt.edges import Edge
from slt.gradient_work import GradientWork
from slt.surroundings import Surroundings

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal law
# Of a statement that must be beyond chance in any one run: two-sided, 1 in 16,000 for a normal error. The errors are
# those of effective sample sizes, and known to some 10 %, which makes it 1 in 3,000 at worst.
Z_CERTAIN = 4.0


class Problem(NamedTuple):
    """A reason why a number cannot be trusted, or what to know about one that can.

    Attributes:
        name: Such as ``not_converged``.
        evidence: The figures that show it.
        advice: What to change.
    """

    name: str
    evidence: dict[str, float | int | str]
    advice: str

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {_figure(value)}" for name, value in self.evidence.items())
        return f"{self.name} ({figures}): {self.advice}"


@dataclass(frozen=True)
class Evidence:
    """The figures of a run.

    Attributes:
        trace: Its draws.
        llc: λ̂ of the surviving chains.
        energies: Of every draw of the surviving chains, ``(chain, draw)``, in nats; see :mod:`slt.energies`.
        diagnostics: Of them; None where no chain survived, or all had too few draws.
        baseline: L_n(w*), in nats.
        baseline_error: Standard error of the baseline, in nats; 0 where it is over the full data.
        n_beta: nβ.
        localization: γ.
        dim: Sampled weights.
        bias: Predicted excess of λ̂ due to the step size.
        tolerance: Half-width of the interval that is asked for; the bias must stay below it too.
        half_width: Half-width of the interval.
        aimed: Whether the run was to go on until ``half_width`` ≤ ``tolerance``.
        random_values: Two losses at the same weights, where they differ.
        rounding: nβ times the resolution of the loss: at the anchor in the coarser dtype of weights and loss, or the
            step of the grid that losses stand on.
        rounding_of_positions: Rise of nβ·loss by rounding the weights, in nats.
        dtype: That dtype.
        surroundings: What was found around the anchor; None where it was not looked at.
        noise_bias: The part of ``bias`` that minibatch noise causes; 0 where there is none, or it is not known.
        batch_size: Samples of a minibatch; None for full data.
        work: Of the gradient on the way to where chains ended, and the rise of the loss; None where it was not taken.
        uneven: The loss of a few samples, and the mean of their losses, where the first is no mean.
        edge: Where the law ends among the chains; None where it does not, or was not looked at.
        own_batches: Whether minibatches are the user's own, of sizes that are no option.
        vectorised: Whether chains were taken side by side, as replica exchange needs them.
    """

    trace: Trace
    llc: float
    energies: NDArray[np.float64]
    diagnostics: Diagnostics | None
    baseline: float
    baseline_error: float
    n_beta: float
    localization: float
    dim: int
    bias: float
    tolerance: float
    half_width: float
    aimed: bool
    random_values: tuple[float, float] | None
    rounding: float
    rounding_of_positions: float
    dtype: str
    surroundings: Surroundings | None
    noise_bias: float
    batch_size: int | None
    work: GradientWork | None = None
    uneven: tuple[float, float] | None = None
    edge: Edge | None = None
    own_batches: bool = False
    vectorised: bool = True

    @property
    def full_data(self) -> bool:
        """Whether the losses of the draws are those of the full data, or exact."""
        return bool(self.trace.configuration.get("full_data"))

    @property
    def losses(self) -> NDArray[np.float64]:
        """Loss of every draw of the surviving chains, ``(chain, draw)``, in nats."""
        return self.trace.loss[self.trace.surviving]

    @property
    def localization_energies(self) -> NDArray[np.float64]:
        """(γ/2)‖w − w*‖² of every draw of the surviving chains, ``(chain, draw)``, in nats."""
        return self.trace.statistics["localization_energy"][self.trace.surviving]


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
