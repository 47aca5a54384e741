"""Whether λ̂ knows what the network does not: the scales of its layers, the order of its units, a scale before a norm.

ReLU networks with biases, trained to a minimum on noisy samples of a random network of the same shape, with their first
layer multiplied by α and their second by 1/α; or with their units permuted; and one with a LayerNorm after its first
layer, which alone is multiplied (with eps = 0: with another, the network itself knows the scale). All in the curvature
metric, everything else left to the call but the tolerance of 1 %. Each row has a seed of its own, so that agreement is
not that of the same random numbers; rows that repeat the seed of α = 1 are reported beside them. The last rows are the
isotropic localiser, which knows the scale. These last two are of the smallest network alone, and the larger ones have
the ends and the middle of the range of α.

Reported by network: the spread of λ̂, (largest − smallest) / mean, over α and the permutation. For the largest network
the call takes minibatches on a CPU and full data on a GPU, which are reported apart; ``--sampler hmc`` takes full data
on a CPU too.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import slt
from accuracy_tables.rows import device_name, finished_rows

SHAPES = ((10, 20, 10), (20, 30, 20), (30, 40, 30))
NORMALISED = (10, 20, 10)
ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
FEW_ALPHAS = (1e-4, 1.0, 1e4)  # of the larger networks, each run of which takes minutes
NUM_SAMPLES = 2000
TOLERANCE = 0.01
SPREAD = 0.02  # the bar


class Row(NamedTuple):
    """What is estimated: a network, what is done to it, and in which metric."""

    network: str
    change: str
    alpha: float
    metric: str
    seed: int


def network(shape: tuple[int, ...], normalised: bool) -> nn.Sequential:
    wide, hidden, narrow = shape
    norm = [nn.LayerNorm(hidden, eps=0.0)] if normalised else []
    return nn.Sequential(nn.Linear(wide, hidden), *norm, nn.ReLU(), nn.Linear(hidden, narrow)).double()


def half_squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """One loss per sample: the negative log likelihood of unit noise, up to a constant."""
    x, y = batch
    return 0.5 * (model(x) - y).square().sum(-1)


def trained(shape: tuple[int, ...], normalised: bool) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    """A network at a minimum, and the data: outputs of a network with twice the usual weights, and unit noise."""
    torch.manual_seed(0)
    truth, model = network(shape, normalised), network(shape, normalised)
    x = torch.randn(NUM_SAMPLES, shape[0]).double()
    with torch.no_grad():
        for parameter in truth.parameters():
            parameter.mul_(2.0)
        data = (x, truth(x) + torch.randn(NUM_SAMPLES, shape[-1]).double())
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, history_size=50, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        loss = half_squares(model, data).mean()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return model, data


@torch.no_grad()
def changed(model: nn.Sequential, change: str, alpha: float) -> nn.Sequential:
    """A network that computes the same."""
    model = copy.deepcopy(model)
    first, last = model[0], model[-1]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    if change == "permuted":
        order = torch.randperm(len(first.bias), generator=torch.Generator().manual_seed(1))
        first.weight.copy_(first.weight[order])
        first.bias.copy_(first.bias[order])
        last.weight.copy_(last.weight[:, order])
        return model
    first.weight.mul_(alpha)
    first.bias.mul_(alpha)
    if change == "layers":
        last.weight.div_(alpha)
    return model


def name_of(shape: tuple[int, ...], normalised: bool = False) -> str:
    return "-".join(map(str, shape)) + (" LayerNorm" if normalised else "")


def rows(names: list[str]) -> list[Row]:
    work: list[Row] = []
    for shape, normalised in [*((shape, False) for shape in SHAPES), (NORMALISED, True)]:
        name = name_of(shape, normalised)
        change = "before the norm" if normalised else "layers"
        first = 100 * len(work)
        smallest = shape == SHAPES[0] and not normalised
        alphas = ALPHAS if smallest else FEW_ALPHAS
        work += [Row(name, change, alpha, "curvature", first + place) for place, alpha in enumerate(alphas)]
        if smallest:
            work += [Row(name, change, alpha, "identity", first + place) for place, alpha in enumerate(FEW_ALPHAS)]
            work += [Row(name, change, alpha, "curvature", first + ALPHAS.index(1.0)) for alpha in FEW_ALPHAS[::2]]
        if not normalised:
            work.append(Row(name, "permuted", 1.0, "curvature", first + len(ALPHAS)))
    return [row for row in work if row.network in names]


def estimate(task: tuple[Row, float | None, str], device: str) -> dict[str, Any]:
    row, localization, sampler = task
    torch.set_num_threads(1)
    shape = tuple(map(int, row.network.split()[0].split("-")))
    model, data = trained(shape, "LayerNorm" in row.network)
    other = changed(model, row.change, row.alpha)
    with torch.no_grad():
        apart = float((half_squares(other, data).mean() / half_squares(model, data).mean() - 1).abs())
    found = slt.estimate_llc(
        other, data, half_squares, metric=row.metric, localization=localization, tolerance=TOLERANCE, seed=row.seed,
        device=device, sampler=sampler, progress=False,
    )  # fmt: skip
    low, high = found.interval
    record = {
        **row._asdict(), "localization": found.localization, "loss_changed_by": apart, "llc": found.llc,
        "mcse": found.mcse, "low": low, "high": high, "rhat": found.rhat, "ess": found.ess,
        "problems": list(found.verdict.names), "sampler": found.sampler, "draws": found.trace.num_draws,
        "gradients": found.num_gradients, "seconds": found.seconds,
        "device": device_name(device), "why_metric": found.config["metric"][1],
    }  # fmt: skip
    print(
        f"{row.network:<20}{row.change:<16}{row.alpha:>8.0e}  {row.metric:<10}{row.seed:>6}{found.llc:>9.2f}"
        f"{found.mcse:>7.2f}{found.rhat:>7.3f}{found.seconds:>7.0f} s  {found.verdict}",
        flush=True,
    )
    return record


def group_of(row: dict[str, Any]) -> str:
    """Rows by minibatches have a bias of their own, and are compared with one another."""
    return row["network"] + (", minibatches" if row["sampler"] == "baoab" else "")


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    whole = {}
    for name in dict.fromkeys(map(group_of, found)):
        own = [row for row in found if group_of(row) == name]
        reference = next(row for row in own if row["alpha"] == 1.0 and row["metric"] == "curvature")
        same_seed = [row for row in own if row["metric"] == "curvature" and row["seed"] == reference["seed"]]
        others = [row for row in own if row["metric"] == "curvature" and (row not in same_seed or row is reference)]
        whole[name] = {
            "spread": _spread(others),
            "spread_with_the_same_seed": _spread(same_seed),
            "spread_of_the_identity": _spread([row for row in own if row["metric"] == "identity"]),
            "expected_of_monte_carlo": max(row["mcse"] / row["llc"] for row in others),
            "healthy": sum(not row["problems"] for row in others),
            "rows": len(others),
            "seconds": sum(row["seconds"] for row in others),
        }
    return whole


def _spread(group: list[dict[str, Any]]) -> float | None:
    """Largest less smallest, over the mean; None where there is nothing to compare."""
    if len(group) < 2:
        return None
    values = [row["llc"] for row in group]
    return (max(values) - min(values)) / (sum(values) / len(values))


def show(whole: dict[str, Any]) -> None:
    print(f"\n{'network':<20}{'spread':>8}{'same seed':>11}{'identity':>10}{'MCSE':>7}{'healthy':>9}{'seconds':>9}")
    for name, row in whole.items():
        same, identity = row["spread_with_the_same_seed"], row["spread_of_the_identity"]
        print(
            f"{name:<20}{row['spread']:>8.1%}{'' if same is None else f'{same:.1e}':>11}"
            f"{'' if identity is None else f'{identity:.1%}':>10}{row['expected_of_monte_carlo']:>7.2%}"
            f"{row['healthy']:>6}/{row['rows']:<2}{row['seconds']:>9.0f}"
        )
    print(f"spread: at most {SPREAD:.0%}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    every = [*map(name_of, SHAPES), name_of(NORMALISED, True)]
    parser.add_argument("--networks", nargs="+", choices=every, default=every)
    parser.add_argument("--localization", type=float, help="γ; by default that of the call")
    parser.add_argument("--sampler", default="auto", help="as the call chooses by default")
    parser.add_argument("--device", default="cpu", help="of all estimates; networks are trained on the CPU")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    print(f"{'network':<20}{'change':<16}{'α':>8}  {'metric':<10}{'seed':>6}{'λ̂':>10}{'±':>7}{'R̂':>8}{'':>9}  verdict")
    tasks = [(row, options.localization, options.sampler) for row in rows(options.networks)]
    found = finished_rows(
        partial(estimate, device=options.device), tasks, options.output, options.processes, options.again
    )
    whole = summary(found)
    show(whole)
    return {"summary": whole, "rows": found}
