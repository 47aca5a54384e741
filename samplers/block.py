"""Chains that are advanced together: their state, their random stream, and the record of what they drew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samplers.kernel import Info
from samplers.potential import Batch
from samplers.saving import restored, saved
from samplers.trace import Arrays


@dataclass
class Block:
    """Chains that are advanced together, with a random stream and batches of their own."""

    first_chain: int
    num_chains: int
    generator: torch.Generator
    batches: Iterator[Batch] | None
    state: Any = None
    released: Tensor | None = None  # where chains were when their state was freed; of the first block
    steps: int = 0
    windows: list[Arrays] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    first_bad_step: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    told: tuple[int, int] = (0, 0)  # windows and positions that other processes have

    def __post_init__(self) -> None:
        self.first_bad_step = np.full(self.num_chains, -1, dtype=np.int64)

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on: the state, the random stream, the place among the batches, and what was drawn."""
        if self.batches is not None and not hasattr(self.batches, "state_dict"):
            raise TypeError(
                f"batches: an iterator of type {type(self.batches).__name__} without state_dict() and "
                "load_state_dict(), so that the run cannot be continued from where it is; expected one that has both, "
                "such as those of slt.LocalPosterior.minibatches."
            )
        return {
            "state": saved(self.state),
            "generator": saved(self.generator),
            "batches": None if self.batches is None else self.batches.state_dict(),  # type: ignore[attr-defined]
            "steps": self.steps,
            "windows": [{name: torch.from_numpy(values) for name, values in window.items()} for window in self.windows],
            "positions": torch.stack(self.positions) if self.positions else None,
            "first_bad_step": torch.from_numpy(self.first_bad_step.copy()),
        }

    def load_state_dict(self, stored: dict[str, Any], fresh: Any, device: torch.device) -> None:
        """Go on from where another block was.

        Args:
            stored: From :meth:`state_dict` of that block.
            fresh: A state that the same kernel started, or None where that block had none.
            device: Of the run.
        """
        self.state = None if fresh is None else restored(fresh, stored["state"], device)
        self.generator.set_state(stored["generator"])
        if self.batches is not None:
            self.batches.load_state_dict(stored["batches"])  # type: ignore[attr-defined]
        self.steps = stored["steps"]
        self.windows = [{name: values.numpy() for name, values in window.items()} for window in stored["windows"]]
        for window in self.windows:  # of a run that was saved before steps said this of their proposals
            window.setdefault("not_finite", np.zeros_like(window["loss"]))
        self.positions = [] if stored["positions"] is None else list(stored["positions"])
        self.first_bad_step = stored["first_bad_step"].numpy().copy()

    def news(self) -> dict[str, Any]:
        """What it has recorded since the last call, for a block of another process to :meth:`take`."""
        windows, positions = self.told
        self.told = len(self.windows), len(self.positions)
        return {
            "windows": self.windows[windows:],
            "positions": torch.stack(self.positions[positions:]) if self.positions[positions:] else None,
            "first_bad_step": self.first_bad_step,
            "steps": self.steps,
        }

    def take(self, news: dict[str, Any]) -> None:
        """Record what the block of another process has.

        Args:
            news: From :meth:`news` of that block.
        """
        self.windows.extend(news["windows"])
        self.positions.extend([] if news["positions"] is None else news["positions"])
        self.first_bad_step, self.steps = news["first_bad_step"], news["steps"]

    @property
    def dead(self) -> bool:
        """Whether every chain of the block has diverged."""
        return bool((self.first_bad_step >= 0).all())

    def fetch(self, infos: list[Info]) -> None:
        """Move a window of infos from the device to the record; find chains that left the finite numbers."""
        if not infos:
            return
        # in one piece, for every transfer waits until the device has done all that it was given
        values = torch.stack([value for info in infos for value in info]).double().cpu()
        arrays = dict(
            zip(Info._fields, values.view(len(infos), len(Info._fields), -1).permute(1, 2, 0).numpy(), strict=True)
        )
        bad = ~(np.isfinite(arrays["loss"]) & np.isfinite(arrays["localization_energy"]))
        newly = bad.any(1) & (self.first_bad_step < 0)
        self.first_bad_step[newly] = self.steps + bad[newly].argmax(1)
        self.windows.append(arrays)
        self.steps += len(infos)
        infos.clear()

    def recent(self, first_step: int) -> Arrays:
        """Arrays ``(chain, step)`` of the steps from that one on."""
        kept, start = [], self.steps
        for window in reversed(self.windows):
            if start <= first_step:
                break
            kept.append(window)
            start -= window["loss"].shape[1]
        none, before = np.empty((self.num_chains, 0)), max(0, first_step - start)
        return {
            name: np.concatenate([none, *(each[name] for each in reversed(kept))], axis=1)[:, before:]
            for name in Info._fields
        }

    def record(self, num_steps: int) -> Arrays:
        """Arrays ``(chain, num_steps)``, not a number from the step at which a chain diverged."""
        filled = {name: np.full((self.num_chains, num_steps), np.nan) for name in Info._fields}
        taken = min(self.steps, num_steps)
        alive = (self.first_bad_step[:, None] < 0) | (np.arange(taken) < self.first_bad_step[:, None])
        for name, values in filled.items():
            if self.windows:
                joined = np.concatenate([window[name] for window in self.windows], axis=1)[:, :taken]
                values[:, :taken] = np.where(alive, joined, np.nan)
        return filled
