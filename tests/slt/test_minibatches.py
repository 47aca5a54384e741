"""Batches whose place is saved: they go on as if nothing had happened."""

import io

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import samplers
import slt
from slt.data import as_data

CPU = torch.device("cpu")
X, Y = torch.arange(40.0).view(20, 2), torch.arange(20)
RAGGED = [(torch.ones(3, 5), torch.zeros(3)), (torch.ones(1, 2), torch.zeros(1)), (torch.ones(2, 4), torch.zeros(2))]


def labels(batch):
    return batch.data[1].flatten().tolist(), batch.weight


@pytest.mark.parametrize("kind", ["in memory", "ragged", "streamed"])
@pytest.mark.parametrize("taken", [0, 1, 3, 4, 6])
def test_batches_go_on_where_they_were(kind, taken, monkeypatch):
    if kind == "streamed":
        monkeypatch.setattr("slt.data.MEMORY_LIMIT", 100)
    source = {
        "in memory": (X, Y),
        "ragged": RAGGED,
        "streamed": DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True),
    }[kind]
    data = as_data(source, CPU)
    chains = 2 if kind == "in memory" else 1

    def batches(generator):
        return data.minibatches(5 if kind == "in memory" else None)(generator, chains)

    generator = torch.Generator().manual_seed(0)
    whole = batches(generator)
    for _ in range(taken):
        next(whole)
    stored, random_state = whole.state_dict(), generator.get_state()
    expected = [labels(next(whole)) for _ in range(12)]
    elsewhere = torch.Generator().manual_seed(99)
    again = batches(elsewhere)
    again.load_state_dict(stored)
    elsewhere.set_state(random_state)
    assert [labels(next(again)) for _ in range(12)] == expected


def test_a_run_on_a_network_is_saved_and_continued_bitwise():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    x = torch.randn(50, 2)
    data = (x, x.sum(-1, keepdim=True) + 0.1 * torch.randn(50, 1))

    def loss_fn(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    def run(potential):
        return samplers.Run(
            samplers.sgld(1e-3), potential, potential.anchor, batches=potential.minibatches(8), num_chains=3,
            num_warmup=4, keep_positions=True,
        )  # fmt: skip

    with slt.LocalPosterior(model, data, loss_fn, n_beta=10.0, localization=1.0) as potential:
        whole, broken = run(potential), run(potential)
        whole.draw(40)
        broken.draw(15)
        file = io.BytesIO()
        torch.save(broken.state_dict(), file)
    with slt.LocalPosterior(model, data, loss_fn, n_beta=10.0, localization=1.0) as potential:
        other = run(potential)
        other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        other.draw(25)
    np.testing.assert_array_equal(other.trace().loss, whole.trace().loss)
    assert torch.equal(other.trace().positions, whole.trace().positions)
