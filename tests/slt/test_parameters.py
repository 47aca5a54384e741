"""Module ↔ flat vector."""

import pytest
import torch
from torch import nn

import slt
from slt.parameters import SampledParameters
from tests.slt.models import TinyTransformer


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(3, 64, bias=False))


def test_round_trip_and_order(model):
    sampled = SampledParameters(model)
    assert sampled.names == ("0.weight", "2.weight", "0.bias", "1.weight", "1.bias")  # multiples of 64 come first
    assert sampled.dim == sum(parameter.numel() for parameter in model.parameters())
    for name, view in sampled.unflatten(sampled.flatten()).items():
        assert torch.equal(view, model.get_parameter(name))


def test_views_share_memory_and_are_aligned(model):
    sampled = SampledParameters(model)
    vector = sampled.flatten()
    views = sampled.views(vector)
    assert all(view.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr() for view in views)
    assert all((view.data_ptr() - vector.data_ptr()) % 256 == 0 for view in views[:2])


def test_tied_weights_appear_once_and_answer_to_both_names():
    model = TinyTransformer()
    sampled = SampledParameters(model)
    assert sampled.dim == sum(parameter.numel() for parameter in model.parameters())
    for name in ("embedding.weight", "head.weight"):
        assert SampledParameters(model, name).dim == model.head.weight.numel()
    with sampled.borrowed():
        sampled.bind(sampled.views(torch.zeros(sampled.dim)))
        assert not model.head.weight.any()
        assert model.head.weight is model.embedding.weight


def test_frozen_parameters_are_left_alone(model):
    model[0].requires_grad_(False)
    assert not any(name.startswith("0.") for name in SampledParameters(model).names)


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("1.weight", {"1.weight"}),
        ("*.bias", {"0.bias", "1.bias"}),
        (["0.*", "1.bias"], {"0.weight", "0.bias", "1.bias"}),
        (lambda name, parameter: parameter.ndim == 2, {"0.weight", "1.weight", "2.weight"}),
    ],
)
def test_selection(model, selector, names):
    assert set(SampledParameters(model, selector).names) == names


def test_the_module_holds_its_own_parameters_again_after_an_error(model):
    before = dict(model.named_parameters())
    sampled = SampledParameters(model)
    with pytest.raises(RuntimeError, match="user"), sampled.borrowed():
        sampled.bind(sampled.views(torch.zeros(sampled.dim)))
        raise RuntimeError("user")
    assert all(model.get_parameter(name) is parameter for name, parameter in before.items())


def test_what_cannot_be_sampled_is_refused(model):
    with pytest.raises(ValueError, match=r"'3\.\*'.*0\.weight"):
        SampledParameters(model, ["0.*", "3.*"])
    for selector in ([], 5, [1, 2]):
        with pytest.raises(ValueError, match="parameters: .*; expected a name, a glob, several of them, a predicate"):
            SampledParameters(model, selector)
    with pytest.raises(ValueError, match="predicate matched no"):
        SampledParameters(model, lambda name, parameter: False)
    model.none = nn.Parameter(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="none have no elements"):
        SampledParameters(model, "none")
    model.table = nn.Parameter(torch.arange(3), requires_grad=False)
    with pytest.raises(ValueError, match="table.*not floating point"):
        SampledParameters(model, "table")
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"0\.weight.*frozen"):
        SampledParameters(model, "0.*")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad"):
        SampledParameters(model)
    with pytest.raises(ValueError, match="no parameters"):
        SampledParameters(nn.ReLU())
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    with pytest.raises(ValueError, match="bfloat16.*float32"):
        SampledParameters(model)
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match="float32, torch.float64"):
        SampledParameters(mixed)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_an_embedding_with_sparse_gradients_is_refused_where_it_is_sampled(kind):
    model = nn.Sequential(kind(20, 2, sparse=True), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"0\.weight.*sparse=True.*sparse=False"):
        SampledParameters(model)
    assert SampledParameters(model, "1.*").names == ("1.weight", "1.bias")
    model[0].sparse = False
    assert "0.weight" in SampledParameters(model).names


@pytest.mark.parametrize("lazy", [nn.LazyLinear(2), nn.LazyBatchNorm1d(affine=False)])
def test_a_lazy_module_is_refused_until_it_has_seen_a_batch(lazy):
    model, batch = nn.Sequential(nn.Linear(3, 3), lazy), torch.randn(10, 3)
    for call in (lambda: SampledParameters(model), lambda: slt.estimate_llc(model, batch, lambda m, b: m(b).mean())):
        with pytest.raises(ValueError, match=r"^model: 1\.[a-z_]+ has no shape yet.*one batch"):
            call()
    model(batch)
    assert "0.weight" in SampledParameters(model).names


def test_complex_weights_are_refused_for_what_they_are():
    with pytest.raises(ValueError, match=r"weight, bias are complex.*two real parameters"):
        SampledParameters(nn.Linear(3, 2, dtype=torch.complex64))
