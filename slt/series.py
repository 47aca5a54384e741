"""One law for a series of checkpoints: nβ, γ, metric and sampler, found on stated checkpoints and the same for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import samplers
from slt.data import Data
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
    """

    options: dict[str, Any]
    reason: str


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
        return SeriesLaw(found, "asked for")
    names: set[str] = set()
    steps: list[float] = []
    diagonals: list[Tensor] = []
    for bring in load:
        model = bring()
        if open_metric:
            diagonals.append(_diagonal(model, data, loss_fn, options))
            reason = f"the mean of the Hessian's diagonals at {len(diagonals)} of the series"
            found["metric"] = Metric("curvature", torch.stack(diagonals).mean(0), reason)
        if open_sampler:
            look = estimate_llc(model, data, loss_fn, **{**found, **LOOK})
            names.add(look.sampler)
            if look.sampler == "sgld":
                step_size = look.step_size
                steps.append(float(min(step_size) if isinstance(step_size, list | tuple) else step_size))
    reasons = []
    if open_sampler:
        # where one of them lets the weights go to places without a loss, the ladder of another cannot be used
        found["sampler"] = "mala" if len(names) > 1 else names.pop()
        reasons.append(f"sampler {found['sampler']}")
        if steps:
            found["sampler"] = samplers.sgld(min(steps))
            reasons.append(f"of step size {min(steps):.3g}")
    if open_metric:
        reasons.append("the curvature metric, its mean over them")
    return SeriesLaw(found, ", ".join(reasons))


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
