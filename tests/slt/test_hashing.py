"""Which objects have the same hash: all that they hold counts, and nothing that differs between processes."""

import abc
import array
import collections
import dataclasses
import datetime
import enum
import functools
import logging
import mmap
import operator
import os
import random
import re
import subprocess
import sys
import threading
import types
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from slt.fingerprint import fingerprint
from tests.slt.test_fingerprint import Loss, scaled


class Gaussian(NamedTuple):
    sigma: float

    def __call__(self, model, batch):
        return model(batch) / self.sigma


class Squared(NamedTuple):
    sigma: float

    def __call__(self, model, batch):
        return model(batch) / self.sigma**2


def kind(base, **members):
    members["__module__"] = __name__
    return types.new_class("Kind", (base,), exec_body=lambda namespace: namespace.update(members))


class Dict(dict):
    pass


class List(list):
    pass


class Set(set):
    pass


class Float(float):
    pass


class Text(str):
    pass


class Array(np.ndarray):
    pass


class Weighted(torch.Tensor):
    pass


def with_attribute(value, weight):
    value.weight = weight
    return value


class Private:
    __slots__ = ("_", "__weight")

    def __init__(self, weight):
        self.__weight = weight


class OneSlot:
    __slots__ = "weight"

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, model, batch):
        return self.weight * model(batch)


@dataclasses.dataclass(slots=True, frozen=True)
class Frozen:
    weight: torch.Tensor


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Abstract(abc.ABC):
    def __init__(self, weight=1.0):
        self.weight, self.lock, self.log = weight, threading.Lock(), logging.getLogger("losses")
        self.itself = weakref.ref(self)

    @abc.abstractmethod
    def __call__(self, model, batch): ...


class Whole(Abstract):
    def __call__(self, model, batch):
        return self.weight * model(batch)


class Held(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held = held


def nested_in(length, value):
    return functools.reduce(lambda inner, _: types.SimpleNamespace(inner=inner), range(length), value)


def chained(length, value):
    return functools.reduce(lambda inner, _: lambda batch: inner(batch), range(length), lambda batch: value)


def around_itself(value):
    inner = [value, {}]
    inner[1]["inner"] = inner
    return inner


def linked(value):
    one, other = types.SimpleNamespace(), types.SimpleNamespace(value=value)
    one.next, other.next = other, one
    return one


def with_property(weight):
    class Own:
        total = property(lambda self: weight)

    return Own


def attribute_of_function(weight):
    def inner(model, batch):
        return inner.weight * model(batch)

    return with_attribute(inner, weight)


def ema(decay):
    return torch.optim.swa_utils.get_ema_multi_avg_fn(decay / 4)


def objects(weight):
    return np.array([weight, "a", None], dtype=object)


def script(weight):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight

        def forward(self, x):
            return x * self.weight

    return torch.jit.trace(Own(), torch.ones(2), check_trace=False)


def panda(make):
    def made(weight):
        return getattr(pytest.importorskip("pandas"), make)({"a": [1.0, weight], "b": [2.0, 3.0]})

    return made


def column(weight):
    return pytest.importorskip("pandas").Series(np.arange(1000.0) + weight * (np.arange(1000) == 500))


def tokenizer(weight):
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{place}": place if place != 50 else int(1000 * weight) for place in range(200)}
    return tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))


