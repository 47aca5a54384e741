"""The known cases: their modules are at a zero of K, with the Hessian rank that λ implies."""

import pytest
import torch
from torch.func import functional_call, hessian

import slt
from slt.known import case, cases


@pytest.mark.parametrize("known", cases(), ids=lambda known: known.name)
def test_anchor_is_a_minimum_with_the_rank_that_gives_lambda(known):
    """All cases so far are regular or Morse–Bott, where λ = rank(Hessian)/2 and m = 1 (theory: both proven)."""
    model = known.build()
    names = [name for name, _ in model.named_parameters()]
    shapes = [parameter.shape for parameter in model.parameters()]

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self):
            return known.loss_fn(self.inner)

    def excess(vector):
        parts = vector.split([shape.numel() for shape in shapes])
        values = {f"inner.{name}": part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return functional_call(Loss(), values, ())

    anchor = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert float(excess(anchor)) == pytest.approx(0.0, abs=1e-14)
    rank = int(torch.linalg.matrix_rank(hessian(excess)(anchor), atol=1e-9))
    assert known.multiplicity == 1
    assert rank / 2 == float(known.rlct)
    for _ in range(20):
        assert float(excess(anchor + 0.1 * torch.randn_like(anchor))) >= 0


def test_names():
    assert case("quadratic").name == "quadratic"
    with pytest.raises(KeyError, match="quadratic, tanh_one_unit"):
        case("cubic")


def test_the_linear_network_comes_out_at_its_lambda():
    """nβ = 1e5 is far enough for a Morse–Bott point that only Monte Carlo error is left: γ/(nβ h) is about 1e-5."""
    known = case("linear_3_2_3")
    estimate = slt.estimate_llc(known.build(), None, known.loss_fn, n_beta=1e5, localization=10.0)
    assert estimate.verdict.ok
    assert abs(estimate.llc - 4.0) <= 4 * estimate.mcse
