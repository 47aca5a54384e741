"""Parts × checkpoints: one table, each part under one law, stored and found again."""

import itertools

import numpy as np
import pytest
import torch

import slt
from slt import sweeps
from slt.parts import attention_heads, part_of
from tests.slt.models import fitted_regression, half_squares
from tests.slt.test_parts import TOKENS, FrozenByHand, next_token, small
from tests.slt.test_sweeps import counted

SHORT = {"num_draws": 20, "num_warmup": 5, "num_chains": 2, "progress": False, "sampler": "mala", "step_size": 0.02}
FIRST, LAST = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
PARTS = {"first": {"weight": FIRST}, "last": {"weight": LAST}}


def states():
    model, data, _ = fitted_regression()
    series = {10 * (place + 1): {"weight": model.weight.detach() * (1 + 0.01 * place)} for place in range(2)}
    return model, data, series


def test_the_heads_of_two_layers_in_one_table_each_as_if_the_rest_were_frozen_by_hand():
    model = small("gpt2")
    heads = attention_heads(model)
    series = {
        step: {name: scale * value for name, value in model.state_dict().items()}
        for step, scale in ((1, 1.0), (2, 2.0))
    }
    options = {**SHORT, "step_size": 1e-4}
    sweep = slt.sweep(model, series, TOKENS, next_token, parts=heads, **options)
    assert sweep.parts == ("0.0", "0.1", "1.0", "1.1")
    table = sweep.to_dataset()["llc"]
    assert table.dims == ("part", "step")
    assert np.isfinite(table).all()
    for row in sweep.rows:
        at_the_step = small("gpt2")
        at_the_step.load_state_dict(series[row.step])
        hand = slt.estimate_llc(FrozenByHand(at_the_step, heads[row.part]), TOKENS, next_token, **options)
        np.testing.assert_allclose(row.estimate.trace.loss, hand.trace.loss, rtol=1e-9)
        assert float(table.sel(part=row.part, step=row.step)) == row.estimate.llc
    found = [row.estimate.trace.loss for row in sweep.rows]
    assert not any(np.allclose(one, other, rtol=1e-9) for one, other in itertools.pairwise(found))
    assert all(torch.equal(value, series[1][name]) for name, value in model.state_dict().items())  # as it came


def test_every_cell_is_the_estimate_of_that_part_at_that_step():
    model, data, series = states()
    parts = {"whole": None, "last": PARTS["last"], "by name": "weight"}
    sweep = slt.sweep(model, series, data, half_squares, parts=parts, **SHORT)
    assert [(row.step, row.part) for row in sweep.rows[:4]] == [
        (10, "whole"), (10, "last"), (10, "by name"), (20, "whole"),
    ]  # fmt: skip
    model.load_state_dict(series[20])
    alone = slt.estimate_llc(part_of(model, parts["last"]), data, half_squares, **SHORT)
    whole = slt.sweep(model, series, data, half_squares, **SHORT)
    np.testing.assert_array_equal(sweep.part("last").rows[1].estimate.trace.loss, alone.trace.loss)
    for one, other, named in zip(whole.rows, sweep.part("whole").rows, sweep.part("by name").rows, strict=True):
        assert one.estimate.llc == other.estimate.llc == named.estimate.llc
    assert sweep.part("whole").table() == whole.table() != sweep.part("last").table()
    assert sweep.table().splitlines()[2].startswith("last   ")
    assert sweep.part("last").parts == ()
    with pytest.raises(ValueError, match=r"name: 'none'; expected one of 'whole', 'last', 'by name'"):
        sweep.part("none")
    with pytest.raises(ValueError, match=r"sweep\.part\(name\)\.stages"):
        sweep.stages()


