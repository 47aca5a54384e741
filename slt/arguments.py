"""Checks of numbers that several calls take, before anything is computed."""

from __future__ import annotations

import math

import torch


class WeightsError(ValueError):
    """What is wrong with the weights at which an estimate was asked for, and not with an argument of the call."""


def check_seed(seed: int) -> None:
    """Refuse a seed that is not a whole number of at least 0.

    Args:
        seed: Of everything random.

    Raises:
        ValueError: It is another.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: {seed!r}; expected a whole number of at least 0.")


def check_counts(**counts: int | None) -> None:
    """Refuse a count that is not a whole number, or below the least, 0 of warm-up and else 1; None is a default.

    Args:
        **counts: By the names of the arguments.

    Raises:
        ValueError: One of them is another.
    """
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{name}: {value!r}; expected a whole number.")
        least = 0 if name == "num_warmup" else 1
        if value is not None and value < least:
            raise ValueError(f"{name}: {value}; expected at least {least}.")


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
