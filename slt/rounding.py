"""What the spacing of floating-point numbers does to a posterior that is hardly wider than it, and what chance does."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from slt.loss import differ
from slt.posterior import LocalPosterior
from slt.resolution import common_unit

PAIRS, SAMPLES = 4, 512  # of neighbours of the anchor, on whose two sides the gradient cancels
PLACES, NEAREST = 16, 1e-6  # at which losses are looked at for the grid they stand on, from so far to the weights' size
TWICE = (PLACES // 2, -1)  # of these, where the loss is taken a second time


class Neighbours(NamedTuple):
    """What was found.

    Attributes:
        rise: Of nβ·loss by rounding the weights, in nats.
        unit: Of which the losses at other weights are whole multiples, in nats; 0 where that is not known.
        random_values: Two losses of the same samples and weights, where they differ; None elsewhere.
    """

    rise: float
    unit: float
    random_values: tuple[float, float] | None


def look_at_neighbours(posterior: LocalPosterior, batch_size: int | None, seed: int) -> Neighbours:
    r"""The mean rise of nβ·loss when every weight is rounded to its dtype, in nats.

    .. math:: n\beta\,E[L(w^* + \delta) - L(w^*)], \qquad
              \delta_i \sim U(-\tfrac12, \tfrac12) \cdot \text{spacing of } w^*_i

    A twelfth of what it is for δ of one spacing, up or down, which is evaluated: at neighbouring numbers of the anchor,
    on at most 512 samples, and in sequence on no more than a pass over the full data or a minibatch holds. Where it is
    as large as λ̂'s tolerance, chains stand on a grid as coarse as the law. The grid that losses stand on themselves
    (:func:`slt.resolution.common_unit`) is that of sixteen places, from a millionth of the weights' size to that size
    away. At the anchor and at two of those the loss is taken twice: what is random in one sample of a hundred does not
    show in the few at which a loss is looked at before a run, nor does what is random in proportion to a loss that is
    zero at the anchor.

    Args:
        posterior: The target, entered.
        batch_size: Of the minibatches of the run; None for full data or an exact loss.
        seed: Of the neighbours.

    Returns:
        The rise, at least 0; 0 where weights are spread over processes, or a loss is not finite. The unit. And whether
        chance has a part in it.
    """
    if posterior.shards is not None:
        return Neighbours(0.0, 0.0, None)
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
    size = float(anchor.norm()) / math.sqrt(anchor.numel()) or 1.0
    apart = torch.randn((PLACES, anchor.numel()), generator=generator, device=anchor.device, dtype=anchor.dtype)
    distance = size * torch.logspace(math.log10(NEAREST), 0, PLACES, device=anchor.device, dtype=anchor.dtype)

    def loss_at(place: Tensor) -> float:
        return float(posterior.loss_and_grad(place.unsqueeze(0), batch)[0].double())

    again, *losses = (loss_at(place) for place in (anchor, anchor, *neighbours))
    farther = [anchor + length * direction for length, direction in zip(distance, apart, strict=True)]
    found = [loss_at(place) for place in farther]
    unit = common_unit(torch.tensor(found, dtype=torch.float64))
    pairs = [(again, losses[0]), *((loss_at(farther[place]), found[place]) for place in TWICE)]
    rise = float(posterior.n_beta) * (sum(losses[1:]) / len(neighbours) - losses[0]) / 12
    random = next((pair for pair in pairs if differ(*pair)), None)
    return Neighbours(max(0.0, rise) if math.isfinite(rise) else 0.0, unit, random)
