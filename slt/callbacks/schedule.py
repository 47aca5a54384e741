"""At which steps of training an estimate is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter

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
        ValueError: Not exactly one of ``every`` and ``steps`` is given, or a number is out of range.
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
        if every is not None and every < 1:
            raise ValueError(f"every: {every}; expected a positive number of training steps.")
        if share is not None and not 0 < share < float("inf"):
            raise ValueError(f"share: {share}; expected a positive share of the time of training, such as 0.05.")
        self.every, self.steps, self.share = every, None if steps is None else frozenset(steps), share
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
