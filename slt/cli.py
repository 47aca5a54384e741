"""The command line: ``slt estimate · sweep · rlct · validate · plot · report``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from slt import ranks
from slt.estimate import LLCEstimate
from slt.shards import is_sharded
from slt.sweep_table import Sweep
from slt.task import Task, raised_by_task

HEALTHY, OUTSIDE, REFUSED, PROBLEM, INTERRUPTED = 0, 1, 2, 3, 130

EPILOGUE = (
    "exit status: 0 healthy · 3 a number with a problem named (0 under torchrun) · 2 the input was refused · "
    "1 an error in the task's own code, with its traceback · 130 interrupted"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of one command.

    Args:
        arguments: The command line without the program's name; ``sys.argv`` by default.

    Returns:
        0 where all is healthy, 3 where a problem is named, 2 where the input was refused, 130 after Ctrl-C, and 1, with
        the traceback, after an error of a task's own code. Errors that are of neither are raised, with which Python
        ends with 1 too.
    """
    parsed = _parser().parse_args(arguments)
    try:
        _check_outputs(parsed)
        ranks.use_own_device()
        parsed.stream = sys.stdout
        with redirect_stdout(sys.stderr):  # what a task prints is no part of the result
            return parsed.run(parsed)
    except SystemExit as left:  # of the task's own code
        print("slt: the task's own code ended the program, before there was a result", file=sys.stderr)
        return int(left.code) if isinstance(left.code, int) and left.code else OUTSIDE
    except KeyboardInterrupt:
        print("slt: interrupted; nothing is kept but what was printed or written before", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, KeyError, ImportError, ArithmeticError) as error:
        if raised_by_task(error):
            traceback.print_exception(error)
            return OUTSIDE
        # the text of these does not say what it is of: of a KeyError it is the key alone
        kind = f"{type(error).__name__}: " if isinstance(error, KeyError | ArithmeticError) else ""
        print(f"slt: {kind}{str(error) or type(error).__name__}", file=sys.stderr)
        return REFUSED


def load_task(target: str) -> Task:
    """The task that ``file.py:function`` or ``package.module:function`` returns.

    Args:
        target: The file or module, a colon, and the name of a function without arguments.

    Returns:
        What the function returned.

    Raises:
        ValueError: The target cannot be found, or the function does not return a :class:`slt.Task`.
    """
    source, colon, name = target.rpartition(":")
    if not colon or not source or not name:
        raise ValueError(f"task: {target!r}; expected FILE.py:FUNCTION, such as examples/digits.py:task.")
    if source.endswith(".py"):
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"task: the file {source!r} does not exist.")
        sys.path.insert(0, str(path.parent.resolve()))  # as python FILE.py would
        name_of_module = _module_name(path)
        specification = importlib.util.spec_from_file_location(name_of_module, path)
        assert specification is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name_of_module] = module
        # not by its loader, which takes the bytecode of a file of the same second and size for that of this one
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    else:
        sys.path.insert(0, "")  # as python -m would
        module = importlib.import_module(source)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"task: {source!r} has no function {name!r}.")
    task = function()
    if not isinstance(task, Task):
        raise ValueError(f"task: {target!r} returned {type(task).__name__}; expected slt.Task(model, data, loss_fn).")
    return task


def _module_name(path: Path) -> str:
    """Of a task's file: its own where that is free, by which another process imports it too; else one that is."""
    # Under the name of another module its functions would be taken for those of that one, by pickle and by the keys of
    # a store, which would then not see that the file was edited.
    own = path.stem
    if own not in sys.stdlib_module_names and "." not in own and _is_free(own, path):
        return own
    name = f"task_file_{own.replace('.', '_')}"
    while not _is_free(name, path):
        name += "_"
    return name


