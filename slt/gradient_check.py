"""Whether the gradient that a sampler follows is that of the loss: slopes of the loss beside it, around the anchor."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slt.passes import Passes
from slt.posterior import LocalPosterior

TRIALS = 10  # places and batches; the second at which the two agree is the last
SHARES = (0.08, 0.04, 0.02)  # of the reach, at which slopes are taken
FINER, REFINEMENTS = 4, 8  # by which the step is made smaller where they deny the gradient, and how often at most
ALIKE, APART = 0.15, 0.25  # of the gradient: slopes that agree among themselves, and that are not its length
ROUNDINGS = 1000  # of the loss, that the smallest of its changes must exceed


class Slopes(NamedTuple):
    """What was found where the two differ.

    Attributes:
        slope: Of the loss along the gradient, in nats per unit of weight; a mean over the places where they differ.
        gradient: The gradient's length there.
    """

    slope: float
    gradient: float


class GradientCheck(NamedTuple):
    """Whether slopes and gradient differ, and what it took to know.

    Attributes:
        wrong: The two where they differ; None where they agree, or cannot be told.
        num_passes: Losses with a gradient that were taken, each of a minibatch, or of all where there are none.
    """

    wrong: Slopes | None
    num_passes: int


@torch.no_grad()
def check_gradient(posterior: LocalPosterior, batch_size: int | None, seed: int) -> GradientCheck:
    r"""The slope of the loss along its gradient, and the gradient, where they differ by more than a quarter.

    .. math:: \frac{L(w + h u) - L(w - h u)}{2h} \quad \text{beside} \quad \|\nabla L(w)\|, \qquad
              u = \nabla L / \|\nabla L\|

    at places w around w* as far off as the potential of a batch rises by max(1, dim/2), with three h each. A slope
    counts where the three agree, so that neither rounding nor kinks do. Where it denies the gradient h is made smaller,
    for a loss may be rough on a scale below that of its posterior: two steps in a row that confirm the gradient do.
    The two differ where at least two places say so, and at most one denies it. Parts of a loss that are detached, or
    rounded with a gradient that is passed straight through, are found so: an exact sampler refuses where they lead,
    others go there.

    Args:
        posterior: The target, entered, whole.
        batch_size: Of the minibatches of the run; None for full data or an exact loss.
        seed: Of places and batches.

    Returns:
        It.
    """
    generator = torch.Generator(posterior.anchor.device).manual_seed(seed)
    batches = None if batch_size is None else posterior.minibatches(batch_size)(generator, 1)
    anchor = posterior.anchor
    kind = {"dtype": anchor.dtype, "device": anchor.device}
    precision, wrong = torch.finfo(posterior.sampled.dtype).eps, []
    reach, right, passes = 0.0, 0, Passes(posterior)
    for _ in range(TRIALS):
        batch = None if batches is None else next(batches)
        aside = torch.randn(anchor.shape, generator=generator, **kind)
        aside /= aside.norm()
        reach = reach or passes.reach(aside, batch)
        place = anchor + reach * aside
        loss, gradient = passes.at(place, batch)
        direction, length = gradient[0].clone(), float(gradient[0].double().norm())
        if not math.isfinite(length) or length == 0:
            continue
        direction /= length
        smallest = ROUNDINGS * precision * abs(float(loss)) / (2 * length)
        if min(SHARES) * reach <= smallest:
            continue
        sought = partial(_slope, passes, place, direction, batch)
        slopes = [sought(share * reach) for share in SHARES]
        if not all(map(math.isfinite, slopes)) or max(slopes) - min(slopes) > ALIKE * length:
            continue
        slope = sum(slopes) / len(slopes)
        if abs(slope / length - 1) < APART or _right_nearby(sought, min(SHARES) * reach, smallest, length):
            if (right := right + 1) > 1:
                break
            continue
        wrong.append((slope, length))
    if right > 1 or len(wrong) < 2:
        return GradientCheck(None, passes.count)
    return GradientCheck(Slopes(*(sum(values) / len(values) for values in zip(*wrong, strict=True))), passes.count)


def _slope(passes: Passes, place: Tensor, direction: Tensor, batch: Any, step: float) -> float:
    """The slope of the loss in a direction, over a step to either side."""
    ahead, behind = (passes.loss_at(place + side * step * direction, batch) for side in (1, -1))
    return (ahead - behind) / (2 * step)


def _right_nearby(slope_over: Callable[[float], float], step: float, smallest: float, length: float) -> bool:
    """Whether two smaller steps in a row give the gradient's length; none is below what rounding allows."""
    in_a_row = 0
    for _ in range(REFINEMENTS):
        step /= FINER
        if step <= smallest:
            break
        in_a_row = in_a_row + 1 if abs(slope_over(step) / length - 1) < APART else 0
        if in_a_row == 2:
            return True
    return False
