"""What one step of SGLD costs on a GPU: prints a table and writes ``benchmarks/results/step_cuda.json``.

Microseconds per chain-step of the batched engine, 64 chains (16 of the last model) in float32, on the four small
models on which peers were measured; each the median, least and most of several repeats of so many steps, with the
step's CUDA graph captured before. The first column is the step replayed from its graph, the second the same step
launched from Python.

    python benchmarks/step_cuda.py
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import samplers
import slt

HERE = Path(__file__).resolve().parent


class Case(NamedTuple):
    """A model, its data, and how many microseconds a chain-step may take."""

    name: str
    layers: list[nn.Module]
    num_samples: int
    batch_size: int
    num_chains: int
    bar: float


def cases() -> list[Case]:
    relu: list[nn.Module] = [nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    wide: list[nn.Module] = [nn.Linear(100, 100, bias=False) for _ in range(3)]
    return [
        Case("tanh 2-16-1", [nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)], 1_000, 1_000, 64, 2.0),
        Case("linear 6-8-6", [nn.Linear(6, 8, bias=False), nn.Linear(8, 6, bias=False)], 2_000, 256, 64, 1.1),
        Case("ReLU 10-64-64-10", relu, 10_000, 512, 64, 4.0),
        Case("linear 100-100-100-100", wide, 10_000, 512, 16, 10.5),
    ]


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def measure(case: Case, steps: int, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(*case.layers).cuda()
    inputs = next(iter(model.parameters())).shape[1]
    x = torch.randn(case.num_samples, inputs, device="cuda")
    with torch.no_grad():
        y = model(x) + 0.5 * torch.randn_like(model(x))
    n_beta = case.num_samples / math.log(case.num_samples)
    posterior = slt.LocalPosterior(
        model, (x, y), squared_error, n_beta=n_beta, localization=1.0, num_chains=case.num_chains, engine="batched"
    )
    batches = None if case.batch_size == case.num_samples else posterior.minibatches(case.batch_size)
    form: dict[str, Any] = {"batches": batches, "num_chains": case.num_chains, "num_warmup": 0, "progress": False}
    times: dict[str, list[float]] = {"graph": [], "launched": []}
    with posterior:
        run = samplers.Run(samplers.sgld(1e-6), posterior, posterior.anchor, **form)
        run.draw(200)
        for _ in range(repeats):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run.draw(steps)
            torch.cuda.synchronize()
            times["graph"].append((time.perf_counter() - start) * 1e6 / (steps * case.num_chains))
        kernel, block = run.kernel, run.blocks[0]
        for _ in range(repeats):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(100):
                batch = None if block.batches is None else next(block.batches)
                kernel.step_(block.state, posterior, batch, block.generator)
            torch.cuda.synchronize()
            times["launched"].append((time.perf_counter() - start) * 1e6 / (100 * case.num_chains))
    trace = run.trace()
    return {
        "model": case.name, "chains": case.num_chains, "batch": case.batch_size, "bar": case.bar,
        "cuda_graph": trace.configuration["cuda_graph"],
        **{name: {"median": statistics.median(own), "min": min(own), "max": max(own)} for name, own in times.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "step_cuda.json")
    options = parser.parse_args()
    rows = [measure(case, options.steps, options.repeats) for case in cases()]
    print(f"{'model':<24}{'chains':>7}{'graph':>8}{'bar':>6}{'launched':>10}   µs per chain-step")
    for row in rows:
        print(
            f"{row['model']:<24}{row['chains']:>7}{row['graph']['median']:>8.2f}{row['bar']:>6.1f}"
            f"{row['launched']['median']:>10.2f}   {row['cuda_graph']}"
        )
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "python": platform.python_version()}
    options.output.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
