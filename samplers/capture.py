"""A kernel's step as one CUDA graph: captured once, replayed without Python, launches or synchronisation between."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from samplers.kernel import Info, Kernel
from samplers.noise import CHUNK_COLUMNS
from samplers.potential import Batch, Potential, capturable
from samplers.state import (
    agreement,
    copy_of,
    difference,
    random_streams,
    state_constants,
    state_tensors,
    with_tensors,
)

WARM_UPS = 2  # steps of a copy before the capture
MOST_CAPTURES = 8  # of one block of chains: batches of ever new shapes are not worth one each


class CapturedStep:
    """``step_`` of a kernel on one potential, captured at its first call as a CUDA graph, and replayed.

    A small step on a GPU is dozens of kernels of a few microseconds, and the Python that launches each takes longer
    than it runs. The graph launches all of them at once. The run's own generator is registered with it, so that a
    replay draws what ``kernel.step_`` would have drawn, and the chain is the same.

    What the step says (:class:`Info`) is written into a ring of as many rows as ``window``, on the device; a caller
    must read a row before it is written again.

    At the first call for each state and form of batch, the graph's first step is held against ``kernel.step_`` from
    the same state with the same random numbers. Where a step cannot be captured, or differs, the chain goes on with
    ``kernel.step_``, and :attr:`obstacle` says why. What is compared waits in the host's memory: a state may fill the
    device.

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
        self._graph: _Graph | None = None
        self._captures = 0

    @torch.no_grad()
    def __call__(self, state: Any, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        """Take a step, as ``kernel.step_`` does: changes ``state`` in place, and says of the position what Info has."""
        graph = self._graph
        if graph is not None and (info := graph.replay(state, batch, generator)) is not None:
            return info
        if graph is None or graph.generator is not generator:
            self._captures = 0
        self._graph = None  # its memory is free before another is captured
        if state.position.shape[1] > CHUNK_COLUMNS and random_streams(state):
            self.obstacle = f"more than {CHUNK_COLUMNS:,} coordinates, with a random stream for each so many"
        elif self._captures == MOST_CAPTURES:
            self.obstacle = f"batches of more than {MOST_CAPTURES} forms"
        if self.obstacle:
            return self.kernel.step_(state, potential, batch, generator)
        self._captures += 1
        return self._first_step(state, batch, generator)

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
                kind = self._warm_up(back, batch, generator)
            torch.cuda.current_stream().wait_stream(aside)
            _Graph(self.kernel, potential, back(), batch, copy_of(generator), self.window, kind)
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
        graph = _Graph(self.kernel, potential, state, batch, generator, self.window, kind)
        info = graph.replay(state, batch, generator)
        assert info is not None
        wrong = self._differences(state, info, before, expected)
        if not wrong:
            self._graph = graph
            return info
        self.obstacle = f"its graph differs from the step itself in {', '.join(wrong)}: is the loss random?"
        generator.set_state(started)
        back()
        return step_(state, potential, batch, generator)

    def _warm_up(self, back: Callable[[], Any], batch: Batch, generator: torch.Generator) -> torch.dtype:
        """Steps from the same state, in which libraries make what they make at their first call; the dtype of infos."""
        kind = torch.float32
        for _ in range(WARM_UPS):
            probe = back()
            constants = state_constants(probe)
            info = self.kernel.step_(probe, self.potential, batch, copy_of(generator))
            if state_constants(probe) != constants:
                raise NotImplementedError("its state holds Python numbers that change")
            for part in (probe.position, *info):
                kind = torch.promote_types(kind, part.dtype)
        return kind

    def _differences(self, state: Any, info: Info, before: list[Tensor], expected: list[Tensor]) -> list[str]:
        """The names of what is further apart than rounding explains."""
        allowed = agreement(state.position.dtype)
        places = state_tensors(state)
        found = _on_the_host([*(getattr(owner, name) for owner, name in places), *info])
        names = [*(name for _, name in places), *Info._fields]
        starts = [*before, *[None] * len(info)]
        return [
            name
            for name, one, other, start in zip(names, found, expected, starts, strict=True)
            # of an acceptance rate, a rounding error of a large energy makes anything
            if name != "acceptance_rate" and difference(one, other.to(one), start, moved=name == "position") > allowed
        ]


def _on_the_host(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().to("cpu", copy=True) for tensor in tensors]


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
        ``(state, potential, batch, generator) → info``.
    """
    if device.type != "cuda" or not capturable(potential, with_batches):
        return kernel.step_
    return CapturedStep(kernel, potential, window)


class _Graph:
    """One captured step, with the tensors that it reads and writes."""

    def __init__(
        self,
        kernel: Kernel,
        potential: Potential,
        state: Any,
        batch: Batch,
        generator: torch.Generator,
        window: int,
        kind: torch.dtype,
    ):
        self.state, self.generator, self.window = state, generator, window
        leaves, self._structure = pytree.tree_flatten(batch)
        self._form = _form(leaves)
        self._inputs = [leaf.contiguous().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        given = pytree.tree_unflatten(self._inputs, self._structure)
        device = state.position.device
        ring = torch.zeros(window, len(Info._fields), len(state.position), dtype=kind, device=device)
        self._infos = [Info(*row.unbind(0)) for row in ring.unbind(0)]
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._next = 0
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        self._places = [(owner, name, getattr(owner, name)) for owner, name in state_tensors(state)]
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            info = kernel.step_(state, potential, given, generator)
            for owner, name, tensor in self._places:  # what was replaced goes back to where the next step reads it
                if (value := getattr(owner, name)) is not tensor:
                    tensor.copy_(value)
            ring.index_copy_(0, self._place, torch.stack([part.to(kind) for part in info]).unsqueeze(0))
            self._place.add_(1)
        for owner, name, tensor in self._places:
            setattr(owner, name, tensor)
        # Beginning a capture sets the generator's offset to zero, on the capture's own stream: on a busy device that
        # came after the first replay had set it to what it is, and that replay drew other numbers.
        torch.cuda.synchronize()

    def replay(self, state: Any, batch: Batch, generator: torch.Generator) -> Info | None:
        """Take the step; what the ring says of it, or None where the graph was captured for another state or form."""
        # a small step takes the device no longer than this takes the host: what can be made beforehand is
        if state is not self.state or generator is not self.generator:
            return None
        if any(getattr(owner, name) is not tensor for owner, name, tensor in self._places):
            return None
        leaves, structure = pytree.tree_flatten(batch)
        if structure != self._structure or _form(leaves) != self._form:
            return None
        row = self._next
        self._next = 0  # an interrupt before the end leaves nobody knowing which row is next: the first then
        if row == 0:
            self._place.zero_()
        for place, leaf in zip(self._inputs, leaves, strict=True):
            if isinstance(leaf, Tensor):
                place.copy_(leaf)
        self._graph.replay()
        self._next = (row + 1) % self.window
        return self._infos[row]


def _form(leaves: list[Any]) -> list[Any]:
    """What a graph depends on, of the leaves of a batch: the shapes and dtypes of tensors, and all else."""
    return [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
