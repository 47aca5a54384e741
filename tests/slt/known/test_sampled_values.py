"""Every row of the table of exact values, sampled twice: by mixed-scale HMC, and by replica exchange.

Each row: within 4 standard errors of the exact value, which are at most 2 % of it. The same settings for all rows, by
rule from nβ and γ. ``--durations=0`` shows the time of each.
"""

import math

import numpy as np
import pytest
import torch

import samplers
from samplers import by_rung, diagnose
from slt.known import cases
from slt.known.table import computed_rows
from tests.statistics import MINIMUM_ESS, Z

pytestmark = pytest.mark.slow
ROWS = [
    pytest.param(case, row, id=f"{case.name} n_beta={row.n_beta:.4g} localization={row.localization:.3g}")
    for case in cases()
    if case.exact and not computed_rows(case.name)
    for row in case.exact
]


def test_the_table_has_all_its_rows():
    assert len(ROWS) == 33


def assert_value(energy, row):
    """Of nβ·K of every chain and draw, ``(chain, draw)``."""
    found = diagnose(energy)
    assert found.ess >= MINIMUM_ESS
    assert found.mcse <= 0.02 * row.value
    assert abs(found.mean - row.value) <= Z * found.mcse


def scales(n_beta, localization):
    """Step sizes from a seventh of the width of the stiffest wall, of curvature about nβ, to that of the localiser."""
    return 0.15 / (n_beta + localization) ** 0.5, localization**-0.5


@pytest.mark.parametrize(("case", "row"), ROWS)
def test_mixed_scale_hmc(case, row):
    """Paths that cross half the localiser at the larger steps that the walls accept, or thin arms take too long."""
    low, high = scales(row.n_beta, row.localization)
    num_steps = max(8, round(0.5 * (row.n_beta / row.localization) ** 0.5))
    num_draws = max(150, 16_000 // num_steps)
    trace = samplers.sample(
        samplers.hmc((low, high), num_steps),
        case.potential(row.n_beta, row.localization),
        case.anchor,
        num_chains=512,
        num_warmup=num_draws // 2,
        num_draws=num_draws,
    )
    assert_value(row.n_beta * trace.loss, row)


@pytest.mark.parametrize(("case", "row"), ROWS)
def test_replica_exchange(case, row):
    """Rungs a factor of three apart, from where the localiser is as strong as the loss."""
    hottest, num_ladders = min(row.localization, row.n_beta / 4), 16
    num_rungs = math.ceil(math.log(row.n_beta / hottest, 3)) + 1
    ladder = torch.from_numpy(np.geomspace(hottest, row.n_beta, num_rungs))
    low, high = scales(ladder.repeat(num_ladders)[:, None], row.localization)
    run = samplers.Run(
        samplers.replica_exchange(samplers.hmc((low, torch.full_like(low, high)), 5), num_rungs),
        samplers.ladder_potential(case.potential(row.n_beta, row.localization), ladder, num_ladders),
        case.anchor,
        num_chains=num_ladders * num_rungs,
        num_warmup=300,
    )
    run.draw(4000)
    assert_value(row.n_beta * by_rung(run.trace().loss, num_rungs)[-1], row)
    state = run.blocks[0].state
    assert float(state.swap_rates.min()) > 0.2
    assert int(state.round_trips.sum()) > 100
