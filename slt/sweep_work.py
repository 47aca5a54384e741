"""The laws and rows of a sweep, each made by this process, or found in the store where another has made it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import nn

from slt import ranks
from slt.arguments import WeightsError
from slt.data import Data
from slt.estimate import LLCEstimate
from slt.files import InUseError
from slt.fingerprint import fingerprint, recorded, weights_parts
from slt.llc import estimate_llc
from slt.loss import LossFn
from slt.members import Member
from slt.parts import Choice, restricted
from slt.series import Found, SeriesLaw, find_law, law_of, open_choices
from slt.store import EstimateStore
from slt.sweep_table import SweepRow
from slt.task import raised_by_task

SAVE_EVERY = 60.0  # seconds between two states of an estimate that is being made, in a store
# a checkpoint's even where no other has an estimate; any other error is then a mistake in the call or the loss
OF_WEIGHTS = (WeightsError, OSError, ArithmeticError, RuntimeError)


class SweepWork:
    """The laws and rows of a sweep, each made by this process, or found in the store where another has made it.

    Args:
        model: The module.
        parts: Names → choices of weights.
        data: The data.
        loss_fn: The loss.
        options: Of every estimate, as they were asked for.
        progress: Whether estimates show a bar.
        store: Where finished estimates are, or None.
        shared: What all keys have in common.
        places: All checkpoints and parts.

    Attributes:
        laws: Of each part.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Mapping[str, Choice],
        data: Data | None,
        loss_fn: LossFn,
        options: dict[str, Any],
        progress: bool | None,
        store: EstimateStore | None,
        shared: tuple[Any, ...],
        places: Iterable[tuple[Member, str]],
    ) -> None:
        self.model, self.parts, self.data, self.loss_fn = model, parts, data, loss_fn
        self.options, self.progress, self.store, self.shared = options, progress, store, shared
        self.laws: dict[str, SeriesLaw] = {}
        self._brought: tuple[Member, str] | None = None  # the checkpoint in the module, and the hash of it
        self._keys: dict[tuple[Member, str], str] = {}  # of what another process is making
        self._proven: set[str] = set()  # parts with an estimate, whose options are then not at fault
        self._open = set(places)  # that have no row yet
        self._postponed: dict[tuple[Member, str], Exception] = {}  # errors of which that is not known yet
        self._series: dict[str, str] = {}  # see series_of
        self._failed: dict[tuple[Member, str], str] = {}  # keys of what could not be estimated here

    def law(self, name: str, *, series: Sequence[Member], calibrate_on: int | Sequence[int] | None) -> SeriesLaw | None:
        """That of a part at the stated checkpoints, or at the last that can be read and estimated.

        Args:
            name: Of the part.
            series: All checkpoints.
            calibrate_on: The steps that are stated.

        Returns:
            The law; None while another process is finding it.

        Raises:
            ValueError: There is no checkpoint of a stated step, or an option is refused.
        """
        if calibrate_on is not None:
            steps = [member.step for member in series]
            wanted = list(calibrate_on) if isinstance(calibrate_on, Iterable) else [calibrate_on]
            stated = [member for member in series if member.step in wanted]
            missing = [step for step in wanted if step not in steps]
            if missing or not stated:
                raise ValueError(
                    f"calibrate_on: {missing or calibrate_on}; expected a step among {steps}, or several of them. "
                    "Leave it out for the last."
                )
            return self._law_at(name, stated)
        failure, mistake = None, None
        for member in reversed(series):
            try:
                return self._law_at(name, [member])
            except Exception as error:
                if self._of_the_arguments(error, member):
                    if isinstance(error, ValueError) and not raised_by_task(error):
                        raise
                    mistake = mistake or error  # of the loss, which may be so at these weights alone
                failure = failure or error
        if mistake is not None:
            raise mistake
        # no checkpoint can be used: every row says why
        return SeriesLaw(dict(self.options), f"not found: {failure}", {})

    def series_of(self, name: str) -> str:
        """A hash of what the checkpoints of a part have in common: data, loss, options as they were found, the part.

        Args:
            name: Of the part.

        Returns:
            The hash; empty without a store.
        """
        if name not in self._series:
            laws = self.laws[name].options
            self._series[name] = "" if self.store is None else self._key("series", "", laws, self.parts[name])
        return self._series[name]

    def key_at(self, place: tuple[Member, str]) -> str:
        """The key of the estimate of a part at a checkpoint, which is brought into the module for it.

        Args:
            place: The checkpoint, and the name of the part.

        Returns:
            The key.
        """
        member, name = place
        return self._key("", self._bring(member), self.laws[name].options, self.parts[name])

    def found_since(self, place: tuple[Member, str], row: SweepRow) -> SweepRow:
        """The row with the estimate of another process, where it failed in this one alone, such as for its memory.

        Args:
            place: The checkpoint, and the name of the part.
            row: Of it.

        Returns:
            The row.
        """
        key = self._failed.get(place, "")
        estimate = self.store.load(key) if key and self.store is not None else None
        return row if estimate is None else replace(row, estimate=estimate, error="", key=key)

    def _law_at(self, name: str, members: Sequence[Member]) -> SeriesLaw | None:
        part = self.parts[name]
        options = restricted(self.model, part, self.options)[1]
        if not any(open_choices(options)):
            return SeriesLaw(options, "asked for", {})

        def at(member: Member) -> Callable[[], nn.Module]:
            return lambda: (self._bring(member), restricted(self.model, part, options)[0])[1]

        places = ", ".join(member.path for member in members)
        if self.store is None:
            return law_of(options, find_law(map(at, members), self.data, self.loss_fn, options), places)
        key = self._key("law", [self._bring(member) for member in members], options, part)
        stored = self._stored_law(key)
        if stored is None:
            try:
                with self.store.turn_at_law(key):
                    stored = self._stored_law(key)  # of a process that had its turn just before
                    if stored is None:
                        try:
                            stored = find_law(map(at, members), self.data, self.loss_fn, options).saved()
                        except RuntimeError as error:
                            # of this process alone, such as for its memory: others must not find another law then
                            if ranks.count() > 1:
                                self.store.save_law(key, {"error": str(error), "run": ranks.run()})
                            raise
                        self.store.save_law(key, stored)
            except InUseError:
                return None
        return law_of(options, Found.restored(stored), places)

    def _stored_law(self, key: str) -> dict[str, Any] | None:
        assert self.store is not None
        stored = self.store.law(key)
        if stored is not None and "error" in stored:
            if stored["run"] == ranks.run():
                raise RuntimeError(stored["error"])
            return None
        return stored

    def row(self, place: tuple[Member, str]) -> SweepRow | None:
        """The row of a part at a checkpoint.

        Args:
            place: The checkpoint, and the name of the part.

        Returns:
            The row; None while another process is making it, or another checkpoint may show that an error is of this
            one alone.
        """
        row = self._row(place)
        if row is not None:
            row = replace(row, series=self.series_of(place[1]))
            self._open.discard(place)
            if row.estimate is not None:
                self._proven.add(row.part)
        return row

    def _row(self, place: tuple[Member, str]) -> SweepRow | None:
        member, name = place
        if place in self._postponed and name not in self._proven:
            return self._postpone(place, self._postponed[place])
        key = self._keys.pop(place, "")
        if key and self.store is not None:
            estimate = self.store.load(key)
            if estimate is None and self.store.is_running(key):
                self._keys[place] = key
                return None
            if estimate is not None:
                return SweepRow(member.step, member.path, estimate, key=key, part=name)
        try:
            weights = self._bring(member)
        except Exception as error:
            return SweepRow(member.step, member.path, None, _failed(error), part=name)
        try:
            law, part = self.laws[name], self.parts[name]
            key = "" if self.store is None else self._key("", weights, law.options, part)
            estimate = None if self.store is None else self.store.load(key)
            if estimate is None:
                estimate = self._made(law, part, key)
        except InUseError:
            self._keys[place] = key
            return None
        except Exception as error:
            if name not in self._proven and self._of_the_arguments(error, member):
                return self._postpone(place, error)
            self._failed[place] = key
            return SweepRow(member.step, member.path, None, _failed(error), part=name)
        return SweepRow(member.step, member.path, estimate, key=key, part=name)

    def _postpone(self, place: tuple[Member, str], error: Exception) -> None:
        """Raise an error that would be at every checkpoint; wait, while another one may show that it is not.

        In one process, an option that is refused is so at all of them.
        """
        self._postponed[place] = error
        others = {other for other in self._open if other[1] == place[1]} - set(self._postponed)
        if not others or (ranks.count() == 1 and not raised_by_task(error)):
            raise error

    def _made(self, law: SeriesLaw, part: Choice, key: str) -> LLCEstimate:
        """The estimate of the checkpoint in the module; kept in the store while it runs, and when it is finished."""
        options = {"progress": self.progress, **law.options}
        with ExitStack() as opened:
            if self.store is not None:
                every = options.get("save_every", SAVE_EVERY)
                options["save_to"] = opened.enter_context(self.store.running(key, every))
                estimate = self.store.load(key)  # of a process that had its turn just before
                if estimate is not None:
                    return estimate
            model = restricted(self.model, part, options)[0]
            estimate = law.of(estimate_llc(model, self.data, self.loss_fn, **options))
            if self.store is not None and not estimate.trace.interrupted:
                self.store.save(key, estimate)
        return estimate

    def _bring(self, member: Member) -> str:
        """Bring a checkpoint into the module, unless it is there; the hash of its weights, where there is a store."""
        if self._brought is None or self._brought[0] is not member:
            self._brought = None
            member.load(self.model)
            self._brought = member, "" if self.store is None else fingerprint(*weights_parts(self.model))
        return self._brought[1]

    def _key(self, kind: str, weights: Any, options: Mapping[str, Any], part: Choice) -> str:
        # masks enter the key here: names and globs are among the options
        of_part = (recorded(options), part if isinstance(part, Mapping) else None)
        return fingerprint(kind, self.shared, weights, of_part)

    def _of_the_arguments(self, error: Exception, member: Member) -> bool:
        """Whether it was not the checkpoint that was refused, but what was asked: it would be at every other too."""
        if isinstance(error, OF_WEIGHTS):
            return False
        try:
            self._bring(member)
        except Exception:
            return False
        return True


def _failed(error: Exception) -> str:
    """What a row says of an error that is its checkpoint's, and not the store's or a missing package's."""
    if isinstance(error, ImportError) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
    ):
        raise error
    return f"{type(error).__name__}: {' '.join(str(error).split())}"  # a table has one line for it
