"""What a step in place costs: prints a table and writes ``benchmarks/results/step.json``.

SGLD by the in-place engine on a transformer of 25 million parameters: one step against forward, backward and a plain
SGD update, alternately step by step; and the vectors of model size that it holds beyond the module's weights and one
gradient, without and with a diagonal preconditioner. ``peers.py`` measures the batched engine, beside other tools.

    python benchmarks/step.py
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import os
import subprocess
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import commit, machine_facts, spread
from torch import Tensor, nn

import samplers
import slt

HERE = Path(__file__).resolve().parent
SENTENCES, CONTEXT, VOCABULARY, WIDTH, DEPTH = 8, 128, 12_000, 512, 6
BAR_RATIO, BAR_VECTORS = 1.15, {"identity": 2, "diagonal": 3}


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


def show(record: dict[str, Any]) -> None:
    print("\n" + ", ".join(f"{name} {value}" for name, value in record["machine"].items()))
    timing, memory = record["in_place"], record["memory"]
    print(f"SGLD, in-place engine, {timing['dim']:,} parameters, {SENTENCES} × {CONTEXT} tokens")
    print(f"  against forward + backward + SGD ({timing['plain_step']}: the fastest of six ways)")
    for kind, bar in BAR_VECTORS.items():
        ours, plain, ratio = (timing[kind][name] for name in ("sampling_seconds", "plain_seconds", "ratio"))
        print(f"  {kind} metric: {ours['median'] * 1e3:.0f} ms against {plain['median'] * 1e3:.0f} ms")
        print(f"    ratio {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f}), bar {BAR_RATIO}")
        vectors = ", ".join(f"{held:.2f} {when}" for when, held in memory[kind].items())
        print(f"    vectors beyond weights and one gradient: {vectors}, bar {bar}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both sides; torch's default")
    parser.add_argument("--pairs", type=int, default=40, help="of steps, alternately")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "step.json")
    parser.add_argument("--memory-of", choices=("plain", *BAR_VECTORS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of is not None:
        sys.exit(report_memory(options.memory_of))
    record = {
        "commit": commit(),
        "machine": machine_facts(),
        "sizes": {"pairs": options.pairs},
        "in_place": measure_in_place(options.pairs),
        "memory": measure_memory(options.threads),
        "bars": {"in_place_ratio": BAR_RATIO, "further_vectors": BAR_VECTORS},
    }
    show(record)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
