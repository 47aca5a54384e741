"""The processes that ``torchrun`` has started: which one this is, and a group of them all."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def rank() -> int:
    """The number of this process among those of ``torchrun``, from its ``RANK``; 0 without it."""
    return int(os.environ.get("RANK", 0)) if count() > 1 else 0


def count() -> int:
    """How many processes ``torchrun`` has started, from its ``WORLD_SIZE``; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def run() -> str:
    """What the processes of one ``torchrun`` have in common; empty without it."""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    if count() == 1:
        return ""
    told = [os.environ.get(name, "") for name in names]
    if told[1] in LOOPBACK:  # without --standalone or a rendezvous, those of all machines are alike
        told.append(socket.gethostname())
    return " ".join(told)


def use_own_device() -> None:
    """Make ``cuda`` the GPU of this process's place on its machine, where there is one."""
    if count() > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


@contextmanager
def all_processes() -> Iterator[dist.ProcessGroup | None]:
    """The group of all processes, for as long as it is entered; None where this one is alone.

    What they exchange are draws, which lie on the CPU: by gloo, whatever the device of the model.

    Yields:
        The group.
    """
    if count() == 1:
        yield None
        return
    if dist.is_initialized():  # by who made the model
        yield dist.group.WORLD
        return
    dist.init_process_group("gloo")
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
