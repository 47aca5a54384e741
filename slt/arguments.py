"""Checks of numbers that several calls take, before anything is computed."""

from __future__ import annotations

import math
import operator
from itertools import chain

import torch
from torch import nn


class WeightsError(ValueError):
    """What is wrong with the weights at which an estimate was asked for, and not with an argument of the call."""


def check_module(model: object) -> None:
    """Refuse what is no module, and a module that cannot compute with other weights than its own.

    Args:
        model: The module.

    Raises:
        ValueError: It is a class or a function, compiled by ``torch.jit``, or its weights were made in inference mode,
            or have no shape yet.
    """
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise ValueError(f"model: {given}; expected a torch.nn.Module, at the weights to be measured.")
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(
                f"model: {name or 'it'} is compiled by torch.jit, whose weights cannot be exchanged; expected the "
                "torch.nn.Module that it was made from."
            )
    check_shapes(model)
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise ValueError(
                f"model: {name} was made under torch.inference_mode and has no gradient; expected a module made "
                "outside of it."
            )


def check_shapes(model: nn.Module) -> None:
    """Refuse a module with a lazy part that has seen no batch: its weights would be made under a sampler.

    Args:
        model: The module.

    Raises:
        ValueError: A parameter or a buffer has no shape yet.
    """
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(
                f"model: {name} has no shape yet, as those of lazy modules until they are called; expected a trained "
                "one. Run one batch through the model first, or load its weights."
            )


def whole_seed(seed: int) -> int:
    """A seed as an ``int``, which may be given as one of NumPy's or a tensor.

    Args:
        seed: Of everything random.

    Returns:
        The seed.

    Raises:
        ValueError: It is not a whole number of at least 0.
    """
    found = _whole(seed)
    if found is None or found < 0:
        raise ValueError(f"seed: {seed!r}; expected a whole number of at least 0.")
    return found


def whole_counts(**counts: int | None) -> tuple[int | None, ...]:
    """Counts as ``int``, in the order in which they are given, which may be NumPy's or tensors; None is a default.

    Args:
        **counts: By the names of the arguments.

    Returns:
        The counts.

    Raises:
        ValueError: One of them is not a whole number, or below the least, 0 of warm-up and else 1.
    """
    return tuple(None if value is None else whole_count(name, value) for name, value in counts.items())


def whole_count(name: str, value: int) -> int:
    """One count as an ``int``, as :func:`whole_counts`.

    Args:
        name: Of the argument.
        value: The count.

    Returns:
        The count.

    Raises:
        ValueError: It is not a whole number, or below the least, 0 of warm-up and else 1.
    """
    found, least = _whole(value), 0 if name == "num_warmup" else 1
    if found is None:
        raise ValueError(f"{name}: {value!r}; expected a whole number.")
    if found < least:
        raise ValueError(f"{name}: {found}; expected at least {least}.")
    return found


def _whole(value: object) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_numbers(**values: object) -> None:
    """Refuse what is no number, such as ``"5%"``; None stands for a default.

    Args:
        **values: By the names of the arguments.

    Raises:
        ValueError: One of them is none.
    """
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not hasattr(value, "__float__")):
            raise ValueError(f"{name}: {value!r}; expected a number.")


def check_samples(n: int | None) -> None:
    """Refuse a number of samples that is not positive and whole; one such as 1e5 is.

    Args:
        n: The number that the loss stands for, or None.

    Raises:
        ValueError: It is another.
    """
    if n is not None and not (1 <= n < math.inf and n == math.floor(n)):
        raise ValueError(f"n: {n!r}; expected a positive number of samples.")


def as_device(device: torch.device | str) -> torch.device:
    """The device of this name.

    Args:
        device: Its name.

    Returns:
        The device.

    Raises:
        ValueError: There is none of this name, this torch was built without it, or nothing can be computed there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: {str(device)!r} is not to be had ({reason}). Use 'cpu', or one that is.") from error
    if torch.device(device).type == "meta":
        raise ValueError("device: 'meta' has shapes and no values, so that there is no loss. Use 'cpu', or another.")
    return torch.empty(0, device=device).device  # with the index that "cuda" leaves out
