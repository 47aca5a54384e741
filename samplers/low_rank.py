"""A preconditioner that is a multiple of the identity but for a few directions: for targets with a few stiff ones."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.kernel import check_positive, square_root
from samplers.potential import ALL_COLUMNS


class LowRank:
    r"""P = c (I + V diag(f) Vᵀ), a multiple of the identity plus a matrix of low rank.

    .. math:: P = c \, (I + V \,\mathrm{diag}(f)\, V^T), \qquad
              \sqrt P = \sqrt c \, (I + V \,\mathrm{diag}(\sqrt{1 + f} - 1)\, V^T), \qquad V^T V = I

    The root is the symmetric one, B = Bᵀ and B² = P. Kernels need that: they apply the same root to momenta and noise,
    which ask for B, and to gradients, which ask for Bᵀ. With a diagonal matrix in place of c the symmetric root would
    not be of low rank, which is why c is a number.

    It mixes columns, so that kernels take the vector whole, and cannot be used where the vector is sharded. A root
    costs 4 · rank · dim operations a chain. P is applied as its root, twice: the two then agree to rounding even where
    1 + f is below the machine's precision, as exact kernels need.

    Args:
        scale: c, a number or ``(chains, 1)``; positive. Units of position², relative to the step size.
        directions: V, ``(dim, rank)``, orthonormal columns; of the dtype and device of the positions.
        factors: f > −1, ``(rank,)`` or ``(chains, rank)``: along a direction P is c (1 + f).

    Raises:
        ValueError: ``scale`` is not finite and positive; ``directions`` are not orthonormal columns; or ``factors``
            are of another number, not finite, or not above −1.
    """

    mixes_columns = True

    def __init__(self, scale: float | Tensor, directions: Tensor, factors: Tensor):
        scale = check_positive("scale", scale)
        if directions.ndim != 2 or not directions.is_floating_point():
            raise ValueError(
                f"directions: {directions.dtype} of shape {tuple(directions.shape)}; expected floating-point numbers "
                "of shape (dim, rank)."
            )
        rank = directions.shape[1]
        gram = directions.T.double() @ directions.double()
        error = (gram - torch.eye(rank, dtype=gram.dtype, device=gram.device)).abs().sum()
        if not float(error) <= 100 * rank * torch.finfo(directions.dtype).eps * max(rank, 10):
            raise ValueError(
                f"directions: VᵀV differs from the identity by {float(error):.1e} in all; expected orthonormal "
                "columns. Pass them through torch.linalg.qr."
            )
        if factors.ndim not in (1, 2) or factors.shape[-1] != rank:
            raise ValueError(
                f"factors: shape {tuple(factors.shape)}; expected ({rank},) or (chains, {rank}), one per direction."
            )
        if not bool((torch.isfinite(factors) & (factors > -1)).all()):
            raise ValueError(
                f"factors: {int((~(torch.isfinite(factors) & (factors > -1))).sum())} of {factors.numel()} entries are "
                "not finite and above -1; a preconditioner must be positive definite."
            )
        root = square_root(scale)
        self.root = root.to(directions) if isinstance(root, Tensor) else root
        self.directions = directions
        # of √P − √c I along the directions, in float64 until the difference is taken
        self.changes = (((1 + factors.double()).sqrt() - 1) * root).to(directions)

    def apply_(self, x: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """``P x`` in place, of whole vectors."""
        return self.apply_root_(self.apply_root_(x, columns), columns)

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
        if x.shape[-1] != self.directions.shape[0]:
            raise ValueError(
                f"columns: {x.shape[-1]} of {self.directions.shape[0]} were given to a preconditioner that mixes them; "
                "expected whole vectors. A kernel that works by pieces passes whole=preconditioner.mixes_columns to "
                "ColumnStreams.map; a sharded vector needs a diagonal preconditioner."
            )
        changes = (x @ self.directions) * self.changes
        return x.mul_(self.root).addmm_(changes, self.directions.T)

    def __repr__(self) -> str:
        dim, rank = self.directions.shape
        return f"LowRank({dim} entries, rank {rank})"
