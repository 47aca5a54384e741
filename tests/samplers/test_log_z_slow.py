"""Log Z of known cases three ways: thermodynamic integration, tempered SMC and quadrature, within their errors."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import norm
from scipy.stats import t as student

import samplers
from samplers import by_rung, hmc, ladder_potential, replica_exchange
from samplers.evidence import log_z_by_thermodynamic_integration, loss_moments
from samplers.ladder import predicted_round_trip_rate
from samplers.potential import LogDensityPotential
from samplers.smc import tempered_smc
from slt import known
from slt.known.quadrature import TemperedLaw, tempered_mean
from tests.statistics import Z

ROWS = (  # of shared/truth/finite_temperature.json, by the registry's names: nβ, γ, and what is published of nβ·E[K]
    ("quadratic", 217.1472409516259, 100.0, 0.34234452),
    ("quartic", 1e3, 1.0, 0.24734486),
    ("poly_xy2", 100.0, 1.0, 0.35420383),
    ("poly_xy2", 1e6, 1.0, 0.43754261),
    ("poly_x4+y2", 1e3, 10.0, 0.72241517),
    ("poly_cusp2", 1e3, 10.0, 0.3076806),
    ("tanh_one_unit_zero", 1e3, 1.0, 0.36948775),
    ("tanh_one_unit", 100.0, 1.0, 0.55805303),
    ("relu_nb_H1_true1", 1e3, 100.0, 0.38594287),
    ("half_cube", 100.0, 1.0, 0.07673707),
    ("outer_product_2_2", 100.0, 1.0, 0.81834832),
    ("gmm_chi_square", 1e3, 10.0, 0.26148738),
)
NUM_LADDERS = NUM_POPULATIONS = 16
STANDARD_ERRORS = float(student.isf(norm.sf(Z), NUM_LADDERS - 1))  # t-quantile with the false-alarm rate of Z
TAIL = 45.0  # γR²/2 at the edge of the box that stands for the whole space


class Answer(NamedTuple):
    log_z: float
    standard_error: float
    quadrature_error: float = 0.0


class Measured(NamedTuple):
    truth: float
    integral: Answer
    smc: Answer
    integral_of_smc: Answer
    swap_rates: np.ndarray
    round_trips: np.ndarray
    predicted_round_trips: float
    problems: tuple


def log_z_by_quadrature(case, n_beta, localization):
    """log Z(nβ)/Z(0) and nβ·E[K], block by block."""
    log_z = energy = 0.0
    for block in case.blocks:
        if block.curvatures:
            for curvature in block.curvatures:
                log_z -= 0.5 * math.log1p(n_beta * curvature / localization)
                energy += 0.5 * n_beta * curvature / (n_beta * curvature + localization)
            continue
        dim = len(block.anchor)
        powers = torch.tensor(block.powers or (0,) * dim, dtype=torch.float64)
        reach = math.sqrt(2 * (TAIL + 0.5 * dim * math.log1p(n_beta / localization)) / localization)
        upper = torch.full((dim,), reach, dtype=torch.float64)
        law = TemperedLaw(excess=block.excess, n_beta=n_beta, localization=localization,
                          anchor=torch.tensor(block.anchor, dtype=torch.float64), powers=powers,
                          lower=torch.where(powers > 0, 0.0, -upper), upper=upper)  # fmt: skip
        mean = tempered_mean(law, 1e-7, 50_000_000)
        whole = sum(math.lgamma((power + 1) / 2) - (power + 1) / 2 * math.log(localization / 2)
                    - (math.log(2) if power else 0.0) for power in powers.tolist())  # fmt: skip
        log_z += math.log(mean.normalizer) - whole
        energy += mean.value
    return log_z, energy


def measure(name, n_beta, localization, published):
    """All of it, for one row."""
    case = known.case(name)
    truth, energy = log_z_by_quadrature(case, n_beta, localization)
    np.testing.assert_allclose(energy, published, rtol=1e-6)  # it is that row

    def kernel_at(inverse):
        return hmc((0.15 / (localization + inverse) ** 0.5, localization**-0.5 + 0 * inverse), 5)

    localizer = samplers.GaussianLocalizer(case.anchor, localization)
    potential = LogDensityPotential(lambda w: -case.excess_flat(w), case.dim, n_beta, localizer)
    hot = min(localization, n_beta / 4)
    count = math.ceil(math.log(n_beta / hot, 3)) + 1
    ladder = torch.from_numpy(np.concatenate([[0.0, hot / 10], np.geomspace(hot, n_beta, count)]))
    rows = ladder_potential(potential, ladder, NUM_LADDERS)
    run = samplers.Run(replica_exchange(kernel_at(rows.n_beta), len(ladder)), rows, case.anchor,
                       num_chains=len(rows.n_beta), num_warmup=300)  # fmt: skip
    run.draw(2500)
    moments = loss_moments(by_rung(run.trace().loss, len(ladder)))
    integral = log_z_by_thermodynamic_integration(ladder, *moments)
    state = run.blocks[0].state
    found = tempered_smc(potential, kernel_at, num_populations=NUM_POPULATIONS, num_particles=512)
    of_smc = log_z_by_thermodynamic_integration(
        found.n_beta, found.mean_loss_by_population, found.variance_loss_by_population
    )
    rates = state.swap_rates.numpy()
    return Measured(
        truth,
        Answer(integral.log_z, integral.standard_error, integral.quadrature_error),
        Answer(found.log_z, found.log_z_standard_error),
        Answer(of_smc.log_z, of_smc.standard_error, of_smc.quadrature_error),
        rates,
        state.round_trips.numpy(),
        predicted_round_trip_rate(1 - rates) * 2800,
        found.problems,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n_beta", "localization", "published"), ROWS)
def test_three_ways_to_log_z_agree_within_their_errors(name, n_beta, localization, published):
    found = measure(name, n_beta, localization, published)
    assert not found.problems
    for answer in (found.integral, found.smc, found.integral_of_smc):
        assert answer.standard_error + answer.quadrature_error <= 0.08
        assert abs(answer.log_z - found.truth) <= STANDARD_ERRORS * answer.standard_error + answer.quadrature_error
    spread = math.hypot(found.integral.standard_error, found.smc.standard_error)
    difference = abs(found.integral.log_z - found.smc.log_z)
    assert difference <= STANDARD_ERRORS * spread + found.integral.quadrature_error
    assert found.swap_rates.min() > 0.3
    assert found.round_trips.min() > 30
    assert found.round_trips.mean() > 0.3 * found.predicted_round_trips
