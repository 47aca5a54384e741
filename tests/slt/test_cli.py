"""The command line, as a user types it."""

import functools
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

import slt
from slt.cli import OPTIONS, load_task, main, whole
from tests.jobs import UNTRAINED

TASK = (
    UNTRAINED
    + """
def exact():
    from slt import known
    case = known.case("poly_x4+y2")
    return slt.Task(case.build(), None, case.loss_fn)

def of_its_options():
    return task()._replace(options={"n": 5000, "parameters": "weight", "num_chains": 2})

def that_prints():
    print("made")
    one = task()
    def loss_fn(model, batch):
        print("called")
        return one.loss_fn(model, batch)
    return one._replace(loss_fn=loss_fn)

def with_a_defect():
    raise RuntimeError("a defect")

def not_a_task():
    return 3

def leaves():
    raise SystemExit(0)

def no_key():
    return {}["zz"]
"""
)
FEW = ["--sampler", "mala", "--num-draws", "300", "--num-warmup", "100", "--localization", "2", "--step-size", "0.03"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(TASK)
    namespace: dict = {}
    exec(TASK, namespace)
    task = namespace["task"]()
    x, y = task.data
    with torch.no_grad():
        task.model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    save_file(task.model.state_dict(), tmp_path / "step-1.safetensors")
    torch.save(task.model.state_dict(), tmp_path / "step-2.pt")
    return tmp_path


def test_lambda_and_its_multiplicity(folder, capsys):
    few = ["--radius", "0.5", "--budget", "1500000"]
    assert main(["rlct", "job.py:exact", *few, "--plot", "curve.png"]) in (0, 3)
    out = capsys.readouterr().out
    assert out.startswith("RLCT 0.7")
    assert "radius 0.5" in out
    assert (folder / "curve.png").stat().st_size > 10_000
    assert main(["rlct", "job.py:exact", *few, "--json"]) in (0, 3)
    record = json.loads(capsys.readouterr().out)
    assert abs(record["rlct"] - 0.75) < 0.01
    assert len(record["curve"]["llc"]) == len(record["curve"]["n_beta"])
    assert main(["rlct", "job.py:exact", "--radius", "-1"]) == 2
    assert "radius: -1.0" in capsys.readouterr().err


def test_lambda_of_what_the_task_says(folder, monkeypatch):
    """What of its options is of the question; the flags before it; and not how estimate_llc would go about it."""
    asked = []

    def noted(*arguments, **options):
        asked.append(options)
        raise ValueError("noted")

    monkeypatch.setattr("slt.rlct.estimate_rlct", noted)
    assert main(["rlct", "job.py:of_its_options"]) == 1
    assert main(["rlct", "job.py:of_its_options", "--n", "70", "--seed", "3"]) == 1
    assert asked == [{"n": 5000, "parameters": "weight"}, {"n": 70, "parameters": "weight", "seed": 3}]


def test_minibatches_beside_the_anchors(folder, capsys):
    few = [
        "--checkpoint",
        "step-1.safetensors",
        "--sampler",
        "sgld",
        "--step-size",
        "1e-3",
        "--num-draws",
        "100",
        "--json",
    ]
    for option, pairs in (("--control-variates", True), ("--no-control-variates", False)):
        assert main(["estimate", "job.py:task", *few, option]) in (0, 3)
        assert json.loads(capsys.readouterr().out)["config"]["control_variates"] == [pairs, "asked for"]
    assert main(["estimate", "job.py:task", *FEW, "--control-variates"]) == 2
    assert "mala takes full data" in capsys.readouterr().err


def test_a_metric(folder, capsys):
    assert main(["estimate", "job.py:task", "--checkpoint", "step-1.safetensors", *FEW, "--metric", "curvature"]) == 0
    assert "γ 2 (curvature metric)" in capsys.readouterr().out
    assert main(["estimate", "job.py:task", "--metric", "fisher"]) == 2
    assert "metric: 'fisher'" in capsys.readouterr().err


def test_estimate(folder, capsys):
    arguments = ["estimate", "job.py:task", "--checkpoint", "step-1.safetensors", *FEW]
    assert main([*arguments, "--save", "e.nc", "--plot", "e.png", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("LLC 1.")
    assert "healthy" in out
    assert repr(slt.load_estimate(folder / "e.nc")) == out.splitlines()[0]
    assert (folder / "e.png").stat().st_size > 10_000
    assert main([*arguments, "--json", "--seed", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["llc"] == pytest.approx(slt.load_estimate(folder / "e.nc").llc)
    assert main(["plot", "e.nc", "--out", "again.png"]) == 0
    assert (folder / "again.png").exists()
    assert main(["plot", "e.nc", "--kind", "ranks", "--out", "ranks.png"]) == 0
    assert (folder / "ranks.png").stat().st_size > 10_000
    assert main(["plot", "e.nc", "--kind", "temperatures"]) == 2
    assert "expected one by replica exchange" in capsys.readouterr().err
    assert main(["plot", "e.nc", "--axis", "log"]) == 2
    assert "--axis: of steps, which 'e.nc', an estimate, has none of" in capsys.readouterr().err


def test_what_a_task_prints_is_no_part_of_the_result(folder, capsys):
    assert main(["estimate", "job.py:that_prints", "--checkpoint", "step-2.pt", *FEW, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["sampler"] == "mala"
    assert "made" in told.err
    assert "called" in told.err


def test_whole_numbers_as_the_calls_take_them(folder, capsys):
    assert main(["estimate", "job.py:task", "--checkpoint", "step-2.pt", *FEW, "--n", "1e5", "--json"]) in (0, 3)
    assert json.loads(capsys.readouterr().out)["n"] == 100_000
    for wrong in ("1.5", "many", "inf", "nan"):
        with pytest.raises(SystemExit) as ended:
            main(["estimate", "job.py:task", "--n", wrong])
        assert ended.value.code == 2
        assert f"argument --n: '{wrong}'; expected a whole number, such as 100000 or 1e5." in capsys.readouterr().err


def test_an_error_of_the_tasks_own_code_keeps_its_traceback(folder, capsys):
    with pytest.raises(RuntimeError, match="a defect"):
        main(["estimate", "job.py:with_a_defect"])
    assert main(["estimate", "job.py:no_key"]) == 1  # a kind of error that a refusal may have too
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert 'return {}["zz"]' in told
    assert main(["estimate", "job.py:leaves"]) == 1  # with the status of success
    assert "the task's own code ended the program" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["estimate", "--help"])
    assert "1 an error in the task's own code, with its traceback" in " ".join(capsys.readouterr().out.split())


def test_a_named_problem_has_an_exit_status(folder, capsys):
    assert main(["estimate", "job.py:task", *FEW]) == 3  # the untrained network is not at a minimum
    assert "not_at_a_minimum" in capsys.readouterr().out


def test_sweep(folder, capsys):
    (folder / "step-3.pt").write_text("broken")
    assert main(["sweep", "job.py:task", "step-*", *FEW, "--save", "s.csv", "--plot", "s.png"]) == 3
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["1", "2", "3"]
    assert len((folder / "s.csv").read_text().splitlines()) == 4
    assert (folder / "s.png").exists()
    assert main(["sweep", "job.py:task", "step-1*", "step-2*", *FEW, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    parts = ["--parts", "whole", "weight", "--store", "kept"]
    assert main(["sweep", "job.py:task", "step-1*", *FEW, *parts]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["whole", "weight"]
    assert main(["plot", "kept", "--out", "parts.png"]) == 0
    assert (folder / "parts.png").stat().st_size > 10_000
    assert capsys.readouterr().out.splitlines()[1].startswith("whole ")
    assert main(["plot", "kept", "--kind", "ranks"]) == 2
    assert "--kind: 'ranks' is of an estimate, and 'kept' a sweep" in capsys.readouterr().err


def test_a_sweep_that_is_interrupted_before_its_first_row_leaves_the_files_of_an_earlier_one(
    folder, capsys, monkeypatch
):
    monkeypatch.setattr("slt.sweeps.sweep", lambda *arguments, **options: slt.Sweep((), interrupted=True))
    for name in ("s.csv", "s.png"):
        (folder / name).write_text("earlier")
    assert main(["sweep", "job.py:task", "step-*", *FEW, "--save", "s.csv", "--plot", "s.png"]) == 130
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "slt: interrupted before the first row was finished; no file is written\n"
    assert {(folder / name).read_text() for name in ("s.csv", "s.png")} == {"earlier"}


def test_an_interrupted_rlct_says_that_nothing_is_kept(folder, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("slt.rlct.estimate_rlct", interrupted)
    assert main(["rlct", "job.py:task"]) == 130
    assert capsys.readouterr().err == "slt: interrupted; nothing is kept but what was printed or written before\n"


def test_the_axis_of_steps(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr("slt.plots.save_figure", lambda axes, path: drawn.append(axes[1].get_xscale()))
    arguments = ["sweep", "job.py:task", "step-*", *FEW, "--store", "kept", "--plot", "s.png"]
    for axis in ([], ["--axis", "linear"], ["--axis", "log"]):
        assert main([*arguments, *axis]) == 0
        assert main(["plot", "kept", *axis]) == 0
    assert drawn == ["linear"] * 4 + ["symlog"] * 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["estimate", "missing.py:task"], "'missing.py' does not exist"),
        (["estimate", "job.py"], "FILE.py:FUNCTION"),
        (["estimate", "job.py:other"], "no function 'other'"),
        (["estimate", "job.py:not_a_task"], "returned int"),
        (["estimate", "job.py:task", "--checkpoint", "missing.pt"], "does not exist"),
        (["estimate", "job.py:task", "--n-beta", "0"], "n_beta: 0"),
        (["estimate", "job.py:task", "--parameters", "head.*"], "head"),
        (["sweep", "job.py:task", "nothing-*"], "matched nothing"),
        (["validate", "--cases", "nonsense"], "name: 'nonsense'"),
        (["validate", "--family", "cubic"], "family: 'cubic'"),
        (["validate", "--quick", "--family", "tanh"], "--quick"),
        (["validate", "--family", "tanh", "--cases", "quadratic"], "--family: beside --cases"),
        (["validate", "--family", "mixture"], "bounded support"),
        (["validate", "--cases", "nmf_222_zero"], "bounded support"),
        (["validate", "--cases", "quadratic", "--seeds", "0"], "--seeds: 0"),
        (
            ["plot", "missing.nc"],
            "'missing.nc' is neither a file that slt estimate --save wrote nor the folder of slt sw",
        ),
        (
            ["report", "missing"],
            "'missing' is neither a file that slt estimate --save wrote nor the folder of slt sweep",
        ),
        (["estimate", "job.py:task", "--save", "nowhere/e.nc"], "folder that does not exist"),
        (["estimate", "job.py:task", "--save", "."], "--save: '.' is a folder; expected the name of a file"),
        (["estimate", "job.py:task", "--save-to", "."], "--save-to: '.' is a folder; expected the name of a file"),
        (["estimate", "job.py:task", "--plot", "e.xyz"], ".png"),
        (["sweep", "job.py:task", "step-*", "--save", "out.txt"], ".csv"),
        (["sweep", "job.py:task", "step-*", "--axis", "linear"], "--axis: 'linear' without --plot"),
        (["sweep", "job.py:task", "step-*", "--parts", "heads"], "no layer with q_proj"),
        (["sweep", "job.py:task", "step-*", "--parts", "head.*"], "'head.*' does not fit Linear"),
        (["sweep", "job.py:task", "step-*", "typo-5.pt"], "'typo-5.pt' matched nothing"),
    ],
)
def test_refusals_are_one_line(folder, capsys, arguments, match):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("slt: ")
    assert match in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_drawn(folder, capsys, monkeypatch):
    monkeypatch.setattr("slt.cli.load_task", lambda target: pytest.fail("the task was loaded"))
    assert main(["estimate", "job.py:task", "--save", "/proc/e.nc"]) == 2
    assert "--save: '/proc/e.nc' is in a folder that cannot be written to (" in capsys.readouterr().err


def test_what_is_printed_in_vain_is_saved_and_drawn(folder):
    """To a pipe that nobody reads, and to a stream that has no λ: the exit status is that of the result."""
    command = [sys.executable, "-m", "slt", "estimate", "job.py:task", "--checkpoint", "step-1.safetensors", *FEW]
    read, written = os.pipe()
    os.close(read)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    closed = subprocess.run(
        [*command, "--save", "pipe.nc", "--plot", "pipe.png"], stdout=written, stderr=subprocess.PIPE, text=True,
        check=False, env=environment,
    )  # fmt: skip
    os.close(written)
    assert (closed.returncode, closed.stderr) == (0, "")
    assert (folder / "pipe.png").stat().st_size > 10_000
    other = subprocess.run(
        [*command, "--save", "latin.nc"], capture_output=True, check=False,
        env={**environment, "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert (other.returncode, other.stderr) == (0, b"")
    assert b"?" in other.stdout
    assert slt.load_estimate(folder / "latin.nc").llc == slt.load_estimate(folder / "pipe.nc").llc


def test_a_result_that_cannot_be_written_is_printed(folder, capsys, monkeypatch):
    full = mock.Mock(side_effect=OSError("No space left on device"))  # whose line in a traceback is of no task
    monkeypatch.setattr("slt.plots.save_figure", full)
    arguments = ["estimate", "job.py:task", "--checkpoint", "step-1.safetensors", *FEW]
    assert main([*arguments, "--save", "e.nc", "--plot", "e.png"]) == 2
    told = capsys.readouterr()
    assert told.out.startswith("LLC 1.")
    assert told.err == "slt: No space left on device\n"
    assert (folder / "e.nc").is_file()


LOSS = "    return 0.5 * (model(batch[0]) - batch[1]).square().squeeze(-1)"


@pytest.mark.parametrize("name", ["random", "samplers", "calendar", "torch.job", "job"])
def test_an_edit_of_the_task_makes_another_estimate_whatever_the_file_is_called(folder, capsys, name):
    """Not the one that the store has, as where its functions are taken for those of a library."""
    path = folder / f"{name}.py"
    keys = set()
    for scale in ("1", "3"):
        path.write_text(f"SCALE = {scale}\n{TASK}\ndef own(model, batch):\n{LOSS} * SCALE\n\ndef of_own():\n"
                        "    return task()._replace(loss_fn=own)\n")  # fmt: skip
        assert main(["sweep", f"{name}.py:of_own", "step-1*", *FEW, "--store", "kept", "--json"]) in (0, 3)
        keys.add(json.loads(capsys.readouterr().out)[0]["key"])
    assert len(keys) == 2
    task = load_task(f"{name}.py:of_own")
    assert pickle.loads(pickle.dumps(task.loss_fn)) is task.loss_fn


def test_validate_one_case_as_a_table_a_figure_and_json(folder, capsys, monkeypatch):
    short = functools.partial(slt.known.validate, num_draws=500, num_warmup=100)
    monkeypatch.setattr(slt.known, "validate", short)
    assert main(["validate", "--cases", "poly_regular3", "--plot", "validate.png"]) == 0
    out = capsys.readouterr().out
    assert "1 rows, 1 healthy" in out
    assert (folder / "validate.png").stat().st_size > 10_000
    assert main(["validate", "--cases", "poly_regular3", "--seeds", "2", "--json"]) == 0  # one row for each seed
    record = json.loads(capsys.readouterr().out)
    assert len(record["rows"]) == 2
    assert record["summary"]["coverage"] == sum(row["covered"] for row in record["rows"]) / 2
    assert {row["seed"] for row in record["rows"]} == {0, 1}


def test_an_interrupt_ends_a_validation_at_once_and_keeps_the_rows_before(folder, capsys, monkeypatch):
    calls, estimate_llc = [], slt.estimate_llc

    def interrupted(*arguments, **options):
        calls.append(options["seed"])
        if options["seed"] < 2:
            return estimate_llc(*arguments, **options, num_draws=500, num_warmup=100)
        estimate = estimate_llc(*arguments, **options, num_draws=20, num_warmup=10)
        return replace(estimate, trace=replace(estimate.trace, interrupted=True))

    monkeypatch.setattr(sys.modules["slt.known.validate"], "estimate_llc", interrupted)
    arguments = ["validate", "--cases", "poly_regular3", "--seeds", "4"]
    assert main([*arguments, "--json", "--plot", "validate.png"]) == 130
    told = capsys.readouterr()
    assert [row["seed"] for row in json.loads(told.out)["rows"]] == [0, 1]
    assert told.err.startswith("slt: interrupted; the row that was not finished")
    assert calls == [0, 1, 2]
    assert (folder / "validate.png").stat().st_size > 10_000


def test_an_interrupt_of_the_first_row_leaves_nothing(folder, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["slt.known.validate"], "estimate_llc", interrupted)
    assert main(["validate", "--quick", "--plot", "validate.png"]) == 130
    assert not (folder / "validate.png").exists()
    told = capsys.readouterr()
    assert told.err == "slt: interrupted before the first row was finished; no file is written\n"


def test_the_installed_command(folder):
    result = subprocess.run(
        [sys.executable, "-m", "slt", "estimate", "job.py:task", "--checkpoint", "step-2.pt", *FEW],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("LLC")
    assert "sampling" not in result.stderr  # no progress bar where there is no terminal


def test_every_flag_reaches_its_call(folder, monkeypatch):
    asked = []

    def noted(*arguments, **options):
        asked.append(options)
        raise ValueError("noted")

    for call in ("slt.llc.estimate_llc", "slt.sweeps.sweep", "slt.rlct.estimate_rlct"):
        monkeypatch.setattr(call, noted)
    texts = {whole: "7", float: "0.5", str: "cpu"}
    given = [part for name, kind, _ in OPTIONS for part in (f"--{name.replace('_', '-')}", texts[kind])]
    main(["estimate", "job.py:task", *given, "--parameters", "weight"])
    main(["sweep", "job.py:task", "step-*", *given, "--calibrate-on", "1", "2", "--version", "2", "--store", "kept"])
    main(["rlct", "job.py:task", "--radius", "0.5", "--budget", "1e6", "--n", "9", "--seed", "3", "--parameters", "w*"])
    every = {name: kind(texts[kind]) for name, kind, _ in OPTIONS}
    assert asked == [
        {**every, "parameters": ["weight"], "process_group": None},
        {**every, "parts": None, "store": "kept", "calibrate_on": [1, 2], "version": "2"},
        {"radius": 0.5, "budget": 1_000_000, "n": 9, "seed": 3, "parameters": ["w*"]},
    ]


def test_a_healthy_row_outside_its_bound_ends_a_validation_with_one(folder, capsys, monkeypatch):
    """Off by nine errors: within the bound of four where the honest estimate is five off, in one run of a million."""
    honest = slt.estimate_llc

    def off(*arguments, **options):
        found = honest(*arguments, **options, num_draws=500, num_warmup=100)
        return replace(found, llc=found.llc + 9 * found.mcse)

    monkeypatch.setattr(sys.modules["slt.known.validate"], "estimate_llc", off)
    assert main(["validate", "--cases", "poly_regular3"]) == 1
    assert "OUTSIDE ITS BOUND" in capsys.readouterr().out


def test_an_interrupted_estimate_is_kept_printed_and_ends_with_130(folder, capsys, monkeypatch):
    honest = slt.estimate_llc

    def interrupted(*arguments, **options):
        found = honest(*arguments, **options)
        return replace(found, trace=replace(found.trace, interrupted=True))

    monkeypatch.setattr("slt.llc.estimate_llc", interrupted)
    arguments = ["estimate", "job.py:task", "--checkpoint", "step-1.safetensors", *FEW, "--save", "e.nc"]
    assert main(arguments) == 130
    assert capsys.readouterr().out.startswith("LLC 1.")
    assert slt.load_estimate(folder / "e.nc").trace.interrupted


def test_an_interrupted_sweep_is_printed_saved_and_ends_with_130(folder, capsys, monkeypatch):
    honest = slt.sweep

    def interrupted(*arguments, **options):
        return replace(honest(*arguments, **options), interrupted=True)

    monkeypatch.setattr("slt.sweeps.sweep", interrupted)
    assert main(["sweep", "job.py:task", "step-1*", *FEW, "--save", "s.csv", "--store", "kept"]) == 130
    told = capsys.readouterr()
    assert told.out.splitlines()[1].split()[0] == "1"
    assert told.err == "slt: interrupted after 1 rows; kept keeps them, and the same command goes on from there\n"
    assert len((folder / "s.csv").read_text().splitlines()) == 2


def test_the_ladder_of_a_checkpoint_is_of_its_weights(folder, monkeypatch):
    seen = []

    def noted(model, *arguments, **options):
        seen.append(model.weight.detach().clone())
        raise ValueError("noted")

    monkeypatch.setattr("slt.rlct.estimate_rlct", noted)
    main(["rlct", "job.py:task"])
    main(["rlct", "job.py:task", "--checkpoint", "step-2.pt"])
    assert (seen[0] != seen[1]).all()
