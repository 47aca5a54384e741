"""Potentials, localisers and preconditioners."""

import pytest
import torch

import samplers
from samplers import Diagonal, GaussianLocalizer, Identity, Unlocalized


def test_log_density_potential_is_minus_the_log_density():
    potential = samplers.from_log_density(lambda w: -0.5 * w.square().sum(-1), dim=3)
    position = torch.randn(4, 3)
    loss, gradient = potential.loss_and_grad(position)
    torch.testing.assert_close(loss, 0.5 * position.square().sum(-1))
    torch.testing.assert_close(gradient, position)
    assert not loss.requires_grad
    assert float(potential.localizer.energy(position).abs().max()) == 0.0


def test_a_log_density_of_the_wrong_shape_is_refused():
    potential = samplers.from_log_density(lambda w: -w.square().sum(), dim=3)
    with pytest.raises(ValueError, match=r"fn: returned shape \(\)"):
        potential.loss_and_grad(torch.randn(4, 3))
    for dim in (0, 2.5):
        with pytest.raises(ValueError, match="dim"):
            samplers.from_log_density(lambda w: w.sum(-1), dim=dim)


@pytest.mark.parametrize(
    "fn",
    [lambda w: -0.5 * w.square().sum(0), lambda w: -0.5 * (w - w.mean(0)).square().sum(-1)],
    ids=["summed over chains", "coupled"],
)
@pytest.mark.parametrize("start", [torch.zeros(3), torch.randn(3, 3, generator=torch.Generator().manual_seed(0))])
def test_a_log_density_in_which_other_chains_have_a_part_is_refused(fn, start):
    potential = samplers.from_log_density(fn, dim=3)
    with pytest.raises(ValueError, match="fn: the log density of one chain is .* alone and .* among 3 chains"):
        samplers.sample(samplers.sgld(0.1), potential, start, num_chains=3, num_warmup=0, num_draws=5)


def test_localizers_that_are_no_law_are_refused():
    anchor = torch.zeros(2)
    for problem, arguments in (
        ("strength: -1.0", (anchor, -1.0)),
        ("strength: nan", (anchor, float("nan"))),
        (r"anchor: shape \(1, 2\)", (anchor[None], 1.0)),
        (r"metric: shape \(1,\); expected \(2,\)", (anchor, 1.0, torch.ones(1))),
        ("metric: has entries that are negative", (anchor, 1.0, torch.tensor([1.0, -1.0]))),
    ):
        with pytest.raises(ValueError, match=problem):
            GaussianLocalizer(*arguments)


@pytest.mark.parametrize("metric", [None, torch.tensor([1.0, 2.0, 4.0])])
def test_localizer_gradient_is_that_of_its_energy(metric):
    localizer = GaussianLocalizer(torch.tensor([1.0, -1.0, 0.5]), 3.0, metric)
    position = torch.randn(5, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(localizer.energy(position).sum(), position)
    gradient = torch.ones(5, 3)
    energy = localizer.add_gradient_(gradient, position.detach())
    torch.testing.assert_close(gradient - 1, expected)
    torch.testing.assert_close(energy, localizer.energy(position).detach())
    columns = slice(1, 3)
    part = torch.zeros(5, 2)
    localizer.add_gradient_(part, position.detach()[:, columns], columns)
    torch.testing.assert_close(part, expected[:, columns])


def test_no_localizer_adds_nothing():
    gradient = torch.ones(2, 3)
    assert Unlocalized().add_gradient_(gradient, torch.randn(2, 3)).tolist() == [0.0, 0.0]
    assert (gradient == 1).all()


def test_preconditioners():
    x = torch.randn(2, 3)
    torch.testing.assert_close(Identity().apply_(x.clone()), x)
    scale = torch.tensor([1.0, 4.0, 9.0])
    torch.testing.assert_close(Diagonal(scale).apply_(x.clone()), x * scale)
    torch.testing.assert_close(Diagonal(scale).apply_root_(x[:, 1:].clone(), slice(1, 3)), x[:, 1:] * scale[1:].sqrt())
    with pytest.raises(ValueError, match="1 of 2 entries"):
        Diagonal(torch.tensor([1.0, 0.0]))