def _is_free(name: str, path: Path) -> bool:
    """Whether no module has a name, or one that was loaded from this file."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return name not in sys.modules or (file is not None and Path(file).resolve() == path.resolve())


def _estimate(parsed: argparse.Namespace) -> int:
    from slt.checkpoints import load_into
    from slt.llc import estimate_llc

    task = load_task(parsed.task)
    if parsed.checkpoint:
        load_into(task.model, parsed.checkpoint)
    with ranks.all_processes() as group:
        options = {**task.options, **_options(parsed)}
        if not any(
            map(is_sharded, task.model.parameters())
        ):  # the processes of a sharded model have one chain together
            options["process_group"] = group
        estimate = estimate_llc(task.model, task.data, task.loss_fn, **options)
    if ranks.rank() == 0:
        text = json.dumps(estimate.to_dict(), indent=1) if parsed.json else estimate.summary()
        _hand_out(parsed, text, estimate.plot, estimate.save)
    if estimate.trace.interrupted:
        return INTERRUPTED
    return _status(estimate.verdict.ok)


def _status(healthy: bool) -> int:
    """Of a result: torchrun would take another than 0 for a failure, and start all again where it may."""
    return HEALTHY if healthy or ranks.count() > 1 else PROBLEM


def _sweep(parsed: argparse.Namespace) -> int:
    from slt.parts import named_parts
    from slt.sweeps import sweep

    if ranks.count() > 1 and not parsed.store:
        raise ValueError(
            f"--store: not given, but torchrun started {ranks.count()} processes; expected a folder that all of them "
            "see, through which they share the work."
        )
    task = load_task(parsed.task)
    result = sweep(
        task.model,
        parsed.checkpoints,
        task.data,
        task.loss_fn,
        parts=named_parts(task.model, parsed.parts) if parsed.parts else None,
        store=parsed.store,
        calibrate_on=parsed.calibrate_on,
        version=parsed.version or "",
        **{**task.options, **_options(parsed)},
    )
    if result.interrupted and not result.rows:  # files of an earlier run stay
        return _nothing_finished()
    if ranks.rank() == 0:
        text = json.dumps([row.to_dict() for row in result.rows], indent=1) if parsed.json else result.table()
        _hand_out(parsed, text, partial(result.plot, log=AXES[parsed.axis]), result.save)
    if result.interrupted:
        kept = f"; {parsed.store} keeps them, and the same command goes on from there" if parsed.store else ""
        print(f"slt: interrupted after {len(result.rows)} rows{kept}", file=sys.stderr)
        return INTERRUPTED
    return _status(all(row.estimate is not None and row.estimate.verdict.ok for row in result.rows))


def _nothing_finished() -> int:
    print("slt: interrupted before the first row was finished; no file is written", file=sys.stderr)
    return INTERRUPTED


def _rlct(parsed: argparse.Namespace) -> int:
    from slt.checkpoints import load_into
    from slt.rlct import estimate_rlct

    task = load_task(parsed.task)
    if parsed.checkpoint:
        load_into(task.model, parsed.checkpoint)
    names = ("radius", "budget", "seed", "n")
    # what of the task's options says what is estimated, and not how estimate_llc would do it
    options = {name: task.options[name] for name in ("n", "parameters", "seed", "eval_mode") if name in task.options}
    options |= {name: getattr(parsed, name) for name in names if getattr(parsed, name) is not None}
    if parsed.parameters:
        options["parameters"] = parsed.parameters
    estimate = estimate_rlct(task.model, task.data, task.loss_fn, **options)
    _hand_out(parsed, json.dumps(estimate.to_dict(), indent=1) if parsed.json else estimate.summary(), estimate.plot)
    return _status(estimate.verdict.ok)


def _validate(parsed: argparse.Namespace) -> int:
    from slt.known import case, cases, summarize, validate
    from slt.known.validate import HEADER
    from slt.plots import plot_validations

    if parsed.quick and (parsed.cases or parsed.family):
        raise ValueError("--quick: beside --cases or --family; it is a choice of its own. Give one of them.")
    if parsed.seeds < 1:
        raise ValueError(f"--seeds: {parsed.seeds}; expected at least one.")
    if parsed.cases and parsed.family:
        raise ValueError("--family: beside --cases; names say enough. Give one of them.")
    chosen = [case(name) for name in dict.fromkeys(parsed.cases)] if parsed.cases else None
    if parsed.family:
        chosen = [known for known in cases(family=parsed.family) if known.plain]
        if not chosen:
            raise ValueError(
                f"--family: {parsed.family!r} has a prior or a bounded support, which estimate_llc cannot sample."
            )
    if not parsed.json:
        _print(HEADER, parsed.stream)
    rows, interrupted = [], False
    try:
        for row in validate(chosen, quick=parsed.quick, seeds=range(parsed.seeds)):
            rows.append(row)
            if not parsed.json:
                _print(str(row), parsed.stream)
    except KeyboardInterrupt:
        interrupted = True
        if not rows:
            return _nothing_finished()
        print("slt: interrupted; the row that was not finished, and those after it, are left out", file=sys.stderr)
    summary = summarize(rows)
    text = f"\n{summary}"
    if parsed.json:
        record = {"rows": [row.to_dict() for row in rows], "summary": summary.to_dict()}
        text = json.dumps(record, indent=1, allow_nan=False)
    _hand_out(parsed, text, partial(plot_validations, rows))
    if interrupted:
        return INTERRUPTED
    return HEALTHY if summary.ok else OUTSIDE


def _plot(parsed: argparse.Namespace) -> int:
    from slt.plots import plot_ranks, plot_temperatures

    result = _load(parsed.result)
    if isinstance(result, LLCEstimate):
        if parsed.axis:
            raise ValueError(f"--axis: of steps, which {parsed.result!r}, an estimate, has none of. Leave it out.")
        kinds = {"ranks": partial(plot_ranks, result), "temperatures": partial(plot_temperatures, result)}
        _draw(kinds.get(parsed.kind, result.plot), parsed.out)
        _print(repr(result), parsed.stream)
    else:
        if parsed.kind:
            raise ValueError(f"--kind: {parsed.kind!r} is of an estimate, and {parsed.result!r} a sweep. Leave it out.")
        _draw(partial(result.plot, log=AXES[parsed.axis]), parsed.out)
        _print(result.table(), parsed.stream)
    return HEALTHY


def _report(parsed: argparse.Namespace) -> int:
    import matplotlib as mpl

    mpl.use("Agg")
    from slt.report import write_report

    write_report(_load(parsed.result), parsed.out, parsed.title)
    _print(f"wrote {parsed.out}", parsed.stream)
    return HEALTHY


def _load(path: str) -> LLCEstimate | Sweep:
    """A saved estimate, or the sweep of a store."""
    from slt.estimate import load_estimate
    from slt.sweep_table import load_sweep

    if not Path(path).exists():
        raise ValueError(
            f"result: {path!r} is neither a file that slt estimate --save wrote nor the folder of slt sweep --store."
        )
    return load_sweep(path) if Path(path).is_dir() else load_estimate(path)


def _hand_out(
    parsed: argparse.Namespace,
    text: str,
    plot: Callable[[], Sequence[Any]],
    save: Callable[[str], object] | None = None,
) -> None:
    """Write the files that were asked for, then print: whatever of these fails, the others are there."""
    with ExitStack() as stack:  # what was put in last is done first, and all of it
        stack.callback(_print, text, parsed.stream)
        if parsed.plot:
            stack.callback(_draw, plot, parsed.plot)
        if save is not None and parsed.save:
            stack.callback(save, parsed.save)


def _print(text: str, stream: TextIO) -> None:
    """Print a result; that its reader knows few letters, or has gone away, takes nothing from it."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # what is left in the buffer is written once more when Python ends, and would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _draw(draw: Callable[[], Sequence[Any]], path: str) -> None:
    """Write the figure of the axes that ``draw`` returns."""
    import matplotlib as mpl

    mpl.use("Agg")  # a file is written; no window is wanted, and none may be possible
    from slt.plots import save_figure

    save_figure(draw(), path)


