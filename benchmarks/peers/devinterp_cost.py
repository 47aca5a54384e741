"""Run SGLD in devinterp 1.3.2, for ``accuracy_tables/cost.py``, which starts it with a Python that has devinterp.

Reads one specification from standard input as JSON and answers with one JSON line: for every run, the losses
``(chain, step)`` and the seconds of the whole call. Imports nothing of ours, so that the peer's environment needs
devinterp and torch only.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from devinterp.optim.sgld import SGLD
from devinterp.slt.sampler import estimate_learning_coeff_with_summary
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

WARMUP_STEPS = 20


class TensorBatches(DataLoader):
    """Shuffled batches by one index per batch: what a DataLoader costs a sample is not the sampler's doing."""

    def __init__(self, x: Tensor, y: Tensor, batch_size: int):
        super().__init__(TensorDataset(x, y), batch_size=batch_size, shuffle=True)

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(self.dataset))
        for chosen in order.split(self.batch_size):
            yield self.dataset.tensors[0][chosen], self.dataset.tensors[1][chosen]


def squares(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return (model(x) - y).square().sum(-1).mean() / 2


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def run(
    specification: dict[str, Any], model: nn.Module, loader: DataLoader, step_size: float, seed: int, steps: int
) -> dict[str, Any]:
    start, cpu = time.perf_counter(), time.process_time()
    try:
        results = estimate_learning_coeff_with_summary(
            model,
            loader,
            evaluate={"squares": squares, "cross_entropy": cross_entropy}[specification["loss"]],
            sampling_method=SGLD,
            optimizer_kwargs={
                "lr": step_size,
                "localization": specification["localization"],
                "nbeta": specification["n_beta"],
            },
            num_draws=steps,
            num_chains=specification["num_chains"],
            num_steps_bw_draws=1,
            init_loss=specification["loss_at_anchor"],  # over the full data: its own is of some batches
            cores=1,
            seed=seed,
            verbose=False,
        )
    except RuntimeError as error:  # it stops at the first loss that is not a number
        return {"failed": str(error)}
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    losses = np.asarray(results["loss/trace"], dtype=np.float64)
    if not np.isfinite(losses).all():
        return {"failed": "a chain ended in a loss that is not finite"}
    return {
        "losses": losses.tolist(),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "own_estimate": float(results["llc/mean"]),
    }


def measure(specification: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    tensors = torch.load(specification["tensors"])
    model = nn.Sequential(*(getattr(nn, name)(*arguments) for name, *arguments in specification["layers"]))
    model.load_state_dict(tensors["weights"])
    loader = TensorBatches(tensors["x"], tensors["y"], specification["batch_size"])
    least = min(step_size for step_size, _, _ in specification["runs"])
    run(specification, model, loader, least, 0, WARMUP_STEPS)
    return {
        "runs": [run(specification, model, loader, *one) for one in specification["runs"]],
        "about": {"devinterp": importlib.metadata.version("devinterp"), "torch": torch.__version__},
    }


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # whatever the library prints stays out of the answer
        answer = measure(json.load(sys.stdin))
    print(json.dumps(answer))
