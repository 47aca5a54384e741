"""The local learning coefficient of a trained network, with an interval and a verdict.

:func:`estimate_llc` is the whole in one call.
"""

from slt import callbacks, known
from slt.checkpoints import load_into
from slt.estimate import LLCEstimate, load_estimate
from slt.llc import estimate_llc
from slt.parts import attention_heads, embeddings, mlps, part_of
from slt.posterior import LocalPosterior
from slt.report import write_report
from slt.rlct import RLCTEstimate, estimate_rlct
from slt.sweep_table import Sweep, SweepRow, load_sweep
from slt.sweeps import sweep
from slt.task import Task
from slt.verdict import Problem, Verdict

__all__ = [
    "LLCEstimate",
    "LocalPosterior",
    "Problem",
    "RLCTEstimate",
    "Sweep",
    "SweepRow",
    "Task",
    "Verdict",
    "attention_heads",
    "callbacks",
    "embeddings",
    "estimate_llc",
    "estimate_rlct",
    "known",
    "load_estimate",
    "load_into",
    "load_sweep",
    "mlps",
    "part_of",
    "sweep",
    "write_report",
]
