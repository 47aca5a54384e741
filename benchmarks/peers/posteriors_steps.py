"""Sample with posteriors 0.1.3, for ``benchmarks/sampler_peers.py``, which starts it with a Python that has posteriors.

Reads requests from standard input, one JSON object a line, and answers each with one JSON line: the mean of U of every
chain, and the seconds of a run. Imports nothing of ours, so that its environment needs posteriors and torch only.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import posteriors
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

WARMUP_STEPS = 20


def target_of(arrays: dict[str, Tensor], name: str) -> tuple[Callable[[Any, Any], tuple[Tensor, Tensor]], Any, Any]:
    """Log posterior with an empty auxiliary value, initial parameters with a leading axis of chains, and the batch."""
    initial = arrays["initial"]
    if name == "gaussian":
        return (
            lambda w, stiffness: (-0.5 * (stiffness * w.square()).sum(), w.new_zeros(())),
            initial,
            arrays["stiffness"],
        )
    inputs, hidden = arrays["x"].shape[1], int(arrays["hidden"])
    layers = [nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1)]
    model = nn.Sequential(*layers)
    shapes = {key: value.shape for key, value in model.named_parameters()}

    def tree(flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in shapes.values()], -1)
        named = zip(parts, shapes.items(), strict=True)
        return {key: part.reshape(*flat.shape[:-1], *shape).contiguous() for part, (key, shape) in named}

    anchor, n_beta, localization = tree(arrays["anchor"]), float(arrays["n_beta"]), float(arrays["localization"])

    def log_posterior(parameters: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        loss = 0.5 * (functional_call(model, parameters, (batch[0],)) - batch[1]).square().mean()
        distance = sum((parameters[key] - anchor[key]).square().sum() for key in anchor)
        return -n_beta * loss - 0.5 * localization * distance, loss

    return log_posterior, tree(initial), (arrays["x"], arrays["y"])


def answer(request: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(request["threads"])
    torch.manual_seed(request["seed"])
    arrays = {name: torch.from_numpy(array) for name, array in np.load(request["arrays"]).items()}
    arrays["initial"] = arrays["initial"][: request["num_chains"]]
    log_posterior, parameters, batch = target_of(arrays, request["target"])
    transform = getattr(posteriors.sgmcmc, request["kernel"]).build(log_posterior, **request["settings"])
    state = vmap(transform.init, randomness="different")(parameters)
    update = vmap(transform.update, in_dims=(0, None), randomness="different")
    for _ in range(WARMUP_STEPS):
        state, _ = update(state, batch)
    values = []
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(request["num_steps"]):
        state, _ = update(state, batch)
        values.append(state.log_posterior)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return {"energies": (-torch.stack(values).mean(0)).tolist(), "seconds": seconds, "cpu_seconds": busy}


if __name__ == "__main__":
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):  # whatever the library prints stays out of the answer
            result = answer(json.loads(line))
        result["about"] = {name: importlib.metadata.version(name) for name in ("posteriors", "torch")}
        print(json.dumps(result), flush=True)
