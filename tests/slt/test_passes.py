"""How far the posterior reaches from w*: as far as the loss lets it, or the localiser."""

import math

import pytest
import torch
from torch import nn

import slt
from slt.passes import Passes

DIM = 8


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(DIM, dtype=torch.float64))


@pytest.mark.parametrize(
    ("curvature", "metric"),
    [(0.0, "identity"), (1e3, "identity"), (0.0, torch.full((DIM,), 25.0, dtype=torch.float64))],
)
def test_the_reach_is_that_of_loss_and_localiser(curvature, metric):
    posterior = slt.LocalPosterior(
        Weights(), None, lambda model: 0.5 * curvature * model.w.square().sum(), n_beta=10.0, localization=4.0,
        metric=metric,
    )  # fmt: skip
    scale = 1.0 if isinstance(metric, str) else 25.0
    exact = math.sqrt(DIM / (10.0 * curvature + 4.0 * scale))  # where ½(nβh + γD)r² is dim/2
    with posterior:
        aside = torch.zeros(DIM, dtype=torch.float64)
        aside[0] = 1.0
        assert exact <= Passes(posterior).reach(aside, None) < 2 * exact
