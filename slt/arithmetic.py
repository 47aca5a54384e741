"""How much arithmetic a pass through a model takes: the multiplications of its matrix products and convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from slt.data import Data, batch_size_of, tensors_of
from slt.loss import LossFn, mean_loss


class _Multiplications(TorchDispatchMode):
    """Counts those of the operations that torch has a formula for, two operations to a multiplication and addition."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.count += formula(*args, **kwargs, out_val=found) // 2
        return found


def multiplications_per_sample(model: nn.Module, data: Data, loss_fn: LossFn, num_weights: int) -> float:
    """Multiplications in a pass of one sample through the model: at least one for each weight.

    Where a weight is used at many places, as in a convolution or for each token of a sequence, there are as many times
    more. They are counted where samples have more than one axis, or are sequences of integers; of vectors, which a
    multilayer perceptron takes, there is one for each weight, and torch's way to count takes a second to import.

    Args:
        model: The module, in the mode in which it will be sampled.
        data: Its first batch is used.
        loss_fn: The loss.
        num_weights: How many are sampled.

    Returns:
        The count; ``num_weights`` also where torch has no formula for what the model does.
    """
    batch = data.first_batch()
    if not any(tensor.ndim > 2 or (tensor.ndim > 1 and not tensor.is_floating_point()) for tensor in tensors_of(batch)):
        return float(num_weights)
    # with gradients, without which some modules of torch take one operation that has no formula
    with torch.enable_grad(), _Multiplications() as counted:
        mean_loss(loss_fn, model, batch, True)
    return max(float(num_weights), counted.count / batch_size_of(batch))
