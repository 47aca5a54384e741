"""Whether the gradient leads to where the loss is: its work on the way from the anchor to chains beside the rise."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from slt.engines.batched import BatchedEngine
from slt.minibatches import AnyMinibatch
from slt.posterior import LocalPosterior

STRATA = 5  # of a way, in each of which the gradient is taken twice
PASSES = 2 * STRATA + 2  # of a way: gradients, and the losses at both ends
MARGIN = 0.1  # of a way, somewhere within which it begins, and ends
WAYS = 16
# Of the noise of one product, beyond which more are taken. If the two errors are normal the ratio of the squares of
# their sum and difference has the law F(16, 16), which is beyond 5 in 1 of 800.
SUSPECT = 2.0
MORE_WAYS = (32, 128)  # of a suspect, the second where the first does not tell
CERTAIN = 4.0  # standard errors of the mean of those
LARGEST = 1e150  # nats, whose square is a number
FEWEST_WAYS = 4  # that are finite


class GradientWork(NamedTuple):
    """What was found, in nats: means over the ways.

    Attributes:
        rise: nβ(L(w) − L(w*)), or nearly from w* to nearly w.
        square: Of the difference between rise and work, in nats²; of all data, without what batches and points add.
        error: Standard error of the square where there is no difference.
        num_gradients: Taken to know, in full-data gradients.
    """

    rise: float
    square: float
    error: float
    num_gradients: float

    def differ(self, tolerance: float) -> bool:
        """Whether rise and work differ by more than that many nats, beyond chance."""
        return self.square > max(min(tolerance, LARGEST) ** 2, CERTAIN * self.error)


@torch.no_grad()
def gradient_work(
    posterior: LocalPosterior,
    ends: Tensor,
    batch_size: int | None,
    seed: int,
    allowed: float,
) -> GradientWork | None:
    r"""The rise of the loss from w* to where chains are, and the work of its gradient on the way.

    .. math:: n\beta\,(L(w) - L(w^*)) \quad \text{beside} \quad
              n\beta \int_0^1 \nabla L(w^* + t(w - w^*)) \cdot (w - w^*)\, dt.

    They are one and the same, of each batch too, if the gradient is that of the loss and the loss has no jumps. If a
    part a of the loss is detached, chains that follow the gradient settle where the rest has the energy λ, and the two
    differ by a of λ̂, which is its error. The integral is taken at two points of each of five strata, the first
    anywhere in it and the second mirrored: without a bias for any gradient, kinked or rough, and without an error for
    one that is linear. It is taken twice, each time from another place within the first tenth of the way to another in
    the last, and the product of the two differences has the mean of their square without that of the points.

    First both are of the same batch, which shows whatever is wrong. Where something is, they are of two batches, so
    that what is wrong with single batches alone cancels, as chains average over them: of a loss that is rounded to
    sixteen bits, say. Then they are taken of the way and its mirror image: half the sum of both is free of slopes at
    w*, those of batches too, and half the difference has nothing but what is odd. Either may show it.

    Args:
        posterior: The target, entered, whole.
        ends: Where chains are, ``(chain, dim)``; of those that are not finite none is taken.
        batch_size: Of the minibatches of the run; None for full data or an exact loss.
        seed: Of batches and points.
        allowed: Error of λ̂ that is of no account, in nats.

    Returns:
        It; None where fewer than four ways are left, of chains and losses that are finite.
    """
    ends = ends[ends.isfinite().all(1)]
    if not len(ends):
        return None
    found = _taken(posterior, ends, batch_size, seed, WAYS, same=True)
    if found is None:
        return None
    found = found._replace(error=SUSPECT / CERTAIN * WAYS**0.5 * found.error)
    if not found.differ(allowed / 2):
        return found
    num_gradients = found.num_gradients
    for place, ways in enumerate(MORE_WAYS, 1):
        found = _taken(posterior, ends, batch_size, seed + place, ways, same=False)
        if found is None:
            return None
        num_gradients += found.num_gradients
        if found.differ(allowed) or found.square + CERTAIN * found.error < allowed**2:
            break
    return found._replace(num_gradients=num_gradients)


def _taken(
    posterior: LocalPosterior, ends: Tensor, batch_size: int | None, seed: int, ways: int, *, same: bool
) -> GradientWork | None:
    anchor, n_beta = posterior.anchor, float(posterior.n_beta)
    together = min(len(ends), ways) if isinstance(posterior.engine, BatchedEngine) else 1
    share, batches = 1.0, itertools.repeat(None)
    if batch_size is not None and posterior.data is not None:
        share = batch_size / posterior.data.size
        batches = posterior.minibatches(batch_size)(torch.Generator(anchor.device).manual_seed(seed), together)
    points = torch.Generator().manual_seed(seed)
    sides = (1,) if same else (1, -1)
    both = []
    for first in range(0, ways, together):
        aside = ends[[way % len(ends) for way in range(first, first + together)]].to(anchor).sub_(anchor)
        one = next(batches)
        of_two = (one, one if same else next(batches))
        each = [_of_ways(posterior, side * aside, batch, points) for batch in of_two for side in sides]
        both.append(torch.stack(each).unflatten(0, (2, len(sides))))
    rises, works = (n_beta * torch.cat(both, 3)).unbind(2)  # (batch, side, way) each
    num_gradients = 2 * len(sides) * PASSES * share * rises.shape[2]
    finite = (rises + works).isfinite().all(0).all(0)
    count, differences = int(finite.sum()), (rises - works)[:, :, finite]
    if count < FEWEST_WAYS:
        return None
    rise, found = float(rises[:, 0, finite].mean()), []
    for part in (differences.mean(1), (differences[:, 0] - differences[:, -1]) / 2)[: len(sides)]:
        error = float((0.5 * (part[0] - part[1]).square()).mean()) / count**0.5
        found.append(GradientWork(rise, float((part[0] * part[1]).mean()), error, num_gradients))
    return max(found, key=lambda each: each.square - CERTAIN * each.error)


def _of_ways(posterior: LocalPosterior, aside: Tensor, batch: AnyMinibatch | None, points: torch.Generator) -> Tensor:
    """The rise of the loss along most of each way ``(way, dim)``, and the work of its gradient, ``(2, way)``."""

    def taken(share: Tensor) -> tuple[Tensor, Tensor]:
        position = torch.addcmul(posterior.anchor, share.to(aside), aside)
        if batch is None:
            return posterior.losses_and_grads(position)
        return posterior.loss_and_grad(position, batch)

    start, end = MARGIN * torch.rand(2, len(aside), 1, generator=points)
    length = 1 - end - start
    rise = taken(start + length)[0].double() - taken(start)[0].double()
    work = torch.zeros_like(rise)
    for stratum in range(STRATA):
        offset = torch.rand(len(aside), 1, generator=points)
        for part in (offset, 1 - offset):
            _, gradient = taken(start + length * (stratum + part) / STRATA)
            work += torch.linalg.vecdot(gradient, aside) / (2 * STRATA)  # which holds no product of their length
    return torch.stack([rise, work * length.squeeze(1).to(work)])
