"""Parameters that share memory without being one object."""

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import slt
from slt import overlaps
from slt.overlaps import overlapping
from slt.parameters import SampledParameters


class Coder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False)
        self.decoder = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.decoder(self.encoder(x))


def refused(*names):
    return pytest.raises(ValueError, match=".*".join((r"^parameters: ", *names, r"decoder\.weight = encoder\.weight")))


@pytest.mark.parametrize("tie", [lambda weight: weight, lambda weight: weight.T, lambda weight: weight.view(2, 8)])
def test_weights_that_are_tied_through_their_data_are_refused(tie):
    model = Coder()
    model.decoder.weight.data = tie(model.encoder.weight.data)
    with refused(r"encoder\.weight", r"decoder\.weight"):
        SampledParameters(model)


@pytest.mark.parametrize("parameters", ["encoder.*", "decoder.*"])
def test_they_are_refused_where_only_one_of_them_is_sampled(parameters):
    model = Coder()
    model.decoder.weight.data = model.encoder.weight.data
    with refused(parameters.replace(".*", r"\.weight")):
        SampledParameters(model, parameters)
    model.requires_grad_(False).get_submodule(parameters[:-2]).requires_grad_(True)
    with refused(parameters.replace(".*", r"\.weight")):
        slt.estimate_llc(model, torch.randn(10, 4), lambda m, x: m(x).square().mean())


@pytest.mark.parametrize("mask", [None, torch.eye(4, dtype=torch.bool)])
def test_they_are_refused_as_parts_whose_copy_would_not_be_tied(mask):
    model = Coder()
    model.decoder.weight.data = model.encoder.weight.data
    with refused(r"encoder\.weight"):
        slt.part_of(model, {"encoder.weight": mask})


def test_they_are_refused_where_a_copy_in_float64_would_part_them():
    model = Coder()
    model.decoder.weight.data = model.encoder.weight.data
    with refused(r"encoder\.weight"):
        slt.estimate_rlct(model, torch.randn(10, 4), lambda m, x: m(x).square().mean())


def test_a_tie_of_one_object_and_a_copy_are_sampled():
    model = Coder()
    model.decoder.weight = model.encoder.weight
    assert SampledParameters(model).names == ("encoder.weight",)
    model = Coder()
    model.decoder.weight.data = model.encoder.weight.data.clone()
    assert SampledParameters(model).dim == 32


def test_frozen_weights_may_share_memory():
    model = Coder()
    model.decoder.weight.data = model.encoder.weight.data
    model.requires_grad_(False).head = nn.Linear(4, 1)
    assert SampledParameters(model).names == ("head.weight", "head.bias")


MATRIX = torch.zeros(6, 8)
FLAT = MATRIX.view(-1)


@pytest.mark.parametrize(
    "views",
    [
        [FLAT[:4], FLAT[4:10].view(2, 3), FLAT[10:10], FLAT[10:48]],  # a flat buffer, as optimizers and wrappers make
        [MATRIX[:, :3], MATRIX[:, 3:7], MATRIX[:, 7]],
        [MATRIX[::2], MATRIX[1::2]],
        [MATRIX[:2, :2], FLAT[2:8]],  # a dense one between the elements of another
        [FLAT[:4].double(), FLAT],  # memory of its own
        [torch.zeros(0), torch.zeros(0, 3)],
    ],
)
def test_views_without_a_common_element_do_not_overlap(views):
    named = [(str(place), view) for place, view in enumerate(views)]
    assert overlapping(named) is None
    assert overlapping(named[:1], named[1:]) is None
    assert overlapping(named[::-1]) is None


@pytest.mark.parametrize(
    "views",
    [
        [FLAT[:5], FLAT[4:10]],
        [MATRIX[:, :4], MATRIX[:, 3:]],
        [MATRIX[::2], MATRIX[2:4, :2]],
        [FLAT[40:], MATRIX],
        [FLAT[1:2].expand(3), FLAT[:2]],
        [FLAT[:4].view(torch.float64), MATRIX[:, 1]],  # of another size of element
        [torch.from_numpy(array := np.zeros(4)), torch.from_numpy(array)],  # two storages over one memory
    ],
)
def test_views_with_a_common_element_overlap(views):
    named = [(str(place), view) for place, view in enumerate(views)]
    apart = [("apart", torch.zeros(3)), *[(f"beside {column}", torch.zeros(9, 9)[:, column]) for column in range(3)]]
    assert set(overlapping(named + apart)) == {"0", "1"}
    assert overlapping(named[:1], named[1:] + apart) == ("0", "1")
    assert overlapping(named[1:], named[:1]) == ("1", "0")
    assert overlapping(apart, named) is None


def test_what_has_no_address_is_passed_over():
    with FakeTensorMode():
        fake = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))]
    meta = [torch.zeros(3, device="meta"), torch.zeros(3, device="meta")]
    freed = [torch.zeros(3), torch.zeros(3)]
    for tensor in freed:
        tensor.untyped_storage().resize_(0)  # as wrappers do between passes
    sparse = [torch.eye(3).to_sparse(), torch.eye(3).to_sparse()]
    assert overlapping((str(place), tensor) for place, tensor in enumerate([*fake, *meta, *freed, *sparse])) is None


def test_ranges_of_many_parameters_are_told_apart_by_their_order_alone(monkeypatch):
    monkeypatch.setattr(overlaps, "_first_in_common", lambda cluster: pytest.fail("elements were compared"))
    sizes, honest = [], overlaps._clusters

    def counted(spans):
        for cluster in honest(spans):
            sizes.append(len(cluster))
            yield cluster

    monkeypatch.setattr(overlaps, "_clusters", counted)
    flat = torch.zeros(100_000)
    named = [(str(place), view) for place, view in enumerate(flat.split(10))]
    assert overlapping(named) is None
    assert sizes == [1] * 10_000
    assert set(overlapping([*named, ("all", flat)])) == {"0", "all"}