def test_one_law_for_each_part_over_the_whole_series():
    model, data, series = states()
    options = {name: value for name, value in SHORT.items() if name not in ("sampler", "step_size")}
    sweep = slt.sweep(
        model, series, data, half_squares, parts=PARTS, sampler="sgld", batch_size=10, calibrate_on=[10, 20], **options
    )
    steps = {name: {row.estimate.step_size for row in sweep.part(name).rows} for name in PARTS}
    assert all(len(found) == 1 for found in steps.values())
    assert steps["first"] != steps["last"]
    assert len({(row.estimate.n_beta, row.estimate.localization) for row in sweep.rows}) == 1
    assert "first: sampler sgld, of step size" in sweep.law
    metric = slt.sweep(model, series, data, half_squares, parts={"last": PARTS["last"]}, metric="curvature", **SHORT)
    assert {row.estimate.config["parameters"][0] for row in metric.rows} == {2}
    assert len({row.estimate.config["metric"][1] for row in metric.rows}) == 1


def test_a_part_is_found_again_by_its_entries_and_the_table_is_that_of_an_unbroken_run(tmp_path, monkeypatch):
    model, data, series = states()
    slt.sweep(model, series, data, half_squares, parts=PARTS, store=tmp_path / "whole", **SHORT)
    assert len({row.key for row in slt.load_sweep(tmp_path / "whole").rows}) == 4

    honest, finished = sweeps._Table.add, []

    def stops(self, row):
        honest(self, row)
        finished.append(row)
        if len(finished) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sweeps._Table, "add", stops)
        assert slt.sweep(model, series, data, half_squares, parts=PARTS, store=tmp_path / "cut", **SHORT).interrupted
    calls = counted(monkeypatch)
    again = slt.sweep(model, series, data, half_squares, parts=PARTS, store=tmp_path / "cut", **SHORT)
    assert len(calls) == 1
    for name in ("sweep.csv", "sweep.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    back = slt.load_sweep(tmp_path / "cut")
    assert back.parts == tuple(PARTS)
    assert back.to_dataset()["llc"].equals(again.to_dataset()["llc"])

    renamed = {"another name": PARTS["first"]}
    slt.sweep(model, series, data, half_squares, parts=renamed, store=tmp_path / "cut", **SHORT)
    assert len(calls) == 1  # a name is no part of what is estimated
    slt.sweep(model, series, data, half_squares, parts={"first": {"weight": ~FIRST}}, store=tmp_path / "cut", **SHORT)
    assert len(calls) == 1  # the entries of "last"
    other = torch.tensor([[True, True, False]])
    slt.sweep(model, series, data, half_squares, parts={"first": {"weight": other}}, store=tmp_path / "cut", **SHORT)
    assert len(calls) == 3


def test_a_broken_checkpoint_is_a_row_for_each_part_and_the_others_go_on():
    model, data, series = states()
    series[20] = {"other": torch.ones(2)}
    sweep = slt.sweep(model, series, data, half_squares, parts=PARTS, **SHORT)
    found = sweep.to_dataset()
    assert np.isnan(found["llc"].sel(step=20)).all()
    assert np.isfinite(found["llc"].sel(step=10)).all()
    assert all("does not fit" in text for text in found["error"].sel(step=20).to_numpy())


def test_parts_that_are_refused_before_anything_is_estimated():
    model, data, series = states()
    for parts, match in (
        ({}, r"parts: \[\]; expected names"),
        ({"": None}, "expected names"),
        (["weight"], r"parts: \['weight'\]; expected a dict of names and choices"),
        ("weight", "parts: 'weight'; expected a dict of names and choices"),
        ({"a": {"weight": [True, False]}}, "parts: 'a' does not fit Linear: part: for 'weight' a list; expected"),
        ({"a": []}, r"parts: 'a' does not fit Linear: parameters: \[\]; expected a name, a glob"),
        ({"a": 3}, "parts: 'a' does not fit Linear: 3 is no choice; expected masks by name"),
        ({"bad": {"bias": None}}, "parts: 'bad' does not fit Linear: part: 'bias' is no parameter"),
        ({"bad": "layers.*"}, r"parts: 'bad' does not fit Linear: parameters: \['layers.\*'\] matched no parameter"),
    ):
        with pytest.raises(ValueError, match=match):
            slt.sweep(model, series, data, half_squares, parts=parts, **SHORT)
    with pytest.raises(ValueError, match="parameters: beside parts"):
        slt.sweep(model, series, data, half_squares, parts=PARTS, parameters="weight", **SHORT)
