"""Replica exchange: copies of a chain at a ladder of inverse temperatures, which swap their positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.kernel import Info, Kernel
from samplers.metropolis import take_rows_
from samplers.potential import Batch, Potential, WrappedPotential


@dataclass
class LadderState:
    """What the next step needs.

    Attributes:
        inner: The state of the kernel that is tempered; rows are ladder after ladder, each from the first rung up.
        parity: 0 where the pairs (0, 1), (2, 3), … are tried next, 1 where (1, 2), (3, 4), …; a tensor, so that a
            captured step goes on to the other.
        replica: ``(ladders, rungs)``, which copy is at which rung now.
        heading_up: ``(ladders, rungs)``, by copy: not so from when it was at the last rung until it is at the first.
        tried: ``(rungs − 1,)``, how often each pair of rungs was tried, per ladder.
        accepted: ``(rungs − 1,)``, mean acceptance probability of swaps, summed over steps and ladders.
        round_trips: ``(ladders,)``, how often a copy went from the first rung to the last and back.
    """

    inner: Any
    parity: Tensor
    replica: Tensor
    heading_up: Tensor
    tried: Tensor
    accepted: Tensor
    round_trips: Tensor

    @property
    def position(self) -> Tensor:
        """The positions, ``(ladders · rungs, dim)``."""
        return self.inner.position

    @property
    def swap_rates(self) -> Tensor:
        """Mean acceptance probability of the swaps between neighbouring rungs, ``(rungs − 1,)``."""
        return self.accepted / (self.tried.clamp(min=1) * len(self.round_trips))


@dataclass(frozen=True)
class LadderPotential(WrappedPotential):
    """A potential with an inverse temperature of its own for every row: nβ·loss is tempered, the localiser is not.

    Attributes:
        n_beta: ``(ladders · rungs, 1)``.
    """

    n_beta: Tensor


def ladder_potential(potential: Potential, n_beta: Tensor, num_ladders: int) -> LadderPotential:
    """The potential of ``num_ladders`` ladders of these inverse temperatures.

    Args:
        potential: The target; its own nβ is replaced.
        n_beta: nβ of the rungs, ``(rungs,)``, increasing, at least 0. The first rung should be so hot that its chain
            crosses the whole localiser.
        num_ladders: Independent ladders.

    Returns:
        A potential of ``num_ladders · rungs`` chains.

    Raises:
        ValueError: ``n_beta`` is not an increasing vector of finite numbers of at least 0.
    """
    rising = n_beta.ndim == 1 and len(n_beta) > 1 and bool((n_beta.diff() > 0).all()) and float(n_beta[0]) >= 0
    if not rising or not bool(torch.isfinite(n_beta).all()):
        raise ValueError(f"n_beta: {n_beta.tolist()}; expected two or more increasing numbers of at least 0.")
    return LadderPotential(potential, n_beta.repeat(num_ladders).unsqueeze(-1))


def replica_exchange(inner: Kernel, num_rungs: int) -> Kernel:
    r"""Replica exchange around an exact kernel: after each of its steps, neighbouring rungs may swap positions.

    .. math:: \log\alpha = (n\beta_i - n\beta_j)\,(L(w_i) - L(w_j))

    for rungs i and j. nβ·L is tempered and the localiser is not, so that it cancels. Even and odd pairs take turns,
    which makes copies travel along the ladder instead of diffusing. Rows of the state belong to rungs for good; what
    moves is positions, with their losses and gradients, so that a swap costs none. Every rung samples its own law
    exactly; the hot ones carry the cold ones over walls and along thin valleys in which they would stand still.

    Use it with a :func:`ladder_potential`, for as many chains as it has rows; ``trace.loss`` then has one row for each
    rung of each ladder, and :func:`by_rung` sorts them.

    Args:
        inner: An exact kernel with the loss in its state: ``mala`` or ``hmc``. Scalar settings may be one per row.
        num_rungs: Of a ladder, at least 2.

    Returns:
        An exact kernel.

    Raises:
        ValueError: The kernel is not exact, or there are fewer than two rungs.

    Source:
        Geyer 1991; the deterministic alternation of pairs is that of Okabe et al. 2001, analysed as non-reversible by
        Syed, Bouchard-Côté, Deligiannidis & Doucet 2022.
    """
    if not inner.exact:
        raise ValueError(f"inner: {inner.name} is not exact; expected one that is, such as hmc. A swap needs U itself.")
    if num_rungs < 2:
        raise ValueError(f"num_rungs: {num_rungs}; expected at least two.")

    def init(position: Tensor, potential: Potential) -> LadderState:
        rows = position.shape[0]
        n_beta = potential.n_beta
        if rows % num_rungs or not isinstance(n_beta, Tensor) or n_beta.shape != (rows, 1):
            raise ValueError(
                f"num_chains: {rows}; expected the rows of a ladder_potential, a multiple of {num_rungs} rungs."
            )
        ladder = n_beta.view(-1, num_rungs)
        if not bool((ladder.diff() > 0).all()) or not bool((ladder == ladder[0]).all()):
            raise ValueError(
                f"num_rungs: {num_rungs}, but the inverse temperatures of the potential are not ladders of so many "
                f"rungs, each rising: the first of its rows are {n_beta[: 2 * num_rungs, 0].tolist()}."
            )
        ladders, device = rows // num_rungs, position.device
        replica = torch.arange(num_rungs, device=device).repeat(ladders, 1)
        return LadderState(
            inner=inner.init(position, potential),
            parity=torch.zeros((), dtype=torch.int64, device=device),
            replica=replica,
            heading_up=torch.ones_like(replica, dtype=torch.bool),
            tried=torch.zeros(num_rungs - 1, dtype=torch.int64, device=device),
            accepted=torch.zeros(num_rungs - 1, dtype=torch.float64, device=device),
            round_trips=torch.zeros(ladders, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def step_(state: LadderState, potential: Potential, batch: Batch, generator: torch.Generator) -> Info:
        info = inner.step_(state.inner, potential, batch, generator)
        ladders = len(state.round_trips)
        loss = state.inner.loss.double().view(ladders, num_rungs)
        assert isinstance(potential.n_beta, Tensor)
        n_beta = potential.n_beta.double().view(ladders, num_rungs)
        turn = torch.arange(num_rungs - 1, device=loss.device) % 2 == state.parity  # the pairs that are tried
        uniform = torch.rand(ladders, num_rungs - 1, dtype=torch.float64, device=loss.device, generator=generator)
        log_alpha = n_beta.diff(dim=1) * loss.diff(dim=1)
        swap = (turn & (uniform.log() < log_alpha)).long()
        source = torch.arange(num_rungs, device=loss.device).repeat(ladders, 1)
        source[:, :-1] += swap
        source[:, 1:] -= swap
        rows = (source + num_rungs * torch.arange(ladders, device=loss.device).unsqueeze(-1)).view(-1)
        take_rows_(state.inner, rows)
        state.replica.copy_(state.replica.gather(1, source))
        state.tried += turn
        state.accepted += torch.where(turn, log_alpha.clamp(max=0.0).exp(), 0.0).sum(0)
        state.parity.neg_().add_(1)
        _count_round_trips(state)
        return info

    settings = {"inner": inner, "num_rungs": num_rungs}

    def tempered(**settings: Any) -> Kernel:
        """The same ladder with settings of the inner kernel, or its own, replaced."""
        rungs = settings.pop("num_rungs", num_rungs)
        own = settings.pop("inner", inner)
        return replica_exchange(own.tune(**settings) if settings else own, rungs)

    return Kernel(
        init, step_, "replica_exchange", settings, tempered, exact=True, gradients_per_step=inner.gradients_per_step
    )


def _count_round_trips(state: LadderState) -> None:
    """A round trip ends where a copy that has been at the last rung comes back to the first."""
    first, last = state.replica[:, :1], state.replica[:, -1:]
    back = ~state.heading_up.gather(1, first)
    state.round_trips += back.squeeze(1)
    state.heading_up.scatter_(1, first, True)
    state.heading_up.scatter_(1, last, False)


def by_rung(values: Any, num_rungs: int) -> Any:
    """Rows of a trace, ``(ladders · rungs, draws)``, as ``(rungs, ladders, draws)``.

    Args:
        values: An array of a trace.
        num_rungs: Of a ladder.

    Returns:
        A view.
    """
    return values.reshape(-1, num_rungs, *values.shape[1:]).swapaxes(0, 1)
