"""``sweep``: the local learning coefficient along a series of checkpoints, one row each."""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from tqdm import tqdm

from slt.arguments import WeightsError, as_device
from slt.checkpoints import find_checkpoints, load_into, load_state, step_of
from slt.data import Data, as_data
from slt.estimate import FORMAT
from slt.fingerprint import fingerprint, recorded, shared_parts, weights_parts
from slt.isolation import preserved_random_state
from slt.llc import estimate_llc
from slt.loss import LossFn
from slt.parameters import SampledParameters
from slt.running import RunningFile
from slt.series import SeriesLaw, find_law
from slt.store import EstimateStore, written_whole
from slt.sweep_table import Sweep, SweepRow, load_sweep

RUNNING, SAVE_EVERY = "running.pt", 60.0  # in a store: the estimate that is being made; seconds
REPORTED = (ValueError, OSError, ArithmeticError, RuntimeError)  # in the row of a checkpoint, and the others go on


def sweep(
    model: nn.Module,
    checkpoints: str | Path | Sequence[str | Path] | Mapping[int, Mapping[str, Tensor] | str | Path],
    data: Any,
    loss_fn: LossFn,
    *,
    store: str | Path | None = None,
    calibrate_on: int | Sequence[int] | None = None,
    version: str = "",
    progress: bool | None = None,
    **options: Any,
) -> Sweep:
    """Estimates of λ̂ at a series of checkpoints, under one law: nβ, γ, metric and sampler are the same for all.

    With a ``store``, every estimate is written there as soon as it is finished, and so is the table: a sweep that was
    killed goes on where it stopped, in the middle of an estimate too, and its table is then that of one that was not,
    bit by bit. An estimate is found
    again by a hash of the weights, the model's source, the data, the loss's source and what it captured, and all
    options: where one of them has changed, it is made anew. A checkpoint that cannot be read or estimated is reported
    in its row, and the others go on. The module ends with the weights that it came with.

    Args:
        model: A module into which every checkpoint fits.
        checkpoints: A glob, a path, or several of them, ordered by the step in their names; or state dicts or
            paths by step.
        data: See :func:`slt.estimate_llc`.
        loss_fn: See :func:`slt.estimate_llc`.
        store: A folder for finished estimates; nothing is written by default.
        calibrate_on: Step of the checkpoint, or steps of several, on which the metric and the sampler are found where
            they are left to the call; by default the last that can be read.
        version: Of the loss or the data, where that is to count too.
        progress: True or False, or None to show a bar over checkpoints on a terminal only.
        options: Further arguments of :func:`slt.estimate_llc`, the same for every checkpoint. Of ``device`` the kind
            counts in the hash, wherever the module lies: another draws other random numbers.

    Returns:
        One row per checkpoint. Ctrl-C ends the sweep, and keeps the rows that were finished.

    Raises:
        FileNotFoundError: No checkpoint matched.
        ValueError: The store cannot be used, two checkpoints are of one step, none has a step of ``calibrate_on``, or
            an argument of the estimate is refused.
    """
    series = _series(checkpoints, model)
    if callable(getattr(options.get("parameters"), "__next__", None)):
        options["parameters"] = list(options["parameters"])  # or the first checkpoint would use it up
    SampledParameters(model, options.get("parameters"))  # what cannot be sampled is refused first
    asked, own_device = options.pop("device", None), next(model.parameters()).device
    device = own_device if asked is None else as_device(asked)
    if device != own_device:
        model = copy.deepcopy(model).to(device)
    own = copy.deepcopy(model.state_dict())
    rows: list[SweepRow] = []
    bar = tqdm(series, desc="checkpoints", unit="checkpoint", disable=None if progress is None else not progress)
    with ExitStack() as opened:
        folder = None if store is None else opened.enter_context(EstimateStore(store))
        opened.callback(model.load_state_dict, own)
        opened.callback(bar.close)
        with preserved_random_state(options.get("seed", 0)):
            held = as_data(data, device)
            # before anything is called: a loss may count its calls in what it captured
            shared = () if folder is None else (FORMAT, *shared_parts(held, loss_fn), device.type, version)
        try:
            law = _law(model, series, calibrate_on, held, loss_fn, options)
            shared = (*shared, recorded(law.options))
            for member in bar:
                proven = any(row.estimate is not None for row in rows)
                row = _row(model, member, held, loss_fn, progress, law.options, folder, shared, proven=proven)
                rows.append(row)
                if row.estimate is not None:
                    bar.set_postfix_str(f"λ̂ {row.estimate.llc:.3g} ± {row.estimate.mcse:.1g}")
                    if row.estimate.trace.interrupted:
                        return Sweep(tuple(rows), interrupted=True, law=law.reason)
                if folder is not None:
                    _write_table(Sweep((*rows, *_still_stored(folder, series[len(rows) :]))), folder.folder)
        except KeyboardInterrupt:
            return Sweep(tuple(rows), interrupted=True)
    return Sweep(tuple(rows), law=law.reason)


class _Member(NamedTuple):
    """A checkpoint of the series, and how it is brought into the module."""

    step: int | None
    path: str
    load: Callable[[nn.Module], None]


