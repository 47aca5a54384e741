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

    def found_at(self, places: str) -> SeriesLaw:
        """The same law, with where it was found; as it is where all was asked for.

        Places are in no option, and so in no key: an estimate is found again wherever its checkpoint lies.

        Args:
            places: Of the stated checkpoints.

        Returns:
            The law.
        """
        if not self.reasons:
            return self
        reasons = {name: f"found for the series at {places}: {reason}" for name, reason in self.reasons.items()}
        return self._replace(reason=f"{self.reason}, found at {places}", reasons=reasons)

    def of(self, estimate: LLCEstimate) -> LLCEstimate:
        """An estimate under the law, whose configuration says of what was found for the series that it was.

        Args:
            estimate: Made with the options, for which they were asked for.

        Returns:
            The estimate.
        """
        config = {name: (value, self.reasons.get(name, reason)) for name, (value, reason) in estimate.config.items()}
        return replace(estimate, config=config)


def find_law(
    load: Iterable[Callable[[], nn.Module]],
    data: Data | None,
    loss_fn: LossFn,
    options: dict[str, Any],
) -> SeriesLaw:
    """The options of a series, without what would be found anew, and otherwise, at each of its checkpoints.

    The metric ``"curvature"`` becomes the mean of its diagonals over the stated checkpoints: another metric is another
    law. The sampler ``"auto"`` becomes the one that is chosen there; and SGLD gets the smallest of the step sizes that
    are found there, because its bias depends on it. The steps of exact samplers are found at each checkpoint: they do
    not move λ̂.

    Args:
        load: Functions that return the module with the weights of the stated checkpoints, one after the other.
        data: The data.
        loss_fn: The loss.
        options: Of :func:`slt.estimate_llc`.

    Returns:
        The law.
    """
    found = dict(options)
    sampler = options.get("sampler", "auto")
    open_sampler = sampler in ("auto", "sgld") and options.get("step_size") is None
    open_metric = options.get("metric", "identity") == "curvature"
    if not (open_sampler or open_metric):
        return SeriesLaw(found, "asked for", {})
    why: dict[str, str] = {}  # of the samplers
    steps: list[float] = []
    of_steps = ""
    diagonals: list[Tensor] = []
    for bring in load:
        model = bring()
        if open_metric:
            diagonals.append(_diagonal(model, data, loss_fn, options))
            reason = f"the mean of the Hessian's diagonals at {len(diagonals)} of the series"
            found["metric"] = Metric("curvature", torch.stack(diagonals).mean(0), reason)
        if open_sampler:
            look = estimate_llc(model, data, loss_fn, **{**found, **LOOK})
            why[look.sampler] = look.config["sampler"][1]
            if look.sampler == "sgld":
                step_size, of_steps = look.config["step_size"]
                steps.append(float(min(step_size) if isinstance(step_size, list | tuple) else step_size))
    told: list[str] = []
    reasons: dict[str, str] = {}
    if open_sampler:
        # where one of them lets the weights go to places without a loss, the ladder of another cannot be used
        found["sampler"] = chosen = "mala" if len(why) > 1 else next(iter(why))
        told.append(f"sampler {chosen}")
        if sampler == "auto":
            reasons["sampler"] = why[chosen]
        if steps:
            found["sampler"] = samplers.sgld(min(steps))
            told.append(f"of step size {min(steps):.3g}")
            reasons["step_size"] = of_steps if len(steps) == 1 else f"{of_steps}, the smallest of {len(steps)}"
    if open_metric:
        told.append("the curvature metric, its mean over them")
        reasons["metric"] = "the mean of the Hessian's diagonals" if len(diagonals) > 1 else "the Hessian's diagonal"
    return SeriesLaw(found, ", ".join(told), reasons)


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
