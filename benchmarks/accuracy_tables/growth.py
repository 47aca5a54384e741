"""λ̂ of networks with more units than their truth, as the data grow, beside the exact λ of the point training found.

The truth is one unit, φ(x₁), and outputs have noise of standard deviation 0.1. Training starts at an embedding of the
truth, every weight moved by a normal of width 0.1: the truth shared out over all units, or the truth in one unit and
random units that add nothing. From there L-BFGS goes to a minimum of the loss on the n samples. Of the starts 0, 1, 2 …
the first counts whose descent comes to rest within a distance of 3, since on some data a surplus unit runs off to
infinity: 500 evaluations more lower n·L_n by less than 0.01. A gradient of zero is too much to ask, for ReLU networks
have minima on the kinks of single samples. λ̂ is the call with no knob. Which point was found: K, the loss without
noise, is descended from it to a zero by damped Gauss–Newton steps, where some units are copies of the truth and the
others add nothing, and λ is known: ½ more for a unit with a = 0, and N/2 for one of tanh with b = 0, which is linear.

The localiser of γ = 1 lets the weights reach other zeros than that one, so that λ̂ for n → ∞ tends to the smallest λ of
all zeros; it is shown too. Every point found has m = 1, so that no multiplicity lowers λ̂. What λ̂ must be on the very
data, with the localiser, is known by quadrature for the networks of one input (``one_input.py``): of tanh 1-2-1 it is
1.18, 1.22, 1.25 and 1.26, and the call that started all chains at w* fell short of it by 4 to 5 standard errors from
n = 10⁴ on. There more than a third of the posterior lies where one unit is the truth and the other adds nothing, in
arms of width (nβ/σ²)^(−1/2) that chains from between two copies hardly enter, and R̂ does not see what no chain has
seen; now they start apart. The other networks whose λ̂ stays below λ have no exact value here.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import slt
from accuracy_tables.one_input import expected_llc
from accuracy_tables.rows import device_name, summary_of
from accuracy_tables.trained import Trained, descended, squares
from slt.known.inputs import Gaussian, Uniform
from slt.known.models import TwoLayer

NOISE = 0.1  # of the outputs
MOVED = 0.1  # of every weight of the embedding, before training
NEAR, AT_REST = 3.0, 0.01  # distance of the minimum from the start; what n·L_n may fall further
EVALUATIONS, MORE, STARTS = 3000, 500, 20
SAMPLES = (1_000, 10_000, 100_000, 1_000_000)
K_SAMPLES, K_STEPS, K_LEFT = 4000, 1000, 1e-14  # inputs over which K is the mean, steps, and what counts as zero
COPY, GENERIC = 0.02, 0.1  # distances of weights: closer is the same unit, farther is another one


class Growth(NamedTuple):
    """A two-layer network without biases, one output, and where its training starts.

    Attributes:
        activation: ``"tanh"`` or ``"relu"``.
        inputs: N; uniform on [−2, 2] for one, standard normal for more.
        hidden: H, of which the truth has one.
        start: ``"copies"`` or ``"silent"``: the truth in all units alike, or in the first one alone.
        smallest: λ of the worst zero.
    """

    activation: str
    inputs: int
    hidden: int
    start: str
    smallest: float

    def __str__(self) -> str:
        return f"{self.activation} {self.inputs}-{self.hidden}-1"


# A copy more costs N/4 for tanh and (N − 1)/3 for ReLU, a unit that adds nothing ½ (``rlct_of_copies``): the worst zero
# has copies for tanh of one input and ReLU of two, and silent units beyond; for tanh of two inputs both are alike.
NETWORKS = (
    Growth("tanh", 1, 2, "copies", 5 / 4), Growth("tanh", 2, 3, "silent", 5 / 2), Growth("tanh", 3, 2, "silent", 5 / 2),
    Growth("relu", 1, 2, "copies", 1 / 2), Growth("relu", 2, 3, "copies", 5 / 3), Growth("relu", 3, 2, "silent", 2.0),
)  # fmt: skip


def rlct_of_copies(growth: Growth, copies: int) -> float:
    """λ of so many copies with positive weights, the truth being their sum.

    tanh: (N + 1)/2 + (p − 1) N/4, K ~ ‖u‖² + ‖Σ a_i δ_i δ_iᵀ‖², which is of order four in the (p − 1) N offsets; for
    N = 1 ``slt.known.formulas.tanh_copies``. ReLU: N/2 + (p − 1)(N − 1)/3, ``relu_copies``; of one input, all units to
    the right are one slope, of λ = ½.
    """
    inputs = growth.inputs
    if growth.activation == "tanh":
        return (inputs + 1) / 2 + (copies - 1) * inputs / 4
    return inputs / 2 + (copies - 1) * (inputs - 1) / 3


def truth(growth: Growth) -> TwoLayer:
    """φ(x₁)."""
    return TwoLayer(_activation(growth), [[1.0]], [[1.0] + [0.0] * (growth.inputs - 1)])


def start(growth: Growth, number: int) -> TwoLayer:
    """The embedding of the truth, moved."""
    generator = _generator(growth, f"start {number}")
    a = torch.zeros(1, growth.hidden, dtype=torch.float64)
    b = torch.randn(growth.hidden, growth.inputs, generator=generator, dtype=torch.float64)
    true_unit = truth(growth).b.detach()
    if growth.start == "copies":
        a[:], b[:] = 1 / growth.hidden, true_unit
    else:
        a[:, 0], b[0] = 1.0, true_unit
    a += MOVED * torch.randn(a.shape, generator=generator, dtype=a.dtype)
    b += MOVED * torch.randn(b.shape, generator=generator, dtype=b.dtype)
    return TwoLayer(_activation(growth), a.tolist(), b.tolist())


def data_of(growth: Growth, samples: int) -> tuple[Tensor, Tensor]:
    """Inputs, and the truth's outputs with noise."""
    x = _inputs(growth).draw(samples, _generator(growth, "inputs"))
    with torch.no_grad():
        y = truth(growth)(x)
    y += NOISE * torch.randn(y.shape, generator=_generator(growth, "noise"), dtype=y.dtype)
    return x, y