# Of two values 1.0 and 2.0: what ordinary objects hold, and does not show in what they print.
HOLDERS = {
    "series": column,
    "frame": panda("DataFrame"),
    "module with a series": lambda weight: Held(column(weight)),
    "tokenizer": tokenizer,
    "itemgetter": operator.itemgetter,
    "attrgetter": lambda weight: operator.attrgetter("abc"[int(weight)]),
    "methodcaller": lambda weight: operator.methodcaller("loss", weight),
    "named tuple": Gaussian,
    "class of a named tuple": lambda weight: (Gaussian if weight == 1.0 else Squared)(1.0),
    "dict": lambda weight: with_attribute(Dict(a=1), weight),
    "item of a dict": lambda weight: with_attribute(Dict(a=weight), 1.0),
    "class of a dict": lambda weight: kind(dict, weight=weight)(),
    "list": lambda weight: with_attribute(List([1]), weight),
    "item of a list": lambda weight: with_attribute(List([weight]), 1.0),
    "built in function of a class": lambda weight: kind(object, apply=[torch.sin, torch.cos][int(weight) - 1]),
    "class of a list": lambda weight: kind(list, weight=weight)(),
    "set": lambda weight: with_attribute(Set("abc"), weight),
    "item of a set": lambda weight: Set(["a", "b", str(weight)]),
    "float": lambda weight: with_attribute(Float(1.0), weight),
    "value of a float": lambda weight: with_attribute(Float(weight), 1.0),
    "text": lambda weight: with_attribute(Text("a"), weight),
    "array": lambda weight: with_attribute(np.zeros(2).view(Array), weight),
    "entry of an array": lambda weight: np.full(2, weight).view(Array),
    "masked array": lambda weight: np.ma.array([1, 2], mask=[weight > 1, False]),
    "array of objects": objects,
    "tensor": lambda weight: with_attribute(torch.zeros(2).as_subclass(Weighted), weight),
    "entry of a tensor": lambda weight: torch.full((2,), weight).as_subclass(Weighted),
    "class of a tensor": lambda weight: torch.zeros(2).as_subclass(kind(torch.Tensor, weight=weight)),
    "conjugate": lambda weight: torch.full((2,), complex(0, weight)).conj(),
    "one entry of a stride": lambda weight: torch.full((3,), weight)[::3],
    "private slot": Private,
    "one slot": OneSlot,
    "frozen": lambda weight: Frozen(torch.tensor(weight)),
    "enum": lambda weight: list(Colour)[int(weight) - 1],
    "abstract": Whole,
    "pattern": lambda weight: re.compile("a" * 500 + str(weight)),
    "memory": lambda weight: memoryview(array.array("d", [weight])),
    "mapped memory": lambda weight: with_mapped(bytes([int(weight)])),
    "iterator": lambda weight: iter([1, weight]),
    "map": lambda weight: map(float, [weight]),
    "values": lambda weight: {"a": torch.arange(2000) * weight}.values(),
    "deque": lambda weight: collections.deque([1, weight]),
    "default": lambda weight: collections.defaultdict(functools.partial(float, weight)),
    "date": lambda weight: datetime.date(2020, 1, int(weight)),
    "view of a mapping": lambda weight: types.MappingProxyType({"a": torch.arange(2000) * weight}),
    "slice": lambda weight: slice(torch.arange(2000) * weight),
    "weak reference": lambda weight: weakref.ref(held_for_good(weight)),
    "python's generator": lambda weight: random.Random(int(weight)),
    "numpy's generator": lambda weight: np.random.default_rng(int(weight)),
    "torch's generator": lambda weight: torch.Generator().manual_seed(int(weight)),
    "storage": lambda weight: torch.full((2,), weight).untyped_storage(),
    "nested": lambda weight: nested_in(13, torch.tensor(weight)),
    "nested deeply": lambda weight: nested_in(3000, torch.tensor(weight)),
    "chained deeply": lambda weight: chained(500, weight),
    "lists": lambda weight: functools.reduce(lambda inner, _: [inner], range(3000), weight),
    "around itself": around_itself,
    "linked": linked,
    "made by a library": ema,
    "method of an array": lambda weight: np.full(2, weight).sum,
    "method of a dict": lambda weight: {"a": weight}.get,
    "property": with_property,
    "attribute of a function": attribute_of_function,
    "script": script,
}
KEPT = []


def held_for_good(weight):
    KEPT.append(Loss(weight))
    return KEPT[-1]


def with_mapped(content):
    found = mmap.mmap(-1, 1)
    found[:] = content
    return found


