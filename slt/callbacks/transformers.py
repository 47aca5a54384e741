"""λ̂ inside the ``Trainer`` of Transformers."""

from __future__ import annotations

import json
from typing import Any

from slt.callbacks.logs import numbers
from slt.callbacks.monitor import LLCMonitor

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("slt.callbacks.transformers needs Transformers. Install slt-toolkit[hf].") from error

VERDICT, SCHEDULE = "llc_verdict", "llc_schedule"


class LLCCallback(TrainerCallback):
    """A ``TrainerCallback`` around an :class:`slt.callbacks.LLCMonitor`.

    ``monitor.step(model, state.global_step)`` before training, where the step is 0, and after every step; what it finds
    is appended to ``state.log_history``, which the trainer saves with its checkpoints and reads again when it resumes.
    Trackers of the trainer are not called by it: give ``log=`` to the monitor. Only the first process makes estimates.
    A training that begins takes up what its ``log_history`` has, and forgets all else that the monitor holds.

    >>> trainer = Trainer(model, arguments, callbacks=[LLCCallback(LLCMonitor(data, loss_fn, every=500))])
    ... # doctest: +SKIP

    Args:
        monitor: The monitor.
        name: Before the names of what is logged, such as ``"test/"``; two callbacks of one trainer need two.
    """

    def __init__(self, monitor: LLCMonitor, name: str = "") -> None:
        self.monitor, self.name = monitor, name

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        """Take up what ``state.log_history`` has, and nothing else; and an estimate where training begins."""
        logged, schedule = {}, None
        for entry in state.log_history:
            if self.name + VERDICT in entry:
                found = {name.removeprefix(self.name): value for name, value in entry.items() if name != "step"}
                schedule = found.pop(SCHEDULE)  # of the last entry, in the end
                logged[entry["step"]] = found
        # what the monitor has of a training that was given up, or of another model, is not of this one
        if schedule is None:
            self.monitor.reset()
        else:
            self.monitor.load_state_dict({"logged": logged, "schedule": schedule})
        self._step(state, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        """An estimate, where one is due."""
        self._step(state, model)

    def _step(self, state: Any, model: Any) -> None:
        step = state.global_step
        if not state.is_world_process_zero or step in self.monitor.logged:
            return
        self.monitor.step(model, step)
        if step in self.monitor.logged:
            values = self.monitor.logged[step]
            found = {**numbers(values), VERDICT: str(values[VERDICT])}
            found[SCHEDULE] = self.monitor.schedule.state_dict()
            entry = {**{self.name + name: value for name, value in found.items()}, "step": step}
            json.dumps(entry)  # what cannot be written now would break the trainer's next checkpoint
            state.log_history.append(entry)
