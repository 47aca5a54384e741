"""Whether the gradient leads to where the loss is: its work on the way from the anchor to chains beside the rise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from slt.engines.batched import BatchedEngine
from slt.minibatches import AnyMinibatch
from slt.posterior import LocalPosterior

STRATA = 3  # of a way, in each of which the gradient is taken twice for each of two integrals
PASSES = 4 * STRATA + 2  # of a way: gradients, and the losses at both ends
WAYS, BATCHES = 8, 16  # ways of full data, or each of another batch
# Of what the points leave. If the errors of two integrals are normal the ratio of the squares of their sum and
# difference has the law F(8, 8), which is beyond 51 in 1 of 200,000; and beyond it in 1 of 1,000 by F(4, 4), where half
# of the ways have no error.
CERTAIN = 25.0


class GradientWork(NamedTuple):
    """What was found, in nats: means over the ways.

    Attributes:
        rise: nβ(L(w) − L(w*)).
        square: Of the difference between rise and work, in nats², without that of the points.
        noise: That of the points.
        num_gradients: Taken to know, in full-data gradients.
    """

    rise: float
    square: float
    noise: float
    num_gradients: float

    def differ(self, tolerance: float) -> bool:
        """Whether rise and work differ by more than that many nats, beyond chance."""
        return self.square > max(tolerance**2, CERTAIN * self.noise)


@torch.no_grad()
def gradient_work(
    posterior: LocalPosterior, ends: Tensor, batch_size: int | None, seed: int, most_gradients: float
) -> GradientWork | None:
    r"""The rise of the loss from w* to where chains are, and the work of its gradient on the way.

    .. math:: n\beta\,(L(w) - L(w^*)) \quad \text{beside} \quad
              n\beta \int_0^1 \nabla L(w^* + t(w - w^*)) \cdot (w - w^*)\, dt.

    They are one and the same, of each batch too, if the gradient is that of the loss and the loss has no jumps. If a
    part a of the loss is detached, chains that follow the gradient settle where the rest has the energy λ, and the two
    differ by a of λ̂, which is its error. The integral is taken at two points of each of three strata, the first
    anywhere in it and the second mirrored: without a bias for any gradient, kinked or rough, and without an error for
    one that is linear. It is taken twice, and the product of the two differences has the mean of their square without
    that of the points. They are of the full data where that takes few enough gradients, and of minibatches elsewhere.

    Args:
        posterior: The target, entered, whole.
        ends: Where chains are, ``(chain, dim)``; of those that are not finite none is taken.
        batch_size: Of the minibatches of the run; None for full data or an exact loss.
        seed: Of batches and points.
        most_gradients: That may be taken, in full-data gradients; those of sixteen minibatches always are.

    Returns:
        It; None where no chain is left.
    """
    ends = ends[ends.isfinite().all(1)]
    if not len(ends):
        return None
    anchor, n_beta = posterior.anchor, float(posterior.n_beta)
    data = posterior.data if batch_size is not None and most_gradients < WAYS * PASSES else None
    share, of_batches, ways = 1.0, None, WAYS if data is None else BATCHES
    together = min(len(ends), ways) if isinstance(posterior.engine, BatchedEngine) else 1
    if data is not None and batch_size is not None:
        share = batch_size / data.size
        of_batches = posterior.minibatches(batch_size)(torch.Generator(anchor.device).manual_seed(seed), together)
    points = torch.Generator().manual_seed(seed)
    rises, differences = [], []
    for first in range(0, ways, together):
        aside = ends[[way % len(ends) for way in range(first, first + together)]].to(anchor).sub_(anchor)
        batch = None if of_batches is None else next(of_batches)
        rise, works = _of_ways(posterior, aside, batch, points)
        rises.append(n_beta * rise)
        differences.append(n_beta * (rise - works))
    rise, (one, other) = torch.cat(rises), torch.cat(differences, 1)
    noise = 0.5 * (one - other).square()
    means = (float(values.mean()) for values in (rise, one * other, noise))
    return GradientWork(*means, num_gradients=PASSES * share * len(rise))


def _of_ways(
    posterior: LocalPosterior, aside: Tensor, batch: AnyMinibatch | None, points: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The rise of the loss along each way ``(way, dim)``, ``(way,)``, and the work of its gradient twice."""

    def taken(share: Tensor) -> tuple[Tensor, Tensor]:
        position = torch.addcmul(posterior.anchor, share.to(aside), aside)
        if batch is None:
            return posterior.losses_and_grads(position)
        return posterior.loss_and_grad(position, batch)

    whole = torch.ones(len(aside), 1)
    start, works = taken(0 * whole)[0].double(), torch.zeros(2, len(aside), dtype=torch.float64, device=aside.device)
    for work in works:
        for stratum in range(STRATA):
            offset = torch.rand(len(aside), 1, generator=points)
            for part in (offset, 1 - offset):
                _, gradient = taken((stratum + part) / STRATA)
                work += torch.linalg.vecdot(gradient, aside) / (2 * STRATA)  # which holds no product of their length
    return taken(whole)[0].double() - start, works