class Found(NamedTuple):
    """Where training ended, from which start, and whether that is a minimum nearby."""

    network: Trained
    start: int
    at_rest: bool


def trained(growth: Growth, samples: int, device: str = "cpu") -> Found:
    """The first start that leads to a minimum nearby, or the last of them."""
    x, y = data_of(growth, samples)
    data = x.to(device), y.to(device)
    found = None
    for number in range(STARTS):
        model = start(growth, number).to(device)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        network = descended(Trained(model, data, squares(NOISE)), EVALUATIONS)
        reached = mean_loss(network)
        descended(network, MORE)
        at_rest = _distance(model, before) <= NEAR and samples * (reached - mean_loss(network)) < AT_REST
        found = Found(network, number, at_rest)
        if at_rest:
            break
    assert found is not None
    return found


def grown(task: tuple[int, int], device: str = "cpu") -> dict[str, Any]:
    """One network on so many samples."""
    torch.set_num_threads(1)
    place, samples = task
    growth = NETWORKS[place]
    found = trained(growth, samples, device)
    model: Any
    model, data, loss_fn = found.network
    label, exact = point_of(growth, model)
    estimate = slt.estimate_llc(model, data, loss_fn, progress=False)
    record = {
        "network": str(growth), "samples": samples, "point": label, "rlct_of_the_point": exact, "start": found.start,
        "smallest_rlct": growth.smallest, "a": model.a.flatten().tolist(), "b": model.b.tolist(),
        "at_rest": found.at_rest, "n_beta": estimate.n_beta, "device": device_name(device),
        **summary_of(estimate),
    }  # fmt: skip
    print(
        f"{growth!s:<12}n = {samples:<9}{label:<26}λ {exact:<7.4g}λ̂{estimate.llc:>7.3f} ± {estimate.mcse:<7.3f}"
        f"R̂ {estimate.rhat:.3f} {estimate.sampler:<5}{estimate.num_gradients:>8.0f} gradients{estimate.seconds:>5.0f} s"
        f" {record['device']}  {'' if found.at_rest else 'not at rest, '}"
        f"{', '.join(estimate.verdict.names) or 'healthy'}",
        flush=True,
    )
    return record


