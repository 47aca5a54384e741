"""Tempered posterior sampling over flat vectors: kernels, a run loop and diagnostics on plain tensors.

Knows tensors and potentials, and nothing of networks. See :func:`sample` for the whole in one call.
"""

from samplers.adaptation import Adapted, accept_at_rate, limit_bias
from samplers.baoab import baoab
from samplers.diagnostics import Diagnostics, diagnose
from samplers.hmc import hmc
from samplers.kernel import Info, Kernel, State
from samplers.mala import mala
from samplers.potential import GaussianLocalizer, Localizer, Potential, Unlocalized, from_log_density
from samplers.preconditioner import Diagonal, Identity, Preconditioner
from samplers.run import Run, sample
from samplers.sghmc import sghmc
from samplers.sgld import sgld
from samplers.sgnht import sgnht
from samplers.tempering import by_rung, ladder_potential, replica_exchange
from samplers.trace import Divergence, Trace

__all__ = [
    "Adapted",
    "Diagnostics",
    "Diagonal",
    "Divergence",
    "GaussianLocalizer",
    "Identity",
    "Info",
    "Kernel",
    "Localizer",
    "Potential",
    "Preconditioner",
    "Run",
    "State",
    "Trace",
    "Unlocalized",
    "accept_at_rate",
    "baoab",
    "by_rung",
    "diagnose",
    "from_log_density",
    "hmc",
    "ladder_potential",
    "limit_bias",
    "mala",
    "replica_exchange",
    "sample",
    "sghmc",
    "sgld",
    "sgnht",
]
