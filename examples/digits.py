"""A small tanh network on scikit-learn's digits: the task that the command line estimates, and its training.

slt estimate examples/digits.py:task --checkpoint out/demo/step-01000.safetensors
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import slt

HIDDEN = 8  # 610 parameters: small enough that an exact sampler takes seconds


def network() -> nn.Sequential:
    """The untrained network."""
    return nn.Sequential(nn.Linear(64, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 10))


def data() -> tuple[Tensor, Tensor]:
    """1,797 pictures as 64 numbers between 0 and 1, and their digits."""
    digits = load_digits()
    return torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy: the negative log likelihood of the digits, in nats."""
    pictures, digits = batch
    return nn.functional.cross_entropy(model(pictures), digits)


def train(
    steps: int, seed: int = 0, batch_size: int = 128, learning_rate: float = 1e-2
) -> Iterator[tuple[int, nn.Module]]:
    """The network after every step of training with Adam, step 0 being the untrained one."""
    torch.manual_seed(seed)
    model, (pictures, digits) = network(), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    yield 0, model
    for step in range(1, steps + 1):
        chosen = torch.randint(len(digits), (batch_size,))
        optimizer.zero_grad()
        loss_fn(model, (pictures[chosen], digits[chosen])).backward()
        optimizer.step()
        yield step, model


def task() -> slt.Task:
    """The task for the command line."""
    return slt.Task(network(), data(), loss_fn)
