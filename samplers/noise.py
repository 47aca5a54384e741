"""Work on the columns of a block of chains that needs noise: at once where they are few, in fixed chunks otherwise.

Each chunk has a generator of its own. Chunks and generators are part of what a seed means: they do not depend on
threads or ranks. A long vector's noise never exists as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from samplers.seeds import block_generator

CHUNK_COLUMNS = 1 << 21  # of one generator
# On the CPU columns are worked on so many at a time, so that what is read and written again and again stays in the
# caches. On a GPU a chunk is one piece.
PIECE_COLUMNS = 1 << 17

Result = TypeVar("Result")


def standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape, dtype and device of ``like``."""
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


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
    """The random streams of one block of chains: its own generator, or one for every chunk of a long vector."""

    def __init__(self) -> None:
        self.generators: list[torch.Generator] = []

    def map(
        self,
        work: Callable[[slice, torch.Generator], Result],
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
