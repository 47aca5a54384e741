"""The program of :mod:`samplers.one_pass`, in Triton; to be imported only where that is installed."""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def update(
    position,
    gradient,
    anchor,
    weights,
    root,
    keys,
    sums,
    dim,
    sums_of_one,
    n_beta,
    strength,
    step_size,
    root_step_size,
    weighted: tl.constexpr,
    scaled: tl.constexpr,
    root_per_chain: tl.constexpr,
    quarter: tl.constexpr,
):
    """One program: four runs of columns of one chain, which share the counters of their noise."""
    program, chain = tl.program_id(0), tl.program_id(1).to(tl.int64)
    counter = program * quarter + tl.arange(0, quarter)
    noise = tl.randn4x(tl.load(keys + chain), counter)
    energy = tl.zeros((quarter,), dtype=tl.float32)
    inner = tl.zeros((quarter,), dtype=tl.float32)
    for place in tl.static_range(4):
        column = (program * 4 + place).to(tl.int64) * quarter + tl.arange(0, quarter)
        inside = column < dim
        at = chain * dim + column
        here = tl.load(position + at, mask=inside, other=0.0)
        slope = tl.load(gradient + at, mask=inside, other=0.0)
        offset = here - tl.load(anchor + column, mask=inside, other=0.0)
        pull = offset
        if weighted:
            pull = offset * tl.load(weights + column, mask=inside, other=0.0)
        energy += pull * offset
        drift = slope * n_beta + pull * strength
        step = noise[place] * root_step_size
        if scaled:
            own = tl.load(root + (at if root_per_chain else column), mask=inside, other=0.0)
            drift = drift * own * own
            step = step * own
        inner += slope * drift
        tl.store(position + at, here - 0.5 * step_size * drift + step, mask=inside)
    row = chain * tl.num_programs(0) + program
    tl.store(sums + row, tl.sum(energy, 0))
    tl.store(sums + sums_of_one + row, tl.sum(inner, 0))
