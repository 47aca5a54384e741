"""A preconditioner with two bases for each matrix: its own matrix, and the law of a chain in it."""

import pytest
import torch

import samplers
from samplers import Kronecker, KroneckerBlock
from tests.samplers.assertions import assert_law_is_kept
from tests.samplers.laws import Quadratic, random_rotation
from tests.statistics import assert_independent_mean

LEFT, RIGHT, VECTOR = random_rotation(3), random_rotation(2, seed=4), random_rotation(2, seed=5)
# of a matrix of three rows and two columns, in its bases, and of a vector of two; with γ = 1
STIFFNESS = (
    torch.tensor([[1.0, 10.0], [100.0, 1e3], [1e3, 1e4]], dtype=torch.float64),
    torch.tensor([[1.0, 50.0]]).double(),
)
ROTATION = torch.block_diag(torch.kron(LEFT, RIGHT), VECTOR)  # of weights row by row
TARGET = Quadratic(torch.cat([each.flatten() for each in STIFFNESS]) - 1, rotation=ROTATION)


def whitening():
    return Kronecker([
        KroneckerBlock(LEFT, RIGHT, STIFFNESS[0].rsqrt()), KroneckerBlock(None, VECTOR, STIFFNESS[1].rsqrt()),
    ])  # fmt: skip


def matrix(preconditioner):
    return preconditioner.apply_(torch.eye(8, dtype=torch.float64))


def test_it_is_the_kronecker_product_of_its_bases_and_its_root_is_symmetric():
    expected = ROTATION @ torch.diag(1 / TARGET.stiffness) @ ROTATION.T
    torch.testing.assert_close(matrix(whitening()), expected)
    root = whitening().apply_root_(torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(root, root.T)
    torch.testing.assert_close(root @ root, expected)


def test_without_a_basis_a_side_keeps_its_own():
    root = torch.rand(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    found = Kronecker([KroneckerBlock(LEFT, None, root)]).apply_root_(torch.eye(6, dtype=torch.float64))
    basis = torch.kron(LEFT.contiguous(), torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(found, basis @ torch.diag(root.flatten()) @ basis.T)


def test_the_law_of_a_badly_scaled_gaussian_is_kept_and_reached():
    """Exact law of the discretised chain in the metric; the start is forgotten too, at a step of order one."""
    variance = 1 / (1 - 0.8 / 4) / TARGET.stiffness
    assert_law_is_kept(samplers.sgld(0.8, whitening()), TARGET, variance, num_steps=40)
    kernel, generator = samplers.sgld(0.8, whitening()), torch.Generator().manual_seed(1)
    state = kernel.init(torch.zeros(5000, 8, dtype=torch.float64), TARGET)
    for _ in range(60):
        kernel.step_(state, TARGET, None, generator)
    own = TARGET.coordinates(state.position) / variance.sqrt().numpy()
    for place in range(8):
        assert_independent_mean(own[:, place] ** 2, 1.0, deviation=2**0.5)


def test_a_basis_that_is_turned_the_wrong_way_is_rejected():
    """A root that is not the root of P gives another law: here that of Uᵀ in the place of U."""
    honest = Kronecker._scale_

    def wrong(self, x, *, twice):
        if twice:
            return honest(self, x, twice=True)
        left, right, root = self.blocks[0]
        turned = Kronecker([KroneckerBlock(left.T.contiguous(), right, root), self.blocks[1]])
        return honest(turned, x, twice=False)

    variance = 1 / (1 - 0.8 / 4) / TARGET.stiffness
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kronecker, "_scale_", wrong)
        with pytest.raises(AssertionError, match="standard errors"):
            assert_law_is_kept(samplers.sgld(0.8, whitening()), TARGET, variance, num_steps=40)


def test_a_run_in_it_is_saved_and_goes_on_bitwise():
    def fresh():
        return samplers.Run(samplers.baoab(0.3, None, whitening()), TARGET, TARGET.anchor, num_chains=2, num_warmup=0)

    run, again = fresh(), fresh()
    run.draw(5)
    again.load_state_dict(run.state_dict())
    assert isinstance(again.kernel.settings["preconditioner"], Kronecker)
    for each in (run, again):
        each.draw(5)
    assert (run.trace().loss == again.trace().loss).all()


@pytest.mark.parametrize(
    ("block", "named"),
    [
        (KroneckerBlock(None, None, torch.tensor([[1.0, 0.0]])), "root of block 0"),
        (KroneckerBlock(None, None, torch.ones(3)), "root of block 0"),
        (KroneckerBlock(torch.eye(3), None, torch.ones(2, 2)), r"left of block 0: shape \(3, 3\)"),
        (KroneckerBlock(None, torch.ones(2, 2), torch.ones(2, 2)), "right of block 0: its columns"),
    ],
)
def test_bad_parts_are_named(block, named):
    with pytest.raises(ValueError, match=named):
        Kronecker([block])


def test_no_block_and_a_piece_of_a_vector_are_refused():
    with pytest.raises(ValueError, match="blocks: none"):
        Kronecker([])
    with pytest.raises(ValueError, match="columns: 3 of 8"):
        whitening().apply_root_(torch.zeros(2, 3, dtype=torch.float64))
