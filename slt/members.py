"""The checkpoints of a series, in order, and how each is brought into the module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from slt.checkpoints import find_checkpoints, load_into, load_state, step_of


class Member(NamedTuple):
    """A checkpoint of the series.

    Attributes:
        step: The training step in its name, or None.
        path: Where it lies, or what it is called.
        load: Brings it into the module.
    """

    step: int | None
    path: str
    load: Callable[[nn.Module], None]


def find_series(checkpoints: Any, model: nn.Module) -> list[Member]:
    """The checkpoints in the order of their steps.

    Args:
        checkpoints: See :func:`slt.sweep`.
        model: Into which they will be brought.

    Returns:
        At least one.

    Raises:
        FileNotFoundError: None matched.
        ValueError: Two are of one step, some names have a step and others none, or a mapping has a step that is no
            whole number, or at a step neither a path nor a state dict.
    """
    if not isinstance(checkpoints, Mapping):
        paths = find_checkpoints(checkpoints)
        series = [Member(step_of(path), str(path), partial(load_into, path=path)) for path in paths]
        unnamed, named = ([member for member in series if (member.step is None) is side] for side in (True, False))
        if unnamed and named:  # its place in the series is not to be known, and would be made up
            raise ValueError(
                f"checkpoints: {unnamed[0].path!r} has no step in its name that can be read, and {named[0].path!r} has "
                f"step {named[0].step}. Leave it out, or give a mapping of steps to paths."
            )
    elif not checkpoints:
        raise FileNotFoundError("checkpoints: an empty mapping; expected state dicts by step.")
    else:
        wrong = [step for step in checkpoints if isinstance(step, bool) or not isinstance(step, Integral)]
        if wrong:
            raise ValueError(f"checkpoints: {wrong[0]!r} among the steps of the mapping; expected whole numbers.")
        series = [_by_step(int(step), checkpoints[step], model) for step in sorted(checkpoints)]
    by_step: dict[int | None, str] = {}
    for member in series:
        if member.step is not None and member.step in by_step:
            raise ValueError(
                f"checkpoints: {by_step[member.step]!r} and {member.path!r} are both of step {member.step} by their "
                "names. Leave one out, or give a mapping of steps to paths."
            )
        by_step[member.step] = member.path
    return series


def _by_step(step: int, source: Any, model: nn.Module) -> Member:
    if isinstance(source, str | Path):
        return Member(step, str(source), partial(load_into, path=source))
    if not isinstance(source, Mapping):
        raise ValueError(
            f"checkpoints: {type(source).__name__} at step {step}; expected a path, or a state dict such as "
            "model.state_dict()."
        )
    for name, value in source.items():
        # a module may keep anything under this name
        if not isinstance(value, Tensor) and str(name).rpartition(".")[2] != "_extra_state":
            raise ValueError(
                f"checkpoints: {type(value).__name__} under {name!r} at step {step}; expected tensors by name, such as "
                "model.state_dict()."
            )
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values() if isinstance(value, Tensor)}
    # a state dict that was not copied is the module's own weights, which every checkpoint overwrites
    state = {
        name: value.clone() if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in own else value
        for name, value in source.items()
    }
    return Member(step, f"step {step}", partial(load_state, state=state, name=f"step {step}"))
