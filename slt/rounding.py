"""What the spacing of floating-point numbers does to a posterior that is hardly wider than it."""

from __future__ import annotations

import math

import torch

from slt.posterior import LocalPosterior

PAIRS, SAMPLES = 4, 512  # of neighbours of the anchor, on whose two sides the gradient cancels


def rounding_of_positions(posterior: LocalPosterior, batch_size: int | None, seed: int) -> float:
    r"""The mean rise of nβ·loss when every weight is rounded to its dtype, in nats.

    .. math:: n\beta\,E[L(w^* + \delta) - L(w^*)], \qquad
              \delta_i \sim U(-\tfrac12, \tfrac12) \cdot \text{spacing of } w^*_i

    A twelfth of what it is for δ of one spacing, up or down, which is evaluated: at neighbouring numbers of the anchor,
    on at most 512 samples, and in sequence on no more than a pass over the full data or a minibatch holds. Where it is
    as large as λ̂'s tolerance, chains stand on a grid as coarse as the law.

    Args:
        posterior: The target, entered.
        batch_size: Of the minibatches of the run; None for full data or an exact loss.
        seed: Of the neighbours.

    Returns:
        The rise, at least 0; 0 where weights are spread over processes, or a loss is not finite.
    """
    if posterior.shards is not None:
        return 0.0
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
    losses = [float(posterior.loss_and_grad(row.unsqueeze(0), batch)[0].double()) for row in (anchor, *neighbours)]
    rise = float(posterior.n_beta) * (sum(losses[1:]) / len(neighbours) - losses[0]) / 12
    return max(0.0, rise) if math.isfinite(rise) else 0.0
