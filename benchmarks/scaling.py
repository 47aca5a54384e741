"""What a chain-step costs as models and chains grow: time and memory, as a table, a JSON file and a figure.

    python benchmarks/scaling.py                      # 10³ … 10⁸ weights, 1 … 256 chains, on the CPU
    python benchmarks/scaling.py --device cuda
    python benchmarks/scaling.py --largest 1e6        # a look at it

Networks of three tanh layers of equal width, float32, 128 inputs at most, batches of 64 samples, SGLD; the engine that
the call itself would choose. Each point is a process of its own, whose peak of memory is read before the model is made
and at the end: on the CPU that of the process, on a GPU that of the allocator. Time is the median over repeats of runs
of as many steps as take about a second, after one that warms up. Points whose vectors would not fit a share of the
memory (``--memory``) are left out, and said to be.

Reported: microseconds per step of one chain, bytes per weight and chain beyond what a model and a gradient take, and
the slope of log time over log weights from 10⁵ on, which is at most 1 where cost grows no faster than the model.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import samplers
import slt
from slt.engines.choice import VECTORS_PER_CHAIN, better_apart

HERE = Path(__file__).resolve().parent
SIZES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
CHAINS = (1, 4, 16, 64, 256)
BATCH, SAMPLES, INPUTS = 64, 1024, 128
REPEATS, SECONDS = 3, 1.0
SLOPE_FROM = 1e5  # weights, below which calls cost more than arithmetic


def network(size: float) -> nn.Sequential:
    """Three layers of equal width, of about so many weights."""
    inputs = min(INPUTS, round(size**0.5 / 2))
    # width² + (inputs + 3)·width = size
    width = round((-(inputs + 3) + math.sqrt((inputs + 3) ** 2 + 4 * size)) / 2)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


def inputs_of(model: nn.Sequential) -> int:
    return next(model.parameters()).shape[1]


def squared_error(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of this process, so far


def measure(size: float, chains: int, device: str, threads: int) -> dict[str, Any]:
    """One point, in a process of its own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    small = network(1e3)  # torch's own buffers, before memory is read
    squared_error(small, (torch.randn(2, inputs_of(small)), torch.zeros(2, 1))).backward()
    before = peak_bytes(device)
    model = network(size).to(device)
    data = torch.randn(SAMPLES, inputs_of(model), device=device), torch.randn(SAMPLES, 1, device=device)
    # chosen by size as the call would, without its trial, which needs the memory of two chains
    apart = better_apart(sum(weights.numel() for weights in model.parameters()), chains, 4, data[0].device)
    engine = "batched" if apart is None else "in_place"
    posterior = slt.LocalPosterior(
        model, data, squared_error, n_beta=100.0, localization=1.0, num_chains=chains, engine=engine
    )
    advanced = chains if engine == "batched" else 1  # together; in sequence every chain costs what one does
    with posterior:
        form = {"batches": posterior.minibatches(BATCH), "num_chains": advanced, "num_warmup": 0, "progress": False}
        run = samplers.Run(samplers.sgld(1e-9), posterior, posterior.anchor, **form)

        def seconds(steps: int) -> float:
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run.draw(steps)
            if device == "cuda":
                torch.cuda.synchronize()
            return (time.perf_counter() - start) / steps

        once = seconds(1)
        steps = max(1, min(2000, round(SECONDS / max(seconds(2), once / 10, 1e-7))))
        each = [seconds(steps) for _ in range(REPEATS)]
    used = peak_bytes(device) - before
    dim = posterior.dim
    return {
        "weights": dim, "chains": chains, "engine": engine, "steps": steps,
        "microseconds_per_chain_step": statistics.median(each) * 1e6 / advanced,
        "least": min(each) * 1e6 / advanced, "most": max(each) * 1e6 / advanced,
        "peak_bytes": used, "vectors": used / (4 * dim * advanced),
    }  # fmt: skip


def slope(rows: list[dict[str, Any]]) -> float | None:
    """Of log time over log weights, by least squares."""
    large = [row for row in rows if row["weights"] >= 0.9 * SLOPE_FROM]
    if len(large) < 2:
        return None
    x, y = (np.log([row[name] for row in large]) for name in ("weights", "microseconds_per_chain_step"))
    return float(np.polyfit(x, y, 1)[0])


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    styles = dict(zip(CHAINS, (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"), ("v", (0, (5, 1)))), strict=True))
    for chains, (marker, line) in styles.items():
        own = [row for row in rows if row["chains"] == chains]
        weights = [row["weights"] for row in own]
        label = f"{chains} chain{'s' * (chains > 1)}"
        for axes, values in (
            (left, [row["microseconds_per_chain_step"] for row in own]),
            (right, [row["peak_bytes"] / 2**20 for row in own]),
        ):
            axes.plot(weights, values, marker=marker, linestyle=line, label=label)
    most = max(row["weights"] for row in rows)
    last = max(row["microseconds_per_chain_step"] for row in rows if row["weights"] == most)
    left.plot(
        [most / 1e3, most], [last / 1e3, last], color="0.6", linewidth=1, zorder=0, label="in proportion to weights"
    )
    left.set(xscale="log", yscale="log", xlabel="weights", ylabel="time of a chain-step (µs)")
    right.set(xscale="log", yscale="log", xlabel="weights", ylabel="peak of memory (MiB)")
    left.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--largest", type=float, default=SIZES[-1], metavar="WEIGHTS")
    parser.add_argument("--memory", type=float, default=8e9, metavar="BYTES", help="for the vectors of a point")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        size, chains = json.loads(options.point)
        print(json.dumps(measure(size, chains, options.device, options.threads)))
        return
    rows, left_out = [], []
    print(f"{'weights':>12}{'chains':>8}{'engine':>10}{'µs / chain-step':>18}{'MiB':>10}{'vectors':>9}", flush=True)
    for size in (size for size in SIZES if size <= options.largest):
        for chains in CHAINS:
            together = better_apart(round(size), chains, 4, torch.device(options.device)) is None
            if size * VECTORS_PER_CHAIN * 4 > options.memory or (not together and chains > 1):
                # in sequence a chain costs what one does: that point is measured with one chain
                left_out.append({"weights": size, "chains": chains, "in_sequence": not together})
                continue
            command = [sys.executable, __file__, "--device", options.device, "--threads", str(options.threads)]
            command += ["--point", json.dumps([size, chains])]
            rows.append(json.loads(subprocess.check_output(command, text=True)))
            row = rows[-1]
            print(
                f"{row['weights']:>12,}{chains:>8}{row['engine']:>10}{row['microseconds_per_chain_step']:>18,.2f}"
                f"{row['peak_bytes'] / 2**20:>10,.0f}{row['vectors']:>9.1f}",
                flush=True,
            )
    slopes = {chains: slope([row for row in rows if row["chains"] == chains]) for chains in CHAINS}
    print("slope of log time over log weights from 10⁵ on:", slopes)
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} threads of a CPU"
    about = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    output = options.output or HERE / "results" / f"scaling{'_cuda' * (options.device == 'cuda')}.json"
    record = {"about": about, "slopes": slopes, "rows": rows, "left_out": left_out}
    output.write_text(json.dumps(record, indent=1) + "\n")
    draw(rows, f"One step of SGLD, batches of {BATCH}, {name}", output.with_suffix(".png"))


if __name__ == "__main__":
    main()
