"""What λ̂ to 5 % costs, beside devinterp 1.3.2 and 2.0.1 at the step size that suits them best.

    python benchmarks/accuracy.py cost --make-devinterp-environments build/devinterp     # and everything, at first
    python benchmarks/accuracy.py cost --devinterp-python PATH --devinterp2-python PATH  # later
    python benchmarks/accuracy.py cost                                                   # our side alone

Two networks, in float32, at the minimum of their data or near it: a linear one of widths 5, 4, 5 on 3,000 samples of a
map of rank 2 with unit noise, whose λ is 10.5 (Aoyagi & Watanabe 2005); and the digits network of ``examples/`` after
2,000 steps of Adam. All sample the same law: nβ = n / log n, γ = 1. One thread.

* **Reference**: HMC on the full data in float64, 8 chains of 800 or 200 draws after 200 of warm-up, from a seed of
  its own. Its standard error is reported; 1 % or less is asked for.
* **Ours** is one call, ``slt.estimate_llc(model, data, loss_fn)``, which is over when its own interval is narrow
  enough: it does not know the reference. All its seconds and gradients count, those of its calibration too.
* **Seconds** are the lesser of wall and processor time, which differ where the machine is shared or a peer writes in
  the background. Medians over seeds, three of ours. Gradients are in units of the full data, over all chains.

Two measures, of which neither counts what it took to find the step size:

* **To 5 % of a known answer.** A peer's clock stops at the moment after which its running estimate stays within 5 % of
  the reference up to the end of its run: 3,000 steps of each of 4 chains, one after another; batches of 500 or 599,
  which divide n; L_n(w*) over the full data. Step sizes are half a decade apart (one more below ended 30 and 50 % too
  low and is spared); all with seed 0, and the two that reach 5 % soonest (or, if none does, end nearest) with two seeds
  more; devinterp 2.0.1 runs at these two. Of every step size the better of discarding no or half of the steps, and of
  taking 1 or all 4 chains, by the median over seeds, is kept, and of these the best step size. What never reaches 5 %
  is counted as the whole run, a lower bound.
  This favours the peers: a running mean may be right long before it, or anybody, could know, and no error bar is paid
  for. **Ours, measured as the peers are**, is the moment after which the running mean of the call's draws stays within
  5 %.
* **To a number that can be believed without the answer.** A peer runs until its own draws give a half-width of the
  95 % interval of at most 5 % of λ̂, R̂ ≤ 1.02 and an effective sample size of at least 400, by arviz over its 4 chains
  with half of each discarded: the rule by which our call stops. Lengths double from a 32nd of the longest run to the
  whole of it, 40,000 or 24,000 steps of each chain, about 75 seconds (set after one trial with seed 0). The seconds of
  a length are its share of that run's, and the first length that is enough is counted alone, without the shorter calls
  before it. Two seeds; devinterp 1.3.2 alone, at the step size that the first measure found with the reference. Where
  a run is not enough, its seconds are a lower bound. Arviz sees the means of the losses over epochs, as in our call:
  minibatch noise hides from it how slow a chain is, and cancels in a whole epoch alone. Single losses are read too, and
  pass for independent. The floor that our call puts under the error of minibatch losses, from the spread of the chains'
  means, is spared the peer. This measure favours the tool whose draws depend less on each other, and it does not see
  bias, which SGLD has and our exact sampler has not: whether the interval contains the reference is reported.

The bar: ours takes at most a tenth of a peer's seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from peer_environments import TORCH, make_environment
from torch import Tensor, nn

import samplers
import slt
from accuracy_tables.believed import ESS, RHAT, WAYS, measure_knowing
from accuracy_tables.library import library
from accuracy_tables.peers import (
    LOCALIZATION,
    NUM_CHAINS,
    POINTS,
    TOLERANCE,
    Clock,
    Network,
    measure_peer,
    stays_within,
)
from accuracy_tables.trained import Trained, descended
from slt.estimate import plain
from slt.surroundings import look_around

HERE = Path(__file__).resolve().parent
PEERS = {"devinterp 1.3.2": ("devinterp", "devinterp_cost.py"), "devinterp 2.0.1": ("devinterp2", "devinterp2_cost.py")}
PACKAGES = {"devinterp": "devinterp==1.3.2", "devinterp2": "devinterp==2.0.1"}
KNOWING = ("devinterp",)  # peers that run until they know
LEAST_LONGEST = 3_200  # steps of these, of which the shortest look has eight windows a chain
BAR = 10


def squares(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return (model(x) - y).square().sum(-1) / 2


def linear(n: int = 3000, rank: int = 2) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    form = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(n, 5, **form)
    y = x @ torch.randn(5, rank, **form) @ torch.randn(rank, 5, **form) + torch.randn(n, 5, **form)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 5, bias=False)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, **form))
    return descended(Trained(model, (x, y), squares)).model.float(), (x.float(), y.float())


def digits() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    example = _digits_example()
    model = example.network()
    for _, trained in example.train(2000):
        model = trained
    return model, example.data()


def _digits_example() -> Any:
    sys.path.insert(0, str(HERE.parents[1] / "examples"))
    try:
        import digits
    finally:
        sys.path.pop(0)
    return digits


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


NETWORKS = [
    Network(
        "linear 5-4-5", [["Linear", 5, 4, False], ["Linear", 4, 5, False]], "squares", squares, linear,
        500, 3000, (1e-4, 3e-5, 1e-5, 3e-6), 800, 40_000,
    ),
    Network(
        "digits 64-8-10", [["Linear", 64, 8], ["Tanh"], ["Linear", 8, 10]], "cross_entropy", cross_entropy, digits,
        599, 3000, (1e-2, 3e-3, 1e-3, 3e-4), 200, 24_000,
    ),
]  # fmt: skip


def reference_of(network: Network, model: nn.Module, data: tuple[Tensor, Tensor], draws: int) -> dict[str, Any]:
    """A long run of an exact sampler, in double precision."""
    x, y = data
    y = y.double() if y.is_floating_point() else y
    found = slt.estimate_llc(
        copy.deepcopy(model).double(), (x.double(), y), network.loss_fn, sampler="hmc", num_warmup=200, num_draws=draws,
        seed=1_000, progress=False,
    )  # fmt: skip
    return {
        "llc": found.llc, "mcse": found.mcse, "rhat": found.rhat, "gradients": found.num_gradients,
        "seconds": found.seconds, "loss_at_anchor": found.loss_at_anchor, "n_beta": found.n_beta,
        "problems": list(found.verdict.names),
    }  # fmt: skip


@contextlib.contextmanager
def stages() -> Iterator[dict[str, list[float]]]:
    """The seconds of the parts of one call of ``estimate_llc``, by part."""
    spent: dict[str, list[float]] = {"pilot": [], "draw": [], "surroundings": []}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            with Clock() as clock:
                result = call(*arguments, **named)
            spent[name].append(clock.seconds)
            return result

        return wrapped

    with (
        mock.patch.object(samplers.Run, "adapt", timed("pilot", samplers.Run.adapt)),
        mock.patch.object(samplers.Run, "draw", timed("draw", samplers.Run.draw)),
        mock.patch("slt.look.look_around", timed("surroundings", look_around)),
    ):
        yield spent


def ours(
    network: Network, model: nn.Module, data: tuple[Tensor, Tensor], reference: dict[str, Any], seed: int
) -> dict[str, Any]:
    with stages() as spent, Clock() as clock:
        found = slt.estimate_llc(model, data, network.loss_fn, seed=seed, progress=False)
    low, high = found.interval
    warmup, draws = found.config["num_warmup"][0], found.trace.num_draws
    sampling = sum(spent["draw"])
    per_step = sampling / (warmup + draws)
    parts = {
        "pilot": sum(spent["pilot"]),
        "warm-up": per_step * warmup,
        "draws": per_step * draws,
        "surroundings": sum(spent["surroundings"]),
    }
    parts["rest"] = clock.seconds - sum(parts.values())
    running = np.cumsum(found.trace.loss.mean(0)) / np.arange(1, draws + 1) - found.loss_at_anchor
    place = stays_within(found.n_beta * running, reference["llc"])
    return {
        "seed": seed, "llc": found.llc, "mcse": found.mcse, "half_width": (high - low) / 2,
        "error": found.llc / reference["llc"] - 1, "within": abs(found.llc / reference["llc"] - 1) <= TOLERANCE,
        "rhat": found.rhat, "ess": found.ess,
        "believed": bool(high - low <= 2 * TOLERANCE * abs(found.llc) and found.rhat <= RHAT and found.ess >= ESS),
        "covered": bool(low <= reference["llc"] <= high), "problems": list(found.verdict.names),
        "sampler": found.sampler, "gradients": found.num_gradients, "seconds": clock.seconds, "wall": clock.wall,
        "parts": parts,
        "seconds_as_peers": None if place is None else clock.seconds - per_step * (draws - place - 1),
    }  # fmt: skip


def measure_network(network: Network, pythons: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    model, data = network.make()
    n = len(data[0])
    draws = max(20, round(network.reference_draws * options.scale))
    reference = reference_of(network, model, data, draws)
    print(f"{network.name}: reference {reference['llc']:.3f} ± {reference['mcse']:.3f}", flush=True)
    own = [ours(network, model, data, reference, seed) for seed in range(options.seeds)]
    tools: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        tensors = str(Path(folder) / "tensors.pt")
        torch.save({"weights": model.state_dict(), "x": data[0], "y": data[1]}, tensors)
        specification = {
            "tensors": tensors, "layers": network.layers, "loss": network.loss, "n_beta": reference["n_beta"],
            "localization": LOCALIZATION, "loss_at_anchor": reference["loss_at_anchor"],
            "batch_size": network.batch_size, "num_chains": NUM_CHAINS,
        }  # fmt: skip
        scaled = network._replace(steps=max(POINTS, round(network.steps * options.scale)))
        longest = max(LEAST_LONGEST, round(network.longest * options.scale))
        for name, (key, script) in PEERS.items():
            if key not in pythons:
                continue
            found = measure_peer(pythons[key], script, scaled, specification, reference, n)
            if key in KNOWING:
                found["believed"] = measure_knowing(
                    pythons[key], script, network, specification, reference, n, found["step_size"], longest
                )
            scaled = scaled._replace(step_sizes=tuple(found["finalists"]))  # the next peer is spared the search
            tools[name] = found
    seconds = statistics.median(run["seconds"] for run in own)
    soonest = statistics.median(run["seconds_as_peers"] or math.inf for run in own)
    for found in tools.values():
        found["ratio"], found["ratio_as_peers"] = found["seconds"] / seconds, found["seconds"] / soonest
        for way in found.get("believed", {"ways": {}})["ways"].values():
            way["ratio"] = way["seconds"] / seconds
    return {
        "network": network.name, "n": n, "dim": sum(parameter.numel() for parameter in model.parameters()),
        "reference": reference, "seconds": seconds, "seconds_as_peers": soonest,
        "gradients": statistics.median(run["gradients"] for run in own), "ours": own, "peers": tools,
        "library": library(),
    }  # fmt: skip


def show(table: list[dict[str, Any]]) -> None:
    print(f"\n{'network':<16}{'tool':<28}{'ε':>9}{'gradients':>11}{'seconds':>9}{'ratio':>8}")
    for row in table:
        own, name = row["ours"], row["network"]
        within, covered = (sum(run[key] for run in own) for key in ("within", "covered"))
        print(f"{name:<16}{'slt, whole call':<28}{'':>9}{row['gradients']:>11,.0f}{row['seconds']:>9.2f}{1:>8}")
        print(f"{name:<16}{'slt, as peers are measured':<28}{'':>20}{row['seconds_as_peers']:>9.2f}")
        for tool, found in row["peers"].items():
            mark = "" if found["reached"] == len(found["error_at_the_end"]) else " >"
            print(
                f"{name:<16}{tool:<28}{found['step_size']:>9.1e}{found['gradients']:>11,.0f}{found['seconds']:>9.2f}"
                f"{found['ratio']:>8.3f}{mark}   {found['way']}; {found['reached']} of "
                f"{len(found['error_at_the_end'])} reach {TOLERANCE:.0%}; bar {BAR}"
            )
            for way in WAYS if "believed" in found else ():
                read = found["believed"]["ways"][way]
                errors = ", ".join(f"{run.get('error', math.nan):+.1%}" for run in read["runs"])
                print(
                    f"  {tool} believes itself by {way}: {read['seconds']:.1f} s, {read['ratio']:.2f} times ours; "
                    f"{read['reached']} of {len(read['runs'])}; off by {errors}"
                )
        believed = sum(run["believed"] for run in own)
        print(f"  ours believes itself: {believed} of {len(own)}")
        parts = {part: statistics.median(run["parts"][part] for run in own) for part in own[0]["parts"]}
        print(f"  within 5 %: {within} of {len(own)}; interval covers the reference: {covered} of {len(own)}")
        print("  seconds of the call: " + ", ".join(f"{part} {value:.1f}" for part, value in parts.items()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for key, package in PACKAGES.items():
        parser.add_argument(f"--{key}-python", metavar="PATH", help=f"a Python that has {package} and torch")
    parser.add_argument(
        "--make-devinterp-environments",
        metavar="DIR",
        type=Path,
        help="make one for each peer, DIR/devinterp and so on",
    )
    parser.add_argument("--seeds", type=int, default=3, help="of ours")
    parser.add_argument("--scale", type=float, default=1.0, help="of the reference's draws and the peers' steps")
    parser.add_argument("--networks", nargs="*", default=[network.name.split()[0] for network in NETWORKS])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    pythons = {key: getattr(options, f"{key}_python") for key in PACKAGES if getattr(options, f"{key}_python")}
    if options.make_devinterp_environments is not None:
        for key, package in PACKAGES.items():
            pythons[key] = make_environment(options.make_devinterp_environments / key, (TORCH, package))
    chosen = [network for network in NETWORKS if network.name.split()[0] in options.networks]
    load = [os.getloadavg()]
    table = []
    for network in chosen:
        table.append(measure_network(network, pythons, options))
        load.append(os.getloadavg())
    show(table)
    return plain({"load_averages": load, "rows": table})
