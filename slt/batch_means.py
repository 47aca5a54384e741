"""Whether batches estimate L_n at the anchor: their losses beside it, those of their parts, or of other chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from slt.calibrate import Plan
from slt.data import BatchData, TensorData, batch_size_of, map_tensors
from slt.engines.batched import BatchedEngine
from slt.isolation import preserved_module
from slt.loss import value_of
from slt.posterior import LocalPosterior

WITHOUT_GRADIENT = 1 / 3  # of the cost of a gradient
SHARE_OF_EPOCH = 1 / 4  # of the run's gradients, which the losses of an epoch may cost
BATCHES, MOST_BATCHES = 32, 1024  # of which parts are taken: in the first round, which the next ones double; of all
MOST_PARTS, USUAL_PART = 16, 8  # of a batch; samples of a part, of which there are two at least
FEWEST_PAIRS = 8  # that are finite: of parts without any weight or token a mean is none
SHARE_OF_PARTS = 1 / 20  # of the run's gradients, beyond the first round
CERTAIN = 4.0  # standard errors
ROUNDINGS = 32  # of the loss, that a difference must exceed


class BatchMeans(NamedTuple):
    """What was found.

    Attributes:
        uneven: The loss at the anchor as chains take it, and L_n(w*), where they differ beyond doubt; None elsewhere.
        num_gradients: Taken to know, in full-data gradients.
    """

    uneven: tuple[float, float] | None
    num_gradients: float


@torch.no_grad()
def compare_batch_means(
    posterior: LocalPosterior,
    plan: Plan,
    anchor_loss: tuple[float, float],
    seed: int,
    allowed: float,
    num_gradients: float,
) -> BatchMeans:
    r"""The loss at the anchor as the chains take it, beside L_n(w*): nβ times their difference is an error of λ̂.

    Of a mean over samples they are one and the same. A ratio, such as a mean weighted by classes or over tokens that
    are not padding, is another in every division of the data.

    **By minibatches**, an epoch of them, in random order, has every sample once, so that of a mean over samples it
    gives L_n(w*) to rounding. Where an epoch is too dear, or L_n(w*) of some samples only, batches are set beside
    their parts: in batches of B independent samples a ratio has a bias of about b/B, and of S equal parts

    .. math:: \frac{1}{S - 1} E\Bigl[\tfrac1S \sum_s L_s - L_B\Bigr]
              = \frac{1}{S - 1} \Bigl(\frac{S b}{B} - \frac{b}{B}\Bigr) = \frac{b}{B},

    without the noise that a batch has in common with its parts. The number of batches doubles until that is known to
    ``allowed`` or is beyond chance.

    **On full data** the chains may take it in other chunks than those of L_n(w*). Batches that are the user's own, and
    the same in every epoch, are those of L_n(w*) too.

    Args:
        posterior: The target, entered.
        plan: As it was carried out.
        anchor_loss: L_n(w*) and its standard error, nats.
        seed: Of the batches.
        allowed: Error of λ̂ that is of no account, in nats.
        num_gradients: Of the run, in full-data gradients.

    Returns:
        It.
    """
    data, (baseline, error) = posterior.data, anchor_loss
    if data is None or (isinstance(data, BatchData) and data.held):
        return BatchMeans(None, 0.0)
    if plan.batch_size is None:
        return _of_chunks(posterior, plan, baseline) if error == 0 else BatchMeans(None, 0.0)
    with posterior.sampled.borrowed(), preserved_module(posterior.model, eval_mode=posterior.eval_mode):
        posterior.sampled.bind(posterior.sampled.tensors())
        if error == 0 and SHARE_OF_EPOCH * num_gradients >= WITHOUT_GRADIENT:
            found = _of_an_epoch(posterior, data, plan.batch_size, seed)
            if math.isfinite(found):
                uneven = (found, baseline) if _differ(posterior, found, baseline) else None
                return BatchMeans(uneven, WITHOUT_GRADIENT)
        return _of_parts(posterior, data, plan.batch_size, baseline, seed, allowed, SHARE_OF_PARTS * num_gradients)


def _of_an_epoch(posterior: LocalPosterior, data: TensorData | BatchData, batch_size: int, seed: int) -> float:
    """The mean loss of an epoch; not a number where a batch has none, or the loss takes none of so many samples."""
    total = 0.0
    for batch in _epoch(posterior, data, batch_size, seed):
        try:
            total += batch_size_of(batch) / data.size * value_of(posterior.loss_fn(posterior.model, batch))
        except Exception:  # as the last batch may be
            return math.nan
    return total


def _epoch(posterior: LocalPosterior, data: TensorData | BatchData, batch_size: int, seed: int) -> Iterator[Any]:
    """Batches of every sample once, the last of what is left; or the user's own."""
    generator = torch.Generator(posterior.anchor.device).manual_seed(seed)
    if isinstance(data, BatchData):
        batches = data.epochs(None)(generator, 1)
        yield from (next(batches).data for _ in range(data.num_batches))
        return
    order = torch.randperm(data.size, generator=generator, device=generator.device)
    for rows in order.split(batch_size):
        yield map_tensors(lambda tensor: tensor[0], data.gather(rows.unsqueeze(0)))


