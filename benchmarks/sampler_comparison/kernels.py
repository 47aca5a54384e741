"""The samplers, each with the package's own adaptation, by name.

Nothing is tuned by hand to a target: what depends on it are the localiser's width, nβ, and measured curvature.
"""

from __future__ import annotations

import importlib
import math
import time
from typing import Any

import numpy as np
import torch

import samplers
from sampler_comparison.measure import Found, Populations, Sampler, run_chains
from sampler_comparison.targets import Target
from samplers.adaptation import stiffness
from samplers.seeds import block_generator

PATH_STEPS = 8  # leapfrog steps of a path, the default of hmc
RUNG_STEPS = 5  # the same within replica exchange and SMC, where shorter paths are swapped more often
LOWEST_STEP = 0.15  # of a path, in units of the width of the stiffest wall
# Neighbouring rungs are apart by 0.8/√(dim/4) in log nβ, by which swaps of dim/4 of loss are accepted in every second
# try; ladders of more rungs than this begin at a colder nβ instead.
RUNG_DISTANCE, MOST_RUNGS = 0.8, 16
POPULATIONS, MOVES, PILOT_PARTICLES = 16, 2, 8  # of SMC
SCALE_ROWS = 16  # positions at which curvature is measured


def curvature_scale(target: Target, seed: int) -> tuple[float, int]:
    """Curvature of the loss where the localiser lets chains go, the largest of a few, and the gradients it took."""
    generator = block_generator(seed, 1 << 20, target.anchor.device)
    noise = torch.randn(SCALE_ROWS, len(target.anchor), dtype=target.anchor.dtype, generator=generator)
    places = target.anchor + noise / math.sqrt(target.localization)
    total = stiffness(target.potential, places, None, generator)
    return max(total - target.localization, target.localization) / target.n_beta, 2 * SCALE_ROWS


def mixed_steps(target: Target, curvature: float, n_beta: Any) -> tuple[Any, float]:
    """Step sizes from the stiffest wall at this nβ to the localiser's width."""
    wide = 1 / math.sqrt(target.localization)
    walls = n_beta * curvature + target.localization
    return LOWEST_STEP / (walls.sqrt() if isinstance(walls, torch.Tensor) else math.sqrt(walls)), wide


def ladder(target: Target) -> torch.Tensor:
    """Inverse temperatures up to the target's, at even distances of their logarithms."""
    n_beta, dim = target.n_beta, target.potential.dim
    hot = min(target.localization, n_beta / 4)
    distance = RUNG_DISTANCE / math.sqrt(max(dim, 2) / 4)
    rungs = math.ceil(math.log(n_beta / hot) / distance) + 1
    if rungs > MOST_RUNGS:
        rungs, hot = MOST_RUNGS, max(hot, n_beta * math.exp(-distance * (MOST_RUNGS - 1)))
    return torch.logspace(math.log10(hot), math.log10(n_beta), rungs, dtype=torch.float64)


def sgld(target: Target, budget: int, seed: int) -> Found:
    return run_chains(target, budget, seed, samplers.sgld(1.0), adapt=samplers.limit_bias(target.loss_at_anchor))


def mala(target: Target, budget: int, seed: int) -> Found:
    # a quarter of its steps are small ones, accepted nine times in ten: 0.75 · 0.574 + 0.25 · 0.9
    return run_chains(target, budget, seed, samplers.mala(1.0), adapt=samplers.accept_at_rate(0.65))


def hmc_single(target: Target, budget: int, seed: int) -> Found:
    adapt = samplers.accept_at_rate(0.65, num_steps=100)
    return run_chains(target, budget, seed, samplers.hmc(1.0, PATH_STEPS), adapt=adapt)


def hmc_whitened(target: Target, budget: int, seed: int) -> Found:
    adapt = samplers.in_turn(samplers.whiten_curvature(), samplers.accept_at_rate(num_steps=100))
    return run_chains(target, budget, seed, samplers.hmc(1.0, PATH_STEPS), adapt=adapt)


def hmc_mixed(target: Target, budget: int, seed: int) -> Found:
    start = time.perf_counter()
    curvature, spent = curvature_scale(target, seed)
    kernel = samplers.hmc(mixed_steps(target, curvature, target.n_beta), PATH_STEPS)
    return run_chains(target, budget, seed, kernel, spent=spent, since=start)


