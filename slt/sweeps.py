"""``sweep``: the local learning coefficient along a series of checkpoints, one row each, or one for each part."""

from __future__ import annotations

import copy
import errno
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from slt.arguments import WeightsError, as_device
from slt.data import Data, as_data
from slt.estimate import FORMAT
from slt.fingerprint import fingerprint, recorded, shared_parts, weights_parts
from slt.isolation import preserved_random_state, without_autocast
from slt.llc import estimate_llc
from slt.loss import LossFn
from slt.members import Member, find_series
from slt.parameters import SampledParameters
from slt.parts import Choice, checked_parts, restricted
from slt.running import RunningFile
from slt.series import SeriesLaw, find_law
from slt.store import ENDING, FOLDER, EstimateStore, written_whole
from slt.sweep_table import COLUMNS, TABLE, Sweep, SweepRow, write_rows

RUNNING, SAVE_EVERY = "running.pt", 60.0  # in a store: the estimate that is being made; seconds
# a checkpoint's even where no other has an estimate; any other error is then a mistake in the call or the loss
OF_WEIGHTS = (WeightsError, OSError, ArithmeticError, RuntimeError)

WHOLE: dict[str, Choice] = {"": None}  # the one part of a sweep without parts


@without_autocast()
def sweep(
    model: nn.Module,
    checkpoints: str | Path | Sequence[str | Path] | Mapping[int, Mapping[str, Tensor] | str | Path],
    data: Any,
    loss_fn: LossFn,
    *,
    parts: Mapping[str, Choice] | None = None,
    store: str | Path | None = None,
    calibrate_on: int | Sequence[int] | None = None,
    version: str = "",
    progress: bool | None = None,
    **options: Any,
) -> Sweep:
    """Estimates of λ̂ at a series of checkpoints, under one law: nβ, γ, metric and sampler are the same for all.

    With ``parts``, at every checkpoint one of each part of the model, all else staying as it is there: the refined
    coefficients over training. nβ and γ are then the same for all parts, and the metric and the sampler for each part
    over the whole series.

    >>> slt.sweep(model, "run/*.pt", data, loss_fn, parts={"whole": None, **slt.attention_heads(model)})
    ... # doctest: +SKIP

    With a ``store``, every estimate is written there as soon as it is finished, and so is the table: a sweep that was
    killed goes on where it stopped, in the middle of an estimate too, and its table is then that of one that was not,
    bit by bit. An estimate is found again by a hash of the weights, the model's source, the part, the data, the loss's
    source and what it captured, and all options: where one of them has changed, it is made anew. A checkpoint that
    cannot be read or estimated is reported in its row, and the others go on; where none has an estimate, there is a
    ``UserWarning`` at the end, with the first error. The module ends with the weights that it came with.

    Args:
        model: A module into which every checkpoint fits.
        checkpoints: A glob, a path, or several of them, ordered by the step in their names, which all have or none; or
            state dicts or paths by step.
        data: See :func:`slt.estimate_llc`.
        loss_fn: See :func:`slt.estimate_llc`.
        parts: Names → what is sampled: a part for :func:`slt.part_of`, such as those of :func:`slt.attention_heads`; a
            name or a glob of parameters, or several; or None for all. By default all, in one row a checkpoint.
        store: A folder for finished estimates; nothing is written by default.
        calibrate_on: Step of the checkpoint, or steps of several, on which the metric and the sampler are found where
            they are left to the call; by default the last that can be read.
        version: Of the loss or the data, where that is to count too.
        progress: True or False, or None to show a bar over checkpoints on a terminal only.
        options: Further arguments of :func:`slt.estimate_llc`, the same for every checkpoint. Of ``device`` the kind
            counts in the hash, wherever the module lies: another draws other random numbers.

    Returns:
        One row per checkpoint and part. Ctrl-C ends the sweep, and keeps the rows that were finished.

    Raises:
        FileNotFoundError: No checkpoint matched.
        ValueError: The model is no module, the store cannot be used, two checkpoints are of one step, some names have a
            step and others none, none has a step of ``calibrate_on``, a part does not fit the model, or an argument of
            the estimate is refused.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model: {type(model).__name__}; expected a torch.nn.Module, into which checkpoints are brought."
        )
    series = find_series(checkpoints, model)
    if callable(getattr(options.get("parameters"), "__next__", None)):
        options["parameters"] = list(options["parameters"])  # or the first checkpoint would use it up
    SampledParameters(model, options.get("parameters"))  # what cannot be sampled is refused first
    chosen = WHOLE if parts is None else checked_parts(model, parts, options)
    asked, own_device = options.pop("device", None), next(model.parameters()).device
    device = own_device if asked is None else as_device(asked)
    if device != own_device:
        model = copy.deepcopy(model).to(device)
    own = copy.deepcopy(model.state_dict())
    rows: list[SweepRow] = []
    count = len(series) * len(chosen)
    bar = tqdm(total=count, desc="checkpoints", unit="estimate", disable=None if progress is None else not progress)
    with ExitStack() as opened:
        folder = None if store is None else opened.enter_context(EstimateStore(store))
        opened.callback(model.load_state_dict, own)
        opened.callback(bar.close)
        with preserved_random_state(options.get("seed", 0)):
            held = as_data(data, device)
            # before anything is called: a loss may count its calls in what it captured
            shared = () if folder is None else (FORMAT, *shared_parts(held, loss_fn), device.type, version)
        places = [(member.step, member.path, name) for member in series for name in chosen]
        table = None if folder is None else _Table(folder.folder, places)
        try:
            laws = {
                name: _law(model, part, series, calibrate_on, held, loss_fn, options) for name, part in chosen.items()
            }
            for member in series:
                proven = {row.part for row in rows if row.estimate is not None}
                for row in _rows(model, member, chosen, laws, held, loss_fn, progress, folder, shared, proven):
                    rows.append(row)
                    bar.update()
                    if row.estimate is not None:
                        named = f"{row.part}: " if row.part else ""
                        bar.set_postfix_str(f"{named}λ̂ {row.estimate.llc:.3g} ± {row.estimate.mcse:.1g}")
                        if row.estimate.trace.interrupted:
                            return Sweep(tuple(rows), interrupted=True, law=_told(laws))
                    if table is not None:
                        table.add(row)
        except KeyboardInterrupt:
            return Sweep(tuple(rows), interrupted=True)
    if all(row.estimate is None for row in rows):
        _warn_of_no_estimate(rows, len(series))
    return Sweep(tuple(rows), law=_told(laws))


def _warn_of_no_estimate(rows: Sequence[SweepRow], count: int) -> None:
    """A table of failures alone may never be looked at, and one cause is likely: it is told at the call too."""
    first = rows[0]
    of_part = f", part {first.part!r}" if first.part else ""
    warnings.warn(
        f"sweep: no checkpoint of {count} has an estimate. The first error, at {first.path}{of_part}: "
        f"{first.error.rstrip('.')}. Look whether checkpoints are of this model, and whether loss_fn can be called "
        "with their weights; the table has the error of every row.",
        stacklevel=4,  # of this function, of sweep, and of the context around it
    )


def _law(
    model: nn.Module,
    part: Choice,
    series: list[Member],
    calibrate_on: int | Sequence[int] | None,
    data: Data | None,
    loss_fn: LossFn,
    options: dict[str, Any],
) -> SeriesLaw:
    """That of a part at the stated checkpoints, or at the last that can be read and estimated."""
    options = restricted(model, part, options)[1]

    def at(member: Member) -> Callable[[], nn.Module]:
        return lambda: (member.load(model), restricted(model, part, options)[0])[1]

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
        law = find_law(map(at, stated), data, loss_fn, options)
        return law.found_at(", ".join(member.path for member in stated))
    failure, mistake = None, None
    for member in reversed(series):
        try:
            return find_law([at(member)], data, loss_fn, options).found_at(member.path)
        except Exception as error:
            if _of_the_arguments(error, member, model):
                if isinstance(error, ValueError):
                    raise
                mistake = mistake or error  # of the loss, which may be so at these weights alone
            failure = failure or error
    if mistake is not None:
        raise mistake
    # no checkpoint can be used: every row says why
    return SeriesLaw(dict(options), f"not found: {failure}", {})


def _told(laws: Mapping[str, SeriesLaw]) -> str:
    """How the laws of all parts were found, in one line where they are the same."""
    reasons = {name: law.reason for name, law in laws.items()}
    if len(set(reasons.values())) == 1:
        return next(iter(reasons.values()))
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _of_the_arguments(error: Exception, member: Member, model: nn.Module) -> bool:
    """Whether it was not the checkpoint that was refused, but what was asked: it would be at every other too."""
    if isinstance(error, OF_WEIGHTS):
        return False
    try:
        member.load(model)
    except Exception:
        return False
    return True


def _rows(
    model: nn.Module,
    member: Member,
    parts: Mapping[str, Choice],
    laws: Mapping[str, SeriesLaw],
    data: Data | None,
    loss_fn: LossFn,
    progress: bool | None,
    store: EstimateStore | None,
    shared: tuple[Any, ...],
    proven: set[str],
) -> Iterator[SweepRow]:
    """The rows of one checkpoint, each as soon as it is there.

    Args:
        model: The module.
        member: The checkpoint.
        parts: Names → choices of weights.
        laws: Of each part.
        data: The data.
        loss_fn: The loss.
        progress: Whether estimates show a bar.
        store: Where finished estimates are, or None.
        shared: What all keys have in common.
        proven: Parts that an earlier checkpoint has estimates of, so that the options are not at fault.

    Yields:
        A row for each part.
    """
    weights, failure = "", ""
    try:
        member.load(model)
        if store is not None:
            weights = fingerprint(*weights_parts(model))
    except Exception as error:
        failure = _failed(error)
    for name, part in parts.items():
        if failure:
            yield SweepRow(member.step, member.path, None, failure, part=name)
            continue
        try:
            # masks enter the key here: names and globs are among the options
            of_part = (recorded(laws[name].options), part if isinstance(part, Mapping) else None)
            key = "" if store is None else fingerprint(shared, weights, of_part)
            estimate = None if store is None else store.load(key)
            if estimate is None:
                options = {"progress": progress, **laws[name].options}
                with ExitStack() as opened:
                    if store is not None and "save_to" not in options:
                        every = options.get("save_every", SAVE_EVERY)
                        options["save_to"] = opened.enter_context(_running(store.folder / RUNNING, key, every))
                    estimate = estimate_llc(restricted(model, part, options)[0], data, loss_fn, **options)
                    estimate = laws[name].of(estimate)
                if store is not None and not estimate.trace.interrupted:
                    store.save(key, estimate)
            row = SweepRow(member.step, member.path, estimate, key=key, part=name)
        except Exception as error:
            if name not in proven and _of_the_arguments(error, member, model):
                raise
            row = SweepRow(member.step, member.path, None, _failed(error), part=name)
        yield row


def _running(path: Path, key: str, every: float) -> RunningFile:
    """Where the estimate that is being made is kept; one of another key there is of a series that has changed."""
    try:
        return RunningFile(path, key, every)
    except ValueError:
        path.unlink(missing_ok=True)
        return RunningFile(path, key, every)


def _failed(error: Exception) -> str:
    """What a row says of an error that is its checkpoint's, and not the store's or a missing package's."""
    if isinstance(error, ImportError) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
    ):
        raise error
    return f"{type(error).__name__}: {' '.join(str(error).split())}"  # a table has one line for it


class _Table:
    """The table in the store's folder, written whole after each row.

    Rows that an earlier run wrote for what this one has not reached stay in it: a table does not shrink.
    """

    def __init__(self, folder: Path, places: Iterable[tuple[int | None, str, str]]) -> None:
        self.folder = folder
        self.rows: dict[tuple[int | None, str, str], dict[str, Any] | None] = dict.fromkeys(places)
        try:
            written = json.loads((folder / TABLE).read_text())
            earlier = {
                (row["step"], row["path"], row["part"]): {name: row[name] for name in COLUMNS}
                for row in written
                if row["verdict"] == "failed" or (folder / FOLDER / f"{row['key']}{ENDING}").is_file()
            }
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # the first run, or not what a sweep wrote
            return
        self.rows.update({place: row for place, row in earlier.items() if place in self.rows})

    def add(self, row: SweepRow) -> None:
        """Write the table with this row in its place."""
        self.rows[row.step, row.path, row.part] = row.to_dict()
        rows = [each for each in self.rows.values() if each is not None]
        for name in ("sweep.csv", TABLE):
            written_whole(self.folder / name, partial(write_rows, rows))
