"""Leave no trace: a context in which the random number generators and a module may be used and come back unchanged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def preserved_random_state(seed: int | None = None) -> Iterator[None]:
    """A context that restores the generators of Python, NumPy, torch and CUDA as they were.

    Args:
        seed: Given, all of them are seeded with it inside, so that what is random there repeats.
    """
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002  (the user's data set may draw from the global generator)
            torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def preserved_module(module: nn.Module, *, eval_mode: bool) -> Iterator[None]:
    """A context that restores every submodule's train/eval mode and every buffer.

    Args:
        module: The module.
        eval_mode: Whether it is in eval mode inside; its modes are left as they are otherwise.
    """
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        if eval_mode:
            module.eval()
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def stochastic_modules(module: nn.Module) -> list[str]:
    """Names of submodules in train mode whose output depends on chance or on the batch: Dropout, BatchNorm."""
    kinds = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
    return [
        f"{name or 'model'} ({type(submodule).__name__})"
        for name, submodule in module.named_modules()
        if submodule.training
        and isinstance(submodule, kinds)
        and not (isinstance(submodule, nn.modules.dropout._DropoutNd) and submodule.p == 0)
    ]
