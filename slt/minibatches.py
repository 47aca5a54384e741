"""Minibatches, and an endless iterator of them whose place can be saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import length_hint
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Minibatch(NamedTuple):
    """A batch with the factor that makes its mean loss an unbiased estimate of the mean over the data.

    Attributes:
        data: What the loss function receives; with a leading chain axis for the batched engine.
        weight: 1 where batches are of equal size.
    """

    data: Any
    weight: float = 1.0


class GatheredMinibatch:
    """A minibatch of rows of data in memory, that are gathered when it is read.

    It holds the numbers of the rows alone, so that a captured or compiled step gathers them itself.

    Args:
        gather: From the numbers ``(chains, batch)`` to what the loss function receives.
        rows: These numbers.

    Attributes:
        weight: 1: batches are of equal size.
    """

    __slots__ = ("gather", "rows")
    weight = 1.0

    def __init__(self, gather: Callable[[Tensor], Any], rows: Tensor):
        self.gather, self.rows = gather, rows

    @property
    def data(self) -> Any:
        """What the loss function receives, with a leading chain axis."""
        return self.gather(self.rows)


# The rows are its one tensor for those who take a batch apart and put it together with others.
pytree.register_pytree_node(
    GatheredMinibatch,
    lambda batch: ([batch.rows], batch.gather),
    lambda rows, gather: GatheredMinibatch(gather, *rows),
)

AnyMinibatch = Minibatch | GatheredMinibatch
Draw = Callable[[torch.Generator, int], Iterator[AnyMinibatch]]


def centred(losses: Tensor, batch: AnyMinibatch, excess: Tensor | None) -> Tensor:
    r"""Losses of a minibatch for less noise: less what its samples' losses at w* exceed their mean over the data.

    .. math:: L_B(w) - \frac1B \sum_{i \in B} \bigl(\ell_i(w^*) - L_n(w^*)\bigr)

    Args:
        losses: L_B of each chain, ``(chains,)``.
        batch: B, of each chain.
        excess: ℓᵢ(w*) − L_n(w*) of every sample, ``(n,)``; of any other numbers of mean zero the mean over independent
            batches is as right. None where there are none.

    Returns:
        The losses, ``(chains,)``; as they were for batches whose samples have no numbers.
    """
    if excess is None or not isinstance(batch, GatheredMinibatch):
        return losses
    return losses - excess.index_select(0, batch.rows.reshape(-1)).view(batch.rows.shape).mean(1)


class EndlessMinibatches(Iterator[AnyMinibatch]):
    """Minibatches without end, several at a draw, of which the place can be saved and found again.

    Args:
        draw: Some batches; all that it draws it draws before the first of them.
        generator: From which it draws.
        num_chains: For how many chains.
    """

    def __init__(self, draw: Draw, generator: torch.Generator, num_chains: int):
        self._draw, self._generator, self._num_chains = draw, generator, num_chains
        self._batches: Iterator[AnyMinibatch] = iter(())
        self._started: Tensor | None = None  # the generator's state from which the present ones were drawn
        self._taken = 0

    def __next__(self) -> AnyMinibatch:
        """The next minibatch; there is always one."""
        batch = next(self._batches, None)
        if batch is None:
            self._started, self._taken = self._generator.get_state(), 0
            self._batches = self._draw(self._generator, self._num_chains)
            batch = next(self._batches)
        self._taken += 1
        return batch

    @property
    def ahead(self) -> int:
        """How many batches of this draw are left, so that the next draws nothing; 0 where that is not known."""
        return length_hint(self._batches)

    def state_dict(self) -> dict[str, Any]:
        """The place: the random state at the start of this draw, and how many of its batches were taken."""
        return {"started": self._started, "taken": self._taken}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Go on from a place, of batches made from the same data.

        Args:
            stored: From :meth:`state_dict`.
        """
        self._started, self._taken = stored["started"], stored["taken"]
        if self._started is None:
            return
        own = torch.Generator(self._generator.device)
        own.set_state(self._started)
        self._batches = self._draw(own, self._num_chains)
        for _ in range(self._taken):
            next(self._batches)
