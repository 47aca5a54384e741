"""Time SGLD in canonical-interp 0.2.7, for ``benchmarks/peers.py`` and ``benchmarks/step_cuda.py``, which start it.

Ways: ``"no compile"``, or a mode of ``torch.compile`` for the gradient; the update of the weights is compiled by the
package in any case. Batches are ready, on the device, and shared by all chains; time is read where they are asked for,
so that it contains whole steps, after those in which programs are compiled.

The package asks for Python 3.12, of which it needs ``itertools.batched``, and that for several devices only. Where
Python is older, this script supplies it before the package is imported.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from conversation import Run, build, serve
from torch import Tensor, nn

logging.disable(logging.WARNING)  # advice on workers, pinned memory and burn-in


def batched(values: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """Tuples of so many values, as ``itertools.batched`` of Python 3.12 gives them."""
    left = iter(values)
    while taken := tuple(itertools.islice(left, size)):
        yield taken


def estimator_class() -> Any:
    if not hasattr(itertools, "batched"):
        vars(itertools)["batched"] = batched
    from canonical_interp.slt import LLCEstimator

    return LLCEstimator


class ReadyBatches:
    """Batches of equal size, shuffled in advance of a run, and the times at which two of them were asked for."""

    num_workers, pin_memory, persistent_workers = 1, True, True  # which it asks any loader

    def __init__(self, x: Tensor, y: Tensor, specification: dict[str, Any]):
        self.first, self.last = specification["untimed"], specification["untimed"] + specification["num_steps"]
        self.x, self.y, self.size = x, y, specification["batch_size"]
        count = specification["llc_draws"]  # the first draws then see no batch twice
        self.batches = [(x[: self.size].clone(), y[: self.size].clone()) for _ in range(count)]
        self.cuda = x.device.type == "cuda"
        self.times: list[float] = []

    def shuffle(self, seed: int) -> None:
        """Draw all batches anew, in place: memory is watched."""
        generator = torch.Generator().manual_seed(seed)
        size = self.size
        orders = (torch.randperm(len(self.x), generator=generator) for _ in iter(int, 1))
        parts = (order[i : i + size] for order in orders for i in range(0, len(order) - size + 1, size))
        for chosen, (x, y) in zip(parts, self.batches, strict=False):
            chosen = chosen.to(self.x.device)
            torch.index_select(self.x, 0, chosen, out=x)
            torch.index_select(self.y, 0, chosen, out=y)

    def __len__(self) -> int:
        return self.last + 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.times.clear()
        for step in range(len(self)):
            if step in (self.first, self.last):
                if self.cuda:
                    torch.cuda.synchronize()
                self.times.append(time.perf_counter())
            yield self.batches[step % len(self.batches)]


def prepare(specification: dict[str, Any]) -> Run:
    device, way = specification["device"], specification["way"]
    model, x, y = build(specification)
    loader = ReadyBatches(x.to(device), y.to(device), specification)
    estimator = estimator_class()(
        draws=len(loader), chains=specification["num_chains"], burnin_steps=0,
        learning_rate=specification["step_size"], nbeta=specification["n_beta"],
        localization=specification["localization"],
    )  # fmt: skip

    def run(seed: int) -> dict[str, Any]:
        loader.shuffle(seed)
        estimator.estimate_llc(
            model, loader, nn.functional.mse_loss, devices=device, seed=seed, show_progress=False,
            compile=False if way == "no compile" else way, current_loss=specification["loss_at_anchor"],
        )  # fmt: skip
        start, stop = loader.times
        loss = float(estimator.get_metrics()["losses"][:, : specification["llc_draws"]].mean())
        return {
            "microseconds": (stop - start) * 1e6 / (specification["num_steps"] * specification["num_chains"]),
            "llc": specification["n_beta"] * (loss - specification["loss_at_anchor"]),
        }

    return run


if __name__ == "__main__":
    serve(prepare)
