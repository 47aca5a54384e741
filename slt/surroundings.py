"""What lies around the anchor: how far the loss falls nearby, whether it falls forever, how noisy its gradient is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from samplers import ScaledPotential
from samplers.potential import sum_over_pieces
from samplers.preconditioner import Preconditioner
from slt.posterior import LocalPosterior

SHARE = 0.05  # of the gradients of a run that a look around its anchor may take
MOST_DESCENT = 60  # evaluations of U; quasi-Newton steps find a nat, if it is there, in fewer
LEAST_DESCENT = 6
SHORT_SHARE, SHORT_DESCENT = 0.25, 3  # where a run has no gradients for it: of those it took, and the fewest there are
HISTORY, LONG_VECTOR = 10, 1_000_000  # pairs of vectors that a descent keeps; none of vectors longer than this
# Of the ray that goes on from 0 through the anchor: twice as far out each time, 4,096 times at last. Weights that have
# hardly been trained are far from the minimum on that ray: at a hundredth of it, a regression still falls at 64 times.
# Where a deep network overflows sooner, six must do.
DOUBLINGS, LEAST_DOUBLINGS = 12, 6
REMAINS = 0.1  # of the anchor's loss at the end of a ray along which it falls forever
FARTHEST = 100.0  # times the first step
MOST_BATCHES, LEAST_BATCHES = 64, 16  # at the anchor, whose gradients are compared: a variance to 18 to 35 %


class Surroundings(NamedTuple):
    """What was found around an anchor.

    Attributes:
        fall: nβ(L(w*) − L(w')), in nats, w' being where a descent of U from w* came to.
        fall_of_potential: U(w*) − U(w'), in nats: the fall less what the localiser asks for it. At least 0.
        distance: ‖w' − w*‖.
        outward: Loss at 1, 2, 4, … 4,096 times a place, in nats, up to where it is not finite; empty where it was not
            looked at. The place is w*; or where a descent of the loss alone came to, if no nat was found near w* but
            half of the loss was lost there.
        num_gradients: Taken, in full-data gradients.
    """

    fall: float
    fall_of_potential: float
    distance: float
    outward: tuple[float, ...]
    num_gradients: float

    @property
    def falls_forever(self) -> bool:
        """Whether the loss falls at every doubling of the weights, to less than a tenth: it has no minimum there."""
        if len(self.outward) <= LEAST_DOUBLINGS or not self.outward[0] > 0:
            return False
        pairs = list(zip(self.outward, self.outward[1:], strict=False))
        falling = all(after < before or after == 0 for before, after in pairs)
        return falling and 0 <= self.outward[-1] < REMAINS * self.outward[0]


class _Descent(NamedTuple):
    """From where to where: nβ·L and U at both ends, the lower end, and the gradients taken."""

    start: tuple[float, float]
    end: tuple[float, float]
    position: Tensor
    taken: int


def look_around(
    posterior: LocalPosterior, num_gradients: float, metric: Preconditioner | None = None
) -> Surroundings | None:
    r"""How far the loss falls near the anchor, and whether it falls forever as the weights grow.

    U = nβ L + (γ/2)‖w − w*‖² is descended from w* by L-BFGS, so that what is found is near in the posterior's own
    sense; and L is evaluated at 2, 4, … 4,096 times w*. A separable classification has no minimum: its loss falls to 0
    along that ray, while others rise again or stay. Early in training the ray through w*
    need not separate; then L is descended without the localiser, and the ray through where that leads is looked at.

    Args:
        posterior: The target, entered.
        num_gradients: That the run took, in full-data gradients; at most a twentieth of it is spent, or three.
        metric: Of the run's kernel, in units of ``posterior.target``, in which three look; the identity by default.

    Returns:
        What was found; None where a twentieth of the run is less than the shortest descent, and a quarter than three.
    """
    allowed = int(SHARE * num_gradients)
    if allowed < LEAST_DESCENT:
        return _step_down(posterior, metric) if SHORT_SHARE * num_gradients >= SHORT_DESCENT else None
    ray = DOUBLINGS + 1
    near = _descend(posterior, min(MOST_DESCENT, max(LEAST_DESCENT, allowed - ray)), localised=True)
    taken = near.taken
    fall, fall_of_potential = (near.start[place] - near.end[place] for place in (0, 1))
    distance = math.sqrt(float(posterior.sum((near.position - posterior.anchor).double().square())))
    outward: tuple[float, ...] = ()
    if allowed >= taken + ray:
        outward = _losses_along(posterior, posterior.anchor)
        taken += ray
    found = Surroundings(fall, fall_of_potential, distance, outward, taken)
    if found.falls_forever or fall_of_potential > 1 or allowed < taken + ray + LEAST_DESCENT:
        return found
    far = _descend(posterior, min(MOST_DESCENT, allowed - taken - ray), localised=False)
    taken += far.taken
    if far.end[0] < far.start[0] / 2:
        outward = _losses_along(posterior, far.position)
        taken += ray
    return found._replace(outward=outward, num_gradients=taken)


@torch.no_grad()
def _step_down(posterior: LocalPosterior, metric: Preconditioner | None) -> Surroundings:
    r"""What two places tell along the gradient at w\*, in the metric; the second where a parabola is least.

    With slope s of U along d = −P∇U, and a first step of a nat or two, t = 2/|s|,

    .. math:: c = 2\,\frac{U(w^* + t d) - U(w^*) - s t}{t^2}, \qquad t' = -\frac{s}{c}.

    Args:
        posterior: The target, entered.
        metric: P, in units of its target; the identity by default.

    Returns:
        What was found.
    """
    target, n_beta = posterior.target, float(posterior.n_beta)
    anchor = target.anchor

    def potential_at(place: Tensor) -> tuple[float, float, Tensor]:
        """nβ·L, U and its gradient."""
        at = place.unsqueeze(0)
        loss, gradient = target.loss_and_grad(at)
        energy, total = n_beta * float(loss.double()), gradient * n_beta
        localizer = float(sum_over_pieces(posterior, [target.localizer.add_gradient_(total, at)]).double())
        return energy, energy + localizer, total[0]

    energy, start, gradient = potential_at(anchor)
    direction = gradient.clone().unsqueeze(0)
    direction = -(direction if metric is None else metric.apply_(direction))[0]
    slope = float(posterior.sum((gradient * direction).double()))
    if not -math.inf < slope < 0:
        return Surroundings(0.0, 0.0, 0.0, (), 1)
    fall, best, step, taken = 0.0, 0.0, 2 / -slope, 1
    reached = anchor
    for _ in range(SHORT_DESCENT - 1):
        place = torch.add(anchor, direction, alpha=step)
        try:
            found, potential, _ = potential_at(place)
        except Exception:  # of weights that the loss refuses, which are no place to descend to
            found = potential = math.inf
        taken += 1
        if start - potential > best:
            fall, best, reached = energy - found, start - potential, place
        curvature = 2 * (potential - start - slope * step) / step**2
        if not math.isfinite(curvature):
            step /= 100
        else:
            step = min(-slope / curvature, FARTHEST * step) if curvature > 0 else FARTHEST * step
    width = target.width if isinstance(target, ScaledPotential) else 1.0
    distance = math.sqrt(float(posterior.sum(((reached - anchor) * width).double().square())))
    return Surroundings(fall, best, distance, (), taken)


def _losses_along(posterior: LocalPosterior, place: Tensor) -> tuple[float, ...]:
    losses = []
    for doubling in range(DOUBLINGS + 1):
        try:
            losses.append(float(posterior.loss_and_grad((place * 2.0**doubling).unsqueeze(0))[0].double()))
        except Exception:  # a loss may refuse weights that no chain comes to, and the run is over
            return tuple(losses)
        if not math.isfinite(losses[-1]):
            return tuple(losses[:-1])
    return tuple(losses)


def _descend(posterior: LocalPosterior, most: int, *, localised: bool) -> _Descent:
    """A descent of U, or of nβ·L alone, from the anchor."""
    n_beta = float(posterior.n_beta)
    position = posterior.anchor.detach().clone().requires_grad_()
    start: tuple[float, float] | None = None
    end, lowest, taken = (math.inf, math.inf), posterior.anchor, 0

    def value() -> float:
        nonlocal start, end, lowest, taken
        taken += 1
        at = position.detach().unsqueeze(0)
        try:
            loss, gradient = posterior.loss_and_grad(at)
        except Exception:  # of weights that the loss refuses, which are no place to descend to
            if start is None:
                raise
            return math.inf
        total = gradient * n_beta
        energy = potential = n_beta * float(loss.double())
        if localised:
            potential += float(sum_over_pieces(posterior, [posterior.localizer.add_gradient_(total, at)]).double())
        position.grad = total[0]
        start = start or (energy, potential)
        if potential < end[1]:  # not where it is not a number
            end, lowest = (energy, potential), at[0].clone()
        return potential if math.isfinite(potential) else math.inf

    if posterior.dim <= LONG_VECTOR and posterior.shards is None:
        optimizer = torch.optim.LBFGS(
            [position], max_iter=most, max_eval=most, history_size=HISTORY, line_search_fn="strong_wolfe"
        )
        with torch.enable_grad():
            optimizer.step(value)
    else:
        _follow_gradient(posterior, position, value, most)
    assert start is not None
    return _Descent(start, end, lowest, taken)


@torch.no_grad()
def _follow_gradient(posterior: LocalPosterior, position: Tensor, value: Callable[[], float], most: int) -> None:
    """Steps along the gradient, twice as long after each that went down and a quarter after each that did not."""
    lowest = value()
    assert position.grad is not None
    gradient, step = position.grad.clone(), 1.0 / max(float(posterior.sum(position.grad.square())), 1e-30)
    for _ in range(most - 1):
        position.sub_(gradient, alpha=step)
        found = value()
        if found < lowest:
            lowest, step = found, 2 * step
            gradient.copy_(position.grad)
        else:
            position.add_(gradient, alpha=step)
            step /= 4


def gradient_noise(
    posterior: LocalPosterior,
    batch_size: int,
    seed: int,
    num_gradients: float,
    num_chains: int = 8,
    metric: Preconditioner | None = None,
) -> tuple[float, float]:
    r"""Variance of the nβ-scaled minibatch gradient at the anchor, summed over weights: E‖nβ √P (∇L̂ − ∇L)‖².

    Args:
        posterior: The target, entered, with data.
        batch_size: Samples of a minibatch.
        seed: Of the minibatches.
        num_gradients: Of minibatches, that the run took; at most a twentieth of it is spent.
        num_chains: Minibatches that one call takes, where the engine takes more than one.
        metric: P, in units of ``posterior.target``; the identity by default.

    Returns:
        The variance, in nats² per squared unit of ``posterior.target`` or of P, 0 where the run is too short for it;
        and what it cost, in full-data gradients.
    """
    assert posterior.data is not None
    allowed = min(MOST_BATCHES, int(SHARE * num_gradients))
    if allowed < LEAST_BATCHES:
        return 0.0, 0.0
    rows = min(num_chains, posterior.max_chains or num_chains)
    generator = torch.Generator(posterior.anchor.device).manual_seed(seed)
    batches = posterior.minibatches(batch_size)(generator, rows)
    calls = max(2, allowed // rows)
    target = posterior.target
    position = target.anchor.expand(rows, -1).contiguous()
    total, squares = torch.zeros_like(target.anchor, dtype=torch.float64), 0.0
    for _ in range(calls):
        _, gradient = target.loss_and_grad(position, next(batches))
        if metric is not None:
            gradient = metric.apply_root_(gradient)
        total += gradient.double().sum(0)
        squares += float(posterior.sum(gradient.double().square()).sum())
    count = calls * rows
    variance = (squares - float(posterior.sum(total.square())) / count) / (count - 1)
    return float(posterior.n_beta) ** 2 * max(0.0, variance), count * batch_size / posterior.data.size
