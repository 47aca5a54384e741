"""``estimate_llc``: from a module, data and a loss to λ̂."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samplers import Diagnostics, Kernel, Run, ScaledPotential, Trace, diagnose
from samplers.diagnostics import MINIMUM_DRAWS
from slt.arguments import WeightsError, as_device, check_counts, check_samples, check_seed
from slt.calibrate import DEFAULT_LOCALIZATION, Plan, default_n_beta, make_plan, with_paths
from slt.data import Data, as_data
from slt.estimate import LLCEstimate
from slt.isolation import preserved_random_state
from slt.ladders import Ladder
from slt.loss import LossFn
from slt.metric import Metric
from slt.parameters import SampledParameters, Selector
from slt.posterior import LocalPosterior, check_localization, check_n_beta
from slt.surroundings import Surroundings, gradient_noise, look_around
from slt.verdict import Z_95, Evidence, judge

ABSOLUTE_FLOOR = 0.4  # below this λ̂, the tolerance counts absolutely: 5 % of 0.4 is 0.02


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
    engine: str = "auto",
    eval_mode: bool = True,
    allow_survivors: bool = False,
    keep_positions: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> LLCEstimate:
    r"""The local learning coefficient of a module at its weights, with an interval and a verdict.

    .. math:: \hat\lambda = n\beta\,\bigl(E[L_n(w)] - L_n(w^*)\bigr), \qquad
              p(w) \propto \exp\bigl(-n\beta\,L_n(w) - \tfrac{\gamma}{2} \textstyle\sum_i D_i (w_i - w^*_i)^2\bigr)

    Where the loss is not a finite number the exact samplers take the density for zero; with SGLD a chain that comes
    there has diverged. The interval covers this quantity, at the stated nβ and γ and in the stated metric D, which is
    1 by default; λ itself is its limit for growing n. The module comes back exactly as it was: weights, gradients,
    train/eval modes, buffers, and all random number generators.

    Args:
        model: The module, at the weights w* to be measured.
        data: A tensor, a tuple or dict of tensors, a ``Dataset``, a ``DataLoader``, a sized iterable of batches; or
            None, where ``loss_fn(model)`` is the exact loss L(w). Then ``n_beta`` must be given.
        loss_fn: ``(model, batch) →`` the mean loss (0-d) or one loss per sample ``(batch,)``, in nats: a negative log
            likelihood. Mean squared error is that of a Gaussian of variance ½.
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
            paths in a metric found in a pilot run), ``"mala"`` (exact, full data), ``"sgld"``, or a kernel such as
            ``samplers.sgld(1e-4)``.
        step_size: ε, in squared units of weight, or of the metric; of ``"hmc"`` in units of weight, without a metric
            of its own. Found in a pilot run by default, for ``"hmc"`` as a range in the metric that it finds too.
        batch_size: Of SGLD; by default min(n, 512).
        num_chains: By default 8, or 4 where chains run one after another.
        num_warmup: Steps of each chain before the first draw; by default 1000, 60 with ``"hmc"``, 400 with replica
            exchange, or 200 one after another.
        num_draws: Draws of each chain. By default rounds are added until the interval is narrow enough.
        thinning: Steps per draw.
        tolerance: The half-width of the interval to reach, relative to λ̂, or to 0.4 where λ̂ is less.
        budget: Steps of each chain at most, warm-up included; by default 12,000, 2,400 with ``"hmc"``, or 1,000 one
            after another. A step of ``"hmc"`` takes ten gradients, one of replica exchange five at every rung.
        anchor_samples: Of so many samples, drawn at random, L_n(w*) is the mean, where a pass over all data is too
            dear; its standard error then enters the interval. All of them by default.
        engine: ``"auto"``, ``"batched"`` (all chains at once) or ``"in_place"`` (one after another in the module).
        eval_mode: Whether the module is put in eval mode for the run.
        allow_survivors: Whether λ̂ may be taken over the chains that did not diverge; the verdict is not ok anyway.
        keep_positions: Whether the trace holds the positions of the draws.
        seed: Of everything random.
        device: Where to compute; a copy of the module is used if it lies elsewhere.
        progress: True or False, or None to show a bar on a terminal only.

    Returns:
        The estimate.

    Raises:
        ValueError: An argument is out of range or does not fit the others, before any sampling starts.
        WeightsError: A ``ValueError``: the loss is not finite at w*.
        TypeError: The data or the loss are of an unknown form.
        KeyboardInterrupt: Interrupted before the first draw. Later, the draws are kept, and the verdict says so.

    Source:
        Lau, Furman, Wang, Murfet & Wei 2023, eq. 14 (estimator) and Algorithm 1.
    """
    start = time.perf_counter()
    check_seed(seed)
    check_samples(n)
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance: {tolerance!r}; expected a positive number, such as 0.05 for 5 %.")
    check_counts(
        batch_size=batch_size, num_chains=num_chains, num_warmup=num_warmup, num_draws=num_draws, thinning=thinning,
        budget=budget, anchor_samples=anchor_samples,
    )  # fmt: skip
    SampledParameters(model, parameters)  # what cannot be sampled is refused first
    device = None if device is None else as_device(device)
    if device is not None and device != next(model.parameters()).device:
        model = copy.deepcopy(model).to(device)
    held = _held(model, data, seed)
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
    with posterior:
        baseline, baseline_error = posterior.anchor_loss(anchor_samples)
        if not math.isfinite(baseline):
            raise WeightsError(
                f"loss_fn: the mean loss over the full data is {baseline} at the anchor, although it is finite on the "
                "first samples. Look for NaN or infinity in the data."
            )
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
        )
        plan, trace = _sample(posterior, plan, baseline, tolerance, seed, keep_positions, progress)
        if trace.positions is not None and isinstance(target := posterior.target, ScaledPotential):
            trace = replace(trace, positions=target.positions(trace.positions))
        looked = _look(posterior, plan, trace, seed)
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
        "step_size": (trace.configuration["step_size"], reasons["step_size"]),
        "batch_size": (plan.batch_size, reasons["batch_size"]),
        "engine": (posterior.engine.name, reasons["engine"]),
        "num_chains": (plan.num_chains, reasons["num_chains"]),
        "num_warmup": (plan.num_warmup, reasons["num_warmup"]),
        "num_draws": (trace.num_draws, reasons["num_draws"]),
        "thinning": (plan.thinning, reasons["thinning"]),
        "budget": (plan.budget, reasons["budget"]),
        "tolerance": (tolerance, f"relative to λ̂, or to {ABSOLUTE_FLOOR} where it is less"),
        "anchor_samples": (anchor_samples, "all of the data" if anchor_samples is None else "asked for"),
        "mode": ("eval" if eval_mode else "as found", reasons["mode"]),
        "parameters": (posterior.dim, f"in {len(posterior.sampled.names)} tensors"),
        "seed": (seed, ""),
    }
    return _result(
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


def _sample(
    posterior: LocalPosterior,
    plan: Plan,
    baseline: float,
    tolerance: float,
    seed: int,
    keep_positions: bool,
    progress: bool | None,
) -> tuple[Plan, Trace]:
    """Rounds of draws, doubling, until the interval is narrow enough or the budget is spent; and the plan of them."""
    ladder, target = plan.ladder, posterior.target
    form: dict[str, Any] = {
        "batches": None if plan.batch_size is None else posterior.minibatches(plan.batch_size),
        "num_chains": plan.num_chains * (1 if ladder is None else ladder.num_rungs),
        "num_warmup": plan.num_warmup,
        "thinning": plan.thinning,
        "seed": seed,
        "keep_positions": keep_positions,
        "progress": progress,
    }
    run = Run(plan.kernel, target if ladder is None else ladder.potential, target.anchor, **form)
    if plan.adapt is not None:
        run.adapt(plan.adapt)
        plan = with_paths(plan, run.kernel)
        run.num_warmup = plan.num_warmup
    round_draws = plan.num_draws
    while True:
        run.draw(round_draws, release=not plan.extend and ladder is None)
        trace = run.trace() if ladder is None else _of_the_last_rung(run, ladder)
        if not plan.extend or run.interrupted or trace.diverged:
            return plan, trace
        energy = None
        if trace.num_draws >= MINIMUM_DRAWS:
            energy = diagnose(posterior.n_beta * (trace.loss - baseline), _window(posterior, plan, trace))
        if energy is not None and (_settled(energy, tolerance) or energy.standard_deviation == 0):
            return plan, trace
        round_draws = trace.num_draws  # doubles
        left = (plan.budget - plan.num_warmup) // plan.thinning - trace.num_draws
        if left < round_draws:
            if left < max(1, trace.num_draws // 4):
                return plan, trace
            round_draws = left


def _of_the_last_rung(run: Run, ladder: Ladder) -> Trace:
    """The chains at the posterior's own nβ, with what all rungs cost and how well they mix."""
    trace, state = run.trace(), run.blocks[0].state
    last = slice(ladder.num_rungs - 1, None, ladder.num_rungs)
    rungs = ladder.num_rungs
    facts = {
        "step_size": list(ladder.step_size),
        "num_rungs": rungs,
        "swap_rates": state.swap_rates.tolist(),
        "round_trips": int(state.round_trips.sum()),
    }
    kept = {"kernel", "num_warmup", "num_draws", "thinning", "seed", "compile", "threads", "dtype", "device"}
    return replace(
        trace,
        statistics={name: values[last] for name, values in trace.statistics.items()},
        warmup={name: values[last] for name, values in trace.warmup.items()},
        positions=None if trace.positions is None else trace.positions[last],
        diverged=tuple(each._replace(chain=each.chain // rungs) for each in trace.diverged),
        num_gradients=trace.num_gradients + ladder.num_gradients,
        configuration={name: value for name, value in trace.configuration.items() if name in kept} | facts,
    )


def _window(posterior: LocalPosterior, plan: Plan, trace: Trace) -> int:
    """Draws in an epoch, but no more than leaves 25 windows a chain; 1 for full data."""
    if posterior.data is None or plan.batch_size is None:
        return 1
    epoch = -(-posterior.data.size // (plan.batch_size * plan.thinning))
    return max(1, min(epoch, trace.num_draws // 25))


def _settled(energy: Diagnostics, tolerance: float) -> bool:
    narrow = Z_95 * energy.mcse <= tolerance * max(abs(energy.mean), ABSOLUTE_FLOOR)
    return narrow and energy.rhat <= 1.02 and energy.ess >= 400  # Vehtari et al. 2021, §4: 400 for a stable error


def _share(posterior: LocalPosterior, plan: Plan) -> float:
    """Of the full data, in a batch."""
    return 1.0 if posterior.data is None or plan.batch_size is None else plan.batch_size / posterior.data.size


def _look(posterior: LocalPosterior, plan: Plan, trace: Trace, seed: int) -> tuple[Surroundings | None, float, float]:
    """What is around the anchor, the bias that minibatch noise causes at SGLD's step, and the gradients it took."""
    around, noise, cost = None, 0.0, 0.0
    if not posterior.report.random and not trace.interrupted:
        around = look_around(posterior, trace.num_gradients * _share(posterior, plan))
        cost = 0.0 if around is None else around.num_gradients
    plain = plan.kernel.name == "sgld" and plan.kernel.settings["preconditioner"] is None
    if plan.batch_size is not None and posterior.data is not None and plain:
        variance, of_noise = gradient_noise(posterior, plan.batch_size, seed, trace.num_gradients)
        noise, cost = float(np.mean(trace.configuration["step_size"])) / 8 * variance, cost + of_noise
    return around, noise, cost


def _result(
    posterior: LocalPosterior,
    plan: Plan,
    trace: Trace,
    anchor_loss: tuple[float, float],
    looked: tuple[Surroundings | None, float, float],
    size: int | None,
    tolerance: float,
    allow_survivors: bool,
    config: dict[str, tuple[Any, str]],
    start: float,
) -> LLCEstimate:
    n_beta, (baseline, baseline_error), (around, noise, cost) = float(posterior.n_beta), anchor_loss, looked
    alive = trace.surviving
    diagnostics = None
    if alive.any() and trace.num_draws >= MINIMUM_DRAWS:
        diagnostics = diagnose(n_beta * (trace.loss[alive] - baseline), _window(posterior, plan, trace))
    llc = mcse = ess = rhat = bias = error = math.nan
    if diagnostics is not None:
        llc, mcse, ess, rhat = diagnostics.mean, diagnostics.mcse, diagnostics.ess, diagnostics.rhat
        bias = float(
            np.maximum(0.0, trace.statistics["discretization_bias"][alive].mean())
        )  # keeps what is not a number
        error = math.hypot(mcse, n_beta * baseline_error)
    allowed = tolerance * max(abs(llc), ABSOLUTE_FLOOR)
    verdict = judge(
        Evidence(
            trace=trace,
            llc=llc,
            diagnostics=diagnostics,
            baseline=baseline,
            baseline_error=baseline_error,
            n_beta=n_beta,
            localization=posterior.localizer.strength,
            dim=posterior.dim,
            bias=bias,
            tolerance=allowed,
            half_width=Z_95 * error,
            aimed=plan.extend,
            random_values=posterior.report.values if posterior.report.random else None,
            rounding=n_beta * abs(baseline) * torch.finfo(posterior.sampled.dtype).eps,
            dtype=str(posterior.sampled.dtype).removeprefix("torch."),
            surroundings=around,
            noise_bias=noise,
            batch_size=plan.batch_size,
        )
    )
    if not alive.all() and not allow_survivors:
        llc = mcse = math.nan
    share = _share(posterior, plan)
    return LLCEstimate(
        llc=llc,
        mcse=mcse,
        interval=(llc - Z_95 * error - bias, llc + Z_95 * error) if np.isfinite(llc) else (math.nan, math.nan),
        rhat=rhat,
        ess=ess,
        loss_at_anchor=baseline,
        n=size,
        n_beta=n_beta,
        localization=posterior.localizer.strength,
        sampler=plan.kernel.name,
        step_size=trace.configuration["step_size"],
        step_size_bias=bias,
        num_gradients=trace.num_gradients * share + posterior.metric.num_gradients + cost,
        seconds=time.perf_counter() - start,
        verdict=verdict,
        trace=trace,
        config=config,
        baseline_error=baseline_error,
    )
