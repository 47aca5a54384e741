"""The state of a kernel, for programs that stand in for its step: its tensors, its constants, copies, and agreement."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.noise import ColumnStreams

# A program may round otherwise than the step itself, by so much of the largest number of a tensor, for positions in
# float64 and in less; and the position by so much of the largest move, or a small step without noise would pass.
AGREEMENT, AGREEMENT_OF_OTHERS = 1e-8, 1e-2
# Of what a step says: a rounding error of a large energy makes anything of them, of one near overflow the second too.
OF_LARGE_ENERGIES = ("acceptance_rate", "not_finite")
ROUNDINGS = 64  # of the position itself, in units of its precision


def agreement(dtype: torch.dtype) -> float:
    """How far a program may be from the step itself, relative to the largest value."""
    return AGREEMENT if dtype == torch.float64 else AGREEMENT_OF_OTHERS


def difference(found: Tensor, expected: Tensor, before: Tensor | None, *, moved: bool) -> float:
    """The largest difference, relative to the largest value; of what moves, to the largest move, rounding apart."""
    if not expected.is_floating_point():
        return float(not torch.equal(found, expected))
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(found)):
        return math.inf
    if not bool(finite.any()):
        return 0.0
    kind = torch.finfo(expected.dtype)
    apart, largest = (found - expected)[finite].abs().max(), expected[finite].abs().max()
    if moved and before is not None:
        apart = (apart - ROUNDINGS * kind.eps * largest).clamp(min=0.0)
        largest = (expected - before)[finite].abs().max()
    return float(apart / largest.clamp(min=kind.tiny))


def copy_of(generator: torch.Generator) -> torch.Generator:
    """A generator of its own that will draw the same."""
    return torch.Generator(generator.device).set_state(generator.get_state())


def state_tensors(state: Any) -> list[tuple[Any, str]]:
    """Where the tensors of a state are, those of states within it too."""
    found: list[tuple[Any, str]] = []
    for field in fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            found.append((state, field.name))
        elif is_dataclass(value):
            found.extend(state_tensors(value))
    return found


def state_constants(state: Any) -> list[Any]:
    """All else that a state holds, but for random streams."""
    found: list[Any] = []
    for field in fields(state):
        value = getattr(state, field.name)
        if is_dataclass(value):
            found.extend(state_constants(value))
        elif not isinstance(value, Tensor | ColumnStreams):
            found.append(copy.deepcopy(value))
    return found


def random_streams(state: Any) -> bool:
    """Whether a state has random streams beside that of its block."""
    values = [getattr(state, field.name) for field in fields(state)]
    return any(isinstance(value, ColumnStreams) or (is_dataclass(value) and random_streams(value)) for value in values)


def copied(state: Any) -> Any:
    """A state of its own with the same values."""
    return with_tensors(state, [getattr(owner, name).clone() for owner, name in state_tensors(state)])


def with_tensors(state: Any, values: list[Tensor]) -> Any:
    """A state of the same make with other tensors."""
    made = _shell(state)
    for (owner, name), value in zip(state_tensors(made), values, strict=True):
        setattr(owner, name, value)
    return made


def _shell(state: Any) -> Any:
    made = copy.copy(state)
    for field in fields(made):
        value = getattr(made, field.name)
        if is_dataclass(value):
            setattr(made, field.name, _shell(value))
        elif not isinstance(value, Tensor | ColumnStreams):
            setattr(made, field.name, copy.deepcopy(value))
    return made
