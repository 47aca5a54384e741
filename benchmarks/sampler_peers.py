"""Our kernels beside posteriors and blackjax: prints a table, writes ``benchmarks/results/sampler_peers.json``.

SGLD, SGHMC and SGNHT beside posteriors 0.1.3, HMC beside blackjax 1.7.1, each peer in an environment of its own, on
the same Gaussian of 1000 dimensions and the same small network, with the same data, settings, precision (float32),
numbers of chains, steps and threads. Beside blackjax, whose run is one compiled program, our steps are compiled too;
posteriors and ours beside it are run as they are. Chains start from draws of the law, ours and theirs from the same
ones. Each pair is measured alternately in running processes, several times, compilation not counted; reported are
steps of all chains per second, the median (least to most), and the mean of U = −log density, with the mean of the
differences of chains that share a start, in standard errors.

    python benchmarks/sampler_peers.py --make-environments .venv-peers          # makes .venv-peers-posteriors and …
    python benchmarks/sampler_peers.py --environments .venv-peers               # uses those that are there
    python benchmarks/sampler_peers.py                                          # our side alone

The same settings need not be the same law: posteriors moves by Euler's explicit step, where our SGHMC kicks before it
drifts and our SGNHT is a symmetric splitting. Steps are therefore so small that both biases are below the errors.
Momenta start at zero on both sides: they draw their heat from U, which takes hundreds of steps to come back.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peer_environments import Worker, make_environment, python_of
from record import spread
from torch import Tensor, nn

import samplers
import slt
from samplers.adaptation import stiffness as stiffness_of

HERE = Path(__file__).resolve().parent
PACKAGES = {
    "posteriors": ("posteriors==0.1.3", "torch==2.13.0"),
    "blackjax": ("blackjax==1.7.1", "jax==0.10.2"),
}
CHAINS = (8, 64)
DIM, STIFFEST = 1_000, 100.0  # of the Gaussian, whose flattest direction has stiffness 1
SAMPLES, INPUTS, HIDDEN = 256, 4, 16  # of the network
DRAWS_SEED = 987_654_321  # none of the rounds'
COMPILED_PEERS = ("blackjax",)  # whose runs are one program, and so are ours beside them
UNTIMED = 20  # steps at the start of a run: of compilation, and because the caches are cold after a peer's turn
BAR = 1.0  # our steps per second over theirs


class Target(NamedTuple):
    """A law as we take it, and as the peers do: arrays. ``draws`` are of the law, one a chain.

    ``order`` picks the coordinates of a flat vector of ours in the order of the module's parameters, which is theirs.
    """

    potential: Any
    arrays: dict[str, Tensor]
    draws: Tensor
    stiffness: float
    order: Tensor


class Pair(NamedTuple):
    """One kernel on both sides; ``ours`` and ``theirs`` take the stiffness and give a kernel, and settings."""

    peer: str
    kernel: str
    num_steps: int
    ours: Callable[[float], samplers.Kernel]
    theirs: Callable[[float], dict[str, Any]]


def small_step(stiffness: float) -> float:
    return 0.02 / math.sqrt(stiffness)


def friction(stiffness: float) -> float:
    return 0.1 / small_step(stiffness)


PAIRS = (
    Pair("posteriors", "sgld", 500, lambda a: samplers.sgld(0.02 / a), lambda a: {"lr": 0.01 / a}),
    Pair(
        "posteriors", "sghmc", 500, lambda a: samplers.sghmc(small_step(a), friction(a)),
        lambda a: {"lr": small_step(a), "alpha": friction(a), "momenta": 0.0},
    ),
    Pair(
        "posteriors", "sgnht", 500, lambda a: samplers.sgnht(small_step(a), friction(a), thermostat_rate=1.0),
        lambda a: {"lr": small_step(a), "alpha": friction(a), "momenta": 0.0},
    ),
    Pair(
        "blackjax", "hmc", 150, lambda a: samplers.hmc(0.25 / math.sqrt(a), 8),
        lambda a: {"step_size": 0.25 / math.sqrt(a), "num_integration_steps": 8},
    ),
)  # fmt: skip


def gaussian(context: ExitStack) -> Target:
    stiffness = torch.logspace(0, math.log10(STIFFEST), DIM)
    potential = samplers.from_log_density(lambda w: -0.5 * (stiffness * w.square()).sum(-1), DIM)
    # a peer that is seeded like the start takes the start for its first noise; of a seed torch keeps the low 32 bits
    draws = torch.randn(max(CHAINS), DIM, generator=torch.Generator().manual_seed(DRAWS_SEED)) / stiffness.sqrt()
    return Target(potential, {"stiffness": stiffness}, draws, STIFFEST, torch.arange(DIM))


def network(context: ExitStack) -> Target:
    """A 4-16-16-1 tanh network trained on noisy data; its draws are the ends of long HMC chains."""
    torch.manual_seed(0)
    layers = [nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)]
    model = nn.Sequential(*layers)
    x = torch.randn(SAMPLES, INPUTS)
    y = torch.sin(x).sum(-1, keepdim=True) + 0.5 * torch.randn(SAMPLES, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(500):
        optimizer.zero_grad()
        half_square(model, (x, y)).backward()
        optimizer.step()
    law: dict[str, Any] = {"n_beta": SAMPLES / math.log(SAMPLES), "localization": 10.0}
    potential = slt.LocalPosterior(model, (x, y), half_square, **law, engine="batched")
    context.enter_context(potential)
    rows = max(CHAINS)
    trace = samplers.sample(
        samplers.hmc((0.02, 0.15), 8), potential, potential.anchor, num_chains=rows, num_warmup=400, num_draws=1,
        keep_positions=True, progress=False,
    )  # fmt: skip
    assert trace.positions is not None
    places = potential.sampled.unflatten(torch.arange(potential.dim))
    order = torch.cat([places[name].flatten() for name, _ in model.named_parameters()])
    arrays = {"x": x, "y": y, "anchor": potential.anchor[order], "hidden": torch.tensor(HIDDEN)}
    arrays |= {name: torch.tensor(value) for name, value in law.items()}
    generator = torch.Generator().manual_seed(0)
    stiffness = stiffness_of(potential, trace.positions[:16, 0], None, generator)
    return Target(potential, arrays, trace.positions[:, 0], stiffness, order)


def half_square(model: nn.Module, batch: Any) -> Tensor:
    return 0.5 * (model(batch[0]) - batch[1]).square().mean()


TARGETS: dict[str, Callable[[ExitStack], Target]] = {"gaussian": gaussian, "network": network}


def ours(pair: Pair, target: Target, initial: Tensor, seed: int) -> dict[str, Any]:
    """U of every chain, and seconds, of a run of ours; compiled where the peer is."""
    run = samplers.Run(
        pair.ours(target.stiffness), target.potential, initial, num_chains=len(initial), num_warmup=0, seed=seed,
        compile=pair.peer in COMPILED_PEERS, progress=False,
    )  # fmt: skip
    run.draw(UNTIMED)
    start, busy = time.perf_counter(), time.process_time()
    run.draw(pair.num_steps)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    trace = run.trace()
    energy = float(target.potential.n_beta) * trace.loss + trace.statistics["localization_energy"]
    energy = energy[:, : pair.num_steps]  # of as many steps as the peer's, from the same start
    return {"energies": energy.mean(1).tolist(), "seconds": seconds, "cpu_seconds": busy}


def by_chain(rounds: list[dict[str, Any]]) -> np.ndarray:
    """Mean U of every chain over the rounds, which are not independent, having one start."""
    return np.mean([found["energies"] for found in rounds], axis=0)


def mean_and_error(rounds: list[dict[str, Any]]) -> tuple[float, float]:
    """Of U, over chains."""
    values = by_chain(rounds)
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))


def measure(
    pair: Pair, name: str, target: Target, num_chains: int, worker: Worker | None, repeats: int, threads: int
) -> dict[str, Any]:
    initial = target.draws[:num_chains]
    rounds: dict[str, list[dict[str, Any]]] = {"ours": []} | ({pair.peer: []} if worker else {})
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "arrays.npz")
        np.savez(
            path,
            initial=initial[:, target.order].numpy(),
            **{key: value.numpy() for key, value in target.arrays.items()},
        )
        request = {"target": name, "kernel": pair.kernel, "settings": pair.theirs(target.stiffness), "arrays": path}
        request |= {"num_chains": num_chains, "num_steps": pair.num_steps, "threads": threads}
        for seed in range(repeats):
            rounds["ours"].append(ours(pair, target, initial, seed))
            if worker is not None:
                rounds[pair.peer].append(worker.ask(request | {"seed": seed}))
    result: dict[str, Any] = {"kernel": pair.kernel, "target": name, "num_chains": num_chains, "peer": pair.peer}
    result |= {"num_steps": pair.num_steps, "settings": request["settings"], "sides": {}}
    for side, found in rounds.items():
        mean, error = mean_and_error(found)
        result["sides"][side] = {
            "steps_per_second": spread([pair.num_steps / one["seconds"] for one in found]),
            "cores_in_use": statistics.median(one["cpu_seconds"] / one["seconds"] for one in found),
            "energy": mean,
            "energy_error": error,
            "about": found[0].get("about", {"torch": torch.__version__}),
        }
    if worker is not None:
        mine, other = result["sides"]["ours"], result["sides"][pair.peer]
        differences = by_chain(rounds["ours"]) - by_chain(rounds[pair.peer])
        result["z"] = float(differences.mean() / (differences.std(ddof=1) / math.sqrt(num_chains)))
        result["speed_ratio"] = mine["steps_per_second"]["median"] / other["steps_per_second"]["median"]
    return result


def show(result: dict[str, Any]) -> None:
    z, ratio = result.get("z", math.nan), result.get("speed_ratio", math.nan)
    mark = "" if ratio >= BAR or math.isnan(ratio) else "   slower than the peer"
    print(f"{result['kernel']}, {result['target']}, {result['num_chains']} chains: ratio {ratio:.2f}, z {z:+.1f}{mark}")
    for side, found in result["sides"].items():
        speed = found["steps_per_second"]
        print(
            f"    {side:<11}{speed['median']:>9.0f} steps/s ({speed['min']:.0f} to {speed['max']:.0f}), "
            f"{found['cores_in_use']:.1f} cores, E[U] {found['energy']:.3f} ± {found['energy_error']:.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make-environments", metavar="PREFIX", help="make PREFIX-posteriors and PREFIX-blackjax")
    parser.add_argument("--environments", metavar="PREFIX", help="use those that were made")
    parser.add_argument("--threads", type=int, default=1, help="of both sides")
    parser.add_argument("--repeats", type=int, default=5, help="of each side, alternately")
    parser.add_argument("--kernels", nargs="+", choices=[pair.kernel for pair in PAIRS], metavar="NAME")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "sampler_peers.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if hasattr(os, "sched_setaffinity"):  # of the workers too: not every library keeps to the threads that it is given
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.threads :])
    pythons = {}
    if options.make_environments is not None:
        pythons = {
            name: make_environment(Path(f"{options.make_environments}-{name}"), PACKAGES[name]) for name in PACKAGES
        }
    elif options.environments is not None:
        pythons = {name: python_of(Path(f"{options.environments}-{name}")) for name in PACKAGES}
    workers = {name: Worker(python, f"{name}_steps.py", str(options.threads)) for name, python in pythons.items()}
    results = []
    with ExitStack() as context:
        for name, make in TARGETS.items():
            target = make(context)
            for pair in PAIRS:
                if options.kernels and pair.kernel not in options.kernels:
                    continue
                for num_chains in CHAINS:
                    worker = workers.get(pair.peer)
                    result = measure(pair, name, target, num_chains, worker, options.repeats, options.threads)
                    results.append(result)
                    show(result)
    for worker in workers.values():
        worker.close()
    record = {"threads": options.threads, "cores": os.cpu_count(), "repeats": options.repeats, "results": results}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
