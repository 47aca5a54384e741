"""A kernel's step as one CUDA graph: captured once, replayed without Python, launches or synchronisation between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from samplers.graph import Graph, free_workspaces
from samplers.kernel import Info, Kernel
from samplers.noise import CHUNK_COLUMNS
from samplers.potential import Batch, Potential, capturable
from samplers.state import (
    OF_LARGE_ENERGIES,
    agreement,
    copy_of,
    difference,
    random_streams,
    state_constants,
    state_tensors,
    with_tensors,
)

WARM_UPS = 2  # steps of a copy before the capture
# Of a step's time. Below, the device is busy anyhow: a graph, which holds its memory for itself, makes nothing faster.
LEAST_LAUNCHED = 0.5
MOST_CAPTURES = 8  # of one block of chains: batches of ever new shapes are not worth one each
# A replay takes the host some 25 µs, and small steps the device no longer: several are one graph then. Larger ones are
# not worth the memory of the batches. The capture launches each step anew, a millisecond or more, where a replay saves
# some 25 µs a step: by this estimate it pays after a thousand, and waits for as many.
MOST_STEPS = 8  # of one graph
SMALL = 2**20  # coordinates of all chains
STEPS_BEFORE = 1024  # by single steps


class CapturedStep:
    """``step_`` of a kernel on one potential, captured at its first call as a CUDA graph, and replayed.

    A small step on a GPU is dozens of kernels of a few microseconds, and the Python that launches each takes longer
    than it runs. The graph launches all of them at once. The run's own generator is registered with it, so that a
    replay draws what ``kernel.step_`` would have drawn, and the chain is the same.

    What the step says (:class:`Info`) is written into a ring of as many rows as ``window``, on the device; a caller
    must read a row before it is written again.

    At the first call for each state and form of batch, the graph's first step is held against ``kernel.step_`` from
    the same state with the same random numbers. Where a step cannot be captured, or differs, the chain goes on with
    ``kernel.step_``, and :attr:`obstacle` says why; and so where its launch is the lesser part of a step. What is
    compared waits in the host's memory: a state may fill the device.

    Where the steps are small, :meth:`take` captures several as one graph, and holds it against single steps.

    Args:
        kernel: Whose step; all its numbers, those of the potential and its data become part of the graph.
        potential: The target.
        window: Rows of the ring.

    Attributes:
        obstacle: Why steps are taken without a graph; empty where they are replayed.

    Source:
        PyTorch's CUDA graphs with ``register_generator_state``.
    """

    def __init__(self, kernel: Kernel, potential: Potential, window: int):
        self.kernel, self.potential, self.window = kernel, potential, window
        self.obstacle = ""
        self._graph: Graph | None = None
        self._captures = 0
        self._kind = torch.float32  # of infos
        self._several: Graph | None = None
        self._tried = False  # to capture several, on the present graph
        self._singles = 0  # steps of the present graph
        self._epoch = 1  # batches that an iterator had at most without drawing

    @torch.no_grad()
    def __call__(self, state: Any, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        """Take a step, as ``kernel.step_`` does: changes ``state`` in place, and says of the position what Info has."""
        graph = self._graph
        if graph is not None and (infos := graph.replay(state, [batch], generator)) is not None:
            self._singles += 1
            return infos[0]
        if graph is None or graph.generator is not generator:
            self._captures = 0
        self._graph = self._several = None  # their memory is free before another is captured
        self._singles, self._epoch, self._tried = 0, 1, False
        if state.position.shape[1] > CHUNK_COLUMNS and random_streams(state):
            self.obstacle = f"more than {CHUNK_COLUMNS:,} coordinates, with a random stream for each so many"
        elif self._captures == MOST_CAPTURES:
            self.obstacle = f"batches of more than {MOST_CAPTURES} forms"
        if self.obstacle:
            return self.kernel.step_(state, potential, batch, generator)
        self._captures += 1
        return self._first_step(state, batch, generator)

    @torch.no_grad()
    def take(
        self,
        state: Any,
        batches: Iterator[Batch] | None,
        generator: torch.Generator,
        count: int,
        infos: list[Info],
    ) -> None:
        """Take so many steps, several in one replay where that is faster, and append what they say.

        The chain is the same: a graph of several steps does not go beyond the batches that an iterator has without
        drawing from the generator, which it must say in an attribute ``ahead``.

        Args:
            state: Of the chains, changed in place.
            batches: Of the steps, or None.
            generator: Of the chains.
            count: How many steps.
            infos: Where what they say is appended; ``window`` at most may wait there to be read.
        """
        last = len(infos) + count
        while len(infos) < last:
            batch = None if batches is None else next(batches)
            available = MOST_STEPS if batches is None else 1 + getattr(batches, "ahead", 0)
            self._epoch = max(self._epoch, available)
            size = self._size(state)
            if 1 < size <= min(available, last - len(infos)):
                taken = [batch, *(None if batches is None else next(batches) for _ in range(size - 1))]
                infos += self._several_steps(state, taken, generator)
            else:
                infos.append(self(state, self.potential, batch, generator))

    def _size(self, state: Any) -> int:
        """How many steps are one graph: so that an epoch is the fewest replays; 1 while that is not worth it."""
        if self._several is not None:
            return self._several.num_steps
        if self._graph is None or self._singles < STEPS_BEFORE or self._tried or state.position.numel() > SMALL:
            return 1
        return min(range(MOST_STEPS, 1, -1), key=lambda size: self._epoch // size + self._epoch % size)

    def _several_steps(self, state: Any, batches: list[Batch], generator: torch.Generator) -> list[Info]:
        """A step for each batch; by the graph of several where there is one, or where it can be captured now."""
        if self._several is None:
            return self._first_steps(state, batches, generator)
        infos = self._several.replay(state, batches, generator)
        return self._one_by_one(state, batches, generator) if infos is None else infos

    def _one_by_one(self, state: Any, batches: list[Batch], generator: torch.Generator) -> list[Info]:
        return [self(state, self.potential, batch, generator) for batch in batches]

    def _first_steps(self, state: Any, batches: list[Batch], generator: torch.Generator) -> list[Info]:
        """Capture several steps and take them; by their graph where it does what single steps do."""
        single, self._tried = self._graph, True
        tensors = [getattr(owner, name) for owner, name in state_tensors(state)]
        before, started = _on_the_host(tensors), generator.get_state()
        infos = self._one_by_one(state, batches, generator)
        if self._graph is not single:  # batches of other forms
            return infos
        after, ended = [tensor.clone() for tensor in tensors], generator.get_state()
        expected = _on_the_host([*tensors, *(part for info in infos for part in info)])

        def to(values: Iterable[Tensor], random_state: Tensor) -> None:
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
            generator.set_state(random_state)

        to(before, started)
        torchs_own = torch.cuda.default_generators[state.position.device.index or 0]
        kept = [(each, each.clone_state()) for each in (generator, torchs_own)]
        try:
            several = Graph(self.kernel, self.potential, state, batches, generator, self.window, self._kind)
        except Exception:
            torch.cuda.synchronize()
            for each, as_it_was in kept:
                each.graphsafe_set_state(as_it_was)
            self._graph = None  # of another state of the generator
            to(after, ended)
            return infos
        said = several.replay(state, batches, generator)
        assert said is not None
        if self._differences(state, said, before, expected):
            to(after, ended)
            return infos
        self._several = several
        return said

    def _first_step(self, state: Any, batch: Batch, generator: torch.Generator) -> Info:
        """Capture, and take one step; by the graph where it does what the step itself does."""
        step_, potential = self.kernel.step_, self.potential
        batch = pytree.tree_map_only(Tensor, lambda tensor: tensor.contiguous().clone(), batch)  # as the graph holds it
        tensors = [getattr(owner, name) for owner, name in state_tensors(state)]
        before = _on_the_host(tensors)

        def back() -> Any:
            """The state as it was, to be stepped on the same memory; its own attributes stay as they are."""
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            return with_tensors(state, tensors)

        # A capture that breaks off leaves its generators in the middle of it, and torch's own is always one of them.
        torchs_own = torch.cuda.default_generators[state.position.device.index or 0]
        kept = torchs_own.clone_state()
        try:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                kind, launched = self._warm_up(back, batch, generator)
            torch.cuda.current_stream().wait_stream(aside)
            free_workspaces()
            if launched < LEAST_LAUNCHED:
                self.obstacle = f"the device takes a step {1 / launched:.0f} times as long as its launch"
                back()
                return step_(state, potential, batch, generator)
            Graph(self.kernel, potential, back(), [batch], copy_of(generator), self.window, kind)
        except Exception as error:
            torch.cuda.synchronize()
            torchs_own.graphsafe_set_state(kept)
            self.obstacle = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            back()
            return step_(state, potential, batch, generator)
        says = step_(stepped := back(), potential, batch, copy_of(generator))
        expected = _on_the_host([*(getattr(owner, name) for owner, name in state_tensors(stepped)), *says])
        del stepped, says
        back()
        started = generator.get_state()
        graph = Graph(self.kernel, potential, state, [batch], generator, self.window, kind)
        infos = graph.replay(state, [batch], generator)
        assert infos is not None
        wrong = self._differences(state, infos, before, expected)
        if not wrong:
            self._graph, self._kind = graph, kind
            return infos[0]
        self.obstacle = f"its graph differs from the step itself in {', '.join(wrong)}: is the loss random?"
        generator.set_state(started)
        back()
        return step_(state, potential, batch, generator)

    def _warm_up(self, back: Callable[[], Any], batch: Batch, generator: torch.Generator) -> tuple[torch.dtype, float]:
        """Steps from the same state, in which libraries make what they make at their first call.

        Returns:
            The dtype of infos, and the share of the last step's time in which it was launched.
        """
        kind, start = torch.float32, time.perf_counter()
        launched = start
        for _ in range(WARM_UPS):
            probe = back()
            constants = state_constants(probe)
            torch.cuda.synchronize()
            start = time.perf_counter()
            info = self.kernel.step_(probe, self.potential, batch, copy_of(generator))
            launched = time.perf_counter()
            if state_constants(probe) != constants:
                raise NotImplementedError("its state holds Python numbers that change")
            for part in (probe.position, *info):
                kind = torch.promote_types(kind, part.dtype)
        torch.cuda.synchronize()
        return kind, (launched - start) / (time.perf_counter() - start)

    def _differences(self, state: Any, infos: list[Info], before: list[Tensor], expected: list[Tensor]) -> list[str]:
        """The names of what is further apart than rounding explains, of the state and of what steps said."""
        allowed = agreement(state.position.dtype)
        places, said = state_tensors(state), [part for info in infos for part in info]
        found = _on_the_host([*(getattr(owner, name) for owner, name in places), *said])
        names = [*(name for _, name in places), *Info._fields * len(infos)]
        starts = [*before, *[None] * len(said)]
        return [
            name
            for name, one, other, start in zip(names, found, expected, starts, strict=True)
            if name not in OF_LARGE_ENERGIES
            and difference(one, other.to(one), start, moved=name == "position") > allowed
        ]


def _on_the_host(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().to("cpu", copy=True) for tensor in tensors]


def take(
    step_: Callable[..., Info],
    state: Any,
    potential: Potential,
    batches: Iterator[Batch] | None,
    generator: torch.Generator,
    count: int,
    infos: list[Info],
) -> None:
    """Take so many steps, and append what each says as soon as it is taken.

    Args:
        step_: From :func:`stepping`.
        state: Of the chains, changed in place.
        potential: The target.
        batches: Of the steps, or None.
        generator: Of the chains.
        count: How many steps.
        infos: Where what they say is appended.
    """
    if isinstance(step_, CapturedStep):
        step_.take(state, batches, generator, count, infos)
        return
    last = len(infos) + count
    while len(infos) < last:
        infos.append(step_(state, potential, None if batches is None else next(batches), generator))


def stepping(
    kernel: Kernel, potential: Potential, window: int, *, with_batches: bool, device: torch.device
) -> Callable[..., Info]:
    """``kernel.step_``, or on a CUDA device where the potential allows it a :class:`CapturedStep`.

    Args:
        kernel: Whose step.
        potential: The target.
        window: How many infos are kept before the first is read.
        with_batches: Whether steps take minibatches.
        device: Of the positions.

    Returns:
        ``(state, potential, batch, generator) → info``, for :func:`take`.
    """
    if device.type != "cuda" or not capturable(potential, with_batches):
        return kernel.step_
    return CapturedStep(kernel, potential, window)
