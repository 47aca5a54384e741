"""The sharded engine: one chain at a time, through a module that ``fully_shard`` has spread over processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slt.data import Data, batch_size_of, map_tensors
from slt.loss import LossFn, mean_loss
from slt.minibatches import AnyMinibatch, Minibatch
from slt.parameters import SampledParameters
from slt.shards import check_reduction, group_of, local, reshard


class ShardedEngine:
    """Loss ``(1,)`` and gradient ``(1, dim)``, of which position and gradient are this process's shard.

    Every process calls it with the same minibatch, takes each its own samples of it through the module, and has the
    loss of all and its shard of the gradient of all. Beyond what ``fully_shard`` itself keeps, a process holds the
    position, the anchor and a gradient of the size of its shard.

    Args:
        model: The module, every sampled parameter of which is sharded.
        data: The data, or None.
        loss_fn: The loss.
        sampled: The sampled parameters of the module.
        forward_samples: Samples of full data in one pass of a process.
    """

    name = "sharded"
    max_chains: int | None = 1
    center: float = 0.0  # the loss at the anchor
    excess: Tensor | None = None  # of no use here: no process has the losses of all samples

    def __init__(
        self,
        model: nn.Module,
        data: Data | None,
        loss_fn: LossFn,
        sampled: SampledParameters,
        forward_samples: int = 256,
    ):
        self.model, self.data, self.loss_fn, self.sampled = model, data, loss_fn, sampled
        self.group = group_of(sampled.tensors()[0])
        self.rank, self.count = dist.get_rank(self.group), dist.get_world_size(self.group)
        if any(group_of(parameter) != self.group for parameter in sampled.tensors()):
            raise ValueError("model: parameters are sharded over several groups of processes; expected one for all.")
        check_reduction(model, self.count)
        self.forward_samples = forward_samples * self.count
        self._gradient: Tensor | None = None

    @contextmanager
    def held(self, anchor: Tensor) -> Iterator[None]:
        """A context at whose end the module has its weights and gradients again.

        Args:
            anchor: The weights, ``(dim,)``.
        """
        kept = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        try:
            yield
        finally:
            self._write(anchor)
            for parameter, gradient in kept:
                parameter.grad = gradient
            self._gradient = None

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the last axis, of all shards."""
        total = x.sum(-1)
        dist.all_reduce(total, group=self.group)
        return total

    def loss_and_grad(self, position: Tensor, batch: AnyMinibatch | None = None) -> tuple[Tensor, Tensor]:
        """Loss ``(1,)`` and gradient ``(1, dim)``, the engine's own buffer; of the full data without a minibatch."""
        if position.shape[0] != 1:
            raise ValueError(f"position: {position.shape[0]} chains; the sharded engine holds one at a time.")
        if self._gradient is None:
            self._gradient = torch.zeros_like(position)
        gradient = self._gradient
        loss = self._passed(position, batch, backward=True)
        if all(parameter.grad is None for parameter in self.sampled.tensors()):
            raise ValueError(
                f"loss_fn: the loss does not depend on the sampled parameters ({', '.join(self.sampled.names[:3])}, "
                "…). It must reach them through the model that it is given, not through another reference."
            )
        for parameter, into in zip(self.sampled.tensors(), self.sampled.views(gradient[0]), strict=True):
            into.zero_() if parameter.grad is None else into.copy_(local(parameter.grad))
        for parameter in self.model.parameters():
            parameter.grad = None
        return loss, gradient

    @torch.no_grad()
    def loss(self, position: Tensor) -> Tensor:
        """Loss ``(1,)`` of the full data, without its gradient."""
        return self._passed(position, None, backward=False)

    def _passed(self, position: Tensor, batch: AnyMinibatch | None, *, backward: bool) -> Tensor:
        self._write(position[0])
        if backward:
            for parameter in self.model.parameters():
                parameter.grad = None
        loss = position.new_zeros(1)
        for piece in self._pieces(batch):
            data, weight = self._own(piece)
            with torch.set_grad_enabled(backward):
                part = mean_loss(self.loss_fn, self.model, data, self.data is not None) * weight
                if backward:
                    part.backward()
            loss += part.detach()
        dist.all_reduce(loss, group=self.group)
        loss /= self.count
        if batch is not None and batch.weight != 1.0:
            # a weight times a large loss is noise that a constant takes away: weights are 1 on average
            loss += (1.0 - batch.weight) * self.center
        if not backward:
            reshard(self.model)  # a forward pass alone leaves the weights that it gathered
        return loss

    @torch.no_grad()
    def _write(self, vector: Tensor) -> None:
        reshard(self.model)
        for parameter, view in zip(self.sampled.tensors(), self.sampled.views(vector), strict=True):
            local(parameter).copy_(view)

    def _pieces(self, batch: AnyMinibatch | None) -> Any:
        if self.data is None:
            return [Minibatch(None)]
        if batch is None:
            return self.data.chunks(self.forward_samples)
        if self.data.batchable:  # drop the chain axis
            return [Minibatch(map_tensors(lambda tensor: tensor[0], batch.data), batch.weight)]
        return [batch]

    def _own(self, piece: AnyMinibatch) -> tuple[Any, float]:
        """This process's samples of a piece, and by what their mean counts in the mean over processes."""
        if self.data is None:
            return None, 1.0
        size = batch_size_of(piece.data)
        number = len(range(self.rank, size, self.count))
        rows = slice(self.rank, None, self.count) if number else slice(0, 1)  # every process has to take part

        def own(tensor: Tensor) -> Tensor:
            return tensor[rows] if tensor.ndim and tensor.shape[0] == size else tensor

        return map_tensors(own, piece.data), piece.weight * number * self.count / size
