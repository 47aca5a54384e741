"""A step of SGLD here and in other tools: prints tables and writes ``benchmarks/results/peers.json`` and ``peers.png``.

Microseconds per chain-step, eight chains, on three small models on the CPU, beside devinterp 1.3.2 and 2.0.1 and
canonical-interp 0.2.7, each in an environment and process of its own: on the same weights, data, batch size, nβ, γ,
step size and threads, measured alternately; the median, least and most of several repeats. λ̂ of the first draws,
with its standard error over the repeats, shows that all sample the same law. Memory is the peak of what a process
holds beyond what it held when its model and data lay ready, with all that the tool loads, compiles and keeps.

    python benchmarks/peers.py --environments .venv-peers      # makes them there, or uses those that are there
    python benchmarks/peers.py --environments .venv-peers --only canonical-interp-0.2.7
    python benchmarks/peers.py                                 # our side alone

Each tool is used as it offers itself, and its ways stand side by side:

* ours as it is, and as one compiled program (``compile=True``), which is what canonical-interp does to its step;
* devinterp 1.3.2 with its shuffling ``DataLoader``, and with ready batches, which spare it the loader's time;
* devinterp 2.0.1, which samples language models on tokens, as ``peers/devinterp2_cost.py`` gives it a network: its
  time contains its loader's and that of writing every step's losses and tokens to disk, which cannot be left out, but
  not the seconds that a call takes whatever its length: it is the difference of two calls;
* canonical-interp 0.2.7 with ready batches that all chains share, in each mode of ``torch.compile``; the time to
  compile is not counted. It asks for Python 3.12; what it needs of that its script supplies, so that the pinned torch
  serves all.

devinterp runs its chains one after another, the others all at once. The bars are against devinterp's ``DataLoader`` and
against the fastest mode of canonical-interp; both ways of ours are held to them. What cannot be installed, or fails, is
named with its reason.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peer_environments import TORCH, Worker, make_environment
from record import commit, machine_facts, spread
from torch import nn

HERE = Path(__file__).resolve().parent
NUM_CHAINS, LOCALIZATION, NOISE = 8, 1.0, 0.5
UNTIMED = 50  # steps of canonical-interp, in which it compiles


class Case(NamedTuple):
    """A model, written so that every tool can build it, and how it is sampled."""

    model: str
    layers: list[list[Any]]
    num_samples: int
    batch_size: int
    step_size: float  # far below the stability limit, so that no chain diverges


class Peer(NamedTuple):
    """A package: what pip installs, and what it installs without dependencies; none of both for ourselves."""

    package: str
    packages: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()


class Tool(NamedTuple):
    """A row of the table: a script of ``peers/``, run by the Python of a peer, and which of its ways."""

    name: str
    peer: str
    script: str
    way: str = ""


class Bar(NamedTuple):
    """How many times as fast as the fastest of these tools ours shall be."""

    model: str
    against: str
    tools: tuple[str, ...]
    factor: float


RELU = [["Linear", 10, 64], ["ReLU"], ["Linear", 64, 64], ["ReLU"], ["Linear", 64, 10]]
CASES = (
    Case("linear 6-8-6", [["Linear", 6, 8, False], ["Linear", 8, 6, False]], 2_000, 256, 1e-4),
    Case("tanh 2-16-1", [["Linear", 2, 16], ["Tanh"], ["Linear", 16, 1]], 1_000, 1_000, 1e-4),
    Case("ReLU 10-64-64-10", RELU, 10_000, 512, 1e-5),
)
OURS, COMPILED, LOADED = "slt", "slt, compile=True", "devinterp 1.3.2, DataLoader"
PEERS = {
    OURS: Peer("slt-toolkit"),
    "devinterp-1.3.2": Peer("devinterp", (TORCH, "devinterp==1.3.2")),
    "devinterp-2.0.1": Peer("devinterp", (TORCH, "devinterp==2.0.1")),
    "canonical-interp-0.2.7": Peer(
        "canonical-interp", (TORCH, "numpy", "pandas", "tqdm"), ("canonical-interp==0.2.7",)
    ),
}
MODES = ("no compile", "default", "reduce-overhead", "max-autotune")
TOOLS = (
    Tool(OURS, OURS, "slt_step.py", "launched"),
    Tool(COMPILED, OURS, "slt_step.py", "compiled"),
    Tool(LOADED, "devinterp-1.3.2", "devinterp_step.py", "DataLoader"),
    Tool("devinterp 1.3.2, ready batches", "devinterp-1.3.2", "devinterp_step.py", "ready batches"),
    Tool("devinterp 2.0.1", "devinterp-2.0.1", "devinterp2_step.py"),
    *(Tool(f"canonical-interp 0.2.7, {mode}", "canonical-interp-0.2.7", "canonical_step.py", mode) for mode in MODES),
)
CANONICAL = tuple(tool.name for tool in TOOLS if tool.peer == "canonical-interp-0.2.7")
BARS = (
    Bar("linear 6-8-6", LOADED, (LOADED,), 10),
    Bar("tanh 2-16-1", LOADED, (LOADED,), 10),
    Bar("ReLU 10-64-64-10", LOADED, (LOADED,), 5),
    Bar("linear 6-8-6", "canonical-interp 0.2.7, its fastest mode", CANONICAL, 3),
)


def environments(folder: Path, peers: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The Python of every peer that can be installed and, of the others, why not."""
    pythons, failures = {}, {}
    for name in peers:
        try:
            pythons[name] = make_environment(folder / name, PEERS[name].packages, PEERS[name].alone)
        except RuntimeError as error:
            failures[name] = f"cannot be installed: {error}"
    return pythons, failures


