"""``sweep``: the local learning coefficient along a series of checkpoints, one row each, or one for each part."""

from __future__ import annotations

import copy
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from samplers.files import written_whole
from slt import ranks
from slt.arguments import as_device, check_module
from slt.data import as_data
from slt.estimate import FORMAT
from slt.fingerprint import shared_parts
from slt.isolation import preserved_random_state, without_autocast
from slt.loss import LossFn
from slt.members import Member, find_series
from slt.parameters import SampledParameters
from slt.parts import Choice, checked_parts
from slt.series import SeriesLaw
from slt.shards import is_sharded
from slt.store import ENDING, FOLDER, EstimateStore
from slt.sweep_table import COLUMNS, LAW, TABLE, Sweep, SweepRow, write_rows
from slt.sweep_work import SweepWork
from slt.turns import in_turns

WHOLE: dict[str, Choice] = {"": None}  # the one part of a sweep without parts
Place = tuple[int | None, str, str]  # in the table: step, path and part


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

    Processes that ``torchrun`` has started, and that have the same ``store``, share the work: each takes checkpoints
    that no other has, and waits for the rest, so that all return the whole. What a process had that is gone is made by
    the others.

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
        ValueError: The model is no module, the store cannot be used, ``save_to`` or a ``process_group`` is given, two
            checkpoints are of one step, some names have a
            step and others none, none has a step of ``calibrate_on``, a part does not fit the model, or an argument of
            the estimate is refused.
    """
    check_module(model)
    if any(map(is_sharded, model.parameters())):
        raise ValueError(
            "model: sharded by fully_shard; expected a whole one. Bring each checkpoint into it with "
            "torch.distributed.checkpoint, and call slt.estimate_llc."
        )
    series = find_series(checkpoints, model)
    _warn_of_no_steps(series)
    for name, instead in (("save_to", "a store, which keeps"), ("process_group", "torchrun and a store, which share")):
        if options.get(name) is not None:
            raise ValueError(f"{name}: given to a sweep; expected {instead} every estimate of it by itself.")
    if callable(getattr(options.get("parameters"), "__next__", None)):
        options["parameters"] = list(options["parameters"])  # or the first checkpoint would use it up
    SampledParameters(model, options.get("parameters"))  # what cannot be sampled is refused first
    chosen = WHOLE if parts is None else checked_parts(model, parts, options)
    asked, own_device = options.pop("device", None), next(model.parameters()).device
    device = own_device if asked is None else as_device(asked)
    if device != own_device:
        model = copy.deepcopy(model).to(device)
    own = copy.deepcopy(model.state_dict())
    places = [(member, name) for member in series for name in chosen]
    rows: dict[tuple[Member, str], SweepRow] = {}
    bar = tqdm(
        total=len(places), desc="checkpoints", unit="estimate", disable=None if progress is None else not progress
    )
    with ExitStack() as opened:
        folder = None if store is None else opened.enter_context(EstimateStore(store, ranks.run()))
        opened.callback(model.load_state_dict, own)
        opened.callback(bar.close)
        with preserved_random_state(options.get("seed", 0)):
            held = as_data(data, device)
            # before anything is called: a loss may count its calls in what it captured
            shared = () if folder is None else (FORMAT, *shared_parts(held, loss_fn), device.type, version)
        work = SweepWork(model, chosen, held, loss_fn, options, progress, folder, shared, places)
        table = None if folder is None else _Table(folder.folder, places, work)
        try:
            laws = dict(in_turns(chosen, partial(work.law, series=series, calibrate_on=calibrate_on)))
            work.laws = {name: laws[name] for name in chosen}
            for place, row in in_turns(places, work.row):
                rows[place] = row
                bar.update()
                if row.estimate is not None:
                    named = f"{row.part}: " if row.part else ""
                    bar.set_postfix_str(f"{named}λ̂ {row.estimate.llc:.3g} ± {row.estimate.mcse:.1g}")
                    if row.estimate.trace.interrupted:
                        return Sweep(_in_order(rows, places), interrupted=True, law=_told(work.laws))
                if table is not None and folder is not None:
                    table.add(row)
                    _write(table, folder, _told(work.laws))
            if table is not None and folder is not None and ranks.count() > 1:
                for place in places:
                    rows[place] = work.found_since(place, rows[place])
                    table.add(rows[place])
                _write(table, folder, _told(work.laws))
        except KeyboardInterrupt:
            return Sweep(_in_order(rows, places), interrupted=True)
    found = _in_order(rows, places)
    if all(row.estimate is None for row in found):
        _warn_of_no_estimate(found, len(series))
    return Sweep(found, law=_told(work.laws))


def _write(table: _Table, store: EstimateStore, law: str) -> None:
    """Write the table and how its law was found, unless another process of the run does.

    If that is gone, with what it has written.
    """
    first = store.first
    if store.take_lead():
        if not first:
            table.read()
        table.write()
        told = f"{law}\n".encode(errors="backslashreplace")  # names of files may be no text
        written_whole(store.folder / LAW, lambda path: path.write_bytes(told))


def _place(member: Member, name: str) -> Place:
    return member.step, member.path, name


def _in_order(
    rows: Mapping[tuple[Member, str], SweepRow], places: Sequence[tuple[Member, str]]
) -> tuple[SweepRow, ...]:
    return tuple(rows[place] for place in places if place in rows)


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


def _warn_of_no_steps(series: Sequence[Member]) -> None:
    """Names with numbers of which none is read as a step are in an order that may not be that of training."""
    names = [member.path for member in series]
    if len(names) < 2 or any(member.step is not None for member in series):
        return
    paths = [Path(name).resolve() for name in names]
    shared = os.path.commonpath([path.parent for path in paths])  # whose numbers are the same for all
    if any(map(str.isdigit, "".join(str(path.relative_to(shared)) for path in paths))):
        warnings.warn(
            f"checkpoints: no step can be read in the names of the {len(names)}, such as {names[0]!r}; they are taken "
            "in the order of their names, and their places are their steps. If that is not the order of training, "
            "give a mapping of steps to paths.",
            stacklevel=4,  # of this function, of sweep, and of the context around it
        )


def _told(laws: Mapping[str, SeriesLaw]) -> str:
    """How the laws of all parts were found, in one line where they are the same."""
    reasons = {name: law.reason for name, law in laws.items()}
    if len(set(reasons.values())) == 1:
        return next(iter(reasons.values()))
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


class _Table:
    """The table in the store's folder, written whole after each row.

    Rows that an earlier run wrote for what this one has not reached stay in it: a table does not shrink. But, from the
    first estimate on, for those of other data, losses, options or weights: one curve would be of two series.

    Args:
        folder: The store's.
        places: Of all rows.
        work: Which knows what series a part is of, and the key of a place.
    """

    def __init__(self, folder: Path, places: Iterable[tuple[Member, str]], work: SweepWork) -> None:
        self.folder, self.work = folder, work
        self.places = {_place(*each): each for each in places}
        self.rows: dict[Place, dict[str, Any] | None] = dict.fromkeys(self.places)
        self._earlier: set[Place] = set()  # of which it is not known yet whether they go on
        self.read()

    def read(self) -> None:
        """Take the rows of the file for places that have none here."""
        try:
            written = json.loads((self.folder / TABLE).read_text(encoding="utf-8"))
            earlier = {
                (row["step"], row["path"], row["part"]): {name: row[name] for name in COLUMNS}
                for row in written
                if row["verdict"] == "failed" or (self.folder / FOLDER / f"{row['key']}{ENDING}").is_file()
            }
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # the first run, or not what a sweep wrote
            return
        found = {place: row for place, row in earlier.items() if place in self.rows and not self.rows[place]}
        self.rows.update(found)
        self._earlier.update(found)

    def add(self, row: SweepRow) -> None:
        """Put a row in its place, and out those of earlier runs that are not of this series."""
        place = row.step, row.path, row.part
        self.rows[place] = row.to_dict()
        self._earlier.discard(place)
        if row.estimate is not None:
            for other in [each for each in self.rows if each in self._earlier]:  # in order: parts share a checkpoint
                self._earlier.discard(other)
                if not self._goes_on(other):
                    self.rows[other] = None

    def _goes_on(self, place: Place) -> bool:
        """Whether the row of an earlier run is what this one would find there."""
        row = self.rows[place]
        assert row is not None
        if row["series"] != self.work.series_of(row["part"]):
            return False
        try:
            return row["llc"] is None or row["key"] == self.work.key_at(self.places[place])
        except Exception:  # a checkpoint that cannot be read any more: its own row will say so
            return False

    def write(self) -> None:
        """Write the table as it is."""
        rows = [each for each in self.rows.values() if each is not None]
        for name in ("sweep.csv", TABLE):
            written_whole(self.folder / name, partial(write_rows, rows))
