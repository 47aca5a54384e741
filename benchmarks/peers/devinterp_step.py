"""Time SGLD in devinterp 1.3.2, for ``benchmarks/step.py``, which starts it with a Python that has devinterp.

Reads one specification from standard input as JSON and answers with one JSON line: microseconds per chain-step and λ̂,
from a shuffling DataLoader and from a loader of ready batches, with the versions and threads it ran with. Imports
nothing of ours, so that the peer's environment needs devinterp and torch only.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from devinterp.optim.sgld import SGLD
from devinterp.slt.sampler import estimate_learning_coeff_with_summary
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

WARMUP_DRAWS = 5


class ReadyBatches(DataLoader):
    """One epoch of another loader, collated in advance: what the DataLoader costs is not the sampler's doing."""

    def __init__(self, loader: DataLoader):
        super().__init__(loader.dataset, batch_size=loader.batch_size)
        self.ready = list(loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.ready)


def evaluate(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return ((model(x) - y) ** 2).mean()


def timed(model: nn.Module, loader: DataLoader, num_draws: int, specification: dict[str, Any]) -> dict[str, float]:
    num_chains = specification["num_chains"]
    start = time.perf_counter()
    results = estimate_learning_coeff_with_summary(
        model,
        loader,
        evaluate=evaluate,
        sampling_method=SGLD,
        optimizer_kwargs={
            "lr": specification["step_size"],
            "localization": specification["localization"],
            "nbeta": specification["n_beta"],
        },
        num_draws=num_draws,
        num_chains=num_chains,
        num_steps_bw_draws=1,
        init_loss=specification["loss_at_anchor"],  # given, so that it is not computed within the time
        cores=1,
        verbose=False,
    )
    seconds = time.perf_counter() - start
    return {"microseconds": seconds * 1e6 / (num_chains * num_draws), "llc": float(results["llc/mean"])}


def measure(specification: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(specification["threads"])
    torch.manual_seed(specification["seed"])
    tensors = torch.load(specification["tensors"])
    model = nn.Sequential(*(getattr(nn, name)(*arguments) for name, *arguments in specification["layers"]))
    model.load_state_dict(tensors["weights"])
    data = TensorDataset(tensors["x"], tensors["y"])
    shuffling = DataLoader(data, batch_size=specification["batch_size"], shuffle=True)
    timings = {}
    for name, loader in (("devinterp", shuffling), ("devinterp, ready batches", ReadyBatches(shuffling))):
        timed(model, loader, WARMUP_DRAWS, specification)
        timings[name] = timed(model, loader, specification["num_draws"], specification)
    about = {
        "devinterp": importlib.metadata.version("devinterp"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return {"timings": timings, "about": about}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # whatever the library prints stays out of the answer
        answer = measure(json.load(sys.stdin))
    print(json.dumps(answer))
