"""Whether the loss of a batch is the mean over its samples, which nβ multiplies and minibatches estimate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from slt.data import batch_size_of, map_tensors, tensors_of
from slt.displacement import displaced, weights_at
from slt.parameters import SampledParameters

FEW = 8  # samples of which it is asked
# of the loss, by which that of a batch and the mean of its samples may differ: padded sequences weigh by their tokens
UNEVEN = 0.1
# Of the loss aside, squared, in epsilons: what rounding in all layers leaves of squared errors that are zero, whichever
# weights are sampled; and what it is at most, in 16 bits.
RESOLVED, LARGEST_ROUNDING = 1e3, 1e-2
# What repeated samples add to a sum: in epsilons of the loss at least, and how much that may change, of itself.
ROUNDINGS, LINEAR = 256, 0.01
SAME, OTHER = 1e-5, 1e-3  # of the loss: what rounding changes, and what other targets change at least


def check_mean(
    model: nn.Module, batch: Any, loss_fn: Callable[..., Tensor], sampled: SampledParameters
) -> tuple[float, float] | None:
    """Refuse a loss to which samples add that are given again, a sum; of others, tell what is no mean over samples.

    At the anchor the loss of a few samples may be a tenth off the mean of their losses; at weights aside, where it is
    nothing but rounding there. At those, where outputs differ that training made equal, it must change as their losses
    do when samples exchange their targets, or any other tensor: where all outputs are compared with all targets, as by
    broadcasting, it does not.

    Args:
        model: The module, at the anchor.
        batch: Samples, of which a few are used.
        loss_fn: The loss.
        sampled: The sampled parameters.

    Returns:
        Of a few samples the loss together, and the mean of their losses one by one, where the first is no mean; None
        where it is, and where the loss takes batches of one size alone. Two by two, where it takes no single sample; or
        the loss of one sample beside a few others, and beside one.

    Raises:
        ValueError: The loss is a sum over samples.
    """
    size = min(FEW, batch_size_of(batch))
    few = map_tensors(lambda tensor: tensor[:size] if tensor.ndim else tensor, batch)

    def losses_of(samples: Any) -> Tensor:
        try:
            return loss_fn(model, samples).double()
        except Exception:  # of a loss that takes no batch of so many
            return torch.tensor(math.nan)

    def loss_of(samples: Any) -> float:
        return float(losses_of(samples).mean())

    with torch.no_grad():
        at_anchor = loss_of(few)
        with weights_at(sampled, displaced(sampled)):
            aside = loss_of(few)
            _refuse_sum(aside, lambda times: loss_of(_repeated(few, times)), sampled)
            exchanged = _unmoved_by_exchange(loss_of, few, size, aside)
        with weights_at(sampled, _rounded_otherwise(sampled)):
            nudged = loss_of(few)
        # then outputs are the targets up to rounding, which is another beside other samples
        moved = abs(nudged - at_anchor) > UNEVEN * abs(at_anchor)
        bound = min(LARGEST_ROUNDING, (RESOLVED * torch.finfo(sampled.dtype).eps) ** 2)
        unresolved = math.isfinite(aside) and (moved or abs(at_anchor) <= bound * abs(aside))
        with weights_at(sampled, displaced(sampled)) if unresolved else nullcontext():
            of_few = losses_of(few)
            together, alone = float(of_few.mean()), _mean_alone(loss_of, few, size)
            _refuse_sum(together, lambda times: loss_of(_repeated(few, times)), sampled)
            of_two = losses_of(map_tensors(lambda tensor: tensor[:2] if tensor.ndim else tensor, few))
            if math.isnan(alone) and size > 3:  # a BatchNorm that has the batch's own mean takes two at least
                even = map_tensors(lambda tensor: tensor[: size // 2 * 2] if tensor.ndim else tensor, few)
                together, alone = loss_of(even), _mean_alone(loss_of, even, size // 2 * 2, each=2)
    if abs(together - alone) > UNEVEN * max(abs(together), abs(alone)):
        return together, alone
    return _of_others(of_few, of_two) or exchanged


def _rounded_otherwise(sampled: SampledParameters) -> Tensor:
    """The weights, each an epsilon of itself aside."""
    anchor = sampled.flatten()
    signs = torch.ones_like(anchor)
    signs[::2] = -1
    return anchor * (1 + torch.finfo(anchor.dtype).eps * signs)


def _of_others(of_few: Tensor, of_two: Tensor) -> tuple[float, float] | None:
    """The loss of one sample among a few and among two, where it differs; None where it does not, or is not given."""
    if of_few.ndim == 0 or of_two.shape != (2,):
        return None
    apart = (of_few[:2] - of_two).abs()
    worst = int(apart.argmax())
    found = float(of_few[worst]), float(of_two[worst])
    return found if float(apart[worst]) > UNEVEN * float(of_few.abs().mean()) else None


def _repeated(few: Any, times: int) -> Any:
    return map_tensors(lambda tensor: torch.cat([tensor] * times) if tensor.ndim else tensor, few)


def _refuse_sum(once: float, loss_of: Callable[[int], float], sampled: SampledParameters) -> None:
    """Refuse a loss that is so much more each time that the samples are given again, beside what is of the weights."""
    added = loss_of(2) - once
    if not abs(added) > ROUNDINGS * torch.finfo(sampled.dtype).eps * abs(once):
        return  # the loss of a mean is the same
    if all(abs(loss_of(times) - once - (times - 1) * added) <= LINEAR * abs(added) for times in (3, 5)):
        raise ValueError(
            f"loss_fn: samples that are given twice have a loss of {once + added:.6g} instead of {once:.6g}, and as "
            "much more each time that they are given again; expected the mean over a batch, which stays the same. Take "
            ".mean() in place of .sum(), or return one loss per sample, (batch,). What is of the weights alone, such "
            "as weight decay, is added to the mean."
        )


def _mean_alone(loss_of: Callable[[Any], float], few: Any, size: int, each: int = 1) -> float:
    """The mean of the losses of samples one by one, or so many at a time."""
    groups = (
        map_tensors(lambda tensor, first=first: tensor[first : first + each] if tensor.ndim else tensor, few)
        for first in range(0, size, each)
    )
    return sum(map(loss_of, groups)) * each / size


def _unmoved_by_exchange(
    loss_of: Callable[[Any], float], few: Any, size: int, together: float
) -> tuple[float, float] | None:
    """Losses together and one by one after an exchange that changes the second alone; None where there is none."""
    for place in range(1, sum(tensor.ndim > 0 for tensor in tensors_of(few))):
        once, twice = (_exchanged(few, place, shift) for shift in (1, 2))
        if not all(abs(loss_of(samples) - together) <= SAME * abs(together) for samples in (once, twice)):
            continue
        before, after = _mean_alone(loss_of, few, size), _mean_alone(loss_of, once, size)
        if abs(after - before) > OTHER * abs(together):
            return together, after
    return None


def _exchanged(few: Any, place: int, shift: int) -> Any:
    """Samples of which each has this tensor of another."""
    places = itertools.count()
    return map_tensors(lambda tensor: tensor.roll(shift, 0) if tensor.ndim and next(places) == place else tensor, few)
