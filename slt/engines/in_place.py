"""The in-place engine: one chain at a time, through the user's own module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slt.data import Data, map_tensors
from slt.engines.activations import MOST_BYTES, MOST_SAMPLES, bytes_per_sample
from slt.loss import LossFn, mean_loss
from slt.minibatches import AnyMinibatch, Minibatch, centred
from slt.parameters import SampledParameters


class InPlaceEngine:
    """Loss and gradient of ``(1, dim)``, the module's weights and gradients being views of flat buffers.

    For the time of a run the module holds parameters that are views of the chain's position, so that an update of
    the position *is* an update of the weights; each gradient moves to one flat buffer as soon as backward has made
    it. Beyond the module's own weights and that buffer, a run keeps two vectors of model size: the position and the
    anchor. On a GPU the buffer is there from the first gradient of a backward pass until its caller drops it, and not
    beside the activations of the forward pass.

    Any module works: autocast, gradient checkpointing, tied weights, control flow that depends on data.

    Args:
        model: The module.
        data: The data, or None.
        loss_fn: The loss.
        sampled: The sampled parameters of the module.
    """

    name = "in_place"
    max_chains: int | None = 1
    center: float = 0.0  # the loss at the anchor
    excess: Tensor | None = None  # of each sample's loss there over their mean

    def __init__(
        self,
        model: nn.Module,
        data: Data | None,
        loss_fn: LossFn,
        sampled: SampledParameters,
    ):
        self.model, self.data, self.loss_fn, self.sampled = model, data, loss_fn, sampled
        self._affordable: int | None = None
        self._gradient: Tensor | None = None
        self._leaves: list[nn.Parameter] = []
        self._places: list[Tensor] = []  # of each leaf in the buffer
        self._bound: Tensor | None = None
        self._collected: set[int] = set()

    @property
    def affordable_samples(self) -> int:
        """Samples whose activations a machine can be expected to hold; inside the context."""
        if self._affordable is None:
            assert self.data is not None
            of_one = bytes_per_sample(self.data, self.loss_fn, self.sampled)
            self._affordable = max(1, MOST_BYTES // max(1, of_one))
        return self._affordable

    @property
    def forward_samples(self) -> int:
        """Samples in one pass over the full data."""
        return min(MOST_SAMPLES, self.affordable_samples)

    def _hold(self, position: Tensor) -> None:
        """Make the module compute with this position, and collect its gradient in one buffer."""
        if position.shape[0] != 1:
            raise ValueError(f"position: {position.shape[0]} chains; the in-place engine holds one at a time.")
        if position.device.type == "cuda":  # whose allocator gives the same memory at once
            self._gradient, self._places = None, []
        if self._bound is None or self._bound.data_ptr() != position.data_ptr():
            # of sixteen bits, copies that are rounded anew at every call
            self._leaves = [nn.Parameter(view) for view in self.sampled.cast(self.sampled.views(position.detach()[0]))]
            for place, leaf in enumerate(self._leaves):
                leaf.register_post_accumulate_grad_hook(self._collector(place))
            self._bound = position
        elif self._leaves[0].dtype != position.dtype:
            with torch.no_grad():
                for leaf, view in zip(self._leaves, self.sampled.views(position[0]), strict=True):
                    leaf.copy_(view)
        self.sampled.bind(self._leaves)

    def _buffer(self) -> Tensor:
        """The gradient's, made where there is none."""
        if self._gradient is None:
            assert self._bound is not None
            self._gradient = torch.empty_like(self._bound, memory_format=torch.contiguous_format)
            self._places = self.sampled.views(self._gradient[0])
        return self._gradient

    def _collector(self, place: int) -> Callable[[Tensor], None]:
        """Moves one gradient to its place as soon as backward has made it, and frees it.

        Backward could add to a view of the buffer itself, but would need a pass to zero it, and a slower one to add.

        Args:
            place: Which parameter it is.

        Returns:
            A hook for when the gradient is there.
        """

        @torch.no_grad()
        def collect(leaf: Tensor) -> None:
            assert leaf.grad is not None
            self._buffer()
            into = self._places[place]
            into.add_(leaf.grad) if place in self._collected else into.copy_(leaf.grad)
            self._collected.add(place)
            leaf.grad = None

        return collect

    def release(self) -> None:
        """Forget the position and the gradient buffer."""
        self._gradient, self._bound, self._leaves, self._places = None, None, [], []

    def loss_and_grad(self, position: Tensor, batch: AnyMinibatch | None = None) -> tuple[Tensor, Tensor]:
        """Loss ``(1,)`` and gradient ``(1, dim)``, in a buffer of the engine; of the full data without a minibatch."""
        pieces = self._pieces(batch)
        self._hold(position)
        self._collected.clear()
        loss = position.new_zeros(1)
        for piece in pieces:
            with torch.enable_grad():
                part = mean_loss(self.loss_fn, self.model, piece.data, self.data is not None)
                weighted = part if piece.weight == 1.0 else part * piece.weight
                weighted.backward(inputs=self._leaves)
            loss += weighted.detach()
        if batch is not None and batch.weight != 1.0:
            # a weight times a large loss is noise that a constant takes away: weights are 1 on average
            loss += (1.0 - batch.weight) * self.center
        if batch is not None:
            loss = centred(loss, batch, self.excess)
        if len(self._collected) < len(self._leaves):  # weights that the loss did not use this time
            self._buffer()
            for place, into in enumerate(self._places):
                if place not in self._collected:
                    into.zero_()
        gradient = self._buffer()
        if position.device.type == "cuda":  # the caller alone holds it
            self._gradient, self._places = None, []
        return loss, gradient

    def _pieces(self, batch: AnyMinibatch | None) -> Any:
        if self.data is None:
            return [Minibatch(None)]
        if batch is None:
            return self.data.chunks(self.forward_samples)
        if self.data.batchable:  # drop the chain axis
            return [Minibatch(map_tensors(lambda tensor: tensor[0], batch.data), batch.weight)]
        return [batch]
