"""A module comes back as it was, whatever its modes do to its weights."""

import copy

import pytest
import torch
from torch import nn

import slt
from slt.isolation import preserved_module


class Adapted(nn.Linear):
    """As microsoft/loralib has it: the adapter is added to the weight in eval mode, and taken off in train mode."""

    def __init__(self):
        super().__init__(5, 1)
        self.a, self.b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(1, 2))
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.merge(-1 if mode else 1)
            self.merged = not mode
        return self

    def merge(self, sign):
        self.weight.data += sign * (self.b @ self.a).data

    def forward(self, x):
        out = super().forward(x)
        return out if self.merged else out + x @ self.a.T @ self.b.T


class Exchanged(Adapted):
    def merge(self, sign):
        self.weight.data = self.weight.data + sign * (self.b @ self.a).data


class WrittenAndExchanged(Adapted):
    def merge(self, sign):
        super().merge(sign)
        self.weight.data = self.weight.data.clone()


class Replaced(Adapted):
    def merge(self, sign):
        self.weight = nn.Parameter(self.weight.data + sign * (self.b @ self.a).data, requires_grad=False)


class Copied(Adapted):
    def merge(self, sign):
        with torch.no_grad():
            self.weight.copy_(self.weight + sign * (self.b @ self.a))


class Halfway(Adapted):
    def merge(self, sign):
        super().merge(sign)
        if sign > 0:
            raise RuntimeError("halfway")


def squares(model, batch):
    return 0.5 * (model(batch[0]) - batch[1]).square().squeeze(1)


def data():
    x = torch.randn(40, 5)
    return x, x.sum(1, keepdim=True)


def memory(model):
    """Objects, addresses, values and versions of parameters, and attributes."""
    values = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    places = {name: (id(tensor), tensor.data_ptr(), tensor.requires_grad) for name, tensor in model.named_parameters()}
    return places, values, [(module.training, getattr(module, "merged", None)) for module in model.modules()]


def assert_unchanged(model, before):
    places, values, modes = memory(model)
    assert (places, modes) == (before[0], before[2])
    assert all(torch.equal(value, before[1][name]) for name, value in values.items())


@pytest.mark.parametrize("kind", [Adapted, Exchanged, WrittenAndExchanged, Replaced, Copied])
def test_a_module_whose_weights_are_others_in_eval_mode_is_refused_and_left_as_it_was(kind):
    model = nn.Sequential(nn.Dropout(0.1), nn.Sequential(kind()))
    before = memory(model)
    match = rf"^model: 1\.0 \({kind.__name__}\) changes 1\.0\.weight when it is put in eval mode.*eval_mode=False"
    for _ in range(2):
        with pytest.raises(ValueError, match=match):
            slt.estimate_llc(model, data(), squares, num_draws=20, num_warmup=20)
        assert_unchanged(model, before)


def test_an_error_on_the_way_to_eval_mode_leaves_the_weights_too():
    model = Halfway()
    before = memory(model)
    with pytest.raises(RuntimeError, match="halfway"), preserved_module(model, eval_mode=True):
        pass
    assert_unchanged(model, before)


def test_such_a_module_is_measured_in_its_own_mode():
    model = Adapted()
    before = memory(model)
    slt.estimate_llc(model, data(), squares, num_draws=20, num_warmup=20, eval_mode=False)
    assert_unchanged(model, before)


class Frozen(nn.Sequential):
    """Keeps a part in eval mode, and writes what was there: the most usual reasons to override train()."""

    def train(self, mode=True):
        super().train(mode)
        self[0].eval()
        with torch.no_grad():
            self[2].weight.clamp_(-9, 9)
            self[2].weight.data = self[2].weight.data.clone()
        self[0].num_batches_tracked.zero_()
        self[2].bias.requires_grad_(False)
        return self


def test_a_mode_that_is_set_otherwise_without_other_weights_is_none_of_our_business():
    model = Frozen(nn.BatchNorm1d(5), nn.Dropout(0.1), nn.Linear(5, 1))
    before = memory(model)
    with preserved_module(model, eval_mode=True), preserved_module(model, eval_mode=True):
        assert not any(module.training for module in model.modules())
    assert_unchanged(model, before)
    slt.estimate_llc(model, data(), squares, num_draws=20, num_warmup=20)
    assert_unchanged(model, before)


class Restless(nn.Sequential):
    """Has a part that is in train mode always."""

    def train(self, mode=True):
        super().train(mode)
        self[1].train()
        return self


@pytest.mark.parametrize("engine", ["batched", "in_place"])
def test_a_part_that_stays_in_train_mode_is_in_the_way_of_no_engine(engine):
    model = Restless(nn.Linear(5, 3), nn.Dropout(0.0), nn.Linear(3, 1))
    before = memory(model)
    slt.estimate_llc(model, data(), squares, num_draws=20, num_warmup=20, engine=engine)
    assert_unchanged(model, before)


def test_a_method_of_one_object_counts_as_well():
    model = nn.Linear(5, 1)
    model.train = lambda mode=True: model.weight.data.mul_(2)
    before = memory(model)
    with pytest.raises(ValueError, match=r"it \(Linear\) changes weight when"), preserved_module(model, eval_mode=True):
        pass
    assert_unchanged(model, before)


def test_a_copy_is_made_of_no_weights_that_nothing_writes(monkeypatch):
    model = Frozen(nn.BatchNorm1d(5), nn.Dropout(0.1), nn.Linear(5, 1))
    copied = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda tensor: copied.append(tensor.shape) or clone(tensor))
    monkeypatch.setattr(Frozen, "train", lambda self, mode=True: nn.Module.train(self, mode))
    with preserved_module(model, eval_mode=True):
        pass
    assert model[2].weight.shape not in copied


def test_buffers_that_a_forward_pass_changes_do_not_break_the_graph_of_another():
    model, twin = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
    x, mean = torch.randn(40, 5, requires_grad=True), model.running_mean
    loss = model(x).pow(3).sum()
    kept = copy.deepcopy(model.state_dict())
    with preserved_module(model, eval_mode=False):
        model(x + 1)
    with preserved_module(model, eval_mode=False), preserved_module(model, eval_mode=False):
        model(x + 2)
    assert model.running_mean is mean
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.equal(gradient, torch.autograd.grad(twin(x).pow(3).sum(), x)[0])


def test_a_change_of_buffers_by_someone_else_is_still_noticed():
    model, x = nn.BatchNorm1d(5), torch.randn(40, 5, requires_grad=True)
    loss = model(x).pow(3).sum()
    with preserved_module(model, eval_mode=False):
        model(x + 1)
    model.running_mean.zero_()
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()
