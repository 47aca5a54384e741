"""Weights well aside of those of a module, at which a loss shows what it hides at its minimum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from slt.parameters import SampledParameters

# Of a weight: so far that outputs differ from sample to sample where training, or zeros, made them equal.
SHARE = 0.5


def displaced(sampled: SampledParameters) -> Tensor:
    r"""Weights ``(dim,)`` half a usual size aside of the module's own, always the same.

    .. math:: w = w^* + \tfrac12 \max(\mathrm{rms}(w^*), 1/\sqrt{\text{inputs}})\, r, \qquad r \sim N(0, 1)

    of each parameter its own root mean square, and the size that an initialisation gives it.

    Args:
        sampled: The sampled parameters.

    Returns:
        The weights.
    """
    anchor = sampled.flatten()
    generator = torch.Generator(anchor.device).manual_seed(0)
    noise = torch.randn(anchor.shape, generator=generator, dtype=anchor.dtype, device=anchor.device)
    for part, own in zip(sampled.views(noise), sampled.views(anchor), strict=True):
        if part.numel():
            inputs = part[0].numel() if part.ndim > 1 else part.numel()
            part.mul_(SHARE * max(float(own.square().mean().sqrt()), 1 / math.sqrt(inputs)))
    return noise.add_(anchor)


@contextmanager
def weights_at(sampled: SampledParameters, position: Tensor) -> Iterator[list[nn.Parameter]]:
    """A context in which the module computes with other weights, given as parameters of which gradients can be asked.

    Args:
        sampled: The sampled parameters.
        position: ``(dim,)``.

    Yields:
        The parameters, in the order of the vector.
    """
    leaves = [nn.Parameter(view) for view in sampled.cast(sampled.views(position.detach()))]
    with sampled.borrowed():
        sampled.bind(leaves)
        yield leaves