def write_case(case: Case, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What every tool is told of a case, whose weights and data are written to the path."""
    torch.manual_seed(0)
    model = nn.Sequential(*(getattr(nn, name)(*arguments) for name, *arguments in case.layers))
    x = torch.randn(case.num_samples, case.layers[0][1])
    with torch.no_grad():
        y = model(x) + NOISE * torch.randn(case.num_samples, case.layers[-1][2])
        loss = float(((model(x) - y) ** 2).mean())
    torch.save({"weights": model.state_dict(), "x": x, "y": y}, path)
    return {
        **case._asdict(),
        "dim": sum(weights.numel() for weights in model.parameters()),
        "loss_at_anchor": loss,
        "n_beta": case.num_samples / math.log(case.num_samples),
        "localization": LOCALIZATION,
        "num_chains": NUM_CHAINS,
        "llc_draws": options.peer_steps,
        "num_steps": options.steps,
        "untimed": UNTIMED,
        "threads": options.threads,
        "device": "cpu",
        "tensors": str(path),
    }


def start(tool: Tool, python: str) -> Worker:
    # PYTHONPATH is how ours is found where it is not installed, and would disturb a peer
    return Worker(python, tool.script, environment=dict(os.environ) if tool.peer == OURS else None)


def ask_in_turn(
    tools: list[Tool], pythons: dict[str, str], specification: dict[str, Any], repeats: int, failed: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """The answers of every tool, in processes that live as long; a tool that fails is added to ``failed``."""
    answers: dict[str, list[dict[str, Any]]] = {tool.name: [] for tool in tools}
    with ExitStack() as processes:
        running = {tool.name: start(tool, pythons[tool.peer]) for tool in tools if tool.name not in failed}
        for worker in running.values():
            processes.callback(worker.close)
        for repeat, tool in itertools.product(range(repeats), tools):
            if tool.name in failed:
                continue
            request = {"way": tool.way, "package": PEERS[tool.peer].package, "seed": repeat}
            try:
                answer = running[tool.name].ask(specification | request)
            except RuntimeError as error:
                answer = {"failed": str(error)}
            if "failed" in answer:
                failed[tool.name] = answer["failed"]
            else:
                answers[tool.name].append(answer)
    return answers


def summary(answers: list[dict[str, Any]]) -> dict[str, Any]:
    llc = [answer["llc"] for answer in answers]
    return {
        "microseconds": spread([answer["microseconds"] for answer in answers]),
        "llc": statistics.mean(llc),
        "llc_error": statistics.stdev(llc) / math.sqrt(len(llc)) if len(llc) > 1 else None,
        "peak_bytes": answers[0]["peak_bytes"],  # later runs add to what the process keeps of earlier ones
        "about": answers[0]["about"],
    }


def measure_case(
    case: Case, tools: list[Tool], pythons: dict[str, str], failures: dict[str, str], options: argparse.Namespace
) -> dict[str, Any]:
    """Of every tool its figures or, with ``failures`` of peers that have no environment, why there are none."""
    failed = {tool.name: failures[tool.peer] for tool in tools if tool.peer in failures}
    with tempfile.TemporaryDirectory() as folder:
        specification = write_case(case, Path(folder) / "tensors.pt", options)
        answers = ask_in_turn(tools, pythons, specification, options.repeats, failed)
    if OURS in failed:
        raise RuntimeError(f"{case.model}: our own step fails: {failed[OURS]}")
    found = {name: {"failed": failed[name]} if name in failed else summary(own) for name, own in answers.items()}
    for own in found.values():
        if "failed" not in own:
            own["ratio_to_ours"] = own["microseconds"]["median"] / found[OURS]["microseconds"]["median"]
    del specification["tensors"]
    return {**specification, "tools": found}


def held_to_bars(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every bar with how many times as fast either way of ours was, where any of the bar's tools was measured."""
    found = []
    for result, bar in itertools.product(results, BARS):
        medians = {name: own["microseconds"]["median"] for name, own in result["tools"].items() if "failed" not in own}
        theirs = [medians[name] for name in bar.tools if name in medians]
        if bar.model == result["model"] and theirs:
            ratios = {name: min(theirs) / medians[name] for name in (OURS, COMPILED) if name in medians}
            found.append(bar._asdict() | {"ratios": ratios})
    return found


def line(name: str, own: dict[str, Any]) -> str:
    if "failed" in own:
        return f"    {name:<41} not measured: {own['failed']}"
    times, error = own["microseconds"], own["llc_error"]
    time = f"{times['median']:,.1f} ({times['min']:,.1f} to {times['max']:,.1f})"
    llc = f"{own['llc']:.3f}" + ("" if error is None else f" ± {error:.3f}")
    return f"    {name:<41}{time:>31}{own['ratio_to_ours']:>8.2f}{own['peak_bytes'] / 2**20:>9.1f}   {llc}"


def show_case(result: dict[str, Any]) -> None:
    print(f"  {result['model']}, {result['dim']:,} weights, {result['batch_size']:,} of {result['num_samples']:,}")
    for name, own in result["tools"].items():
        print(line(name, own), flush=True)


def show_bar(bar: dict[str, Any]) -> None:
    own = (
        f"{name} {ratio:.1f} times as fast, {'met' if ratio >= bar['factor'] else 'missed'}"
        for name, ratio in bar["ratios"].items()
    )
    print(f"  {bar['model']}, bar {bar['factor']} against {bar['against']}: {'; '.join(own)}")


def draw(record: dict[str, Any], path: Path) -> None:
    """Write time and memory of every tool as bars, one column for each model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = record["results"]
    names = list(results[0]["tools"])
    figure, axes = plt.subplots(
        2, len(results), figsize=(3.3 * len(results) + 2.2, 0.6 * len(names) + 2.4), sharey=True, sharex="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for column, result in enumerate(results):
        own = [result["tools"][name] for name in names]
        axes[0, column].set_xscale("log")
        bars(axes[0, column], names, [found.get("microseconds", {}).get("median") for found in own])
        memory = [found["peak_bytes"] / 2**20 if "peak_bytes" in found else None for found in own]
        bars(axes[1, column], names, memory)
        axes[0, column].set_title(
            f"{result['model']}, {result['batch_size']:,} of {result['num_samples']:,}", fontsize=9
        )
        axes[0, column].set_xlabel("time of a chain-step (µs)")
        axes[1, column].set_xlabel("peak memory beyond the start (MiB)")
    about = record["machine"]
    title = f"SGLD, {NUM_CHAINS} chains, {about['threads']} of {about['cores']} cores, {about['cpu']}"
    figure.suptitle(f"{title}; dark: slt; nearer to the left is better", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def bars(axes: Any, names: list[str], values: list[float | None]) -> None:
    """Horizontal bars, each with its value; None is said not to be measured."""
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        if value is None:
            axes.annotate(
                "not measured", (0, place), xytext=(3, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", fontsize=7, color="0.3",
            )  # fmt: skip
            continue
        axes.barh(place, value, color="0.25" if name.startswith(OURS) else "0.7", height=0.7)
        label = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        axes.annotate(label, (value, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = [name for name in PEERS if name != OURS]
    parser.add_argument("--environments", metavar="DIR", type=Path, help="of the peers, made where they are not there")
    parser.add_argument(
        "--only", nargs="+", choices=peers, default=peers, metavar="PEER", help="of " + ", ".join(peers)
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every tool; torch's default")
    parser.add_argument("--repeats", type=int, default=5, help="of each tool, alternately")
    parser.add_argument("--steps", type=int, default=1_000, help="of each chain, ours and canonical-interp's")
    parser.add_argument("--peer-steps", type=int, default=100, help="of each chain, devinterp's; λ̂ is of so many")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results" / "peers.json", help="the figure lies beside it"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = [] if options.environments is None else options.only
    pythons, failures = environments(options.environments, chosen)
    pythons[OURS] = sys.executable
    tools = [tool for tool in TOOLS if tool.peer in (OURS, *chosen)]
    machine, results = machine_facts(), []
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(
        f"SGLD, {NUM_CHAINS} chains: µs per chain-step, median (least to most); times ours; peak MiB; λ̂ of first draws"
    )
    for case in CASES:
        results.append(measure_case(case, tools, pythons, failures, options))
        show_case(results[-1])
    record = {
        "commit": commit(),
        "machine": machine,
        "sizes": {name: getattr(options, name) for name in ("repeats", "steps", "peer_steps")},
        "results": results,
        "bars": held_to_bars(results),
    }
    for bar in record["bars"]:
        show_bar(bar)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    draw(record, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
