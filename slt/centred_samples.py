"""What each sample's loss at w* exceeds their mean: taken off the losses of minibatches, it leaves them less noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import vmap

from slt.data import TensorData, map_tensors
from slt.loss import LossFn, mean_loss

WITHOUT_GRADIENT = 1 / 3  # of the cost of a gradient of the full data
SHARE_OF_RUN = 1 / 4  # of a run's gradients, which that may cost


@torch.no_grad()
def excess_of_samples(model: nn.Module, data: TensorData, loss_fn: LossFn, at_a_time: int) -> Tensor | None:
    r"""ℓᵢ(w*) − (1/n) Σⱼ ℓⱼ(w*) for every sample, ``(n,)``, in nats.

    Args:
        model: The module, at w*.
        data: The samples.
        loss_fn: The loss: of each sample, or a mean, which is then taken of samples one by one, by ``torch.func.vmap``.
        at_a_time: Samples in one call.

    Returns:
        The numbers; None where the loss is a mean that cannot be vectorised or refuses single samples, or is not
        finite for one.
    """
    losses: list[Tensor] = []
    of_each = vmap(_alone(model, loss_fn))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vmap's, of operations that it takes one by one
            for chunk in data.chunks(at_a_time):
                found = loss_fn(model, chunk.data)
                losses.append((of_each(chunk.data) if found.ndim == 0 else found).double())
    except Exception:  # of a loss that takes no single sample, or none by vmap
        return None
    whole = torch.cat(losses)
    excess = whole - whole.mean()
    return excess if bool(excess.isfinite().all()) else None


def _alone(model: nn.Module, loss_fn: LossFn) -> Callable[[object], Tensor]:
    """The loss of one sample, without its leading axis."""

    def loss_of(sample: object) -> Tensor:
        return mean_loss(loss_fn, model, map_tensors(lambda tensor: tensor.unsqueeze(0), sample), True)

    return loss_of
