"""What a peer's runs of SGLD cost to come within 5 % of a reference, at the best of several step sizes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from peer_environments import ask_peer
from torch import Tensor, nn

TOLERANCE = 0.05
LOCALIZATION = 1.0
NUM_CHAINS, POINTS, FINALISTS = 4, 250, 2
BURN_IN = (0.0, 0.5)  # shares of the steps; 2.0.1 discards nothing, and 1.3.2 warns where it is less than half


class Network(NamedTuple):
    """What is estimated, written so that a peer can build it too."""

    name: str
    layers: list[list[Any]]
    loss: str
    loss_fn: Callable[..., Tensor]
    make: Callable[[], tuple[nn.Module, tuple[Tensor, Tensor]]]
    batch_size: int  # divides n
    steps: int  # of a peer's chain
    step_sizes: tuple[float, ...]
    reference_draws: int
    longest: int  # steps of a peer's chain that is to know when it is enough


class Clock:
    """Seconds of a piece of work, the lesser of wall and processor time."""

    def __enter__(self) -> Clock:
        self.start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self.start[0]
        self.seconds = min(self.wall, time.process_time() - self.start[1])


def stays_within(estimates: np.ndarray, reference: float) -> int | None:
    """The first place from which on all estimates are within 5 % of the reference; None if the last one is not."""
    outside = np.flatnonzero(~(np.abs(estimates / reference - 1) <= TOLERANCE))
    first = 0 if not len(outside) else int(outside[-1]) + 1
    return first if first < len(estimates) else None


def ways_to_read(
    run: dict[str, Any], reference: dict[str, Any], network: Network, n: int
) -> dict[str, dict[str, float | bool]]:
    """Of a peer's run, for each burn-in and number of chains: seconds and gradients to 5 %, and where it ends."""
    if "failed" in run:
        worst = {"reached": False, "seconds": math.inf, "gradients": math.inf, "error": math.inf}
        return {_way(share, chains): worst for share in BURN_IN for chains in (1, NUM_CHAINS)}
    steps = np.linspace(0, network.steps, POINTS + 1).astype(int)
    sums = np.pad(np.cumsum(np.array(run["losses"]), 1), ((0, 0), (1, 0)))[:, steps]
    places = np.arange(1, len(steps))
    seconds = min(run["seconds"], run["cpu_seconds"])
    read: dict[str, dict[str, float | bool]] = {}
    for share in BURN_IN:
        start = (places * share).astype(int)
        for chains in (1, NUM_CHAINS):
            of_chains = sums[:chains].mean(0)
            losses = (of_chains[places] - of_chains[start]) / (steps[places] - steps[start])
            estimates = reference["n_beta"] * (losses - reference["loss_at_anchor"])
            place = stays_within(estimates, reference["llc"])
            taken = steps[-1 if place is None else place + 1]
            read[_way(share, chains)] = {
                "reached": place is not None,
                "seconds": float(seconds * chains / NUM_CHAINS * taken / steps[-1]),
                "gradients": float(chains * taken * network.batch_size / n),
                "error": float(estimates[-1] / reference["llc"] - 1),
            }
    return read


def _way(share: float, chains: int) -> str:
    return f"{share:.0%} discarded, {chains} chain{'s' if chains > 1 else ''}"


def merit(readings: list[dict[str, Any]]) -> tuple[float, float, float]:
    """What is less for a better way: seeds that did not reach 5 %, median seconds where most did, error at the end."""
    missed = sum(not reading["reached"] for reading in readings)
    seconds = statistics.median(reading["seconds"] for reading in readings)
    return (float(missed > len(readings) / 2), seconds if missed <= len(readings) / 2 else 0.0,
            statistics.median(abs(reading["error"]) for reading in readings))  # fmt: skip


def best_way(runs: list[dict[str, Any]]) -> str:
    return min(runs[0]["read"], key=lambda way: merit([run["read"][way] for run in runs]))


def measure_peer(
    python: str, script: str, network: Network, specification: dict[str, Any], reference: dict[str, Any], n: int
) -> dict[str, Any]:
    """All step sizes with one seed, the best two with all, and the best of these."""

    def ask(asked: list[tuple[float, int]]) -> dict[float, list[dict[str, Any]]]:
        runs = [[step_size, seed, network.steps] for step_size, seed in asked]
        answer = ask_peer(python, specification | {"runs": runs}, script)
        found: dict[float, list[dict[str, Any]]] = {}
        for (step_size, seed), run in zip(asked, answer["runs"], strict=True):
            kept = {name: value for name, value in run.items() if name != "losses"}
            read = ways_to_read(run, reference, network, n)
            found.setdefault(step_size, []).append({"seed": seed, **kept, "read": read})
        return found

    grid = ask([(step_size, 0) for step_size in network.step_sizes])

    def rank(step_size: float) -> tuple[float, float, float]:
        way = best_way(grid[step_size])
        return merit([run["read"][way] for run in grid[step_size]])

    finalists = sorted(grid, key=rank)[:FINALISTS]
    for step_size, runs in ask([(step_size, seed) for step_size in finalists for seed in (1, 2)]).items():
        grid[step_size] += runs
    best = min(finalists, key=rank)
    way = best_way(grid[best])
    readings = [run["read"][way] for run in grid[best]]
    return {
        "step_size": best, "finalists": finalists, "way": way,
        "reached": sum(reading["reached"] for reading in readings),
        "seconds": statistics.median(reading["seconds"] for reading in readings),
        "gradients": statistics.median(reading["gradients"] for reading in readings),
        "error_at_the_end": [reading["error"] for reading in readings],
        "grid": {f"{step_size:g}": runs for step_size, runs in grid.items()},
    }  # fmt: skip
