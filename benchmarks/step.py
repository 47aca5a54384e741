"""What one step of SGLD costs: prints tables and writes ``benchmarks/results/step.json``.

A. Microseconds per chain-step of the batched engine, eight chains, on three small models, next to devinterp 1.3.2 on
   the same weights, data, batch size, nβ, γ, step size and threads: measured alternately, the median of several
   repeats (least to most). A second peer column spares devinterp its DataLoader by feeding it ready batches.
B. The in-place engine on a transformer of 25 million parameters: one SGLD step against forward, backward and a plain
   SGD update, alternately step by step; and the vectors of model size that it holds beyond the module's weights and
   one gradient, without and with a diagonal preconditioner.

    python benchmarks/step.py --make-devinterp-environment build/devinterp
    python benchmarks/step.py --devinterp-python path/to/python       # of an environment that has devinterp 1.3.2
    python benchmarks/step.py                                         # our side alone
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import samplers
import slt

HERE = Path(__file__).resolve().parent
PEER_PACKAGES = ("torch==2.13.0", "devinterp==1.3.2")
NUM_CHAINS, LOCALIZATION, NOISE = 8, 1.0, 0.5
SENTENCES, CONTEXT, VOCABULARY, WIDTH, DEPTH = 8, 128, 12_000, 512, 6
BAR_RATIO, BAR_VECTORS = 1.15, {"identity": 2, "diagonal": 3}


class Case(NamedTuple):
    """A model, written so that the peer can build it too, and how it is sampled."""

    model: str
    layers: list[list[Any]]
    num_samples: int
    batch_size: int
    step_size: float  # far below the stability limit, so that no chain diverges


RELU = [["Linear", 10, 64], ["ReLU"], ["Linear", 64, 64], ["ReLU"], ["Linear", 64, 10]]
CASES = [
    Case("linear 6-8-6", [["Linear", 6, 8, False], ["Linear", 8, 6, False]], 2_000, 256, 1e-4),
    Case("tanh 2-16-1", [["Linear", 2, 16], ["Tanh"], ["Linear", 16, 1]], 1_000, 1_000, 1e-4),
    Case("ReLU 10-64-64-10", RELU, 10_000, 512, 1e-5),
]


def squared_error(model: nn.Module, batch: Any) -> Tensor:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure_case(case: Case, peer_python: str | None, options: argparse.Namespace) -> dict[str, Any]:
    """Ours and theirs in turn; λ̂ over the same first draws shows that both sample the same law."""
    torch.manual_seed(0)
    model = nn.Sequential(*(getattr(nn, name)(*arguments) for name, *arguments in case.layers))
    x = torch.randn(case.num_samples, case.layers[0][1])
    with torch.no_grad():
        y = model(x) + NOISE * torch.randn(case.num_samples, case.layers[-1][2])
    n_beta = case.num_samples / math.log(case.num_samples)
    law = {"n_beta": n_beta, "localization": LOCALIZATION, "num_chains": NUM_CHAINS}
    posterior = slt.LocalPosterior(model, (x, y), squared_error, **law, engine="batched")
    at_anchor = posterior.loss_at_anchor()
    batches = None if case.batch_size == case.num_samples else posterior.minibatches(case.batch_size)
    form = {"batches": batches, "num_chains": NUM_CHAINS, "num_warmup": 0, "progress": False}
    kernel = samplers.sgld(step_size=case.step_size)

    def ours(num_draws: int, seed: int) -> dict[str, float]:
        start = time.perf_counter()
        trace = samplers.sample(kernel, posterior, posterior.anchor, num_draws=num_draws, seed=seed, **form)
        seconds = time.perf_counter() - start
        llc = n_beta * (float(trace.loss[:, : options.peer_steps].mean()) - at_anchor)
        return {"microseconds": seconds * 1e6 / (NUM_CHAINS * num_draws), "llc": llc}

    rounds: list[dict[str, dict[str, float]]] = []
    peer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, posterior:
        tensors = str(Path(folder) / "tensors.pt")
        torch.save({"weights": posterior.sampled.unflatten(posterior.anchor), "x": x, "y": y}, tensors)
        specification = {**case._asdict(), **law, "tensors": tensors, "loss_at_anchor": at_anchor}
        specification |= {"num_draws": options.peer_steps, "threads": options.threads}
        for repeat in range(options.repeats):
            ours(100, repeat)  # the caches are cold after the peer's turn
            measured = {"ours": ours(options.steps, repeat)}
            if peer_python is not None:
                answer = ask_peer(peer_python, specification | {"seed": repeat})
                measured, peer = measured | answer["timings"], answer["about"]
            rounds.append(measured)
    times = {name: spread([measured[name]["microseconds"] for measured in rounds]) for name in rounds[0]}
    return {
        **case._asdict(),
        **law,
        "dim": posterior.dim,
        "microseconds_per_chain_step": times,
        "ratio_to_ours": {name: own["median"] / times["ours"]["median"] for name, own in times.items()},
        "llc_of_first_draws": {name: statistics.mean(found[name]["llc"] for found in rounds) for name in times},
        "peer": peer,
    }


def ask_peer(python: str, specification: dict[str, Any], script: str = "devinterp_step.py") -> dict[str, Any]:
    # PYTHONPATH would put our packages, and whatever lies beside them, into the peer's environment
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-W", "ignore", str(HERE / "peers" / script)]
    return json.loads(subprocess.check_output(command, input=json.dumps(specification), env=environment, text=True))


def make_environment(folder: Path, packages: tuple[str, ...] = PEER_PACKAGES) -> str:
    """The Python of a virtual environment with devinterp, made there or, where it is already, used again."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


