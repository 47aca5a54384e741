"""The numbers of kernels that carry a momentum: checked, and turned into coefficients, one for all or one per chain.

Momentum q is dimensionless with q ~ N(0, I) in the law, U is dimensionless, and dw/dt = √P q; time therefore has the
unit of position, and a friction that of its inverse.
"""

from __future__ import annotations

import math

from torch import Tensor

from samplers.kernel import Kernel, check_positive

# h · friction where none is given: a momentum is forgotten in ten steps, the 0.9 of stochastic gradient descent with
# momentum, to which Chen, Fox & Guestrin 2014 relate their kernel.
FORGOTTEN_PER_STEP = 0.1


def friction_or_default(friction: float | Tensor | None, step_size: float | Tensor) -> float | Tensor:
    """The checked friction, or the one by which a momentum is forgotten in ten steps.

    Args:
        friction: A number, ``(chains, 1)``, or None.
        step_size: h, already checked.

    Returns:
        Friction, in units of 1/position.

    Raises:
        ValueError: It is not finite and positive, or has another shape than those.
    """
    if friction is None:
        return FORGOTTEN_PER_STEP / step_size
    return check_positive("friction", friction)


def exponential(exponent: float | Tensor) -> float | Tensor:
    """The exponential of a number or a tensor."""
    return exponent.exp() if isinstance(exponent, Tensor) else math.exp(exponent)


def forgotten_per_step(kernel: Kernel) -> float:
    """H · friction of a kernel that has both: the share of a momentum that a step forgets, where it is small.

    Args:
        kernel: With the settings ``step_size`` and ``friction``.

    Returns:
        The number; the mean over chains where they have frictions or steps of their own.
    """
    step_size, friction = kernel.settings["step_size"], kernel.settings["friction"]
    if friction is None:
        return FORGOTTEN_PER_STEP
    product = step_size * friction
    return float(product.mean()) if isinstance(product, Tensor) else product
