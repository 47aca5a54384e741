"""Sample with blackjax 1.7.1, for ``benchmarks/sampler_peers.py``, which starts it with a Python that has blackjax.

Reads requests from standard input, one JSON object a line, and answers each with one JSON line: the mean of U of every
chain, and the seconds of a run, which is compiled as a whole, without those of compilation. Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def restrict(threads: int) -> None:
    """JAX reads how many threads it may use when it is imported."""
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def target_of(arrays: Any, name: str) -> Callable[[Any], Any]:
    """The log density of one chain."""
    import jax.numpy as jnp

    if name == "gaussian":
        stiffness = jnp.asarray(arrays["stiffness"])
        return lambda w: -0.5 * (stiffness * w**2).sum()
    x, y, anchor = (jnp.asarray(arrays[key]) for key in ("x", "y", "anchor"))
    hidden, n_beta, localization = int(arrays["hidden"]), float(arrays["n_beta"]), float(arrays["localization"])
    shapes = [(hidden, x.shape[1]), (hidden,), (hidden, hidden), (hidden,), (1, hidden), (1,)]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])

    def log_density(w: Any) -> Any:
        parts = jnp.split(w, ends[:-1])
        a, b, c, d, e, f = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        output = jnp.tanh(jnp.tanh(x @ a.T + b) @ c.T + d) @ e.T + f
        loss = 0.5 * ((output - y) ** 2).mean()
        return -n_beta * loss - 0.5 * localization * ((w - anchor) ** 2).sum()

    return log_density


COMPILED: dict[Any, Any] = {}


def compiled(request: dict[str, Any], arrays: Any) -> Any:
    """The whole run as one program, kept for requests of the same form."""
    import blackjax
    import jax
    import jax.numpy as jnp

    form = json.dumps({name: value for name, value in request.items() if name not in ("seed", "arrays")})
    if form in COMPILED:
        return COMPILED[form]
    log_density = target_of(arrays, request["target"])
    dim = arrays["initial"].shape[1]
    settings = {**request["settings"], "inverse_mass_matrix": jnp.ones(dim)}
    kernel = blackjax.hmc(log_density, **settings)

    def step(state: Any, key: Any) -> tuple[Any, Any]:
        state, _ = jax.vmap(kernel.step)(jax.random.split(key, request["num_chains"]), state)
        return state, state.logdensity

    def run(initial: Any, key: Any) -> Any:
        state = jax.vmap(kernel.init)(initial)
        _, values = jax.lax.scan(step, state, jax.random.split(key, request["num_steps"]))
        return -values.mean(0)

    COMPILED[form] = jax.jit(run)
    return COMPILED[form]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    import jax

    arrays = np.load(request["arrays"])
    run = compiled(request, arrays)
    initial = jax.numpy.asarray(arrays["initial"][: request["num_chains"]])
    before = time.perf_counter()
    run(initial, jax.random.key(request["seed"] + 1000)).block_until_ready()
    first = time.perf_counter() - before
    start, busy = time.perf_counter(), time.process_time()
    energies = run(initial, jax.random.key(request["seed"])).block_until_ready()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return {
        "energies": np.asarray(energies, dtype=np.float64).tolist(),
        "seconds": seconds,
        "cpu_seconds": busy,
        "first_run_seconds": first,
    }


if __name__ == "__main__":
    restrict(int(sys.argv[1]))
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):  # whatever the library prints stays out of the answer
            result = answer(json.loads(line))
        result["about"] = {name: importlib.metadata.version(name) for name in ("blackjax", "jax")}
        print(json.dumps(result), flush=True)
