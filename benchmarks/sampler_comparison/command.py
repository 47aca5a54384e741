"""The command: runs what is asked for, prints the table line by line, writes JSON and figure."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import machine_facts

from sampler_comparison import references
from sampler_comparison.figure import draw
from sampler_comparison.kernels import ALL
from sampler_comparison.measure import measure
from sampler_comparison.targets import REFERENCED, REFERENCES, TARGETS, Target

QUICK_ROWS, QUICK_STEPS = 8, 2  # divisors; fewer rows, because adaptation takes as many steps as ever
LEAST_ROWS = 16
QUICK_TARGETS = ("poly_xy2", "poly_cusp2", "tanh_H2_k1_dup")  # unless others are asked for
OUTPUT = REFERENCES.with_name("samplers.json")
NOISE = 2.0  # standard errors, within which a difference is not called one
HEADER = (
    f"  {'':<21}{'λ̂':>9} {'± MCSE':>8}{'error':>9} {'± MCSE':>7}   {'R̂':>5}{'ESS':>8}{'least':>7}"
    f"{'ESS/1k gradients':>18}{'ESS/s':>8}{'s':>6}"
)


def line(name: str, result: dict[str, Any]) -> str:
    """One sampler's line. An error within two standard errors is in brackets: it is not known to be one."""
    if "failure" in result:
        return f"  {name:<21}{result['failure']}"
    error = f"{result['relative_error']:+.1%}"
    error = error if abs(result["z"]) > NOISE else f"({error})"
    return (
        f"  {name:<21}{result['llc']:>9.4f} {result['mcse']:>8.4f}{error:>9} {result['relative_error_mcse']:>7.1%}   "
        f"{result['rhat']:>5.3f}{result['ess']:>8.0f}{result['ess_least']:>7.0f}"
        f"{result['ess_per_thousand_gradients']:>18.2f}{result['ess_per_second']:>8.0f}{result['seconds']:>6.1f}"
    )


def quicker(target: Target) -> Target:
    """The same target with a smaller budget."""
    return replace(target, rows=max(LEAST_ROWS, target.rows // QUICK_ROWS), steps=target.steps // QUICK_STEPS)


def run_target(target: Target, names: list[str], seed: int) -> dict[str, Any]:
    """All samplers on one target."""
    budget = target.steps * target.rows
    error = f" ± {target.truth_error:.4f}" if target.truth_error > 1e-6 else ""
    print(f"\n{target.title}: λ̂ = {target.truth:.5f}{error} ({target.source}); {budget:,} gradients")
    print(HEADER, flush=True)
    results = {}
    for name in names:
        results[name] = measure(target, ALL[name], budget, seed)
        print(line(name, results[name]), flush=True)
    return {
        "title": target.title,
        "dim": target.potential.dim,
        "n_beta": target.n_beta,
        "localization": target.localization,
        "truth": target.truth,
        "truth_error": target.truth_error,
        "source": target.source,
        "budget_in_gradients": budget,
        "rows": target.rows,
        "samplers": results,
    }


def main(description: str | None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=form)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, metavar="NAME", help="of " + ", ".join(TARGETS))
    parser.add_argument("--samplers", nargs="+", choices=ALL, default=list(ALL), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="fewer chains, steps and targets: a minute")
    parser.add_argument("--references", action="store_true", help="compute those of " + ", ".join(REFERENCED))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="one by default: these are small tensors")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the figure lies beside it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    with ExitStack() as context:
        if options.references:
            found = references.compute({name: TARGETS[name](context) for name in REFERENCED})
            REFERENCES.parent.mkdir(parents=True, exist_ok=True)
            record = {"machine": machine_facts(), "targets": found}
            REFERENCES.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            return
        results = {}
        for name in options.targets or (QUICK_TARGETS if options.quick else TARGETS):
            target = TARGETS[name](context)
            target = quicker(target) if options.quick else target
            results[name] = run_target(target, options.samplers, options.seed)
    seconds = time.perf_counter() - start
    print(f"\nAn error in brackets is within {NOISE:.0f} standard errors: it is not known to be one.")
    print("ESS is that of the mean of nβ·loss; least: the smaller of it and of the localiser's energy.")
    print(f"{seconds:.0f} s on {options.threads} thread")
    record = {"machine": machine_facts(), "quick": options.quick, "seed": options.seed, "seconds": seconds}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record | {"targets": results}, indent=1, ensure_ascii=False) + "\n")
    draw(results, options.output.with_suffix(".png"))
