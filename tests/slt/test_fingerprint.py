"""What makes the key of an estimate another one, and what does not."""

import functools
import importlib
import os
import random
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn

import slt
from slt.data import as_data
from slt.fingerprint import code_fingerprint, data_fingerprint, fingerprint
from slt.hashing.values import DEEPEST

SCALE = 2.0


def loss(model, batch):
    return helper(model(batch[0])) * SCALE


def helper(x):
    return x.square().mean()


def test_values_of_other_kinds_differ_and_equal_ones_agree():
    values = [1, 1.0, True, "1", b"1", None, (1,), ((1,),), {"a": 1}, {"b": 1}, {1}, torch.ones(1), torch.ones(1, 1),
              torch.ones(1).double(), torch.ones(1).bfloat16(), np.ones(1), -0.0, 0.0]  # fmt: skip
    found = [fingerprint(value) for value in values]
    assert len(set(found)) == len(values)
    assert all(len(each) == 32 for each in found)
    assert fingerprint(torch.ones(2, 3).T) == fingerprint(torch.ones(3, 2))
    assert fingerprint((1, 2)) == fingerprint([1, 2])
    assert fingerprint(1, 2) != fingerprint((1, 2))


def scaled(factor):
    def inner(model, batch):
        return factor * model(batch[0]).mean()

    return inner


def test_a_loss_is_its_source_what_it_captured_and_what_it_calls(monkeypatch):
    before = fingerprint(loss)
    assert before == fingerprint(loss)
    assert fingerprint(scaled(1.0)) != fingerprint(scaled(2.0))
    assert fingerprint(scaled(1.0)) == fingerprint(scaled(1.0))
    assert fingerprint(functools.partial(loss, batch=1)) != fingerprint(functools.partial(loss, batch=2))
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert fingerprint(loss) != before
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert fingerprint(loss) == before
    monkeypatch.setitem(globals(), "helper", lambda x: x.abs().mean())
    assert fingerprint(loss) != before


class Loss:
    def __init__(self, weight):
        self.weight = weight
        self.itself = self  # does not go on forever

    def __call__(self, model, batch):
        return self.weight * model(batch).mean()


def test_objects_count_by_class_and_attributes():
    assert fingerprint(Loss(1.0)) == fingerprint(Loss(1.0))
    assert fingerprint(Loss(1.0)) != fingerprint(Loss(2.0))
    assert fingerprint(Loss(1.0).__call__) != fingerprint(Loss(2.0).__call__)


CHOICES = {"helper": helper, "scaled": scaled}
PICK = helper


def picking(model, batch):
    return CHOICES["helper"](batch) + PICK(batch)


def test_a_second_mention_counts_as_what_it_is_of(monkeypatch):
    def chain(length):
        return functools.reduce(
            lambda inner, _: types.SimpleNamespace(inner=inner), range(length), types.SimpleNamespace()
        )

    one, other = Loss(1.0), Loss(1.0)
    assert len({fingerprint(one, other, one), fingerprint(one, other, other), fingerprint(one, other, Loss(1.0))}) == 3
    assert fingerprint(np.sin, torch.sin, np.sin) != fingerprint(np.sin, torch.sin, torch.sin)
    functions = [torch.sin, torch.tanh]
    assert fingerprint(*functions, functions[0]) != fingerprint(*functions, functions[1])
    before = fingerprint(picking)
    monkeypatch.setitem(globals(), "PICK", scaled)
    assert fingerprint(picking) != before
    cyclic = types.SimpleNamespace()
    deep = functools.reduce(lambda inner, _: types.SimpleNamespace(inner=inner), range(DEEPEST - 1), cyclic)
    cyclic.inner = cyclic
    assert fingerprint(deep) != fingerprint(chain(DEEPEST + 5))


def test_a_module_counts_by_its_weights_and_its_form():
    torch.manual_seed(0)
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(other)
    with torch.no_grad():
        other.weight[0, 0] = torch.nextafter(other.weight[0, 0], torch.tensor(9.0))
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(nn.Sequential(nn.ReLU())) != fingerprint(nn.Sequential(nn.Tanh()))


