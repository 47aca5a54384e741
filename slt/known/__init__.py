"""Ground truth: every learning coefficient that is known exactly, runnable, and estimates beside it."""

from slt.known.block import Block
from slt.known.case import Case, Chart, ExactValue
from slt.known.exact import ExactLLC, exact_llc
from slt.known.formulas import (
    LearningCoefficient,
    deep_linear,
    independent_product,
    independent_sum,
    morse_bott,
    normal_crossing,
    reduced_rank,
    reduced_rank_at,
    regular,
    relu_copies,
    relu_minimal,
    tanh_1d,
    tanh_copies,
    tanh_surplus,
)
from slt.known.newton import PolyhedronCoefficient, newton_polyhedron, newton_polyhedron_of, sum_of_squares
from slt.known.quadrature import QuadratureError
from slt.known.registry import case, cases
from slt.known.validate import Summary, Validation, summarize, validate
from slt.known.volume import VolumeSlope, volume_slope
from slt.known.weighted import check_weighted_homogeneous, weighted_homogeneous

__all__ = [
    "Block",
    "Case",
    "Chart",
    "ExactLLC",
    "ExactValue",
    "LearningCoefficient",
    "PolyhedronCoefficient",
    "QuadratureError",
    "Summary",
    "Validation",
    "VolumeSlope",
    "case",
    "cases",
    "check_weighted_homogeneous",
    "deep_linear",
    "exact_llc",
    "independent_product",
    "independent_sum",
    "morse_bott",
    "newton_polyhedron",
    "newton_polyhedron_of",
    "normal_crossing",
    "reduced_rank",
    "reduced_rank_at",
    "regular",
    "relu_copies",
    "relu_minimal",
    "sum_of_squares",
    "summarize",
    "tanh_1d",
    "tanh_copies",
    "tanh_surplus",
    "validate",
    "volume_slope",
    "weighted_homogeneous",
]
