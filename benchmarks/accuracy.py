"""How good the numbers are, one table per command: prints it and writes ``results/accuracy_<table>.json``.

    python benchmarks/accuracy.py coverage                 # 33 exact values at finite temperature × 20 seeds
    python benchmarks/accuracy.py coverage --seeds 2       # a look at it
    python benchmarks/accuracy.py rescaling                # ReLU networks, their layers multiplied by α and 1/α
    python benchmarks/accuracy.py faults                   # twelve faults × 10 seeds, and 210 healthy runs
    python benchmarks/accuracy.py cost                     # seconds and gradients to 5 %, beside devinterp
    python benchmarks/accuracy.py rlct                     # λ and m of every known case, by estimate_rlct
    python benchmarks/accuracy.py deep_linear              # 30 networks at two anchors, beside published SGLD
    python benchmarks/accuracy.py thin_arms                # two units of one input, beside quadrature
    python benchmarks/accuracy.py annealed                 # as n grows, beside populations from the localiser
    python benchmarks/accuracy.py minibatches              # least squares of 60 to 150 weights, beside exact values
    python benchmarks/accuracy.py trained_networks         # beside long references, and λ̂ as n grows

    python benchmarks/accuracy.py coverage --again 30      # whether 30 of its rows come out as they are published
    python benchmarks/accuracy.py standing                 # of which code the rows of each published table are

Tables of hours keep every row as it is finished, in a file beside their output, and go on from there as long as the
code of ``slt`` and ``samplers`` is the same, by its meaning: ``library`` in every row is its digest.

What a table measures, and against which bars, stands at the top of its file in ``accuracy_tables/``. No knob is set
but what states the problem, unless the table says so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from accuracy_tables.again import MeasuredAgainError, rows_of
from accuracy_tables.library import library
from record import commit, machine_facts

HERE = Path(__file__).resolve().parent
TABLES = (
    "coverage",
    "rescaling",
    "faults",
    "rlct",
    "deep_linear",
    "trained_networks",
    "thin_arms",
    "annealed",
    "minibatches",
    "cost",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="table", required=True)
    tables = {name: importlib.import_module(f"accuracy_tables.{name}") for name in TABLES}
    for name, table in tables.items():
        command = commands.add_parser(
            name, description=table.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("--processes", type=int, default=os.cpu_count())
        command.add_argument("--output", type=Path, default=HERE / "results" / f"accuracy_{name}.json")
        if name != "cost":  # whose rows are times
            command.add_argument("--again", type=int, metavar="ROWS", help="measure so many published rows again")
        table.add_arguments(command)
    commands.add_parser("standing", description="Of which code the rows of each published table are.")
    options = parser.parse_args()
    if options.table == "standing":
        show_standing()
        return
    start = time.perf_counter()
    try:
        found = tables[options.table].measure(options)
    except MeasuredAgainError as done:
        print(done)
        return
    about = {"commit": commit(), "libraries": libraries_of(found), **machine_facts(), "processes": options.processes}
    record = {"about": about, "wall_seconds": time.perf_counter() - start, **found}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")


def libraries_of(table: dict[str, Any]) -> Counter[str]:
    """How many rows of a table are of which code; those of old tables do not say."""
    return Counter(row["library"] for row in rows_of(table) if "library" in row)


def show_standing() -> None:
    print(f"this code: {library()}")
    for name in TABLES:
        path = HERE / "results" / f"accuracy_{name}.json"
        found = libraries_of(json.loads(path.read_text())) if path.is_file() else {}
        rows = [f"{count} of {'this code' if of == library() else of}" for of, count in found.items()]
        print(f"{name:<18}{', '.join(rows) or 'not said'}")


if __name__ == "__main__":
    main()
