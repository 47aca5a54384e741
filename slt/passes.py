"""Losses and gradients at single places around the anchor, counted, and how far from it the posterior reaches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from slt.posterior import LocalPosterior

DOUBLINGS = 24


class Passes:
    """Losses at single places, counted.

    Args:
        posterior: The target, entered.

    Attributes:
        count: How many were taken, each of a minibatch, or of all data where there was none.
    """

    def __init__(self, posterior: LocalPosterior) -> None:
        self.posterior, self.count = posterior, 0

    def at(self, position: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """Loss ``(1,)`` and gradient ``(1, dim)`` at a position ``(dim,)``."""
        self.count += 1
        return self.posterior.loss_and_grad(position.unsqueeze(0), batch)

    def loss_at(self, position: Tensor, batch: Any) -> float:
        """The loss at a position ``(dim,)``."""
        return float(self.at(position, batch)[0].double())

    def reach(self, aside: Tensor, batch: Any, slope: float = 0.0) -> float:
        """How far along a direction the potential of a batch rises as much as in the posterior, to a factor of two.

        Args:
            aside: The direction, of unit length, ``(dim,)``.
            batch: A minibatch, or None for all data.
            slope: Of the batch's loss at the anchor in that direction, of which the full data has none; it is not
                taken for a rise.

        Returns:
            The distance.
        """
        anchor, n_beta = self.posterior.anchor, float(self.posterior.n_beta)
        wanted = max(1.0, self.posterior.dim / 2) / n_beta
        start, far = self.loss_at(anchor, batch), 1e-6 * max(1.0, float(anchor.norm()))
        for _ in range(DOUBLINGS):
            held = self.posterior.localizer.energy((anchor + far * aside).unsqueeze(0))
            held = float(self.posterior.sum(held.unsqueeze(1))) / n_beta  # of a shard it is that of its own columns
            if not self.loss_at(anchor + far * aside, batch) - start - far * slope + held < wanted:
                break
            far *= 2
        return far
