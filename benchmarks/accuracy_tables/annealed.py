"""λ̂ of the growing networks beside another sampler, which knows nothing of w*: populations annealed from the localiser.

The call starts its chains at w* or cooled near it, and R̂ does not see what no chain has seen. Here sixteen populations
of particles are drawn from the localiser alone and led to the same posterior by tempering nβ, with Hamiltonian paths
between rungs (``samplers.tempered_smc``): another algorithm, from another place, which reaches every part of the
posterior that the localiser does, and whose error is the spread of independent populations. At the last rung, whose
particles still remember hotter ones, they are moved on, and means are of those moves. On the networks of one input
quadrature says how good that is. The network, its data and w* are those of ``growth.py``; λ̂ is the call with no
knob on them, as in the published table. Good is a difference of at most two standard errors, or 5 %.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from torch import Tensor

import samplers
import slt
from accuracy_tables.growth import NETWORKS, NOISE, Growth, trained, with_expected
from accuracy_tables.rows import finished_rows, summary_of
from samplers.smc import systematic_resampling

POPULATIONS, MOVES, EFFICIENCY = 16, 6, 0.95
FORGOTTEN, KEPT = 40, 80  # moves at the last rung
PARTICLES = {1_000: 128, 10_000: 64}  # of each population
TOGETHER = 16  # particles whose activations fit a cache
STEPS = 8  # of a path
NEAR, STANDARD_ERRORS = 0.05, 2.0


class TwoLayerPotential:
    """L_n of a two-layer network of one output and its gradient, for many weight vectors; localised at w*."""

    def __init__(self, growth: Growth, data: tuple[Tensor, Tensor], anchor: Tensor, n_beta: float) -> None:
        self.x, self.y = data[0], data[1].squeeze(1)
        self.hidden, self.relu = growth.hidden, growth.activation == "relu"
        self.n_beta, self.dim, self.max_chains = n_beta, len(anchor), None
        self.localizer = samplers.GaussianLocalizer(anchor, 1.0)

    def loss_and_grad(self, position: Tensor, batch: object = None) -> tuple[Tensor, Tensor]:
        """L_n in nats, ``(chain,)``, and its gradient."""
        parts = [self._few(some) for some in position.split(TOGETHER)]
        return torch.cat([loss for loss, _ in parts]), torch.cat([gradient for _, gradient in parts])

    def sum(self, x: Tensor) -> Tensor:
        """Over the weights."""
        return x.sum(-1)

    def _few(self, position: Tensor) -> tuple[Tensor, Tensor]:
        count, (samples, inputs) = len(position), self.x.shape
        a, b = position[:, : self.hidden], position[:, self.hidden :].reshape(-1, inputs)
        before = (b @ self.x.T).view(count, self.hidden, samples)
        units = before.clamp_min(0) if self.relu else torch.tanh(before)
        off = torch.bmm(a[:, None], units)[:, 0] - self.y
        slopes = (before > 0) * off[:, None] if self.relu else (1 - units.square()) * off[:, None]
        of_a = torch.bmm(units, off[..., None])[..., 0]
        of_b = (slopes.view(-1, samples) @ self.x).view(count, self.hidden, inputs) * a[..., None]
        gradient = torch.cat([of_a, of_b.flatten(1)], -1) / (samples * NOISE**2)
        return off.square().mean(-1) / (2 * NOISE**2), gradient


def path_at(n_beta: float) -> samplers.Kernel:
    """Paths whose steps are of every length between the width of the stiffest directions and that of the localiser."""
    stiffness = 1 + n_beta / NOISE**2
    return samplers.hmc((0.5 / math.sqrt(stiffness), min(1.0, 30 / math.sqrt(stiffness))), STEPS)


def annealed_llc(potential: TwoLayerPotential, particles: int, seed: int = 0) -> dict[str, Any]:
    """nβ (E[L_n] − L_n(w*)) over independent populations, with its error."""
    start = time.perf_counter()
    found = samplers.tempered_smc(
        potential, path_at, num_populations=POPULATIONS, num_particles=particles, num_moves=MOVES,
        efficiency=EFFICIENCY, seed=seed,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    chosen = systematic_resampling(torch.as_tensor(found.weights), generator)
    places = torch.as_tensor(found.positions).take_along_dim(chosen[..., None], 1).flatten(0, 1)
    moved = samplers.sample(
        path_at(potential.n_beta), potential, places, num_chains=len(places), num_warmup=FORGOTTEN, num_draws=KEPT,
        seed=seed, progress=False,
    )  # fmt: skip
    baseline = float(potential.loss_and_grad(potential.localizer.anchor[None])[0])
    values = potential.n_beta * (torch.as_tensor(moved.loss).reshape(POPULATIONS, -1).mean(1) - baseline)
    return {
        "llc": float(values.mean()), "mcse": float(values.std()) / len(values) ** 0.5,
        "failures": [str(failure) for failure in found.failures], "rungs": len(found.n_beta),
        "particles": POPULATIONS * particles, "gradients": found.num_gradients + moved.num_gradients,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def beside(task: tuple[int, int]) -> dict[str, Any]:
    """One network on so many samples: the call, and the populations."""
    torch.set_num_threads(1)
    place, samples = task
    growth = NETWORKS[place]
    model: Any
    model, data, loss_fn = trained(growth, samples).network
    found = slt.estimate_llc(model, data, loss_fn, progress=False)
    weights = torch.cat([model.a.detach().flatten(), model.b.detach().flatten()])
    annealed = annealed_llc(TwoLayerPotential(growth, data, weights, found.n_beta), PARTICLES[samples])
    row = {
        "network": str(growth), "samples": samples, "a": model.a.flatten().tolist(), "b": model.b.tolist(),
        "n_beta": found.n_beta, **summary_of(found), "annealed": annealed,
    }  # fmt: skip
    off, error = found.llc - annealed["llc"], math.hypot(found.mcse, annealed["mcse"])
    row["within"] = bool(abs(off) <= max(NEAR * annealed["llc"], STANDARD_ERRORS * error))
    print(
        f"{growth!s:<12}n = {samples:<8}annealed {annealed['llc']:.3f} ± {annealed['mcse']:.3f}  "
        f"λ̂ {found.llc:.3f} ± {found.mcse:.3f}{off / annealed['llc']:>+7.1%}, {off / error:+.1f} errors"
        f"{annealed['seconds']:>6.0f} s  {', '.join(row['problems']) or 'healthy'}",
        flush=True,
    )
    return row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", type=int, default=list(PARTICLES), choices=list(PARTICLES))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    tasks = [(place, samples) for samples in options.sizes for place in range(len(NETWORKS))]
    rows = [
        with_expected(row) for row in finished_rows(beside, tasks, options.output, options.processes, options.again)
    ]
    summary = {
        "rows": len(rows), "within": sum(row["within"] for row in rows),
        "silently_wrong": sum(not row["within"] and not row["problems"] for row in rows),
    }  # fmt: skip
    print(summary)
    return {"summary": summary, "rows": rows}