class Scaled(nn.Module):
    def __init__(self, scale=1.0, activation=torch.tanh):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 2)
        self.scale, self.activation = scale, activation
        self.register_buffer("offset", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.activation(self.linear(x) * self.scale) + self.offset


def double(module, inputs, options, output):
    return 2 * output


def test_a_module_counts_by_what_its_weights_do_not_show():
    before = fingerprint(Scaled())
    assert before == fingerprint(Scaled())
    hooked, shifted = Scaled(), Scaled()
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    shifted.offset += 1
    again = Scaled()
    again.register_forward_hook(double, with_kwargs=True)
    twice_hooked = Scaled()
    twice_hooked.register_forward_hook(double, with_kwargs=True)
    assert fingerprint(again) == fingerprint(twice_hooked)  # torch counts all hooks of a process
    others = [Scaled(2.0), Scaled(activation=torch.relu), again, hooked, shifted, Scaled().eval()]
    assert len({before, *map(fingerprint, others)}) == 7
    heads = [nn.MultiheadAttention(4, heads) for heads in (1, 2)]
    heads[1].load_state_dict(heads[0].state_dict())
    assert fingerprint(heads[0]) != fingerprint(heads[1])


SETTINGS = {"factor": 1.0}
CRITERION = nn.CrossEntropyLoss()


def deepest(x):
    return x * SETTINGS["factor"]


def deeper(x):
    return deepest(x)


def deep(x):
    return deeper(x)


def nested(model, batch):
    return [(lambda x: deep(x))(CRITERION(model(batch), batch))][0]


def test_what_a_loss_uses_is_followed_to_its_end(monkeypatch):
    found = [fingerprint(nested)]
    for name, value in (("SETTINGS", {"factor": 2.0}), ("CRITERION", nn.CrossEntropyLoss(label_smoothing=0.5))):
        monkeypatch.setitem(globals(), name, value)
        found.append(fingerprint(nested))
    assert len(set(found)) == 3
    one, other = (lambda x: x + 1), (lambda x: x + 2)  # on one line
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(nn.MSELoss(reduction="sum")) != fingerprint(nn.MSELoss(reduction="mean"))


LOSSES = {
    "global": "import helps\ndef loss(m, b): return helps.loss(m, b)",
    "alias": "import helps.inner as q\ndef loss(m, b): return q.loss(m, b)",
    "dotted": "import helps.inner\ndef loss(m, b): return helps.inner.loss(m, b)",
    "inside": "def loss(m, b):\n import helps\n return helps.loss(m, b)",
    "from_inside": "def loss(m, b):\n from helps import loss as it\n return it(m, b)",
    "submodule_inside": "def loss(m, b):\n from helps import inner\n return inner.loss(m, b)",
    "dotted_inside": "def loss(m, b):\n import helps.inner\n return helps.inner.loss(m, b)",
    "nested": "def loss(m, b):\n def go():\n  import helps.inner as q\n  return q.loss(m, b)\n return go()",
    "captured": "def make():\n import helps\n return lambda m, b: helps.loss(m, b)\nloss = make()",
    "default": "import helps\ndef loss(m, b, h=helps): return h.loss(m, b)",
    "by_a_string": "import helps\ndef loss(m, b): return getattr(helps, 'loss')(m, b)",
    "of_a_package": "from . import helps\ndef loss(m, b): return helps.loss(m, b)",
    "relative_inside": "def loss(m, b):\n from .helps import loss as it\n return it(m, b)",
    "of_an_object": "import helps\nclass Held: h = helps\nHELD = [Held()]\ndef loss(m, b): return HELD[0].h.loss(m, b)",
}
KEYS = """import importlib, sys
from slt.fingerprint import fingerprint
for form in sys.argv[1:]: print(fingerprint(importlib.import_module(f"project.{form}").loss))
"""


def fresh_key(form, *others):
    """The key of a form's loss, where nothing of it was imported before but what is named."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("project", "helps")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    for name in others:
        importlib.import_module(name)
    loss = importlib.import_module(f"project.{form}").loss
    found = fingerprint(loss)
    loss(1, 1)
    assert fingerprint(loss) == found  # what it imported is no other thing afterwards
    return found


def test_what_a_loss_uses_of_other_files_is_followed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    deepest = "def loss(m, b):\n import json, numpy as np\n return np.float64(m * b)"
    places = [tmp_path / "helps", tmp_path / "project" / "helps"]
    for folder in places:
        folder.mkdir(parents=True)
        (folder / "deepest.py").write_text(deepest)
        (folder / "inner.py").write_text("from . import deepest\ndef loss(m, b): return deepest.loss(m, b)")
        (folder / "__init__.py").write_text("from .inner import loss")
        (folder / "b.py").write_text("")
    for form, code in LOSSES.items():
        (tmp_path / "project" / f"{form}.py").write_text(code)
    before = {form: fresh_key(form) for form in LOSSES}
    others = [f"{name}.{inner}" for name in ("helps", "project.helps") for inner in ("b", "deepest")]
    assert {form: fresh_key(form, *others) for form in LOSSES} == before
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(slt.__file__).parents[1]}"}
    command = [sys.executable, "-B", "-c", KEYS, *LOSSES]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert there == list(before.values())
    for folder in places:
        (folder / "deepest.py").write_text(deepest.replace("*", "+"))
    # What a string names, and what an object holds, count by their own file.
    unseen = {form for form in LOSSES if fresh_key(form) == before[form]}
    assert unseen == {"by_a_string", "of_an_object"}
    for folder in places:
        (folder / "deepest.py").write_text(deepest)
        (folder / "__init__.py").write_text("from .inner import loss as it\ndef loss(m, b): return 2 * it(m, b)")
    assert all(fresh_key(form) != before[form] for form in ("by_a_string", "of_an_object", "global", "inside"))


def test_installed_libraries_are_not_followed(monkeypatch):
    def inner(model, batch):
        import torch.nn.functional as functional
        import xarray

        return functional.relu(xarray.where(np.sin(batch) > 0, torch.sin(batch), 0))

    def opened(module):
        raise AssertionError(module)

    monkeypatch.setattr("slt.hashing.objects.content_of_file", opened)
    monkeypatch.setattr("slt.hashing.objects.imported", opened)
    assert fingerprint(inner) == fingerprint(inner)


def test_a_file_of_the_users_that_is_named_as_one_of_the_standard_library_is_followed(tmp_path, monkeypatch):
    def inner(model, batch):
        import antigravity

        return antigravity.SCALE * model(batch)

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)
    found = set()
    for scale in ("1.0", "2.5"):
        (tmp_path / "antigravity.py").write_text(f"SCALE = {scale}")
        importlib.invalidate_caches()
        found.add(fingerprint(inner))
        del sys.modules["antigravity"]
    assert len(found) == 2


def test_options_that_numpy_or_torch_made_count_by_value():
    values = [np.float32(10), np.float32(20), np.int64(10), torch.float32, torch.float64, torch.device("cpu"), range(3),
              range(4), slice(1), slice(2), Path("a"), Path("b")]  # fmt: skip
    assert len(set(map(fingerprint, values))) == len(values)


def test_data_count_sample_by_sample():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    device = torch.device("cpu")
    held = as_data((x, x[:, 0]), device)
    changed = x.clone()
    changed[7, 1] += 1e-6
    assert data_fingerprint(held) == data_fingerprint(as_data((x.clone(), x[:, 0]), device))
    assert data_fingerprint(held) != data_fingerprint(as_data((changed, x[:, 0]), device))
    assert data_fingerprint(held) != data_fingerprint(as_data((x.flip(0), x[:, 0].flip(0)), device))
    ragged = [(torch.ones(2, 3),), (torch.ones(2, 4),)]
    assert data_fingerprint(as_data(ragged, device)) != data_fingerprint(as_data(ragged[::-1], device))
    assert data_fingerprint(None) != data_fingerprint(held)


def test_it_is_the_same_in_another_process():
    code = (
        "import torch; from torch import nn; from slt.fingerprint import fingerprint\n"
        "torch.manual_seed(0); print(fingerprint(nn.Linear(2, 2), {'a': {1, 2, 3}}, nn.functional.relu))"
    )
    torch.manual_seed(0)
    here = fingerprint(nn.Linear(2, 2), {"a": {1, 2, 3}}, nn.functional.relu)
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert here == there


def test_the_statement_around_a_lambda_does_not_count():
    def called(*arguments, **options):
        return arguments[0]

    one = called(
        lambda model, batch: model(batch).mean() + 1.5,
        progress=None,
    )
    other = called(
        lambda model, batch: model(batch).mean() + 1.5,
        progress=True,
    )
    third = called(
        lambda model, batch: model(batch).mean() + 2.5,
        progress=None,
    )
    assert fingerprint(one) == fingerprint(other) != fingerprint(third)
    assert fingerprint(lambda a, b: a) != fingerprint(lambda b, a: b) != fingerprint(lambda a, *b: a)


def test_generators_of_the_process_count_by_themselves():
    def drawing(model, batch, *, draw=random.gauss, distribution=np.random.normal):
        return draw(0, 1) + distribution()

    before = fingerprint(drawing)
    drawing(1, 1)
    assert fingerprint(drawing) == before


def test_one_letter_of_the_code_that_makes_estimates_counts(tmp_path, monkeypatch):
    own = code_fingerprint()
    copied = tmp_path / "slt"
    shutil.copytree(Path(slt.__file__).parent, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(slt, "__file__", str(copied / "__init__.py"))
    assert code_fingerprint.__wrapped__() == own  # wherever it lies
    changed = copied / "known" / "formulas" / "__init__.py"
    changed.write_text(changed.read_text() + "#")
    assert code_fingerprint.__wrapped__() != own
