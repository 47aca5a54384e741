"""Preconditioners P: the metric in which a kernel moves. Frozen, so that the target stays right."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from samplers.potential import ALL_COLUMNS


class Preconditioner(Protocol):
    """A fixed symmetric positive matrix P and its symmetric root, applied to columns of a ``(chains, dim)`` tensor.

    Kernels apply the root to momenta and noise as well as to gradients, which is right only where it is symmetric.

    Attributes:
        mixes_columns: Whether columns of P x depend on other columns of x, so that x must be whole.
    """

    mixes_columns: bool

    def apply_(self, x: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """``P x`` in place."""
        ...

    def apply_root_(self, x: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """``√P x`` in place."""
        ...


class Identity:
    """P = I."""

    mixes_columns = False

    def apply_(self, x: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """The same tensor."""
        return x

    def apply_root_(self, x: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """The same tensor."""
        return x

    def __repr__(self) -> str:
        return "Identity()"


class Diagonal:
    """P = diag(scale), one vector of model size: its root.

    Args:
        scale: Shape ``(dim,)`` or ``(chains, dim)``; positive. Units of position², relative to the step size.

    Raises:
        ValueError: Some entry is not finite and positive.
    """

    mixes_columns = False

    def __init__(self, scale: Tensor):
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError(
                f"scale: {int((~(torch.isfinite(scale) & (scale > 0))).sum())} of {scale.numel()} entries are not "
                "finite and positive; a preconditioner must be positive definite."
            )
        self.root = scale.sqrt()

    def apply_(self, x: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """``scale · x`` in place, as ``√scale · √scale · x``: one vector is kept, and no root is taken in a step."""
        root = self.root[..., columns]
        return x.mul_(root).mul_(root)

    def apply_root_(self, x: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """``√scale · x`` in place."""
        return x.mul_(self.root[..., columns])

    def __repr__(self) -> str:
        return f"Diagonal({self.root.numel()} entries)"
