"""The batched engine: the loss of all chains in one vectorised call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from slt.data import Data
from slt.engines.activations import bytes_per_sample
from slt.engines.recording import LossAndGrad, Recording
from slt.loss import LossFn, mean_loss
from slt.minibatches import AnyMinibatch, centred
from slt.parameters import SampledParameters

# Activations of one chunk of full data, over all chains. Small enough to stay near the caches, large enough that the
# calls do not count.
ACTIVATION_LIMIT = 256 << 20
ACTIVATION_LIMIT_ON_GPU = 4 << 30  # every chunk is some dozen launches


class BatchedEngine:
    """Loss and gradient of ``(chains, dim)`` by ``torch.func.vmap`` over the chain axis.

    The module's parameters are replaced, inside the vectorised function, by views of one row of the position. The
    gradient is that of the sum over chains, which costs less than a vectorised gradient and is the same, because
    no chain's loss depends on another's position.

    Args:
        model: The module, on the device of the data.
        data: The data, or None.
        loss_fn: The loss.
        sampled: The sampled parameters of the module.
    """

    name = "batched"
    max_chains: int | None = None
    forward_samples = 4096  # of one chain, without gradient
    center: float = 0.0  # of no use here: batches that are stacked are of equal weight
    excess: Tensor | None = None  # of each sample's loss at the anchor over their mean

    def __init__(self, model: nn.Module, data: Data | None, loss_fn: LossFn, sampled: SampledParameters):
        self.model, self.data, self.loss_fn, self.sampled = model, data, loss_fn, sampled
        self._shared_losses = vmap(self._loss, in_dims=(0, None))
        self._shared = Recording(self._differentiated(self._shared_losses))
        self._own = Recording(self._differentiated(vmap(self._loss, in_dims=(0, 0))))  # every chain its own batch
        self._sample_bytes: int | None = None
        self._ones: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
        on_cpu = sampled.tensors()[0].device.type == "cpu"
        self._activation_limit = ACTIVATION_LIMIT if on_cpu else ACTIVATION_LIMIT_ON_GPU

    def _loss(self, vector: Tensor, batch: Any) -> Tensor:
        self.sampled.bind(self.sampled.cast(self.sampled.views(vector)))
        return mean_loss(self.loss_fn, self.model, batch, self.data is not None)

    @property
    def differed(self) -> tuple[float, float] | None:
        """Two losses of the same samples at the same weights, where the loss is no fixed function; None elsewhere."""
        return self._shared.differed or self._own.differed

    def forget(self) -> None:
        """Take what is constant anew: the module may have changed."""
        self._shared.forget()
        self._own.forget()

    def max_samples(self, chains: int) -> int:
        """Samples of full data that one call may take, from the bytes that one sample saves for its gradient."""
        if self._sample_bytes is None:
            assert self.data is not None
            self._sample_bytes = bytes_per_sample(self.data, self.loss_fn, self.sampled)
        return max(1, self._activation_limit // max(1, self._sample_bytes * chains))

    def loss_and_grad(self, position: Tensor, batch: AnyMinibatch | None = None) -> tuple[Tensor, Tensor]:
        """Loss ``(chains,)`` and gradient ``(chains, dim)``; of the full data where no minibatch is given."""
        if batch is not None:
            losses, gradient = self._own(position, batch.data, batch.weight)
            return centred(losses, batch, self.excess), gradient
        if self.data is None:
            return self._shared(position, None, 1.0)
        chunks = self.data.chunks(self.max_samples(position.shape[0]))
        loss, gradient = self._shared(position, *next(chunks))
        for chunk in chunks:
            more_loss, more_gradient = self._shared(position, *chunk)
            loss, gradient = loss + more_loss, gradient.add_(more_gradient)
        return loss, gradient

    @torch.no_grad()
    def loss(self, position: Tensor) -> Tensor:
        """Loss ``(chains,)`` of the full data, without its gradient, for a third of the cost."""
        if self.data is None:
            return self._shared_losses(position, None)
        total = position.new_zeros(position.shape[0])
        for chunk in self.data.chunks(self.max_samples(position.shape[0])):
            total += self._shared_losses(position, chunk.data) * chunk.weight
        return total

    def _ones_like(self, losses: Tensor) -> Tensor:
        """The gradient of their sum with respect to them, made once."""
        kind = (losses.shape, losses.dtype)
        if kind not in self._ones:
            self._ones[kind] = torch.ones_like(losses)
        return self._ones[kind]

    def _differentiated(self, losses_of: Callable[[Tensor, Any], Tensor]) -> LossAndGrad:
        """Losses and the gradient of their sum, of a function that gives the losses."""

        def call(position: Tensor, data: Any, weight: float) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaf = position.detach().requires_grad_()
                losses = losses_of(leaf, data).to(leaf.dtype)
                if weight != 1.0:
                    losses = losses * weight
                (gradient,) = torch.autograd.grad(losses, leaf, self._ones_like(losses))
            return losses.detach(), gradient

        return call
