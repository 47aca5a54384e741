"""Which parameters lie over one another in memory, although they are objects of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from slt.shards import local


class Span(NamedTuple):
    """The bytes from the first to the last element of a tensor, which need not be all its own.

    Attributes:
        device: Where they are.
        start: Address of the first.
        end: Behind the last.
        name: Of the parameter.
        tensor: What of it is here.
        chosen: Whether it is to be sampled.
    """

    device: str
    start: int
    end: int
    name: str
    tensor: Tensor
    chosen: bool

    @property
    def dense(self) -> bool:
        """Whether no other tensor can lie between its elements."""
        return self.tensor.numel() * self.tensor.element_size() == self.end - self.start


def overlapping(
    chosen: Iterable[tuple[str, Tensor]], others: Iterable[tuple[str, Tensor]] = ()
) -> tuple[str, str] | None:
    """Names of two parameters that have elements in common, the first of them a chosen one; None where none have.

    Views of one storage that lie beside each other, as in a flat buffer, or between each other, as columns of a
    matrix, have none in common. No number is read, and what has no address, as on the meta device, is passed over.

    Args:
        chosen: Names and parameters to be sampled.
        others: Names and further parameters of the module, which may overlap among themselves.

    Returns:
        The names, or None.
    """
    spans = [span for named, own in ((chosen, True), (others, False)) for span in _spans(named, own)]
    for cluster in _clusters(sorted(spans, key=lambda span: span[:3])):
        if len(cluster) > 1 and any(span.chosen for span in cluster):
            found = _first_in_range(cluster) if all(span.dense for span in cluster) else _first_in_common(cluster)
            if found is not None:
                return found
    return None


def _spans(named: Iterable[tuple[str, Tensor]], chosen: bool) -> Iterator[Span]:
    for name, parameter in named:
        tensor = local(parameter.detach())
        if tensor.layout != torch.strided or not tensor.numel():
            continue
        start = _address(tensor)
        if start:
            steps = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            end = start + (sum(steps) + 1) * tensor.element_size()
            yield Span(str(tensor.device), start, end, name, tensor, chosen)


def _address(tensor: Tensor) -> int:
    """Of its first element; 0 where there is none, as of tensors that are fake, on meta, or set free by a wrapper."""
    try:
        # fake tensors name the device that they stand for, and their storage the one on which they are
        return 0 if tensor.untyped_storage().device.type == "meta" else tensor.data_ptr()
    except RuntimeError:
        return 0


def _clusters(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Groups of spans, in order, of which each begins before one of those ahead of it has ended."""
    cluster: list[Span] = []
    end = 0
    for span in spans:
        if cluster and (span.device != cluster[0].device or span.start >= end):
            yield cluster
            cluster = []
        end = max(end, span.end) if cluster else span.end
        cluster.append(span)
    if cluster:
        yield cluster


def _first_in_range(cluster: Sequence[Span]) -> tuple[str, str]:
    """A chosen one of a cluster and another whose range meets its own: in a cluster every one meets another."""
    own = next(span for span in cluster if span.chosen)
    return own.name, next(
        span.name for span in cluster if span is not own and span.start < own.end and own.start < span.end
    )


def _first_in_common(cluster: Sequence[Span]) -> tuple[str, str] | None:
    """Two that have elements in common, found by writing on a map of the memory whose each place is."""
    base, last = cluster[0].start, max(span.end for span in cluster)
    unit = math.gcd(*(number for span in cluster for number in (span.start - base, span.tensor.element_size())))
    owners = torch.full(((last - base) // unit,), -1, dtype=torch.int32)
    of_all = torch.arange(len(owners))
    for number, span in sorted(enumerate(cluster), key=lambda item: not item[1].chosen):  # the chosen ones first
        width = span.tensor.element_size() // unit
        shape = (*span.tensor.shape, width)
        strides = (*(stride * width for stride in span.tensor.stride()), 1)
        places = of_all.as_strided(shape, strides, (span.start - base) // unit).reshape(-1)
        taken = int(owners[places].max())
        if taken >= 0:
            return cluster[taken].name, span.name
        if span.chosen:
            owners[places] = number
    return None
