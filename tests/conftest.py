"""Shared by all tests: one thread per worker, so that two fill two cores, and nothing of a user's own settings."""

import matplotlib as mpl
import pytest
import torch

mpl.rcdefaults()
mpl.use("Agg")
torch.set_num_threads(1)
OF_TORCHRUN = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(20)


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """A test that wants processes starts them itself."""
    for name in OF_TORCHRUN:
        monkeypatch.delenv(name, raising=False)
