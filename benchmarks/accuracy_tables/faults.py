"""Whether the verdict names what is wrong, and is silent where nothing is.

Twelve faults are injected into runs that are healthy otherwise, each with ten seeds, of the data too. A fault counts as
named when a right name is among the problems of at least eight of them. Two more anchors have names of their own:
separable logistic regression, and a checkpoint from the middle of training, by full data and by minibatches.

Healthy runs are of nine kinds: full data and minibatches, exact losses, and both engines. Any problem is a false alarm
but ``imprecise``, which says that a budget was spent, and is counted by itself.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import samplers
import slt
from accuracy_tables.rows import finished_rows
from accuracy_tables.trained import (
    Trained,
    cross_entropy,
    descended,
    initialised,
    linear,
    linear_llc,
    network,
    poisson,
    softmax,
)
from samplers import Kernel
from slt import known
from slt.verdict import Z_95

QUICK: dict[str, Any] = {"budget": 1500, "num_warmup": 400}  # of faults, which need no long runs
HEALTHY_TOLERANCE = 0.1  # so that a run is over in seconds
NAMED, FAULTS_NAMED, FALSE_ALARMS = 0.8, 11, 0.05  # of the seeds of a fault; of twelve faults; of healthy runs


def step_times_thirty(seed: int) -> slt.LLCEstimate:
    trained = softmax(seed)
    return slt.estimate_llc(
        *trained, sampler=samplers.sgld(30 * found_step(trained, "sgld", seed)), batch_size=512, seed=seed, **QUICK
    )


def localization_times_thousand(seed: int) -> slt.LLCEstimate:
    return slt.estimate_llc(*network(seed), localization=1000.0, seed=seed, **QUICK)


def found_step(trained: Trained, sampler: str, seed: int) -> float:
    """The step size that the call finds by itself."""
    step_size = slt.estimate_llc(*trained, sampler=sampler, num_draws=4, num_warmup=0, seed=seed).step_size
    assert isinstance(step_size, float)
    return step_size


def anchor_moved(seed: int) -> slt.LLCEstimate:
    trained = network(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return slt.estimate_llc(*trained, seed=seed, **QUICK)


def little_warmup(seed: int) -> slt.LLCEstimate:
    """Draws from the anchor on, over five times as many steps as the energy takes to rise: a fifth too low."""
    return slt.estimate_llc(
        *linear(seed), sampler="sgld", step_size=2e-4, num_chains=32, num_warmup=0, num_draws=300, seed=seed
    )


def bfloat16(seed: int) -> slt.LLCEstimate:
    model, (x, y), loss_fn = network(seed)
    return slt.estimate_llc(model.bfloat16(), (x.bfloat16(), y.bfloat16()), loss_fn, seed=seed, **QUICK)


def random_loss(seed: int) -> slt.LLCEstimate:
    model, data, loss_fn = network(seed)
    dropped = nn.Sequential(model[0], model[1], nn.Dropout(0.1), model[2])  # pyright: ignore[reportIndexIssue]
    return slt.estimate_llc(dropped, data, loss_fn, eval_mode=False, num_draws=200, num_warmup=100, seed=seed)


def started_elsewhere(seed: int) -> slt.LLCEstimate:
    trained = network(seed)
    kernel = displaced(samplers.mala(found_step(trained, "mala", seed)), seed)
    return slt.estimate_llc(*trained, localization=10.0, sampler=kernel, seed=seed, **QUICK)


def displaced(kernel: Kernel, seed: int) -> Kernel:
    """The same kernel, which starts a quarter of its chains three units away in every weight."""

    def init(position: Tensor, potential: Any) -> Any:
        moved = position.clone()
        quarter = moved[: len(moved) // 4]
        generator = torch.Generator().manual_seed(seed)
        quarter += 3 * torch.randn(quarter.shape, generator=generator, dtype=quarter.dtype).sign()
        return kernel.init(moved, potential)

    return kernel._replace(init=init)


def baseline_of_few(seed: int) -> slt.LLCEstimate:
    return slt.estimate_llc(*linear(seed, n=5000), sampler="sgld", anchor_samples=100, seed=seed, **QUICK)


def one_bad_batch(seed: int) -> slt.LLCEstimate:
    model, data, loss_fn = linear(seed)
    calls = torch.zeros((), dtype=torch.int64)  # a tensor: calls of Python are not made at every step

    def bad(model: nn.Module, batch: Any) -> Tensor:
        calls.add_(1)
        return loss_fn(model, batch) * torch.where(calls == 1500, float("nan"), 1.0)

    return slt.estimate_llc(model, data, bad, sampler="sgld", seed=seed, **QUICK)


def plateau(seed: int) -> slt.LLCEstimate:
    trained = network(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in initialised(trained.model, generator).parameters():
            parameter *= 0.01
    return slt.estimate_llc(*trained, seed=seed, **QUICK)


def tiny_batch(seed: int) -> slt.LLCEstimate:
    trained = linear(seed)
    step_size = found_step(trained, "sgld", seed)
    return slt.estimate_llc(*trained, sampler="sgld", step_size=step_size, batch_size=2, seed=seed, **QUICK)


def badly_conditioned(seed: int) -> slt.LLCEstimate:
    return slt.estimate_llc(*network(seed, scales=(1.0, 0.03)), sampler="sgld", seed=seed, **QUICK)


def separable(seed: int, sampler: str = "auto") -> slt.LLCEstimate:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(3, 1, generator=generator, dtype=torch.float64) > 0).long().squeeze(1)
    model = initialised(nn.Linear(3, 2, dtype=torch.float64), generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2000):
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model, (x, y)).mean().backward()
        optimizer.step()
    return slt.estimate_llc(model, (x, y), cross_entropy, sampler=sampler, seed=seed, **QUICK)


def middle_of_training(seed: int, sampler: str = "auto") -> slt.LLCEstimate:
    trained = network(seed)
    initialised(trained.model, torch.Generator().manual_seed(seed + 1000))
    return slt.estimate_llc(*descended(trained, evaluations=8), sampler=sampler, seed=seed, **QUICK)


# Each with the names that are right: a step thirty times too large may throw chains out of the finite numbers, which is
# said with the same advice, and chains that are on their way may be seen in the energy or in the localiser's.
FAULTS: dict[str, tuple[Callable[[int], slt.LLCEstimate], tuple[str, ...]]] = {
    "step ×30": (step_times_thirty, ("step_size_too_large", "diverged_chain")),
    "γ ×1000": (localization_times_thousand, ("localization_too_strong",)),
    "w* moved off the minimum": (anchor_moved, ("not_at_a_minimum",)),
    "little warm-up": (little_warmup, ("not_converged", "slow_directions")),
    "bfloat16": (bfloat16, ("low_precision",)),
    "loss random at fixed w": (random_loss, ("stochastic_forward",)),
    "a quarter started elsewhere": (started_elsewhere, ("left_the_basin",)),
    "noisy baseline": (baseline_of_few, ("noisy_baseline",)),
    "one NaN batch": (one_bad_batch, ("diverged_chain",)),
    "plateau start": (plateau, ("not_at_a_minimum",)),
    "tiny batch": (tiny_batch, ("gradient_noise",)),
    "ill-conditioned, SGLD": (badly_conditioned, ("slow_directions", "not_converged")),
}
ANCHORS: dict[str, tuple[Callable[[int], slt.LLCEstimate], tuple[str, ...]]] = {
    "separable": (separable, ("no_minimum",)),
    "separable, minibatches": (lambda seed: separable(seed, "sgld"), ("no_minimum",)),
    "middle of training": (middle_of_training, ("not_at_a_minimum",)),
    "middle of training, minibatches": (lambda seed: middle_of_training(seed, "sgld"), ("not_at_a_minimum",)),
}
EXACT = ("quadratic", "poly_xy2", "poly_cusp2", "tanh_one_unit", "outer_product_2_2", "relu_nb_H1_true1")


def exact_loss(seed: int) -> slt.LLCEstimate:
    case = known.case(EXACT[seed % len(EXACT)])
    return slt.estimate_llc(
        case.build(), None, case.loss_fn, n_beta=100.0, localization=1.0, tolerance=HEALTHY_TOLERANCE, seed=seed
    )


def product_by_mala(seed: int) -> slt.LLCEstimate:
    case = known.case("outer_product_2_2")
    return slt.estimate_llc(
        case.build(), None, case.loss_fn, n_beta=1000.0, localization=10.0, sampler="mala",
        tolerance=HEALTHY_TOLERANCE, seed=seed,
    )  # fmt: skip


def healthy(make: Callable[[int], Trained], **arguments: Any) -> Callable[[int], slt.LLCEstimate]:
    """A run on what was trained, with nothing wrong."""
    return lambda seed: slt.estimate_llc(*make(seed), seed=seed, **{"tolerance": HEALTHY_TOLERANCE, **arguments})


# Kinds of healthy runs, and how many of each.
# Minibatches as "auto" would sample them if there were more data; SGLD is in the faults.
HEALTHY: dict[str, tuple[Callable[[int], slt.LLCEstimate], int]] = {
    "least squares, full data": (healthy(linear, num_warmup=400), 30),
    "least squares, minibatches": (healthy(linear, sampler="baoab", batch_size=100), 30),  # of 500
    "softmax, full data": (healthy(softmax, num_warmup=400), 25),
    # as long as by default: before, the chains have seen too little of the directions that change no probability
    "softmax, minibatches": (healthy(softmax, sampler="baoab", tolerance=0.05), 15),
    "counts, full data": (healthy(poisson, num_warmup=400), 25),
    "counts, minibatches": (healthy(poisson, sampler="baoab", batch_size=200), 20),
    "tanh network, full data": (healthy(network, localization=10.0), 20),
    "exact loss, replica exchange": (exact_loss, 30),
    "product of matrices, exact loss, MALA": (product_by_mala, 15),
}

OF_KNOWN_LLC = ("little warm-up", "least squares, full data", "least squares, minibatches")


def run(task: tuple[str, str, int]) -> dict[str, Any]:
    """The row of a fault, an anchor or a healthy run, at a seed."""
    kind, name, seed = task
    torch.set_num_threads(1)
    call = HEALTHY[name][0] if kind == "healthy" else {**FAULTS, **ANCHORS}[name][0]
    found = call(seed)
    print(f"{name:<40}{seed:>4}{found.llc:>9.3f}  {', '.join(found.verdict.names)}", flush=True)
    return {
        "kind": kind, "name": name, "seed": seed, "llc": found.llc, "mcse": found.mcse, "sampler": found.sampler,
        "problems": {problem.name: problem.evidence for problem in found.verdict.problems},
        "notes": [note.name for note in found.verdict.notes], "seconds": found.seconds,
        "exact": linear_llc(linear(seed), found.n_beta, found.localization) if name in OF_KNOWN_LLC else None,
    }  # fmt: skip


def by_name(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each fault, anchor and kind of healthy run."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault((one["kind"], one["name"]), []).append(one)
    table = []
    for (kind, name), group in groups.items():
        right = () if kind == "healthy" else {**FAULTS, **ANCHORS}[name][1]
        names = Counter(problem for one in group for problem in one["problems"])
        alarms = sum(bool(set(one["problems"]) - {"imprecise"}) for one in group)
        table.append({
            "kind": kind, "name": name, "runs": len(group), "right": list(right), "problems": dict(names.most_common()),
            "named": sum(bool(set(one["problems"]) & set(right)) for one in group), "alarms": alarms,
        })  # fmt: skip
    return table


def summary(found: list[dict[str, Any]], table: list[dict[str, Any]]) -> dict[str, Any]:
    healthy = [row for row in table if row["kind"] == "healthy"]
    runs = sum(row["runs"] for row in healthy)
    off = [abs(one["llc"] / one["exact"] - 1) for one in found if one["exact"] and one["kind"] == "fault"]
    exact = [one for one in found if one["exact"] and one["kind"] == "healthy"]
    return {
        "faults_named": sum(row["named"] >= NAMED * row["runs"] for row in table if row["kind"] == "fault"),
        "anchors_named": sum(row["named"] >= NAMED * row["runs"] for row in table if row["kind"] == "anchor"),
        "healthy_runs": runs,
        "false_alarms": sum(row["alarms"] for row in healthy) / max(runs, 1),
        "imprecise": sum(row["problems"].get("imprecise", 0) for row in healthy) / max(runs, 1),
        "least_error_with_little_warmup": min(off, default=0.0),
        "healthy_of_known_llc": len(exact),
        "within_196_standard_errors": sum(abs(one["llc"] - one["exact"]) <= Z_95 * one["mcse"] for one in exact),
        "seconds": sum(one["seconds"] for one in found),
    }


def show(table: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    for row in table:
        count = f"alarms {row['alarms']}" if row["kind"] == "healthy" else f"named {row['named']}"
        others = ", ".join(f"{name} {times}" for name, times in row["problems"].items())
        print(f"{row['kind']:<9}{row['name']:<40}{count:>10}/{row['runs']:<4}{others}")
    bars = {"faults_named": f"at least {FAULTS_NAMED} of 12", "false_alarms": f"below {FALSE_ALARMS:.0%}"}
    for name, value in whole.items():
        print(f"{name.replace('_', ' '):<38}{value:>10.4g}{f'   (bar: {bars[name]})' if name in bars else ''}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=10, help="of each fault")
    parser.add_argument("--healthy", type=float, default=1.0, help="share of the healthy runs")
    parser.add_argument("--only", default="", help="names that contain this")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    work = [("fault", name, seed) for name in FAULTS for seed in range(options.seeds)]
    work += [("anchor", name, seed) for name in ANCHORS for seed in range(options.seeds)]
    work += [
        ("healthy", name, seed)
        for name, (_, count) in HEALTHY.items()
        for seed in range(round(options.healthy * count))
    ]
    work = [one for one in work if options.only in one[1]]
    found = finished_rows(run, work, options.output, options.processes, options.again)
    table = by_name(found)
    whole = summary(found, table)
    show(table, whole)
    return {"summary": whole, "rows": table, "runs": found}
