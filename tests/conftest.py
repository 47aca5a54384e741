"""Shared by all tests: one thread per worker, so that two workers fill two cores and results repeat."""

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(20)