def _of_parts(
    posterior: LocalPosterior,
    data: TensorData | BatchData,
    batch_size: int,
    baseline: float,
    seed: int,
    allowed: float,
    most_gradients: float,
) -> BatchMeans:
    size = min(max(batch_size, 2 * USUAL_PART), data.size)  # of a batch that is taken apart
    generator = torch.Generator(posterior.anchor.device).manual_seed(seed)
    batches = data.epochs(size)(generator, 1)
    parts = min(MOST_PARTS, max(2, size // USUAL_PART))
    per_batch = size / batch_size / (parts - 1)  # of its parts' excess, the bias of batches
    n_beta, pairs, taken, found = float(posterior.n_beta), [], 0, None
    each = 2 * WITHOUT_GRADIENT * size / data.size
    while True:
        for _ in range(max(BATCHES, taken)):
            batch = next(batches).data
            if isinstance(data, TensorData):  # of one chain: tensors have an axis of length one in front
                batch = map_tensors(lambda tensor: tensor[0], batch)
            taken += 1
            try:
                pairs.append(_whole_and_parts(posterior, batch, parts))
            except Exception:  # of a loss that takes no batch of so many
                pairs.append((math.nan, math.nan))
        whole, apart = torch.tensor(pairs, dtype=torch.float64).unbind(1)
        biases = per_batch * (apart - whole)[(apart - whole).isfinite()]
        if len(biases) < FEWEST_PAIRS:
            break
        bias, chance = float(biases.mean()), CERTAIN * float(biases.std()) / len(biases) ** 0.5
        if abs(bias) > chance:
            differ = _differ(posterior, float(whole.nanmean()), float(apart.nanmean()))
            found = (baseline + bias, baseline) if differ else None
            break
        if n_beta * chance <= allowed or 2 * taken > MOST_BATCHES or each * taken > most_gradients:
            break
    return BatchMeans(found, each * taken)


def _whole_and_parts(posterior: LocalPosterior, batch: Any, parts: int) -> tuple[float, float]:
    """The loss of a batch, and the mean of those of parts of equal size; not numbers where it is too small."""
    each = batch_size_of(batch) // parts
    if not each:
        return math.nan, math.nan

    def loss_of(first: int, last: int) -> float:
        part = map_tensors(lambda tensor: tensor[first:last] if tensor.ndim else tensor, batch)
        return value_of(posterior.loss_fn(posterior.model, part))

    return loss_of(0, parts * each), sum(loss_of(place * each, (place + 1) * each) for place in range(parts)) / parts


def _of_chunks(posterior: LocalPosterior, plan: Plan, baseline: float) -> BatchMeans:
    engine, data = posterior.engine, posterior.data
    if data is None or not isinstance(engine, BatchedEngine):
        return BatchMeans(None, 0.0)
    if data.size <= min(engine.forward_samples, engine.max_samples(plan.num_chains)):
        return BatchMeans(None, 0.0)  # both take it whole
    losses, _ = engine.loss_and_grad(posterior.anchor.expand(plan.num_chains, -1).contiguous())
    found = float(losses.double().mean()), baseline
    return BatchMeans(found if _differ(posterior, *found) else None, float(plan.num_chains))


def _differ(posterior: LocalPosterior, one: float, other: float) -> bool:
    """Whether two losses differ by more than rounding."""
    rounding = torch.finfo(posterior.sampled.dtype).eps * max(abs(one), abs(other))
    return math.isfinite(one - other) and abs(one - other) > ROUNDINGS * rounding