def whole(text: str) -> int:
    """A whole number as an argument, also as 1e5, which the calls in Python take."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        if float(text).is_integer():
            return int(float(text))
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number, such as 100000 or 1e5.")


AXES = {None: None, "log": True, "linear": False}  # of steps

OPTIONS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("n", whole, "number of samples that the loss stands for"),
    ("n_beta", float, "nβ; n / log n by default"),
    ("localization", float, "γ; 1 by default"),
    ("metric", str, "of the localiser: identity or curvature"),
    ("sampler", str, "auto, replica_exchange, hmc, mala, baoab or sgld"),
    ("step_size", float, "ε; found by default"),
    ("batch_size", whole, "samples per chain and step, of baoab and sgld"),
    ("num_chains", whole, "chains"),
    ("num_warmup", whole, "steps of each chain before the first draw"),
    ("num_draws", whole, "draws of each chain; as many as the tolerance needs by default"),
    ("thinning", whole, "steps per draw"),
    ("tolerance", float, "half-width of the interval, relative to λ̂"),
    ("budget", whole, "steps of each chain at most"),
    ("anchor_samples", whole, "samples over which L(w*) is taken; all by default"),
    ("engine", str, "auto, batched or in_place"),
    ("block_size", whole, "chains that are advanced together; all, or an even share of the processes of torchrun"),
    ("seed", whole, "of everything random"),
    ("device", str, "where to compute"),
    ("save_to", str, "a file for the state of the run, from which the same command goes on when it was killed"),
    ("save_every", float, "seconds between two states that are written there"),
)


def _check_outputs(parsed: argparse.Namespace) -> None:
    """Refuse names that cannot be written before hours are spent on what would be written there."""
    endings: dict[str, tuple[str, ...]] = {"plot": (".png", ".pdf", ".svg"), "out": (".png", ".pdf", ".svg")}
    if parsed.run is _report:
        endings["out"] = (".html", ".htm")
    if parsed.run is _sweep:
        endings["save"] = (".csv", ".json")
        if parsed.axis and not parsed.plot:
            raise ValueError(f"--axis: {parsed.axis!r} without --plot; it is of the figure. Give both, or none.")
    state = getattr(parsed, "save_to", None)
    if state is not None and Path(state).is_dir():
        raise ValueError(f"--save-to: {state!r} is a folder; expected the name of a file, such as one in it.")
    for option in ("save", "plot", "out"):
        name = getattr(parsed, option, None)
        if name is None:
            continue
        folder = Path(name).absolute().parent
        if not folder.is_dir():
            raise ValueError(f"--{option}: {name!r} is in a folder that does not exist.")
        if Path(name).is_dir():
            raise ValueError(f"--{option}: {name!r} is a folder; expected the name of a file, such as one in it.")
        if option in endings and Path(name).suffix not in endings[option]:
            raise ValueError(f"--{option}: {name!r}; expected a name that ends in {', '.join(endings[option])}.")
        try:
            with tempfile.TemporaryFile(dir=folder):  # what modes say is not all that a file system may refuse
                pass
        except OSError as error:
            raise ValueError(
                f"--{option}: {name!r} is in a folder that cannot be written to ({error.strerror}). Give another one."
            ) from error


def _options(parsed: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(parsed, name) for name, _, _ in OPTIONS if getattr(parsed, name) is not None}
    if parsed.parameters:
        given["parameters"] = parsed.parameters
    if parsed.control_variates is not None:
        given["control_variates"] = parsed.control_variates
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slt", description="The local learning coefficient of a trained network.", epilog=EPILOGUE
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    axis = argparse.ArgumentParser(add_help=False)
    axis.add_argument(
        "--axis", choices=("log", "linear"),
        help="of steps, in the figure of a sweep; by default log where most checkpoints are early ones",
    )  # fmt: skip
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("task", help="FILE.py:FUNCTION that returns slt.Task(model, data, loss_fn)")
    options.add_argument("--json", action="store_true", help="print JSON instead of text")
    options.add_argument("--plot", metavar="FILE", help="write a figure")
    options.add_argument("--parameters", action="append", metavar="GLOB", help="sample these parameters alone")
    options.add_argument(
        "--control-variates", action=argparse.BooleanOptionalAction, help="minibatches beside the anchor's, or not"
    )
    for name, kind, text in OPTIONS:
        options.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)

    estimate = commands.add_parser("estimate", parents=[options], help="one checkpoint", epilog=EPILOGUE)
    estimate.add_argument("--checkpoint", metavar="PATH", help="safetensors, torch.save, or a Hugging Face folder")
    estimate.add_argument("--save", metavar="FILE", help="write the estimate with its draws as netCDF")
    estimate.set_defaults(run=_estimate)

    sweep = commands.add_parser("sweep", parents=[options, axis], help="a series of checkpoints", epilog=EPILOGUE)
    sweep.add_argument("checkpoints", nargs="+", help="paths or globs, ordered by the step in their names")
    sweep.add_argument("--save", metavar="FILE", help="write the table as .csv or .json")
    sweep.add_argument(
        "--store", metavar="FOLDER", help="keep every finished estimate there, and go on from there when started again"
    )
    sweep.add_argument(
        "--parts", nargs="+", metavar="PART",
        help="λ̂ of each part: whole, heads, mlps, embeddings, or globs of parameters",
    )  # fmt: skip
    sweep.add_argument(
        "--calibrate-on", nargs="+", type=whole, metavar="STEP",
        help="checkpoints on which metric and sampler are found; the last by default",
    )  # fmt: skip
    sweep.add_argument("--version", metavar="TAG", help="of the loss or the data: with another, all are estimated anew")
    sweep.set_defaults(run=_sweep)

    rlct = commands.add_parser("rlct", help="λ and its multiplicity, in a ball", epilog=EPILOGUE)
    rlct.add_argument("task", help="FILE.py:FUNCTION that returns slt.Task(model, data, loss_fn)")
    rlct.add_argument("--checkpoint", metavar="PATH", help="safetensors, torch.save, or a Hugging Face folder")
    rlct.add_argument("--radius", type=float, help="R of the ball around the weights; 1 by default")
    rlct.add_argument("--budget", type=whole, help="evaluations of the loss in the first round")
    rlct.add_argument("--n", type=whole, help="number of samples that the loss stands for")
    rlct.add_argument("--seed", type=whole, help="of everything random")
    rlct.add_argument("--parameters", action="append", metavar="GLOB", help="sample these parameters alone")
    rlct.add_argument("--json", action="store_true", help="print JSON instead of text")
    rlct.add_argument("--plot", metavar="FILE", help="write a figure of the curve")
    rlct.set_defaults(run=_rlct)

    validate = commands.add_parser(
        "validate",
        help="estimates beside exactly known values",
        epilog="exit status: 0 no healthy estimate is outside its bound of four standard errors (where a problem is "
        "named nothing is claimed) · 1 one is, or there is no number · 2 the input was refused · 130 interrupted",
    )
    validate.add_argument("--quick", action="store_true", help="a dozen cases, one row each")
    validate.add_argument(
        "--family", help="cases of one family: polynomial, deep_linear, tanh, relu, classification, attention_like"
    )
    validate.add_argument("--cases", nargs="+", metavar="NAME", help="names of cases; all by default")
    validate.add_argument(
        "--seeds", type=whole, default=1, metavar="COUNT", help="estimates of every row; 1 by default"
    )
    validate.add_argument("--json", action="store_true", help="print JSON, on the standard output, instead of a table")
    validate.add_argument("--plot", metavar="FILE", help="write a figure of estimates against exact values")
    validate.set_defaults(run=_validate)

    plot = commands.add_parser(
        "plot", parents=[axis], help="the figure of a saved estimate, or of the store of a sweep"
    )
    plot.add_argument("result", help="a file that slt estimate --save wrote, or the folder of slt sweep --store")
    plot.add_argument(
        "--kind", choices=("traces", "ranks", "temperatures"),
        help="of an estimate: traces and running λ̂ (default), rank plots, or λ̂ over the ladder of replica exchange",
    )  # fmt: skip
    plot.add_argument("--out", metavar="FILE", default="llc.png", help="the figure; llc.png by default")
    plot.set_defaults(run=_plot)

    report = commands.add_parser("report", help="one HTML page of a saved estimate, or of the store of a sweep")
    report.add_argument("result", help="a file that slt estimate --save wrote, or the folder of slt sweep --store")
    report.add_argument("--out", metavar="FILE", default="llc.html", help="the page; llc.html by default")
    report.add_argument("--title", default="Local learning coefficient", help="of the page")
    report.set_defaults(run=_report)
    return parser
