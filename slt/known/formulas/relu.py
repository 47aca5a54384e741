"""Two-layer ReLU networks: minimal truths, and truths shared out over copies of a unit."""

from __future__ import annotations

from fractions import Fraction

from slt.known.formulas.coefficient import LearningCoefficient, check_counts
from slt.known.formulas.elementary import morse_bott


def relu_minimal(parameters: int, hidden: int) -> LearningCoefficient:
    """λ = (d − s)/2, m = 1: a minimal truth, whose only symmetry is the rescaling of each hidden unit.

    Conditions: no two kinks coincide, none lies on the support's boundary or on an atom of the input law, and the
    tangent functions ∂f/∂w_i span d − s dimensions in L₂(x). The last is to be checked for every network: the rank of
    their Gram matrix.

    Args:
        parameters: d.
        hidden: s, the number of hidden units, over all layers.

    Returns:
        λ and m.

    Raises:
        ValueError: There are fewer parameters than hidden units.

    Source:
        f is differentiable in L₂(x) at w* under the conditions, and K is a definite quadratic form, beyond higher
        orders, on a slice through the rescalings: Morse–Bott of rank d − s.
    """
    check_counts(parameters=parameters, hidden=hidden)
    if parameters < hidden:
        raise ValueError(f"parameters: {parameters}; expected at least the number of hidden units, {hidden}.")
    return morse_bott(parameters - hidden)


def relu_copies(copies: int, inputs: int = 2) -> LearningCoefficient:
    r"""λ = N/2 + (p − 1)(N − 1)/3, m = 1: one true unit, shared out over p copies with a_i > 0 on the same kink.

    Moving one kink by δ against another makes a bump of height ~ δ and width ~ δ, so that the p − 1 offsets enter K
    with the non-analytic exponent 3: K ~ ‖u‖² + ‖δ‖³, u of N and δ of (p − 1)(N − 1) dimensions. For tanh the
    exponent is 4 (:func:`tanh_copies`).

    Args:
        copies: p, at least 1.
        inputs: N, at least 2, the constant input of a bias counted as one of them.

    Returns:
        λ and m.

    Raises:
        ValueError: There is no copy, or fewer than two inputs.

    Source:
        Homogeneity and positivity (convexity) of the bump's norm; N = 2 and N = 3 were checked by volumes.
    """
    check_counts(copies=copies, inputs=inputs)
    if copies < 1 or inputs < 2:
        raise ValueError(f"copies, inputs: {copies}, {inputs}; expected at least 1 and 2.")
    return LearningCoefficient(Fraction(inputs, 2) + Fraction((copies - 1) * (inputs - 1), 3), 1)
