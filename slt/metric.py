"""The metric of the localiser, found from the network: the curvature of the loss at the anchor, weight by weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from slt.data import BatchData, Data, batch_size_of, map_tensors
from slt.engines import BatchedEngine
from slt.loss import LossFn, mean_loss
from slt.metric_floor import LEAST_SHARE, floored_curvature
from slt.minibatches import Minibatch
from slt.parameters import SampledParameters

METRICS = ("identity", "curvature")
# So many samples tell the curvature of a weight to about √(2/2048) = 3 %. The metric states a prior: it has to be
# covariant, which it is on any samples, more than exact.
MOST_SAMPLES = 2048
# Up to so many weights the diagonal is computed entry by entry: 2 · 4,096 gradients of 2,048 samples are a minute of
# one core. Random probes beyond.
EXACT_DIM = 4096
BLOCK = 32  # products at a time
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


def as_metric(metric: str | Tensor, like: Tensor) -> Metric | None:
    """The metric that was asked for, or None where it must be found: ``"curvature"``.

    Args:
        metric: ``"identity"``, ``"curvature"`` or D, ``(dim,)``.
        like: w*, ``(dim,)``.

    Returns:
        The metric, or None.

    Raises:
        ValueError: The name is unknown, or D is of another shape than w*, or an entry is not finite and positive.
    """
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
    if metric not in METRICS:
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
    with s the root mean square of the weights of each tensor, and then with s = D^{-1/2} of that, which makes the
    error of all entries alike, and covariant as well. An entry has then a relative error of
    √(Σ_j H_ij² / (H_ii H_jj) / 96), the same whatever the seed of the estimate.

    Directions without curvature: see :func:`slt.metric_floor.floored_curvature`.

    Args:
        model: The module, at w*, in the mode in which it will be sampled; inside ``sampled.borrowed()``.
        data: At most 2,048 samples of it are used, always the same.
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
    anchor = sampled.flatten()
    pieces = _samples(data, anchor.device)
    probed = sampled.dim > EXACT_DIM
    finder = _Curvature(model, data, loss_fn, sampled, anchor, pieces)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
        if probed:
            scale = torch.cat([_root_mean_square(part).expand(part.numel()) for part in sampled.views(anchor)])
            first = floored_curvature(sampled, finder.by_probes(scale, PROBES[0]), anchor)
            again = finder.by_probes(first.rsqrt().to(anchor), PROBES[1])
            diagonal = floored_curvature(sampled, again, anchor)
            how = f"by {PROBES[1]} random probes"
        else:
            diagonal = floored_curvature(sampled, finder.by_entry(), anchor)
            how = "entry by entry"
    looked = 1 if data is None else sum(batch_size_of(piece.data) for piece in pieces)
    share = 1.0 if data is None else looked / data.size
    of = "the exact loss" if data is None else f"{looked:,} samples"
    raised = int((finder.found < diagonal * (1 - 1e-6)).sum())
    reason = (
        f"the Hessian's diagonal at w*, {how}, of {of}; "
        + (f"{raised} of {sampled.dim} entries are a floor: " if raised else "no entry needed the floor of ")
        + f"{LEAST_SHARE} of row × column, or 1/mean(w*²) without any curvature"
    )
    return Metric("curvature", diagonal.to(anchor), reason, finder.num_gradients * share)


class _Curvature:
    """Diagonals of the Hessian from products with it, summed over the data."""

    def __init__(
        self,
        model: nn.Module,
        data: Data | None,
        loss_fn: LossFn,
        sampled: SampledParameters,
        anchor: Tensor,
        pieces: list[Minibatch],
    ):
        self.model, self.data, self.loss_fn = model, data, loss_fn
        self.sampled, self.anchor, self.pieces = sampled, anchor, pieces
        self.num_gradients = 0
        self.found = torch.zeros_like(anchor)
        self._together = True

    def by_entry(self) -> Tensor:
        """|∂²L/∂w_i²| for every i, ``(dim,)``."""
        dim = self.sampled.dim
        blocks = torch.arange(dim, device=self.anchor.device).split(BLOCK)
        total = torch.zeros_like(self.anchor)
        for gradient, at in self._gradients():
            for block in blocks:
                vectors = self.anchor.new_zeros(len(block), dim)
                vectors[torch.arange(len(block), device=block.device), block] = 1.0
                total[block] += self._products(gradient, at, vectors).gather(1, block.unsqueeze(1)).squeeze(1)
        return self._checked(total, dim)

    def by_probes(self, scale: Tensor, count: int) -> Tensor:
        """Its estimate from so many random signs, in units of ``scale``."""
        generator = torch.Generator(self.anchor.device).manual_seed(0)
        signs = torch.randint(2, (count, self.sampled.dim), generator=generator, device=self.anchor.device)
        signs = (2 * signs - 1).to(self.anchor)
        total = torch.zeros_like(self.anchor)
        for gradient, at in self._gradients():
            for part in signs.split(BLOCK):
                total += (self._products(gradient, at, part * scale) * part).sum(0) / scale / count
        return self._checked(total, count)

    def _checked(self, diagonal: Tensor, num_products: int) -> Tensor:
        self.num_gradients += 2 * num_products + 2  # a product is a pass forward and back through the gradient's graph
        if not bool(torch.isfinite(diagonal).all()):
            raise ValueError(
                f"metric: 'curvature', but {int((~torch.isfinite(diagonal)).sum())} of {diagonal.numel()} second "
                "derivatives of the loss are not finite at the anchor. Look for NaN or infinity in the data, or give "
                "a metric as a tensor."
            )
        self.found = diagonal.abs()
        return self.found

    def _gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Gradients of the pieces, and the point that they are functions of."""
        engine = BatchedEngine(self.model, self.data, self.loss_fn, self.sampled)
        rows = None if self.data is None else engine.max_samples(4 * BLOCK)
        for piece in self.pieces:
            for part in [piece] if rows is None or isinstance(self.data, BatchData) else _split(piece, rows):
                at = self.anchor.clone().requires_grad_()
                self.sampled.bind(self.sampled.views(at))
                loss = mean_loss(self.loss_fn, self.model, part.data, self.data is not None) * part.weight
                (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
                if _ends_in_an_error(gradient):
                    raise ValueError(_refusal("an operation in it has a first derivative only"))
                yield gradient, at

    def _products(self, gradient: Tensor, at: Tensor, vectors: Tensor) -> Tensor:
        """H v of each row, ``(k, dim)``."""
        if not gradient.requires_grad:  # the loss is linear in these weights
            return torch.zeros_like(vectors)

        def product(vector: Tensor, batched: bool) -> Tensor:
            (found,) = torch.autograd.grad(
                gradient, at, vector, retain_graph=True, is_grads_batched=batched, materialize_grads=True
            )
            return found

        if self._together:
            try:
                return product(vectors, True)
            except RuntimeError:  # an operation without a rule for vectorisation
                self._together = False
        try:
            return torch.stack([product(vector, False) for vector in vectors])
        except RuntimeError as error:
            raise ValueError(_refusal(str(error).splitlines()[0][:160])) from error


def _refusal(why: str) -> str:
    return (
        f"metric: 'curvature', but the loss cannot be differentiated twice ({why}). Give the metric as a tensor, or "
        "use 'identity'."
    )


def _ends_in_an_error(gradient: Tensor) -> bool:
    """Whether the graph of a gradient holds a node that only raises: autograd takes what is behind it for constant."""
    seen, left = set(), [gradient.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name().rpartition("::")[2] == "Error":
            return True
        seen.add(node)
        left.extend(next_node for next_node, _ in node.next_functions)
    return False


def _samples(data: Data | None, device: torch.device) -> list[Minibatch]:
    """The samples at which curvature is measured, with weights that sum to one: all of them, or the same random few."""
    if data is None:
        return [Minibatch(None)]
    if data.size <= MOST_SAMPLES:
        return list(data.chunks(MOST_SAMPLES))
    generator = torch.Generator(device).manual_seed(0)
    if not isinstance(data, BatchData):
        few = next(data.minibatches(MOST_SAMPLES)(generator, 1))
        return [Minibatch(map_tensors(lambda tensor: tensor[0], few.data))]
    taken: list[Any] = []
    batches = data.minibatches(None)(generator, 1)
    while sum(map(batch_size_of, taken)) < MOST_SAMPLES and len(taken) < data.num_batches:
        taken.append(next(batches).data)
    total = sum(map(batch_size_of, taken))
    return [Minibatch(batch, batch_size_of(batch) / total) for batch in taken]


def _split(piece: Minibatch, rows: int) -> Iterator[Minibatch]:
    """Parts of so many samples, which count by their size."""
    size = batch_size_of(piece.data)
    for first in range(0, size, rows):
        part = map_tensors(lambda tensor, at=first: tensor[at : at + rows], piece.data)
        yield Minibatch(part, piece.weight * min(rows, size - first) / size)


def _root_mean_square(part: Tensor) -> Tensor:
    """Of a tensor's weights; one where all are zero."""
    size = part.square().mean().sqrt()
    return torch.where(size > 0, size, torch.ones_like(size))
