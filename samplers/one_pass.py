"""SGLD's update of a long vector on a GPU in one pass over memory: drift, noise and what is said of them together."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from samplers.noise import CHUNK_COLUMNS, shards_of
from samplers.potential import GaussianLocalizer, Potential
from samplers.preconditioner import Diagonal, Identity, Preconditioner

COLUMNS = 1024  # of one program; a quarter of them share their counters, so that it is part of what a seed means
WARPS = 4


def in_one_pass(position: Tensor, potential: Potential, metric: Preconditioner, step_size: float | Tensor) -> bool:
    """Whether :func:`langevin_update_` serves: float32 vectors of more than one chunk, on a GPU, where Triton is.

    Shorter vectors are in the caches, and their kernels are captured or compiled as they are.

    Args:
        position: ``(chains, dim)``.
        potential: The target.
        metric: P of the kernel.
        step_size: ε of the kernel.

    Returns:
        Whether it does.
    """
    return (
        position.device.type == "cuda"
        and position.dtype == torch.float32
        and position.shape[1] > CHUNK_COLUMNS
        and shards_of(potential) is None
        and isinstance(metric, Identity | Diagonal)
        and type(potential.localizer) is GaussianLocalizer
        and isinstance(step_size, float)
        and isinstance(potential.n_beta, float)
        and importlib.util.find_spec("triton") is not None
    )


def langevin_update_(
    position: Tensor,
    gradient: Tensor,
    potential: Potential,
    metric: Preconditioner,
    step_size: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    r"""Energy of the localiser and ⟨∇L, ∇U⟩_P, ``(chains,)`` each, before a step of SGLD that it takes in place.

    .. math:: w \leftarrow w - \tfrac{\epsilon}{2} P \, (n\beta\,g + \gamma m (w - w^*)) + \sqrt{\epsilon P}\,\xi

    The gradient is read once, the anchor once, and the position read and written once: 16 bytes a weight, where the
    operations one by one move 60. The noise exists nowhere in memory: it is Philox-4x32-10 of the number of the column
    under a key that the generator draws for each chain and step, on the device, so that a CUDA graph draws a new one
    at each replay.

    Args:
        position: ``(chains, dim)``, contiguous, changed.
        gradient: Of the loss alone, likewise; read.
        potential: Whose nβ and localiser are meant.
        metric: P, the identity or a diagonal.
        step_size: ε.
        generator: Of the block of chains.

    Returns:
        The energy and the inner product, in nats.

    Source:
        Salmon et al. 2011 for Philox; Box and Muller 1958 for normal numbers, at most 5.7 in size.
    """
    from samplers.one_pass_kernel import update  # imports Triton, which comes with torch for CUDA

    chains, dim = position.shape
    localizer: Any = potential.localizer
    root = metric.root if isinstance(metric, Diagonal) else None
    programs = -(-dim // COLUMNS)
    keys = torch.randint(2**62, (chains,), generator=generator, device=position.device)
    sums = torch.empty(2, chains, programs, device=position.device)
    launch: Any = update
    launch[(programs, chains)](
        position,
        gradient,
        localizer.anchor,
        position if localizer.metric is None else localizer.metric,
        position if root is None else root,
        keys,
        sums,
        dim,
        chains * programs,
        float(potential.n_beta),
        localizer.strength,
        step_size,
        step_size**0.5,
        weighted=localizer.metric is not None,
        scaled=root is not None,
        root_per_chain=root is not None and root.ndim == 2 and len(root) > 1,
        quarter=COLUMNS // 4,
        num_warps=WARPS,
    )
    energy, inner = sums.sum(-1).unbind(0)
    return energy * (0.5 * localizer.strength), inner
