"""The contract of a kernel: how one step of a sampler is started, taken and described."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from samplers.potential import Batch, Potential


class State(Protocol):
    """What the next step needs. Every state has at least the position, shape ``(chains, dim)``."""

    position: Tensor


class _Said(NamedTuple):
    """The fields of :class:`Info`."""

    loss: Tensor
    localization_energy: Tensor
    acceptance_rate: Tensor
    discretization_bias: Tensor
    not_finite: Tensor


class Info(_Said):
    """What diagnostics need and the next step does not: the position *from which* the step was taken.

    Attributes:
        loss: Loss there, ``(chains,)``, nats; of the minibatch where there is one.
        localization_energy: Energy of the localiser there, ``(chains,)``, nats.
        acceptance_rate: Probability with which the proposal was accepted, ``(chains,)``; ones for unadjusted kernels.
        discretization_bias: Predicted excess of nβ·E[loss] due to the finite step, ``(chains,)``, nats;
            zeros for Metropolis-corrected kernels.
        not_finite: Whether the proposal was refused because its loss or its energy is not a finite number,
            ``(chains,)``, bool; False where it is left out, as by unadjusted kernels, which go there and have diverged.
    """

    __slots__ = ()

    def __new__(
        cls,
        loss: Tensor,
        localization_energy: Tensor,
        acceptance_rate: Tensor,
        discretization_bias: Tensor,
        not_finite: Tensor | None = None,
    ) -> Self:
        """What a step says, complete where a kernel has no proposals to refuse."""
        if not_finite is None:
            not_finite = torch.zeros_like(acceptance_rate, dtype=torch.bool)
        return super().__new__(cls, loss, localization_energy, acceptance_rate, discretization_bias, not_finite)


class Kernel(NamedTuple):
    """A sampler: two functions, and the settings they were made from.

    A kernel carries no hidden state; ``step_`` mutates ``state`` in place, as torch optimizers do.

    Attributes:
        init: ``(position, potential) → state``; takes ownership of the position.
        step_: ``(state, potential, batch, generator) → info``.
        name: The name of the function that made it.
        settings: Its arguments, for the record and for :meth:`tune`.
        factory: That function.
        exact: Whether the law is exp(−U) at any step size. Exact kernels need the full-data gradient.
        gradients_per_step: How many gradients of every chain one step takes.
        num_adapt: Steps in which it still adapts itself; draws must begin after them.
    """

    init: Callable[[Tensor, Potential], Any]
    step_: Callable[[Any, Potential, Batch, torch.Generator], Info]
    name: str
    settings: Mapping[str, Any]
    factory: Callable[..., Kernel]
    exact: bool
    gradients_per_step: int = 1
    num_adapt: int = 0

    def tune(self, **settings: Any) -> Kernel:
        """The same kernel with some settings replaced."""
        return self.factory(**{**self.settings, **settings})


def add_scaled_(target: Tensor, x: Tensor, scale: float | Tensor) -> Tensor:
    """``target += scale · x`` in place, for a number or a ``(chains, 1)`` tensor, without synchronising."""
    return target.addcmul_(x, scale) if isinstance(scale, Tensor) else target.add_(x, alpha=scale)


def square_root(scale: float | Tensor) -> float | Tensor:
    """√scale, of a number or a tensor."""
    return scale.sqrt() if isinstance(scale, Tensor) else scale**0.5


def check_positive(name: str, value: float | Tensor) -> float | Tensor:
    """The value, as a Python number where it is one.

    Args:
        name: Of the argument, for the message.
        value: A number or ``(chains, 1)``.

    Returns:
        The same value.

    Raises:
        ValueError: It is not finite and positive, or a tensor of another shape than ``()`` or ``(chains, 1)``.
    """
    values = torch.as_tensor(value)
    if not bool(torch.isfinite(values).all()) or not bool((values > 0).all()):
        raise ValueError(f"{name}: {value!r}; expected finite and positive.")
    if values.ndim == 0:
        return float(value)
    if values.ndim != 2 or values.shape[1] != 1:
        raise ValueError(
            f"{name}: a tensor of shape {tuple(values.shape)}; expected a number, or one value per chain with shape "
            "(chains, 1)."
        )
    return values