class Transformer(nn.Module):
    """A causal language model of 25 million parameters, its input and output embeddings tied."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        nn.init.normal_(self.tokens.weight, std=0.02)
        form = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        blocks = [nn.TransformerEncoderLayer(WIDTH, WIDTH // 64, 4 * WIDTH, **form) for _ in range(DEPTH)]
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(WIDTH)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(batch, CONTEXT, VOCABULARY)``."""
        x = self.tokens(tokens) + self.places
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        return nn.functional.linear(self.norm(x), self.tokens.weight)


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def transformer_and_tokens() -> tuple[Transformer, Tensor]:
    torch.manual_seed(0)
    return Transformer().eval(), torch.randint(VOCABULARY, (SENTENCES, CONTEXT + 1))


def training_step(model: nn.Module, tokens: Tensor, set_to_none: bool, **way: Any) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, **way)

    def step() -> None:
        optimizer.zero_grad(set_to_none=set_to_none)
        next_token_loss(model, tokens).backward()
        optimizer.step()

    return step


def sampling_step(model: nn.Module, tokens: Tensor, diagonal: bool) -> tuple[slt.LocalPosterior, Callable[[], None]]:
    """A posterior, and one step of one chain with all that belongs to one: a run continued by a draw."""
    posterior = slt.LocalPosterior(model, tokens, next_token_loss, n_beta=1.0, localization=1.0, engine="in_place")
    kernel = samplers.sgld(1e-9, preconditioner=samplers.Diagonal(torch.ones(posterior.dim)) if diagonal else None)
    form = {"batches": posterior.minibatches(SENTENCES), "num_chains": 1, "num_warmup": 0, "progress": False}
    run = samplers.Run(kernel, posterior, posterior.anchor, **form)
    return posterior, lambda: run.draw(1)


def measure_in_place(pairs: int) -> dict[str, Any]:
    model, tokens = transformer_and_tokens()
    trained = copy.deepcopy(model)
    ways = {
        f"{''.join(way) or 'default'}, set_to_none={set_to_none}": training_step(trained, tokens, set_to_none, **way)
        for set_to_none, way in itertools.product((True, False), ({}, {"foreach": True}, {"fused": True}))
    }
    trials = {name: timeit.repeat(step, number=1, repeat=3) for name, step in ways.items()}
    fastest = min(ways, key=lambda name: min(trials[name]))  # our step is held against the best that torch does
    result: dict[str, Any] = {"dim": sum(parameter.numel() for parameter in model.parameters()), "plain_step": fastest}
    for kind in BAR_VECTORS:
        posterior, step = sampling_step(model, tokens, kind == "diagonal")
        turns = (step, ways[fastest])
        with posterior:
            timed = [[timeit.timeit(turn, number=1) for turn in turns] for _ in range(3 + pairs)][3:]  # 3 to warm up
        sampling, plain = map(list, zip(*timed, strict=True))
        ratios = spread([ours / theirs for ours, theirs in timed])  # of neighbours in time: less moved by other load
        result[kind] = {"sampling_seconds": spread(sampling), "plain_seconds": spread(plain), "ratio": ratios}
    return result


