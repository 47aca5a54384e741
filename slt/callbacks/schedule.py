"""At which steps of training an estimate is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from numbers import Real
from time import perf_counter
from typing import Any

import numpy as np


def log_spaced(first: int, last: int, count: int) -> list[int]:
    """Steps whose logarithms are evenly spaced, as development often is.

    >>> log_spaced(1, 1000, 4)
    [1, 10, 100, 1000]

    Args:
        first: The first step, at least 1.
        last: The last.
        count: How many at most: those that fall on the same whole number are one.

    Returns:
        Steps in order.

    Raises:
        ValueError: They are not 1 ≤ first ≤ last, or there are fewer than two.
    """
    if not 1 <= first <= last or count < 2:
        raise ValueError(f"first, last, count: {first}, {last}, {count}; expected 1 ≤ first ≤ last, and at least two.")
    return sorted({round(float(step)) for step in np.geomspace(first, last, count)})


def whole(name: str, value: Any) -> int:
    """The whole number that a value is, of whatever type: an ``int``, NumPy's, or a tensor of one element.

    Args:
        name: Of the argument.
        value: Its value.

    Returns:
        The number.

    Raises:
        ValueError: It is none.
    """
    with suppress(TypeError, ValueError, OverflowError, RuntimeError):  # the last of a tensor of several elements
        number = int(value)
        if number == value and not isinstance(value, bool | np.bool_):
            return number
    raise ValueError(f"{name}: {value!r}; expected a whole number of training steps.")


class Schedule:
    """Every so many steps, or at chosen ones; and no more often than a share of the time of training allows.

    Args:
        every: Steps between estimates, 0 included.
        steps: Or the steps themselves.
        share: Seconds of estimates per second of training, at most; without a limit by default. The first estimate is
            made when it is due, because nobody knows what it costs; the next ones wait until training has taken long
            enough to pay for what was spent and for one more of the last one's length.
        clock: Seconds.

    Raises:
        ValueError: Not exactly one of ``every`` and ``steps`` is given, or one is no number or out of range.
    """

    def __init__(
        self,
        every: int | None,
        steps: Iterable[int] | None,
        share: float | None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        if (every is None) == (steps is None):
            raise ValueError(f"every, steps: {every}, {steps}; expected one of the two.")
        if every is not None and whole("every", every) < 1:
            raise ValueError(f"every: {every}; expected a positive number of training steps.")
        if share is not None and (
            isinstance(share, bool) or not isinstance(share, Real) or not 0 < share < float("inf")
        ):
            raise ValueError(f"share: {share!r}; expected a positive share of the time of training, such as 0.05.")
        if steps is not None and (isinstance(steps, str) or not isinstance(steps, Iterable)):
            raise ValueError(f"steps: {steps!r}; expected several, such as [0, 100, 1000]; for one in so many, every.")
        self.every = None if every is None else whole("every", every)
        self.steps = None if steps is None else frozenset(whole("steps", step) for step in steps)
        if self.steps is not None and (not self.steps or min(self.steps) < 0):
            raise ValueError(f"steps: {sorted(self.steps)}; expected at least one step, none below 0.")
        self.share = share
        self._clock = clock
        self._started: float | None = None  # at the first step: what comes before it is no training
        self._before = 0.0
        self.spent, self.last = 0.0, 0.0

    def due(self, step: int) -> bool:
        """Whether an estimate is to be made at this step.

        Args:
            step: Of training.

        Returns:
            Whether.
        """
        if self._started is None:
            self._started = self._clock()
        if self.every is not None and step % self.every:
            return False
        if self.steps is not None and step not in self.steps:
            return False
        if self.share is None or self.spent == 0:
            return True
        return self.spent + self.last <= self.share * self._training()

    def _training(self) -> float:
        """Seconds of training so far, those before a restart too."""
        here = 0.0 if self._started is None else self._clock() - self._started
        return self._before + here - self.spent

    def state_dict(self) -> dict[str, float]:
        """The time that was spent, to be saved with a checkpoint of training."""
        return {"spent": self.spent, "last": self.last, "training": self._training()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up the time that was spent before a restart.

        Args:
            state: Of ``state_dict``.
        """
        self.spent, self.last = state["spent"], state["last"]
        self._before, self._started = state["training"] + state["spent"], None

    def took(self, seconds: float) -> None:
        """Count an estimate.

        Args:
            seconds: That it took.
        """
        self.spent, self.last = self.spent + seconds, seconds
