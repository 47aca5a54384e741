"""Whether batches estimate L_n at the anchor: their losses beside those of parts, or of other chunks of the data."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from slt.calibrate import Plan
from slt.data import batch_size_of, map_tensors
from slt.engines.batched import BatchedEngine
from slt.isolation import preserved_module
from slt.loss import value_of
from slt.posterior import LocalPosterior

BATCHES, MOST_BATCHES = 32, 1024  # of the first round, which the next ones double; of all
MOST_PARTS, USUAL_PART = 16, 8  # of a batch; samples of a part, of which there are two at least
FEWEST_PAIRS = 8  # that are finite: of parts without any weight or token a mean is none
CERTAIN = 4.0  # standard errors
ROUNDINGS = 32  # of the loss, that a difference must exceed
WITHOUT_GRADIENT = 1 / 3  # of the cost of a gradient


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
    posterior: LocalPosterior, plan: Plan, baseline: float, seed: int, allowed: float, most_gradients: float
) -> BatchMeans:
    r"""The loss of batches at the anchor beside L_n, as that of their parts tells; of full data, beside other chunks.

    Of a mean over samples a batch and its S parts have the same. A ratio, such as a mean weighted by classes or over
    tokens that are not padding, has a bias of b/B in batches of B, and

    .. math:: \frac{1}{S - 1} E\Bigl[\tfrac1S \sum_s L_s - L_B\Bigr]
              = \frac{1}{S - 1} \Bigl(\frac{S b}{B} - \frac{b}{B}\Bigr) = \frac{b}{B},

    which is E[L_B] − L_n, times nβ an error of λ̂, without the noise that a batch has in common with its parts. The
    number of batches doubles until that is known to ``allowed`` or is beyond chance. On full data the chains may take
    it in other chunks than those of L_n(w*).

    Args:
        posterior: The target, entered, whole.
        plan: As it was carried out.
        baseline: L_n(w*), nats.
        seed: Of the batches.
        allowed: Error of λ̂ that is of no account, in nats.
        most_gradients: That may be taken beyond those of the first round, in full-data gradients.

    Returns:
        It.
    """
    if plan.batch_size is None:
        return _of_chunks(posterior, plan, baseline)
    assert posterior.data is not None
    generator = torch.Generator(posterior.anchor.device).manual_seed(seed)
    batches = posterior.minibatches(plan.batch_size)(generator, 1)
    batch_size = min(plan.batch_size, posterior.data.size)
    if batch_size < 2:
        return BatchMeans(None, 0.0)
    parts = min(MOST_PARTS, max(2, batch_size // USUAL_PART))
    n_beta, pairs, taken, found = float(posterior.n_beta), [], 0, None
    each = 2 * WITHOUT_GRADIENT * batch_size / posterior.data.size
    with posterior.sampled.borrowed(), preserved_module(posterior.model, eval_mode=posterior.eval_mode):
        posterior.sampled.bind(posterior.sampled.tensors())
        while True:
            for _ in range(max(BATCHES, taken)):
                data = next(batches).data
                if posterior.data.batchable:  # of one chain: tensors of a stacked batch have an axis of length one
                    data = map_tensors(lambda tensor: tensor[0], data)
                taken += 1
                try:
                    pairs.append(_whole_and_parts(posterior, data, parts))
                except Exception:  # of a loss that takes no batch of so many
                    return BatchMeans(None, each * taken)
            whole, apart = torch.tensor(pairs, dtype=torch.float64).unbind(1)
            biases = ((apart - whole) / (parts - 1))[(apart - whole).isfinite()]
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


def _whole_and_parts(posterior: LocalPosterior, data: Any, parts: int) -> tuple[float, float]:
    """The loss of a batch, and the mean of those of parts of equal size."""
    each = batch_size_of(data) // parts

    def loss_of(first: int, last: int) -> float:
        part = map_tensors(lambda tensor: tensor[first:last] if tensor.ndim else tensor, data)
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
