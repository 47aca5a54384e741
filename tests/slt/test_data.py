"""Data in every usual form gives the same samples."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)  # fmt: skip

from slt.data import BatchData, TensorData, as_data, batch_size_of
from tests.statistics import assert_independent_mean

CPU = torch.device("cpu")
X = torch.arange(40.0).view(20, 2)
Y = torch.arange(20)


class Dictionaries(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"x": X[index], "labels": Y[index]}


def pairs(data):
    """The samples of a data set as sorted tuples, in whatever order it holds them."""
    samples = []
    for chunk in data.chunks(7):
        x, y = chunk.data.values() if isinstance(chunk.data, dict) else chunk.data
        samples += [(*row.tolist(), int(label)) for row, label in zip(x, y, strict=True)]
    return sorted(samples)


FORMS = {
    "tuple": lambda: (X, Y),
    "dict": lambda: {"x": X, "labels": Y},
    "dataset": lambda: TensorDataset(X, Y),
    "dataset of dicts": Dictionaries,
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=6),
    "shuffling loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True),
    "loader that drops the last": lambda: DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True, drop_last=True),
    "loader with a batch sampler": lambda: DataLoader(
        TensorDataset(X, Y), batch_sampler=BatchSampler(RandomSampler(Y), 6, drop_last=False)
    ),
    "list of batches": lambda: [(X[:13], Y[:13]), (X[13:], Y[13:])],
    "list of dicts": lambda: [{"x": X[:13], "labels": Y[:13]}, {"x": X[13:], "labels": Y[13:]}],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_samples(form):
    data = as_data(FORMS[form](), CPU)
    assert isinstance(data, TensorData)
    assert data.size == 20
    assert pairs(data) == pairs(as_data((X, Y), CPU))
    assert sum(chunk.weight for chunk in data.chunks(7)) == pytest.approx(1.0)


@pytest.mark.parametrize("shuffle_twice", [False, True])
def test_reading_a_loader_leaves_its_generators_alone(shuffle_twice):
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True, generator=generator)
    expected = [batch[1].tolist() for batch in loader]
    generator.manual_seed(5)
    as_data(loader, CPU)
    assert [batch[1].tolist() for batch in loader] == expected
    weighted = torch.Generator().manual_seed(6)
    sampler = WeightedRandomSampler(torch.ones(20), 50, generator=weighted)
    before = weighted.get_state()
    assert as_data(DataLoader(TensorDataset(X, Y), batch_size=6, sampler=sampler), CPU).size == 50
    assert torch.equal(weighted.get_state(), before)


@pytest.mark.parametrize("limit", [2 << 30, 100])
def test_the_sampler_within_a_batch_sampler_says_which_samples_there_are(limit, monkeypatch):
    monkeypatch.setattr("slt.data.MEMORY_LIMIT", limit)

    def read(sampler):
        return as_data(DataLoader(TensorDataset(X, Y), batch_sampler=BatchSampler(sampler, 5, drop_last=True)), CPU)

    for sampler in (SubsetRandomSampler(range(12)), RandomSampler(range(12)), range(12)):
        data = read(sampler)
        assert data.size == 12
        assert pairs(data) == pairs(as_data((X[:12], Y[:12]), CPU))
        batches = data.epochs(4)(torch.Generator().manual_seed(0), 1)
        assert {int(label) for _ in range(9) for label in next(batches).data[1].flatten()} == set(range(12))
    generator = torch.Generator().manual_seed(6)
    before = generator.get_state()
    weights = torch.tensor([1.0] * 3 + [0.0] * 17)
    data = read(WeightedRandomSampler(weights, 50, generator=generator))
    assert data.size == 50
    assert {label for *_, label in pairs(data)} == {0, 1, 2}
    assert torch.equal(generator.get_state(), before)


class OwnOrder(Sampler):
    """An order by a generator of its own, under a name of its own."""

    def __init__(self, dataset, size=20):
        self.dataset, self.size = dataset, size
        self.rng = np.random.default_rng(0)

    def __iter__(self):
        return iter(self.rng.permutation(self.size).tolist())

    def __len__(self):
        return self.size


class OwnBatches(OwnOrder):
    def __iter__(self):
        return iter(self.rng.permutation(self.size).reshape(-1, 5).tolist())


@pytest.mark.parametrize("limit", [2 << 30, 100])
@pytest.mark.parametrize("name", ["sampler", "batch_sampler", "inner"])
def test_reading_a_loader_leaves_what_its_sampler_draws_from_alone(name, limit, monkeypatch):
    monkeypatch.setattr("slt.data.MEMORY_LIMIT", limit)
    dataset = TensorDataset(X, Y)
    dataset.open_file = (number for number in ())  # which cannot be copied
    sampler = OwnBatches(dataset) if name == "batch_sampler" else OwnOrder(dataset)
    arguments = {
        "sampler": {"sampler": sampler, "batch_size": 5},
        "batch_sampler": {"batch_sampler": sampler},
        "inner": {"batch_sampler": BatchSampler(sampler, 5, drop_last=False)},
    }[name]
    loader = DataLoader(dataset, **arguments)
    before = sampler.rng.bit_generator.state
    data = as_data(loader, CPU)
    assert pairs(data) == pairs(data) == pairs(as_data((X, Y), CPU))
    next(data.minibatches(5)(torch.Generator().manual_seed(0), 1))
    assert sampler.rng.bit_generator.state == before


def test_a_sampler_that_cannot_be_copied_is_read_with_its_generator_preserved():
    sampler = WeightedRandomSampler(torch.ones(20), 50, generator=torch.Generator().manual_seed(6))
    sampler.open_file = (number for number in ())
    before = sampler.generator.get_state()
    loader = DataLoader(TensorDataset(X, Y), batch_sampler=BatchSampler(sampler, 5, drop_last=False))
    assert as_data(loader, CPU).size == 50
    assert torch.equal(sampler.generator.get_state(), before)


def test_minibatches_are_of_independent_samples():
    """Of 20, in pairs of batches of five: a pair that has a sample twice, and how often each one comes."""
    batches = as_data((X, Y), CPU).minibatches(5)(torch.Generator().manual_seed(0), 3)
    taken = torch.stack([next(batches).data[1] for _ in range(4000)])  # (step, chain, sample)
    counts = torch.stack([(taken == label).sum(-1) for label in range(20)], -1).double()
    # binomial numbers of five draws at 1/20: their mean, and their products within a batch, between steps and chains
    for label in range(20):
        assert_independent_mean(counts[..., label].flatten().numpy(), 0.25, deviation=(5 * 0.05 * 0.95) ** 0.5)
    centred = counts - 0.25
    assert_independent_mean(centred.square().sum(-1).flatten().numpy(), 20 * 5 * 0.05 * 0.95)
    for one, other in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert_independent_mean((one * other).sum(-1).flatten().numpy(), 0.0)
    x, y = next(batches).data
    torch.testing.assert_close(x[..., 0], 2.0 * y)


def test_minibatches_of_all_samples_have_each_once():
    for size in (None, 20, 99):
        batches = as_data((X, Y), CPU).minibatches(size)(torch.Generator().manual_seed(0), 2)
        assert all(sorted(row.tolist()) == list(range(20)) for row in next(batches).data[1])


def test_epochs_visit_every_sample_once_independently_per_chain():
    data = as_data((X, Y), CPU)
    batches = data.epochs(5)(torch.Generator().manual_seed(0), 3)
    epoch = [next(batches).data for _ in range(4)]
    labels = torch.cat([y for _, y in epoch], 1)
    assert labels.shape == (3, 20)
    assert all(sorted(row.tolist()) == list(range(20)) for row in labels)
    assert labels.unique(dim=0).shape[0] == 3
    for x, y in epoch:
        torch.testing.assert_close(x[..., 0], 2.0 * y)
    second = torch.cat([next(batches).data[1] for _ in range(4)], 1)
    assert not torch.equal(labels, second)


def test_leftover_samples_are_others_each_epoch():
    batches = as_data((X, Y), CPU).epochs(7)(torch.Generator().manual_seed(0), 1)
    seen = torch.cat([next(batches).data[1][0] for _ in range(40)])
    assert len(set(seen.tolist())) == 20


RAGGED = [(torch.ones(3, 5), torch.zeros(3)), (torch.ones(1, 2), torch.zeros(1)), (torch.ones(2, 4), torch.zeros(2))]


def test_batches_of_unequal_shape_are_kept_and_weighted_by_samples():
    data = as_data(RAGGED, CPU)
    assert isinstance(data, BatchData)
    assert data.size == 6
    assert [chunk.weight for chunk in data.chunks(1)] == [0.5, 1 / 6, 2 / 6]
    batches = data.epochs(None)(torch.Generator().manual_seed(0), 1)
    epoch = list(itertools.islice(batches, 3))
    assert sorted(batch_size_of(batch.data) for batch in epoch) == [1, 2, 3]
    assert sum(batch.weight for batch in epoch) / 3 == pytest.approx(1.0)
    assert all(batch.weight == batch_size_of(batch.data) * 3 / 6 for batch in epoch)


def test_batches_of_the_users_are_drawn_independently():
    """Three of them: each in a third of the draws, and after each of them as often as after the others."""
    batches = as_data(RAGGED, CPU).minibatches(None)(torch.Generator().manual_seed(0), 1)
    sizes = np.array([batch_size_of(next(batches).data) for _ in range(9000)])
    for size in (1, 2, 3):
        assert_independent_mean(sizes == size, 1 / 3, deviation=2**0.5 / 3)
        for before in (1, 2, 3):
            of_pairs = (sizes[1::2] == size) & (sizes[::2] == before)
            assert_independent_mean(of_pairs, 1 / 9, deviation=8**0.5 / 9)


def test_what_does_not_fit_is_streamed(monkeypatch):
    monkeypatch.setattr("slt.data.MEMORY_LIMIT", 100)
    loader = DataLoader(TensorDataset(X, Y), batch_size=6)
    data = as_data(loader, CPU)
    assert isinstance(data, BatchData)
    assert pairs(data) == pairs(as_data((X, Y), CPU))
    batches = data.epochs(None)(torch.Generator(), 1)
    assert sum(batch_size_of(next(batches).data) for _ in range(4)) == 20


def test_streamed_chains_have_each_their_own_order(monkeypatch):
    monkeypatch.setattr("slt.data.MEMORY_LIMIT", 100)
    data = as_data(DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True), CPU)
    epochs = []
    for seed in (0, 1, 0):
        batches = data.epochs(None)(torch.Generator().manual_seed(seed), 1)
        epochs.append(torch.cat([next(batches).data[1] for _ in range(8)]).tolist())
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0][:20]) == list(range(20))
    assert epochs[0][:20] != epochs[0][20:]
    batches = data.minibatches(None)(torch.Generator().manual_seed(0), 1)
    drawn = torch.cat([next(batches).data[1] for _ in range(400)])  # 2,000 samples
    assert len(set(drawn[:20].tolist())) < 20  # all twenty once by chance: 20!/20²⁰, one in 4·10⁷
    for label in range(20):
        assert_independent_mean((drawn == label).numpy(), 0.05, deviation=(0.05 * 0.95) ** 0.5)


def test_none_and_held_data_pass_through():
    assert as_data(None, CPU) is None
    held = as_data((X, Y), CPU)
    assert as_data(held, CPU) is held


class Endless(IterableDataset):
    def __iter__(self):
        return iter([1])


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        ((X, Y[:3]), ValueError, "common number of samples"),
        ((X[:0], Y[:0]), ValueError, "empty"),
        ((), ValueError, "empty"),
        ([], ValueError, "empty"),
        ([X, Y], TypeError, "bare tensors"),
        (Endless(), TypeError, "IterableDataset|Endless"),
        ((batch for batch in [(X, Y)]), ValueError, "no length"),
        (3, TypeError, "int"),
        (["a"], TypeError, "no tensor"),
        ([{"w": torch.ones(3), "x": X, "y": Y}], ValueError, r"shapes \[\(3,\), \(20, 2\)"),
    ],
)
def test_bad_data_is_refused(data, error, match):
    with pytest.raises(error, match=match):
        as_data(data, CPU)


def test_a_list_of_samples_is_told_from_a_list_of_batches():
    with pytest.raises(ValueError, match=r"shapes \[\(3,\), \(\)\], which looks like one sample with its target"):
        as_data(list(TensorDataset(torch.randn(9, 3), torch.randn(9))), CPU)


@pytest.mark.parametrize("length", [None, 10])
def test_data_without_an_end_are_refused(length, monkeypatch):
    """An endless loader was read for ever, without a word."""

    class Endless(IterableDataset):
        def __iter__(self):
            return itertools.repeat(torch.zeros(3))

    class Sized:
        def __len__(self):
            return length

        def __iter__(self):
            return itertools.repeat((torch.zeros(4, 3),))

    monkeypatch.setattr("slt.data.MOST_BATCHES", 100)
    data = DataLoader(Endless(), batch_size=4) if length is None else Sized()
    with pytest.raises(ValueError, match=f"gave more than {length or 100} batches"):
        as_data(data, CPU)
