"""Steps of a kernel on a CUDA device, captured as one graph that is replayed again and again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from samplers.kernel import Info, Kernel
from samplers.potential import Batch, Potential
from samplers.state import state_tensors


class Graph:
    """As many steps, one after the other, as it was given batches, with the tensors that they read and write.

    Args:
        kernel: Whose steps.
        potential: The target.
        state: That the steps change in place. Its tensors are those that every replay reads and writes.
        batches: One for each step, or None for steps on the full data; only their forms matter.
        generator: Of the chains; a replay draws from it what the steps would have drawn.
        window: Infos that are kept before the first may be written again, at least.
        kind: The dtype of infos.

    Attributes:
        num_steps: Of a replay.
    """

    def __init__(
        self,
        kernel: Kernel,
        potential: Potential,
        state: Any,
        batches: list[Batch],
        generator: torch.Generator,
        window: int,
        kind: torch.dtype,
    ):
        self.state, self.generator, self.num_steps = state, generator, len(batches)
        self._rows = -(-window // self.num_steps) * self.num_steps
        leaves, self._structure = pytree.tree_flatten(batches)
        self._form = _form(leaves)
        self._inputs = [leaf.contiguous().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        given = pytree.tree_unflatten(self._inputs, self._structure)
        device = state.position.device
        ring = torch.zeros(self._rows, len(Info._fields), len(state.position), dtype=kind, device=device)
        self._infos = [Info(*row.unbind(0)) for row in ring.unbind(0)]
        first_places = torch.arange(self.num_steps, device=device)
        places = first_places.clone()
        self._start_over = lambda: places.copy_(first_places)
        self._next = 0
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        self._places = [(owner, name, getattr(owner, name)) for owner, name in state_tensors(state)]
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            said: list[Tensor] = []
            for batch in given:
                info = kernel.step_(state, potential, batch, generator)
                said.append(torch.stack([part.to(kind) for part in info]))  # the next step may write over its parts
            for owner, name, tensor in self._places:  # what was replaced goes back to where the next step reads it
                if (value := getattr(owner, name)) is not tensor:
                    tensor.copy_(value)
            ring.index_copy_(0, places, torch.stack(said))
            places.add_(self.num_steps)
        for owner, name, tensor in self._places:
            setattr(owner, name, tensor)
        # Beginning a capture sets the generator's offset to zero, on the capture's own stream: on a busy device that
        # came after the first replay had set it to what it is, and that replay drew other numbers.
        torch.cuda.synchronize()
        free_workspaces()

    def replay(self, state: Any, batches: list[Batch], generator: torch.Generator) -> list[Info] | None:
        """Take the steps.

        Args:
            state: Of the chains.
            batches: One for each step.
            generator: Of the chains.

        Returns:
            What the ring says of each step, or None where the graph was captured for another state or form of batches.
        """
        # small steps take the device no longer than this takes the host: what can be made beforehand is
        if not self.holds(state, generator):
            return None
        leaves, structure = pytree.tree_flatten(batches)
        if structure != self._structure or _form(leaves) != self._form:
            return None
        row = self._next
        self._next = 0  # an interrupt before the end leaves nobody knowing which row is next: the first then
        if row == 0:
            self._start_over()
        for place, leaf in zip(self._inputs, leaves, strict=True):
            if isinstance(leaf, Tensor):
                place.copy_(leaf)
        self._graph.replay()
        self._next = (row + self.num_steps) % self._rows
        return self._infos[row : row + self.num_steps]

    def holds(self, state: Any, generator: torch.Generator) -> bool:
        """Whether it was captured for this state, whose tensors are still the same, and this generator."""
        if state is not self.state or generator is not self.generator:
            return False
        return all(getattr(owner, name) is tensor for owner, name, tensor in self._places)


def free_workspaces() -> None:
    """Free what cuBLAS keeps for every stream on which it was called, 64 MB each on newer devices.

    It makes one anew where it is called again. One that was made in a capture stays part of the graph's own memory.
    """
    torch._C._cuda_clearCublasWorkspaces()


def _form(leaves: list[Any]) -> list[Any]:
    """What a graph depends on, of the leaves of a batch: the shapes and dtypes of tensors, and all else."""
    return [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