def holding(holder, weight):
    """A loss that captured what holds a weight."""
    value = HOLDERS[holder](weight)
    return lambda model, batch: value


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is:DeprecationWarning")
def test_what_an_object_holds_counts(holder):
    value = HOLDERS[holder](1.0)
    before = fingerprint(value)
    assert fingerprint(value) == before
    assert fingerprint(HOLDERS[holder](2.0)) != before
    if holder != "script":  # the second has another name, from the order in which they were made
        assert fingerprint(HOLDERS[holder](1.0)) == before
    assert fingerprint(holding(holder, 1.0)) != fingerprint(holding(holder, 2.0))


WITHIN_ANOTHER = """import functools, sys, warnings
warnings.simplefilter("ignore")
from tests.slt.test_hashing import HOLDERS, called, compiled, key_or_skipped, language_model
for name in sys.argv[1:]: print(key_or_skipped(functools.partial(HOLDERS[name], 1.0)))
for make in (compiled, called, language_model): print(key_or_skipped(make))
"""


def twice():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def compiled():
    return torch.compile(twice(), backend="eager")


def called():
    model = compiled()
    model(torch.ones(1, 2))
    return model


def language_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=4, n_layer=1, n_head=1, vocab_size=5, n_positions=4, bos_token_id=0, eos_token_id=0
        )
    )


def key_or_skipped(make):
    try:
        return fingerprint(make())
    except pytest.skip.Exception:
        return "skipped"


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is:DeprecationWarning")
def test_what_an_object_holds_is_the_same_in_another_process():
    names = [name for name in HOLDERS if name != "script"]  # whose name is of the order in which they were made
    makers = [*(functools.partial(HOLDERS[name], 1.0) for name in names), compiled, called, language_model]
    here = [key_or_skipped(make) for make in makers]
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WITHIN_ANOTHER, *names]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert dict(zip([*names, "compiled", "called", "language model"], there, strict=True)) == dict(
        zip([*names, "compiled", "called", "language model"], here, strict=True)
    )


def test_lightning_leaves_the_key_of_a_compiled_model_alone():
    before = fingerprint(compiled())
    pytest.importorskip("lightning")  # which has torch.compile write its arguments on the module from there on
    assert fingerprint(compiled()) == before


def test_what_torch_compiles_counts_as_what_it_is_made_of():
    model = compiled()
    before = fingerprint(model)
    model(torch.ones(1, 2))
    assert fingerprint(model) == before == fingerprint(compiled())
    with torch.no_grad():
        model._orig_mod[0].weight += 1
    assert fingerprint(model) != before
    hooked = compiled()
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert fingerprint(hooked) != before
    in_place = twice()
    in_place.compile(backend="eager")
    before = fingerprint(in_place)
    in_place(torch.ones(1, 2))
    assert fingerprint(in_place) == before
    one, again, other = (torch.compile(scaled(weight), backend="eager") for weight in (1.0, 1.0, 2.0))
    before = fingerprint(one)
    one(nn.Identity(), (torch.ones(1),))
    assert fingerprint(one) == fingerprint(again) == before != fingerprint(other)


def untold():
    yield 1


@pytest.mark.parametrize("value", [untold(), np.frompyfunc(lambda x: x, 1, 1)])
def test_what_nothing_tells_is_never_found_again(value, monkeypatch):
    def loss(model, batch):
        return value

    monkeypatch.setattr("slt.hashing.values.WARNED", set())
    found = set()
    for each, named in ((loss, "loss → value"), (Held([value]), "Held → held")):
        with pytest.warns(UserWarning, match=rf"^{named} \(.*nothing tells what it holds.* Give what") as warned:
            found.update(fingerprint(each, each) for _ in range(3))
        assert len(warned) == 1  # in all: a sweep makes many keys
    assert len(found) == 6


class Endless:
    __slots__ = ()

    def __reduce__(self):
        return Endless, (Endless(),)


def test_what_makes_itself_anew_comes_to_an_end(monkeypatch):
    monkeypatch.setattr("slt.hashing.values.ENDLESS", 200)
    monkeypatch.setattr("slt.hashing.values.WARNED", set())
    with pytest.warns(UserWarning, match="nothing tells"):
        fingerprint(Endless())