def replica_exchange(target: Target, budget: int, seed: int) -> Found:
    start = time.perf_counter()
    curvature, spent = curvature_scale(target, seed)
    rungs = ladder(target)
    potential = samplers.ladder_potential(target.potential, rungs, target.rows // len(rungs))
    inner = samplers.hmc(mixed_steps(target, curvature, potential.n_beta), RUNG_STEPS)
    kernel = samplers.replica_exchange(inner, len(rungs))
    return run_chains(target, budget, seed, kernel, potential=potential, rungs=len(rungs), spent=spent, since=start)


def with_momentum(name: str) -> Sampler:
    """A kernel with momentum and the default friction."""

    def run(target: Target, budget: int, seed: int) -> Found:
        return run_chains(target, budget, seed, load("samplers", name)(1.0), adapt=samplers.limit_momentum_bias())

    return run


def with_frozen_metric(name: str) -> Sampler:
    """SGLD with a metric of its own, which is frozen before the first draw."""

    def run(target: Target, budget: int, seed: int) -> Found:
        num_adapt = budget // target.rows // 8  # the rest of the warm-up forgets where the chain was then
        kernel = load("samplers", name)(1.0, num_adapt=num_adapt)
        adapt = samplers.limit_bias(target.loss_at_anchor)
        return run_chains(target, budget, seed, kernel, adapt=adapt, least_warmup=num_adapt)

    return run


def mclmc(target: Target, budget: int, seed: int) -> Found:
    adapt = load("samplers.energy_error", "limit_energy_error")()
    return run_chains(target, budget, seed, load("samplers.mclmc", "mclmc")(1.0), adapt=adapt)


def adjusted_mclmc(target: Target, budget: int, seed: int) -> Found:
    start = time.perf_counter()
    curvature, spent = curvature_scale(target, seed)
    # a velocity of unit length goes 1/√dim along each coordinate
    low, high = (step * math.sqrt(target.potential.dim) for step in mixed_steps(target, curvature, target.n_beta))
    kernel = load("samplers.adjusted_mclmc", "adjusted_mclmc")((low, high), PATH_STEPS)
    return run_chains(target, budget, seed, kernel, spent=spent, since=start)


def adjusted_mclmc_single(target: Target, budget: int, seed: int) -> Found:
    kernel = load("samplers.adjusted_mclmc", "adjusted_mclmc")(1.0, PATH_STEPS)
    return run_chains(target, budget, seed, kernel, adapt=samplers.accept_at_rate(0.65, num_steps=100))


def tempered_smc(target: Target, budget: int, seed: int) -> Populations:
    """A small pilot finds the rungs; then as many particles as the budget allows follow them."""
    start = time.perf_counter()
    smc = load("samplers.smc", "tempered_smc")
    curvature, spent = curvature_scale(target, seed)

    def kernel_at(n_beta: float) -> samplers.Kernel:
        return samplers.hmc(mixed_steps(target, curvature, n_beta), RUNG_STEPS)

    form = {"num_populations": POPULATIONS, "num_moves": MOVES, "seed": seed}
    pilot = smc(target.potential, kernel_at, num_particles=PILOT_PARTICLES, max_rungs=200, **form)
    spent += pilot.num_gradients
    of_particle = pilot.num_gradients / (POPULATIONS * PILOT_PARTICLES)
    particles = int((budget - spent) / of_particle / POPULATIONS)
    if particles < PILOT_PARTICLES:
        raise ValueError(f"the budget of {budget:,} gradients leaves {particles} particles for each population")
    found = smc(target.potential, kernel_at, pilot.n_beta, num_particles=particles, **form)
    return Populations(
        found.mean_loss_by_population[-1],
        float(np.mean(found.variance_loss_by_population[-1])),
        spent + found.num_gradients,
        time.perf_counter() - start,
        {"num_particles": particles, "num_moves": MOVES, "rungs": len(pilot.n_beta)},
        {"acceptance_rate": float(np.nanmean(found.acceptance_rate[-1])), "diverged": len(found.failures)},
    )


class MissingSamplerError(LookupError):
    """A sampler that this version of the package does not have."""


def load(module: str, name: str) -> Any:
    """What a module of the package calls so.

    Raises:
        MissingSamplerError: There is no such thing.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise MissingSamplerError(f"{module}.{name}") from error


# SGHMC: h²A/(4 − 2α) = 2 % of bias at the stiffest wall, as limit_bias allows. BAOAB and its thermostat have none on
# quadratics up to the limit of stability, h²A = 4.
ALL: dict[str, Sampler] = {
    "sgld": sgld,
    "rmsprop_sgld": with_frozen_metric("rmsprop_sgld"),
    "adam_sgld": with_frozen_metric("adam_sgld"),
    "sghmc": with_momentum("sghmc"),
    "sgnht": with_momentum("sgnht"),
    "baoab": with_momentum("baoab"),
    "mclmc": mclmc,
    "mala": mala,
    "hmc": hmc_single,
    "hmc whitened": hmc_whitened,
    "hmc mixed": hmc_mixed,
    "adjusted_mclmc": adjusted_mclmc_single,
    "adjusted_mclmc mixed": adjusted_mclmc,
    "replica_exchange": replica_exchange,
    "tempered_smc": tempered_smc,
}