def _series(checkpoints: Any, model: nn.Module) -> list[_Member]:
    if not isinstance(checkpoints, Mapping):
        paths = find_checkpoints(checkpoints)
        series = [_Member(step_of(path), str(path), partial(load_into, path=path)) for path in paths]
    elif not checkpoints:
        raise FileNotFoundError("checkpoints: an empty mapping; expected state dicts by step.")
    else:
        wrong = [step for step in checkpoints if not isinstance(step, int)]
        if wrong:
            raise ValueError(f"checkpoints: {wrong[0]!r} among the steps of the mapping; expected whole numbers.")
        series = [_by_step(step, checkpoints[step], model) for step in sorted(checkpoints)]
    by_step: dict[int | None, str] = {}
    for member in series:
        if member.step is not None and member.step in by_step:
            raise ValueError(
                f"checkpoints: {by_step[member.step]!r} and {member.path!r} are both of step {member.step} by their "
                "names. Leave one out, or give a mapping of steps to paths."
            )
        by_step[member.step] = member.path
    return series


def _by_step(step: int, source: Any, model: nn.Module) -> _Member:
    if isinstance(source, str | Path):
        return _Member(step, str(source), partial(load_into, path=source))
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    # a state dict that was not copied is the module's own weights, which every checkpoint overwrites
    state = {
        name: value.clone() if value.untyped_storage().data_ptr() in own else value for name, value in source.items()
    }
    return _Member(step, f"step {step}", partial(load_state, state=state, name=f"step {step}"))


def _law(
    model: nn.Module, series: list[_Member], calibrate_on: int | Sequence[int] | None, data: Data | None,
    loss_fn: LossFn, options: dict[str, Any],
) -> SeriesLaw:  # fmt: skip
    """That of the stated checkpoints, or of the last that can be read and estimated."""
    if calibrate_on is not None:
        steps = [member.step for member in series]
        wanted = list(calibrate_on) if isinstance(calibrate_on, Iterable) else [calibrate_on]
        stated = [member for member in series if member.step in wanted]
        missing = [step for step in wanted if step not in steps]
        if missing or not stated:
            raise ValueError(
                f"calibrate_on: {missing or calibrate_on}; expected a step among {steps}, or several of them. Leave "
                "it out for the last."
            )
        law = find_law(model, [partial(member.load, model) for member in stated], data, loss_fn, options)
        return law._replace(reason=f"{law.reason}, found at {', '.join(member.path for member in stated)}")
    failure: Exception | None = None
    for member in reversed(series):
        try:
            law = find_law(model, [partial(member.load, model)], data, loss_fn, options)
            return law if law.reason == "asked for" else law._replace(reason=f"{law.reason}, found at {member.path}")
        except REPORTED as error:
            if _of_the_arguments(error, member, model):
                raise
            failure = failure or error
    # no checkpoint can be used: every row says why
    return SeriesLaw(dict(options), f"not found: {failure}")


def _of_the_arguments(error: Exception, member: _Member, model: nn.Module) -> bool:
    """Whether it was not the checkpoint that was refused, but what was asked: it would be at every other too."""
    if not isinstance(error, ValueError) or isinstance(error, WeightsError):
        return False
    try:
        member.load(model)
    except REPORTED:
        return False
    return True


def _row(
    model: nn.Module,
    member: _Member,
    data: Data | None,
    loss_fn: LossFn,
    progress: bool | None,
    options: dict[str, Any],
    store: EstimateStore | None,
    shared: tuple[Any, ...],
    *,
    proven: bool,
) -> SweepRow:
    """The row of a checkpoint; ``proven``, once an earlier one was estimated, so that the options are not at fault."""
    try:
        member.load(model)
        key = "" if store is None else fingerprint(shared, *weights_parts(model))
        estimate = None if store is None else store.load(key)
        if estimate is None:
            with ExitStack() as opened:
                if store is not None and "save_to" not in options:
                    every = options.get("save_every", SAVE_EVERY)
                    options = {**options, "save_to": opened.enter_context(_running(store.folder / RUNNING, key, every))}
                estimate = estimate_llc(model, data, loss_fn, **{"progress": progress, **options})
            if store is not None and not estimate.trace.interrupted:
                store.save(key, estimate)
    except REPORTED as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
            raise  # the store, and not this checkpoint: the next would fail too
        if not proven and _of_the_arguments(error, member, model):
            raise
        return SweepRow(member.step, member.path, None, f"{type(error).__name__}: {error}")
    return SweepRow(member.step, member.path, estimate, key=key)


def _running(path: Path, key: str, every: float) -> RunningFile:
    """Where the estimate that is being made is kept; one of another key there is of a series that has changed."""
    try:
        return RunningFile(path, key, every)
    except ValueError:
        path.unlink(missing_ok=True)
        return RunningFile(path, key, every)


def _still_stored(folder: EstimateStore, left: list[_Member]) -> list[SweepRow]:
    """Rows that an earlier run wrote for checkpoints that this one has not reached: a table does not shrink."""
    try:
        written = {(row.step, row.path): row for row in load_sweep(folder.folder).rows}
    except (FileNotFoundError, ValueError):  # the first run, or one whose files were put aside
        return []
    return [written[each.step, each.path] for each in left if (each.step, each.path) in written]


def _write_table(sweep: Sweep, folder: Path) -> None:
    for name in ("sweep.csv", "sweep.json"):
        written_whole(folder / name, sweep.save)
