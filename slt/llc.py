"""``estimate_llc``: from a module, data and a loss to λ̂."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from samplers import Kernel, ScaledPotential, Trace
from samplers.processes import Processes
from slt.arguments import (
    WeightsError,
    as_device,
    check_module,
    check_numbers,
    check_samples,
    whole_count,
    whole_counts,
    whole_seed,
)
from slt.calibrate import DEFAULT_LOCALIZATION, Plan, default_n_beta, make_plan
from slt.conclusion import conclude
from slt.data import Data, as_data
from slt.engines.sharded import ShardedEngine
from slt.estimate import LLCEstimate
from slt.fingerprint import estimate_key
from slt.isolation import preserved_random_state, without_autocast
from slt.look import NOT_LOOKED, look
from slt.loss import LossFn
from slt.metric import Metric
from slt.parameters import SampledParameters, Selector
from slt.posterior import LocalPosterior, check_localization, check_n_beta
from slt.rounds import ABSOLUTE_FLOOR, draw_rounds
from slt.running import RunningFile
from slt.task import raised_by_task

# What may differ between a call and one that goes on with its run: the weights and data have hashes of their own.
APART = ("model", "data", "loss_fn", "device", "allow_survivors", "process_group", "save_to", "save_every", "progress")

# In how many places weights of processes are compared, and what is more than rounding: relative, or of nats of nβ·L.
PLACES, UNLIKE = 4096, 1e-3


@torch.inference_mode(False)
@without_autocast()
def estimate_llc(
    model: nn.Module,
    data: Any,
    loss_fn: LossFn,
    *,
    n: int | None = None,
    n_beta: float | None = None,
    localization: float | None = None,
    metric: str | Tensor | Metric = "identity",
    parameters: Selector = None,
    sampler: str | Kernel = "auto",
    step_size: float | None = None,
    batch_size: int | None = None,
    num_chains: int | None = None,
    num_warmup: int | None = None,
    num_draws: int | None = None,
    thinning: int = 1,
    tolerance: float = 0.05,
    budget: int | None = None,
    anchor_samples: int | None = None,
    control_variates: bool | None = None,
    engine: str = "auto",
    eval_mode: bool = True,
    allow_survivors: bool = False,
    keep_positions: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    block_size: int | None = None,
    process_group: ProcessGroup | None = None,
    save_to: str | Path | RunningFile | None = None,
    save_every: float = 60.0,
    progress: bool | None = None,
) -> LLCEstimate:
    r"""The local learning coefficient of a module at its weights, with an interval and a verdict.

    .. math:: \hat\lambda = n\beta\,\bigl(E[L_n(w)] - L_n(w^*)\bigr), \qquad
              p(w) \propto \exp\bigl(-n\beta\,L_n(w) - \tfrac{\gamma}{2} {\textstyle\sum_i} D_i (w_i - w^*_i)^2\bigr)

    Where the loss or its gradient is not a finite number the exact samplers take the density for zero, and name
    ``not_finite_nearby`` where that counts; with others a chain that comes there has diverged. The interval covers this
    quantity, at the stated nβ and γ, in the stated metric D, which is 1 by default, and of this L_n: another data set
    has another. As n grows it tends to λ of the most singular zero that the localiser admits, which is that of w* where
    chains find no other. The module comes back exactly as it was: weights, gradients, train/eval modes, buffers, and
    all random number generators. A ``torch.autocast`` around the call is left for it; ``loss_fn`` may enter one.

    Args:
        model: The module, at the weights w* to be measured.
        data: A tensor, a tuple or dict of tensors, a ``Dataset``, a ``DataLoader``, a sized iterable of batches; or
            None, where ``loss_fn(model)`` is the exact loss L(w). Then ``n_beta`` must be given.
        loss_fn: ``(model, batch) →`` the mean loss (0-d) or one loss per sample ``(batch,)``, in nats: a negative log
            likelihood. Mean squared error is that of a Gaussian of variance ½. A fixed function of weights and batch:
            after its first fifty calls a CPU repeats its tensor operations, and calls it now and then as a check.
        n: The number of samples that the loss stands for; counted from the data by default. Give the number of tokens
            where the loss is per token.
        n_beta: nβ; n / log n by default (Watanabe 2013).
        localization: γ, in nats per squared unit of weight, times D; 1 by default (Lau et al. 2023).
        metric: D. ``"identity"``, the field's convention; or ``"curvature"``, the diagonal of the Hessian at w*, in
            which λ̂ does not know the scale of layers or units that the network does not know either, and γ = 1 is the
            unit information prior; where there is no curvature, a floor that transforms alike: see
            :func:`slt.metric.curvature_metric`. Or ``(dim,)``, positive, in the order of
            ``slt.parameters.SampledParameters(model).names``. Another metric is another law. With one, samplers move
            in its units: w = w* + u/√D.
        parameters: Which parameters are sampled: a name, glob, several of them, or a predicate ``(name, parameter)``;
            every trainable one by default.
        sampler: ``"auto"``, ``"replica_exchange"`` (exact, over a ladder of temperatures), ``"hmc"`` (exact, full data,
            paths in a metric found in a pilot run), ``"mala"`` (exact, full data), ``"baoab"`` (minibatches, with
            momentum, in a metric of each matrix of weights that is found in a pilot run), ``"sgld"``, or a kernel such
            as ``samplers.sgld(1e-4)``.
        step_size: ε, in squared units of weight, or of the metric; of ``"hmc"`` and ``"baoab"`` in units of weight,
            without a metric of their own. Found in a pilot run by default, for ``"hmc"`` as a range; for both in the
            metric that they find too.
        batch_size: Of ``"baoab"`` and SGLD; by default min(n, 512), and for chains in sequence as many as
            keep 4 GiB for their gradient.
        num_chains: By default 8, or 4 where chains run one after another.
        num_warmup: Steps of each chain before the first draw; by default 1000, 400 with replica exchange, 200 one
            after another; where step_size is left out 60 with ``"hmc"`` and 200 with ``"baoab"``.
        num_draws: Draws of each chain. By default rounds, each as long as all before, are added until the interval is
            narrow enough, R̂ at most 1.02 and ESS at least 400 (on full data with at most 256 weights R̂ of the
            localiser's energy at most 1.05 too), or the budget is spent.
        thinning: Steps per draw.
        tolerance: The half-width of the interval to reach, relative to λ̂, or to 0.1 where λ̂ is less.
        budget: Steps of each chain at most, warm-up included; by default 12,000, 2,400 where ``"hmc"`` finds its
            step, or 1,000 one after another; fewer, down to a twelfth, where all with their pilot would take more than
            5·10¹¹ products on a CPU (some ten minutes of a core), or a hundred times as many elsewhere. A step of
            ``"hmc"`` takes ten gradients, or up to a hundred where its steps are small, and counts for as many tens;
            one of replica exchange takes five at every rung. Pilots come on top; with
            ``"baoab"`` some 450 gradients of each chain and a quarter of the budget.
        anchor_samples: Of so many samples, drawn at random, L_n(w*) is the mean, where a pass over all data is too
            dear; its standard error then enters the interval. All of them by default.
        control_variates: Whether loss and gradient of a minibatch at w are taken beside those at w*, for two gradients
            a step, by :func:`samplers.control_variates`; by default where λ̂ would drown in the noise of batches
            without, most of it is gone with them, and neither batch_size nor step_size is set by hand.
        engine: ``"auto"``, ``"batched"`` (all chains at once) or ``"in_place"`` (one after another in the module).
        eval_mode: Whether the module is put in eval mode for the run.
        allow_survivors: Whether λ̂ may be taken over the chains that did not diverge; the verdict is not ok anyway.
        keep_positions: Whether the trace holds the positions of the draws, in the order of the names of
            :class:`slt.parameters.SampledParameters`, which is not always that of the module; its ``unflatten`` names
            them.
        seed: Of everything random.
        device: Where to compute; a copy of the module is used if it lies elsewhere.
        block_size: Chains that are advanced together, with a random stream of their own; by default all that the
            engine takes, or an even share of the group's processes.
        process_group: Of ``torch.distributed``, such as ``torch.distributed.group.WORLD`` after
            ``init_process_group``: its processes make the same call, share the chains, and all return the whole
            estimate, which with the same ``block_size`` is that of one process. None for this process alone.
        save_to: A file that holds where the run is, written whole every ``save_every`` seconds. The same call goes on
            from there after the process was killed, and gives bitwise what it would have given; the file is removed at
            the end. A call with other weights, data, loss or options is refused.
        save_every: Seconds.
        progress: True or False, or None to show a bar on a terminal only.

    Returns:
        The estimate.

    Raises:
        ValueError: An argument is out of range or does not fit the others, or processes have unlike models, data or
            losses, before any sampling starts.
        WeightsError: A ``ValueError``: the loss is not finite at w*.
        TypeError: The data or the loss are of an unknown form.
        FloatingPointError: No step size or ladder is found, because the loss or its gradient is not finite near w* or
            where the localiser lets the weights go.
        RuntimeError: A process of the group is gone; no estimate of part of the chains is returned.
        KeyboardInterrupt: Interrupted before the first draw. Later, the draws are kept, and the verdict says so.

    Source:
        Lau, Furman, Wang, Murfet & Wei 2023, eq. 14 (estimator) and Algorithm 1.
    """
    check_numbers(
        n=n, n_beta=n_beta, localization=localization, tolerance=tolerance, save_every=save_every, step_size=step_size
    )  # fmt: skip
    check_samples(n)
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance: {tolerance!r}; expected a positive number, such as 0.05 for 5 %.")
    if not 0 <= save_every < math.inf:
        raise ValueError(f"save_every: {save_every!r}; expected a number of seconds, at least 0.")
    # of NumPy or of a tensor, a number would be in the way of JSON; and a generator of names is used up once
    seed, thinning = whole_seed(seed), whole_count("thinning", thinning)
    batch_size, num_chains, num_warmup, num_draws, budget, anchor_samples, block_size = whole_counts(
        batch_size=batch_size, num_chains=num_chains, num_warmup=num_warmup, num_draws=num_draws, budget=budget,
        anchor_samples=anchor_samples, block_size=block_size,
    )  # fmt: skip
    n = None if n is None else int(n)
    n_beta, localization = (None if value is None else float(value) for value in (n_beta, localization))
    tolerance, save_every = float(tolerance), float(save_every)
    parameters = list(parameters) if isinstance(parameters, Iterator) else parameters
    options = {name: value for name, value in locals().items() if name not in APART}
    start = time.perf_counter()
    if control_variates not in (None, True, False):
        raise ValueError(f"control_variates: {control_variates!r}; expected True, False, or None for the default.")
    processes = Processes(process_group)
    with processes.together():
        if processes.count > 1 and save_to is not None:
            raise ValueError(
                f"save_to: {str(save_to)!r}, beside a process_group: none of its processes has the states of all "
                "chains. Leave one of the two out."
            )
        check_module(model)
        sampled = SampledParameters(model, parameters)  # what cannot be sampled is refused first
        _check_shards(sampled, {"save_to": save_to, "process_group": process_group, "keep_positions": keep_positions})
        device = None if device is None else as_device(device)
        if device is not None and device != next(model.parameters()).device:
            model = copy.deepcopy(model).to(device)
        held = _held(model, data, seed)
        key = estimate_key(model, held, loss_fn, options) if isinstance(save_to, str | Path) else ""
        size, n_beta, reasons = _temperature(held, n, n_beta)
        if localization is None:
            localization, reasons["localization"] = DEFAULT_LOCALIZATION, "default γ = 1"
        else:
            reasons["localization"] = "asked for"
        check_localization(localization)
        posterior = LocalPosterior(
            model,
            held,
            loss_fn,
            n_beta=n_beta,
            localization=localization,
            metric=metric,
            parameters=parameters,
            engine=engine,
            num_chains=num_chains or 8,
            eval_mode=eval_mode,
            seed=seed,
        )
    _check_agreement(processes, posterior, size)
    with ExitStack() as opened:
        file = save_to if isinstance(save_to, RunningFile) else None  # a sweep's own
        if isinstance(save_to, str | Path):
            file = opened.enter_context(RunningFile(save_to, key, save_every))
        with posterior:
            baseline, baseline_error = processes.from_first(lambda: posterior.anchor_loss(anchor_samples))
            if not math.isfinite(baseline):
                raise WeightsError(
                    f"loss_fn: the mean loss over the full data is {baseline} at the anchor, although it is finite on "
                    "the first samples. Look for NaN or infinity in the data."
                )
            with processes.together():
                plan = make_plan(
                    posterior,
                    baseline=baseline,
                    sampler=sampler,
                    step_size=step_size,
                    batch_size=batch_size,
                    num_chains=num_chains,
                    num_warmup=num_warmup,
                    num_draws=num_draws,
                    thinning=thinning,
                    budget=budget,
                    seed=seed,
                    tolerance=tolerance,
                    anchor_samples=anchor_samples,
                    control_variates=control_variates,
                    together=processes.count == 1 and block_size is None,
                )
            form = {
                "seed": seed, "keep_positions": keep_positions, "progress": progress, "block_size": block_size,
                "process_group": process_group,
            }  # fmt: skip
            try:
                plan, trace, ends = draw_rounds(posterior, plan, (baseline, baseline_error), tolerance, form, file)
            except Exception as error:
                if raised_by_task(error):
                    error.add_note(
                        "slt: the loss could be evaluated at the anchor, and raised this at weights that chains came "
                        "to. Where it checks their range, leave that out (validate_args=False), or have weights that "
                        "can take any value (log of a scale, softplus)."
                    )
                raise
            if trace.positions is not None and isinstance(target := posterior.target, ScaledPotential):
                trace = replace(trace, positions=target.positions(trace.positions))
            try:
                looked = processes.from_first(
                    lambda: look(posterior, plan, trace, ends, (baseline, baseline_error), tolerance, seed)
                )
            except KeyboardInterrupt:
                if processes.count > 1:
                    raise
                trace, looked = replace(trace, interrupted=True), NOT_LOOKED  # the draws are there
        trace.configuration["full_data"] = plan.batch_size is None
        reasons.update(plan.reasons)
        if eval_mode:
            was = f"; found in train mode: {', '.join(posterior.stochastic)}" if posterior.stochastic else ""
            reasons["mode"] = f"default{was}"
        else:
            reasons["mode"] = "asked for: modes left as they are"
        config = {
            "n": (size, reasons["n"]),
            "n_beta": (n_beta, reasons["n_beta"]),
            "localization": (localization, reasons["localization"]),
            "metric": (posterior.metric.name, posterior.metric.reason),
            "sampler": (plan.kernel.name, reasons["sampler"]),
            "step_size": (trace.configuration.get("step_size", "none"), reasons["step_size"]),
            "batch_size": (plan.batch_size, reasons["batch_size"]),
            "engine": (posterior.engine.name, reasons["engine"]),
            "num_chains": (plan.num_chains, reasons["num_chains"]),
            "block_size": _blocks(plan, trace, block_size, processes.count),
            "num_warmup": (plan.num_warmup, reasons["num_warmup"]),
            "num_draws": (trace.num_draws, reasons["num_draws"]),
            "thinning": (plan.thinning, reasons["thinning"]),
            "budget": (plan.budget, reasons["budget"]),
            "tolerance": (tolerance, f"relative to λ̂, or to {ABSOLUTE_FLOOR} where it is less"),
            "control_variates": (plan.paired, reasons["control_variates"]),
            "anchor_samples": (anchor_samples, "all of the data" if anchor_samples is None else "asked for"),
            "mode": ("eval" if eval_mode else "as found", reasons["mode"]),
            "parameters": (posterior.num_weights, f"in {len(posterior.sampled.names)} tensors"),
            "seed": (seed, ""),
        }
        estimate = conclude(
            posterior,
            plan,
            trace,
            (baseline, baseline_error),
            looked,
            size,
            tolerance,
            allow_survivors,
            config,
            start,
        )
        if file is not None and not trace.interrupted:
            file.remove()
        return estimate


def _check_shards(sampled: SampledParameters, options: Mapping[str, Any]) -> None:
    """Refuse what takes a whole vector in one place where there is none."""
    for name, value in options.items():
        if value and sampled.shards is not None:
            raise ValueError(f"{name}: {value!r}, but the model is sharded by fully_shard; expected it to be left out.")


def _check_agreement(processes: Processes, posterior: LocalPosterior, size: int | None) -> None:
    """Refuse processes with unlike weights, data or losses, beyond rounding: their chains would be of two laws."""
    places = posterior.anchor[:: posterior.dim // PLACES + 1]
    if isinstance(posterior.engine, ShardedEngine):
        processes, places = Processes(posterior.engine.group), places[:0]
    facts = (size, posterior.n_beta, posterior.localizer.strength, posterior.num_weights, posterior.engine.name)
    told = processes.from_all((facts, posterior.report.at_anchor, places.double().cpu()))
    first_facts, first_loss, first_places = told[0]
    for rank, (others, loss, weights) in enumerate(told):
        what = [
            f"{name} {other!r} for {own!r}"
            for name, own, other in zip(("n", "nβ", "γ", "weights", "engine"), first_facts, others, strict=True)
            if other != own
        ]
        if abs(loss - first_loss) > UNLIKE * max(abs(first_loss), 1 / float(posterior.n_beta)):
            what.append(f"a loss of {loss:.6g} for {first_loss:.6g} on the first batch")
        alike = weights.shape == first_places.shape
        if not alike or (weights - first_places).norm() > UNLIKE * first_places.norm():
            what.append("other weights")
        if what:
            raise ValueError(
                f"model, data, loss_fn: in process {rank} they are not those of the first ({', '.join(what)}); "
                "expected the same in all. Seed what makes them, or load them from a file, and leave it to this call "
                "to share out the work: no DistributedSampler."
            )


def _blocks(plan: Plan, trace: Trace, asked: int | None, num_processes: int) -> tuple[int, str]:
    """How many chains are advanced together, and why."""
    found = plan.num_chains if plan.ladder is not None else trace.configuration["block_size"]
    if asked is not None:
        return found, "asked for"
    if num_processes > 1:
        return found, f"an even share of {num_processes} processes"
    return found, "all together" if found == plan.num_chains else "what the engine takes"


def _held(model: nn.Module, data: Any, seed: int) -> Data | None:
    with preserved_random_state(seed):
        return as_data(data, next(model.parameters()).device)


def _temperature(data: Data | None, n: int | None, n_beta: float | None) -> tuple[int | None, float, dict[str, str]]:
    size = n if n is not None else (None if data is None else data.size)
    reasons = {"n": "asked for" if n is not None else ("no data" if data is None else "counted from the data")}
    if n_beta is not None:
        check_n_beta(n_beta)
        return size, float(n_beta), {**reasons, "n_beta": "asked for"}
    if size is None:
        raise ValueError("n_beta: None, but data is None too: an exact loss has no n to derive nβ from. Give n_beta.")
    return size, default_n_beta(size), {**reasons, "n_beta": "n / log n (Watanabe 2013)"}
