"""``estimate_rlct``: the real log canonical threshold at an anchor and its multiplicity, from a temperature ladder."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samplers.ball import BallLocalizer
from samplers.cooling import FROZEN, Cooling, cool
from samplers.scale_moves import groups_of_shapes
from slt.arguments import check_module, check_numbers, check_samples, whole_count, whole_counts, whole_seed
from slt.data import map_tensors
from slt.loss import LossFn
from slt.parameters import SampledParameters, Selector, check_memory
from slt.posterior import LocalPosterior
from slt.problems.precision import not_a_mean, stochastic_forward
from slt.resolution import common_unit
from slt.rlct_estimate import Curve, RLCTEstimate
from slt.temperature_fit import (
    LARGEST_MULTIPLICITY,
    MINIMUM_RUNGS,
    TemperatureFit,
    combine,
    curve_error,
    fit_temperatures,
)
from slt.verdict import Problem, Verdict

Array = NDArray[np.float64]

# Beyond e⁶⁰ weights of order one no longer resolve the walls: their width is e⁻³⁰ = 1e-13.
LARGEST_LOG_N_BETA = 60.0
# The loss may be wrong by this many nats over nβ.
ROUNDING = 3e-3
ROUNDING_PLACES, ROUNDING_DISTANCE = 64, 1e-15
# Binary digits of the least loss in the ball, below which all losses are few multiples of one number: a grid, which is
# no relative rounding, whose numbers have 24 digits or 53.
FEW_DIGITS = 12
PLACES = (-6, 0, 24)  # decades of the radius, and how many distances
RANDOM_BUDGET = 50_000  # of a loss that is random, and named: enough for a curve
# Rungs at which the loss remembers more than this of the last one are biased upwards: the curve is cut at the fourth.
REMEMBERED, REMEMBERED_RUNGS = 0.5, 4
LEAST_RUNGS = 18
DEFAULT_RADIUS = 1.0
BUDGET, BUDGET_DIM = 4_000_000, 16  # evaluations, and more in proportion to the weights beyond so many
NUM_POPULATIONS, NUM_PARTICLES = 8, 512
# While no m is sure there is a larger round: of larger populations, since the bias of small ones looks like a
# logarithm, as far as the ladder can still come to its top, since a short one cannot tell a logarithm from a power.
MAX_ROUNDS, SURE = 2, 0.95
MORE_PARTICLES, MORE_BUDGET, LARGEST_BUDGET, LEAST_GAIN = 4, 12, 48_000_000, 2
# Below λ = 0.4, errors count absolutely.
TOLERANCE, ABSOLUTE_FLOOR = 0.05, 0.4


@torch.inference_mode(False)
def estimate_rlct(
    model: nn.Module,
    data: Any,
    loss_fn: LossFn,
    *,
    n: int | None = None,
    n_beta: tuple[float, float] | None = None,
    radius: float | None = None,
    parameters: Selector = None,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    num_populations: int = NUM_POPULATIONS,
    num_particles: int = NUM_PARTICLES,
    max_rounds: int = MAX_ROUNDS,
    budget: int | None = None,
    engine: str = "auto",
    eval_mode: bool = True,
    seed: int = 0,
    progress: bool | None = None,
) -> RLCTEstimate:
    r"""λ and m of the loss at a module's weights w*, inside a ball around them.

    .. math:: t\,E_t[L(w) - L(w^*)] = \lambda - \frac{m - 1}{\log t + c} + O(t^{-\delta}), \qquad
              p_t(w) \propto e^{-t L(w)} \text{ on } \|w - w^*\| \le R

    The curve is measured at a ladder of t = nβ by populations that are cooled from the whole ball, in float64, on the
    CPU and in a copy of the module; λ and m are fitted to it together. With an exact loss the ladder ends where
    rounding begins, near nβ = e⁶⁰ for a sum of squares. With data it ends at nβ = n, beyond which the loss only knows
    the samples.

    λ is that of the most singular point in the ball: choose a radius that holds none worse than w*.

    Args:
        model: The module, at the weights w*.
        data: As for :func:`slt.estimate_llc`; None where ``loss_fn(model)`` is the exact loss. Tensors are taken in
            float64; a ``Dataset`` or ``DataLoader`` should give float64 itself.
        loss_fn: In nats, as for :func:`slt.estimate_llc`. For an exact loss, written so that nothing cancels near the
            truth, or the ladder ends early.
        n: The number of samples that the loss stands for; counted from the data by default.
        n_beta: The lowest rung of the fit and the highest of the ladder. By default found, and n or rounding's limit.
        radius: R, in units of weight; 1 by default.
        parameters: Which parameters are sampled; every trainable one by default.
        log_prior: ``(n, dim) → (n,)``, the log density of the prior in the ball up to a constant, −∞ outside its
            support, of flat weights in float64; None for a flat one. λ depends on it where it vanishes or blows up.
        num_populations: Independent ones, whose spread is the error.
        num_particles: Of each, in the first round.
        max_rounds: Rounds at most, the first among them. While no m has 95 % of the weight there is another, with
            twelve times the budget (up to 48 million, and only where that is twice the last one), and with up to four
            times the particles, as far as the ladder would come to its top. The last counts.
        budget: Of evaluations of the loss in the first round; the ladder ends at the rung at which it is
            spent. By default 4 million, times dim/16 beyond 16 weights.
        engine: As for :func:`slt.estimate_llc`.
        eval_mode: Whether the module is put in eval mode.
        seed: Of everything random.
        progress: True or False, or None to show a bar of log nβ, one for each round, on a terminal only.

    Returns:
        The estimate.

    Raises:
        ValueError: An argument is out of range, or the loss is refused.
        TypeError: The data or the loss are of an unknown form.

    Source:
        Watanabe 2009, ch. 6 (asymptotics of Z); Watanabe 2013 (λ̂(nβ)).
    """
    started = time.perf_counter()
    check_numbers(n=n, radius=radius)
    check_samples(n)
    seed, max_rounds = whole_seed(seed), whole_count("max_rounds", max_rounds)
    num_populations = whole_count("num_populations", num_populations)
    num_particles = whole_count("num_particles", num_particles)
    (budget,) = whole_counts(budget=budget)
    radius, config = _checked(radius, n_beta)
    if data is None and n is not None:
        raise ValueError(f"n: {n}, but data is None: an exact loss stands for no number of samples. Leave n out.")
    check_module(model)
    parameters = list(parameters) if isinstance(parameters, Iterator) else parameters
    check_memory(model, parameters)
    # float64 is what the ladder lives on, and small models do not miss a GPU
    double = copy.deepcopy(model).cpu().double()
    _check_prior(log_prior, double, parameters)
    posterior = _posterior(
        double, _in_double(data), loss_fn, n_beta=1.0, localization=0.0, parameters=parameters, engine=engine,
        num_chains=num_populations * num_particles, eval_mode=eval_mode, seed=seed,
    )  # fmt: skip
    budget, reason = (budget, "asked for") if budget is not None else _budget(posterior.dim)
    if posterior.report.random and budget > RANDOM_BUDGET:
        budget, reason, max_rounds = RANDOM_BUDGET, "the loss is random, and no number is to be had", 1
    config["budget"] = (f"{budget:,}", reason)
    samples = None
    if posterior.data is not None:
        samples = posterior.data.size if n is None else n
    ball = BallLocalizer(posterior.anchor, radius)
    with posterior:
        at_anchor = posterior.loss_at_anchor()
        # a module that casts gives a loss of its own dtype; how far that is rounded is measured below
        losses = lambda position: posterior.losses(position).double() - at_anchor  # noqa: E731
        rounding = max(
            _rounding(losses, posterior.anchor),
            abs(at_anchor) * torch.finfo(torch.float64).eps,
            _grid(losses, posterior.anchor, radius),
        )
        top, reason = _top(rounding, samples, n_beta)
        config["highest nβ"] = (f"{top:.4g}", reason)
        rounds, spent = 0, 0
        while True:
            found = cool(
                losses,
                posterior.losses_and_grads,
                ball,
                largest_n_beta=top,
                groups=groups_of_shapes(posterior.sampled.shapes),
                log_prior=log_prior,
                num_populations=num_populations,
                num_particles=num_particles,
                budget=budget,
                seed=seed,
                progress=progress,
            )
            rounds, spent = rounds + 1, spent + found.num_evaluations
            curves, fitted, fit = _read(found, log_prior is None, n_beta, min(LARGEST_MULTIPLICITY, posterior.dim))
            more = min(MORE_BUDGET * budget, LARGEST_BUDGET)
            done = found.ended != "budget" if fit is None else max(fit.weights) >= SURE
            if done or rounds >= max_rounds or more < LEAST_GAIN * budget:
                break
            num_particles *= _more_particles(found, top, more / found.num_evaluations)
            budget = more
        random_values = posterior.report.values if posterior.report.random else posterior.changed_loss()
    config["particles"] = (f"{num_populations} × {num_particles}", f"populations × particles, in round {rounds}")
    fields = ("none", "a prior was given") if log_prior else ("yes", "fields that vanish on the sphere")
    config["control variates"] = fields
    config["engine"] = (posterior.engine.name, posterior.engine_reason)
    problems = stochastic_forward(random_values) + not_a_mean(posterior.report.uneven)
    problems += _problems(found, fitted, fit, top)
    error, variance = curve_error(curves)[0], found.variance.mean(0)
    curve = Curve(found.n_beta, curves.mean(0), error, variance, found.memory, fitted, curves)
    return RLCTEstimate(
        rlct=fit.rlct if fit else math.nan,
        interval=fit.interval if fit else (math.nan, math.nan),
        multiplicity=fit.multiplicity if fit else None,
        multiplicity_weights=fit.weights if fit else (),
        curve=curve,
        fit=fit,
        radius=radius,
        n=samples,
        loss_at_anchor=at_anchor,
        num_evaluations=spent,
        seconds=time.perf_counter() - started,
        verdict=Verdict(tuple(problems)),
        config=config,
    )


def _checked(radius: float | None, n_beta: tuple[float, float] | None) -> tuple[float, dict[str, tuple[Any, str]]]:
    config: dict[str, tuple[Any, str]] = {}
    config["radius"] = (radius, "asked for") if radius is not None else (DEFAULT_RADIUS, "default: one unit of weight")
    radius = DEFAULT_RADIUS if radius is None else float(radius)
    if not 0 < radius < math.inf:
        raise ValueError(f"radius: {radius!r}; expected a positive finite number, in units of weight.")
    pair = isinstance(n_beta, tuple | list) and len(n_beta) == 2
    if n_beta is not None and not (pair and 0 < n_beta[0] < n_beta[1] < math.inf):
        raise ValueError(f"n_beta: {n_beta!r}; expected two numbers (low, high) with 0 < low < high.")
    return radius, config


def _posterior(*arguments: Any, **options: Any) -> LocalPosterior:
    try:
        return LocalPosterior(*arguments, **options)
    except ValueError as error:
        if not isinstance(error.__cause__, RuntimeError):  # that dtypes do not fit
            raise
        raise ValueError(
            f"data: {str(error.__cause__).splitlines()[0]}. The ladder is computed in float64, to which model and "
            "tensors are taken; expected a Dataset, a DataLoader, and tensors inside loss_fn, that give float64."
        ) from error


def _check_prior(log_prior: Callable[[Tensor], Tensor] | None, model: nn.Module, parameters: Selector) -> None:
    """Refuse a prior that is none at the anchor and one other place, or of another shape than one number a row."""
    if log_prior is None:
        return
    if not callable(log_prior):
        raise ValueError(f"log_prior: {log_prior!r}; expected a function (n, dim) → (n,).")
    anchor = SampledParameters(model, parameters).flatten()
    found = log_prior(torch.stack([anchor, anchor + 1e-3]))
    if tuple(found.shape) != (2,):
        raise ValueError(f"log_prior: returned shape {tuple(found.shape)} for two rows; expected (2,), one for each.")
    if bool((torch.isnan(found) | (found == math.inf)).any()):
        raise ValueError("log_prior: is not a number, or infinite, near the anchor; expected −∞ or finite numbers.")


def _budget(dim: int) -> tuple[int, str]:
    return round(BUDGET * max(1.0, dim / BUDGET_DIM)), f"evaluations, the default for {dim} weights"


def _in_double(data: Any) -> Any:
    """Tensors in float64, alone or in a nest of tuples, lists and dicts; other forms are taken as they come."""
    return map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, data)


def _rounding(losses: Callable[[Tensor], Tensor], anchor: Tensor) -> float:
    """The loss's own rounding near the anchor, in nats.

    Weights that differ from the anchor by rounding have a loss that is rounding; and where the loss is a large number
    less another, the least that it can be other than zero is a unit of that number's last place.

    Args:
        losses: Less the loss at the anchor.
        anchor: w*.

    Returns:
        The larger of the two.
    """
    generator = torch.Generator(anchor.device).manual_seed(0)
    kind = {"generator": generator, "dtype": anchor.dtype, "device": anchor.device}
    direction = torch.randn(ROUNDING_PLACES, 1, len(anchor), **kind)
    scale = torch.logspace(math.log10(ROUNDING_DISTANCE), -4, 12, dtype=anchor.dtype, device=anchor.device)
    sizes = losses((anchor + direction * scale[:, None]).flatten(0, 1)).abs().view(ROUNDING_PLACES, -1)
    least = torch.where(sizes > 0, sizes, math.inf).amin(1)
    least = least[least.isfinite()]
    unit = float(least.median()) if len(least) else 0.0
    return max(float(sizes[:, 0].max()), unit)


def _grid(losses: Callable[[Tensor], Tensor], anchor: Tensor, radius: float) -> float:
    """The grid on which all losses in the ball stand, in nats, where the least of them are a few of its steps.

    Such is a loss to which a large number was added and taken from again: near the anchor it is exactly zero.

    Args:
        losses: Less the loss at the anchor.
        anchor: w*.
        radius: R.

    Returns:
        The step; 0 where there is no grid.
    """
    generator = torch.Generator(anchor.device).manual_seed(1)
    kind: dict[str, Any] = {"dtype": anchor.dtype, "device": anchor.device}
    direction = torch.randn(ROUNDING_PLACES, 1, len(anchor), generator=generator, **kind)
    direction /= direction.norm(dim=-1, keepdim=True)
    distance = radius * torch.logspace(*PLACES, **kind)
    found = losses((anchor + direction * distance[:, None]).flatten(0, 1)).detach().numpy()
    found = np.abs(found[np.isfinite(found) & (found != 0)])
    step = common_unit(found)
    return step if step and found.min() < step * 2.0**FEW_DIGITS else 0.0


def _top(rounding: float, samples: int | None, n_beta: tuple[float, float] | None) -> tuple[float, str]:
    limit, reason = math.exp(LARGEST_LOG_N_BETA), "float64 resolves weights no further"
    if rounding > 0 and ROUNDING / rounding < limit:
        limit, reason = ROUNDING / rounding, f"the loss is rounded by {rounding:.2g} nats at the anchor"
    if samples is not None and samples < limit:
        limit, reason = float(samples), "n: beyond, the loss knows only its samples"
    if n_beta is not None and n_beta[1] < limit:
        limit, reason = float(n_beta[1]), "asked for"
    return limit, reason


def _read(
    found: Cooling, cleaned: bool, n_beta: tuple[float, float] | None, largest_multiplicity: int
) -> tuple[Array, NDArray[np.bool_], TemperatureFit | None]:
    """Curves of all populations, which rungs are fitted, and the fit where there are enough of them."""
    curves = combine(found.plain_mean, found.mean) if cleaned else found.plain_mean
    fitted = _fitted_rungs(found, n_beta)
    if int(fitted.sum()) < MINIMUM_RUNGS:
        return curves, fitted, None
    ladder = np.log(found.n_beta[fitted])
    return curves, fitted, fit_temperatures(ladder, curves[:, fitted], largest_multiplicity=largest_multiplicity)


def _more_particles(found: Cooling, top: float, gain: float) -> int:
    """By how much populations can grow, in powers of two, for a ladder that comes to its top with a larger budget."""
    first, last = math.log(found.n_beta[0]), math.log(found.n_beta[-1])
    whole = (math.log(top) - first) / (last - first) if last > first else math.inf
    room = gain / whole if whole > 0 else 1.0
    return min(MORE_PARTICLES, 2 ** int(math.log2(max(room, 1.0))))


def _fitted_rungs(found: Cooling, n_beta: tuple[float, float] | None) -> NDArray[np.bool_]:
    """Those above the lowest nβ, up to where particles begin to stay behind."""
    fitted = np.ones(len(found.n_beta), dtype=bool)
    slow = np.nonzero(found.memory > REMEMBERED)[0]
    slow = slow[slow >= MINIMUM_RUNGS]
    if len(slow) >= REMEMBERED_RUNGS:
        fitted[max(int(slow[REMEMBERED_RUNGS - 1]), LEAST_RUNGS) :] = False
    if n_beta is not None:
        fitted &= found.n_beta >= n_beta[0]
    return fitted


def _problems(
    found: Cooling,
    fitted: NDArray[np.bool_],
    fit: TemperatureFit | None,
    top: float,
) -> list[Problem]:
    problems = []
    if not fit:
        figures = {"rungs": int(fitted.sum()), "needed": MINIMUM_RUNGS, "largest nβ": float(found.n_beta[-1])}
        advice = "too short a ladder to extrapolate; .curve holds λ̂(nβ) as far as it goes: "
        advice += "raise budget" if found.ended == "budget" else "give more samples, an exact loss or a larger radius"
        if not found.plain_mean.any():
            advice = "the loss does not change with the weights in the ball: sample others, or take a larger radius"
        problems.append(Problem("not_converged", figures, advice))
    if found.lowest * top < -1:
        problems.append(
            Problem(
                "not_at_a_minimum",
                {"loss falls by": -found.lowest},
                "the loss is lower elsewhere in the ball than at the anchor: train on, or take a smaller radius",
            )
        )
    frozen = float(np.median(found.memory[fitted])) if fitted.any() else 1.0
    if (frozen > FROZEN or found.ended == "frozen") and fit is not None:
        problems.append(
            Problem(
                "not_converged",
                {"memory of log loss": frozen, "frozen at nβ": float(found.n_beta[-1])},
                "the particles hardly move: raise num_particles or lower n_beta's upper end",
            )
        )
    if fit is None:
        return problems
    width = (fit.interval[1] - fit.interval[0]) / 2
    if width > TOLERANCE * max(fit.rlct, ABSOLUTE_FLOOR):
        problems.append(
            Problem(
                "imprecise",
                {"half-width": width, "rungs": int(fitted.sum())},
                "the ladder is too short or too noisy for λ: raise budget or num_particles",
            )
        )
    if fit.multiplicity is None:
        best = int(np.argmax(fit.weights)) + 1
        problems.append(
            Problem(
                "multiplicity_bias",
                {"likeliest m": best, "its weight": max(fit.weights)},
                "m is undecided, and λ with it within its interval: raise num_particles, budget or n_beta's upper end",
            )
        )
    return problems
