"""A preconditioner that mixes columns: its matrix, and the law of every kernel in it."""

import pytest
import torch

import samplers
from samplers import LowRank
from tests.samplers.assertions import assert_law_is_kept
from tests.samplers.laws import Quadratic, random_rotation
from tests.statistics import assert_independent_mean

# in the target's own coordinates the curvatures are 1, 100, 1e4 (with γ = 1): P whitens the last two
TARGET = Quadratic((0.0, 99.0, 9999.0), rotation=random_rotation(3))


def whitening(stiffness=TARGET.stiffness):
    """P with eigenvalues 1, 1/100, 1/1e4 in the coordinates of the target."""
    return LowRank(1.0, TARGET.rotation[:, 1:].contiguous(), 1 / stiffness[1:] - 1)


def matrix(preconditioner, dim=3):
    return preconditioner.apply_(torch.eye(dim, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1.0, 0.3, torch.full((3, 1), 2.0, dtype=torch.float64)])
def test_it_is_the_matrix_of_its_docstring_and_its_root_is_symmetric(scale):
    directions = random_rotation(3)[:, :2].contiguous()
    factors = torch.tensor([4.0, -0.999], dtype=torch.float64)
    found = LowRank(scale, directions, factors)
    value = float(torch.as_tensor(scale).flatten()[0])
    expected = value * (torch.eye(3, dtype=torch.float64) + directions @ torch.diag(factors) @ directions.T)
    torch.testing.assert_close(matrix(found), expected)
    root = found.apply_root_(torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(root, root.T)
    torch.testing.assert_close(root @ root, expected)


def in_the_metric(stiffness, preconditioner):
    """Curvatures of √P ∇²U √P, all one here but for the first."""
    own = TARGET.rotation.T @ matrix(preconditioner) @ TARGET.rotation
    return own.diagonal() * stiffness


KERNELS = {
    "sgld": (lambda metric: samplers.sgld(0.8, metric), lambda a: 1 / (1 - 0.8 * a / 4)),
    "mala": (lambda metric: samplers.mala(0.8, metric), torch.ones_like),
    "hmc": (lambda metric: samplers.hmc((0.2, 1.2), 3, metric), torch.ones_like),
    "adjusted_mclmc": (lambda metric: samplers.adjusted_mclmc(1.0, 3, metric), torch.ones_like),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_law_of_a_badly_scaled_gaussian_is_kept_and_reached(name):
    """Exact law of the discretised chain in the metric; the start is forgotten too, at a step of order one."""
    make, inflation = KERNELS[name]
    variance = inflation(in_the_metric(TARGET.stiffness, whitening())) / TARGET.stiffness
    assert_law_is_kept(make(whitening()), TARGET, variance, num_steps=40)
    kernel, generator = make(whitening()), torch.Generator().manual_seed(1)
    state = kernel.init(torch.zeros(5000, 3, dtype=torch.float64), TARGET)
    for _ in range(60):
        kernel.step_(state, TARGET, None, generator)
    own = TARGET.coordinates(state.position) / variance.sqrt().numpy()
    for place in range(3):
        assert_independent_mean(own[:, place] ** 2, 1.0, deviation=2**0.5)


@pytest.mark.parametrize("name", ["sghmc", "sgnht", "baoab"])
def test_kernels_with_a_momentum_move_as_in_whitened_coordinates(name):
    """w = √P z: the chain of z on the whitened quadratic is the same chain, given the same noise."""
    make = getattr(samplers, name)
    metric, whitened = whitening(), Quadratic(TARGET.h / TARGET.stiffness, localization=0.0)
    whitened.h = torch.ones(3, dtype=torch.float64)
    root = metric.apply_root_(torch.eye(3, dtype=torch.float64))
    back = torch.linalg.inv(root)
    start = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    runs = []
    for kernel, target, position in (
        (make(0.3, preconditioner=metric), TARGET, start @ root),
        (make(0.3), whitened, start),
    ):
        state, generator = kernel.init(position.clone(), target), torch.Generator().manual_seed(3)
        for _ in range(20):
            kernel.step_(state, target, None, generator)
        runs.append(state.position)
    torch.testing.assert_close(runs[0] @ back, runs[1], rtol=1e-8, atol=1e-8)


def _turned(honest):
    """A root B that is not symmetric: P would be BBᵀ, and twice B is not that."""
    angle = torch.tensor(0.6)
    turn = torch.eye(3, dtype=torch.float64)
    turn[1:, 1:] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    return lambda self, x, columns=slice(None): x.copy_(honest(self, x) @ turn)


def _enlarged(honest):
    return lambda self, x, columns=slice(None): honest(self, x).mul_(1.3)


@pytest.mark.parametrize("plant", [_turned, _enlarged])
def test_planted_errors_in_the_root_are_rejected(plant, monkeypatch):
    variance = 1 / (1 - 0.8 * in_the_metric(TARGET.stiffness, whitening()) / 4) / TARGET.stiffness
    monkeypatch.setattr(LowRank, "apply_root_", plant(LowRank.apply_root_))
    with pytest.raises(AssertionError, match="standard errors"):
        assert_law_is_kept(samplers.sgld(0.8, whitening()), TARGET, variance, num_steps=40)


def test_a_vector_longer_than_a_chunk_is_taken_whole(monkeypatch):
    monkeypatch.setattr("samplers.noise.CHUNK_COLUMNS", 2)
    variance = 1 / (1 - 0.8 * in_the_metric(TARGET.stiffness, whitening()) / 4) / TARGET.stiffness
    assert_law_is_kept(samplers.sgld(0.8, whitening()), TARGET, variance, num_steps=40)


def test_it_is_saved_with_a_run():
    run = samplers.Run(samplers.mala(0.8, whitening()), TARGET, TARGET.anchor, num_chains=2, num_warmup=0)
    run.draw(5)
    again = samplers.Run(samplers.mala(0.8, whitening()), TARGET, TARGET.anchor, num_chains=2, num_warmup=0)
    again.load_state_dict(run.state_dict())
    metric = again.kernel.settings["preconditioner"]
    assert isinstance(metric, LowRank)
    torch.testing.assert_close(matrix(metric), matrix(whitening()))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0.0, torch.eye(3)[:, :1], torch.ones(1)), "scale"),
        ((1.0, torch.ones(3, 2), torch.ones(2)), "directions: VᵀV"),
        ((1.0, torch.ones(3), torch.ones(1)), "directions"),
        ((1.0, torch.eye(3)[:, :2], torch.ones(3)), "factors: shape"),
        ((1.0, torch.eye(3)[:, :2], torch.tensor([0.0, -1.0])), "factors: 1 of 2"),
    ],
)
def test_bad_parts_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        LowRank(*arguments)


def test_a_piece_of_a_vector_is_refused():
    with pytest.raises(ValueError, match="columns: 2 of 3"):
        whitening().apply_root_(torch.ones(4, 2, dtype=torch.float64), slice(0, 2))
