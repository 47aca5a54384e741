"""Work on the columns of a block of chains that needs noise: at once where they are few, in fixed chunks otherwise.

Each chunk has a generator of its own. Chunks and generators are part of what a seed means: they do not depend on
threads or ranks. A long vector's noise never exists as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from samplers.seeds import block_generator

CHUNK_COLUMNS = 1 << 21  # of one generator
# On the CPU columns are worked on so many at a time, so that what is read and written again and again stays in the
# caches. On a GPU a chunk is one piece.
PIECE_COLUMNS = 1 << 17

Result = TypeVar("Result")


class Shard(NamedTuple):
    """Columns of a sharded vector that this process has, and the stream that the whole vector has there.

    Attributes:
        columns: Of this process's part of the vector.
        stream: The number of the stream.
        before: Columns of the stream that other processes have, before these.
        after: Likewise behind them.
    """

    columns: slice
    stream: int
    before: int
    after: int


class Window(NamedTuple):
    """A stream of which this process needs a part: all of it is drawn, and the rest thrown away."""

    generator: torch.Generator
    before: int
    after: int


def shards_of(potential: Any) -> Sequence[Shard] | None:
    """Of a potential whose vectors are shards, which columns of the whole they are; None otherwise."""
    return getattr(potential, "shards", None)


def standard_normal(like: Tensor, generator: torch.Generator | Window) -> Tensor:
    """Standard normal noise of the shape, dtype and device of ``like``."""
    if isinstance(generator, Window):
        chains, columns = like.shape
        shape = (chains, generator.before + columns + generator.after)
        whole = torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator.generator)
        return whole.narrow(1, generator.before, columns)
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def normal_vectors(like: Tensor, generator: torch.Generator, shards: Sequence[Shard] | None) -> Tensor:
    """Standard normal vectors of the shape of ``like``, which do not depend on how a vector is sharded."""
    if shards is None:
        return standard_normal(like, generator)
    found = torch.empty_like(like)

    def fill(columns: slice, own: torch.Generator | Window) -> None:
        found[:, columns] = standard_normal(found[:, columns], own)

    ColumnStreams(shards).map(fill, like, generator)
    return found


@cache
def _workers(count: int, process: int) -> ThreadPoolExecutor:
    """Threads that live as long as the process, in each of which torch computes on one core.

    Without that, each of them would split its operations over all cores once more, and they would wait for each
    other: 25 million columns took a third longer on two cores.

    Args:
        count: How many.
        process: Whose; the threads of a parent do not outlive a fork.

    Returns:
        A pool of them.
    """
    everyone = Barrier(count + 1)
    pool = ThreadPoolExecutor(count, thread_name_prefix="noise", initializer=torch.set_num_threads, initargs=(1,))
    tasks = [pool.submit(everyone.wait) for _ in range(count)]
    everyone.wait()
    for task in tasks:
        task.result()
    torch.set_num_threads(count)  # of this thread, and of those that are yet to come
    return pool


class ColumnStreams:
    """The random streams of one block of chains: its own generator, or one for every chunk of a long vector.

    Args:
        shards: Of a sharded vector, this process's columns and their streams; None for one that is here as a whole.
    """

    def __init__(self, shards: Sequence[Shard] | None = None) -> None:
        self.generators: list[torch.Generator] = []
        self._shards = shards

    def map(
        self,
        work: Callable[[slice, Any], Result],
        position: Tensor,
        generator: torch.Generator,
        *,
        whole: bool = False,
    ) -> list[Result]:
        """The results of ``work(columns, generator)`` over consecutive pieces that cover all columns, in order.

        On the CPU the chunks of a long vector are worked on side by side, one thread each: a generator is sequential,
        and drawing costs more than all the rest.

        Args:
            work: May change these columns of its tensors in place, and draws from the generator that it is given.
            position: ``(chains, dim)``.
            generator: Of the block of chains; those of the chunks are made from it at the first call.
            whole: Whether all columns are one piece, with noise of ``generator``: for a preconditioner that mixes them.

        Returns:
            One result per piece.
        """
        dim = position.shape[1]
        if self._shards is not None:
            return self._map_shards(work, self._shards, position, generator)
        if whole:
            return [work(slice(0, dim), generator)]
        starts = range(0, dim, CHUNK_COLUMNS)
        on_cpu = position.device.type == "cpu"
        piece = PIECE_COLUMNS if on_cpu else CHUNK_COLUMNS

        def chunk(start: int, own: torch.Generator) -> list[Result]:
            stop = min(start + CHUNK_COLUMNS, dim)
            with torch.no_grad():  # a thread starts with gradients on
                return [work(slice(at, min(at + piece, stop)), own) for at in range(start, stop, piece)]

        if len(starts) == 1:
            return chunk(0, generator)
        if not self.generators:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            self.generators = [block_generator(seed, place, position.device) for place in range(len(starts))]
        if not on_cpu or torch.get_num_threads() == 1:
            results = [chunk(start, own) for start, own in zip(starts, self.generators, strict=True)]
        else:
            pool = _workers(torch.get_num_threads(), os.getpid())
            results = list(pool.map(chunk, starts, self.generators))
        return [result for of_chunk in results for result in of_chunk]

    def _map_shards(
        self,
        work: Callable[[slice, Any], Result],
        shards: Sequence[Shard],
        position: Tensor,
        generator: torch.Generator,
    ) -> list[Result]:
        """In every process the block's generator goes on alike, however many streams are of this one."""
        if not self.generators:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
            self.generators = [block_generator(seed, shard.stream, position.device) for shard in shards]
        with torch.no_grad():
            return [
                work(shard.columns, Window(own, shard.before, shard.after))
                for shard, own in zip(shards, self.generators, strict=True)
            ]
