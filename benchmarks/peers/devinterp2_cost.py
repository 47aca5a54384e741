"""Run SGLD in devinterp 2.0.1, for ``accuracy_tables/cost.py``, which starts it with a Python that has devinterp.

It samples language models on sequences of tokens. Here a sequence is the number of a sample, followed by a token that
nothing reads, and the loss per token looks the sample up, which its ``loss_fn`` allows. Reads and answers as
``devinterp_cost.py`` does.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # read on import: its progress bars have no switch of their own

import numpy as np
import torch
from datasets import Dataset
from devinterp.slt.llc import llc
from torch import Tensor, nn

WARMUP_STEPS = 20


class SampleLoss:
    """The loss of the samples whose numbers stand first in the sequences."""

    def __init__(self, x: Tensor, y: Tensor, name: str):
        self.x, self.y, self.name = x, y, name

    def __call__(self, model: nn.Module, input_ids: Tensor) -> Tensor:
        """Loss ``(batch, 1)`` of sequences ``(batch, 2)``."""
        chosen = input_ids[:, 0]
        output, y = model(self.x[chosen]), self.y[chosen]
        if self.name == "squares":
            return (output - y).square().sum(-1, keepdim=True) / 2
        if self.name == "mean_squares":
            return (output - y).square().mean(-1, keepdim=True)
        return nn.functional.cross_entropy(output, y, reduction="none").unsqueeze(-1)


def numbered(num_samples: int) -> Dataset:
    """Sequences that are the numbers of samples, for ``SampleLoss``."""
    return Dataset.from_dict({"input_ids": [[index, 0] for index in range(num_samples)]}).with_format("torch")


def run(
    specification: dict[str, Any],
    model: nn.Module,
    dataset: Dataset,
    loss_fn: SampleLoss,
    step_size: float,
    seed: int,
    steps: int,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:  # it writes the loss and the tokens of every sample of every step
        start, cpu = time.perf_counter(), time.process_time()
        results = llc(
            model,
            dataset,
            {},
            lr=step_size,
            n_beta=specification["n_beta"],
            localization=specification["localization"],
            num_chains=specification["num_chains"],
            num_draws=steps,
            batch_size=specification["batch_size"],
            # over the full data, if not told otherwise
            num_init_loss_batches=specification.get("init_loss_batches", len(dataset) // specification["batch_size"]),
            init_seed=1000 * seed,
            device="cpu",
            loss_fn=loss_fn,
            output_path=Path(folder) / "samples.zarr",
        )
        losses = np.asarray(results.loss_trace.values, dtype=np.float64)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if not np.isfinite(losses).all():
        return {"failed": "a chain ended in a loss that is not finite"}
    return {
        "losses": losses.tolist(),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "own_estimate": float(results.llc_mean),
    }


def measure(specification: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    tensors = torch.load(specification["tensors"])
    model = nn.Sequential(*(getattr(nn, name)(*arguments) for name, *arguments in specification["layers"]))
    model.load_state_dict(tensors["weights"])
    x, y = tensors["x"], tensors["y"]
    of_samples = model, numbered(len(x)), SampleLoss(x, y, specification["loss"])
    least = min(step_size for step_size, _, _ in specification["runs"])
    run(specification, *of_samples, least, 0, WARMUP_STEPS)
    return {
        "runs": [run(specification, *of_samples, *one) for one in specification["runs"]],
        "about": {"devinterp": importlib.metadata.version("devinterp"), "torch": torch.__version__},
    }


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # whatever the library prints stays out of the answer
        answer = measure(json.load(sys.stdin))
    print(json.dumps(answer))
