"""The local learning coefficient of a trained network, with an interval and a verdict.

:func:`estimate_llc` is the whole in one call.
"""

from slt.estimate import LLCEstimate, load_estimate
from slt.llc import estimate_llc
from slt.posterior import LocalPosterior
from slt.task import Task
from slt.verdict import Problem, Verdict

__all__ = [
    "LLCEstimate",
    "LocalPosterior",
    "Problem",
    "Task",
    "Verdict",
    "estimate_llc",
    "load_estimate",
]
