"""Step sizes over all scales of a target: drawn log-uniformly for each chain and path."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from samplers.kernel import check_positive

StepSize = float | Tensor | tuple[float | Tensor, float | Tensor]
Drawn = Callable[[Tensor, torch.Generator], float | Tensor]


def step_sizes(step_size: StepSize) -> tuple[StepSize, Drawn]:
    """The checked setting, and what draws the step size of a path from it.

    Args:
        step_size: A number or ``(chains, 1)``, or two such, (low, high).

    Returns:
        The setting, and ``(position, generator) → ε``: the number itself, or ``(chains, 1)`` drawn log-uniformly
        between low and high.

    Raises:
        ValueError: It is not finite and positive, of another shape than those, or (low, high) are not in order.
    """
    if not isinstance(step_size, tuple | list):
        checked = check_positive("step_size", step_size)
        return checked, lambda position, generator: checked
    if len(step_size) != 2:
        raise ValueError(f"step_size: {step_size!r}; expected one step size, or two, (low, high).")
    low, high = (check_positive("step_size", value) for value in step_size)
    if bool((torch.as_tensor(low) > torch.as_tensor(high)).any()):
        raise ValueError(f"step_size: {step_size!r}; expected (low, high) in this order.")
    log_low = low.log() if isinstance(low, Tensor) else math.log(low)
    log_width = (high.log() if isinstance(high, Tensor) else math.log(high)) - log_low

    def drawn(position: Tensor, generator: torch.Generator) -> Tensor:
        kind = {"dtype": position.dtype, "device": position.device}
        uniform = torch.rand(position.shape[0], 1, generator=generator, **kind)
        # of numbers, no tensor is made here that would have to be copied to the device at every step
        return (uniform * log_width + log_low).exp().to(position.dtype)

    return step_size, drawn
