"""Numbers, texts, tensors, arrays and nests of them, added to one hash by value."""

from __future__ import annotations

import abc
import hashlib
import os
import types
import warnings
from collections import OrderedDict, deque
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slt.hashing.contents import printed

LENGTH = 32  # hexadecimal digits, 128 bits
DEEPEST = 40  # nesting that is followed at once; what lies deeper is put off until then
ENDLESS = 1 << 20  # nesting that only what makes itself anew has
SHOWN, SHORT = 4, 40  # names of what is around a value that a warning shows, and letters of each
# Exactly these, and none that inherits from them and may hold more.
PLAIN = frozenset((
    *(type(None), bool, int, float, complex, str, bytes, range, type(...), type(NotImplemented)),
    *(torch.dtype, torch.device, torch.Size, type(Path())),
))  # fmt: skip
BY_BITS = frozenset((float, bytes))
CONTAINERS = frozenset((tuple, list, dict, OrderedDict, types.MappingProxyType, set, frozenset))
TENSORS = frozenset((Tensor, nn.Parameter))
WARNED: set[str] = set()  # what this process was warned of: a sweep makes many keys


class Values(abc.ABC):
    """Values added to one hash. What was followed once is not followed again: cycles end, and nothing counts twice.

    All other objects are for who inherits from this, in :meth:`add_object`.
    """

    def __init__(self, around: Values | None = None) -> None:
        self.digest = hashlib.sha256()
        # Identity → when it came first, and the object: held, so that no other gets its identity anew.
        self.followed: dict[int, tuple[int, Any]] = {} if around is None else dict(around.followed)
        self.open: dict[int, int] = {}  # identity → level of the sequences, mappings and sets around what is added
        self.trail: list[Any] = [] if around is None else list(around.trail)  # names of what is around it
        self.untold: list[str] = [] if around is None else around.untold  # what nothing tells the content of
        self.later: deque[tuple[Any, list[Any], int]] = deque()  # with the trail, and how deep it is
        self.base = 0 if around is None else around.base

    def finished(self) -> str:
        """The hash, once all is added that was put off."""
        while self.later:
            value, self.trail, self.base = self.later.popleft()
            self._walk(value, 0)
        return self.digest.hexdigest()[:LENGTH]

    def warn(self) -> None:
        """Warn of what nothing tells the content of, if there is any that this process was not warned of."""
        new = [each for each in dict.fromkeys(self.untold) if each not in WARNED]
        WARNED.update(new)
        if new:
            warnings.warn(
                f"{'; '.join(new)}: nothing tells what it holds, so it counts as another one "
                "each time. Estimates are not found again in a store, processes do not share them, and one that was "
                "interrupted does not go on. Give what it is made of in its place, such as a list for an iterator, or "
                "arrays for an object of compiled code.",
                UserWarning,
                stacklevel=3,
            )

    def add(self, value: Any, depth: int = 0) -> None:
        """Add a value, its kind first, so that 1 and "1" and (1,) differ."""
        kind = type(value)
        if kind in PLAIN:
            self.add_text(f"{kind.__name__}:{value.hex() if kind in BY_BITS else repr(value)}")
        elif kind in TENSORS:
            self.add_tensor(value)
        elif kind is np.ndarray or isinstance(value, np.generic):
            self._array(value, depth)
        elif id(value) in self.followed:
            self.add_text(f"again {self.followed[id(value)][0]}")  # which of those before, not one of its kind
        elif id(value) in self.open:
            self.add_text(f"around {len(self.open) - self.open[id(value)]}")
        elif depth > DEEPEST:  # put off, or Python's own limit would be met
            self.follow(value)
            self.later.append((value, self.trail[-SHOWN:], self.base + depth))
        else:
            if kind not in CONTAINERS:
                self.follow(value)
            self._walk(value, depth + 1)

    def follow(self, value: Any) -> None:
        """Remember an object, so that it counts as the same one when it comes again."""
        self.followed[id(value)] = (len(self.followed), value)

    def _walk(self, value: Any, depth: int) -> None:
        if self.base + depth > ENDLESS:
            self.add_untold(value)
        elif type(value) in CONTAINERS:
            self.open[id(value)] = len(self.open)
            self.add_items(value, depth)
            del self.open[id(value)]
        else:
            self.add_object(value, depth)

    @abc.abstractmethod
    def add_object(self, value: Any, depth: int) -> None:
        """Add what is no number, text, tensor, array or nest."""

    def add_items(self, value: Any, depth: int) -> None:
        """Add what a sequence, mapping or set holds."""
        if isinstance(value, Mapping):
            self.add_mapping(value, depth)
        elif isinstance(value, Set):
            self._set(value, depth)
        else:
            self.add_text(f"sequence {len(value)}")
            for item in value:
                self.add(item, depth)

    def add_mapping(self, value: Mapping[Any, Any], depth: int) -> None:
        """Add names and values, in their order."""
        self.add_text(f"mapping {len(value)}")
        for key, item in value.items():
            self.add(key, depth)
            self.add_named(key, item, depth)

    def _set(self, value: Set[Any], depth: int) -> None:
        """Add the hashes of the items, sorted: their order is another one in every process."""
        hashes = []
        for item in value:
            within = type(self)(None if type(item) in PLAIN else self)
            within.add(item, depth)
            hashes.append(within.finished())
        self.add_text(f"set {sorted(hashes)}")

    def add_all(self, label: str, depth: int, *values: Any) -> None:
        """Add values under a label that says what they are of."""
        self.add_text(f"{label} {len(values)}")
        for value in values:
            self.add(value, depth)

    def add_named(self, name: Any, value: Any, depth: int) -> None:
        """Add a value by whose name a warning shows where it was."""
        self.trail.append(name)
        self.add(value, depth)
        self.trail.pop()

    def add_untold(self, value: Any) -> None:
        """Add what nothing tells the content of, as another one each time."""
        trail = " → ".join(map(shortened, self.trail[-SHOWN:]))
        kind = type(value)
        self.untold.append(f"{trail or 'a value'} ({kind.__module__}.{kind.__qualname__})")
        self.add_text(f"untold {os.urandom(LENGTH).hex()}")

    def add_text(self, text: str) -> None:
        """Add a text, its length first."""
        encoded = text.encode(errors="surrogatepass")
        self.digest.update(f"{len(encoded)}:".encode() + encoded + b";")

    def _array(self, array: np.ndarray | np.generic, depth: int) -> None:
        held = array.tolist() if array.dtype.hasobject else array.tobytes()  # objects are addresses in memory
        self.add_all("array", depth, str(array.dtype), array.shape, held)

    def add_tensor(self, tensor: Tensor) -> None:
        """Add a tensor by kind of number, shape and entries, wherever they lie."""
        tensor = tensor.detach()
        self.add_text(f"tensor {tensor.dtype} {'' if tensor.is_nested else tuple(tensor.shape)}")
        if tensor.is_nested:
            for each in tensor.unbind():
                self.add_tensor(each)
            return
        if tensor.is_quantized:
            self.add_text(f"quantized {tensor.qscheme()}")
            self.add_tensor(tensor.dequantize())
            tensor = tensor.int_repr()
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        flat = tensor.resolve_conj().resolve_neg().contiguous().view(-1).cpu()
        flat = flat.as_strided(flat.shape, (1,))  # one entry may have any stride
        self.digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def shortened(name: Any) -> str:
    """A name as a warning shows it."""
    text = printed(name) if not isinstance(name, str) else name
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"
