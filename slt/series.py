"""One law for a series of checkpoints: nβ, γ, metric and sampler, found on stated checkpoints and the same for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import samplers
from slt.data import Data
from slt.estimate import LLCEstimate
from slt.isolation import preserved_module, preserved_random_state
from slt.llc import estimate_llc
from slt.loss import LossFn
from slt.metric import Metric, curvature_metric
from slt.parameters import SampledParameters

# A look at how the call would sample: nothing is drawn from it.
LOOK = {"save_to": None, "num_draws": 4, "num_warmup": 0, "tolerance": 0.05, "progress": False}


class Found(NamedTuple):
    """What was found for a series.

    Attributes:
        sampler: Its name; None where it was asked for.
        step_size: Of SGLD; None where it is found at each checkpoint, or was asked for.
        metric: Where it is the curvature's.
        reasons: Of each choice that was found, by its name in the configuration of an estimate.
    """

    sampler: str | None
    step_size: float | None
    metric: Metric | None
    reasons: dict[str, str]

    def saved(self) -> dict[str, Any]:
        """In plain numbers, texts and tensors, for :meth:`restored`."""
        return {**self._asdict(), "metric": None if self.metric is None else self.metric._asdict()}

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> Found:
        """From :meth:`saved`."""
        metric = stored["metric"]
        return cls(**{**stored, "metric": None if metric is None else Metric(**metric)})


class SeriesLaw(NamedTuple):
    """What is the same for every checkpoint of a series.

    Attributes:
        options: Of :func:`slt.estimate_llc`: with the metric and the sampler that were found.
        reason: How they were found.
        reasons: Of each choice that was found, by its name in the configuration of an estimate.
    """

    options: dict[str, Any]
    reason: str
    reasons: Mapping[str, str]

    def of(self, estimate: LLCEstimate) -> LLCEstimate:
        """An estimate under the law, whose configuration says of what was found for the series that it was.

        Args:
            estimate: Made with the options, for which they were asked for.

        Returns:
            The estimate.
        """
        config = {name: (value, self.reasons.get(name, reason)) for name, (value, reason) in estimate.config.items()}
        return replace(estimate, config=config)


def law_of(options: Mapping[str, Any], found: Found, places: str) -> SeriesLaw:
    """The law of a series whose options leave something to be found.

    Places are in no option, and so in no key: an estimate is found again wherever its checkpoint lies.

    Args:
        options: Of :func:`slt.estimate_llc`, as they were asked for.
        found: At the stated checkpoints.
        places: Where these lie.

    Returns:
        The law.
    """
    own, told = dict(options), []
    if found.sampler is not None:
        own["sampler"] = found.sampler if found.step_size is None else samplers.sgld(found.step_size)
        told.append(f"sampler {found.sampler}")
    if found.step_size is not None:
        told.append(f"of step size {found.step_size:.3g}")
    if found.metric is not None:
        own["metric"] = found.metric
        told.append("the curvature metric, its mean over them")
    told.append(f"found at {places}")
    reasons = {name: f"found for the series at {places}: {reason}" for name, reason in found.reasons.items()}
    return SeriesLaw(own, ", ".join(told), reasons)


def open_choices(options: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the sampler, or its step, and the metric are left to be found.

    Args:
        options: Of :func:`slt.estimate_llc`.

    Returns:
        Of the sampler, and of the metric.
    """
    sampler = options.get("sampler", "auto") in ("auto", "sgld") and options.get("step_size") is None
    return sampler, options.get("metric", "identity") == "curvature"


def find_law(
    load: Iterable[Callable[[], nn.Module]],
    data: Data | None,
    loss_fn: LossFn,
    options: Mapping[str, Any],
) -> Found:
    """What would be found anew, and otherwise, at each checkpoint of a series.

    The metric ``"curvature"`` becomes the mean of its diagonals over the stated checkpoints: another metric is another
    law. The sampler ``"auto"`` becomes the one that is chosen there; and SGLD gets the smallest of the step sizes that
    are found there, because its bias depends on it. The steps of exact samplers are found at each checkpoint: they do
    not move λ̂. So are those of ``"baoab"``, whose bias is measured in each estimate and taken off.

    Args:
        load: Functions that return the module with the weights of the stated checkpoints, one after the other.
        data: The data.
        loss_fn: The loss.
        options: Of :func:`slt.estimate_llc`.

    Returns:
        What was found.
    """
    open_sampler, open_metric = open_choices(options)
    metric: Metric | None = None
    own = dict(options)
    why: dict[str, str] = {}  # of the samplers
    steps: list[float] = []
    of_steps = ""
    diagonals: list[Tensor] = []
    load = list(load)
    if open_metric:
        diagonals = [_diagonal(bring(), data, loss_fn, own) for bring in load]
        reason = f"the mean of the Hessian's diagonals at {len(diagonals)} of the series"
        own["metric"] = metric = Metric("curvature", torch.stack(diagonals).mean(0), reason)
    if open_sampler:  # in the metric of all of them: a step size is in its units
        for bring in load:
            model = bring()
            # without pairs, unless they are asked for: a checkpoint whose step is given has none
            unpaired = {"control_variates": own.get("control_variates") or False}
            look = estimate_llc(model, data, loss_fn, **{**own, **LOOK, **unpaired})
            why[look.sampler] = look.config["sampler"][1]
            if look.sampler == "sgld":
                step_size, of_steps = look.config["step_size"]
                steps.append(float(min(step_size) if isinstance(step_size, list | tuple) else step_size))
    reasons: dict[str, str] = {}
    chosen = None
    if open_sampler:
        # where one of them lets the weights go to places without a loss, the ladder of another cannot be used
        chosen = "mala" if len(why) > 1 else next(iter(why))
        if options.get("sampler", "auto") == "auto":
            reasons["sampler"] = why.get(chosen, "what serves at all of them")
        if steps:
            chosen = "sgld"
            reasons["step_size"] = of_steps if len(steps) == 1 else f"{of_steps}, the smallest of {len(steps)}"
    if open_metric:
        reasons["metric"] = "the mean of the Hessian's diagonals" if len(diagonals) > 1 else "the Hessian's diagonal"
    return Found(chosen, min(steps) if steps else None, metric, reasons)


def _diagonal(model: nn.Module, data: Data | None, loss_fn: LossFn, options: dict[str, Any]) -> Tensor:
    sampled = SampledParameters(model, options.get("parameters"))
    with (
        preserved_random_state(options.get("seed", 0)),
        preserved_module(model, eval_mode=options.get("eval_mode", True)),
        torch.inference_mode(False),
        sampled.borrowed(),
    ):
        diagonal = curvature_metric(model, data, loss_fn, sampled).diagonal
    assert diagonal is not None
    return diagonal
