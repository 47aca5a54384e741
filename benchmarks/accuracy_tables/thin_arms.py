"""λ̂ where arms of the posterior are far thinner than long, beside its value on the very data by quadrature.

The two networks of one input of ``growth.py``, tanh and ReLU, each of two units with a truth of one, trained on 10³ to
10⁶ samples, with several seeds of the call and no knob. More than 4,000 samples stand as the means of 4,000 narrow bins
of inputs, weighted by how many fell in each, which changes the loss by 1e-6 of itself: all of it runs on a CPU. At
n = 10⁶ arms of unit length are 4·10⁻⁴ wide. Good is a run that is within 5 % or two standard errors of quadrature, or
names a problem; a healthy run that is neither is silently wrong.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import slt
from accuracy_tables.growth import NETWORKS, NOISE, SAMPLES, trained
from accuracy_tables.one_input import BINS, binned, expected_llc
from accuracy_tables.rows import finished_rows, summary_of
from samplers import diagnose

NEAR, STANDARD_ERRORS = 0.05, 2.0


def weighted_squares(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The negative log likelihood of a bin, times its share of the samples and the number of bins."""
    x, y, weight = batch
    return (model(x) - y).square().squeeze(-1) * weight / (2 * NOISE**2)


def on_means(task: tuple[int, int, int]) -> dict[str, Any]:
    """A network, so many samples and a seed: the call, and quadrature."""
    torch.set_num_threads(1)
    place, samples, seed = task
    growth = NETWORKS[place]
    model: Any
    model, data, loss_fn = trained(growth, samples).network
    x, y = (each.squeeze(1).numpy() for each in data)
    if samples > BINS:
        means_x, means_y, share = (torch.from_numpy(each) for each in binned(x, y))
        data, loss_fn = (means_x.unsqueeze(1), means_y.unsqueeze(1), share * len(share)), weighted_squares
    found = slt.estimate_llc(model, data, loss_fn, n=samples, seed=seed, progress=False)
    exact = expected_llc(
        x, y, model.a.detach().flatten().numpy(), model.b.detach().numpy()[:, 0],
        relu=growth.activation == "relu", noise=NOISE, n_beta=found.n_beta,
    )  # fmt: skip
    row = {
        "network": str(growth), "samples": samples, "seed": seed, "exact": exact, **summary_of(found),
        "rhat_of_the_localizer": diagnose(found.trace.statistics["localization_energy"]).rhat,
    }  # fmt: skip
    off = abs(found.llc - exact)
    row["within"] = bool(off <= NEAR * exact or off <= STANDARD_ERRORS * found.mcse)
    print(
        f"{growth!s:<12}n = {samples:<9}seed {seed}  exact {exact:.3f}  λ̂ {found.llc:.3f} ± {found.mcse:.3f}"
        f"{found.llc / exact - 1:>+7.1%}  R̂ {found.rhat:.3f}, of the localiser {row['rhat_of_the_localizer']:.2f}"
        f"{found.seconds:>5.0f} s  {', '.join(row['problems']) or 'healthy'}",
        flush=True,
    )
    return row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SAMPLES), help="numbers of samples")
    parser.add_argument("--seeds", type=int, default=4)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    places = [place for place, growth in enumerate(NETWORKS) if (growth.inputs, growth.hidden) == (1, 2)]
    tasks = [(place, n, seed) for place in places for n in options.sizes for seed in range(options.seeds)]
    rows = finished_rows(on_means, tasks, options.output, options.processes, options.again)
    silent = [row for row in rows if not row["within"] and not row["problems"]]
    summary = {
        "runs": len(rows), "within": sum(row["within"] for row in rows),
        "healthy": sum(not row["problems"] for row in rows), "silently_wrong": len(silent),
        "median_error": float(np.median([abs(row["llc"] / row["exact"] - 1) for row in rows])),
    }  # fmt: skip
    for name, value in summary.items():
        print(f"{name.replace('_', ' '):<20}{value:>10.4g}")
    return {"summary": summary, "rows": rows}
