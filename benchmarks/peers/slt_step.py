"""Time our SGLD, for ``benchmarks/peers.py``, which starts it as it starts the peers' scripts, in a process of its own.

Ways: ``"launched"``, a step as it is, and ``"compiled"``, one program (``compile=True``). The first steps, which
compile where asked to, are not timed.
"""

from __future__ import annotations

import time
from typing import Any

from conversation import Run, build, serve
from torch import Tensor, nn

import samplers
import slt

UNTIMED = 100  # steps: the caches are cold after another tool's turn


def squared_error(model: nn.Module, batch: Any) -> Tensor:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def prepare(specification: dict[str, Any]) -> Run:
    model, x, y = build(specification)
    law = {name: specification[name] for name in ("n_beta", "localization", "num_chains")}
    chains, steps = specification["num_chains"], specification["num_steps"]
    kernel = samplers.sgld(step_size=specification["step_size"])

    def run(seed: int) -> dict[str, Any]:
        posterior = slt.LocalPosterior(model, (x, y), squared_error, **law, engine="batched")
        whole = specification["batch_size"] == specification["num_samples"]
        batches = None if whole else posterior.minibatches(specification["batch_size"])
        form = {"batches": batches, "num_chains": chains, "num_warmup": 0, "seed": seed, "progress": False}
        with posterior:
            compiled = specification["way"] == "compiled"
            chain = samplers.Run(kernel, posterior, posterior.anchor, compile=compiled, **form)
            chain.draw(UNTIMED)
            start = time.perf_counter()
            chain.draw(steps)
            seconds = time.perf_counter() - start
        loss = float(chain.trace().loss[:, : specification["llc_draws"]].mean())
        llc = specification["n_beta"] * (loss - specification["loss_at_anchor"])
        return {"microseconds": seconds * 1e6 / (chains * steps), "llc": llc}

    return run


if __name__ == "__main__":
    serve(prepare)
