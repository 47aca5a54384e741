"""``Run``: warm-up, draws, thinning, progress and the divergence policy, for any kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup
from tqdm import tqdm

from samplers.adaptation import Adaptation, Adapted
from samplers.block import Block
from samplers.capture import CapturedStep, stepping, take
from samplers.compilation import CompiledStep
from samplers.kernel import Info, Kernel
from samplers.noise import CHUNK_COLUMNS, shards_of
from samplers.potential import Batch, Potential, check_localizer, check_n_beta, gradients_per_call
from samplers.processes import Processes, deferred_interrupt
from samplers.saving import restored, saved
from samplers.seeds import ADAPTATION, block_generator
from samplers.settings import recordable, tensors_of
from samplers.trace import Divergence, Trace

# Infos are fetched from the device, and chains checked for divergence, once in so many steps: one synchronisation
# each. A diverged chain is computed, and thrown away, for at most so many steps.
WINDOW = 64
# Positions at which the localisers of two runs are compared.
PROBES = 3

# An iterator that also has state_dict() and load_state_dict() lets a run be saved and continued.
Batches = Callable[[torch.Generator, int], Iterator[Batch]]


class Run:
    """A run that can be continued: :func:`samplers.sample` in as many rounds as it takes, in another process too.

    Takes the arguments of :func:`samplers.sample`, except for ``num_draws``, which :meth:`draw` takes, and ``adapt``,
    for which there is :meth:`adapt`.

    >>> run = Run(kernel, potential, anchor, num_chains=8, num_warmup=500)
    >>> run.draw(1000)
    >>> torch.save(run.state_dict(), "run.pt")
    >>> again = Run(kernel, potential, anchor, num_chains=8, num_warmup=500)
    >>> again.load_state_dict(torch.load("run.pt", weights_only=True))
    >>> again.draw(1000)  # bitwise what ``run.draw(1000)`` gives
    """

    def __init__(
        self,
        kernel: Kernel,
        potential: Potential,
        initial: Tensor,
        *,
        batches: Batches | None = None,
        num_chains: int,
        num_warmup: int,
        thinning: int = 1,
        seed: int = 0,
        keep_positions: bool = False,
        compile: bool = False,
        progress: bool | None = None,
        block_size: int | None = None,
        process_group: ProcessGroup | None = None,
    ):
        if num_chains < 1 or num_warmup < 0 or thinning < 1:
            raise ValueError(
                f"num_chains, num_warmup, thinning: {num_chains}, {num_warmup}, {thinning}; expected at least 1, 0, 1."
            )
        shapes = ((potential.dim,), (num_chains, potential.dim))
        if tuple(initial.shape) not in shapes:
            raise ValueError(
                f"initial: shape {tuple(initial.shape)}; expected {shapes[0]} for a common start or {shapes[1]}."
            )
        # summed over shards: in all processes, or in none
        wrong = int(potential.sum((~torch.isfinite(initial)).sum(-1, keepdim=True).double()).sum())
        if wrong:
            raise ValueError(f"initial: {wrong} coordinates are not finite.")
        if kernel.exact and batches is not None:
            raise ValueError(
                f"batches: given to {kernel.name}, which is exact only with the full-data gradient. Leave batches out, "
                "or use a stochastic-gradient kernel such as sgld."
            )
        if kernel.num_adapt > num_warmup:
            raise ValueError(
                f"num_warmup: {num_warmup}, but {kernel.name} adapts in its first {kernel.num_adapt} steps, and draws "
                "must begin after that. Raise num_warmup, or lower num_adapt."
            )
        if not initial.is_floating_point():
            raise ValueError(f"initial: of dtype {initial.dtype}; expected a floating-point tensor.")
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size: {block_size}; expected at least one chain.")
        self.processes = Processes(process_group)
        if block_size is None:
            block_size = -(-num_chains // self.processes.count)
        block_size = min(num_chains, potential.max_chains or num_chains, block_size)
        check_n_beta(potential.n_beta, block_size)
        check_localizer(potential)
        for name, value in tensors_of(kernel.settings):
            if value.ndim and len(value) != block_size:
                raise ValueError(
                    f"{name}: one value for each of {len(value)} chains, but chains are advanced {block_size} at a "
                    "time. Give one value for all chains."
                )
        self.kernel, self.potential, self.initial = kernel, potential, initial
        self._given, self._given_initial = kernel, initial  # before any adaptation
        self.batches, self.num_chains, self.seed = batches, num_chains, seed
        self.num_warmup, self.thinning = num_warmup, thinning
        self.keep_positions, self.compile, self.progress = keep_positions, compile, progress
        self.block_size = block_size
        self.num_draws = 0
        self.num_gradients = 0
        self.interrupted = self._late_interrupt = False
        # settings that the kernel no longer has, each with the number of draws up to which it had them
        self.earlier_settings: list[dict[str, Any]] = []
        self._program: Any = None  # the step, compiled or captured where it is
        self._program_of = kernel
        self.blocks = [self._block(index) for index in range(-(-num_chains // self.block_size))]

    def _block(self, index: int) -> Block:
        first = index * self.block_size
        count = min(self.block_size, self.num_chains - first)
        generator = block_generator(self.seed, index, self.initial.device)
        return Block(first, count, generator, None if self.batches is None else self.batches(generator, count))

    @property
    def gradients_per_step(self) -> int:
        """How many gradients of every chain one step takes, on this potential."""
        return self.kernel.gradients_per_step * gradients_per_call(self.potential, self.batches)

    def _start(self, first: int, count: int) -> Tensor:
        rows = self.initial.expand(count, -1) if self.initial.ndim == 1 else self.initial[first : first + count]
        return rows.detach().clone()

    def adapt(self, adaptation: Adaptation) -> None:
        """Find the kernel's numbers in a pilot run from the same start, and freeze them.

        The pilot is one block of chains with a random stream of its own; its draws are thrown away and the chains
        start afresh, or where the adaptation has brought them. What it found is numbers, with which the run can be
        repeated without it.

        Raises:
            ValueError: The run has begun: its draws would be of two kernels.
        """
        if any(block.steps for block in self.blocks):
            raise ValueError("adaptation: given to a run that has begun; expected one before its first draw.")
        adapted = self._adapted(adaptation)
        self.kernel = adapted.kernel
        self.num_gradients += adapted.num_gradients * self.block_size
        if adapted.initial is not None:  # of one block of chains, whose places those of the others share
            self.initial = adapted.initial[torch.arange(self.num_chains) % len(adapted.initial)]

    def tune(self, **settings: Any) -> None:
        """Give the kernel other settings for what follows, such as a smaller step where chains have come to walls.

        The law of the draws is then one for each stretch. ``earlier_settings`` of the trace's configuration has what
        they were, and up to which draw.

        Args:
            **settings: Of the kernel; in a group the same in all processes.

        Raises:
            ValueError: The kernel has no such setting, or does not take the value; or draws are missing that were
                asked for, as after an interrupt.
        """
        own = self.kernel.settings
        if not settings.keys() <= own.keys():
            raise ValueError(f"settings: {sorted(settings)} of {self.kernel.name}; expected some of {sorted(own)}.")
        planned = self.num_warmup + self.num_draws * self.thinning
        if self.num_draws and any(block.steps < planned and not block.dead for block in self.blocks):
            raise ValueError("settings: given where draws are missing yet; expected them after complete().")
        tuned = self.kernel.tune(**settings)
        self.earlier_settings.append({"draws": self.num_draws, **{name: recordable(own[name]) for name in settings}})
        self.kernel = tuned

    def recent_steps(self, first_step: int) -> dict[str, NDArray[np.float64]]:
        """What was said of every step from that one on, ``(chain, step)``, of the blocks that have taken all of them.

        Args:
            first_step: Counted from the first of the warm-up.

        Returns:
            An array for each field of :class:`samplers.Info`; of chains that diverged as it was said.
        """
        last = max(block.steps for block in self.blocks)
        found = [block.recent(first_step) for block in self.blocks if block.steps == last]
        return {name: np.concatenate([each[name] for each in found]) for name in Info._fields}

    def _adapted(self, adaptation: Adaptation) -> Adapted:
        """What an adaptation finds; in a group, in its first process, for rounding must not make kernels differ."""

        def find() -> Adapted:
            generator = block_generator(self.seed, ADAPTATION, self.initial.device)
            batches = None if self.batches is None else self.batches(generator, self.block_size)
            return adaptation(self.kernel, self.potential, self._start(0, self.block_size), batches, generator)

        def told() -> tuple[Any, int, Tensor | None]:
            found = find()
            return saved(found.kernel), found.num_gradients, None if found.initial is None else found.initial.cpu()

        if self.processes.count == 1:
            return find()
        settings, num_gradients, initial = self.processes.from_first(told)
        kernel = restored(self.kernel, settings, self.initial.device)
        return Adapted(kernel, num_gradients, None if initial is None else initial.to(self.initial))

    def draw(self, num_draws: int, *, release: bool = False, pause: Callable[[], None] | None = None) -> None:
        """Take so many more draws of every chain, after its warm-up, one block of chains after the other.

        Args:
            num_draws: Draws of each chain, beyond those already taken.
            release: Free each block's state when its draws are taken, so that one block at a time is in memory.
                The run cannot be continued after that.
            pause: Called every 64 steps, where :meth:`state_dict` may be called: what it saves goes on with
                :meth:`complete`.

        Raises:
            ValueError: ``num_draws`` is not positive, or the states were released.
            KeyboardInterrupt: Interrupted before any chain had a draw. Later, the interrupt ends the run, and the
                draws are kept.
        """
        if num_draws < 1:
            raise ValueError(f"num_draws: {num_draws}; expected at least 1.")
        self._check_states()
        self.num_draws += num_draws
        self.complete(release=release, pause=pause)

    def complete(self, *, release: bool = False, pause: Callable[[], None] | None = None) -> None:
        """Take the draws that are missing yet: of a run that was interrupted, or saved between its draws.

        Args:
            release: See :meth:`draw`.
            pause: See :meth:`draw`.

        Raises:
            ValueError: The states were released.
            KeyboardInterrupt: See :meth:`draw`.
        """
        self._check_states()
        self.interrupted = False
        last_step = self.num_warmup + self.num_draws * self.thinning
        # tqdm reads disable=None as "where the output is not a terminal"
        disable = None if self.progress is None else not self.progress
        own = self._own_blocks
        missing, before, error = sum(last_step - block.steps for block in own), self.num_gradients, None
        hidden = True if self.processes.rank else disable
        with tqdm(total=missing, desc="sampling", unit="step", leave=False, disable=hidden) as bar:
            try:
                if self._late_interrupt:
                    self._late_interrupt = False
                    raise KeyboardInterrupt
                for block in own:
                    self._advance(block, last_step, bar, pause)
                    if release:
                        if block is self.blocks[0] and block.state is not None:
                            block.released = self.ends
                        block.state = None
            except KeyboardInterrupt:
                if shards_of(self.potential) is not None:
                    raise  # processes of one chain do not stop at the same step, and have no draws in common
                self.interrupted = True
            except Exception as raised:
                if self.processes.count == 1:
                    raise
                error = raised
        if self.processes.count > 1:
            self._share(before, error)
        if self.interrupted and all(block.steps <= self.num_warmup for block in self.blocks):
            raise KeyboardInterrupt

    @property
    def ends(self) -> Tensor | None:
        """Where the chains of the first block are, ``(chain, dim)``, a copy in host memory; None before its first step.

        Of states that were released it is where they were; in a group only the first process has it.
        """
        first = self.blocks[0]
        return first.released if first.state is None else first.state.position.detach().to("cpu", copy=True)

    @property
    def _own_blocks(self) -> list[Block]:
        """Those that this process advances."""
        return [block for index, block in enumerate(self.blocks) if self.processes.own(index)]

    def _share(self, num_gradients: int, error: Exception | None) -> None:
        """Give the other processes what this one's blocks have drawn since, and take what theirs have.

        Args:
            num_gradients: Before this process's draws.
            error: What ended them.
        """
        own = {index: block.news() for index, block in enumerate(self.blocks) if self.processes.own(index)}
        news = (own, self.num_gradients - num_gradients, self.interrupted)
        with deferred_interrupt() as interrupts:  # that comes while draws are exchanged must not lose them
            told = self.processes.from_all(news, error)
        for of_blocks, _, _ in told:
            for index, of_block in of_blocks.items():
                if not self.processes.own(index):
                    self.blocks[index].take(of_block)
        self.num_gradients = num_gradients + sum(taken for _, taken, _ in told)
        self.interrupted = any(stopped for _, _, stopped in told)
        self._late_interrupt = bool(interrupts)  # of which the others know nothing yet

    def _check_states(self) -> None:
        if any(block.steps and block.state is None for block in self._own_blocks):
            raise ValueError("release: set in an earlier call, which freed the chains' states; the run cannot go on.")

    def _advance(self, block: Block, last_step: int, bar: tqdm, pause: Callable[[], None] | None) -> None:
        if block.dead:
            return
        if block.state is None:
            block.state = self.kernel.init(self._start(block.first_chain, block.num_chains), self.potential)
            self.num_gradients += block.num_chains if self.kernel.exact else 0
        step_, potential, generator, batches = self._step_, self.potential, block.generator, block.batches
        infos: list[Info] = []
        try:
            while (step := block.steps + len(infos)) < last_step:
                count = min(WINDOW - len(infos), last_step - step)
                if self.keep_positions:
                    if step >= self.num_warmup and (step - self.num_warmup) % self.thinning == 0:
                        block.positions.append(block.state.position.detach().to("cpu", copy=True))
                    beyond = max(0, (step - self.num_warmup) // self.thinning + 1)
                    count = min(count, self.num_warmup + beyond * self.thinning - step)  # to the next that is kept
                take(step_, block.state, potential, batches, generator, count, infos)
                if len(infos) == WINDOW:
                    self._fetch(block, infos, bar)
                    if block.dead:
                        break
                    if pause is not None:
                        pause()
        finally:
            self._fetch(block, infos, bar)
            # an interrupt inside a step leaves a position whose step was not taken
            del block.positions[max(0, -(-(block.steps - self.num_warmup) // self.thinning)) :]

    @property
    def _step_(self) -> Callable[..., Info]:
        if self._program is None or self._program_of is not self.kernel:
            self._program_of, kernel = self.kernel, self.kernel
            if self.compile:
                kernel = kernel._replace(step_=CompiledStep(kernel, self.potential))
            with_batches, device = self.batches is not None, self.initial.device
            self._program = stepping(kernel, self.potential, WINDOW, with_batches=with_batches, device=device)
        program: Callable[..., Info] = self._program
        return program

    def _fetch(self, block: Block, infos: list[Info], bar: tqdm) -> None:
        self.num_gradients += len(infos) * block.num_chains * self.gradients_per_step
        bar.update(len(infos))
        block.fetch(infos)

    def state_dict(self) -> dict[str, Any]:
        """What it takes to continue the run bitwise, in another process too: the draws so far, states, random streams.

        Call it between draws, or from ``pause``; write it with ``torch.save``, and read it with
        ``torch.load(…, weights_only=True)``.

        Returns:
            A dict of numbers, tensors and dicts of them.

        Raises:
            TypeError: The batches, or the kernel's state, cannot be saved.
            ValueError: The states were released, or the run is shared by processes.
        """
        self._check_states()
        if self.processes.count > 1:
            raise ValueError("process_group: of a run that is shared by processes, no one of which has all states.")
        return {
            "configuration": self._arguments(),
            "potential": self._potential(),
            "kernel": saved(self.kernel),
            "given": self._given_initial.detach().clone(),
            "initial": self.initial.detach().clone(),
            "num_draws": self.num_draws,
            "num_gradients": self.num_gradients,
            "interrupted": self.interrupted,
            "earlier_settings": list(self.earlier_settings),
            "blocks": [block.state_dict() for block in self.blocks],
        }

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Continue another run from where it was: the same draws follow, bit for bit.

        Args:
            stored: From :meth:`state_dict` of a run that was made with the same arguments, on the same potential.
                Numbers that an adaptation found there are taken over; there is nothing to adapt again.

        Raises:
            ValueError: That run was made with another nβ, localiser, kernel, setting, start, seed or number of chains,
                warm-up steps, …, or with batches where this one has none; or this one has drawn already. Another loss
                or other data cannot be told.
        """
        if self.num_draws:
            raise ValueError(f"stored: given to a run that has drawn {self.num_draws} times; expected a fresh one.")
        if not torch.equal(stored["given"].to(self.initial), self._given_initial):
            raise ValueError("stored: of a run from another initial position; expected a run with the same arguments.")
        kernel = self.kernel
        if stored["configuration"]["kernel"] == kernel.name:
            self.kernel = restored(kernel, stored["kernel"], self.initial.device)
        for name, own in {**self._potential(), **self._arguments()}.items():
            other = {**stored["potential"], **stored["configuration"]}.get(name)
            if other != own:
                self.kernel = kernel
                raise ValueError(
                    f"stored: of a run with {name} {other!r}, this one has {own!r}; expected a run with the same "
                    "arguments."
                )
        self.initial = stored["initial"].to(self.initial)
        for block, of_block in zip(self.blocks, stored["blocks"], strict=True):
            fresh = None
            if of_block["state"] is not None:
                start = self._start(block.first_chain, block.num_chains)
                fresh = self.kernel.init(start, self.potential)
            block.load_state_dict(of_block, fresh, self.initial.device)
        self.num_draws, self.num_gradients = stored["num_draws"], stored["num_gradients"]
        self.interrupted = stored["interrupted"]
        self.earlier_settings = list(stored.get("earlier_settings", ()))

    def trace(self) -> Trace:
        """The trace of what was drawn.

        After an interrupt the chains may be of different lengths: those draws are kept that make the largest
        rectangle of whole chains, from the first draw on.

        Returns:
            The trace so far; the run can go on.
        """
        lengths = [
            self.num_draws if block.dead else max(0, -(-(block.steps - self.num_warmup) // self.thinning))
            for block in self.blocks
        ]
        num_draws = max(set(lengths), key=lambda length: length * sum(other >= length for other in lengths))
        kept = [block for block, length in zip(self.blocks, lengths, strict=True) if length >= num_draws]
        num_steps = self.num_warmup + num_draws * self.thinning
        records = [block.record(num_steps) for block in kept]
        joined = {name: np.concatenate([record[name] for record in records]) for name in Info._fields}
        bad_steps = np.concatenate([block.first_bad_step for block in kept])
        return Trace(
            statistics={name: values[:, self.num_warmup :: self.thinning] for name, values in joined.items()},
            warmup={name: values[:, : self.num_warmup] for name, values in joined.items()},
            positions=self._positions(kept, num_draws) if self.keep_positions else None,
            diverged=tuple(
                Divergence(chain, int(step)) for chain, step in enumerate(bad_steps) if 0 <= step < num_steps
            ),
            interrupted=self.interrupted,
            num_gradients=self.num_gradients,
            configuration={
                **self._configuration(self.kernel),
                "num_draws": num_draws,
                "common_start": self.initial.ndim == 1,
                **({"earlier_settings": list(self.earlier_settings)} if self.earlier_settings else {}),
                **self._graph(),
            },
        )

    def _graph(self) -> dict[str, Any]:
        """Whether steps were replayed from a CUDA graph, or why not."""
        if not isinstance(self._program, CapturedStep):
            return {}
        return {"cuda_graph": self._program.obstacle or "every step"}

    def _potential(self) -> dict[str, Any]:
        """What tells one law from another without a gradient of the loss."""
        generator = torch.Generator().manual_seed(0)
        energies = []
        for _ in range(PROBES):
            offset = torch.randn(self.potential.dim, generator=generator, dtype=torch.float64).to(self.initial)
            aside = self._given_initial.detach().reshape(-1, self.potential.dim)[:1] + offset
            energies.append(float(self.potential.sum(self.potential.localizer.energy(aside).unsqueeze(-1))))
        return {"n_beta": recordable(self.potential.n_beta), "energy of the localiser": energies}

    def _arguments(self) -> dict[str, Any]:
        """With what the run was made: its configuration, with the kernel as it was given."""
        return {
            **self._configuration(self._given),
            "keep_positions": self.keep_positions,
            "batches": self.batches is not None,
            "device": self.initial.device.type,  # whichever of its kind
        }

    def _configuration(self, kernel: Kernel) -> dict[str, Any]:
        return {
            "kernel": kernel.name,
            **{name: recordable(value) for name, value in kernel.settings.items()},
            "num_chains": self.num_chains,
            "num_warmup": self.num_warmup,
            "thinning": self.thinning,
            "seed": self.seed,
            "block_size": self.block_size,
            "compile": self.compile,
            "noise_chunk": CHUNK_COLUMNS,
            "threads": torch.get_num_threads(),
            "dtype": str(self.initial.dtype),
            "device": str(self.initial.device),
        }

    def _positions(self, kept: list[Block], num_draws: int) -> Tensor:
        rows = []
        for block in kept:
            draws = torch.full((num_draws, block.num_chains, self.potential.dim), torch.nan, dtype=self.initial.dtype)
            available = block.positions[:num_draws]
            if available:
                draws[: len(available)] = torch.stack(available)
            draws = draws.transpose(0, 1)
            for chain, bad in enumerate(block.first_bad_step):
                if bad >= 0:  # draws from that step on are not a number, like their losses
                    draws[chain, max(0, -(-(int(bad) - self.num_warmup) // self.thinning)) :] = torch.nan
            rows.append(draws)
        return torch.cat(rows)
