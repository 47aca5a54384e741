"""What a peer's run of SGLD costs until its own draws say that λ̂ is known to 5 %, which takes no reference."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
from peer_environments import ask_peer

import samplers
from accuracy_tables.peers import NUM_CHAINS, TOLERANCE, Network

SEEDS = 2
RHAT, ESS, Z_95 = 1.02, 400, 1.96  # as estimate_llc stops, which follows Vehtari et al. 2021, §4
DOUBLINGS = 5  # up to the longest run
# The loss of a minibatch is the energy of the chain and a larger noise, which hides from an estimator of
# autocorrelation that the chain is slow; means over an epoch are free of most of it, and what estimate_llc takes too.
WAYS = ("epoch means", "single steps")


def knows(draws: np.ndarray) -> tuple[samplers.Diagnostics, bool]:
    """Mean and its error of draws of λ̂ ``(chain, draw)``, and whether they say that it is known to 5 %."""
    found = samplers.diagnose(draws)
    narrow = Z_95 * found.mcse <= TOLERANCE * abs(found.mean)
    return found, bool(narrow and found.rhat <= RHAT and found.ess >= ESS)


def means(draws: np.ndarray, start: int, window: int) -> np.ndarray:
    """Of the windows ``[k·window, (k + 1)·window)`` of draws ``(chain, draw)`` that lie in ``[start, end)``.

    Windows that are epochs must begin with them: the noise of their batches cancels in a whole epoch alone.
    """
    first, last = -(-start // window), draws.shape[1] // window
    return draws[:, first * window : last * window].reshape(len(draws), last - first, window).mean(-1)


def until_known(
    run: dict[str, Any], reference: dict[str, Any], network: Network, n: int, steps: int
) -> dict[str, dict[str, Any]]:
    """Of a peer's run, by either way of reading its losses, the first of the doubling lengths that is enough."""
    if "failed" in run:
        return {way: {"reached": False, "seconds": math.inf, "failed": run["failed"]} for way in WAYS}
    draws = reference["n_beta"] * (np.array(run["losses"]) - reference["loss_at_anchor"])
    seconds = min(run["seconds"], run["cpu_seconds"])
    read: dict[str, dict[str, Any]] = {}
    for way, window in zip(WAYS, (n // network.batch_size, 1), strict=True):
        for length in (steps >> halvings for halvings in range(DOUBLINGS, -1, -1)):
            found, reached = knows(means(draws[:, :length], length // 2, window))
            if reached or length == steps:
                half_width = Z_95 * found.mcse
                read[way] = {
                    "reached": reached, "steps": length, "seconds": seconds * length / steps,
                    "gradients": NUM_CHAINS * length * network.batch_size / n, "llc": found.mean,
                    "half_width": half_width, "ess": found.ess, "rhat": found.rhat,
                    "error": found.mean / reference["llc"] - 1,
                    "covered": abs(found.mean - reference["llc"]) <= half_width,
                }  # fmt: skip
                break
    return read


def measure_knowing(
    python: str,
    script: str,
    network: Network,
    specification: dict[str, Any],
    reference: dict[str, Any],
    n: int,
    step_size: float,
    steps: int,
) -> dict[str, Any]:
    """Of every way, the median seconds over the seeds, a lower bound where not all are enough; and every run."""
    asked = [[step_size, seed, steps] for seed in range(SEEDS)]
    answer = ask_peer(python, specification | {"runs": asked}, script)
    runs = [until_known(run, reference, network, n, steps) for run in answer["runs"]]
    ways: dict[str, Any] = {}
    for way in WAYS:
        readings = [run[way] for run in runs]
        ways[way] = {
            "reached": sum(reading["reached"] for reading in readings),
            "seconds": statistics.median(reading["seconds"] for reading in readings),
            "runs": readings,
        }
    return {"step_size": step_size, "longest": steps, "ways": ways}
