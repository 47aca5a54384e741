"""The metric of the localiser, found from the network: the curvature of the loss at the anchor, weight by weight."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from slt.arguments import WeightsError
from slt.data import Data
from slt.hessian import Hessian
from slt.loss import LossFn
from slt.metric_floor import LEAST_SHARE, floored_curvature
from slt.parameters import SampledParameters

METRICS = ("identity", "curvature")
# So many samples tell the curvature of a weight to about √(2/2048) = 3 %. The metric states a prior: it has to be
# covariant, which it is on any samples, more than exact.
MOST_SAMPLES = 2048
# Up to so many weights the diagonal is computed entry by entry: 2 · 4,096 gradients of 2,048 samples are a minute of
# one core. Random probes beyond.
EXACT_DIM = 4096
PROBED_SAMPLES = 512  # the probes' own error is larger than theirs
PROBES = (32, 96)  # of the rounds; the second is scaled by what the first found


class Metric(NamedTuple):
    """The metric of a localiser.

    Attributes:
        name: ``"identity"``, ``"curvature"`` or ``"given"``.
        diagonal: D, ``(dim,)``, positive; None for the identity.
        reason: How it was found.
        num_gradients: Spent to find it, in full-data gradients.
    """

    name: str
    diagonal: Tensor | None
    reason: str
    num_gradients: float = 0.0


def as_metric(metric: str | Tensor | Metric, like: Tensor) -> Metric | None:
    """The metric that was asked for, or None where it must be found: ``"curvature"``.

    Args:
        metric: ``"identity"``, ``"curvature"`` or D, ``(dim,)``; or one that was found elsewhere, whose name it keeps.
        like: w*, ``(dim,)``.

    Returns:
        The metric, or None.

    Raises:
        ValueError: The name is unknown, or D is of another shape than w*, or an entry is not finite and positive.
    """
    if isinstance(metric, Metric) and metric.diagonal is not None:
        checked = as_metric(metric.diagonal, like)
        assert checked is not None
        return metric._replace(diagonal=checked.diagonal)
    if isinstance(metric, Tensor):
        diagonal = metric.detach().to(like)
        if diagonal.shape != like.shape:
            raise ValueError(
                f"metric: shape {tuple(metric.shape)}; expected {tuple(like.shape)}, in the order of "
                "slt.parameters.SampledParameters(model).names."
            )
        wrong = int((~(torch.isfinite(diagonal) & (diagonal > 0))).sum())
        if wrong:
            raise ValueError(
                f"metric: {wrong} of {diagonal.numel()} entries are not finite and positive; expected the curvature "
                "that the localiser has in each weight, at γ = 1."
            )
        return Metric("given", diagonal.clone(), "asked for: a vector")
    if not isinstance(metric, str) or metric not in METRICS:
        raise ValueError(f"metric: {metric!r}; expected 'identity', 'curvature' or a tensor of shape (dim,).")
    return Metric("identity", None, "isotropic, the field's convention") if metric == "identity" else None


def curvature_metric(model: nn.Module, data: Data | None, loss_fn: LossFn, sampled: SampledParameters) -> Metric:
    r"""The diagonal of the Hessian of the loss at the module's weights, by its size, with a covariant floor.

    .. math:: D_i = \max\Bigl( \Bigl|\frac{\partial^2 L}{\partial w_i^2}(w^*)\Bigr|,\ \text{floor}_i \Bigr)

    Where the network computes the same after w_i → s·w_i, for some i, the curvature becomes D_i/s² there, for the
    samples at hand and not only on average: Σ D_i (w_i − w*_i)² does not know s. That holds for the layers of a ReLU
    network, multiplied by α and 1/α, for its single units, and before a normalisation. At γ = 1 the localiser
    is as strong as one observation: the unit information prior, with only the diagonal kept.

    Entry by entry up to 4,096 weights. Beyond, by random signs z, D_i ≈ mean of z_i (H v)_i / s_i with v = s·z: first
    with s the root mean square of the weights of each tensor, and then with s = D^{-1/2} of that. An entry alone would
    have a relative error of √(Σ_j H_ij² / (H_ii H_jj) / 96), which is one on a network of 9,000 weights. Therefore D
    is, tensor by tensor, the product of its row means and its column means in units of 1/s², and the mean of a vector.
    Layers are followed in every realisation; single units only as far as that product describes D. Signs are the
    same whatever the seed of the estimate.

    Directions without curvature: see :func:`slt.metric_floor.floored_curvature`.

    Args:
        model: The module, at w*, in the mode in which it will be sampled; inside ``sampled.borrowed()``.
        data: As ``slt.data.as_data(data, device)`` holds it, or None for an exact loss. At most 2,048 samples of it
            are used, 512 with random signs, always the same.
        loss_fn: The loss.
        sampled: The sampled parameters.

    Returns:
        D, how it was found, and what it cost.

    Raises:
        ValueError: The loss cannot be differentiated twice, or its curvature is not finite.

    Source:
        Kass & Wasserman 1995 (unit information prior); Hutchinson 1990 and Bekas, Kokiopoulou & Saad 2007 (diagonal by
        random signs).
    """
    probed = sampled.dim > EXACT_DIM
    hessian = Hessian(model, data, loss_fn, sampled, PROBED_SAMPLES if probed else MOST_SAMPLES)
    anchor = hessian.anchor
    if probed:
        found = torch.ones_like(anchor)
        scale = _sizes(sampled, anchor)
        for count in PROBES:
            relative = _checked(hessian.probed_diagonal(scale, count) * scale.square())
            found = (_smoothed(sampled, relative) / scale.square()).abs()
            scale = floored_curvature(sampled, found, anchor).rsqrt().to(anchor)
    else:
        found = _checked(hessian.diagonal()).abs()
    diagonal = floored_curvature(sampled, found, anchor)
    raised = int((found < diagonal * (1 - 1e-6)).sum())
    reason = (
        f"the Hessian's diagonal at w*, {f'by {PROBES[1]} random probes' if probed else 'entry by entry'}, of "
        f"{'the exact loss' if data is None else f'{hessian.num_samples:,} samples'}; "
        + (f"{raised} of {sampled.dim} entries are a floor: " if raised else "no entry needed the floor of ")
        + f"{LEAST_SHARE} of row × column, or 1/mean(w*²) without any curvature"
    )
    share = 1.0 if data is None else hessian.num_samples / data.size
    return Metric("curvature", diagonal.to(anchor), reason, hessian.num_gradients * share)


def _checked(diagonal: Tensor) -> Tensor:
    if not bool(torch.isfinite(diagonal).all()):
        raise WeightsError(
            f"metric: 'curvature', but {int((~torch.isfinite(diagonal)).sum())} of {diagonal.numel()} second "
            "derivatives of the loss are not finite at the anchor. Look for NaN or infinity in the data, or give a "
            "metric as a tensor."
        )
    return diagonal


def _smoothed(sampled: SampledParameters, relative: Tensor) -> Tensor:
    """Of each tensor, row mean × column mean / mean: the noise of single entries is as large as they are."""
    parts = []
    for part in sampled.views(relative):
        matrix = part.reshape(part.shape[0] if part.ndim else 1, -1)
        mean = matrix.mean()
        if matrix.shape[1] > 1 and bool(mean != 0):
            parts.append((matrix.mean(1, keepdim=True) * matrix.mean(0) / mean).flatten())
        else:
            parts.append(mean.expand(part.numel()))
    return torch.cat(parts)


def _sizes(sampled: SampledParameters, anchor: Tensor) -> Tensor:
    """The root mean square of the weights of its tensor, for each weight; one where all are zero."""
    sizes = [_root_mean_square(part).expand(part.numel()) for part in sampled.views(anchor)]
    return torch.cat(sizes)


def _root_mean_square(part: Tensor) -> Tensor:
    """Of a tensor's weights; one where all are zero."""
    size = part.square().mean().sqrt()
    return torch.where(size > 0, size, torch.ones_like(size))
