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

import samplers
from tests.samplers.laws import Quadratic
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


def mutant(name, honest, planted):
    """The factory of the kernel of that name, made from its source with one expression replaced."""
    module = importlib.import_module(f"samplers.{name}")
    source = inspect.getsource(module)
    assert source.count(honest) == 1, f"{honest!r} occurs {source.count(honest)} times in {name}"
    changed = types.ModuleType(module.__name__)
    exec(compile(source.replace(honest, planted), f"planted in {name}", "exec"), changed.__dict__)
    return getattr(changed, name)


def without_noise(monkeypatch, name):
    """Take the noise out of the kernels of that name."""
    module = importlib.import_module(f"samplers.{name}")
    monkeypatch.setattr(module, "standard_normal", lambda like, generator: torch.zeros_like(like))


def assert_chunks_do_not_matter(kernel, monkeypatch, name):
    """Without noise, a vector updated in chunks moves as one that is updated at once."""
    noise_module = importlib.import_module("samplers.noise")
    target = Quadratic([1.0, 2.0, 3.0, 4.0, 5.0], n_beta=2.0)
    start = torch.arange(1.0, 6.0, dtype=torch.float64)
    without_noise(monkeypatch, name)

    def moved():
        state = kernel.init(start.expand(2, -1).clone(), target)
        infos = [kernel.step_(state, target, None, torch.Generator()) for _ in range(3)]
        return state, infos[-1]

    whole, whole_info = moved()
    monkeypatch.setattr(noise_module, "CHUNK_COLUMNS", 4)
    monkeypatch.setattr(noise_module, "PIECE_COLUMNS", 2)
    chunked, chunked_info = moved()
    torch.testing.assert_close(chunked.position, whole.position)
    torch.testing.assert_close(chunked.momentum, whole.momentum)
    for one, other in zip(chunked_info, whole_info, strict=True):
        torch.testing.assert_close(one, other)


def assert_seed_repeats(kernel):
    """A seed repeats bitwise and another does not, through :func:`samplers.sample`."""

    def run(seed):
        target = Quadratic((1.0, 2.0), noise=1.0)
        return samplers.sample(
            kernel, target, target.anchor, num_chains=4, num_warmup=5, num_draws=40, seed=seed, keep_positions=True
        )

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first.positions, again.positions)
    np.testing.assert_array_equal(first.statistics["discretization_bias"], again.statistics["discretization_bias"])
    assert not torch.equal(first.positions, other.positions)
    assert all(np.isfinite(values).all() for values in first.statistics.values())
    assert (first.statistics["acceptance_rate"] == 1).all()


def assert_chains_do_not_meet(make_kernel, monkeypatch, name, num_steps=20):
    """Chains together move as each alone, given its noise, its nβ and its step size: ``make_kernel(step_size)``."""
    module = importlib.import_module(f"samplers.{name}")
    count, dim = 3, 2
    table = torch.randn(num_steps, count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    steps = torch.tensor([[0.02], [0.1], [0.3]], dtype=torch.float64)
    n_beta = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)

    def run(rows, step_size, temper):
        draws = iter(table)
        monkeypatch.setattr(module, "standard_normal", lambda like, generator: next(draws)[rows])
        target = Quadratic((1.0, 2.0), n_beta=temper)
        kernel = make_kernel(step_size)
        state = kernel.init(torch.ones(len(table[0][rows]), dim, dtype=torch.float64), target)
        info = [kernel.step_(state, target, None, torch.Generator()) for _ in range(num_steps)][-1]
        return state.position, state.momentum, info

    position, momentum, info = run(slice(None), steps, n_beta)
    for chain in range(count):
        one = run(slice(chain, chain + 1), float(steps[chain]), float(n_beta[chain]))
        torch.testing.assert_close(position[chain : chain + 1], one[0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(momentum[chain : chain + 1], one[1], rtol=1e-12, atol=1e-14)
        for together, alone in zip(info, one[2], strict=True):
            torch.testing.assert_close(together[chain : chain + 1], alone, rtol=1e-12, atol=1e-14)


def assert_nothing_is_read_back(kernel, monkeypatch):
    """No step turns a tensor into a number, which would synchronise a device and forbid a CUDA graph."""
    target = Quadratic((1.0, 2.0), n_beta=torch.full((3, 1), 2.0, dtype=torch.float64))
    state = kernel.init(torch.ones(3, 2, dtype=torch.float64), target)

    def refuse(*arguments):
        raise AssertionError("a step reads a tensor back")

    with monkeypatch.context() as patch:
        for name in ("__bool__", "__float__", "__int__", "item", "tolist", "numpy"):
            patch.setattr(torch.Tensor, name, refuse)
        for _ in range(2):
            kernel.step_(state, target, None, torch.Generator())