def with_expected(row: dict[str, Any]) -> dict[str, Any]:
    """The row, with what λ̂ must be on its data where quadrature gives it, and how far off it is in standard errors."""
    growth = next(growth for growth in NETWORKS if str(growth) == row["network"])
    if (growth.inputs, growth.hidden) != (1, 2):
        return row
    x, y = data_of(growth, row["samples"])
    expected = expected_llc(
        x.squeeze(1).numpy(), y.squeeze(1).numpy(), np.array(row["a"]), np.array(row["b"])[:, 0],
        relu=growth.activation == "relu", noise=NOISE, n_beta=row["n_beta"],
    )  # fmt: skip
    return {**row, "expected_llc": expected, "standard_errors_off": (row["llc"] - expected) / row["mcse"]}


def not_run(rows: list[dict[str, Any]], sizes: Sequence[int] = SAMPLES) -> list[tuple[str, int]]:
    """The networks and numbers of samples that have no row."""
    found = {(row["network"], row["samples"]) for row in rows}
    return [(str(growth), n) for growth in NETWORKS for n in sizes if (str(growth), n) not in found]


def mean_loss(found: Trained) -> float:
    """L_n."""
    with torch.no_grad():
        return float(found.loss_fn(found.model, found.data).mean())


def zero_of(growth: Growth, model: torch.nn.Module) -> tuple[Tensor, Tensor, float]:
    """Weights a and b of the zero of K below the trained weights, and what is left of K there."""
    x = _inputs(growth).draw(K_SAMPLES, torch.Generator().manual_seed(0))  # K over these has the same zeros
    with torch.no_grad():
        y = truth(growth)(x).squeeze(1)
    hidden = growth.hidden

    def residuals(weights: Tensor) -> Tensor:
        return _activation(growth)(x @ weights[hidden:].reshape(hidden, -1).T) @ weights[:hidden] - y

    weights = torch.cat([parameter.detach().cpu().flatten() for parameter in (model.a, model.b)])  # type: ignore[union-attr]
    damping, left = 1e-2, float(residuals(weights).square().mean() / 2)
    for _ in range(K_STEPS):
        if left < K_LEFT:
            break
        jacobian = torch.func.jacfwd(residuals)(weights)
        slope, curvature = jacobian.T @ residuals(weights), jacobian.T @ jacobian
        step = torch.linalg.solve(curvature + K_SAMPLES * damping * torch.eye(len(weights), dtype=weights.dtype), slope)
        lower = float(residuals(weights - step).square().mean() / 2)
        if lower < left:
            weights, left, damping = weights - step, lower, damping / 3
        else:
            damping *= 4
    return weights[:hidden], weights[hidden:].reshape(hidden, -1), left


