"""λ̂ of deep linear networks at the gradients that were published for them: a table, a JSON file and a figure.

    python benchmarks/deep_linear.py --class 1K 10K                    # 20 networks each, at two anchors
    python benchmarks/deep_linear.py --class 1M 10M --device cuda --processes 1
    python benchmarks/deep_linear.py --class 1K --networks 2           # a look at it
    python benchmarks/deep_linear.py --class 1K 10K --processes 0      # the table of the rows that are there

The six classes of Lau et al. 2023 (Table 1) from fixed seeds, at both anchors of ``accuracy_tables/
deep_linear_networks.py``; n = 10⁵ or 10⁶, nβ = n/log n, γ = 1, float32, batches of 500 samples. On each:

* ``published``: their SGLD, by ``samplers.sgld``: one chain, their step, a tenth of the steps are draws. It passes 50
  times over the data, 25 times from 100K on.
* ``ours``: ``slt.estimate_llc`` with four chains and a budget of at most as many gradients, pilots included; and
  ``ours, tenfold`` with ten times as many. What it runs is its own choice. It stops when its interval is ±1 %.

Rows are kept as they are finished, beside the output, and a run that was cut goes on; delete that file after a change
of what is measured. From 100K on a run of the published length takes hours on a CPU; ``--published`` and ``--tenfold``
say on how many networks of a class they are run.

Reported by class, anchor and tool: |λ̂/λ − 1| for Aoyagi's λ, median and 95th percentile; runs without a number; pairs
ranked as their λ; passes over the data, seconds; and of those more than a tenth off, how many name a problem.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_tables.deep_linear_networks import (
    ANCHORS,
    MEDIAN,
    PUBLISHED_BATCH,
    RANKED,
    SIZES,
    TAIL,
    WIDEST,
    DeepLinear,
    accuracy_of,
    network,
    squared_errors,
)
from accuracy_tables.rows import attempted, device_name, finished_rows
from record import commit, machine_facts

import samplers

HERE = Path(__file__).resolve().parent
TOOLS = ("published", "ours", "ours, tenfold")
NETWORKS, CHAINS, TOLERANCE = 20, 4, 0.01
# Of a chain: gradients of the pilots that find metric and step, of which a third pilot takes a quarter of the budget
# more; and what looks around the anchor take a twentieth of all.
PILOTS, OF_BUDGET, OF_ALL = 450, 1.25, 1.06


def budget_of(size: str, times: int) -> int:
    """Steps of a chain, so that all that is done takes at most so many times the gradients that were published."""
    gradients = times * SIZES[size].steps / CHAINS / OF_ALL
    return math.floor((gradients - PILOTS) / OF_BUDGET)


def measured(task: tuple[str, int, str, str], device: str) -> dict[str, Any]:
    """One network at one anchor, by one of the tools."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    size, number, anchor, tool = task
    found = network(size, number, anchor)
    shape = (SIZES[size].num_samples, found.widths[0])
    x = torch.from_numpy(found.generator.random(shape, dtype=np.float32)).mul_(2 * WIDEST).sub_(WIDEST).to(device)
    model = DeepLinear(found.weights, torch.float32).to(device)
    with torch.no_grad():
        data = (x, model(x))
    record: dict[str, Any] = {**found.facts(), "device": device_name(device)}
    steps = SIZES[size].steps
    options: dict[str, dict[str, Any]] = {
        "published": {
            "sampler": samplers.sgld(SIZES[size].step_size), "num_chains": 1,
            "num_warmup": steps - steps // 10, "num_draws": steps // 10,
        },
        "ours": {"num_chains": CHAINS, "budget": budget_of(size, 1), "tolerance": TOLERANCE},
        "ours, tenfold": {"num_chains": CHAINS, "budget": budget_of(size, 10), "tolerance": TOLERANCE},
    }  # fmt: skip
    own = record[tool] = attempted(
        model, data, squared_errors, seed=number, batch_size=PUBLISHED_BATCH, **options[tool]
    )
    print(
        f"{size:<5}{number:>3} {anchor:<10}{record['weights']:>9,}{record['rlct']:>9.1f}  {tool:<14}"
        f"{own['llc']:>10.2f} {own['llc'] / record['rlct'] - 1:>+7.1%}{own['gradients']:>6.0f} passes"
        f"{own['seconds']:>6.0f} s  {', '.join(own['problems']) or 'healthy'}",
        flush=True,
    )
    return record


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each class, anchor and tool."""
    table = []
    for size, anchor, tool in itertools.product(SIZES, ANCHORS, TOOLS):
        own = [row for row in rows if (row["size"], row["anchor"]) == (size, anchor) and tool in row]
        if accuracy := accuracy_of(own, tool):
            finite = [row for row in own if math.isfinite(row[tool]["llc"])]
            passes = [row[tool]["gradients"] for row in finite]
            table.append({
                "class": size, "anchor": anchor, "tool": tool, **accuracy,
                "weights": [min(row["weights"] for row in own), max(row["weights"] for row in own)],
                "healthy": sum(not row[tool]["problems"] for row in finite),
                "passes": float(np.median(passes)), "most_passes": float(np.max(passes)),
            })  # fmt: skip
    return table


def show(table: list[dict[str, Any]]) -> None:
    print(
        f"\n{'class':<6}{'anchor':<11}{'tool':<14}{'runs':>5}{'NaN':>4}{'median':>8}{'95 %':>8}{'least':>8}{'most':>8}"
        f"{'ranked':>8}{'> 10 %':>7}{'named':>6}{'passes':>8}{'seconds':>8}"
    )
    for row in table:
        print(
            f"{row['class']:<6}{row['anchor']:<11}{row['tool']:<14}{row['networks']:>5}{row['not_a_number']:>4}"
            f"{row['median_error']:>8.1%}{row['error_95']:>8.1%}{row['least']:>+8.1%}{row['largest']:>+8.1%}"
            f"{row['ranked']:>8.3f}{row['more_than_a_tenth_off']:>7}{row['of_these_with_a_problem']:>6}"
            f"{row['passes']:>8.0f}{row['seconds']:>8.0f}"
        )
    print(f"bars: no NaN, median at most {MEDIAN:.0%}, 95th percentile at most {TAIL:.0%}, ranked at least {RANKED}")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the relative error of every run, a column for each class and anchor."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    present = [(size, anchor) for size in SIZES for anchor in ANCHORS
               if any((row["size"], row["anchor"]) == (size, anchor) for row in rows)]  # fmt: skip
    figure, axes = plt.subplots(figsize=(1.5 + 1.7 * len(present), 4), layout="constrained")
    colors = {"published": "0.6", "ours": "tab:blue", "ours, tenfold": "tab:orange"}
    generator = np.random.default_rng(0)
    for place, (size, anchor) in enumerate(present):
        for offset, tool in zip((-0.27, 0.0, 0.27), TOOLS, strict=True):
            errors = [100 * (row[tool]["llc"] / row["rlct"] - 1) for row in rows
                      if (row["size"], row["anchor"]) == (size, anchor) and tool in row]  # fmt: skip
            across = place + offset + generator.uniform(-0.08, 0.08, len(errors))
            axes.scatter(across, errors, s=14, color=colors[tool], label=tool if place == 0 else None, linewidths=0)
    axes.axhspan(-100 * MEDIAN, 100 * MEDIAN, color="0.9", zorder=0, label="±3 %")
    axes.set_xticks(range(len(present)), [f"{size}\n{anchor}" for size, anchor in present])
    axes.set_ylabel("λ̂ / λ − 1 (%)")
    axes.set_yscale("symlog", linthresh=10)
    axes.set_yticks([-50, -20, -10, -5, 0, 5, 10, 20, 50], ["−50", "−20", "−10", "−5", "0", "5", "10", "20", "50"])
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--class", dest="sizes", nargs="+", choices=SIZES, default=["1K"])
    parser.add_argument("--networks", type=int, default=NETWORKS, help="of each class; 20 by default")
    parser.add_argument("--published", type=int, help="on so many networks of each class; by default on all")
    parser.add_argument("--tenfold", type=int, help="on so many networks of each class; by default on all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=HERE / "results" / "deep_linear.json")
    options = parser.parse_args()
    limits = {"published": options.published, "ours, tenfold": options.tenfold}
    work = [
        (size, number, anchor, tool)
        for size, number, anchor, tool in itertools.product(options.sizes, range(options.networks), ANCHORS, TOOLS)
        if limits.get(tool) is None or number < limits[tool]
    ]
    rows = finished_rows(partial(measured, device=options.device), work, options.output, options.processes)
    table = summary(rows)
    show(table)
    record = {"commit": commit(), "machine": machine_facts(), "chains": CHAINS, "summary": table, "rows": rows}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    draw(rows, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
