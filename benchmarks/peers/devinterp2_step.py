"""Time SGLD in devinterp 2.0.1, for ``benchmarks/peers.py``, which starts it with a Python that has devinterp.

It samples language models on sequences of tokens; how it is given an ordinary network stands in ``devinterp2_cost.py``.
A call takes seconds whatever its length, so that the time of a step is the difference of a long call and a short one,
with what it writes of every step to a folder that is thrown away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from conversation import Run, build, serve
from devinterp2_cost import SampleLoss, numbered
from devinterp2_cost import run as sample

LONGER = 8  # times the draws of the short call, so that the seconds of a call, which scatter, weigh little


def prepare(specification: dict[str, Any]) -> Run:
    model, x, y = build(specification)
    of_samples = model, numbered(len(x)), SampleLoss(x, y, "mean_squares")
    # it knows no anchor's loss that is given, and is let off with one batch: λ̂ is computed from its losses
    specification = specification | {"init_loss_batches": 1}
    draws, chains = specification["llc_draws"], specification["num_chains"]

    def run(seed: int) -> dict[str, Any]:
        short, long = (
            sample(specification, *of_samples, specification["step_size"], seed, steps)
            for steps in (draws, LONGER * draws)
        )
        if "failed" in short or "failed" in long:
            return short if "failed" in short else long
        further = chains * (LONGER - 1) * draws
        llc = specification["n_beta"] * (float(np.mean(short["losses"])) - specification["loss_at_anchor"])
        return {"microseconds": (long["seconds"] - short["seconds"]) * 1e6 / further, "llc": llc}

    return run


if __name__ == "__main__":
    serve(prepare)
