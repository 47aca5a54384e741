"""``LLCMonitor``: the local learning coefficient during a plain training loop."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from slt.arguments import check_numbers, check_samples, whole_count, whole_counts, whole_seed
from slt.callbacks.logs import Log, warn
from slt.callbacks.schedule import Schedule, whole
from slt.data import Data, as_data
from slt.estimate import LLCEstimate
from slt.isolation import preserved_random_state
from slt.llc import estimate_llc
from slt.loss import LossFn
from slt.parameters import SampledParameters

NUMBERS = ("n", "n_beta", "localization", "tolerance", "save_every", "step_size")
COUNTS = ("batch_size", "num_chains", "num_warmup", "num_draws", "budget", "anchor_samples", "block_size")


class LLCMonitor:
    """Estimates λ̂ every so many steps of training, and logs it.

    Training is bit-identical with and without it: weights, gradients, optimizer state, train/eval modes, buffers, the
    generators of Python, NumPy and torch, and the order of a ``DataLoader`` are as they would have been.

    An estimate that fails does not stop training, nor does a log that does: it is logged as ``llc`` not a number, with
    the error as verdict, and a warning is given, or a line on stderr where warnings are made errors. A step that was
    logged is not estimated again: before another training, call ``reset``, as the trainers' callbacks do.

    >>> monitor = LLCMonitor((x, y), loss_fn, every=100, log=lambda values, step: print(step, values["llc"]))
    ... # doctest: +SKIP
    >>> for step, batch in enumerate(loader):  # doctest: +SKIP
    ...     monitor.step(model, step)  # before the update: at step 0 the weights that training begins with
    ...     train(model, batch)

    Attributes:
        estimates: Step → estimate, for those of this training that succeeded in this process. ``reset`` and
            ``load_state_dict`` put another dict in its place: keep it, and you keep those of the training before.
        logged: Step → what was logged; after a restart of training too, by ``state_dict`` and ``load_state_dict``.

    Args:
        data: See :func:`slt.estimate_llc`. Read once, at the first estimate.
        loss_fn: See :func:`slt.estimate_llc`.
        every: Steps between estimates; one is made at every multiple, 0 included, in the trainers' callbacks too.
        steps: Or the steps at which one is made, such as :func:`slt.callbacks.log_spaced`.
        share: Of the time of training that estimates may take, such as 0.05; without a limit by default. One that is
            due and would take more is left out. See :class:`slt.callbacks.schedule.Schedule`.
        log: Called as ``log(values, step)`` with ``llc``, ``llc_low``, ``llc_high``, ``llc_rhat``, ``llc_ess``,
            ``loss_at_anchor`` and ``llc_verdict``, of an estimate that failed ``llc``, which is not a number, and
            ``llc_verdict`` alone; see :mod:`slt.callbacks.logs` for files and trackers.
        options: Further arguments of :func:`slt.estimate_llc`. Each estimate is a call by itself, which finds anew
            what is left to it: a metric ``"curvature"``, the sampler, its step size.

    Raises:
        ValueError: Not exactly one of ``every`` and ``steps`` is given, or one is no number or out of range; or an
            option is no number or out of range, or the data can be read once only, where that is seen from them alone.
        TypeError: An option is none of :func:`slt.estimate_llc`, or ``log`` cannot be called.
    """

    def __init__(
        self,
        data: Any,
        loss_fn: LossFn,
        *,
        every: int | None = None,
        steps: Iterable[int] | None = None,
        share: float | None = None,
        log: Log | None = None,
        **options: Any,
    ):
        self.schedule = Schedule(every, steps, share)
        unknown = sorted(options.keys() - inspect.signature(estimate_llc).parameters.keys())
        if unknown:
            raise TypeError(f"LLCMonitor: {', '.join(unknown)}; expected arguments of slt.estimate_llc.")
        if log is not None and not callable(log):
            raise TypeError(
                f"log: {log!r}; expected a function of values and step, such as slt.callbacks.to_csv(path)."
            )
        _check(data, options)
        names = options.get("parameters")
        if isinstance(names, Iterator):  # which the first estimate would use up
            options["parameters"] = list(names)
        self.data, self.loss_fn, self.log, self.options = data, loss_fn, log, options
        self.estimates: dict[int, LLCEstimate] = {}
        self.logged: dict[int, dict[str, Any]] = {}
        self._held: Data | None = None

    def step(self, model: nn.Module, step: int) -> LLCEstimate | None:
        """The estimate at this step, or None where none is due or it failed.

        Args:
            model: The module in training. Of a ``DistributedDataParallel`` the module inside is measured, which has
                its names of parameters and is given to ``loss_fn``: no other process takes part.
            step: The number of updates that the weights have had.

        Returns:
            The estimate.

        Raises:
            KeyboardInterrupt: Ctrl-C during the estimate, which is logged first.
            ValueError: The step is no whole number.
        """
        step = whole("step", step)  # a tensor is another key at every call
        if step in self.logged or not self.schedule.due(step):
            return None
        start = perf_counter()
        try:
            return self._estimate(_inside(model), step)
        finally:
            self.schedule.took(perf_counter() - start)

    def state_dict(self) -> dict[str, Any]:
        """What was logged, and the time that it took, to be saved with a checkpoint of training."""
        logged = {step: dict(values) for step, values in self.logged.items()}
        return {"logged": logged, "schedule": self.schedule.state_dict()}

    def reset(self) -> None:
        """Forget what was logged, the estimates, and the time that they took: another training begins."""
        self.load_state_dict({"logged": {}, "schedule": {"spent": 0.0, "last": 0.0, "training": 0.0}})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was logged before training was restarted, and forget all else: it is of a training given up.

        Args:
            state: Of ``state_dict``.

        Raises:
            ValueError: It is of something else.
        """
        missing = sorted({"logged", "schedule"} - state.keys())
        if missing:
            raise ValueError(f"state: without {' and '.join(missing)}; expected what LLCMonitor.state_dict() returned.")
        self.logged = {int(step): dict(values) for step, values in state["logged"].items()}
        self.estimates = {
            step: found for step, found in self.estimates.items() if self.logged.get(step, {}).get("llc") == found.llc
        }
        self.schedule.load_state_dict(state["schedule"])

    def _estimate(self, model: nn.Module, step: int) -> LLCEstimate | None:
        with preserved_random_state():
            try:
                if self._held is None:
                    sampled = SampledParameters(model, self.options.get("parameters"))  # refused before data are read
                    device = torch.device(self.options.get("device") or sampled.tensors()[0].device)
                    with preserved_random_state(self.options.get("seed", 0)):
                        self._held = as_data(self.data, device)
                options = {"progress": False, **self.options}
                estimate = estimate_llc(model, self._held, self.loss_fn, **options)
            except Exception as error:
                kind = type(error).__name__
                self._report({"llc": float("nan"), "llc_verdict": f"failed: {str(error) or kind}"}, step)
                warn(f"LLCMonitor: no estimate at step {step}: {kind}: {error}", 3)
                return None
        self.estimates[step] = estimate
        self._report(
            {
                "llc": estimate.llc,
                "llc_low": estimate.interval[0],
                "llc_high": estimate.interval[1],
                "llc_rhat": estimate.rhat,
                "llc_ess": estimate.ess,
                "loss_at_anchor": estimate.loss_at_anchor,
                "llc_verdict": str(estimate.verdict),
            },
            step,
        )
        if estimate.trace.interrupted:
            raise KeyboardInterrupt
        return estimate

    def _report(self, values: dict[str, Any], step: int) -> None:
        self.logged[step] = values
        if self.log is None:
            return
        try:
            with preserved_random_state():
                self.log(values, step)
        except Exception as error:  # a tracker that is down stops no training either
            warn(f"LLCMonitor: the log failed at step {step}: {type(error).__name__}: {error}", 4)


def _check(data: Any, options: dict[str, Any]) -> None:
    """Refuse at once what every estimate would, as far as that is seen without a model."""
    check_numbers(**{name: options.get(name) for name in NUMBERS})
    whole_counts(**{name: options.get(name) for name in COUNTS})
    check_samples(options.get("n"))
    whole_seed(options.get("seed", 0))
    whole_count("thinning", options.get("thinning", 1))
    if hasattr(data, "__iter__") and not hasattr(data, "__len__"):  # nothing of which is read before it is refused
        as_data(data, torch.device("cpu"))


def _inside(model: nn.Module) -> nn.Module:
    """The module inside a ``DistributedDataParallel``, whose own forward pass waits for all processes."""
    wrapper = getattr(model, "_orig_mod", model)  # of torch.compile around it
    return wrapper.module if isinstance(wrapper, DistributedDataParallel) else model
