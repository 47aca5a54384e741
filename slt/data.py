"""Data in any usual form → batches, held in memory where they fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from slt.minibatches import AnyMinibatch, EndlessMinibatches, GatheredMinibatch, Minibatch

MOST_BATCHES = 1_000_000  # of data that do not say how many they are, before they are taken to have no end
MEMORY_LIMIT = 2 << 30  # bytes; data up to this size is held in memory, so that no step pays for a DataLoader
ROWS_AT_ONCE = 1 << 20  # numbers of samples in one draw of minibatches, or those of one batch where it has more
READING_BATCH = 256  # samples collated at a time where a Dataset is read without a loader


class TensorData:
    """Samples held in memory, as tensors with a common leading axis.

    Attributes:
        size: The number of samples.
        batchable: Whether minibatches of several chains can be stacked along a leading axis.

    Args:
        tree: A tensor, or a tuple, list or dict of tensors.
        device: Where they are held.

    Raises:
        ValueError: They are empty, or their leading axes differ.
    """

    batchable = True

    def __init__(self, tree: Any, device: torch.device):
        self.tree = map_tensors(lambda tensor: _usable(tensor, device), tree)
        sizes = {tensor.shape[0] if tensor.ndim else None for tensor in tensors_of(self.tree)}
        if len(sizes) != 1 or None in sizes:
            shapes = [tuple(tensor.shape) for tensor in tensors_of(self.tree)]
            raise ValueError(f"data: tensors of shapes {shapes}; expected one common number of samples in front.")
        self.size: int = sizes.pop() or 0
        if self.size == 0:
            raise ValueError("data: empty; expected at least one sample.")

    def first_batch(self) -> Any:
        """The first seven samples: a number that is seldom that of features or outputs."""
        return map_tensors(lambda tensor: tensor[:7], self.tree)

    def chunks(self, max_samples: int) -> Iterator[Minibatch]:
        """All samples in order, at most ``max_samples`` at a time."""
        if max_samples >= self.size:
            yield Minibatch(self.tree)
            return
        for start in range(0, self.size, max_samples):
            stop = min(start + max_samples, self.size)
            yield Minibatch(
                map_tensors(lambda tensor, a=start, b=stop: tensor[a:b], self.tree), (stop - start) / self.size
            )

    def gather(self, rows: Tensor) -> Any:
        """The samples of so many rows ``(chains, batch)``: tensors ``(chains, batch, …)``."""
        flat = rows.reshape(-1)
        return map_tensors(lambda tensor: tensor.index_select(0, flat).view(*rows.shape, *tensor.shape[1:]), self.tree)

    def minibatches(self, batch_size: int | None) -> Callable[[torch.Generator, int], Iterator[AnyMinibatch]]:
        """Minibatches ``(chains, batch, …)`` of independent samples: with replacement, for each chain and step.

        Not by epochs: the batches that are left of an epoch are those to which a chain has not been pulled, so that
        their losses are above those of the data, and that they cancel over it is no part of what a step's bias is
        predicted from. On least squares with 39 batches an epoch λ̂ was 1.4 % too high by that.

        Args:
            batch_size: Samples per chain and step; all of them by default, each once.

        Returns:
            ``(generator, num_chains) → iterator``.
        """
        count = min(batch_size or self.size, self.size)
        if count == self.size:
            return self.epochs(count)

        def draw(generator: torch.Generator, num_chains: int) -> Iterator[GatheredMinibatch]:
            at_once = max(1, min(self.size, ROWS_AT_ONCE // num_chains) // count)
            form = (at_once, num_chains, count)
            rows = torch.randint(self.size, form, generator=generator, device=generator.device)
            return iter([GatheredMinibatch(self.gather, each) for each in rows])

        return partial(EndlessMinibatches, draw)

    def epochs(self, batch_size: int | None) -> Callable[[torch.Generator, int], Iterator[AnyMinibatch]]:
        """Minibatches ``(chains, batch, …)``, independent per chain, without replacement within an epoch.

        An epoch is ``size // batch_size`` batches; the samples left over are others in each epoch.

        Args:
            batch_size: Samples per chain and step; all of them by default.

        Returns:
            ``(generator, num_chains) → iterator``.
        """
        count = min(batch_size or self.size, self.size)
        per_epoch = self.size // count

        def epoch(generator: torch.Generator, num_chains: int) -> Iterator[GatheredMinibatch]:
            device = generator.device
            if device.type == "cpu":
                order = torch.stack([torch.randperm(self.size, generator=generator) for _ in range(num_chains)])
            else:  # a launch or two for all chains; of 2³² numbers, two that are equal are too rare to matter
                of_32_bits = {"dtype": torch.int32, "device": device, "generator": generator}
                keys = torch.randint(-(2**31), 2**31 - 1, (num_chains, self.size), **of_32_bits)
                order = keys.argsort(1)
            order = order[:, : per_epoch * count].reshape(num_chains, per_epoch, count)
            return iter([GatheredMinibatch(self.gather, rows) for rows in order.unbind(1)])

        return partial(EndlessMinibatches, epoch)


class BatchData:
    """Batches as the user made them: of unequal shapes or sizes, or too large for memory.

    A batch counts by its samples: each is as probable as any other, with its loss weighted by its size.

    Attributes:
        size: The number of samples.
        num_batches: The number of batches.
        batchable: Whether minibatches of several chains can be stacked along a leading axis.

    Args:
        source: Called for every pass; returns an iterator of batches.
        sizes: Samples in each batch.
        device: To which batches are moved when they are used.
        held: Whether ``source()`` is a list in memory. Otherwise it takes a seed, by which it draws samples where it
            can, and whether these are independent; else each comes once, in a random order.
    """

    batchable = False

    def __init__(self, source: Callable[..., Iterable[Any]], sizes: list[int], device: torch.device, held: bool):
        self.source, self.sizes, self.device, self.held = source, sizes, device, held
        self.size = sum(sizes)
        self.num_batches = len(sizes)
        if self.size == 0:
            raise ValueError("data: empty; expected at least one batch with at least one sample.")

    def _moved(self, batch: Any) -> Any:
        return map_tensors(lambda tensor: _usable(tensor, self.device), batch)

    def first_batch(self) -> Any:
        """The first batch."""
        return self._moved(next(iter(self.source())))

    def chunks(self, max_samples: int) -> Iterator[Minibatch]:
        """All batches in order, whatever their size."""
        for batch in self.source():
            yield Minibatch(self._moved(batch), batch_size_of(batch) / self.size)

    def minibatches(self, batch_size: int | None) -> Callable[[torch.Generator, int], Iterator[AnyMinibatch]]:
        """The user's own batches for one chain, drawn independently; of a stream its samples are, where they can be.

        A stream that has an order of its own, as of a batch sampler of the user's, comes in that order.

        Args:
            batch_size: Of no use here: batches are as they came.

        Returns:
            ``(generator, num_chains) → iterator``.
        """
        return partial(EndlessMinibatches, partial(self._drawn, True))

    def epochs(self, batch_size: int | None) -> Callable[[torch.Generator, int], Iterator[AnyMinibatch]]:
        """The user's own batches for one chain, each once an epoch, in an order of its own where they have none.

        Args:
            batch_size: Of no use here: batches are as they came.

        Returns:
            ``(generator, num_chains) → iterator``.
        """
        return partial(EndlessMinibatches, partial(self._drawn, False))

    def _drawn(self, independent: bool, generator: torch.Generator, num_chains: int) -> Iterator[Minibatch]:
        scale, device = self.num_batches / self.size, generator.device
        if not self.held:
            order = self.source(int(torch.randint(2**62, (), generator=generator, device=device)), independent)
        else:
            held = list(self.source())
            if independent:
                places = torch.randint(len(held), (len(held),), generator=generator, device=device)
            else:
                places = torch.randperm(len(held), generator=generator, device=device)
            order = (held[place] for place in places.tolist())
        for batch in order:
            yield Minibatch(self._moved(batch), batch_size_of(batch) * scale)


Data = TensorData | BatchData


def as_data(data: Any, device: torch.device) -> Data | None:
    """The data in the form that the engines use, or None for None.

    Args:
        data: A tensor; a tuple or dict of tensors with a common leading axis; a ``Dataset``; a ``DataLoader``; a list
            or another sized iterable of batches; or None where the loss needs no data.
        device: Where the loss is computed.

    Returns:
        ``TensorData`` where all samples have equal shapes and fit into ``MEMORY_LIMIT``, ``BatchData`` otherwise.
        A ``Dataset`` with random transforms is held as drawn once, and a weighted sampler as it drew once. Otherwise
        a loader's shuffling is not used, nor its ``drop_last``: samples are drawn here, for each chain its own.

    Raises:
        TypeError: The data is of no known form, or a list of bare tensors, which could mean two things.
        ValueError: It is empty, or has no length.
    """
    if data is None or isinstance(data, TensorData | BatchData):
        return data
    if isinstance(data, Tensor) or (isinstance(data, tuple | Mapping) and all(map(_is_tensor_tree, _values(data)))):
        tree = dict(data) if isinstance(data, Mapping) else data
        if not tensors_of(tree):
            raise ValueError("data: empty; expected at least one tensor with at least one sample.")
        return TensorData(tree, device)
    if isinstance(data, list) and data and all(isinstance(item, Tensor) for item in data):
        raise TypeError(
            f"data: a list of {len(data)} bare tensors, which could be the parts of one data set or batches. Pass a "
            "tuple (x, y) for the first, a list of tuples for the second."
        )
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=READING_BATCH)
    if isinstance(data, DataLoader):
        return _held(_replayed(data), device)
    if isinstance(data, IterableDataset) or not hasattr(data, "__iter__"):
        raise TypeError(
            f"data: {type(data).__name__}; expected tensors, a Dataset, a DataLoader, a sized iterable of batches, or "
            "None for a loss without data."
        )
    if not hasattr(data, "__len__"):
        raise ValueError(
            f"data: {type(data).__name__} has no length, so n is unknown and it cannot be read twice. Pass a list of "
            "batches, or an object with __len__ and __iter__."
        )
    return _held(lambda seed=None, independent=False: iter(data), device, len(data))


def _held(source: Callable[..., Iterable[Any]], device: torch.device, length: int | None = None) -> Data:
    """Read everything once; keep it if it fits."""
    kept: list[Any] = []
    sizes: list[int] = []
    held_bytes = 0
    for place, batch in enumerate(source()):
        if place >= (MOST_BATCHES if length is None else length):
            told = f"more than {place} batches" + ("" if length is None else ", its length")
            raise ValueError(
                f"data: gave {told}; expected one pass over n samples, which ends. Does it repeat its data for ever? "
                "Pass a Dataset, a list of batches, or itertools.islice(…) of it as a list."
            )
        batch = dict(batch) if isinstance(batch, Mapping) else batch
        sizes.append(batch_size_of(batch))
        held_bytes += sum(tensor.nbytes for tensor in tensors_of(batch))
        if held_bytes <= MEMORY_LIMIT:
            kept.append(batch)
        else:
            kept.clear()
    if not sizes:
        raise ValueError("data: empty; expected at least one batch.")
    if held_bytes > MEMORY_LIMIT:
        return BatchData(source, sizes, device, held=False)
    signatures = {_signature(batch) for batch in kept}
    if len(signatures) == 1 and None not in signatures:
        return TensorData(_concatenate(kept), device)
    return BatchData(lambda: kept, sizes, device, held=True)


def _replayed(loader: DataLoader) -> Callable[..., Iterator[Any]]:
    """Passes over a loader's samples that leave the loader, its workers and its generators as they are.

    Args:
        loader: The loader.

    Returns:
        A function of a seed, or of nothing for the loader's plain order, and of whether samples are independent. By
        its seed a pass has samples or an order of its own, unless the loader's sampler is more than an order.
    """
    common = {
        "collate_fn": loader.collate_fn,
        "num_workers": loader.num_workers,
        "worker_init_fn": loader.worker_init_fn,
    }
    if isinstance(loader.dataset, IterableDataset):
        arguments = {"batch_size": loader.batch_size, **common}
    elif loader.batch_sampler is None:
        arguments = {"batch_size": None, "sampler": _copied(_ordered(loader.sampler), loader.dataset), **common}
    elif type(loader.batch_sampler) is BatchSampler:  # whose sampler `loader.sampler` is not, where the user made it
        order = _copied(_ordered(loader.batch_sampler.sampler), loader.dataset)
        sampler = BatchSampler(order, loader.batch_sampler.batch_size, drop_last=False)
        arguments = {"batch_sampler": sampler, **common}
    else:
        arguments = {"batch_sampler": _copied(loader.batch_sampler, loader.dataset), **common}

    def replay(seed: int | None = None, independent: bool = False) -> Iterator[Any]:
        batches = arguments.get("batch_sampler")
        own = {name: _copied(arguments[name], loader.dataset) for name in _SAMPLERS & arguments.keys()}
        if seed is not None and type(batches) is BatchSampler and type(batches.sampler) is SequentialSampler:
            generator = torch.Generator().manual_seed(seed)
            order = RandomSampler(batches.sampler.data_source, replacement=independent, generator=generator)
            own["batch_sampler"] = BatchSampler(order, batches.batch_size, drop_last=False)
        with _preserved_generators(loader):
            generator = torch.Generator().manual_seed(seed or 0)
            yield from DataLoader(loader.dataset, generator=generator, **arguments | own)

    return replay


_SAMPLERS = frozenset({"sampler", "batch_sampler"})


def _ordered(sampler: Any) -> Any:
    """A plain shuffle visits every sample once, so that its order can be left out, and its generator alone."""
    plain = type(sampler) is RandomSampler and not sampler.replacement and sampler._num_samples is None
    return SequentialSampler(sampler.data_source) if plain else sampler


def _copied(sampler: Any, dataset: Any) -> Any:
    """A copy of a sampler and of what it draws from; the sampler itself where it cannot be copied."""
    # The data set is not copied with it, nor the large things that the data set holds.
    parts = [part for part in getattr(dataset, "__dict__", {}).values() if isinstance(part, Dataset | Tensor | list)]
    try:
        return copy.deepcopy(sampler, {id(part): part for part in (dataset, *parts)})
    except Exception:
        return sampler


@contextmanager
def _preserved_generators(loader: DataLoader) -> Iterator[None]:
    """The generators of samplers that could not be copied, at the end as they were."""
    inner = getattr(loader.batch_sampler, "sampler", None)
    holders: list[Any] = [loader, loader.sampler, loader.batch_sampler, inner]
    generators = [
        found for holder in holders if isinstance(found := getattr(holder, "generator", None), torch.Generator)
    ]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _usable(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without the graph by which it was computed, and not of inference mode, which has no gradient."""
    moved = (tensor if tensor.grad_fn is None else tensor.detach()).to(device)
    return moved.clone() if moved.is_inference() else moved


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same nest of dicts, tuples and lists, with a function applied to its tensors and the rest left as it is."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(function, value) for value in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(map_tensors(function, value) for value in tree)
    return tree


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a nest of dicts, tuples and lists, in order."""
    found: list[Tensor] = []
    map_tensors(lambda tensor: found.append(tensor) or tensor, tree)
    return found


def batch_size_of(batch: Any) -> int:
    """The number of samples in a batch: the leading axis that its tensors have in common.

    Args:
        batch: A nest of tensors.

    Returns:
        The number of samples.

    Raises:
        TypeError: The batch holds no tensor with a leading axis.
        ValueError: Its tensors have different ones.
    """
    sizes = [tensor.shape[0] for tensor in tensors_of(batch) if tensor.ndim]
    shapes = [tuple(tensor.shape) for tensor in tensors_of(batch)]
    if () in shapes and {len(shape) for shape in shapes} == {0, 1}:
        raise ValueError(
            f"data: an item with tensors of shapes {shapes}, which looks like one sample with its target; expected "
            "batches, with the samples along the first axis. Stack the samples, or pass a Dataset of them."
        )
    if len(set(sizes)) > 1:
        raise ValueError(
            f"data: a batch with tensors of shapes {shapes}; expected the samples along the first axis of each, or n "
            "cannot be counted. Give what all samples share to loss_fn in another way."
        )
    if sizes:
        return sizes[0]
    raise TypeError(
        f"data: a batch of type {type(batch).__name__} holds no tensor with samples along its first axis; expected "
        "tensors, or a tuple, list or dict of tensors; torch.from_numpy makes one from an array."
    )


def _values(tree: Any) -> Iterable[Any]:
    return tree.values() if isinstance(tree, Mapping) else tree


def _is_tensor_tree(tree: Any) -> bool:
    if isinstance(tree, Mapping | tuple):
        return all(map(_is_tensor_tree, _values(tree)))
    return isinstance(tree, Tensor)


def _signature(batch: Any) -> Any:
    """What batches must share to be joined along their first axis; None where they cannot be."""
    size = batch_size_of(batch)
    if isinstance(batch, Tensor):
        return (tuple(batch.shape[1:]), batch.dtype)
    if not isinstance(batch, Mapping | tuple | list):
        return None
    tensors = tensors_of(batch)
    if len(tensors) != len(list(_values(batch))) or any(not t.ndim or t.shape[0] != size for t in tensors):
        return None
    keys = tuple(batch) if isinstance(batch, Mapping) else len(batch)
    return (keys, *((tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors))


def _concatenate(batches: list[Any]) -> Any:
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(batches)
    if isinstance(first, Mapping):
        return {key: torch.cat([batch[key] for batch in batches]) for key in first}
    parts = [torch.cat([batch[place] for batch in batches]) for place in range(len(first))]
    return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
