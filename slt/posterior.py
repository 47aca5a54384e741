"""The tempered local posterior of a network, as a potential that samplers can draw from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor, nn

from samplers import GaussianLocalizer, ScaledPotential, natural_units
from slt.arithmetic import multiplications_per_sample
from slt.centred_samples import WITHOUT_GRADIENT, excess_of_samples
from slt.data import BatchData, Data, TensorData, as_data, map_tensors
from slt.engines import choose_engine
from slt.engines.batched import BatchedEngine
from slt.engines.sharded import ShardedEngine
from slt.hessian import Hessian
from slt.isolation import preserved_module, preserved_random_state, stochastic_modules, uncompiled
from slt.loss import (
    DifferentiatesInsideError,
    LossFn,
    differ,
    inspect_loss,
    mean_loss,
    value_of,
    with_gradients_inside,
)
from slt.metric import Metric, as_metric, curvature_metric
from slt.minibatches import AnyMinibatch
from slt.parameters import SampledParameters, Selector
from slt.shards import reshard

LEAST_ANCHOR_BATCHES = 16  # of a loss at the anchor that is over a part of the data: its error is then known to 18 %


class LocalPosterior:
    r"""The tempered local posterior, a :class:`samplers.Potential`.

    .. math:: p(w) \propto \exp\bigl(-n\beta\,L_n(w) - \tfrac{\gamma}{2} {\textstyle\sum_i} D_i (w_i - w^*_i)^2\bigr)

    A context manager: inside, the module computes with the chains' weights; on leaving, however that happens, it is
    as it was: parameters (the same objects), gradients, buffers, train/eval modes and all random number generators.

    >>> with LocalPosterior(model, (x, y), loss_fn, n_beta=100.0, localization=1.0) as potential:  # doctest: +SKIP
    ...     trace = samplers.sample(samplers.sgld(step_size=1e-4), potential, potential.anchor,
    ...                             batches=potential.minibatches(512), num_chains=8, num_warmup=500, num_draws=500)

    Attributes:
        dim: The length of a position: the number of sampled parameters, or of those of this process's shard.
        num_weights: The number of sampled parameters.
        shards: Which columns of the whole are here, of a model that ``fully_shard`` has spread; None where all are.
        n_beta: nβ.
        localizer: The Gaussian localiser at the anchor.
        anchor: w*, the module's weights on entering, ``(dim,)``.
        data: The data in the form that engines use, or None.
        metric: D of the localiser, with its name, reason and cost.
        engine: The engine that computes, and ``engine_reason`` why.
        stochastic: Names of submodules in train mode, as they were found, whose output depends on chance or batch.
        report: What one evaluation at the anchor told about the loss.

    Args:
        model: The module, at its anchor. Sampled on the device on which it is.
        data: See :func:`slt.data.as_data`. None: ``loss_fn(model)`` is the exact loss.
        loss_fn: ``(model, batch) →`` the mean loss (0-d) or one loss per sample ``(batch,)``, in nats.
        n_beta: nβ > 0.
        localization: γ ≥ 0, in nats per squared unit of weight, times the metric.
        metric: D: ``"identity"``, ``"curvature"`` (:func:`slt.metric.curvature_metric`) or ``(dim,)``, positive.
        parameters: Which parameters are sampled; see :class:`slt.parameters.SampledParameters`.
        engine: ``"auto"``, ``"batched"`` or ``"in_place"``.
        num_chains: How many chains there will be, by which the engine is chosen.
        eval_mode: Whether the module is sampled in eval mode.
        seed: Of what is random inside the loss.

    Raises:
        ValueError: nβ, γ or the metric is out of range, or the data, parameters or loss are refused, before any
            sampling.
        TypeError: The data or the loss are of an unknown form.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        loss_fn: LossFn,
        *,
        n_beta: float,
        localization: float,
        metric: str | Tensor | Metric = "identity",
        parameters: Selector = None,
        engine: str = "auto",
        num_chains: int = 8,
        eval_mode: bool = True,
        seed: int = 0,
    ):
        check_n_beta(n_beta)
        check_localization(localization)
        self.model, self.loss_fn, self.seed, self.eval_mode = model, loss_fn, seed, eval_mode
        self.sampled = SampledParameters(model, parameters)
        self.dim, self.num_weights, self.shards = self.sampled.dim, self.sampled.num_weights, self.sampled.shards
        self.anchor = self.sampled.flatten()
        asked = as_metric(metric, self.anchor)
        if self.shards is not None and (asked is None or asked.diagonal is not None):
            raise ValueError("metric: given for a model that is sharded by fully_shard; expected 'identity'.")
        self.n_beta: float | Tensor = float(n_beta)
        self.stochastic = stochastic_modules(model)
        self._context = ExitStack()
        with preserved_random_state(seed):
            self.data: Data | None = as_data(data, self.sampled.tensors()[0].device)
            with preserved_module(model, eval_mode=eval_mode), torch.inference_mode(False), uncompiled():
                try:
                    self.report = inspect_loss(model, self.data, loss_fn, self.sampled)
                except DifferentiatesInsideError:
                    self.loss_fn = loss_fn = with_gradients_inside(loss_fn)
                    self.report = inspect_loss(model, self.data, loss_fn, self.sampled)
                self.engine, self.engine_reason = choose_engine(
                    engine, model, self.data, loss_fn, self.sampled, num_chains
                )
                if asked is None:
                    with self.sampled.borrowed():
                        asked = curvature_metric(model, self.data, loss_fn, self.sampled)
        self.metric: Metric = asked
        self.max_chains = self.engine.max_chains
        self.localizer = GaussianLocalizer(self.anchor, float(localization))
        if asked.diagonal is not None:
            self.localizer = GaussianLocalizer(self.anchor, float(localization), asked.diagonal)

    def capturable(self, with_batches: bool) -> bool:
        """Whether its gradients may be part of a CUDA graph: those of one pass through the model.

        Args:
            with_batches: Whether they are of minibatches; the full data may take the module many passes.

        Returns:
            Whether they are of one.
        """
        if self.engine.name == "batched":
            return True
        one_pass = with_batches or self.data is None or self.data.size <= self.engine.forward_samples
        return self.engine.name == "in_place" and one_pass

    @property
    def target(self) -> LocalPosterior | ScaledPotential:
        """The same law for samplers: itself, or with a metric in the units of it, by ``samplers.natural_units``."""
        return self if self.metric.diagonal is None else natural_units(self)

    @cached_property
    def multiplications_per_sample(self) -> float:
        """In a pass of one sample through the model; see :func:`slt.arithmetic.multiplications_per_sample`."""
        assert self.data is not None
        with self.sampled.borrowed(), preserved_module(self.model, eval_mode=self.eval_mode), uncompiled():
            if self.shards is None:  # the last call may have left those of a vectorised one
                self.sampled.bind(self.sampled.tensors())
            return multiplications_per_sample(self.model, self.data, self.loss_fn, self.num_weights)

    def __enter__(self) -> Self:
        self._context = ExitStack()
        self._context.enter_context(preserved_random_state(self.seed))
        self._context.enter_context(preserved_module(self.model, eval_mode=self.eval_mode))
        self._context.enter_context(torch.inference_mode(False))
        self._context.enter_context(self.sampled.borrowed())
        if isinstance(self.engine, ShardedEngine):
            self._context.enter_context(self.engine.held(self.anchor))
        if isinstance(self.engine, BatchedEngine):
            self._context.enter_context(uncompiled())
            self.engine.forget()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.engine.name == "in_place":
            self.engine.release()  # type: ignore[union-attr]
        self._context.close()

    def loss_and_grad(self, position: Tensor, batch: AnyMinibatch | None = None) -> tuple[Tensor, Tensor]:
        """Loss ``(chains,)`` and gradient ``(chains, dim)`` at ``(chains, dim)``, of a minibatch or the full data."""
        return self.engine.loss_and_grad(position, batch)

    def losses(self, position: Tensor) -> Tensor:
        """Loss ``(chains,)`` at ``(chains, dim)``, of the full data, for any number of chains and without gradients."""
        if isinstance(self.engine, BatchedEngine):
            return self.engine.loss(position)
        return torch.cat([self.engine.loss_and_grad(row.unsqueeze(0).contiguous())[0] for row in position])

    def losses_and_grads(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Loss ``(chains,)`` and gradient ``(chains, dim)`` of the full data, for any number of chains."""
        if isinstance(self.engine, BatchedEngine):
            return self.engine.loss_and_grad(position)
        losses, gradients = position.new_empty(len(position)), torch.empty_like(position)
        for place, row in enumerate(position):
            losses[place], gradients[place] = self.engine.loss_and_grad(row.unsqueeze(0).contiguous())
        return losses, gradients

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the last axis, and over all processes where the model is sharded."""
        return self.engine.sum(x) if isinstance(self.engine, ShardedEngine) else x.sum(-1)

    def hessian_products(self, max_samples: int | None = None) -> Callable[[Tensor], Tensor]:
        """Products of the Hessian at the anchor, in units of :attr:`target`; inside the context.

        >>> products = posterior.hessian_products()  # doctest: +SKIP
        >>> samplers.curvature_preconditioner(products, posterior.target.anchor, n_beta=…)  # doctest: +SKIP

        Args:
            max_samples: Of the data, at most; all of them by default.

        Returns:
            ``(k, dim) → (k, dim)``; see :class:`slt.hessian.Hessian`.
        """
        hessian, target = Hessian(self.model, self.data, self.loss_fn, self.sampled, max_samples), self.target
        if not isinstance(target, ScaledPotential):
            return hessian.products
        return lambda vectors: hessian.products(vectors * target.width) * target.width

    def minibatches(self, batch_size: int | None = None) -> Callable[[torch.Generator, int], Iterator[AnyMinibatch]]:
        """The ``batches`` argument of :func:`samplers.sample`: minibatches, independent per chain.

        Args:
            batch_size: Samples per chain and step; all of them by default. Batches that the user made, of unequal
                size, are used as they are, weighted by their samples.

        Returns:
            ``(generator, num_chains) → iterator``.

        Raises:
            ValueError: There is no data, or ``batch_size`` is not positive.
        """
        if self.data is None:
            raise ValueError("batch_size: given, but data is None: an exact loss has no minibatches.")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: {batch_size}; expected at least 1.")
        return self.data.minibatches(batch_size)

    def loss_at_anchor(self) -> float:
        """L_n(w*) in nats: the full-data loss at the anchor, accumulated over batches in float64."""
        return self.anchor_loss()[0]

    @torch.no_grad()
    def changed_loss(self) -> tuple[float, float] | None:
        """The loss of the first batch at the anchor, as it was before the run and as it is now, where they differ.

        The baseline of λ̂ is of before, and the draws are of later: a loss that changed between them, such as one with
        a schedule of its own, gives a number of no function.

        Returns:
            Both, in nats; None where they are the same, or the model is spread over processes.
        """
        if self.shards is not None:
            return None
        with self.sampled.borrowed(), preserved_module(self.model, eval_mode=self.eval_mode):
            self.sampled.bind(self.sampled.tensors())
            arguments = (self.model,) if self.data is None else (self.model, self.report.batch)
            was, now = self.report.at_anchor, value_of(self.loss_fn(*arguments))
        return (was, now) if differ(was, now) else None

    @torch.no_grad()
    def anchor_loss(self, num_samples: int | None = None) -> tuple[float, float]:
        r"""L_n(w*) and its standard error, in nats: over the full data without error, or over some of it.

        .. math:: s = \sqrt{\frac{1 - m/n}{k (k - 1)} \sum_j (L_j - \bar L)^2}

        of k batches with m samples in all, drawn without replacement.

        Args:
            num_samples: m, at most; all of them by default.

        Returns:
            The loss and its standard error.

        Raises:
            ValueError: It is too small for an error, or there is no data to draw samples from.
        """
        with self.sampled.borrowed(), preserved_module(self.model, eval_mode=self.eval_mode):
            if self.shards is None:  # the last call may have left those of a vectorised one
                self.sampled.bind(self.sampled.tensors())
            if self.data is None:
                if num_samples is not None:
                    raise ValueError(f"anchor_samples: {num_samples}, but data is None: an exact loss has no samples.")
                exact = float(mean_loss(self.loss_fn, self.model, None, False).double())
                return self._of_all_processes(exact), 0.0
            if num_samples is not None and num_samples < self.data.size:
                mean, error = self._part_of_the_data(num_samples)
                found = self._of_all_processes(mean), self._of_all_processes(error)
            elif isinstance(self.engine, ShardedEngine):
                found = float(self.engine.loss(self.anchor.unsqueeze(0))), 0.0
            else:
                total = torch.zeros((), dtype=torch.float64, device=self.anchor.device)
                for chunk in self.data.chunks(self.engine.forward_samples):
                    total += mean_loss(self.loss_fn, self.model, chunk.data, True).double() * chunk.weight
                found = float(total), 0.0
            self.engine.center = found[0]
            return found

    def centre_samples(self) -> float:
        r"""Take off losses of minibatches what their samples' losses at w* exceed their mean, from here on.

        .. math:: L_B(w) - \frac1B \sum_{i \in B} \bigl(\ell_i(w^*) - L_n(w^*)\bigr)

        has the mean of L_B(w) over independent batches, and next to none of its noise near w*. Gradients stay.

        Returns:
            What it cost, in full-data gradients: nothing where samples have no losses of their own to be had, as where
            a mean over a batch cannot be vectorised, or are in batches of the user's.
        """
        if not isinstance(self.data, TensorData) or isinstance(self.engine, ShardedEngine):
            return 0.0
        with self.sampled.borrowed(), preserved_module(self.model, eval_mode=self.eval_mode):
            self.sampled.bind(self.sampled.tensors())
            excess = excess_of_samples(self.model, self.data, self.loss_fn, self.engine.forward_samples)
        self.engine.excess = None if excess is None else excess.to(self.anchor)
        return 0.0 if excess is None else WITHOUT_GRADIENT

    def _of_all_processes(self, value: float) -> float:
        """The mean over the processes of a sharded model, which differ in rounding at most; the value of others."""
        if not isinstance(self.engine, ShardedEngine):
            return value
        reshard(self.model)
        share = torch.tensor([value / self.engine.count], dtype=torch.float64, device=self.anchor.device)
        return float(self.engine.sum(share))

    def _part_of_the_data(self, num_samples: int) -> tuple[float, float]:
        assert self.data is not None
        size = max(1, min(self.engine.forward_samples, num_samples // LEAST_ANCHOR_BATCHES))
        if isinstance(self.data, BatchData):
            size = max(1, round(self.data.size / self.data.num_batches))
        count = num_samples // size
        if count < LEAST_ANCHOR_BATCHES:
            raise ValueError(
                f"anchor_samples: {num_samples}, or {count} batches of {size}; expected at least "
                f"{LEAST_ANCHOR_BATCHES * size}, for a standard error."
            )
        generator = torch.Generator(self.anchor.device).manual_seed(self.seed)
        batches = self.data.epochs(size)(generator, 1)
        losses = []
        for _ in range(count):
            batch = next(batches)
            # of one chain: tensors of a stacked batch have an axis of length one in front
            data = map_tensors(lambda tensor: tensor[0], batch.data) if self.data.batchable else batch.data
            losses.append(float(mean_loss(self.loss_fn, self.model, data, True).double()) * batch.weight)
        values = torch.tensor(losses, dtype=torch.float64)
        left = max(0.0, 1 - count * size / self.data.size)
        return float(values.mean()), float(values.std()) * (left / count) ** 0.5


def check_n_beta(n_beta: float) -> None:
    """Raise unless nβ is a positive finite number.

    Args:
        n_beta: nβ.

    Raises:
        ValueError: It is not.
    """
    if not 0 < float(n_beta) < float("inf"):
        raise ValueError(
            f"n_beta: {n_beta!r}; expected a positive finite number. The default for n samples is n / log n."
        )


def check_localization(localization: float) -> None:
    """Raise unless γ is a finite number of at least zero.

    Args:
        localization: γ.

    Raises:
        ValueError: It is not.
    """
    if not 0 <= float(localization) < float("inf"):
        raise ValueError(
            f"localization: {localization!r}; expected a finite number ≥ 0, the strength γ of the localiser "
            "(γ/2)·‖w − w*‖²."
        )
