"""What a step of SGLD costs on GPT-2 small beside a step of training: a table and ``results/language_model.json``.

The model of 124 million weights from ``transformers``, with its first random weights, in float32 under autocast to
bfloat16; batches of random tokens; the mean cross-entropy of the next. Milliseconds a step, median, least and most of
several repeats, and the most memory that tensors took, from before the model was made:

* ``train``: forward, backward and ``torch.optim.SGD``, gradients set to None; as it is, with ``fused=True``, and as one
  CUDA graph.
* ``sgld``: :func:`samplers.sgld` by the in-place engine, the draw of the minibatch included: as ``samplers.Run`` runs
  it, from one CUDA graph, and with each operation launched from Python.

    python benchmarks/language_model.py
    python benchmarks/language_model.py --layers 1 --batches 2x32 --steps 2   # a look at it
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import commit, machine_facts
from torch import Tensor, nn

import samplers
import slt
from samplers.graph import free_workspaces

HERE = Path(__file__).resolve().parent
SEQUENCES = 512  # of the data
WARM_UP = 5
BAR = 1.02  # of the time of training as it is


def language_model(layers: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return GPT2LMHeadModel(config).cuda().eval()


def next_token_loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
    (tokens,) = batch
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logits = model(input_ids=tokens).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def timed(step: Callable[[int], None], steps: int, repeats: int) -> dict[str, float]:
    """Milliseconds a step, and the most gigabytes of tensors since the peak was reset."""
    step(WARM_UP)
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step(steps)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3 / steps)
    memory = torch.cuda.max_memory_allocated() / 1e9
    return {"median": statistics.median(times), "least": min(times), "most": max(times), "gigabytes": memory}


def repeated(once: Callable[[], None], steps: int) -> None:
    for _ in range(steps):
        once()


def training(layers: int, tokens: Tensor, *, fused: bool, graph: bool) -> Callable[[int], None]:
    model = language_model(layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, fused=fused or None)

    def once() -> None:
        next_token_loss(model, (tokens,)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if not graph:
        return partial(repeated, once)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(aside)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        once()
    return partial(repeated, captured.replay)


def sampling(layers: int, data: Tensor, batch_size: int, *, graph: bool) -> tuple[Callable[[int], None], Any]:
    posterior = slt.LocalPosterior(
        language_model(layers), (data,), next_token_loss, n_beta=float(len(data)), localization=100.0, num_chains=1,
        engine="in_place",
    )  # fmt: skip
    posterior.__enter__()
    run = samplers.Run(
        samplers.sgld(1e-10), posterior, posterior.anchor, batches=posterior.minibatches(batch_size), num_chains=1,
        num_warmup=0, progress=False,
    )  # fmt: skip
    if graph:
        return run.draw, (posterior, run)
    block = run.blocks[0]
    block.state = run.kernel.init(posterior.anchor.expand(1, -1).clone(), posterior)

    def step(steps: int) -> None:
        for _ in range(steps):
            assert block.batches is not None
            run.kernel.step_(block.state, posterior, next(block.batches), block.generator)

    return step, (posterior, run)


def measured(batch_size: int, length: int, options: argparse.Namespace) -> dict[str, Any]:
    generator = torch.Generator("cuda").manual_seed(1)
    data = torch.randint(50257, (SEQUENCES, length), generator=generator, device="cuda")
    row: dict[str, Any] = {"batch": batch_size, "length": length}
    kept: Any = None
    for name in ("train", "sgld", "train, fused", "train, graph", "sgld, launched", "train again"):
        gc.collect()
        free_workspaces()  # or the first row alone would count them
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e9
        tool, way = name.split()[0].strip(","), name.split()[-1]
        if tool == "train":
            step = training(options.layers, data[:batch_size], fused=way == "fused", graph=way == "graph")
        else:
            step, kept = sampling(options.layers, data, batch_size, graph=way != "launched")
        row[name] = timed(step, options.steps, options.repeats)
        row[name]["gigabytes"] -= before
        if kept is not None:
            posterior, run = kept
            if way != "launched":
                row[name]["cuda_graph"] = run.trace().configuration["cuda_graph"]
            posterior.__exit__(None, None, None)
        step = kept = posterior = run = None
        own = row[name]
        against = own["median"] / row["train"]["median"]
        print(
            f"{batch_size:>3} × {length:<5}{name:<16}{own['median']:>9.2f}{own['least']:>9.2f}{own['most']:>9.2f} ms"
            f"{against:>8.3f}{own['gigabytes']:>8.2f} GB  {own.get('cuda_graph', '')}",
            flush=True,
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batches", nargs="+", default=["8x256", "32x512"], metavar="BATCHxLENGTH")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "language_model.json")
    options = parser.parse_args()
    rows = []
    for batch in options.batches:
        batch_size, length = map(int, batch.split("x"))
        rows.append(measured(batch_size, length, options))
    print(f"bar: sgld at most {BAR} of train, and its memory at most that of train and two vectors of model size")
    weights = sum(parameter.numel() for parameter in language_model(options.layers).parameters())
    device = torch.cuda.get_device_name()
    record = {"commit": commit(), "machine": machine_facts(), "device": device, "torch": torch.__version__,
              "weights": weights, "rows": rows}  # fmt: skip
    options.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
