"""Learning coefficients in closed form, as exact fractions. Each function states its conditions and its source."""

from slt.known.formulas.coefficient import LearningCoefficient
from slt.known.formulas.elementary import independent_product, independent_sum, morse_bott, normal_crossing, regular
from slt.known.formulas.linear import deep_linear, reduced_rank, reduced_rank_at
from slt.known.formulas.relu import relu_copies, relu_minimal
from slt.known.formulas.tanh import tanh_1d, tanh_copies, tanh_surplus

__all__ = [
    "LearningCoefficient",
    "deep_linear",
    "independent_product",
    "independent_sum",
    "morse_bott",
    "normal_crossing",
    "reduced_rank",
    "reduced_rank_at",
    "regular",
    "relu_copies",
    "relu_minimal",
    "tanh_1d",
    "tanh_copies",
    "tanh_surplus",
]
