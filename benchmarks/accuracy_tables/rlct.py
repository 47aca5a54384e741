"""λ and m of every known case by ``estimate_rlct``, in the case's own ball, without a knob.

Given are what states the problem, module, exact loss, radius and, where it is not flat, prior. Reported: |λ̂ − λ| ≤ 5 %
(0.02 where λ = 0); m right, wrong or undecided, for m = 1 and m ≥ 2 apart; how often the 95 % interval holds λ; tanh
and ReLU networks by themselves; and the cases that were not run, each with its reason.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
import torch

import slt
from accuracy_tables.rows import finished_rows
from slt import known
from slt.known import Case

# The bars: λ within 5 %, m right where m = 1 and where m ≥ 2, m wrong.
WITHIN, RIGHT, WRONG = 0.90, 0.80, 0.05
RELATIVE, ABSOLUTE = 0.05, 0.02
LARGEST_DIM = 100
CURVES = "of_populations"  # kept with the rows alone: what a change of the fit wants


def reason_not_to_run(case: Case) -> str:
    """Empty where the case is run."""
    if case.dim > LARGEST_DIM:
        return f"{case.dim:,} weights: beyond {LARGEST_DIM} the moves of the ladder are too small a part of the space"
    return ""


def log_prior(case: Case) -> Any:
    """The prior of a case over flat weights, or None where it is flat in the ball."""
    if case.log_prior is not None:
        return case.log_prior
    if case.lower is not None:
        lower = case.lower
        return lambda w: torch.where((w >= lower).all(-1), 0.0, -math.inf).to(w.dtype)
    return None


def estimated(task: tuple[str, int, int | None]) -> dict[str, Any]:
    """The row of a case, at a seed, of so many rounds."""
    row = _row(*task)
    show(row)
    return row


def _row(name: str, seed: int, rounds: int | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    case = known.case(name)
    rlct, started = float(case.rlct), time.perf_counter()
    row: dict[str, Any] = {
        "case": name, "family": case.family, "dim": case.dim, "rlct": rlct, "multiplicity": case.multiplicity,
        "radius": case.radius, "seed": seed,
    }  # fmt: skip
    options = {} if rounds is None else {"max_rounds": rounds}
    try:
        found = slt.estimate_rlct(
            case.build(), None, case.loss_fn, radius=case.radius, log_prior=log_prior(case), seed=seed, progress=False,
            **options,
        )  # fmt: skip
    except Exception as error:  # a case that fails is a row of the table, not its end
        return {**row, "failed": f"{type(error).__name__}: {error}", "seconds": time.perf_counter() - started}
    if found.fit is None:
        return {**row, "failed": f"no fit: {found.verdict}", "seconds": found.seconds}
    low, high = found.interval
    error = found.rlct / rlct - 1 if rlct else found.rlct
    return {
        **row, "estimate": found.rlct, "interval": [low, high], "error": error,
        "within": bool(abs(error) <= (RELATIVE if rlct else ABSOLUTE)), "covered": bool(low <= rlct <= high),
        "estimated_multiplicity": found.multiplicity, "weights": [round(w, 4) for w in found.multiplicity_weights],
        "fitted_log_n_beta": list(found.fit.log_n_beta), "problems": list(found.verdict.names),
        "log_n_beta": [round(value, 4) for value in np.log(found.curve.n_beta).tolist()],
        "llc": [round(value, 5) for value in found.curve.llc.tolist()],
        "mcse": [round(value, 5) for value in found.curve.mcse.tolist()],
        "particles": found.config["particles"][0], "evaluations": found.num_evaluations, "seconds": found.seconds,
        CURVES: [[round(value, 6) for value in own] for own in found.curve.populations.tolist()],
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares over the rows; one that failed counts as neither within nor right."""

    def share(chosen: list[dict[str, Any]], holds: Any) -> float | None:
        return float(np.mean([holds(row) for row in chosen])) if chosen else None

    def right(row: dict[str, Any]) -> bool:
        return row.get("estimated_multiplicity") == row["multiplicity"]

    def wrong(row: dict[str, Any]) -> bool:
        return row.get("estimated_multiplicity") not in (None, row["multiplicity"])

    single = [row for row in rows if row["multiplicity"] == 1]
    several = [row for row in rows if row["multiplicity"] > 1]
    return {
        "cases": len(rows),
        "failed": sum("failed" in row for row in rows),
        "within": share(rows, lambda row: row.get("within", False)),
        "median_error": float(np.median([abs(row["error"]) for row in rows if "error" in row])),
        "covered": share(rows, lambda row: row.get("covered", False)),
        "right_where_one": share(single, right),
        "right_where_more": share(several, right),
        "wrong": share(rows, wrong),
        "undecided": share(rows, lambda row: row.get("estimated_multiplicity") is None),
        "seconds": float(sum(row["seconds"] for row in rows)),
    }


def show(row: dict[str, Any]) -> None:
    start = f"{row['case']:<24}{row['dim']:>4}{row['rlct']:>9.4f}{row['multiplicity']:>3}"
    if "failed" in row:
        print(f"{start}  failed: {row['failed']}", flush=True)
        return
    low, high = row["interval"]
    found = row["estimated_multiplicity"]
    marks = [] if row["within"] else ["beyond 5 %"]
    marks += [] if row["covered"] else ["not covered"]
    marks += ["m wrong"] if found not in (None, row["multiplicity"]) else []
    print(
        f"{start}{row['estimate']:>9.4f} {f'{low:.3f}–{high:.3f}':>15}{row['error']:>+8.1%}"
        f"{'?' if found is None else found:>3}{row['log_n_beta'][-1]:>6.1f}{row['seconds']:>7.1f}  {', '.join(marks)}",
        flush=True,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="of the registry; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, help="at most so many rounds of populations; the default of the call")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    cases = [known.case(name) for name in options.cases] if options.cases else list(known.cases())
    left_out = {case.name: reason for case in cases if (reason := reason_not_to_run(case))}
    names = [case.name for case in cases if case.name not in left_out]
    print(f"{'case':<24}{'dim':>4}{'λ':>9}{'m':>3}{'estimate':>9} {'95 %':>15}{'error':>8}{'m':>3}{'ln nβ':>6}{'s':>7}")
    tasks = [(name, options.seed, options.rounds) for name in names]
    kept = finished_rows(estimated, tasks, options.output, options.processes, options.again)
    rows = [{name: value for name, value in row.items() if name != CURVES} for row in kept]
    missing = {name: "not run" for name in names if name not in {row["case"] for row in rows}}
    tables = {"all": summary(rows)}
    for family in ("tanh", "relu"):
        chosen = [row for row in rows if row["family"] == family]
        if chosen:
            tables[family] = summary(chosen)
    bars = {"within": WITHIN, "right_where_one": RIGHT, "right_where_more": RIGHT, "wrong": WRONG}
    print(f"\n{'':<20}" + "".join(f"{name:>10}" for name in tables) + f"{'bar':>8}")
    for name in tables["all"]:
        values = [table[name] for table in tables.values()]
        shown = "".join(f"{'–' if value is None else format(value, '.4g'):>10}" for value in values)
        print(f"{name.replace('_', ' '):<20}{shown}{bars.get(name, ''):>8}")
    for name, reason in {**left_out, **missing}.items():
        print(f"not run: {name}: {reason}")
    return {"rounds": options.rounds, "summary": tables, "not_run": {**left_out, **missing}, "rows": rows}
