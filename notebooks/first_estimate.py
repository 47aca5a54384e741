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
# # A first estimate
#
# A tanh network with more units than the truth needs, trained to its minimum; its local learning coefficient, well
# below half the number of its parameters; and the same for a network whose λ is known exactly.
#
# `SLT_NOTEBOOK_SIZE=small` in the environment runs it at a small size, in about a minute.

# %%
import os

import matplotlib.pyplot as plt
import torch

import slt

SMALL = os.environ.get("SLT_NOTEBOOK_SIZE") == "small"
n = 300 if SMALL else 2000

# %% [markdown]
# Data from one tanh unit with noise of standard deviation 0.1; a network of four units, trained by L-BFGS.
# The loss is the negative log likelihood, in nats: the squared error divided by twice the variance.

# %%
torch.manual_seed(0)
x = torch.rand(n, 1, dtype=torch.float64) * 4 - 2
y = torch.tanh(x) + 0.1 * torch.randn(n, 1, dtype=torch.float64)
model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()


def loss_fn(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().squeeze(-1) / (2 * 0.1**2)


optimizer = torch.optim.LBFGS(model.parameters(), max_iter=50 if SMALL else 2000, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    loss = loss_fn(model, (x, y)).mean()
    loss.backward()
    return loss


optimizer.step(closure)

# %% [markdown]
# One call. The summary says what was chosen, and why; and the verdict, what stands in the way of a better number. Four
# units for a truth of one leave long valleys, between which chains move slowly. Look at the verdict: where it names
# `slow_directions`, the interval speaks of what the chains have seen, and what they have not seen is in no interval.

# %%
short = {"num_draws": 100, "num_warmup": 50} if SMALL else {}
estimate = slt.estimate_llc(model, (x, y), loss_fn, **short)
print(estimate.summary())

# %% [markdown]
# λ̂ against half the number of parameters, which a regular model would have. The difference is directions that the loss
# does not see at this nβ, and what γ holds. Left, nβ·(L − L(w\*)) of every draw, whose mean is λ̂ where the sampler is
# exact; right, its running mean in every chain, and the 95 % interval.

# %%
half = sum(parameter.numel() for parameter in model.parameters()) / 2
print(f"λ̂ = {estimate.llc:.2f}, d/2 = {half}")
estimate.plot()
plt.show()
assert estimate.interval[0] > 0
assert estimate.interval[1] < half

# %% [markdown]
# A network of known λ: linear, 3-2-3, with a truth of rank 2. Aoyagi and Watanabe (2005) give λ = 4, where d/2 = 6. A
# 95 % interval misses once in twenty, so what is asserted is four standard errors: once in 16,000.

# %%
known = slt.known.case("rrr_323_r2")
estimate = slt.estimate_llc(known.build(), None, known.loss_fn, n_beta=1e5, **short)
print(f"exact {float(known.rlct)}, estimate {estimate}")
assert abs(estimate.llc - float(known.rlct)) <= 4 * estimate.mcse
