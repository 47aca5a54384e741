"""Parameters that ``fully_shard`` has spread over processes: what of them is here, and which noise belongs to it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from samplers.noise import Shard

# Of one random stream. A process draws all of a stream of which it has a part: with streams that are much longer than
# what it has of a parameter, it would draw the noise of the others too.
STREAM_COLUMNS = 1 << 17


def is_sharded(parameter: Tensor) -> bool:
    """Whether a parameter is a ``DTensor``."""
    # what nobody has imported, no parameter can be
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(parameter, tensors.DTensor)


def local(parameter: Tensor) -> Tensor:
    """What of a parameter is here: all of it, or this process's shard, which shares its memory."""
    return parameter.to_local() if is_sharded(parameter) else parameter  # type: ignore[attr-defined]


def group_of(parameter: Any) -> dist.ProcessGroup:
    """The processes over which a parameter is sharded.

    Args:
        parameter: A ``DTensor``.

    Returns:
        Their group.

    Raises:
        ValueError: It is sharded otherwise than by rows over one dimension of a mesh.
    """
    placements = parameter.placements
    if parameter.device_mesh.ndim != 1 or len(placements) != 1 or not placements[0].is_shard(0):
        raise ValueError(
            f"model: a parameter is placed as {placements} on a mesh of {parameter.device_mesh.ndim} dimensions; "
            "expected fully_shard(…) over a mesh of one dimension, which shards parameters by rows."
        )
    return parameter.device_mesh.get_group()


def reshard(model: nn.Module) -> None:
    """Let every module that ``fully_shard`` was applied to hold its shards, and not what a forward pass gathered."""
    kinds = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(kinds, "FSDPModule", None)
    if kind is None:
        return
    for module in model.modules():
        if isinstance(module, kind):
            module.reshard()  # pyright: ignore[reportCallIssue]


def check_reduction(model: nn.Module, count: int) -> None:
    """Refuse settings of ``fully_shard`` under which a gradient is not the mean over processes.

    Args:
        model: The module.
        count: Of the processes.

    Raises:
        ValueError: Gradients are divided by another number, or not exchanged.
    """
    for name, module in model.named_modules():
        told: Any = getattr(module, "_get_fsdp_state", None)  # nothing public tells it
        state = None if told is None else told()
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            factor = getattr(group, "gradient_divide_factor", None)
            if factor is not None and factor != count:
                raise ValueError(
                    f"model: gradients of {name or 'the root'!r} are divided by {factor}, not by the number of "
                    f"processes; call set_gradient_divide_factor({count}.0) for the estimate."
                )
            if not getattr(group, "reduce_grads", True):
                raise ValueError(
                    f"model: gradients of {name or 'the root'!r} are not exchanged; call "
                    "set_requires_gradient_sync(True) for the estimate."
                )


def shards_of_parameters(parameters: Sequence[Any]) -> tuple[Shard, ...]:
    """Which columns of the whole vector are here, stream by stream; at least one, if need be of no column.

    Every parameter has streams of its own, of 131,072 columns, which do not depend on the number of processes.

    Args:
        parameters: In the order of the vector, each a ``DTensor``.

    Returns:
        Shards.
    """
    shards: list[Shard] = []
    start = first_stream = 0
    for parameter in parameters:
        group = group_of(parameter)
        rank, count = dist.get_rank(group), dist.get_world_size(group)
        size, rows = parameter.numel(), parameter.shape[0]
        share = -(-rows // count)  # as torch.chunk has it
        begin, end = (min(place * share, rows) * (size // rows) for place in (rank, rank + 1))
        for stream, low in enumerate(range(0, size, STREAM_COLUMNS)):
            high = min(low + STREAM_COLUMNS, size)
            left, right = max(begin, low), min(end, high)
            if left < right:
                columns = slice(start + left - begin, start + right - begin)
                shards.append(Shard(columns, first_stream + stream, left - low, high - right))
        start += end - begin
        first_stream += -(-size // STREAM_COLUMNS)
    return tuple(shards) or (Shard(slice(0, 0), 0, 0, 0),)
