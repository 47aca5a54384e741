# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A network's development over training
#
# Some networks learn in stages: the loss stands still, falls, stands still again. The learning coefficient shows what
# happens in them: how many more directions of the weights matter after each. This notebook measures it along the
# checkpoints of a network in which the whole story is known exactly: a linear network of two layers that starts near
# zero. It learns the singular directions of its task one after another, strongest first (Saxe et al. 2014), and the
# learning coefficient of each stage is a theorem (Aoyagi and Watanabe 2005).
#
# `SLT_NOTEBOOK_SIZE=small` in the environment runs it at a small size, in about a minute.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import slt

SMALL = os.environ.get("SLT_NOTEBOOK_SIZE") == "small"
WIDTH, HIDDEN, STRENGTHS = 6, 3, (4.0, 2.0, 1.0)
LAST_STEP = 2500


class TwoLayers(nn.Module):
    """x → W₂ W₁ x, and a buffer in which a checkpoint says what function it computes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(1e-3 * torch.randn(HIDDEN, WIDTH, dtype=torch.float64))
        self.second = nn.Parameter(1e-3 * torch.randn(WIDTH, HIDDEN, dtype=torch.float64))
        self.register_buffer("function", torch.zeros(WIDTH, WIDTH, dtype=torch.float64))

    def forward(self, inputs):
        return inputs @ (self.second @ self.first).T


def loss_fn(model, batch):
    """The negative log likelihood of unit noise, one per sample, in nats."""
    inputs, outputs = batch
    return 0.5 * (model(inputs) - outputs).square().sum(-1)


# %% [markdown]
# ## Training, with checkpoints
#
# The task is a random matrix with singular values 4, 2 and 1, seen in 1,000 noisy samples. Checkpoints are written at
# steps whose logarithms are evenly spaced, because that is how development goes.

# %%
torch.manual_seed(0)
left, right = (torch.linalg.qr(torch.randn(WIDTH, HIDDEN, dtype=torch.float64)).Q for _ in range(2))
truth = left @ torch.diag(torch.tensor(STRENGTHS, dtype=torch.float64)) @ right.T
x = torch.randn(1000, WIDTH, dtype=torch.float64)
y = x @ truth.T + torch.randn(1000, WIDTH, dtype=torch.float64)

temporary = tempfile.TemporaryDirectory()  # it goes when the notebook does
folder = Path(temporary.name)
model = TwoLayers()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
steps = slt.callbacks.log_spaced(40, LAST_STEP, 6 if SMALL else 20)
losses, strengths = [], {}
for step in range(1, LAST_STEP + 1):
    optimizer.zero_grad()
    loss = loss_fn(model, (x, y)).mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step in steps:
        model.function.copy_((model.second @ model.first).detach())
        torch.save(model.state_dict(), folder / f"step-{step:05d}.pt")
        strengths[step] = torch.linalg.svdvals(model.function)[:HIDDEN].numpy()

figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
top.plot(range(1, LAST_STEP + 1), losses, color="#c05a2b")
top.set(ylabel="training loss   [nats]", xscale="log", xlim=(40, LAST_STEP))
for place, style in enumerate(("-", "--", ":")):
    values = [each[place] for each in strengths.values()]
    bottom.plot(list(strengths), values, style, marker=".", color="#1f3b57", label=f"number {place + 1}")
bottom.set(xlabel="training step", ylabel="singular values of W₂W₁", yscale="log")
bottom.legend(frameon=False)
for axes in (top, bottom):
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## λ̂ of the training loss
#
# `slt.sweep` measures all checkpoints under one law: the same nβ, γ, metric and sampler, so that the numbers can be
# compared. With a `store` it can be killed at any moment, and goes on where it stopped.

# %%
found = slt.sweep(
    model, str(folder / "step-*.pt"), (x, y), loss_fn, store=folder / "training", num_draws=60 if SMALL else 100
)
print(found.table())

# %%
found.plot()
plt.show()
estimates = [row.estimate for row in found.rows]
assert sum(estimate.llc < 0 for estimate in estimates) > len(estimates) / 2
assert "not_at_a_minimum" in estimates[0].verdict.names

# %% [markdown]
# Most of it is negative, and marked hollow. On the way λ̂ of the *training* loss is not a property of the network:
# there are better weights nearby, the chains find them, and the number says how many nats there are to gain,
# $n\beta$ times over. The verdict calls that `not_at_a_minimum`. There is a minimum to be measured only at the end.
#
# The plateaus of the loss do not help. Each of them is a *saddle*: the network rests there because its gradient is
# small, not because there is nothing to gain.
#
# ## λ̂ of the function that the network computes
#
# There is a question that can be asked of every checkpoint: how much room is there around these weights for *the
# function that they compute now*? The loss is then the divergence from that function, not from the task. Each
# checkpoint is a minimum of its own, at zero. For Gaussian noise and white inputs it is
#
# $$ K(w) = \tfrac12\, \lVert W_2 W_1 - F \rVert^2, \qquad F = W_2^* W_1^*, $$
#
# and because that is exact, nβ can be what we like. It is the resolution: singular values well below
# $1/\sqrt{n\beta}$ = 0.03 are none.

# %%
N_BETA = 1000.0


def divergence(model):
    """K from the function of the checkpoint. The weights may have a leading axis, of chains."""
    return 0.5 * (model.second @ model.first - model.function).square().sum((-1, -2))


developed = slt.sweep(
    TwoLayers(), str(folder / "step-*.pt"), None, divergence, n_beta=N_BETA, store=folder / "function",
    num_draws=150 if SMALL else 400,
)  # fmt: skip
print(developed.table())

# %% [markdown]
# ## Beside the theorem
#
# Where k singular values are there, and the others are none, the learning coefficient is that of two layers with a
# function of rank k. `slt.known` has it:

# %%
levels = [
    slt.known.reduced_rank_at(WIDTH, HIDDEN, WIDTH, first_rank=rank, second_rank=rank, rank=rank)
    for rank in range(HIDDEN + 1)
]
for rank, level in enumerate(levels):
    print(f"rank {rank}: λ = {float(level.rlct):g}, m = {level.multiplicity}; half of the weights is {WIDTH * HIDDEN}")
assert [float(level.rlct) for level in levels] == [8, 10, 12, 13.5]

data = developed.to_dataset()
figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(7.5, 6.5), sharex=True, layout="constrained", height_ratios=[3, 2]
)  # fmt: skip
low, high = data["llc"] - data["low"], data["high"] - data["llc"]
top.errorbar(data["step"], data["llc"], yerr=[low, high], fmt="o", color="#1f3b57", capsize=3, label="λ̂, 95 % interval")
for rank, level in enumerate(levels):
    top.axhline(float(level.rlct), color="#c05a2b", linewidth=1, linestyle="--", label=None if rank else "λ by theorem")
    place = {"xycoords": top.get_yaxis_transform(), "ha": "left", "va": "center", "color": "#c05a2b"}
    top.annotate(f"rank {rank}", (1.01, float(level.rlct)), **place)
for stage in developed.stages():
    for axes in (top, bottom):
        axes.axvspan(stage.start, stage.end, color="#9fb4c7", alpha=0.3 if stage.plateau else 0.0, linewidth=0)
top.set(ylabel="local learning coefficient λ̂", xscale="log")
top.legend(frameon=False, loc="upper left")
bottom.plot(range(1, LAST_STEP + 1), losses, color="#c05a2b")
bottom.set(xlabel="training step", ylabel="training loss   [nats]", xlim=(36, LAST_STEP * 1.1))
for axes in (top, bottom):
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The steps of λ̂ are those of the theorem: the loss falls at the same moments, but where the loss says how much better
# the network has become, λ̂ says how much more of its weights that takes. λ goes 8, 10, 12, 13.5: the new directions
# cost 2, 2 and 1½. At the end it is 13.5 and not 18, because nine of the 36 directions of the weights change nothing:
# $W_2 G^{-1} \cdot G W_1$ is the same function for every invertible 3 × 3 matrix $G$. Shaded are the plateaus that
# `sweep.stages()` finds by itself, without knowing the theorem.
#
# At $n\beta$ = 1000 λ̂ is still a little below λ: by about $(m - 1)/\log n\beta$ where the multiplicity m is 2, and by
# powers of $1/n\beta$, which we allow three per cent. With that, and four standard errors, it must agree with the
# theorem at every checkpoint that has a rank: whose singular values are all above 0.3, or below 0.01.

# %%
seen = set()
for row in developed.rows:
    values = strengths[row.step]
    if any(0.01 < value < 0.3 for value in values):
        continue  # on the way from one rank to the next
    rank = sum(value > 0.3 for value in values)
    right, m = float(levels[rank].rlct), levels[rank].multiplicity
    below = (m - 1) / np.log(N_BETA) + 0.03 * right
    print(f"step {row.step:>5}: rank {rank}, λ = {right:g}, λ̂ = {row.estimate.llc:.2f} ± {row.estimate.mcse:.2f}")
    assert -below - 4 * row.estimate.mcse <= row.estimate.llc - right <= 4 * row.estimate.mcse
    seen.add(rank)
assert {0, HIDDEN} <= seen
assert SMALL or seen == {0, 1, 2, 3}  # with few checkpoints, a stage can fall between two
