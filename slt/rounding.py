"""What the spacing of floating-point numbers does to a posterior that is hardly wider than it, and what chance does."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from slt.loss import differ
from slt.posterior import LocalPosterior

PAIRS, SAMPLES = 4, 512  # of neighbours of the anchor, on whose two sides the gradient cancels


class Neighbours(NamedTuple):
    """What was found.

    Attributes:
        rise: Of nβ·loss by rounding the weights, in nats.
        random_values: Two losses of the same samples at the anchor, where they differ; None elsewhere.
    """

    rise: float
    random_values: tuple[float, float] | None


def look_at_neighbours(posterior: LocalPosterior, batch_size: int | None, seed: int) -> Neighbours:
    r"""The mean rise of nβ·loss when every weight is rounded to its dtype, in nats.

    .. math:: n\beta\,E[L(w^* + \delta) - L(w^*)], \qquad
              \delta_i \sim U(-\tfrac12, \tfrac12) \cdot \text{spacing of } w^*_i

    A twelfth of what it is for δ of one spacing, up or down, which is evaluated: at neighbouring numbers of the anchor,
    on at most 512 samples, and in sequence on no more than a pass over the full data or a minibatch holds. Where it is
    as large as λ̂'s tolerance, chains stand on a grid as coarse as the law. At the anchor the loss is taken twice: what
    is random in one sample of a hundred does not show in the few at which a loss is looked at before a run.

    Args:
        posterior: The target, entered.
        batch_size: Of the minibatches of the run; None for full data or an exact loss.
        seed: Of the neighbours.

    Returns:
        The rise, at least 0; 0 where weights are spread over processes, or a loss is not finite. And whether chance has
        a part in it.
    """
    if posterior.shards is not None:
        return Neighbours(0.0, None)
    anchor = posterior.anchor
    generator = torch.Generator(anchor.device).manual_seed(seed)
    upward = torch.randint(2, (PAIRS, anchor.numel()), generator=generator, device=anchor.device).bool()
    far = torch.full_like(anchor, torch.inf)
    neighbours = [torch.nextafter(anchor, torch.where(up, far, -far)) for signs in upward for up in (signs, ~signs)]
    data = posterior.data
    batch = None
    if data is not None:
        held = SAMPLES if posterior.engine.name == "batched" else max(batch_size or 1, posterior.engine.forward_samples)
        batch = next(posterior.minibatches(min(data.size, SAMPLES, held))(generator, 1))
    places = (anchor, anchor, *neighbours)
    again, *losses = (float(posterior.loss_and_grad(row.unsqueeze(0), batch)[0].double()) for row in places)
    rise = float(posterior.n_beta) * (sum(losses[1:]) / len(neighbours) - losses[0]) / 12
    random = (again, losses[0]) if differ(again, losses[0]) else None
    return Neighbours(max(0.0, rise) if math.isfinite(rise) else 0.0, random)
