"""The Gaussian that meets walls as stiff as it is: of quadratics the inverse Hessian, of quartic walls their width."""

import importlib
import math

import pytest
import torch

import samplers
from samplers import Kronecker, kronecker_metric
from samplers.adaptation import Adapted
from tests.samplers.laws import Quadratic, random_rotation

MODULE = importlib.import_module("samplers.kronecker_metric")  # whose name is that of its function
ROWS, COLUMNS = 12, 8
# of the sides of a matrix, whose product spans eight decades, and of a vector of 8 without structure
LEFT, RIGHT = torch.logspace(0, 4, ROWS, dtype=torch.float64), torch.logspace(0, 4, COLUMNS, dtype=torch.float64)
VECTOR = torch.logspace(0, 3, 8, dtype=torch.float64)
SHAPES = ((ROWS, COLUMNS), (8,))


def kronecker_target():
    rotation = torch.block_diag(torch.kron(random_rotation(ROWS), random_rotation(COLUMNS)), random_rotation(8))
    return Quadratic(torch.cat([torch.outer(LEFT, RIGHT).flatten(), VECTOR]), rotation=rotation)


def adapted(target, shapes, chains=8, batches=None, seed=0, **options) -> Adapted:
    start = target.anchor.expand(chains, -1).contiguous()
    generator = torch.Generator().manual_seed(seed)
    return kronecker_metric(shapes, **options)(samplers.baoab(1.0), target, start, batches, generator)


def whitened_curvatures(target, metric):
    """Eigenvalues of √P ∇²U √P."""
    root = metric.apply_root_(torch.eye(target.dim, dtype=torch.float64))
    hessian = target.rotation @ torch.diag(target.stiffness) @ target.rotation.T
    return torch.linalg.eigvalsh(root @ hessian @ root)


def test_a_quadratic_with_a_factor_for_each_side_is_whitened():
    """Eight decades of curvature come within a factor of two of one."""
    target = kronecker_target()
    found = adapted(target, SHAPES, num_rounds=20)
    own = whitened_curvatures(target, found.kernel.settings["preconditioner"])
    assert float(own.max() / own.min()) < 4
    assert float(own.min()) > 0.5
    assert float(own.max()) < 2
    assert float(target.stiffness.max() / target.stiffness.min()) > 1e7


def test_bases_of_the_wrong_sides_do_not_whiten(monkeypatch):
    """The planted error: of each side any basis at all."""
    monkeypatch.setattr(MODULE, "_basis", lambda mean: None if mean is None else random_rotation(len(mean), seed=7))
    target = kronecker_target()
    own = whitened_curvatures(target, adapted(target, SHAPES, num_rounds=20).kernel.settings["preconditioner"])
    assert float(own.max() / own.min()) > 100


class Quartic:
    """Loss ¼ Σ wᵢ⁴ without a localiser to speak of; the walls of a singular minimum."""

    max_chains = None

    def __init__(self, dim, n_beta):
        self.dim, self.n_beta = dim, n_beta
        self.anchor = torch.zeros(dim, dtype=torch.float64)
        self.localizer = samplers.GaussianLocalizer(self.anchor, 1e-6)

    def loss_and_grad(self, position, batch=None):
        return 0.25 * position.pow(4).sum(-1), position**3

    def sum(self, x):
        return x.sum(-1)


@pytest.mark.parametrize("n_beta", [1e2, 1e6])
def test_quartic_walls_are_met_at_the_width_at_which_they_stand(n_beta):
    """P⁻¹ = E[y²] with y = nβw³ and w ~ N(0, P) is 15^(1/4) √nβ, 14 % above the mean curvature; the Hessian is zero."""
    target = Quartic(400, n_beta)
    found = adapted(target, ((20, 20),), num_rounds=16)
    metric = found.kernel.settings["preconditioner"]
    curvature = torch.cat([block.root.flatten() for block in metric.blocks]) ** -2
    assert float(curvature.log().mean().exp()) == pytest.approx(15**0.25 * n_beta**0.5, rel=0.07)


def test_chains_start_in_the_law():
    """Whitened, the starts are standard normal: ‖z‖² of 104 coordinates and 8 chains, within four deviations."""
    target = kronecker_target()
    found = adapted(target, SHAPES)
    metric = found.kernel.settings["preconditioner"]
    inverse = torch.linalg.inv(metric.apply_root_(torch.eye(target.dim, dtype=torch.float64)))
    squares = (found.initial @ inverse).square().sum()
    count = found.initial.numel()
    assert abs(float(squares) - count) < 4 * math.sqrt(2 * count)
    assert adapted(target, SHAPES, chains=1).initial.shape == (4, target.dim)


def test_a_run_starts_there_and_counts_the_gradients():
    target = kronecker_target()
    run = samplers.Run(samplers.baoab(1.0), target, target.anchor, num_chains=6, num_warmup=0, block_size=2)
    run.adapt(samplers.in_turn(kronecker_metric(SHAPES, num_rounds=3, num_probes=7), samplers.limit_momentum_bias()))
    assert run.initial.shape == (6, target.dim)
    assert isinstance(run.kernel.settings["preconditioner"], Kronecker)
    found = adapted(target, SHAPES, chains=2, num_rounds=3, num_probes=7)
    assert found.num_gradients == 3 * 4 * 2 + 2  # four calls of two chains, two gradients each, and the stiffness


def test_a_law_too_wide_for_finite_gradients_is_made_narrower(monkeypatch):
    class Walled(Quadratic):
        def loss_and_grad(self, position, batch=None):
            loss, gradient = super().loss_and_grad(position, batch)
            outside = (position.abs() > 0.5).any(-1)
            return loss, torch.where(outside[:, None], torch.nan, gradient)

    target = Walled(torch.full((16,), 1e-3), localization=0.5)
    metric = adapted(target, ((4, 4),)).kernel.settings["preconditioner"]
    assert all(bool(torch.isfinite(block.root).all()) for block in metric.blocks)
    monkeypatch.setattr(MODULE, "MOST_REFUSED", 1)
    with pytest.raises(FloatingPointError, match="preconditioner: gradients are not finite"):
        adapted(Never(torch.ones(16)), ((4, 4),))


class Never(Quadratic):
    """Finite at the anchor and beside it alone."""

    def loss_and_grad(self, position, batch=None):
        loss, gradient = super().loss_and_grad(position, batch)
        return loss, torch.where((position.abs() > 1e-4).any(-1, keepdim=True), torch.nan, gradient)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: kronecker_metric(((2, 2),), num_rounds=0), "num_rounds, num_probes"),
        (lambda: adapted(Quadratic((1.0, 2.0)), ((2, 2),)), "shapes: 4 weights in all, for positions of 2"),
        (
            lambda: kronecker_metric(((2,),))(
                samplers.rmsprop_sgld(1.0), Quadratic((1.0, 2.0)), torch.zeros(1, 2).double(), None, torch.Generator()
            ),
            "kernel: rmsprop_sgld has no setting preconditioner",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_longer_sides_and_sides_with_few_vectors_keep_their_basis(monkeypatch):
    monkeypatch.setattr(MODULE, "LARGEST_SIDE", 10)
    target = kronecker_target()
    block = adapted(target, SHAPES).kernel.settings["preconditioner"].blocks[0]
    assert block.left is None
    assert block.right is not None
    monkeypatch.undo()
    few = adapted(target, SHAPES, num_probes=4, chains=4).kernel.settings["preconditioner"].blocks
    assert few[0].left is None  # 4 · 8 vectors of twelve entries
    assert few[0].right is not None  # 4 · 12 of eight
    assert few[1].right is None  # four vectors of eight entries
