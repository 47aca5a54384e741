"""Populations cooled from a ball to the lowest temperatures that floating point allows, with nβ·E[L] at every rung."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from samplers.ball import BallLocalizer
from samplers.scale_moves import ScaleMoves
from samplers.seeds import POPULATIONS, block_generator
from samplers.zero_variance import LARGEST_DIM_OF_MATRICES, without_known_noise, zero_mean_functions

Array = NDArray[np.float64]
Losses = Callable[[Tensor], Tensor]

# Half of the particles are worth their weight after a rung, or log nβ rises by this, whichever is less.
EFFICIENCY, LARGEST_RISE = 0.5, 1.5
BISECTIONS = 40
# Sweeps at a rung go on until log L remembers less than this of where it was, between these bounds.
ENOUGH_FORGOTTEN, LEAST_SWEEPS, MOST_SWEEPS, CHECK_EVERY = 0.3, 12, 192, 4
# Beyond, the particles are those of a higher temperature, and the ladder ends when it happens at this many rungs.
FROZEN, FROZEN_RUNGS = 0.85, 3
MOST_DRAWS = 2000  # of all particles at once, to find places where the model is defined
SNAPSHOTS = 3  # with gradients, at each rung
TINY = 1e-300
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"


class Cooling(NamedTuple):
    """A ladder of inverse temperatures; arrays of rungs ``(rungs,)`` or ``(populations, rungs)``.

    Attributes:
        n_beta: nβ of the rungs, ascending.
        mean: nβ·E[L] of each population, with the noise that is known taken out.
        plain_mean: The same as it is.
        variance: nβ²·Var[L] of each population.
        log_z: log Z of each population, of the law normalised to one at nβ = 0.
        memory: Correlation of log L before and after the sweeps of a rung.
        sweeps: How many there were.
        lowest: The lowest loss that was met.
        acceptance: Share of the proposals that were accepted.
        num_evaluations: Of the loss, at one particle each; a gradient counts three.
        ended: Why the ladder ends where it does: ``"top"``, ``"budget"`` or ``"frozen"``.
    """

    n_beta: Array
    mean: Array
    plain_mean: Array
    variance: Array
    log_z: Array
    memory: Array
    sweeps: Array
    lowest: float
    acceptance: float
    num_evaluations: int
    ended: str


@torch.no_grad()
def cool(
    losses: Losses,
    loss_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]],
    ball: BallLocalizer,
    *,
    largest_n_beta: float,
    groups: Sequence[Sequence[int]] = (),
    log_prior: Losses | None = None,
    num_populations: int = 8,
    num_particles: int = 512,
    budget: int = 6_000_000,
    seed: int = 0,
    progress: bool | None = None,
) -> Cooling:
    r"""nβ·E[L] and nβ²·Var[L] under exp(−nβ·L) in a ball, at a ladder of nβ, by tempered sequential Monte Carlo.

    Particles start uniform in the ball. Each rung raises nβ, resamples the particles of every population by their
    weights exp(−Δnβ·L), and moves them on all scales (:class:`samplers.scale_moves.ScaleMoves`), one half of a
    population after the other, until the loss has forgotten where it was.

    Populations share nothing but the ladder and the table of moves: their spread is the error of their mean.

    Args:
        losses: ``(n, dim) → (n,)``, L less its value at the anchor.
        loss_and_grad: The same with gradients ``(n, dim)``; used for control variates alone.
        ball: The region.
        largest_n_beta: Where the ladder ends at the latest.
        groups: Sets of coordinates that belong together; see :class:`samplers.scale_moves.ScaleMoves`.
        log_prior: ``(n, dim) → (n,)``, −∞ outside its support; None for the uniform law. With one there are no
            control variates, which would need its gradient.
        num_populations: Independent ones.
        num_particles: Of each, even.
        budget: Of evaluations; the ladder ends when it is spent.
        seed: Of everything random.
        progress: True or False, or None to show a bar of log nβ on a terminal only.

    Returns:
        The ladder.

    Raises:
        ValueError: The numbers of populations or particles are out of range, or the loss is not finite in the ball.

    Source:
        Del Moral, Doucet & Jasra 2006, §3.3 (tempered sequential Monte Carlo).
    """
    if num_populations < 2 or num_particles < 8 or num_particles % 2:
        raise ValueError(
            f"num_populations, num_particles: {num_populations}, {num_particles}; expected at least two, and an even "
            "number of at least eight."
        )
    state = _Populations(losses, ball, log_prior, groups, num_populations, num_particles, seed)
    rungs: list[_Rung] = []
    frozen, ended = 0, "top"
    # tqdm reads disable=None as "where the output is not a terminal"
    hidden = None if progress is None else not progress
    with tqdm(total=1.0, desc="cooling", bar_format=BAR, leave=False, disable=hidden, miniters=0, mininterval=0) as bar:
        while True:
            state.rise(state.next_n_beta(largest_n_beta))
            rungs.append(_stay(state, loss_and_grad if log_prior is None else None))
            frozen = frozen + 1 if rungs[-1].memory > FROZEN else 0
            logs = [math.log(max(n_beta, TINY)) for n_beta in (rungs[0].n_beta, state.n_beta, largest_n_beta)]
            share = (logs[1] - logs[0]) / (logs[2] - logs[0]) if logs[2] > logs[0] else 1.0
            bar.set_postfix_str(
                f"log nβ {logs[1]:.1f} of {logs[2]:.1f}, {state.evaluations:,} of {budget:,} evaluations", refresh=False
            )
            bar.update(share - bar.n)
            if state.n_beta >= largest_n_beta * (1 - 1e-9):
                break
            if frozen >= FROZEN_RUNGS or state.evaluations >= budget:
                ended = "frozen" if frozen >= FROZEN_RUNGS else "budget"
                break

    def curves(name: str) -> Array:
        return torch.stack([getattr(rung, name) for rung in rungs], 1).cpu().numpy()

    return Cooling(
        n_beta=np.array([rung.n_beta for rung in rungs]),
        mean=curves("mean"),
        plain_mean=curves("plain_mean"),
        variance=curves("variance"),
        log_z=curves("log_z"),
        memory=np.array([rung.memory for rung in rungs]),
        sweeps=np.array([rung.sweeps for rung in rungs]),
        lowest=state.lowest,
        acceptance=state.accepted / max(state.tried, 1),
        num_evaluations=state.evaluations,
        ended=ended,
    )


class _Rung(NamedTuple):
    n_beta: float
    mean: Tensor
    plain_mean: Tensor
    variance: Tensor
    log_z: Tensor
    memory: float
    sweeps: int


def _stay(state: _Populations, loss_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]] | None) -> _Rung:
    """Sweep at one nβ until the loss has forgotten, and take the means."""
    before = _log(state.loss)
    total, square = torch.zeros_like(state.log_z), torch.zeros_like(state.log_z)
    values: list[Tensor] = []
    functions: list[Tensor] = []
    sweep, memory = 0, 1.0
    while sweep < MOST_SWEEPS and (sweep < LEAST_SWEEPS or memory >= ENOUGH_FORGOTTEN):
        state.sweep()
        sweep += 1
        scaled = state.n_beta * state.loss
        total, square = total + scaled.mean(1), square + scaled.square().mean(1)
        if loss_and_grad is not None and sweep % (LEAST_SWEEPS // SNAPSHOTS) == 0 and len(values) < SNAPSHOTS:
            values.append(scaled.clone())
            functions.append(state.known_functions(loss_and_grad))
        if sweep == LEAST_SWEEPS // 2:
            state.moves.learn()
        if sweep % CHECK_EVERY == 0:
            memory = _correlation(before, _log(state.loss))
    state.moves.learn()
    plain = total / sweep
    mean = without_known_noise(torch.cat(values, 1), functions).mean(1) if values else plain
    variance = square / sweep - plain.square()
    return _Rung(state.n_beta, mean, plain, variance, state.log_z.clone(), memory, sweep)


def _log(loss: Tensor) -> Tensor:
    return loss.clamp(min=TINY).log().flatten()


def _correlation(first: Tensor, second: Tensor) -> float:
    """Of two series; zero where one does not vary, since there is nothing to remember."""
    first, second = first - first.mean(), second - second.mean()
    size = float(first.square().sum() * second.square().sum())
    return float((first * second).sum()) / math.sqrt(size) if size > 0 else 0.0


class _Populations:
    """Particles ``(populations, particles, dim)`` at one nβ."""

    def __init__(
        self, losses: Losses, ball: BallLocalizer, log_prior: Losses | None, groups: Sequence[Sequence[int]],
        num_populations: int, num_particles: int, seed: int,
    ):  # fmt: skip
        self.losses, self.ball, self.log_prior = losses, ball, log_prior
        self.generator = block_generator(seed, POPULATIONS, ball.anchor.device)
        self.moves = ScaleMoves(ball.anchor, ball.radius, groups, self.generator)
        count = num_populations * num_particles
        position, loss, prior = self._start(count)
        self.position = position.view(num_populations, num_particles, -1)
        self.loss = loss.view(num_populations, num_particles)
        self.prior = prior.view(num_populations, num_particles)
        self.n_beta, self.log_z = 0.0, position.new_zeros(num_populations)
        self.accepted, self.tried = 0, 0
        self.lowest = float(loss.min())

    def _start(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Independent places where the model is defined, uniform in the ball, with their losses and log priors."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        missing, self.evaluations = count, 0
        for _ in range(MOST_DRAWS):
            position = self.ball.draw(count, self.generator)
            prior = self._log_prior(position)
            position, prior = position[prior > -math.inf], prior[prior > -math.inf]
            loss = self.losses(position) if len(position) else prior
            self.evaluations += len(position)
            there = loss.isfinite()
            found.append((position[there], loss[there], prior[there]))
            missing -= int(there.sum())
            if missing <= 0:
                position, loss, prior = (torch.cat(part)[:count] for part in zip(*found, strict=True))
                return position, loss, prior
        raise ValueError(
            f"radius: {self.ball.radius}; the loss is finite at {count - missing} of {count * MOST_DRAWS:,} places in "
            "the ball. Expected a ball in which the model is defined: lower it."
        )

    def _log_prior(self, position: Tensor) -> Tensor:
        return position.new_zeros(len(position)) if self.log_prior is None else self.log_prior(position)

    def next_n_beta(self, largest: float) -> float:
        """The next rung: half of the particles are worth their weight there, or a little above."""
        prior = self.prior if self.n_beta == 0 else torch.zeros_like(self.prior)
        if self.n_beta == 0:
            # no further than where a typical particle has paid a nat, so that a λ of zero has a ladder too
            scale = float(self.loss.abs().mean())
            high = min(largest, 1 / scale) if scale > 0 else largest
            low = high * 1e-12
        else:
            low, high = self.n_beta, min(self.n_beta * math.exp(LARGEST_RISE), largest)

        def share(n_beta: float) -> float:
            log_weights = (prior - (n_beta - self.n_beta) * (self.loss - self.loss.min())).flatten()
            both = 2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)
            return float(both.exp()) / len(log_weights)

        target = EFFICIENCY * share(self.n_beta)  # of the prior's own weights at the start
        if share(high) < target:
            for _ in range(BISECTIONS):
                middle = math.sqrt(low * high)
                low, high = (low, middle) if share(middle) < target else (middle, high)
        return high

    def rise(self, n_beta: float) -> None:
        """Go to this nβ, and resample."""
        first = self.n_beta == 0
        prior = self.prior if first else torch.zeros_like(self.prior)
        log_weights = prior - (n_beta - self.n_beta) * self.loss
        start = torch.logsumexp(prior, 1) if first else math.log(self.loss.shape[1])
        self.log_z += torch.logsumexp(log_weights, 1) - start
        self.n_beta = n_beta
        self._resample(torch.softmax(log_weights, 1))

    def _resample(self, weights: Tensor) -> None:
        """Systematically, within each population, and in random order: halves must not hold copies of each other."""
        populations, count = weights.shape
        kind = {"generator": self.generator, "dtype": weights.dtype}
        places = (torch.rand(populations, 1, **kind) + torch.arange(count)) / count
        total = weights.cumsum(1)
        chosen = torch.searchsorted(total / total[:, -1:], places).clamp_(max=count - 1)
        chosen = chosen.gather(1, torch.rand(populations, count, **kind).argsort(1))
        self.loss, self.prior = self.loss.gather(1, chosen), self.prior.gather(1, chosen)
        self.position = self.position.gather(1, chosen.unsqueeze(-1).expand_as(self.position)).contiguous()

    def sweep(self) -> None:
        """Try to move every particle once, half by half."""
        half = self.loss.shape[1] // 2
        for here, there in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
            position = self.position[:, here]
            proposed, log_jacobian, cells = self.moves.propose(position, self.position[:, there])
            flat = proposed.flatten(0, 1)
            inside = self.ball.energy(flat) == 0
            flat = torch.where(inside.unsqueeze(-1), flat, self.ball.anchor)
            prior = self._log_prior(flat).view_as(log_jacobian)
            loss = self.losses(flat).view_as(log_jacobian)
            gain = log_jacobian + prior - self.prior[:, here] - self.n_beta * (loss - self.loss[:, here])
            uniform = torch.rand(gain.shape, generator=self.generator, dtype=gain.dtype)
            accepted = inside.view_as(gain) & (uniform.log() < gain)  # not where the gain is not a number
            self.moves.record(cells, accepted.flatten())
            self.position[:, here] = torch.where(accepted.unsqueeze(-1), proposed, position)
            self.loss[:, here] = torch.where(accepted, loss, self.loss[:, here])
            self.prior[:, here] = torch.where(accepted, prior, self.prior[:, here])
            self.evaluations += gain.numel()
            self.accepted += int(accepted.sum())
            self.tried += gain.numel()
        self.lowest = min(self.lowest, float(self.loss.min()))

    def known_functions(self, loss_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Zero-mean functions of the particles, ``(populations, particles, functions)``."""
        flat = self.position.flatten(0, 1)
        gradient = loss_and_grad(flat)[1]
        self.evaluations += 3 * len(flat)
        matrices = flat.shape[1] <= LARGEST_DIM_OF_MATRICES
        known = zero_mean_functions(flat, gradient, self.n_beta, self.ball.anchor, self.ball.radius, matrices)
        return known.view(*self.loss.shape, -1)
