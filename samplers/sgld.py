"""Stochastic gradient Langevin dynamics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.kernel import Info, Kernel, add_scaled_, check_positive, square_root
from samplers.noise import ColumnStreams, shards_of, standard_normal
from samplers.one_pass import in_one_pass, langevin_update_
from samplers.potential import Batch, Potential, per_chain, sum_over_pieces
from samplers.preconditioner import Identity, Preconditioner


@dataclass
class SGLDState:
    """The position ``(chains, dim)``, and the random streams of a long vector; none where one pass makes the noise."""

    position: Tensor
    streams: ColumnStreams | None


def sgld(step_size: float | Tensor, preconditioner: Preconditioner | None = None) -> Kernel:
    r"""Stochastic gradient Langevin dynamics, with a frozen preconditioner.

    .. math:: w \leftarrow w - \tfrac{\epsilon}{2} P \, \widehat{\nabla U}(w) + \sqrt{\epsilon P}\,\xi,
              \qquad \xi \sim N(0, I)

    Targets exp(−U) as ε → 0 and is biased at any finite ε. On a quadratic with curvature A = nβh + γ along an
    eigenvector of P = I, and additive gradient noise of variance s², the law is Gaussian with variance
    (1 + εs²/4) / (A (1 − εA/4)), and stable for εA < 4.

    The bias is measured, not only known on quadratics. In a stationary chain E‖w − w*‖² does not change, hence
    E⟨w − w*, ∇U⟩ = dim + (ε/4) E‖ĝ‖²_P, ĝ being the stochastic ∇U; without discretisation it is dim. Along an
    eigenvector of a quadratic this is an excess of (ε/8) nβh (A + s²)/A / (1 − εA/4) in nβ·E[loss], of which
    ``Info.discretization_bias`` = (ε/8) ⟨nβ ∇L̂, ĝ⟩_P is an unbiased estimate in stiff directions and an upper
    bound, by the gradient noise, in flat ones.

    Args:
        step_size: ε, a number or ``(chains, 1)``. Units of position² (U is dimensionless).
        preconditioner: P, frozen; the identity by default.

    Returns:
        A kernel that takes minibatch or full-data gradients.

    Raises:
        ValueError: ``step_size`` is not finite and positive, or has another shape than those.

    Source:
        Welling & Teh 2011, eq. 4 (there ε multiplies the gradient of the log posterior by ½, as here).
    """
    step_size = check_positive("step_size", step_size)
    metric = preconditioner if preconditioner is not None else Identity()
    drift_scale = step_size * -0.5
    noise_scale = square_root(step_size)
    bias_scale = step_size.squeeze(-1) * 0.125 if isinstance(step_size, Tensor) else step_size * 0.125

    def init(position: Tensor, potential: Potential) -> SGLDState:
        alone = in_one_pass(position, potential, metric, step_size)
        return SGLDState(position, None if alone else ColumnStreams(shards_of(potential)))

    @torch.no_grad()
    def step_(state: SGLDState, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        position = state.position
        loss, gradient = potential.loss_and_grad(position, batch)
        streams = state.streams
        if streams is None:
            energy, inner = langevin_update_(position, gradient, potential, metric, float(step_size), generator)
            return Info(loss, energy, torch.ones_like(energy), inner * (bias_scale * per_chain(potential.n_beta)))

        def update_(columns: slice, own: torch.Generator) -> tuple[Tensor, Tensor]:
            part, loss_gradient = position[:, columns], gradient[:, columns]
            drift = loss_gradient * potential.n_beta
            energy = potential.localizer.add_gradient_(drift, part, columns)
            metric.apply_(drift, columns)
            inner = torch.linalg.vecdot(loss_gradient, drift)
            add_scaled_(part, drift, drift_scale)
            add_scaled_(part, metric.apply_root_(standard_normal(part, own), columns), noise_scale)
            return energy, inner

        energies, inner_products = zip(
            *streams.map(update_, position, generator, whole=metric.mixes_columns), strict=True
        )
        energy = sum_over_pieces(potential, energies)
        inner = sum_over_pieces(potential, inner_products)
        return Info(loss, energy, torch.ones_like(energy), inner * (bias_scale * per_chain(potential.n_beta)))

    settings = {"step_size": step_size, "preconditioner": preconditioner}
    return Kernel(init, step_, "sgld", settings, sgld, exact=False)
