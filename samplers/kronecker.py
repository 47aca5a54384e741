"""A preconditioner for matrices of weights: each has two orthogonal bases and a scale for every pair of directions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.potential import ALL_COLUMNS


class KroneckerBlock(NamedTuple):
    """A matrix of weights, and its part of P.

    Attributes:
        left: U, ``(rows, rows)``, orthogonal; None for the identity.
        right: V, ``(columns, columns)``, orthogonal; None for the identity.
        root: R, ``(rows, columns)``, positive: √P along u_i v_jᵀ. Units of position, relative to the step size.
    """

    left: Tensor | None
    right: Tensor | None
    root: Tensor


class Kronecker:
    r"""P, of which each block maps a matrix W of weights as one that is diagonal in two bases.

    .. math:: \sqrt P\,W = U \, \bigl( R \circ (U^T W V) \bigr) \, V^T, \qquad
              P\,W = U \, \bigl( R \circ R \circ (U^T W V) \bigr) \, V^T

    A Hessian that is a Kronecker product A ⊗ B in a layer, with any function of its eigenvalues, is of this form. The
    root is symmetric, as kernels need.

    It mixes columns, so that kernels take the vector whole, and cannot be used where the vector is sharded. A block
    costs 4 · rows · columns · (rows + columns) operations a chain, without a basis on a side nothing for it.

    Args:
        blocks: In the order of the weights, which they fill; a position holds each matrix row by row.

    Raises:
        ValueError: There is no block, a root is no matrix of finite positive numbers, or a basis does not fit it or is
            not orthogonal.
    """

    mixes_columns = True

    def __init__(self, blocks: Sequence[KroneckerBlock]):
        if not blocks:
            raise ValueError("blocks: none; expected one for each matrix of weights.")
        for place, block in enumerate(blocks):
            _check(place, block)
        self.blocks = tuple(blocks)
        self.starts = tuple(itertools.accumulate((block.root.numel() for block in blocks), initial=0))

    def apply_(self, x: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """``P x`` in place, of whole vectors."""
        return self._scale_(x, twice=True)

    def apply_root_(self, x: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """``√P x`` in place, of whole vectors.

        Args:
            x: ``(chains, dim)``, changed.
            columns: All of them.

        Returns:
            ``x``.

        Raises:
            ValueError: ``x`` holds only some of the columns.
        """
        return self._scale_(x, twice=False)

    def _scale_(self, x: Tensor, *, twice: bool) -> Tensor:
        if x.shape[-1] != self.starts[-1]:
            raise ValueError(
                f"columns: {x.shape[-1]} of {self.starts[-1]} were given to a preconditioner that mixes them; expected "
                "whole vectors. A sharded vector needs a diagonal preconditioner."
            )
        for start, (left, right, root) in zip(self.starts, self.blocks, strict=False):
            part = x[:, start : start + root.numel()]
            inner = part.unflatten(1, root.shape)
            if left is not None:
                inner = left.T @ inner
            if right is not None:
                inner = inner @ right
            inner = inner * root
            if twice:
                inner = inner.mul_(root)
            if left is not None:
                inner = left @ inner
            if right is not None:
                inner = inner @ right.T
            part.copy_(inner.flatten(1))
        return x

    def __repr__(self) -> str:
        return f"Kronecker({self.starts[-1]} entries, {len(self.blocks)} matrices)"


def _check(place: int, block: KroneckerBlock) -> None:
    root = block.root
    if root.ndim != 2 or not bool((torch.isfinite(root) & (root > 0)).all()):
        raise ValueError(
            f"blocks: root of block {place}, shape {tuple(root.shape)}, is no matrix of finite positive numbers; a "
            "preconditioner must be positive definite."
        )
    for name, basis, size in (("left", block.left, root.shape[0]), ("right", block.right, root.shape[1])):
        if basis is None:
            continue
        if basis.shape != (size, size):
            raise ValueError(f"blocks: {name} of block {place}: shape {tuple(basis.shape)}; expected {(size, size)}.")
        gram = basis.T.double() @ basis.double()
        error = (gram - torch.eye(size, dtype=gram.dtype, device=gram.device)).abs().max()
        if not float(error) <= 100 * torch.finfo(basis.dtype).eps * max(size, 10):
            raise ValueError(
                f"blocks: {name} of block {place}: its columns are not orthonormal, by {float(error):.1e}; pass them "
                "through torch.linalg.qr."
            )
