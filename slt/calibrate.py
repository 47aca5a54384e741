"""How "auto" decides: nβ, γ, kernel, step size and length of run, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import samplers
from samplers import Kernel
from samplers.adaptation import Adaptation
from samplers.diagnostics import MINIMUM_DRAWS
from slt.centred_samples import SHARE_OF_RUN, WITHOUT_GRADIENT
from slt.data import BatchData
from slt.engines.activations import MOST_BYTES
from slt.engines.in_place import InPlaceEngine
from slt.ladders import LARGEST_DIM, Ladder, make_ladder
from slt.pairing import choose_pairing
from slt.paths import PATH_STEPS, path_adaptation
from slt.posterior import LocalPosterior
from slt.whitening import LARGEST_WHITENED, whitened_adaptation

DEFAULT_LOCALIZATION = 1.0  # Lau et al. 2023, Table 3: γ = 1 in every experiment on deep linear networks
DEFAULT_BATCH_SIZE = 512  # Lau et al. 2023 used 500
# Chains of the batched engine cost little more together than one; in sequence each costs its full price.
CHAINS = {"batched": 8, "in_place": 4, "sharded": 4}
WARMUP = {"batched": 1000, "in_place": 200, "sharded": 200}
DRAWS = {"batched": 1000, "in_place": 200, "sharded": 200}
BUDGET = {"batched": 12_000, "in_place": 1_000, "sharded": 1_000}
# MALA's optimum is 0.574 (Roberts & Rosenthal 1998, Theorem 3); a quarter of the steps are smaller ones, which are
# accepted nine times in ten: 0.75 · 0.574 + 0.25 · 0.9.
ACCEPTANCE_RATE = 0.65
PATH_WARMUP, PATH_DRAWS, PATH_BUDGET = 60, 100, 2400  # of Hamiltonian paths of ten gradients
# Multiplications forward that a whole default budget may take, by the type of device: some ten minutes of a core, at a
# thousand million of them in a second with their gradients; other devices are taken for a hundred times as fast.
PRODUCTS, PRODUCTS_ELSEWHERE = 5e11, 5e13
FEWEST_STEPS = 12  # of the default budget, as a divisor, where a step is dear: as few as chains in sequence take
# A full gradient is affordable where samples × multiplications of one stay below this, so that a whole budget of paths
# is. There an exact sampler has no bias at all, and at 2 % bias SGLD would need more steps (MALA's step shrinks as
# dim^(-1/3) only). Elsewhere as far as was measured: of 7·10⁶, of a million samples, 90 to 190 s on an H100.
EXACT_LIMIT, EXACT_LIMIT_ELSEWHERE = round(PRODUCTS / (PATH_BUDGET * PATH_STEPS * CHAINS["batched"])), 10_000_000
# Of replica exchange, a step of which takes five gradients at every rung.
LADDERS, LADDER_WARMUP, LADDER_DRAWS = 8, 400, 1000
RELATIVE_BIAS = 0.02  # of SGLD's step size: well inside the default tolerance of 5 %
# Of baoab, whose chains start in a law like the posterior, and come from a pilot that is a share of the budget: what it
# heats shows late.
WHITENED_WARMUP, PILOT_SHARE, PILOT_STEPS = 200, 0.25, 450  # and what its metric and first step take


@dataclass(frozen=True)
class Plan:
    """What will be run, and why.

    Attributes:
        kernel: With a step size, or one to be found by ``adapt``.
        adapt: Finds the step size; None where it is given.
        batch_size: Samples per chain and step; None for full data.
        num_chains: Chains.
        num_warmup: Warm-up steps of each chain.
        num_draws: Draws of the first round.
        thinning: Steps per draw.
        budget: Steps of one chain at most, warm-up included; rounds are added until then.
        extend: Whether rounds may be added.
        reasons: For every choice, by name.
        ladder: Of replica exchange, where the kernel is one.
        paired: Whether minibatches are taken beside the anchor's: control variates.
        num_gradients: Taken to make it, in full-data gradients.
    """

    kernel: Kernel
    adapt: Adaptation | None
    batch_size: int | None
    num_chains: int
    num_warmup: int
    num_draws: int
    thinning: int
    budget: int
    extend: bool
    reasons: dict[str, str] = field(default_factory=dict)
    ladder: Ladder | None = None
    paired: bool = False
    num_gradients: float = 0.0


def default_n_beta(n: int) -> float:
    """The inverse temperature n / log n at which the tempered mean of n·L_n estimates the free energy.

    Args:
        n: The number of samples, at least 3.

    Returns:
        nβ, at the WBIC temperature β = 1 / log n.

    Raises:
        ValueError: n is below 3, where log n is not safely positive.

    Source:
        Watanabe 2013, Theorem 4.
    """
    if n < 3:
        raise ValueError(f"n: {n}; expected at least 3 samples for the default nβ = n / log n. Give n_beta instead.")
    return n / math.log(n)


def make_plan(
    posterior: LocalPosterior,
    *,
    baseline: float,
    sampler: str | Kernel,
    step_size: float | None,
    batch_size: int | None,
    num_chains: int | None,
    num_warmup: int | None,
    num_draws: int | None,
    thinning: int,
    budget: int | None,
    seed: int,
    tolerance: float,
    anchor_samples: int | None,
    control_variates: bool | None,
    together: bool = True,
) -> Plan:
    """The plan of a run: what was asked for is left alone, and the rest is chosen.

    Args:
        posterior: The target.
        baseline: L_n(w*), in nats.
        sampler: ``"auto"``, ``"replica_exchange"``, ``"hmc"``, ``"mala"``, ``"baoab"``, ``"sgld"`` or a
            kernel, whose settings are then frozen.
        step_size: ε, or None to find one.
        batch_size: Of minibatches, or None.
        num_chains: Or None.
        num_warmup: Or None.
        num_draws: Or None, which allows rounds to be added.
        thinning: Steps per draw.
        budget: Steps of one chain at most, or None.
        seed: Of the pilot that finds curvature, and of what measures the noise of batches.
        tolerance: The half-width of the interval to reach, relative to λ̂.
        anchor_samples: Of how many samples ``baseline`` is the mean; None for all.
        control_variates: Whether minibatches are taken beside the anchor's, or None.
        together: Whether all chains can be advanced at once, as replica exchange must.

    Returns:
        The plan.

    Raises:
        ValueError: The sampler is unknown, or the choices contradict each other.
        FloatingPointError: Replica exchange was asked for, where the localiser lets the weights go to places without
            a finite gradient.
    """
    engine = posterior.engine.name
    reasons = {"engine": posterior.engine_reason}
    kernel, given = _kernel(posterior, sampler, step_size, batch_size, together, reasons)
    by_hand = given or batch_size is not None
    ladder = None
    if kernel is None:
        try:
            ladder = make_ladder(posterior.target, num_chains or LADDERS, seed)
            kernel, reasons["step_size"] = ladder.kernel, ladder.reason
        except FloatingPointError:
            if sampler != "auto":
                raise
            kernel = samplers.mala(step_size=1.0)
            reasons["sampler"] = "the loss is not finite wherever the localiser lets the weights go: no ladder"
    exact = kernel.exact
    if exact and posterior.shards is not None:
        raise ValueError(
            f"sampler: {kernel.name}, but parameters are sharded over processes; expected one that is not exact, such "
            "as 'sgld'."
        )
    if kernel.name == "baoab" and not given and posterior.shards is not None:
        raise ValueError(
            "sampler: 'baoab', but parameters are sharded over processes, and its metric needs matrices in one place; "
            "expected 'sgld'."
        )
    paths = kernel.name == "hmc" and not given
    whitened = kernel.name == "baoab" and not given
    if exact and batch_size is not None and posterior.data is not None:
        raise ValueError(
            f"batch_size: {batch_size}, but {kernel.name} is exact only with the full-data gradient. Leave batch_size "
            "out, or use sampler='baoab'."
        )
    asked_size = batch_size
    if posterior.data is None:
        if batch_size is not None:
            raise ValueError(f"batch_size: {batch_size}, but data is None: an exact loss has no minibatches.")
        reasons["batch_size"] = "the loss is exact"
    elif exact:
        reasons["batch_size"] = "full data: the kernel is exact"
    elif kernel.name == "mclmc" and batch_size is None and not control_variates:
        reasons["batch_size"] = "full data: the bias of mclmc is not known without"
    elif batch_size is None:
        batch_size = min(posterior.data.size, DEFAULT_BATCH_SIZE)
        reasons["batch_size"] = f"min(n, {DEFAULT_BATCH_SIZE})"
        affordable = posterior.engine.affordable_samples if isinstance(posterior.engine, InPlaceEngine) else batch_size
        if batch_size > affordable:
            batch_size = affordable
            reasons["batch_size"] = f"whose activations are at most {MOST_BYTES >> 30} GiB"
    else:
        reasons["batch_size"] = "asked for" if batch_size <= posterior.data.size else "all samples: more were asked for"
        batch_size = min(batch_size, posterior.data.size)
    if isinstance(posterior.data, BatchData) and batch_size is not None:
        average = round(posterior.data.size / posterior.data.num_batches)
        if asked_size not in (None, average):
            raise ValueError(
                f"batch_size: {asked_size}, but the data are batches of unequal shapes or sizes, or larger than "
                "memory, which are used as they come. Leave batch_size out, or make the batches of this size."
            )
        batch_size = average
        reasons["batch_size"] = "on average: batches as the data came in"

    def pick(name: str, value: int | None, default: int) -> int:
        whose = "replica exchange" if ladder is not None else ("Hamiltonian paths" if paths else f"the {engine} engine")
        reasons[name] = f"default of {whose}" if value is None else "asked for"
        return default if value is None else value

    reasons["thinning"] = "every step is a draw" if thinning == 1 else "asked for"
    chains = pick("num_chains", num_chains, CHAINS[engine] if ladder is None else LADDERS)
    longest = PATH_BUDGET if paths else BUDGET[engine]
    if budget is None and engine == "batched" and posterior.data is not None:
        gradients = chains * kernel.gradients_per_step * (2 if control_variates else 1)
        longest = _affordable_steps(posterior, longest, gradients, batch_size, pilot=whitened)
    num_steps = (budget or longest) if num_draws is None else num_draws * thinning
    centred = 0.0
    if anchor_samples is None and not control_variates:
        centred = _centred(posterior, None if exact else batch_size, num_steps * chains)
    pairing = choose_pairing(
        posterior,
        kernel,
        asked=control_variates,
        by_hand=by_hand,
        anchor_samples=anchor_samples,
        batch_size=batch_size,
        num_steps=num_steps,
        num_chains=chains,
        tolerance=tolerance,
        seed=seed,
    )
    reasons["control_variates"] = pairing.reason
    if given or ladder is not None:
        adapt = None
    elif paths:
        asked = longest if num_draws is None else (num_warmup or PATH_WARMUP) + num_draws * thinning
        adapt = path_adaptation(posterior, min(asked, budget or longest))
        reasons["step_size"] = "log-uniform around an acceptance rate of 0.8, in a metric found in a pilot run"
    elif exact:
        adapt = samplers.accept_at_rate(ACCEPTANCE_RATE)
        reasons["step_size"] = f"dual averaging towards an acceptance rate of {ACCEPTANCE_RATE}"
    elif whitened:
        asked = longest if num_draws is None else (num_warmup or 0) + num_draws * thinning
        pilot = round(PILOT_SHARE * min(asked, budget or longest))
        adapt = whitened_adaptation(posterior, baseline, pilot)
        reasons["step_size"] = (
            "in a metric of each matrix of weights; its bias is at most 1 % of λ̂ in a pilot; lowered beyond 2 %"
        )
    else:
        adapt = samplers.limit_bias(baseline, RELATIVE_BIAS)
        reasons["step_size"] = f"predicted discretisation bias of {RELATIVE_BIAS:.0%} of λ̂"
    steps = pick("budget", budget, longest)
    if longest < (PATH_BUDGET if paths else BUDGET[engine]):
        products = _on_device(posterior, PRODUCTS, PRODUCTS_ELSEWHERE)
        reasons["budget"] = f"of dear steps: {products:.0e} products with the pilot, or a twelfth of the usual budget"
    if ladder is not None:
        longest_warmup, draws = LADDER_WARMUP, LADDER_DRAWS
    elif paths:
        longest_warmup, draws = PATH_WARMUP, PATH_DRAWS
    else:
        longest_warmup, draws = WARMUP[engine], DRAWS[engine]
        longest_warmup = min(longest_warmup, WHITENED_WARMUP) if whitened else longest_warmup
    warmup = pick("num_warmup", num_warmup, max(kernel.num_adapt, min(longest_warmup, steps // 3)))
    if budget is not None and num_draws is not None and warmup + num_draws * thinning > budget:
        raise ValueError(
            f"budget: {budget} steps, beside num_draws: {num_draws} of {thinning} each after {warmup}; "
            "expected no more of them than the budget, or one of the two."
        )
    if num_draws is None and warmup + thinning > steps:
        raise ValueError(
            f"budget: {steps} steps, of which {warmup} are warm-up, and a draw takes {thinning}; expected room for one."
        )
    return Plan(
        kernel=kernel,
        adapt=adapt,
        batch_size=batch_size,
        num_chains=chains,
        num_warmup=warmup,
        num_draws=pick("num_draws", num_draws, max(1, min(draws, (steps - warmup) // max(1, thinning)))),
        thinning=thinning,
        budget=steps,
        extend=num_draws is None,
        reasons=reasons,
        ladder=ladder,
        paired=pairing.paired,
        num_gradients=pairing.num_gradients + centred,
    )


def _centred(posterior: LocalPosterior, batch_size: int | None, num_batches: int) -> float:
    """Take the noise of samples at w* off minibatches, where that costs little beside the run; and what it cost."""
    posterior.engine.excess = None
    if posterior.data is None or batch_size is None or batch_size >= posterior.data.size:
        return 0.0
    if WITHOUT_GRADIENT * posterior.data.size > SHARE_OF_RUN * batch_size * num_batches:
        return 0.0
    return posterior.centre_samples()


def _affordable_steps(
    posterior: LocalPosterior, usual: int, gradients: int, batch_size: int | None, *, pilot: bool
) -> int:
    """As many steps of so many gradients as the products of a default budget allow, within a factor of twelve."""
    assert posterior.data is not None
    # by what is counted, not by a clock, so that a run is the same wherever it is repeated
    samples = min(batch_size or posterior.data.size, posterior.data.size)
    step = gradients * samples * posterior.multiplications_per_sample
    products = _on_device(posterior, PRODUCTS, PRODUCTS_ELSEWHERE)
    most = (products / step - PILOT_STEPS) / (1 + PILOT_SHARE) if pilot else products / step
    return min(usual, max(usual // FEWEST_STEPS, int(most)))


def _on_device(posterior: LocalPosterior, cpu: float, elsewhere: float) -> float:
    return cpu if posterior.anchor.device.type == "cpu" else elsewhere


def with_paths(plan: Plan, kernel: Kernel) -> Plan:
    """The same plan for a kernel whose paths were found to be longer: fewer of them, where the number was not given.

    Args:
        plan: Made for paths of ten steps.
        kernel: What its adaptation found.

    Returns:
        The plan, with the budget in its own paths.
    """
    longer = kernel.gradients_per_step / plan.kernel.gradients_per_step
    if longer == 1:
        return replace(plan, kernel=kernel)
    found = f"{plan.reasons['step_size']}; paths of {kernel.gradients_per_step} steps, where these are small"
    # what is asked for of warm-up stays, and what is left of the budget is then for longer paths
    asked = plan.num_warmup if plan.reasons["num_warmup"] == "asked for" else 0
    budget = asked + max(round((plan.budget - asked) / longer), MINIMUM_DRAWS * plan.thinning)
    warmup, draws = plan.num_warmup, plan.num_draws
    if not asked:
        warmup = min(warmup, budget // 3)
    if plan.extend:
        draws = max(1, min(draws, (budget - warmup) // plan.thinning))
    spent = f"{plan.reasons['budget']}: {plan.budget} paths of {PATH_STEPS} gradients"
    reasons = {**plan.reasons, "step_size": found, "budget": spent}
    return replace(plan, kernel=kernel, num_warmup=warmup, num_draws=draws, budget=budget, reasons=reasons)


def _kernel(
    posterior: LocalPosterior,
    sampler: str | Kernel,
    step_size: float | None,
    batch_size: int | None,
    together: bool,
    reasons: dict[str, str],
) -> tuple[Kernel | None, bool]:
    """The kernel, and whether its step size is given; None for replica exchange, which needs a ladder first."""
    if isinstance(sampler, Kernel):
        if step_size is not None:
            raise ValueError(
                f"step_size: {step_size}, beside a {sampler.name} kernel that has its own. Give one of the two."
            )
        reasons["sampler"] = reasons["step_size"] = "asked for"
        return sampler, True
    makers: dict[str, Any] = {
        "baoab": samplers.baoab,
        "sgld": samplers.sgld,
        "mala": samplers.mala,
        "hmc": partial(samplers.hmc, num_steps=PATH_STEPS),
        "replica_exchange": None,
    }
    if sampler not in ("auto", *makers):
        raise ValueError(
            f"sampler: {sampler!r}; expected 'auto', 'replica_exchange', 'hmc', 'mala', 'baoab', 'sgld' or a kernel, "
            "made by a call such as samplers.rmsprop_sgld(1e-4)."
        )
    name = sampler
    localised = posterior.localizer.strength > 0
    laddered = localised and posterior.engine.name == "batched" and step_size is None and together
    exact_one = "hmc" if posterior.engine.name == "batched" and step_size is None else "mala"
    if sampler == "auto":
        data = posterior.data
        limit = _on_device(posterior, EXACT_LIMIT, EXACT_LIMIT_ELSEWHERE)
        cost = 0.0 if data is None else float(data.size * posterior.num_weights)
        in_reach = posterior.engine.name == "batched" and batch_size is None and cost <= limit
        if data is not None and in_reach:
            cost = data.size * posterior.multiplications_per_sample
        if posterior.shards is not None:
            name, why = "sgld", "parameters are sharded: an exact sampler needs them in one place"
        elif data is None and laddered and posterior.dim <= LARGEST_DIM:
            name, why = "replica_exchange", "the loss is exact and has few weights: valleys of all widths are reached"
        elif data is None:
            name, why = exact_one, f"the loss is exact, and {exact_one.upper()} has no step-size bias"
        elif in_reach and cost <= limit:
            why = f"full-data gradients are affordable ({cost:.1e} products), and {exact_one.upper()} has no bias"
            name = exact_one
        else:
            # a step that is given is that of the field's own sampler, in the identity metric
            whitened = step_size is None and posterior.dim <= LARGEST_WHITENED
            name = "baoab" if whitened else "sgld"
            if batch_size is not None:
                why = "minibatches were asked for"
            elif posterior.engine.name != "batched":
                why = "chains run one after another, by minibatches"
            else:
                why = f"full-data gradients are too dear ({cost:.1e} products)"
            why += "" if whitened or step_size is not None else "; too many weights for a metric"
        reasons["sampler"] = why
    else:
        reasons["sampler"] = "asked for"
    if name == "replica_exchange":
        if not laddered:
            raise ValueError(
                "sampler: 'replica_exchange' without a localiser, with a step_size, in blocks or processes, or on the "
                "in-place engine; expected localization > 0, step sizes that are found, and chains that are advanced "
                "together."
            )
        return None, False
    if step_size is not None:
        reasons["step_size"] = "asked for"
    return makers[name](step_size=1.0 if step_size is None else step_size), step_size is not None
