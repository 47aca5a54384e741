"""Checkpoints in their usual forms, and sweeps over them."""

import csv
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import slt
from slt.checkpoints import find_checkpoints, load_into, load_state, read_state, step_of
from tests.slt.models import TinyTransformer, fitted_regression, half_squares

SHORT = {"num_draws": 60, "num_warmup": 10, "num_chains": 2, "progress": False, "sampler": "mala", "step_size": 0.02}


def fresh():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def saved(model, path):
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    elif path.suffix == ".pt":
        torch.save(model.state_dict(), path)
    elif path.suffix == ".ckpt":
        torch.save({"epoch": 3, "optimizer": {}, "state_dict": model.state_dict()}, path)
    else:
        path.mkdir()
        save_file(model.state_dict(), path / "model.safetensors")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.ckpt", "folder"])
def test_every_form_loads(name, tmp_path):
    trained, model = fresh(), fresh()
    saved(trained, tmp_path / name)
    load_into(model, tmp_path / name)
    for one, other in zip(model.state_dict().values(), trained.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_shards_of_a_folder(tmp_path):
    trained, model = fresh(), fresh()
    state = trained.state_dict()
    names = list(state)
    shards = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    for shard, keys in shards.items():
        save_file({key: state[key] for key in keys}, tmp_path / shard)
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    load_into(model, tmp_path)
    assert torch.equal(model[0].weight, trained[0].weight)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', '{"weight_map": {', "\xff"]
)
def test_an_index_that_lists_no_shards_is_named(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json' cannot be read .* under 'weight_map'"):
        load_into(fresh(), tmp_path)


def test_a_tied_weight_may_be_saved_once(tmp_path):
    trained, model = TinyTransformer(), TinyTransformer()
    state = {name: value for name, value in trained.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "a.safetensors")
    load_into(model, tmp_path / "a.safetensors")
    assert torch.equal(model.head.weight, trained.head.weight)


def test_what_does_not_fit_is_listed_both_ways(tmp_path):
    other = nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.Linear(5, 5)))
    save_file(other.state_dict(), tmp_path / "a.safetensors")
    model = fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing from the checkpoint: 1\.weight.*and 2 more; unknown to the model: "
                                         r"1\.0\.bias, 1\.0\.weight; of other shape: 0\.bias: \(5,\)"):  # fmt: skip
        load_into(model, tmp_path / "a.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_would_be_altered_without_a_word_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = model[0].weight.detach().clone()
    codes = {**model.state_dict(), "0.weight": torch.ones(2, 3, dtype=torch.int8)}
    waves = {**model.state_dict(), "0.weight": torch.ones(2, 3, dtype=torch.complex64)}
    for state, kind in ((codes, "int8"), (waves, "complex64"), ({**codes, "0.weight": [1.0]}, "list")):
        with pytest.raises(
            ValueError, match=f"does not fit .* altered: 0.weight: {kind} in the checkpoint, float32 in"
        ):
            load_state(model, state)
    assert torch.equal(model[0].weight, before)
    load_state(
        model, {name: value.double() for name, value in model.state_dict().items()}
    )  # also batches that it counts

    tied = TinyTransformer()
    state = {name: value.clone() for name, value in tied.state_dict().items()}
    state["head.weight"][0, 0] = np.nan
    (other,) = (name for name, value in tied.named_parameters() if value is tied.head.weight)
    with pytest.raises(
        ValueError, match=f"tied in the model, and not the same in the checkpoint: {other} and head.weight"
    ):
        load_state(tied, state)
    state[other][0, 0] = np.nan
    load_state(tied, state)  # the same, also where they are no numbers


class Harmful:
    def __reduce__(self):
        return (print, ("code was run",))


def test_what_torch_says_of_a_file_is_told_in_whole_words_without_colours(tmp_path):
    cut, module = tmp_path / "cut.pt", tmp_path / "module.pt"
    torch.save({"weight": torch.ones(500)}, cut)
    cut.write_bytes(cut.read_bytes()[:-900])
    torch.save(nn.Linear(3, 1), module)
    for path, match in ((cut, "Is it whole"), (module, "refused")):
        with pytest.raises(ValueError, match=match) as told:
            read_state(path)
        text = str(told.value)
        assert text.isprintable()  # no escape code
        assert "file is)" not in text  # and no line that is cut in the midst of a sentence
        assert re.search(r"\(\w[^()]*\w\)", text)
    assert "torch.nn.modules.linear.Linear" in text


def test_files_that_are_refused(tmp_path, capsys):
    torch.save({"model": Harmful()}, tmp_path / "harmful.pt")
    with pytest.raises(ValueError, match="unpickling runs code"):
        read_state(tmp_path / "harmful.pt")
    assert "code was run" not in capsys.readouterr().out
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_state(tmp_path / "cut.safetensors")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(
        ValueError, match=r"checkpoint: .*text\.pt' (cannot be read by torch\.load \(\w+: .+\)|holds more than)"
    ):
        read_state(tmp_path / "text.pt")
    whole = tmp_path / "whole.pt"
    torch.save(fresh().state_dict(), whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read|refused"):
        read_state(tmp_path / "cut.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds list"):
        read_state(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_state(tmp_path / "missing.pt")
    with pytest.raises(FileNotFoundError, match=rf"For a sweep over what is in it give '{tmp_path}/\*'"):
        read_state(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors.*checkpoint\.$"):
        read_state(tmp_path / "empty")


def test_order_by_step(tmp_path):
    for name in ("step-100.pt", "step-20.pt", "step-3.pt", "final.pt"):
        (tmp_path / name).touch()
    names = [path.name for path in find_checkpoints(tmp_path / "*.pt")]
    assert names == ["step-3.pt", "step-20.pt", "step-100.pt", "final.pt"]
    named = {
        "run3/checkpoint-1500": 1500, "checkpoint-1500/model.safetensors": 1500, "checkpoint-20/pytorch_model.bin": 20,
        "model.safetensors": None, "final.pt": None, "epoch=3-step=100-val_loss=0.32.ckpt": 100,
        "epoch=3-step=100-v1.ckpt": 100, "step500_seed0.pt": 500, "ckpt_100_fp16.pt": 100, "step_2000_of_5000.pt": 2000,
        "run2_300.pt": 300, "weights-70-seed3.pt": 70, "global_step12": 12, "0012.pt": 12, "12_v2.pt": 12,
        "step10k.pt": 10_000, "step_1e4.pt": 10_000, "ckpt-1.5M.pt": 1_500_000, "iter_100.pt": 100, "model100.pt": 100,
        "epoch3-0.25.pt": 3, "epoch=2-iteration=50.pt": 50, "step_100_0.32.pt": 100, "stage1-step1000-tokens4B": 1000,
        "model_1e4.pt": None, "step_1_000.pt": None, "step-10.5.pt": None, "resnet18_final.pt": None,
        "gpt2-124M.safetensors": None, "2024-05-01.pt": None, "model-00001-of-00002.safetensors": None,
        "step100a.pt": None, "step1e-3.pt": None, "step-1.5.pt": None, "step0.0001k": None,
        "5e2.pt": 500, "1e3.pt": 1000, "10k.pt": 10_000, "step_10/weights.pt": 10, "global_step100/model.pt": 100,
        "epoch=3/last.ckpt": 3, "test_step0/final.pt": None, "3/final.pt": None, "seed3/final.pt": None,
        "step-7/seed2.pt": None,
    }  # fmt: skip
    assert {name: step_of(name) for name in named} == named
    with pytest.raises(FileNotFoundError, match="matched nothing"):
        find_checkpoints(tmp_path / "*.bin")


def test_two_stars_are_folders_of_any_depth(tmp_path, monkeypatch):
    for place in ("step-4.pt", "a/step-1.pt", "a/b/step-2.pt", "br[1]/step-3.pt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    assert [step_of(path) for path in find_checkpoints(tmp_path / "**/*.pt")] == [1, 2, 3, 4]
    with pytest.raises(FileNotFoundError, match=r"matched nothing\. Where \[, \? or \* belongs to a name"):
        find_checkpoints(tmp_path / "br[1]/*.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [step_of(path) for path in find_checkpoints("~/a/*.pt")] == [1]


def test_extra_state_is_of_a_state_dict_and_other_things_are_named(tmp_path):
    class Counting(nn.Linear):
        count = 0

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

    one, other = Counting(2, 1), Counting(2, 1)
    one.count = 7
    torch.save(one.state_dict(), tmp_path / "one.pt")
    load_into(other, tmp_path / "one.pt")
    assert other.count == 7
    torch.save({**nn.Linear(2, 1).state_dict(), "epoch": 3}, tmp_path / "more.pt")
    with pytest.raises(ValueError, match="with int under 'epoch'; expected a state dict"):
        load_into(other, tmp_path / "more.pt")


def test_two_names_of_one_weight_are_refused():
    state = {"weight": torch.zeros(1, 2), "_orig_mod.weight": torch.ones(1, 2), "bias": torch.zeros(1)}
    model = nn.Linear(2, 1)
    before = model.weight.clone()
    with pytest.raises(ValueError, match="'weight' and '_orig_mod.weight' are both 'weight' of the model"):
        load_state(model, state)
    assert torch.equal(model.weight, before)


def test_names_without_steps_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("net10a.pt", "net2a.pt", "net2b.pt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_checkpoints(tmp_path / "*.pt")] == ["net2a.pt", "net2b.pt", "net10a.pt"]


@pytest.fixture
def series(tmp_path):
    model, data, _ = fitted_regression()
    for step in (5, 10, 20):
        with torch.no_grad():
            model.weight.mul_(0.999)
        save_file(model.state_dict(), tmp_path / f"step-{step}.safetensors")
    (tmp_path / "step-15.safetensors").write_bytes(b"broken")
    return model, data, tmp_path


def test_sweep_has_one_row_each_and_reports_a_broken_one(series):
    model, data, folder = series
    before = model.weight.detach().clone()
    result = slt.sweep(model, folder / "*.safetensors", data, half_squares, **SHORT)
    assert [row.step for row in result.rows] == [5, 10, 15, 20]
    assert torch.equal(model.weight, before)
    broken = result.rows[2]
    assert broken.estimate is None
    assert "cannot be read" in broken.error
    assert len({row.estimate.llc for row in result.rows if row.estimate}) == 3
    assert {(row.estimate.n_beta, row.estimate.localization) for row in result.rows if row.estimate} == {
        (result.rows[0].estimate.n_beta, 1.0)
    }
    assert "failed" in result.table()
    assert len(result.table().splitlines()) == 5

    result.save(folder / "sweep.csv")
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["5", "10", "15", "20"]
    assert float(rows[0]["llc"]) == pytest.approx(result.rows[0].estimate.llc)
    result.save(folder / "sweep.json")
    assert json.loads((folder / "sweep.json").read_text())[2]["verdict"] == "failed"
    with pytest.raises(ValueError, match=r"\.csv or \.json"):
        result.save(folder / "sweep.txt")
    top, bottom = result.plot()
    assert "λ̂" in top.get_ylabel()
    assert "nats" in bottom.get_ylabel()
    plt.close("all")


def test_each_row_is_what_an_estimate_of_it_alone_gives(series):
    model, data, folder = series
    result = slt.sweep(model, folder / "step-10.safetensors", data, half_squares, **SHORT)
    load_into(model, folder / "step-10.safetensors")
    alone = slt.estimate_llc(model, data, half_squares, **SHORT)
    np.testing.assert_array_equal(result.rows[0].estimate.trace.loss, alone.trace.loss)


def test_an_interrupt_ends_the_sweep_and_keeps_the_finished_rows(series):
    model, data, folder = series
    before = model.weight.detach().clone()
    second = read_state(folder / "step-10.safetensors")["weight"]

    def interrupted(model, batch):
        if torch.equal(model.weight, second):
            raise KeyboardInterrupt
        return half_squares(model, batch)

    result = slt.sweep(model, folder / "*.safetensors", data, interrupted, engine="in_place", **SHORT)
    assert result.interrupted
    assert [row.step for row in result.rows] == [5]
    assert torch.equal(model.weight, before)
