"""Which engine serves a model: what the model allows, and what fits."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from slt.data import Data, map_tensors
from slt.displacement import displaced, weights_at
from slt.engines.batched import BatchedEngine
from slt.engines.in_place import InPlaceEngine
from slt.engines.sharded import ShardedEngine
from slt.isolation import kept_tensors, preserved_module
from slt.loss import LossFn, mean_loss
from slt.minibatches import Minibatch
from slt.parameters import SIXTEEN_BITS, SampledParameters

# Position, anchor, gradient and scratch of all chains together. Beyond this, chains in sequence are as fast: one
# chain's matrices then fill the machine.
VECTOR_LIMIT = 1 << 30
VECTORS_PER_CHAIN = 8
# On a CPU the matrices of one chain fill a core from some 10⁵ weights on, and the vectors of many leave its caches: at
# 10⁶ weights four chains side by side take 1.6 times as long, sixteen twice (batches of 64, three layers).
LARGEST_BATCHED_ON_CPU = 1 << 19
# By how much vectorised and plain evaluations may differ, relative: loss and gradient, and aside in sixteen bits.
ALIKE, ALIKE_IN_SIXTEEN_BITS = (1e-3, 1e-2), (0.05, 0.2)


def choose_engine(
    name: str, model: nn.Module, data: Data | None, loss_fn: LossFn, sampled: SampledParameters, num_chains: int
) -> tuple[BatchedEngine | InPlaceEngine | ShardedEngine, str]:
    """An engine, and why it was chosen.

    Args:
        name: ``"auto"``, ``"batched"`` or ``"in_place"``.
        model: The module, in the mode in which it will be sampled.
        data: The data, or None.
        loss_fn: The loss.
        sampled: The sampled parameters.
        num_chains: How many chains there will be.

    Returns:
        The engine and the reason, in words.

    Raises:
        ValueError: The name is unknown, or an engine was asked for that the model does not allow.
    """
    if name not in ("auto", "batched", "in_place"):
        raise ValueError(f"engine: {name!r}; expected 'auto', 'batched' or 'in_place'.")
    if sampled.shards is not None:
        if name != "auto":
            raise ValueError(f"engine: {name!r}, but the model is sharded by fully_shard; expected 'auto'.")
        sharded = ShardedEngine(model, data, loss_fn, sampled)
        return sharded, f"parameters are sharded over {sharded.count} processes"
    in_place = InPlaceEngine(model, data, loss_fn, sampled)
    if name == "in_place":
        return in_place, "asked for"
    batched = BatchedEngine(model, data, loss_fn, sampled)
    first = sampled.tensors()[0]
    apart = better_apart(sampled.dim, num_chains, first.element_size(), first.device)
    if name == "auto" and apart is not None:
        return in_place, apart
    if data is not None and not data.batchable:
        obstacle = "batches of unequal shape or size, or larger than memory, cannot be stacked over chains"
    else:
        obstacle = _obstacle(batched, strict=name == "auto")
    if obstacle is None:
        return batched, "the model can be vectorised over chains, and they fit"
    if name == "batched":
        raise ValueError(f"engine: 'batched' was asked for, but {obstacle}. Use engine='in_place'.")
    return in_place, obstacle


def better_apart(dim: int, num_chains: int, element_size: int, device: torch.device) -> str | None:
    """Why chains of so many weights are better advanced one after the other, or None.

    Args:
        dim: Weights.
        num_chains: Chains.
        element_size: Bytes of a weight.
        device: Where they are.

    Returns:
        The reason, in words.
    """
    if num_chains * dim * VECTORS_PER_CHAIN * element_size > VECTOR_LIMIT:
        return f"{num_chains} chains of {dim:,} parameters do not fit side by side"
    if device.type == "cpu" and dim > LARGEST_BATCHED_ON_CPU:
        return f"{dim:,} parameters fill a CPU: chains are no faster side by side"
    return None


def _obstacle(engine: BatchedEngine, *, strict: bool) -> str | None:
    """Why a vectorised evaluation of two chains fails or differs from the plain one; None where it does not.

    One of the chains is at the anchor. The other is well aside of it: a term of the loss that is left out where weights
    are no parameters, such as one over ``p.requires_grad``, may be next to nothing at a minimum.

    Args:
        engine: The batched engine.
        strict: Whether a part of the model that ``vmap`` can only loop over counts too; nothing is gained by it then.

    Returns:
        The reason in words, or None.
    """
    sampled, data = engine.sampled, engine.data
    batch = None if data is None else data.first_batch()
    if strict and any(module._forward_hooks for module in engine.model.modules()):
        return "the module has forward hooks, which would see tensors of many chains"
    with sampled.borrowed(), preserved_module(engine.model, eval_mode=False):
        refused, changed, losses, gradients = "", [], sampled.flatten(), sampled.flatten()
        aside = displaced(sampled)
        there = _plain(engine, aside, batch)
        position = torch.stack([sampled.flatten(), sampled.flatten() if there is None else aside])
        stacked = map_tensors(lambda tensor: torch.stack([tensor, tensor]), batch)
        try:
            with warnings.catch_warnings():
                if strict:
                    warnings.filterwarnings("error", message="There is a performance drop")
                before = kept_tensors(engine.model)
                losses, gradients = engine.loss_and_grad(position, Minibatch(stacked) if data is not None else None)
                changed = sorted(dict(kept_tensors(engine.model).items() ^ before.items()))
        except Exception as error:
            first = str(error).splitlines()[0][:240] if str(error) else ""
            refused = f"vmap refused it ({type(error).__name__}: {first})"
    # the last of them: what the forward pass keeps in a list is no tensor of many chains
    with preserved_module(engine.model, eval_mode=False), torch.no_grad():
        plain = float(mean_loss(engine.loss_fn, engine.model, batch, data is not None))
    if refused:
        return refused
    if changed:
        return f"the forward pass keeps tensors in {', '.join(changed[:3])}, which would hold those of many chains"
    of_loss, of_gradient = ALIKE_IN_SIXTEEN_BITS if sampled.dtype in SIXTEEN_BITS else ALIKE
    if abs(float(losses[0]) - plain) > ALIKE[0] * abs(plain) + 1e-6:
        return f"its vectorised loss {losses.tolist()} differs from the plain one {plain}"
    if there is None:
        return None
    loss, gradient = there
    if abs(float(losses[1]) - loss) > of_loss * abs(loss) + 1e-6:
        return (
            f"its vectorised loss aside of the anchor, {float(losses[1]):.6g}, differs from the plain one, {loss:.6g}"
        )
    if float((gradients[1] - gradient).norm()) > of_gradient * float(gradient.norm()) + 1e-6:
        return "its vectorised gradient aside of the anchor differs from the plain one"
    return None


def _plain(engine: BatchedEngine, position: Tensor, batch: Any) -> tuple[float, Tensor] | None:
    """Loss and gradient at one place by the module itself; None where there is none, or they are not finite."""
    with weights_at(engine.sampled, position) as leaves, torch.enable_grad():
        try:
            loss = mean_loss(engine.loss_fn, engine.model, batch, engine.data is not None)
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
        except Exception:  # of some losses there are places where they have no value
            return None
    whole = zip(leaves, found, strict=True)
    gradient = torch.cat([(torch.zeros_like(leaf) if g is None else g).flatten() for leaf, g in whole])
    finite = bool(torch.isfinite(loss)) and bool(torch.isfinite(gradient).all())
    return (float(loss.detach()), gradient.to(position.dtype)) if finite else None