def report_memory(kind: str) -> None:
    """In a fresh process: take three steps of one kind and print the memory of all tensors, in vectors of model size.

    From the allocator's own record, which is exact; resident memory moves by as much as the figures that are sought.
    """
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    profile.start()
    model, tokens = transformer_and_tokens()
    if kind == "plain":  # without set_to_none it holds the weights and one gradient throughout
        context, step = contextlib.nullcontext(), training_step(model, tokens, set_to_none=False)
    else:
        context, step = sampling_step(model, tokens, kind == "diagonal")
    with context:
        for _ in range(3):
            step()
        profile.stop()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = list(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    vector = 4 * sum(parameter.numel() for parameter in model.parameters())
    print(json.dumps({"between steps": held[-1] / vector, "at the peak": max(held) / vector}))


def measure_memory(threads: int) -> dict[str, Any]:
    """Vectors of model size between steps and at the peak, beyond those of a plain training step."""
    held = {}
    environment = os.environ | {"KINETO_LOG_LEVEL": "99"}  # else the profiler announces itself
    for kind in ("plain", *BAR_VECTORS):
        command = [sys.executable, __file__, "--threads", str(threads), "--memory-of", kind]
        held[kind] = json.loads(subprocess.check_output(command, env=environment, text=True))
    return {kind: {when: held[kind][when] - plain for when, plain in held["plain"].items()} for kind in BAR_VECTORS}


def machine_facts() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    facts = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return facts | {"torch": torch.__version__, "python": platform.python_version()}


def show(record: dict[str, Any]) -> None:
    print("\n" + ", ".join(f"{name} {value}" for name, value in record["machine"].items()))
    print(f"\nA. SGLD, {NUM_CHAINS} chains, batched engine: microseconds per chain-step, median (least to most)")
    for result in record["small_models"]:
        print(f"  {result['model']}, batch {result['batch_size']:,} of {result['num_samples']:,}")
        for name, times in result["microseconds_per_chain_step"].items():
            figures = f"{times['median']:8.1f} ({times['min']:.1f} to {times['max']:.1f})"
            llc = f"λ̂ of the first draws {result['llc_of_first_draws'][name]:.3f}"
            print(f"    {name:<25}{figures:<30}{result['ratio_to_ours'][name]:6.1f} × ours   {llc}")
    peer = " ".join(f"{name} {value}" for name, value in record["small_models"][0]["peer"].items())
    print("  peer: " + (peer or "not measured; give --devinterp-python or --make-devinterp-environment"))
    timing, memory = record["in_place"], record["memory"]
    print(f"\nB. SGLD, in-place engine, {timing['dim']:,} parameters, {SENTENCES} × {CONTEXT} tokens")
    print(f"  against forward + backward + SGD ({timing['plain_step']}: the fastest of six ways)")
    for kind, bar in BAR_VECTORS.items():
        ours, plain, ratio = (timing[kind][name] for name in ("sampling_seconds", "plain_seconds", "ratio"))
        print(f"  {kind} metric: {ours['median'] * 1e3:.0f} ms against {plain['median'] * 1e3:.0f} ms")
        print(f"    ratio {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f}), bar {BAR_RATIO}")
        vectors = ", ".join(f"{held:.2f} {when}" for when, held in memory[kind].items())
        print(f"    vectors beyond weights and one gradient: {vectors}, bar {bar}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devinterp-python", metavar="PATH", help="a Python that has devinterp 1.3.2 and torch")
    parser.add_argument("--make-devinterp-environment", metavar="DIR", type=Path, help="make such an environment there")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both sides; torch's default")
    parser.add_argument("--repeats", type=int, default=5, help="of each side, alternately (A)")
    parser.add_argument("--steps", type=int, default=1_000, help="of each chain, ours (A)")
    parser.add_argument("--peer-steps", type=int, default=100, help="of each chain, theirs (A)")
    parser.add_argument("--pairs", type=int, default=40, help="of steps, alternately (B)")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "step.json")
    parser.add_argument("--memory-of", choices=("plain", *BAR_VECTORS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of is not None:
        sys.exit(report_memory(options.memory_of))
    folder = options.make_devinterp_environment
    python = options.devinterp_python if folder is None else make_environment(folder)
    record = {
        "machine": machine_facts(),
        "sizes": {name: getattr(options, name) for name in ("repeats", "steps", "peer_steps", "pairs")},
        "small_models": [measure_case(case, python, options) for case in CASES],
        "in_place": measure_in_place(options.pairs),
        "memory": measure_memory(options.threads),
        "bars": {"in_place_ratio": BAR_RATIO, "further_vectors": BAR_VECTORS},
    }
    show(record)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
