"""Ground truth: networks whose learning coefficient is known exactly, and estimates beside it."""

from slt.known.cases import Case, ExactValue, case, cases
from slt.known.validate import Validation, validate

__all__ = ["Case", "ExactValue", "Validation", "case", "cases", "validate"]