def point_of(growth: Growth, model: torch.nn.Module) -> tuple[str, float]:
    """The zero of K to which descent leads from the trained weights, in words, and its λ; NaN where it is not known."""
    a, b, left = zero_of(growth, model)
    # tanh is odd, so that a unit may look the other way; of ReLU only the product of a with the length of b matters
    scale = torch.where(b[:, 0] < 0, -1.0, 1.0).double() if growth.activation == "tanh" else b.norm(dim=1)
    a, b = a * scale, b / scale[:, None]
    apart = (b - truth(growth).b.detach()).norm(dim=1)
    copies = (apart < COPY) & (a.abs() > COPY)
    silent = (a.abs() < COPY) & (apart > GENERIC) & (b.norm(dim=1) > GENERIC)
    linear = (b.norm(dim=1) < COPY) & (a.abs() > GENERIC) & (growth.activation == "tanh")
    counts = [int(which.sum()) for which in (copies, silent, linear)]
    label = ", ".join(
        f"{count} {name}" for count, name in zip(counts, ("copies", "silent", "linear"), strict=True) if count
    )
    mirrored = torch.cat([b[silent], -b[silent]]) if growth.activation == "tanh" else b[silent]
    independent = bool((torch.pdist(mirrored) > GENERIC).all()) and counts[2] <= 1
    one_slope = growth.activation == "relu" and growth.inputs == 1
    known = left < K_LEFT and sum(counts) == growth.hidden and bool((a[copies] > 0).all()) and independent
    if not known or (one_slope and counts[0] < growth.hidden):
        return label, math.nan
    return label, rlct_of_copies(growth, counts[0]) + counts[1] / 2 + counts[2] * growth.inputs / 2


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """λ̂ as n grows, a panel for each network, with a mark for each device, and a word where there is no row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    devices = sorted({row["device"] for row in rows}, key=lambda device: (device != "cpu", device))
    figure, panels = plt.subplots(2, 3, figsize=(11, 6), layout="constrained", sharex=True)
    for panel, growth in zip(panels.flat, NETWORKS, strict=True):
        own = sorted((row for row in rows if row["network"] == str(growth)), key=lambda row: row["samples"])
        n, llc = [row["samples"] for row in own], np.array([row["llc"] for row in own])
        error = np.abs(np.array([[row["low"], row["high"]] for row in own]).reshape(-1, 2).T - llc)
        exact = [row["rlct_of_the_point"] for row in own]
        panel.axhline(growth.smallest, color="0.5", linestyle=":", label="smallest λ of all zeros")
        panel.plot(n, exact, "s", color="tab:orange", mfc="none", ms=9, label="λ of the point found")
        expected = [row.get("expected_llc", math.nan) for row in own]
        if np.isfinite(expected).any():
            panel.plot(n, expected, "-", color="tab:blue", lw=1, label="what λ̂ must be, by quadrature")
        panel.plot(n, llc, color="black", lw=1)
        for device, marker in zip(devices, "o^vD", strict=False):
            here = [place for place, row in enumerate(own) if row["device"] == device]
            panel.errorbar(
                np.array(n)[here], llc[here], error[:, here], fmt=marker, color="black", ms=5, capsize=3,
                label=f"λ̂, 95 % interval, {device}",
            )  # fmt: skip
        for row in own:
            if row["problems"]:
                panel.plot(row["samples"], row["llc"], "x", color="tab:red", ms=9, zorder=5, label="a problem is named")
        for name, samples in not_run(rows):
            if name == str(growth):
                panel.annotate("not run", (samples, 0), (0, 6), textcoords="offset points", ha="center", color="0.4")
        highest = max([growth.smallest, *llc, *(value for value in exact if math.isfinite(value))])
        panel.set(title=f"{growth}, from {growth.start}", xscale="log", ylim=(0, 1.2 * highest), xlim=(500, 2_000_000))
    for panel in panels[1]:
        panel.set_xlabel("samples n")
    for panel in panels[:, 0]:
        panel.set_ylabel("learning coefficient")
    names = {
        name: handle for panel in panels.flat for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _activation(growth: Growth) -> Callable[[Tensor], Tensor]:
    return {"tanh": torch.tanh, "relu": torch.relu}[growth.activation]


def _inputs(growth: Growth) -> Uniform | Gaussian:
    return Uniform(-2.0, 2.0) if growth.inputs == 1 else Gaussian(growth.inputs)


def _generator(growth: Growth, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{growth}, {purpose}".encode()))


def _distance(model: torch.nn.Module, before: list[Tensor]) -> float:
    with torch.no_grad():
        return math.sqrt(
            sum(float((now - then).square().sum()) for now, then in zip(model.parameters(), before, strict=True))
        )
