"""Sweeps that are stored: nothing is lost, nothing is done twice, and nothing stale is returned."""

import copy
import errno
import importlib.metadata
import os
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import samplers
import slt
from slt import sweep_work, sweeps
from slt.running import RunningFile
from slt.store import EstimateStore
from tests.slt.full_disk import fill_disk
from tests.slt.models import fitted_regression, half_squares

SHORT = {"num_draws": 40, "num_warmup": 10, "num_chains": 2, "progress": False, "sampler": "mala", "step_size": 0.02}
UNTUNED = {name: value for name, value in SHORT.items() if name not in ("sampler", "step_size")}


def states(count=3):
    """A module, data, and weights by step."""
    model, data, _ = fitted_regression()
    series = {}
    for place in range(count):
        series[10 * (place + 1)] = {name: value * (1 + 0.01 * place) for name, value in model.state_dict().items()}
    return model, data, series


def counted(monkeypatch):
    """The steps that are estimated, from here on."""
    calls = []

    def note(model, *arguments, **options):
        calls.append(float(next(model.parameters()).detach().flatten()[0]))
        return mock.DEFAULT

    # whose own line is in no traceback, where it would be taken for one of the loss
    monkeypatch.setattr(sweep_work, "estimate_llc", mock.Mock(wraps=sweep_work.estimate_llc, side_effect=note))
    return calls


