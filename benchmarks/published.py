"""Figures of ``results/`` as they stand on the pages: prints them, by page, so that they can be put there.

    python benchmarks/published.py

Rows of tables and parts of sentences. A test looks for each of them on its page, with any white space between words.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BENCHMARKS, README = "benchmarks/README.md", "README.md"
CHANGES = {
    "10-20-10": "nine α, permuted", "20-30-20": "three α, permuted", "30-40-30": "three α, permuted",
    "30-40-30, minibatches": "three α, permuted",
    "10-20-10 LayerNorm": "three α",
}  # fmt: skip
BESIDE = "full data, beside long exact runs"
NUMBERS = dict(enumerate((
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
)))  # fmt: skip
TOOLS = {"ours": "`slt.estimate_llc`", "published": "published SGLD"}


def main() -> None:
    page = ""
    for where, text in published():
        if where != page:
            page = where
            print(f"\n{page}")
        print(f"  {text}")


def published() -> Iterator[tuple[str, str]]:
    """Pages, and what must stand there."""
    for table in (coverage, faults, rlct, deep_linear, rescaling, trained_networks, thin_arms, cost):
        yield from table(result(f"accuracy_{table.__name__}"))
    yield from growth(result("accuracy_trained_networks"))
    yield from least_squares(result("accuracy_minibatches"))
    yield from minibatches(result("deep_linear"))
    yield from steps(result("peers"))
    yield from steps_on_a_gpu(result("step_cuda"))
    yield from language_model(result("language_model"))


def result(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{0 if share in (0, 1) else digits}f} %"


def signed(share: float, digits: int = 1) -> str:
    """With a sign, which is a minus and not a hyphen."""
    return f"{100 * share:+.{digits}f} %".replace("-", "−")


def coverage(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    whole = table["summary"]
    covered = f"{percent(whole['coverage'])} of the {whole['runs']} intervals contain the exact value"
    rows = len({(run["case"], run["n_beta"], run["localization"]) for run in table["runs"]})
    seeds = whole["runs"] // rows
    start = f'| {rows} posteriors of few weights × {seeds} seeds, beside exact values | `"replica_exchange"` |'
    yield README, f"{start} {percent(whole['median_error'])} in the median | {covered} |"
    yield BENCHMARKS, f"exact value, of {whole['runs']} | {percent(whole['coverage'])} |"
    yield BENCHMARKS, f"most misses of a row, of 20 | {whole['most_misses_of_a_row']} |"
    yield BENCHMARKS, f"median of the rows | {whole['median_inflation']:.2f} |"
    yield BENCHMARKS, f"median; largest | {percent(whole['median_error'])}; {percent(whole['largest_error'])} |"
    yield BENCHMARKS, f"without a problem named | {whole['wrong_by_a_tenth_without_a_problem']} |"
    yield BENCHMARKS, f"A problem is named in {sum(bool(run['problems']) for run in table['runs'])} runs"


def faults(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    whole = table["summary"]
    named = {row["name"]: str(row["named"]) for row in table["rows"]}
    least = percent(math.floor(1000 * whole["least_error_with_little_warmup"]) / 1000)  # at least
    for left, right in (
        (("step ×30", "step ×30"), ("noisy baseline", "noisy baseline")),
        (("γ ×1000", "γ ×1000"), ("one NaN batch", "one NaN batch")),
        (("w\\* moved off the minimum", "w* moved off the minimum"), ("a plateau as start", "plateau start")),
        ((f"so little warm-up that λ̂ is off by at least {least}", "little warm-up"), ("batches of two", "tiny batch")),
        (("bfloat16", "bfloat16"), ("ill-conditioned network, plain SGLD", "ill-conditioned, SGLD")),
    ):
        yield BENCHMARKS, f"| {left[0]} | {named[left[1]]} | {right[0]} | {named[right[1]]} |"
    separable = f"{named['separable']}, {named['separable, minibatches']}"
    middle = f"{named['middle of training']}, {named['middle of training, minibatches']}"
    random, quarter = named["loss random at fixed w"], named["a quarter started elsewhere"]
    for left, count, right, counts in (
        ("a loss that is random at fixed w", random, "separable data", separable),
        ("a quarter of the chains started elsewhere", quarter, "middle of training", middle),
    ):
        yield BENCHMARKS, f"| {left} | {count} | {right}, full and minibatches | {counts} |"
    alarms = round(whole["false_alarms"] * whole["healthy_runs"])
    yield BENCHMARKS, f"False alarms: {alarms or 'none'} of {whole['healthy_runs']}."
    runs, within = whole["healthy_of_known_llc"], whole["within_196_standard_errors"]
    yield (
        BENCHMARKS,
        f"Of the {runs} on least squares, whose λ̂ is known exactly, {within} are within 1.96 standard errors",
    )
    errors = [abs(run["llc"] / run["exact"] - 1) for run in table["runs"] if run["kind"] == "healthy" and run["exact"]]
    start = f'| {runs} regressions of 6 weights, full data and minibatches | `"hmc"`, `"baoab"` |'
    found = f"{percent(statistics.median(errors))} in the median | {within} of {runs} within 1.96 standard errors |"
    yield README, f"{start} {found}"


def rlct(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    kinds = [table["summary"][name] for name in ("all", "tanh", "relu")]
    cases, tanh, relu = (kind["cases"] for kind in kinds)
    yield BENCHMARKS, f"| | all {cases} | tanh, {tanh} | ReLU, {relu} | aim |"
    for says, name, digits in (
        ("λ within 5 % (0.02 where λ = 0)", "within", 1),
        ("relative error of λ, median", "median_error", 2),
        ("95 % intervals that contain λ", "covered", 1),
        ("m right, of the cases with m = 1", "right_where_one", 1),
        ("m right, of those with m ≥ 2", "right_where_more", 1),
        ("m undecided", "undecided", 1),
        ("m wrong", "wrong", 1),
    ):
        yield BENCHMARKS, f"| {says} | {' | '.join(percent(kind[name], digits) for kind in kinds)} |"
    whole = kinds[0]
    yield README, f"Over {cases} known cases of at most 100 weights λ is within 5 % in {percent(whole['within'], 0)}"
    right = percent(sum(row.get("estimated_multiplicity") == row["multiplicity"] for row in table["rows"]) / cases, 0)
    wrong = {1: "one case"}.get(count := round(whole["wrong"] * cases), f"{count} cases")
    undecided = percent(whole["undecided"], 0)
    yield README, f"(median error {percent(whole['median_error'])}); m is right in {right}, undecided in {undecided}"
    yield README, f"and wrong in {wrong}"


def deep_linear(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    lines, medians = [], {}
    for row in table["summary"]:
        ours, first = row["tool"] == "ours", row["anchor"] == "aligned"
        size = f"| {row['size']}, {row['networks']} " if ours and first else "| "
        anchor = f"| {row['anchor']} " if ours else "| "
        errors = f"{percent(row['median_error'])} | {percent(row['error_95'])}"
        spread = f"{signed(row['least'])}, {signed(row['largest'])}"
        ranked = f"{row['ranked']:.3f} | {row['seconds']:.0f}"
        lines.append(f"{size}{anchor}| {TOOLS[row['tool']]} | {errors} | {spread} | {ranked} |")
        medians[row["size"], row["tool"], row["anchor"]] = percent(row["median_error"])
    yield BENCHMARKS, " ".join(lines)
    for size in ("1K", "10K"):
        rows = [row for row in table["rows"] if row["size"] == size]
        weights = [row["weights"] for row in rows]
        problems = [row["ours"]["problems"] for row in rows]
        contain = sum(row["ours"]["low"] <= row["rlct"] <= row["ours"]["high"] for row in rows)
        slow, unsettled = (sum(name in names for names in problems) for name in ("slow_directions", "not_converged"))
        ours, published = (f"{medians[size, tool, 'aligned']}, {medians[size, tool, 'published']}" for tool in TOOLS)
        large = sum("step_size_too_large" in names for names in problems)
        verdicts = f"`slow_directions` {slow}, `not_converged` {unsettled}, `step_size_too_large` {large}"
        start = f'{min(weights):,} to {max(weights):,} weights, {len(rows)} runs | `"hmc"` | medians'
        yield (
            README,
            f"{start} {ours} ({published}) | {contain} of {len(rows)} intervals contain λ; named: {verdicts} |",
        )
        accepted = sorted(row["published"]["mala_acceptance"] for row in rows)
        yield BENCHMARKS, f"of the {size} between {accepted[0]:.2f} and {accepted[-1]:.2f}"


def rescaling(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, whole in table["summary"].items():
        kind = "baoab" if name.endswith("minibatches") else "hmc"
        own = [row for row in table["rows"] if row["network"] == name.partition(",")[0] and row["sampler"] == kind]
        values = [row["llc"] for row in own if row["metric"] == "curvature"]
        network, rows = name.replace(" LayerNorm", " with LayerNorm"), CHANGES[name]
        spread = f"{min(values):.1f} to {max(values):.1f} | {percent(whole['spread'])}"
        yield BENCHMARKS, f"| {network} | {rows} | {spread} | {whole['healthy']} |"


def trained_networks(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for row in table["references"]:
        reference = row["reference"]
        beside = f"{reference['llc']:.2f} ± {reference['mcse']:.2f}"
        name, estimate = row["network"].replace("relu", "ReLU"), f"{row['llc']:.2f} ± {row['mcse']:.2f}"
        problems = ", ".join(f"`{name}`" for name in row["problems"]) or "healthy"
        counted = beside if row["reference_counts"] else f"({beside})"
        apart = signed(row["llc"] / reference["llc"] - 1)
        start = f"| {name} | {row['weights']:,} | {estimate} | {row['seconds']:.0f} |"
        yield BENCHMARKS, f"{start} {counted} | {apart} | {problems} |"
    for kind, name in (("tanh", "tanh"), ("relu", "ReLU")):
        rows = [row for row in table["references"] if row["network"].startswith(kind)]
        weights = [row["weights"] for row in rows]
        most = max(abs(row["llc"] / row["reference"]["llc"] - 1) for row in rows)
        healthy = sum(not row["problems"] for row in rows)
        open_ones = sum(not row["reference_counts"] for row in rows)
        beside = f"likewise, {NUMBERS[open_ones]} of the references not converged" if open_ones else BESIDE
        start = f'| {len(rows)} {name} networks of {min(weights)} to {max(weights):,} weights, {beside} | `"hmc"` |'
        yield README, f"{start} at most {percent(most)} | {healthy} of {len(rows)} healthy |"
    whole = table["summary"]
    counted = [row for row in table["references"] if row["reference_counts"]]
    near = sum(abs(row["llc"] / row["reference"]["llc"] - 1) <= 0.03 for row in counted)
    yield BENCHMARKS, f"{NUMBERS[whole['references_that_count']].capitalize()} references count"
    within = f"within 3 % or two standard errors of {NUMBERS[whole['within']]} of them"
    yield BENCHMARKS, f"{within} (within 3 % of {NUMBERS[near]})"


def growth(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for row in table["growth"]:
        point = f"{row['point'].replace('1 copies', '1 copy')} | {row['rlct_of_the_point']:.2f}"
        exact = f"{row['expected_llc']:.2f} " if "expected_llc" in row else ""
        problems = ", ".join(f"`{name}`" for name in row["problems"]) or "healthy"
        start = f"| {row['network'].replace('relu', 'ReLU')} | {row['samples']:,} | {point} |"
        found = f"{row['llc']:.2f} ± {row['mcse']:.2f} | {exact}"
        yield BENCHMARKS, f"{start} {found}| {problems} | {row['seconds']:,.0f} |"


def least_squares(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, whole in table["summary"].items():
        mean = f"{signed(whole['mean_error'], 2)} ± {percent(whole['error_of_the_mean'], 2)}"
        errors = f"{percent(whole['median_error'])}; {percent(whole['largest_error'])} | {mean}"
        covered = f"{round(whole['covered'] * whole['runs'])} of {whole['runs']}"
        yield BENCHMARKS, f"| {name} | {errors} | {covered} | {whole['healthy']} | {whole['missed_and_healthy']} |"
    whole, weights = table["summary"]["all"], [row["weights"] for row in table["rows"]]
    start = f'| {whole["runs"]} regressions of {min(weights)} to {max(weights)} weights, by minibatches | `"baoab"` |'
    covered = f"{percent(whole['covered'], 0)} of the {whole['runs']} intervals contain the exact value"
    yield README, f"{start} {percent(whole['median_error'])} in the median | {covered} |"


def thin_arms(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, samples in dict.fromkeys((row["network"], row["samples"]) for row in table["rows"]):
        rows = [row for row in table["rows"] if (row["network"], row["samples"]) == (name, samples)]
        estimates = ", ".join(f"{row['llc']:.3f} ± {row['mcse']:.3f}" for row in rows)
        apart = sorted(row["rhat_of_the_localizer"] for row in rows)
        counts = [(problem, sum(problem in row["problems"] for row in rows)) for problem in named(rows)]
        verdicts = ", ".join(f"`{problem}` {count}" for problem, count in counts) or "healthy"
        start = f"| {name.replace('relu', 'ReLU')} | {samples:,} | {rows[0]['exact']:.3f} | {estimates} |"
        yield BENCHMARKS, f"{start} {apart[0]:.2f} to {apart[-1]:.2f} | {verdicts} |"
    whole = table["summary"]
    says = (
        f"Of {whole['runs']} runs {whole['within']} are within, {whole['silently_wrong'] or 'none'} is silently wrong"
    )
    yield BENCHMARKS, f"{says}, and {whole['healthy'] or 'none'} is healthy"


def named(rows: list[dict[str, Any]]) -> list[str]:
    """Problems of rows, in the order in which they come."""
    return list(dict.fromkeys(problem for row in rows for problem in row["problems"]))


def minibatches(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    found = {(row["class"], row["anchor"], row["tool"]): row for row in table["summary"]}
    for size in ("1K", "10K"):
        both = [found[size, anchor, "ours"] for anchor in ("aligned", "published")]
        runs, contain, healthy = (sum(row[name] for row in both) for name in ("networks", "covered", "healthy"))
        ours, published = (
            ", ".join(percent(found[size, anchor, tool]["median_error"]) for anchor in ("aligned", "published"))
            for tool in TOOLS
        )
        passes, other = (found[size, "aligned", tool]["passes"] for tool in TOOLS)
        of = f"older code, {passes:.0f} passes over the data (published runs {other:.0f})"
        start = f'| the {runs} again by minibatches, {of} | `"baoab"` | medians {ours} ({published}) |'
        yield README, f"{start} {contain} of {runs} intervals contain λ; {healthy} of {runs} healthy |"


def cost(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for row in table["rows"]:
        name, own = row["network"], f"{row['seconds']:.1f}"
        yield BENCHMARKS, f"| {name}, `slt.estimate_llc`, no knobs | | {row['gradients']:,.0f} | {own} | |"
        yield BENCHMARKS, f"| the same, stopped as the peers are | | | {row['seconds_as_peers']:.1f} | |"
        errors, widths = (
            [100 * values(run) for run in row["ours"]]
            for values in (lambda run: run["error"], lambda run: run["half_width"] / run["llc"])
        )
        off = ", ".join(f"{error:+.1f}" for error in errors).replace("-", "−")
        between = f"{min(widths):.1f} to {max(widths):.1f} %"
        yield BENCHMARKS, f"| {name}, `slt.estimate_llc` | | {own} | | {off} %; {between} |"
        for peer, found in row["peers"].items():
            step = f"{found['step_size']:.0e}".replace("e-0", "e-")
            reached = f"{found['gradients']:.0f} | {found['seconds']:.2f} | {found['ratio']:.2f} times"
            yield BENCHMARKS, f"| {peer} | {step} | {reached} |"
        first = row["peers"]["devinterp 1.3.2"]
        means = first["believed"]["ways"]["epoch means"]
        not_by = f"not by {max(run['steps'] for run in means['runs']):,}"
        off = ", ".join(signed(run["error"])[:-2] for run in means["runs"])
        wide = ", ".join(f"{100 * run['half_width'] / run['llc']:.1f}" for run in means["runs"])
        assert not means["reached"], "written as a bound"
        over = f"> {means['seconds']:.1f} | > {means['ratio']:.1f} times"
        yield BENCHMARKS, f"| devinterp 1.3.2 | {not_by} | {over} | {off} %; {wide} % |"
        yield README, f"| {name} | {own} s | {first['seconds']:.2f} s | > {means['seconds']:.1f} s"


def times(ratio: float) -> str:
    return f"{ratio:.{1 if ratio < 9.95 else 0}f}"


def batch_of(row: dict[str, Any]) -> str:
    size, samples = row["batch_size"], row["num_samples"]
    return f"all {samples:,}" if size == samples else f"{size} of {samples:,}"


def steps(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for row in table["results"]:
        medians = {name: tool["microseconds"]["median"] for name, tool in row["tools"].items()}
        own, compiled = medians["slt"], medians["slt, compile=True"]
        names = ("devinterp 1.3.2, DataLoader", "devinterp 1.3.2, ready batches", "devinterp 2.0.1")
        canonical = min(value for name, value in medians.items() if name.startswith("canonical-interp"))
        beside = [
            f"{other:,.0f} ({times(other / own)}×, {times(other / compiled)}×)"
            for other in (*(medians[name] for name in names), canonical)
        ]
        columns = [f"{row['model']}, {batch_of(row)}", f"{own:.0f}", f"{compiled:.0f}", *beside]
        yield README, f"| {' | '.join(columns)} |"


def steps_on_a_gpu(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for row in table["rows"]:
        own = [row[way]["median"] for way in ("graph", "compiled", "launched")]
        other = min(row["canonical_interp"]["microseconds"].values())
        shown = " | ".join(f"{value:.3g}" for value in own)
        yield README, f"| {shown} | {other:.1f} | {times(other / own[1])} |"


def language_model(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    small, large = table["rows"]
    for says, name in (
        ("train, `fused=True`", "train, fused"), ("train, as one CUDA graph", "train, graph"), ("sgld", "sgld"),
        ("sgld, launched from Python", "sgld, launched"),
    ):  # fmt: skip
        columns = []
        for row in (small, large):
            share = row[name]["median"] / row["train"]["median"]
            digits = 2 if row is small else 3
            gigabytes = f"{row[name]['gigabytes']:.2f}"
            columns.append(f"{row[name]['median']:.1f} | {share:.{digits}f} | {gigabytes}")
        yield BENCHMARKS, f"| {says} | {' | '.join(columns)} |"


if __name__ == "__main__":
    main()
