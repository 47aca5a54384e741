"""``sample``: one run from its start to its trace."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from samplers.adaptation import Adaptation
from samplers.kernel import Kernel
from samplers.potential import Potential
from samplers.run import Batches, Run
from samplers.trace import Trace

# Of nβ·loss, in nats: energies of the law are of order one.
LARGEST_ROUNDING = 0.1


def sample(
    kernel: Kernel,
    potential: Potential,
    initial: Tensor,
    *,
    batches: Batches | None = None,
    num_chains: int,
    num_warmup: int,
    num_draws: int,
    thinning: int = 1,
    adapt: Adaptation | None = None,
    seed: int = 0,
    keep_positions: bool = False,
    compile: bool = False,
    progress: bool | None = None,
    block_size: int | None = None,
    process_group: ProcessGroup | None = None,
) -> Trace:
    """The trace of ``num_chains`` chains of a kernel on a potential.

    A draw is the position from which a step starts, with the loss that the step evaluated there.

    **Divergence.** A chain whose loss or localiser energy is not finite is stopped: it is reported by chain and step
    in ``trace.diverged``, and its draws from that step on are not a number. The other chains go on.

    **Interrupt.** Ctrl-C ends the run and keeps what was drawn, with ``trace.interrupted`` set; where vectors are
    shards, nothing is kept.

    **Reproducibility.** Chains are advanced in blocks; each has a generator of its own, derived from the seed and the
    number of the block. The trace records what repeats the run bitwise, beside the potential, the start and the
    preconditioner, of which it holds a digest.

    **Processes.** Those of a ``process_group`` make the same call, take turns at the blocks, and all return the whole
    trace: that of one process with blocks of the same size, bit by bit on CPUs of one kind. An error in one of them,
    or one that is gone, ends them all.

    Args:
        kernel: The sampler, such as ``samplers.sgld(step_size=1e-4)``.
        potential: The target.
        initial: ``(dim,)``, where all chains start, or ``(chains, dim)``. Its dtype and device are those of the run.
        batches: ``(generator, num_chains) → iterator of batches`` for stochastic-gradient kernels; None for full data.
        num_chains: How many chains, at least 1.
        num_warmup: Steps of each chain that are not draws.
        num_draws: Draws of each chain.
        thinning: Steps per draw.
        adapt: Finds step size or preconditioner in a pilot run, and freezes them; see :mod:`samplers.adaptation`.
        seed: Of everything random.
        keep_positions: Whether the trace holds the positions of the draws, on the CPU.
        compile: Whether each step is one compiled program; see :class:`samplers.compilation.CompiledStep`. Costs 2 to
            15 seconds once, by the number of gradients of a step, and makes short steps 2 to 10 times as fast. The
            chains are the same up to rounding.
        progress: True or False, or None to show a bar on a terminal only.
        block_size: Chains that are advanced together; by default all, or an even share of a group's processes, and
            never more than ``potential.max_chains``.
        process_group: Of ``torch.distributed``, such as ``torch.distributed.group.WORLD`` after
            ``init_process_group``, whose processes share the chains; None for this process alone.

    Returns:
        The trace. Its ``positions`` have shape ``(chains, draws, dim)``.

    Raises:
        RuntimeError: A process of the group is gone.
        ValueError: A count is out of range, ``initial`` has another shape, or an exact kernel is given minibatches;
            or ``compile`` is set and the step cannot be compiled, or the program disagrees with it.
        KeyboardInterrupt: Interrupted before any chain had a draw.
    """
    run = Run(
        kernel,
        potential,
        initial,
        batches=batches,
        num_chains=num_chains,
        num_warmup=num_warmup,
        thinning=thinning,
        seed=seed,
        keep_positions=keep_positions,
        compile=compile,
        progress=progress,
        block_size=block_size,
        process_group=process_group,
    )
    if adapt is not None:
        run.adapt(adapt)
    run.draw(num_draws, release=True)
    trace = run.trace()
    _warn_of_rounding(trace, potential.n_beta, initial.dtype)
    return trace


def _warn_of_rounding(trace: Trace, n_beta: float | Tensor, dtype: torch.dtype) -> None:
    """A loss is known to a share of itself, and nβ times that may be more than the energies of the law."""
    loss = np.abs(trace.loss[trace.surviving])
    rounding = float(torch.as_tensor(n_beta).max() * torch.finfo(dtype).eps) * (
        float(np.median(loss)) if loss.size else 0
    )
    if rounding > LARGEST_ROUNDING:
        warnings.warn(
            f"initial: in {dtype}, nβ·loss is known to ±{rounding:.2g} nats only, which decides what an exact kernel "
            "accepts and what any kernel records. Use float64, or subtract a constant from the loss.",
            RuntimeWarning,
            stacklevel=3,
        )
