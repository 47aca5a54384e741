"""Tempered posterior sampling over flat vectors: kernels, a run loop and diagnostics on plain tensors.

Knows tensors and potentials, and nothing of networks. See :func:`sample` for the whole in one call.
"""

from samplers.adam_sgld import adam_sgld
from samplers.adaptation import Adapted, accept_at_rate, limit_bias
from samplers.adjusted_mclmc import adjusted_mclmc
from samplers.ball import BallLocalizer
from samplers.baoab import baoab
from samplers.control_variates import control_variates
from samplers.cooling import Cooling, cool
from samplers.curvature import Curvature, curvature_preconditioner, hessian_products, whiten_curvature
from samplers.diagnostics import Diagnostics, diagnose
from samplers.dispersion import disperse
from samplers.energy_error import limit_energy_error
from samplers.evidence import ThermodynamicIntegral, log_z_by_thermodynamic_integration, loss_moments
from samplers.fisher_metric import fisher_metric
from samplers.hmc import hmc
from samplers.kernel import Info, Kernel, State
from samplers.kronecker import Kronecker, KroneckerBlock
from samplers.kronecker_metric import kronecker_metric
from samplers.ladder import SpacedLadder, spaced_ladder
from samplers.low_rank import LowRank
from samplers.mala import mala
from samplers.mclmc import mclmc
from samplers.measured_bias import limit_measured_bias
from samplers.metric_adaptation import gradient_metric, in_turn
from samplers.momentum_bias import limit_momentum_bias
from samplers.populations import PopulationFailure, SMCResult
from samplers.potential import GaussianLocalizer, Localizer, Potential, Unlocalized, from_log_density
from samplers.preconditioner import Diagonal, Identity, Preconditioner
from samplers.rmsprop_sgld import rmsprop_sgld
from samplers.run import Run
from samplers.sampling import sample
from samplers.scaled import ScaledPotential, natural_units
from samplers.sghmc import sghmc
from samplers.sgld import sgld
from samplers.sgnht import sgnht
from samplers.smc import tempered_smc
from samplers.step_range import accept_over_scales
from samplers.tempering import by_rung, ladder_potential, replica_exchange
from samplers.trace import Divergence, Trace

__all__ = [
    "Adapted",
    "BallLocalizer",
    "Cooling",
    "Curvature",
    "Diagnostics",
    "Diagonal",
    "Divergence",
    "GaussianLocalizer",
    "Identity",
    "Info",
    "Kernel",
    "Kronecker",
    "KroneckerBlock",
    "Localizer",
    "LowRank",
    "PopulationFailure",
    "Potential",
    "Preconditioner",
    "Run",
    "SMCResult",
    "ScaledPotential",
    "SpacedLadder",
    "State",
    "ThermodynamicIntegral",
    "Trace",
    "Unlocalized",
    "accept_at_rate",
    "accept_over_scales",
    "adam_sgld",
    "adjusted_mclmc",
    "baoab",
    "by_rung",
    "control_variates",
    "cool",
    "curvature_preconditioner",
    "diagnose",
    "disperse",
    "fisher_metric",
    "from_log_density",
    "gradient_metric",
    "hessian_products",
    "hmc",
    "in_turn",
    "kronecker_metric",
    "ladder_potential",
    "limit_bias",
    "limit_energy_error",
    "limit_measured_bias",
    "limit_momentum_bias",
    "log_z_by_thermodynamic_integration",
    "loss_moments",
    "mala",
    "mclmc",
    "natural_units",
    "replica_exchange",
    "rmsprop_sgld",
    "sample",
    "sghmc",
    "sgld",
    "sgnht",
    "spaced_ladder",
    "tempered_smc",
    "whiten_curvature",
]
