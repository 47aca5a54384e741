"""What a sample keeps for its gradient, and how many samples a pass may have that nobody asked for by size."""

from __future__ import annotations

import torch
from torch import Tensor

from slt.data import Data, batch_size_of, tensors_of
from slt.loss import LossFn, mean_loss
from slt.parameters import SampledParameters

# Of one pass over the full data, or for a look, in sequence: a GPU or a machine that trains the model has as much.
MOST_BYTES = 4 << 30
MOST_SAMPLES = 256


def bytes_per_sample(data: Data, loss_fn: LossFn, sampled: SampledParameters) -> int:
    """What the forward pass keeps for the gradient of one sample, in bytes, from the first few; inside the context.

    Args:
        data: The data.
        loss_fn: The loss.
        sampled: The sampled parameters of the module, which are left bound to it.

    Returns:
        The bytes, without the weights and the samples themselves.
    """
    batch = data.first_batch()
    sampled.bind(sampled.tensors())  # the last call may have left those of a vectorised one
    there_anyway = {tensor.untyped_storage().data_ptr() for tensor in [*sampled.model.parameters(), *tensors_of(batch)]}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in there_anyway:
            saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mean_loss(loss_fn, sampled.model, batch, True)
    return sum(saved.values()) // max(1, batch_size_of(batch))
