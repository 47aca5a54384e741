"""What one step of SGLD costs on a GPU: prints a table and writes ``benchmarks/results/step_cuda.json``.

Microseconds per chain-step of the batched engine, 64 chains (16 of the last model) in float32, on the four small
models on which peers were measured; each the median, least and most of several repeats of so many steps, with the
step's CUDA graph captured before. The first column is the step replayed from its graph, the second the same from a
step that was compiled first (``compile=True``), the third the step launched from Python.

    python benchmarks/step_cuda.py                                  # our side alone
    python benchmarks/step_cuda.py --canonical-python path/to/python # of an environment with canonical-interp 0.2.7

Its time is that of its best way to compile; ``--canonical-ways default``, on an H100 the best on every model, spares
the minutes of the others. Rows are printed, and written, as they are finished.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peer_environments import Worker, clean_environment
from record import commit
from torch import Tensor, nn

import samplers
import slt

HERE = Path(__file__).resolve().parent
STEP_SIZE = 1e-6
CANONICAL_WAYS = ("no compile", "default", "reduce-overhead")


class Case(NamedTuple):
    """A model, written so that a peer can build it too, its data, and how many microseconds a chain-step may take."""

    name: str
    layers: list[list[Any]]
    num_samples: int
    batch_size: int
    num_chains: int
    bar: float


RELU = [["Linear", 10, 64], ["ReLU"], ["Linear", 64, 64], ["ReLU"], ["Linear", 64, 10]]
CASES = [
    Case("tanh 2-16-1", [["Linear", 2, 16], ["Tanh"], ["Linear", 16, 1]], 1_000, 1_000, 64, 2.0),
    Case("linear 6-8-6", [["Linear", 6, 8, False], ["Linear", 8, 6, False]], 2_000, 256, 64, 1.1),
    Case("ReLU 10-64-64-10", RELU, 10_000, 512, 64, 4.0),
    Case("linear 100-100-100-100", [["Linear", 100, 100, False]] * 3, 10_000, 512, 16, 10.5),
]


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    steps, repeats = options.steps, options.repeats
    torch.manual_seed(0)
    model = nn.Sequential(*(getattr(nn, name)(*arguments) for name, *arguments in case.layers)).cuda()
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
    times: dict[str, list[float]] = {"graph": [], "compiled": [], "launched": []}
    with posterior:
        for name in ("compiled", "graph"):
            run = samplers.Run(
                samplers.sgld(STEP_SIZE), posterior, posterior.anchor, compile=name == "compiled", **form
            )
            try:
                run.draw(200)
            except ValueError as error:  # no compiler there, say
                print(f"{case.name}, {name}: {error}")
                times[name].append(math.nan)
                continue
            for _ in range(repeats):
                torch.cuda.synchronize()
                start = time.perf_counter()
                run.draw(steps)
                torch.cuda.synchronize()
                times[name].append((time.perf_counter() - start) * 1e6 / (steps * case.num_chains))
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
    peer: dict[str, Any] = {"microseconds": {}}
    if options.canonical_python:
        torch.cuda.empty_cache()
        peer = measure_canonical(case, model, (x, y), n_beta, options)
    return {
        "canonical_interp": peer,
        "model": case.name, "chains": case.num_chains, "batch": case.batch_size, "bar": case.bar,
        "cuda_graph": trace.configuration["cuda_graph"],
        **{name: {"median": statistics.median(own), "min": min(own), "max": max(own)} for name, own in times.items()},
    }  # fmt: skip


def measure_canonical(
    case: Case, model: nn.Module, data: tuple[Tensor, Tensor], n_beta: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Microseconds of each of its modes, in a process of its own, or why there are none."""
    environment = clean_environment()
    environment |= {"PYTHONPATH": options.canonical_path} if options.canonical_path else {}
    peer: dict[str, Any] = {"microseconds": {}}
    with tempfile.TemporaryDirectory() as folder:
        tensors = str(Path(folder) / "tensors.pt")
        weights = {name: value.cpu() for name, value in model.state_dict().items()}
        torch.save({"weights": weights, "x": data[0].cpu(), "y": data[1].cpu()}, tensors)
        with torch.no_grad():
            loss = float(squared_error(model, data))
        request = case._asdict() | {"n_beta": n_beta, "localization": 1.0, "step_size": STEP_SIZE, "seed": 0}
        request |= {"tensors": tensors, "loss_at_anchor": loss, "llc_draws": 100, "num_steps": 1_000, "untimed": 300}
        request |= {"threads": torch.get_num_threads(), "device": "cuda", "package": "canonical-interp"}
        for way in options.canonical_ways:
            worker = Worker(options.canonical_python, "canonical_step.py", environment=environment)
            answer = worker.ask(request | {"way": way})
            worker.close()
            peer["microseconds"][way] = answer.get("microseconds", answer.get("failed"))
            peer["version"] = answer.get("about", {}).get("canonical-interp", peer.get("version"))
    return peer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--canonical-python")
    parser.add_argument("--canonical-path", help="its PYTHONPATH")
    parser.add_argument("--canonical-ways", nargs="+", choices=CANONICAL_WAYS, default=CANONICAL_WAYS)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "step_cuda.json")
    options = parser.parse_args()
    about = {
        "commit": commit(), "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "python": platform.python_version(), "steps": options.steps, "repeats": options.repeats,
    }  # fmt: skip
    print(
        f"{'model':<24}{'chains':>7}{'graph':>8}{'bar':>6}{'compiled':>10}{'launched':>10}{'peer':>8}   µs a chain-step"
    )
    rows: list[dict[str, Any]] = []
    for case in CASES:
        rows.append(measure(case, options))
        show(rows[-1])
        options.output.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def show(row: dict[str, Any]) -> None:
    of_peer = [value for value in row["canonical_interp"]["microseconds"].values() if isinstance(value, float)]
    peer = f"{min(of_peer):.2f}" if of_peer else ""
    print(
        f"{row['model']:<24}{row['chains']:>7}{row['graph']['median']:>8.2f}{row['bar']:>6.1f}"
        f"{row['compiled']['median']:>10.2f}{row['launched']['median']:>10.2f}{peer:>8}   {row['cuda_graph']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
