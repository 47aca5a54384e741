"""Whether the interval of ``estimate_llc`` covers the truth as often as it says; without a knob.

Each row of the table of exact values, all of them small laws with an exact loss, is estimated from the case's module
at the row's nβ and γ with everything else left to the call. Reported by row: how many of the 95 % intervals contain the
exact value, the largest error, and the median half-width of the interval over 1.96 times the spread of λ̂ over seeds,
which is one where the standard error is right.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

import slt
from accuracy_tables.rows import finished_rows
from slt import known
from slt.known.table import computed_rows

# The bars: coverage over all, misses of a row, inflation of the intervals, median and largest relative error.
COVERAGE, MOST_MISSES, INFLATION, MEDIAN_ERROR, LARGEST_ERROR = (0.92, 0.98), 4, 1.5, 0.02, 0.10


def rows() -> list[tuple[str, int]]:
    """The cases of the table, with the places of their rows."""
    return [
        (case.name, place)
        for case in known.cases()
        if case.exact and not computed_rows(case.name)
        for place in range(len(case.exact))
    ]


def estimate(task: tuple[str, int, int]) -> dict[str, Any]:
    """The row of a case, the place of its exact value and a seed."""
    name, place, seed = task
    torch.set_num_threads(1)
    case = known.case(name)
    row = case.exact[place]
    found = slt.estimate_llc(
        case.build(), None, case.loss_fn, n_beta=row.n_beta, localization=row.localization, seed=seed, progress=False
    )
    low, high = found.interval
    return {
        "case": name, "n_beta": row.n_beta, "localization": row.localization, "exact": row.value, "seed": seed,
        "llc": found.llc, "mcse": found.mcse, "half_width": (high - low) / 2, "covered": bool(low <= row.value <= high),
        "problems": list(found.verdict.names), "sampler": found.sampler, "gradients": found.num_gradients,
        "seconds": found.seconds,
    }  # fmt: skip


def by_row(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table, each over all its seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault((one["case"], one["n_beta"], one["localization"]), []).append(one)
    table = []
    for (name, n_beta, localization), group in groups.items():
        values = np.array([one["llc"] for one in group])
        exact = group[0]["exact"]
        spread = float(values.std(ddof=1)) if len(values) > 1 else np.nan
        table.append({
            "case": name, "n_beta": n_beta, "localization": localization, "exact": exact, "seeds": len(group),
            "covered": sum(one["covered"] for one in group),
            "bias": float(values.mean() / exact - 1),
            "bias_z": float((values.mean() - exact) / (spread / len(values) ** 0.5)),
            "median_error": float(np.median(np.abs(values / exact - 1))),
            "largest_error": float(np.abs(values / exact - 1).max()),
            "inflation": float(np.median([one["half_width"] for one in group]) / (1.96 * spread)),
            "healthy": sum(not one["problems"] for one in group),
            "seconds": float(np.median([one["seconds"] for one in group])),
        })  # fmt: skip
    return table


def summary(found: list[dict[str, Any]], table: list[dict[str, Any]]) -> dict[str, Any]:
    errors = np.array([abs(one["llc"] / one["exact"] - 1) for one in found])
    silent = [one for one, error in zip(found, errors, strict=True) if error > LARGEST_ERROR and not one["problems"]]
    return {
        "runs": len(found),
        "coverage": float(np.mean([one["covered"] for one in found])),
        "most_misses_of_a_row": max(row["seeds"] - row["covered"] for row in table),
        "median_inflation": float(np.median([row["inflation"] for row in table])),
        "median_error": float(np.median(errors)),
        "largest_error": float(errors.max()),
        "wrong_by_a_tenth_without_a_problem": len(silent),
        "healthy": float(np.mean([not one["problems"] for one in found])),
        "seconds": float(sum(one["seconds"] for one in found)),
    }


def show(table: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    print(
        f"{'case':<20}{'nβ':>9}{'γ':>5}{'exact':>8}{'covered':>9}{'bias':>8}{'z':>6}{'error':>7}{'most':>7}{'width':>7}"
    )
    for row in table:
        print(
            f"{row['case']:<20}{row['n_beta']:>9.4g}{row['localization']:>5.4g}{row['exact']:>8.4f}"
            f"{row['covered']:>6}/{row['seeds']:<2}{row['bias']:>+8.1%}{row['bias_z']:>+6.1f}{row['median_error']:>7.1%}"
            f"{row['largest_error']:>7.1%}{row['inflation']:>7.2f}"
        )
    bars = {
        "coverage": f"{COVERAGE[0]:.0%} to {COVERAGE[1]:.0%}",
        "most_misses_of_a_row": f"at most {MOST_MISSES} of 20",
        "median_inflation": f"at most {INFLATION}",
        "median_error": f"at most {MEDIAN_ERROR:.0%}",
        "wrong_by_a_tenth_without_a_problem": "0",
    }
    for name, value in whole.items():
        bar = f"   (bar: {bars[name]})" if name in bars else ""
        print(f"{name.replace('_', ' '):<38}{value:>10.4g}{bar}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=20)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    # every row has seeds of its own: with the same ones, rows that differ little would be one row seen many times
    work = [
        (name, place, index * options.seeds + seed)
        for index, (name, place) in enumerate(rows())
        for seed in range(options.seeds)
    ]
    found = finished_rows(estimate, work, options.output, options.processes, options.again)
    table = by_row(found)
    whole = summary(found, table)
    show(table, whole)
    return {"summary": whole, "rows": table, "runs": found}
