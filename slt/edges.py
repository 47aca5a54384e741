"""Whether the law ends among its chains: a loss, or a gradient, that is not a finite number just beyond them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from samplers import Kernel, Potential, ScaledPotential, Trace
from samplers.potential import Batch, WrappedPotential
from slt.posterior import LocalPosterior

# Of the proposals of the draws. What a wall cuts off is met by about as many paths as its share of the whole law: less
# than a hundredth moves λ̂ by less than a hundredth of the energy there, of which the tolerance allows five.
LEAST_SHARE = 0.01
CROSSINGS = 16  # that are looked at, if they are found
SHARE_OF_RUN = 0.05  # of its gradients, to find them, and as many to look at them
LARGEST = 2**26  # coordinates of all of them
# Of the way from the last finite place, to which the edge is found: energies that rise to it without bound, as 1/x or
# faster, have risen beyond all draws there.
RESOLUTION = 1e-5
USUAL_HALVINGS, MOST_HALVINGS = 20, 160  # the second from the largest number of float32 to that share of one


class Edge(NamedTuple):
    """Where the law ends.

    Attributes:
        share: Of the proposals of the draws that were refused there.
        of_gradient: Whether it is the gradient that is not finite, and the loss is, at most of the places beyond.
        loss: Just beyond, in nats; not a number, or infinite, where it is not finite.
        energy: nβ·loss and the localiser's just within, over those of the anchor, in nats: the median of the places.
        energy_of_draws: The median of the draws.
    """

    share: float
    of_gradient: bool
    loss: float
    energy: float
    energy_of_draws: float


@torch.no_grad()
def look_for_edge(
    posterior: LocalPosterior, kernel: Kernel, trace: Trace, ends: Tensor, seed: int
) -> tuple[Edge | None, float]:
    """The edge that chains meet, and the gradients that it took to know.

    A proposal is refused as not finite at a wall of the law; but also where a path at too large a step is thrown out
    of a stiff place until its energy overflows. Of steps over all scales these were 4 to 57 % of the proposals on laws
    that end nowhere: in 31 of 56 known cases at nβ = 10⁴, none of which is named. So the share alone tells only where
    there is nothing to look for, below a hundredth, which costs nothing. Beyond, a few more paths are taken from where
    the chains ended, and each way to a first place that is not finite is halved until it ends at the edge. Where the
    energy just within is no higher than that of the highest draw, the law is cut off where it has weight. What
    overflows has risen by then to the largest number there is, and so has what climbs its wall: a law that falls to
    nothing by itself, as (1 − w²)^nβ does, loses nothing there. So a law that is finite wherever its draws' energies
    are is not named, whatever its steps.

    Args:
        posterior: The target, entered, whole.
        kernel: That of the run; of a ladder that of its last rung.
        trace: Of the run.
        ends: Where chains are, ``(chain, dim)``, in the units of ``posterior.target``.
        seed: Of the paths.

    Returns:
        The edge, or None; and full-data gradients of a chain.
    """
    share = float(trace.statistics["not_finite"][trace.surviving].mean()) if trace.surviving.any() else 0.0
    if not share > LEAST_SHARE:
        return None, 0.0
    target = posterior.target
    wanted = min(SHARE_OF_RUN * trace.num_gradients / kernel.gradients_per_step, 2 * CROSSINGS / share)
    most = min(CROSSINGS, LARGEST // target.dim, int(SHARE_OF_RUN * trace.num_gradients / USUAL_HALVINGS))
    found = _crossings(kernel, target, ends, seed, math.ceil(wanted / len(ends)), max(1, most))
    if not len(found.inside):
        return None, found.num_gradients
    anchored = float(target.loss_and_grad(target.anchor.unsqueeze(0))[0])
    loss, localization = (trace.statistics[name][trace.surviving] for name in ("loss", "localization_energy"))
    of_draws = float(target.n_beta) * (loss - anchored) + localization
    places = _approached(target, found, anchored, float(of_draws.max()))
    share *= len(places.energy) / found.refused
    num_gradients = found.num_gradients + places.num_gradients
    if not share > LEAST_SHARE:
        return None, num_gradients
    finite = torch.isfinite(places.loss)
    of_gradient = bool(finite.double().mean() > 0.5)
    beyond = float(places.loss[finite == of_gradient].median())
    return Edge(share, of_gradient, beyond, float(places.energy.median()), float(np.median(of_draws))), num_gradients


@dataclass(frozen=True)
class _Watched(WrappedPotential):
    """A potential that keeps, of each chain, the last place before the first at which it is not finite, and that one.

    Attributes:
        inside: ``(chains, dim)``; at first where the chains start.
        outside: ``(chains, dim)``, of those that have met it.
        met: Which have, ``(chains,)``.
    """

    inside: Tensor
    outside: Tensor
    met: Tensor

    @property
    def n_beta(self) -> float | Tensor:
        """The base's, nβ."""
        return self.base.n_beta

    def loss_and_grad(self, position: Tensor, batch: Batch = None) -> tuple[Tensor, Tensor]:
        """The base's."""
        loss, gradient = self.base.loss_and_grad(position, batch)
        newly = ~(torch.isfinite(loss) & torch.isfinite(gradient).all(-1) | self.met)
        self.outside[newly] = position[newly]
        self.met.logical_or_(newly)
        self.inside[~self.met] = position[~self.met]
        return loss, gradient


