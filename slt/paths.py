"""What Hamiltonian paths need to be at home in a posterior: a metric and a range of step sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import samplers
from samplers import Adapted, Kernel, Potential
from samplers.adaptation import Adaptation
from samplers.curvature import OVERSAMPLING
from slt.metric import MOST_SAMPLES
from slt.posterior import LocalPosterior

PATH_STEPS = 10  # of a path, a gradient each; at least, and in a pilot
# A path goes 1.25 widths of a wall at the middle of its step sizes, which on a quadratic is close to a quarter period,
# but takes no more steps than this: of the default budget there are then 240 paths of each chain.
PATH_LENGTH, MOST_PATH_STEPS = 1.25, 100
PATH_PILOT = 40  # paths that find step sizes; twice as many find the metric
LEAST_PILOT = 15
PILOT_PER_RUNG = 5  # as many paths at each temperature from which chains are cooled: 8 of the longest pilot
LARGEST_DENSE = 2560  # weights, up to which roots of dense matrices cost less than the gradients of a pilot
# A dense metric costs 4·dim² a step and chain, and a gradient 6·n·dim at least: with fewer samples the metric is dear.
WEIGHTS_PER_SAMPLE = 2
LARGEST_REFINED = 256  # weights, beyond which so short a pilot tells little that is new
STIFF_DIRECTIONS = 64  # that are whitened where there are more


def path_adaptation(posterior: LocalPosterior, num_paths: int) -> Adaptation:
    r"""Metric, step sizes and path lengths of ``hmc``: the curvature at the anchor first, then what a pilot meets.

    .. math:: P = (n\beta |H| + (\gamma + \sqrt{n\beta}) I)^{-1}, \qquad
              P \leftarrow \text{least Fisher divergence on the draws of a pilot in it}

    and after each the range of step sizes of :func:`samplers.accept_over_scales`. H is the exact Hessian of at most
    2,048 samples, by second derivatives; by differences of gradients where the loss has none, and P is the identity
    where these are not finite. The pilot is for at most 256 weights, whose covariance its draws can tell. P whitens
    the 64 stiffest directions alone of more than 2,560 weights, and of more than 256 where there are not half as many
    samples.

    Of at most 256 weights the chains then start apart, cooled from nβ = 10 by :func:`samplers.disperse`, so that R̂
    tells of parts of the law between which they cannot move, and steps reach down to what they accept there.

    At last ten to a hundred steps a path, as many as cross 1.25 of P's own widths with the geometric mean of the step
    sizes. Where walls turn as the weights move along a valley, steps are small in a metric that was right at the
    anchor, and ten of them get nowhere.

    Args:
        posterior: The target, entered.
        num_paths: Paths of each chain of the run: where they are few, the pilot takes a tenth of them for each of
            its parts, but at least 15.

    Returns:
        An adaptation for ``hmc``.
    """
    whiten = _whitening(posterior)
    pilot = max(LEAST_PILOT, min(PATH_PILOT, num_paths // 10))
    find_steps = samplers.accept_over_scales(num_steps=pilot)
    if posterior.dim > min(LARGEST_REFINED, LARGEST_DENSE):
        return samplers.in_turn(whiten, find_steps, _lengthen)
    found = [whiten, find_steps, samplers.fisher_metric(2 * pilot), find_steps]
    if posterior.localizer.strength > 0:  # without it, hot chains would leave for good
        found.append(samplers.disperse(num_steps=max(1, pilot // PILOT_PER_RUNG)))
    return samplers.in_turn(*found, _lengthen)


def _lengthen(
    kernel: Kernel,
    potential: Potential,
    position: Tensor,
    batches: Iterator[Any] | None,
    generator: torch.Generator,
) -> Adapted:
    """The same paths, long enough."""
    low, high = kernel.settings["step_size"]
    steps = round(PATH_LENGTH / math.sqrt(low * high))
    return Adapted(kernel.tune(num_steps=max(PATH_STEPS, min(MOST_PATH_STEPS, steps))), 0)


def _whitening(posterior: LocalPosterior) -> Adaptation:
    """The metric of the curvature at the anchor."""
    exact, target = posterior.hessian_products(MOST_SAMPLES), posterior.target
    size = 1 if posterior.data is None else posterior.data.size
    dense = posterior.dim <= min(LARGEST_DENSE, max(LARGEST_REFINED, WEIGHTS_PER_SAMPLE * size))
    rank = posterior.dim if dense else STIFF_DIRECTIONS

    def products(vectors: Tensor) -> Tensor:
        try:
            found = exact(vectors)
        except ValueError:  # no second derivatives
            found = vectors.new_full((), math.nan)
        if bool(torch.isfinite(found).all()):
            return found
        return samplers.hessian_products(target, target.anchor)(vectors)  # by differences, which kinks mislead

    whiten = samplers.whiten_curvature(rank=rank, products=products)

    def adapt(
        kernel: Kernel,
        potential: Potential,
        position: Tensor,
        batches: Iterator[Any] | None,
        generator: torch.Generator,
    ) -> Adapted:
        try:
            found = whiten(kernel, potential, position, batches, generator).kernel
        except FloatingPointError:  # no curvature at the anchor: chains start in the identity metric
            found = kernel
        # a product is worth two gradients of its samples; counted for each chain of a block
        num_products = rank if rank == posterior.dim else 7 * (rank + OVERSAMPLING)
        return Adapted(found, math.ceil(2 * num_products * min(1.0, MOST_SAMPLES / size) / len(position)))

    return adapt