def test_a_finished_estimate_is_never_made_again_and_the_table_is_the_same(tmp_path, monkeypatch):
    model, data, series = states()
    whole = slt.sweep(model, series, data, half_squares, store=tmp_path / "whole", **SHORT)
    calls = counted(monkeypatch)

    # stopped after the second checkpoint
    slt.sweep(model, {step: series[step] for step in (10, 20)}, data, half_squares, store=tmp_path / "cut", **SHORT)
    assert len(calls) == 2
    again = slt.sweep(model, series, data, half_squares, store=tmp_path / "cut", **SHORT)
    assert len(calls) == 3
    for name in ("sweep.csv", "sweep.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for one, other in zip(whole.rows, again.rows, strict=True):
        np.testing.assert_array_equal(one.estimate.trace.loss, other.estimate.trace.loss)
    slt.sweep(model, series, data, half_squares, store=tmp_path / "cut", **SHORT)
    assert len(calls) == 3


def test_autocast_around_a_sweep_changes_nothing():
    model, data, _ = fitted_regression()
    model, data = model.float(), tuple(each.float() for each in data)
    series = {1: copy.deepcopy(model.state_dict())}
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            row = slt.sweep(model, series, data, half_squares, metric="curvature", **SHORT).rows[0]
        assert row.estimate is not None
        found.append((row.estimate.llc, row.estimate.interval))
    assert found[0] == found[1]


def test_whatever_changes_the_number_changes_the_key(tmp_path, monkeypatch):
    model, data, series = states(1)
    x, y = data

    def run(**changed):
        arguments = {"checkpoints": series, "data": data, "loss_fn": half_squares, **changed}
        options = {**SHORT, **{name: arguments.pop(name) for name in tuple(arguments) if name in CHANGED}}
        if "sampler" in changed:  # a kernel has its own step
            options.pop("step_size")
        return slt.sweep(
            model, arguments.pop("checkpoints"), arguments.pop("data"), arguments.pop("loss_fn"), store=tmp_path,
            **arguments, **options,
        )  # fmt: skip

    CHANGED = ("n_beta", "seed", "localization", "metric", "sampler")  # noqa: N806
    run()
    calls = counted(monkeypatch)
    run()
    assert not calls
    moved = {10: {name: value + 1e-7 for name, value in series[10].items()}}
    nudged = x.clone()
    nudged[0, 0] += 1e-7
    changes = [
        {"checkpoints": moved}, {"data": (nudged, y)}, {"loss_fn": lambda model, batch: half_squares(model, batch)},
        {"version": "2"}, {"n_beta": 50.0}, {"seed": 1}, {"localization": 2.0},
        {"metric": torch.full((model.weight.numel(),), 2.0, dtype=x.dtype)}, {"sampler": samplers.mala(0.01)},
        {"sampler": samplers.mala(0.02)},
    ]  # fmt: skip
    for number, change in enumerate(changes, 1):
        run(**change)
        assert len(calls) == number, change
        run(**change)
        assert len(calls) == number, change


def test_a_device_counts_by_its_kind_and_must_have_values(tmp_path, monkeypatch):
    model, data, series = states(1)
    own = slt.sweep(model, series, data, half_squares, store=tmp_path, **SHORT)
    calls = counted(monkeypatch)
    for device in ("cpu", torch.device("cpu")):
        asked = slt.sweep(model, series, data, half_squares, store=tmp_path, device=device, **SHORT)
        assert asked.rows[0].key == own.rows[0].key
    assert not calls
    for wrong in ("meta", "warp"):
        with pytest.raises(ValueError, match=f"device: '{wrong}'"):
            slt.sweep(model, series, data, half_squares, device=wrong, **SHORT)
    with pytest.raises(ValueError, match="parameters: on the meta device"):
        slt.sweep(model.to("meta"), series, data, half_squares, **SHORT)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("metric", ["identity", "curvature"])
def test_another_device_has_another_key_and_the_same_law(tmp_path, metric):
    model, data, series = states(2)
    options = {**SHORT, "num_draws": 400, "metric": metric}
    here = slt.sweep(model, series, data, half_squares, store=tmp_path, **options).rows
    there = slt.sweep(model, series, data, half_squares, store=tmp_path, device="cuda", **options).rows
    moved = slt.sweep(model.to("cuda"), series, data, half_squares, store=tmp_path, **options).rows
    assert [row.key for row in there] == [row.key for row in moved]
    assert not {row.key for row in here} & {row.key for row in there}
    for one, other in zip(here, there, strict=True):
        assert other.estimate.trace.configuration["device"].startswith("cuda")
        assert other.estimate.metric == one.estimate.metric
        assert other.estimate.loss_at_anchor == pytest.approx(one.estimate.loss_at_anchor, rel=1e-12)


def test_the_package_need_not_be_installed(tmp_path, monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", absent)
    model, data, series = states(1)
    (row,) = slt.sweep(model, series, data, half_squares, store=tmp_path, **SHORT).rows
    assert (tmp_path / "estimates" / f"{row.key}.nc").is_file()


def test_a_store_that_is_damaged_in_use_or_cannot_be_written(tmp_path, monkeypatch):
    model, data, series = states(2)
    folder = tmp_path / "store"
    slt.sweep(model, series, data, half_squares, store=folder, **SHORT)
    table = (folder / "sweep.csv").read_bytes()
    first = sorted((folder / "estimates").iterdir())[0]
    first.write_bytes(first.read_bytes()[:1000])
    (folder / "estimates" / "left.partial.nc").write_bytes(b"of a writer that was killed")
    calls = counted(monkeypatch)
    with pytest.warns(UserWarning, match=r"cannot be read .* estimated again"):
        slt.sweep(model, series, data, half_squares, store=folder, **SHORT)
    assert len(calls) == 1
    assert (folder / "sweep.csv").read_bytes() == table
    assert not list((folder / "estimates").glob("*partial*"))

    with EstimateStore(folder), pytest.raises(ValueError, match="in use by another process"):
        slt.sweep(model, series, data, half_squares, store=folder, **SHORT)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match="cannot be written"):
        slt.sweep(model, series, data, half_squares, store=tmp_path / "file", **SHORT)


def test_a_table_that_no_sweep_wrote_is_written_anew(tmp_path):
    model, data, series = states(2)
    slt.sweep(model, series, data, half_squares, store=tmp_path, **SHORT)
    table = (tmp_path / "sweep.json").read_text()
    for text in ("[1, 2]", "3", "null", "{", '[{"step": 10, "path": "step 10", "part": ""}]', '[{"step": []}]'):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(ValueError, match=r"sweep\.json' is not what a sweep wrote"):
            slt.load_sweep(tmp_path)
        slt.sweep(model, series, data, half_squares, store=tmp_path, **SHORT)
        assert (tmp_path / "sweep.json").read_text() == table


def test_a_full_disk_ends_the_sweep_and_loses_nothing_that_was_finished(tmp_path, monkeypatch):
    model, data, series = states()
    slt.sweep(model, {10: series[10]}, data, half_squares, store=tmp_path, **SHORT)
    table = (tmp_path / "sweep.csv").read_bytes()

    fill_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        slt.sweep(model, series, data, half_squares, store=tmp_path, **SHORT)
    assert len(list((tmp_path / "estimates").iterdir())) == 1
    assert (tmp_path / "sweep.csv").read_bytes() == table


def test_one_law_for_the_whole_series():
    model, data, series = states(2)
    sweep = slt.sweep(
        model, series, data, half_squares, sampler="sgld", batch_size=10, calibrate_on=[10, 20], **UNTUNED
    )
    assert len({row.estimate.step_size for row in sweep.rows}) == 1
    assert "step 10, step 20" in sweep.law
    sweep = slt.sweep(model, series, data, half_squares, metric="curvature", **UNTUNED)
    assert {row.estimate.metric for row in sweep.rows} == {"curvature"}
    assert len({row.estimate.config["metric"][1] for row in sweep.rows}) == 1
    assert {row.estimate.sampler for row in sweep.rows} == {"hmc"}
    assert "step 20" in sweep.law
    assert "step 10" in slt.sweep(model, series, data, half_squares, calibrate_on=10, **UNTUNED).law
    for wrong, told in (([40], r"\[40\]"), (40, r"\[40\]"), ([], r"\[\]"), (1.5, r"\[1.5\]"), ("20", r"\['2', '0'\]")):
        with pytest.raises(ValueError, match=rf"calibrate_on: {told}; expected a step among \[10, 20\]"):
            slt.sweep(model, series, data, half_squares, calibrate_on=wrong, **UNTUNED)
    with pytest.raises(FileNotFoundError, match="empty mapping"):
        slt.sweep(model, {}, data, half_squares, **UNTUNED)


def test_the_configuration_tells_what_was_found_for_the_series_from_what_was_asked_for(tmp_path, monkeypatch):
    model, data, series = states(2)

    def why(sweep, place=0):
        return {name: reason for name, (_, reason) in sweep.rows[place].estimate.config.items()}

    options = {**UNTUNED, "metric": "curvature", "batch_size": 10}
    sweep = slt.sweep(model, series, data, half_squares, calibrate_on=[10, 20], **options)
    found = why(sweep)
    where = "found for the series at step 10, step 20: "
    assert found["sampler"] == f"{where}minibatches were asked for"
    assert found["step_size"].startswith("in a metric of each matrix of weights")  # at each checkpoint, as all of it
    assert found["metric"] == f"{where}the mean of the Hessian's diagonals"
    assert found["num_draws"] == found["batch_size"] == "asked for"
    assert where in sweep.rows[0].estimate.summary()
    found = why(slt.sweep(model, series, data, half_squares, sampler="sgld", calibrate_on=[10, 20], **UNTUNED))
    assert found["sampler"] == "asked for"
    assert found["step_size"] == f"{where}predicted discretisation bias of 2% of λ̂, the smallest of 2"
    asked = slt.sweep(model, series, data, half_squares, calibrate_on=10, **SHORT)
    assert why(asked)["sampler"] == asked.law == "asked for"

    # where it was found is no part of what is estimated, and stays as it was
    first = slt.sweep(model, series, data, half_squares, store=tmp_path, **UNTUNED)
    assert why(first)["sampler"].startswith("found for the series at step 20: full-data gradients are affordable")
    save_file(series[20], tmp_path / "elsewhere.safetensors")
    calls = counted(monkeypatch)
    again = slt.sweep(
        model, {**series, 20: tmp_path / "elsewhere.safetensors"}, data, half_squares, store=tmp_path, **UNTUNED
    )
    assert not calls
    assert "elsewhere" in again.law
    assert slt.load_sweep(tmp_path).law == again.law
    assert [row.estimate.config for row in again.rows] == [row.estimate.config for row in first.rows]
    assert [row.estimate.config for row in slt.load_sweep(tmp_path).rows] == [row.estimate.config for row in first.rows]


def test_what_no_checkpoint_can_do_is_told_at_once_and_what_one_cannot_in_its_row(monkeypatch):
    model, data, series = states()
    calls = counted(monkeypatch)
    for wrong, told in (
        ({"num_draws": 0}, "num_draws: 0"), ({"sampler": "nuts"}, "sampler: 'nuts'"), ({"engine": "fast"}, "engine"),
        ({"localization": -1.0, "metric": "curvature"}, "localization: -1"), ({"parameters": "head"}, "'head'"),
        ({"sampler": "auto", "step_size": None, "batch_size": 0}, "batch_size: 0"),
    ):  # fmt: skip
        calls.clear()
        with pytest.raises(ValueError, match=told):
            slt.sweep(model, series, data, half_squares, **{**SHORT, **wrong})
        assert len(calls) <= 1, wrong
    # of no checkpoint but its own: weights that are no numbers, also where all are such
    broken = {name: value * np.nan for name, value in series[10].items()}
    for options in (SHORT, UNTUNED, {**SHORT, "metric": "curvature"}):
        rows = slt.sweep(model, {**series, 10: broken}, data, half_squares, **options).rows
        assert [row.estimate is None for row in rows] == [True, False, False], options
        assert "WeightsError: loss_fn: " in rows[0].error
        with pytest.warns(UserWarning, match="no checkpoint of 1 has"):
            rows = slt.sweep(model, {10: broken}, data, half_squares, **options).rows
        assert rows[0].error.startswith("WeightsError"), options

    def refused_at_one(model, batch):
        if torch.equal(next(model.parameters()), series[20]["weight"]):
            raise ValueError("not at these")
        return half_squares(model, batch)

    rows = slt.sweep(model, series, data, refused_at_one, engine="in_place", **SHORT).rows
    assert [row.error for row in rows] == ["", "ValueError: not at these", ""]


@pytest.mark.parametrize(
    ("error", "options"),
    [(IndexError, SHORT), (AssertionError, SHORT), (TypeError, {**SHORT, "metric": "curvature"})],
    ids=["IndexError", "AssertionError", "TypeError in the curvature metric"],
)
def test_whatever_a_loss_raises_at_one_checkpoint_is_in_its_row(error, options):
    model, data, series = states()

    def refused(*wrong):
        def loss(model, batch):
            if any(torch.equal(next(model.parameters()), series[step]["weight"]) for step in wrong):
                raise error("at these")
            return half_squares(model, batch)

        return loss

    for wrong in (20, 30):
        rows = slt.sweep(model, series, data, refused(wrong), engine="in_place", **options).rows
        assert [row.step for row in rows if row.estimate is None] == [wrong]
        assert error.__name__ in next(row.error for row in rows if row.step == wrong)
    with pytest.raises(error, match="at these"):  # none has an estimate
        slt.sweep(model, series, data, refused(10, 20, 30), engine="in_place", **options)


def test_steps_paths_and_state_dicts_that_were_not_copied(tmp_path):
    model, data, series = states(1)
    save_file(series[10], tmp_path / "a.safetensors")
    changed = {name: value + 0.5 for name, value in series[10].items()}
    model.load_state_dict(changed)
    sweep = slt.sweep(model, {5: tmp_path / "a.safetensors", 7: model.state_dict()}, data, half_squares, **SHORT)
    losses = [row.estimate.loss_at_anchor for row in sweep.rows]
    assert losses[0] < losses[1]  # each of its own weights
    for name in ("step-5.safetensors", "step-05.safetensors"):
        save_file(series[10], tmp_path / name)
    with pytest.raises(ValueError, match="both of step 5"):
        slt.sweep(model, tmp_path / "step*", data, half_squares, **SHORT)
    with pytest.raises(ValueError, match="'10' among the steps"):
        slt.sweep(model, {"10": series[10]}, data, half_squares, **SHORT)


def test_what_is_no_model_or_no_checkpoint_is_named():
    model, data, series = states(1)
    for wrong, told in (
        ({1: None}, "NoneType at step 1; expected a path"), ({1: model}, "Linear at step 1; expected"),
        ({1: {"weight": [1, 2]}}, "list under 'weight' at step 1"), ({1: {"model": series[10]}}, "dict under 'model'"),
        ({True: series[10]}, "True among the steps"), (None, "None; expected a glob"), ([3], "3; expected a glob"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"checkpoints: {told}"):
            slt.sweep(model, wrong, data, half_squares, **SHORT)
    with pytest.raises(ValueError, match="model: function; expected a torch.nn.Module"):
        slt.sweep(lambda batch: batch, series, data, half_squares, **SHORT)
    (row,) = slt.sweep(model, {np.int64(3): series[10]}, data, half_squares, seed=np.int64(1), **SHORT).rows
    assert row.step == 3
    assert type(row.step) is int


def test_the_text_of_an_error_is_one_line_of_the_table():
    model, data, series = states(2)

    def refused(model, batch):
        if torch.equal(next(model.parameters()), series[20]["weight"]):
            raise RuntimeError("of rank 0:\n  no such file")
        return half_squares(model, batch)

    sweep = slt.sweep(model, series, data, refused, engine="in_place", **SHORT)
    assert sweep.rows[1].error == "RuntimeError: of rank 0: no such file"
    assert len(sweep.table().splitlines()) == 3


@pytest.mark.parametrize("parts", [None, {"whole": None, "by name": "weight"}])
def test_a_sweep_without_any_estimate_is_warned_of_once(tmp_path, monkeypatch, parts):
    model, data, series = states()

    def refused(model, batch):
        raise RuntimeError("of rank 0:\n  no such file.")

    with pytest.warns(UserWarning, match="no checkpoint of 3 has an estimate") as warned:
        sweep = slt.sweep(model, series, data, refused, parts=parts, store=tmp_path, **SHORT)
    assert [row.estimate for row in sweep.rows] == [None] * len(sweep.rows)
    (told,) = warned
    assert told.filename == __file__
    where = "step 10, part 'whole'" if parts else "step 10"
    for named in (f"The first error, at {where}: RuntimeError: of rank 0: no such file. Look", "loss_fn can be called"):
        assert named in str(told.message)

    honest = sweeps._Table.add

    def stops(self, row):
        honest(self, row)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps._Table, "add", stops)  # warnings are errors here
    assert slt.sweep(model, series, data, refused, parts=parts, store=tmp_path, **SHORT).interrupted


def test_names_with_steps_and_names_without_are_refused_together(tmp_path):
    model, data, series = states(1)
    for name in ("mm-10.pt", "mm-1000.pt", "final.pt", "last.pt"):
        torch.save(series[10], tmp_path / name)
    with pytest.raises(
        ValueError, match=r"final\.pt' has no step .*mm-10\.pt' has step 10\. Leave it out, or give a map"
    ):
        slt.sweep(model, [*tmp_path.glob("mm*"), tmp_path / "final.pt"], data, half_squares, **SHORT)
    places = slt.sweep(model, [tmp_path / "final.pt", tmp_path / "last.pt"], data, half_squares, **SHORT).to_dataset()
    assert places["step"].to_numpy().tolist() == [0, 1]  # where none has one


def test_a_name_with_numbers_but_no_step_is_warned_of(tmp_path):
    model, data, series = states(1)
    for name in ("a2v1.pt", "a10v1.pt"):
        torch.save(series[10], tmp_path / name)
    with pytest.warns(UserWarning, match=r"no step can be read in the names of the 2, such as '.*a2v1\.pt'"):
        slt.sweep(model, tmp_path / "*.pt", data, half_squares, **SHORT)


@pytest.mark.parametrize("kind", [ValueError, AssertionError, KeyError])
def test_a_loss_that_fails_at_the_first_checkpoint_alone_has_a_row_there(kind):
    model, data, series = states()
    first = float(next(iter(series[10].values())).flatten()[0])

    def loss(model, batch):
        if float(next(model.parameters()).detach().flatten()[0]) == first:
            raise kind("a parameter of a distribution is not positive")
        return half_squares(model, batch)

    rows = slt.sweep(model, series, data, loss, engine="in_place", **SHORT).rows
    assert [row.estimate is None for row in rows] == [True, False, False]
    assert kind.__name__ in rows[0].error
    with pytest.raises(kind, match="not positive"):
        slt.sweep(model, {10: series[10]}, data, loss, engine="in_place", **SHORT)


def test_an_estimate_that_could_not_be_kept_is_not_made_from_the_beginning_again(tmp_path, monkeypatch):
    """A full disk between the end of a run and the file of its estimate: the running file is still there."""
    model, data, series = states(1)

    options = {**SHORT, "num_draws": 2000, "save_every": 1e-6}
    with monkeypatch.context() as patched:
        patched.setattr(EstimateStore, "save", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            slt.sweep(model, series, data, half_squares, store=tmp_path, **options)
    kept = [path for path in (tmp_path / "running").iterdir() if path.suffix != ".lock"]
    assert len(kept) == 1
    restored, honest = [], RunningFile.restore
    monkeypatch.setattr(RunningFile, "restore", lambda self, run: restored.append(honest(self, run)) or restored[-1])
    slt.sweep(model, series, data, half_squares, store=tmp_path, **options)
    assert restored == [True]
    assert not list((tmp_path / "running").iterdir())


def test_a_name_that_is_no_text_is_in_the_table_too(tmp_path):
    model, data, series = states(1)
    name = os.fsdecode(bytes(tmp_path / "step-1-") + b"\xff.pt")
    try:
        torch.save(series[10], name)
    except (OSError, RuntimeError):
        pytest.skip("the file system takes no such name")
    sweep = slt.sweep(model, [name], data, half_squares, store=tmp_path / "store", **SHORT)
    assert sweep.rows[0].estimate is not None
    assert slt.load_sweep(tmp_path / "store").rows[0].path == name


def cut_after_a_row(monkeypatch):
    honest, calls = sweeps._Table.add, []

    def once(self, row):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        honest(self, row)

    monkeypatch.setattr(sweeps._Table, "add", once)


def test_a_resume_that_is_killed_does_not_shrink_the_table(tmp_path, monkeypatch):
    model, data, series = states()
    slt.sweep(model, series, data, half_squares, store=tmp_path, **SHORT)
    table = (tmp_path / "sweep.csv").read_bytes()
    cut_after_a_row(monkeypatch)
    assert slt.sweep(model, series, data, half_squares, store=tmp_path, **SHORT).interrupted
    assert (tmp_path / "sweep.csv").read_bytes() == table


def other_loss(model, batch):
    return 16 * half_squares(model, batch)


@pytest.mark.parametrize("change", ["loss", "data", "metric", "weights"])
def test_a_table_that_was_cut_holds_no_rows_of_another_series(tmp_path, monkeypatch, change):
    """nβ and γ being the same: one curve would be of two losses, data sets, laws, or trainings."""
    model, data, series = states()
    paths = [tmp_path / f"step-{step}.pt" for step in series]
    for path, state in zip(paths, series.values(), strict=True):
        torch.save(state, path)

    def swept(data=data, loss=half_squares, **options):
        return slt.sweep(model, paths, data, loss, store=tmp_path / "store", **SHORT, **options)

    swept()
    with monkeypatch.context() as patched:
        cut_after_a_row(patched)
        if change == "weights":
            for path, state in zip(paths, series.values(), strict=True):
                torch.save({name: 1.1 * value for name, value in state.items()}, path)
            swept()
        else:
            other = {"loss": {"loss": other_loss}, "data": {"data": tuple(2 * each for each in data)}}
            swept(**other.get(change, {"metric": "curvature"}))
    assert len(slt.load_sweep(tmp_path / "store").rows) == 1
    swept()
    assert len(slt.load_sweep(tmp_path / "store").rows) == 3
    with monkeypatch.context() as patched:
        cut_after_a_row(patched)
        swept()
    assert len(slt.load_sweep(tmp_path / "store").rows) == 3  # and of the same one all of them


def test_looks_of_a_series_are_in_one_metric_and_without_pairs(monkeypatch):
    """As its rows are sampled by the step that is found: another metric has other units, and pairs less noise."""
    model, data, series = states()
    honest, looked = slt.series.estimate_llc, []

    def noted(*arguments, **options):
        looked.append(options)
        return honest(*arguments, **options)

    monkeypatch.setattr(slt.series, "estimate_llc", noted)
    few = {**UNTUNED, "sampler": "sgld", "metric": "curvature", "batch_size": 20}
    slt.sweep(model, series, data, half_squares, calibrate_on=[10, 30], **few)
    assert [options["control_variates"] for options in looked] == [False, False]
    assert looked[0]["metric"] is looked[1]["metric"]


def test_a_table_holds_rows_of_one_law(tmp_path, monkeypatch):
    """A sweep at another nβ in the same store, cut after its first row, is not drawn on with rows of the first."""
    model, data, series = states()
    slt.sweep(model, series, data, half_squares, store=tmp_path, n_beta=20.0, **SHORT)
    with monkeypatch.context() as patched:
        cut_after_a_row(patched)
        assert slt.sweep(model, series, data, half_squares, store=tmp_path, n_beta=40.0, **SHORT).interrupted
    assert [row.estimate.n_beta for row in slt.load_sweep(tmp_path).rows] == [40.0]
    slt.sweep(model, series, data, half_squares, store=tmp_path, n_beta=20.0, **SHORT)
    assert [row.estimate.n_beta for row in slt.load_sweep(tmp_path).rows] == [20.0] * 3


def test_the_data_set_has_every_row_and_failures_are_not_numbers():
    model, data, series = states()
    series[20] = {"other": torch.ones(2)}
    sweep = slt.sweep(model, series, data, half_squares, **SHORT)
    found = sweep.to_dataset()
    assert found["step"].to_numpy().tolist() == [10, 20, 30]
    assert np.isnan(found["llc"].to_numpy()).tolist() == [False, True, False]
    assert "does not fit" in str(found["error"].to_numpy()[1])
    assert found.attrs["n_beta"] == sweep.rows[0].estimate.n_beta
    assert sweep.stages() == []
    assert float(found["low"][0]) <= float(found["llc"][0]) <= float(found["high"][0])