class _Crossings(NamedTuple):
    """Ways out of the finite numbers, from their last finite place to the first that is not, ``(way, dim)``."""

    inside: Tensor
    outside: Tensor
    refused: int  # proposals that were not finite, with those whose position was not
    num_gradients: float


def _crossings(
    kernel: Kernel, target: LocalPosterior | ScaledPotential, ends: Tensor, seed: int, num_paths: int, most: int
) -> _Crossings:
    """Those of a few more paths of each chain, until so many were refused."""
    generator = torch.Generator(target.anchor.device).manual_seed(seed)
    state = kernel.init(ends.to(target.anchor, copy=True), target)
    ways, refused, taken = [], 0, 0
    while taken < num_paths and refused < most:
        start = state.position
        watched = _Watched(target, start.clone(), start.clone(), start.new_zeros(len(start), dtype=torch.bool))
        not_finite = kernel.step_(state, watched, None, generator).not_finite
        refused, taken = refused + int(not_finite.sum()), taken + 1
        crossing = not_finite & watched.met & torch.isfinite(watched.outside).all(-1)
        ways.append(torch.stack([watched.inside[crossing], watched.outside[crossing]]))
    inside, outside = torch.cat(ways, 1)
    return _Crossings(inside, outside, refused, float(len(ends) * (1 + taken * kernel.gradients_per_step)))


class _Places(NamedTuple):
    """Places at the edge of the law where it has weight: the energy just within, the loss just beyond, in nats."""

    energy: Tensor
    loss: Tensor
    num_gradients: float


def _approached(target: Potential, found: _Crossings, anchored: float, highest: float) -> _Places:
    """Edges whose energy, over that of the anchor, is no higher than that; by halving of the ways."""
    inside, outside = found.inside, found.outside
    loss, beyond = (_finite_parts(target, places)[0] for places in (inside, outside))
    start, num_gradients = inside.clone(), 2 * len(inside)

    def energy() -> Tensor:
        return float(target.n_beta) * (loss - anchored) + target.localizer.energy(inside).double()

    for _ in range(MOST_HALVINGS):
        middle = inside + 0.5 * (outside - inside)
        apart = torch.linalg.vector_norm(outside - inside, dim=-1)
        near = apart <= RESOLUTION * torch.linalg.vector_norm(outside - start, dim=-1)
        near |= (middle == inside).all(-1) | (middle == outside).all(-1)  # neighbours in their dtype
        going_on = ~near & (energy() <= highest)
        if not going_on.any():
            break
        rows = going_on.nonzero()[:, 0]
        of_middle, finite = _finite_parts(target, middle[rows])
        num_gradients += len(rows)
        within, without = rows[finite], rows[~finite]
        inside[within], loss[within] = middle[within], of_middle[finite]
        outside[without], beyond[without] = middle[without], of_middle[~finite]
    with_weight = energy() <= highest
    return _Places(energy()[with_weight], beyond[with_weight], float(num_gradients))


def _finite_parts(target: Potential, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The losses at any number of places, in float64, and whether they and their gradients are finite."""
    losses, finite = [], []
    for part in positions.split(target.max_chains or len(positions)):
        loss, gradient = target.loss_and_grad(part)
        losses.append(loss.double())
        finite.append(torch.isfinite(loss) & torch.isfinite(gradient).all(-1))
    return torch.cat(losses), torch.cat(finite)
