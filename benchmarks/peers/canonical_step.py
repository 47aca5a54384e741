"""Time SGLD in canonical-interp 0.2.7 on a GPU, for ``benchmarks/step_cuda.py``, which starts it.

Reads one specification from standard input as JSON and answers with one JSON line: microseconds per chain-step, from
batches that lie on the GPU already, in each mode of ``torch.compile`` that the peer offers. Its chains share their
minibatches. Imports nothing of ours.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import sys
import time
from collections.abc import Iterator

import torch
from canonical_interp.slt import LLCEstimator
from torch import Tensor, nn

FIRST, STEPS = 300, 1000  # steps before the clock starts, which compile and warm up, and timed ones
MODES = {"no compile": False, "default": "default", "reduce-overhead": "reduce-overhead"}


class ReadyBatches:
    """Batches on the GPU, with the time at which two of them were asked for."""

    num_workers, pin_memory, persistent_workers = 1, True, True

    def __init__(self, x: Tensor, y: Tensor, batch_size: int):
        self.batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        self.batches = [batch for batch in self.batches if len(batch[0]) == batch_size]
        self.times: list[float] = []

    def __len__(self) -> int:
        return FIRST + STEPS + 10

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(len(self)):
            if step in (FIRST, FIRST + STEPS):
                torch.cuda.synchronize()
                self.times.append(time.perf_counter())
            yield self.batches[step % len(self.batches)]


def main() -> None:
    logging.disable(logging.ERROR)
    case = json.load(sys.stdin)
    torch.manual_seed(0)
    layers = [getattr(nn, name)(*arguments) for name, *arguments in case["layers"]]
    model = nn.Sequential(*layers).cuda()
    x = torch.randn(case["num_samples"], case["layers"][0][1], device="cuda")
    with torch.no_grad():
        y = model(x) + 0.5 * torch.randn_like(model(x))
    found: dict[str, float | str] = {}
    for name, mode in MODES.items():
        loader = ReadyBatches(x, y, case["batch_size"])
        estimator = LLCEstimator(
            draws=STEPS + 1, chains=case["num_chains"], burnin_steps=FIRST, learning_rate=1e-6, nbeta=case["n_beta"],
            localization=1.5,
        )  # fmt: skip
        try:
            estimator.estimate_llc(
                model, loader, nn.functional.mse_loss, devices="cuda", seed=0, compile=mode, show_progress=False,
                current_loss=0.25,
            )  # fmt: skip
        except Exception as error:  # a mode that fails is a fact of the table
            found[name] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        start, stop = loader.times[:2]
        found[name] = (stop - start) * 1e6 / (STEPS * case["num_chains"])
    print(json.dumps({"microseconds": found, "version": importlib.metadata.version("canonical-interp")}))


if __name__ == "__main__":
    main()
