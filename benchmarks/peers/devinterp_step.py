"""Time SGLD in devinterp 1.3.2, for ``benchmarks/peers.py``, which starts it with a Python that has devinterp.

Ways: ``"DataLoader"``, which shuffles, and ``"ready batches"``, one epoch of it collated in advance.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from conversation import Run, build, serve
from devinterp.optim.sgld import SGLD
from devinterp.slt.sampler import estimate_learning_coeff_with_summary
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

UNTIMED = 5  # draws of each chain


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


def timed(model: nn.Module, loader: DataLoader, num_draws: int, specification: dict[str, Any]) -> dict[str, Any]:
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


def prepare(specification: dict[str, Any]) -> Run:
    model, x, y = build(specification)
    torch.manual_seed(specification["seed"])  # of the ready batches
    loader = DataLoader(TensorDataset(x, y), batch_size=specification["batch_size"], shuffle=True)
    if specification["way"] == "ready batches":
        loader = ReadyBatches(loader)

    def run(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        timed(model, loader, UNTIMED, specification)
        return timed(model, loader, specification["llc_draws"], specification)

    return run


if __name__ == "__main__":
    serve(prepare)
