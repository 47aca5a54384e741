"""Chains with a momentum: their whole state as arrays, the assertions on it, and kernels with a planted error."""

from __future__ import annotations

import importlib
import inspect
import itertools
import types
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.statistics import assert_mean

REJECTED = "standard errors|too few draws"  # what a planted error ends in: the bound, or the gate before it


class Trajectory(NamedTuple):
    """Arrays ``(chain, draw, …)`` of the states from which steps were taken, and of what the steps said."""

    position: Tensor
    momentum: Tensor
    thermostat: np.ndarray  # (chain, draw), empty where there is none
    loss: np.ndarray
    bias: np.ndarray


def trajectory(kernel, target, *, num_chains=128, num_warmup=600, num_draws=400, thinning=4, seed=0, start=None):
    """The trajectory of chains from the origin. Many chains and few draws: an operation costs more than its columns.

    ``start`` is a position ``(chains, dim)`` instead of the origin.
    """
    generator = torch.Generator().manual_seed(seed)
    origin = torch.zeros(num_chains, target.dim, dtype=torch.float64)
    state = kernel.init(origin if start is None else start.clone(), target)
    for _ in range(num_warmup):
        kernel.step_(state, target, None, generator)
    shape = (num_draws, num_chains, target.dim)
    positions, momenta = torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.float64)
    thermostats, infos = [], []
    for draw in range(num_draws):
        positions[draw], momenta[draw] = state.position, state.momentum
        if hasattr(state, "thermostat"):
            thermostats.append(state.thermostat[:, 0].clone())
        infos.append(kernel.step_(state, target, None, generator))
        for _ in range(thinning - 1):
            kernel.step_(state, target, None, generator)
    return Trajectory(
        positions.transpose(0, 1),
        momenta.transpose(0, 1),
        torch.stack(thermostats, 1).numpy() if thermostats else np.empty((num_chains, 0)),
        torch.stack([info.loss for info in infos], 1).numpy(),
        torch.stack([info.discretization_bias for info in infos], 1).numpy(),
    )


def assert_joint_law(target, found, covariances, chains=slice(None)):
    """Mean and full covariance of (w, q), in the coordinates of the law, and nβ·E[loss].

    ``covariances`` has shape ``(dim, 2, 2)``: of (w, q) in each coordinate; those of different ones are independent.
    """
    own = np.concatenate([target.coordinates(found.position), target.coordinates(found.momentum)], -1)[chains]
    for place in range(2 * target.dim):
        assert_mean(own[..., place], 0.0)
    for one, other in itertools.combinations_with_replacement(range(2 * target.dim), 2):
        of_pair = covariances[one % target.dim][one // target.dim, other // target.dim]
        truth = float(of_pair) if one % target.dim == other % target.dim else 0.0
        assert_mean(own[..., one] * own[..., other], truth)
    variance = torch.as_tensor(covariances[:, 0, 0])
    assert_mean(target.n_beta * found.loss[chains], float((0.5 * target.n_beta * target.h * variance).sum()))


def assert_skewed(law, found):
    """Three moments of a density that is not symmetric, and two of the momentum."""
    values, momentum = found.position[..., 0].numpy(), found.momentum[..., 0].numpy()
    assert_mean(values, law.mean)
    assert_mean((values - law.mean) ** 2, law.variance)
    assert_mean((values - law.mean) ** 3, law.third)
    assert_mean(momentum, 0.0)


def mutant(name, honest, planted, name_of_factory=None):
    """The factory of the kernel of that module, made from its source with one expression replaced.

    ``name_of_factory`` is given where it is not that of the module.
    """
    module = importlib.import_module(f"samplers.{name}")
    source = inspect.getsource(module)
    assert source.count(honest) == 1, f"{honest!r} occurs {source.count(honest)} times in {name}"
    changed = types.ModuleType(module.__name__)
    exec(compile(source.replace(honest, planted), f"planted in {name}", "exec"), changed.__dict__)
    return getattr(changed, name_of_factory or name)


def without_noise(monkeypatch, name):
    """Take the noise out of the kernels of that name."""
    module = importlib.import_module(f"samplers.{name}")
    monkeypatch.setattr(module, "standard_normal", lambda like, generator: torch.zeros_like(like))
