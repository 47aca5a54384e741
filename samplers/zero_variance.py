"""Functions of known mean zero under a tempered law in a ball, and what is left of a mean when they are taken out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The field must vanish on the sphere. The first power lets it fall over the whole ball, the second only near its
# surface: where K is a product of powers, all but a sixteenth of a nat of each weight's scales is then free of noise.
POWERS = (2, 16)
LARGEST_DIM_OF_MATRICES = 8  # beyond, d² functions cost more than they take out
SAMPLES_PER_FUNCTION = 20  # or the coefficients are noise
RIDGE = 1e-8


def zero_mean_functions(
    position: Tensor, gradient: Tensor, n_beta: float, anchor: Tensor, radius: float, matrices: bool
) -> Tensor:
    r"""Functions whose mean is zero under exp(−nβ·L) in the ball, by the divergence theorem.

    .. math:: E\bigl[n\beta\, v \cdot \nabla L - \nabla \cdot v\bigr] = 0, \qquad
              v = \bigl(1 - (\|x\|/R)^p\bigr)\,(A x + b), \quad x = w - w^*

    for every A and b, since v vanishes on the sphere. Where L is quasi-homogeneous in x, nβ·L itself is one of them
    plus a constant, away from the sphere: this is why they take so much noise out of nβ·E[L].

    Args:
        position: ``(samples, dim)``.
        gradient: Of the loss, ``(samples, dim)``.
        n_beta: nβ.
        anchor: w*, ``(dim,)``.
        radius: R.
        matrices: Whether A is any matrix, or diagonal.

    Returns:
        ``(samples, functions)``.

    Source:
        Mira, Solgi & Imparato 2013 (zero-variance principle); the fields are made for a ball.
    """
    x = (position - anchor) / radius
    slope = n_beta * radius * gradient
    square = x.square().sum(-1, keepdim=True)
    parts = []
    for power in POWERS:
        window = 1 - square ** (power // 2)
        window_slope = -power * square ** (power // 2 - 1) * x
        force = window * slope - window_slope
        parts.append(force)
        if matrices:
            moments = force.unsqueeze(-1) * x.unsqueeze(-2)
            parts.append((moments - window.unsqueeze(-1) * torch.eye(x.shape[-1], dtype=x.dtype)).flatten(1))
        else:
            parts.append(force * x - window)
    return torch.cat(parts, -1)


def without_known_noise(values: Tensor, functions: Sequence[Tensor]) -> Tensor:
    """Values with the same mean and less noise: minus the combination of zero-mean functions that is most like them.

    The coefficients for one half of the populations are fitted on the other half, so that the mean stays right.

    Args:
        values: ``(populations, samples)``.
        functions: Of parts of the samples in turn, each ``(populations, samples of it, functions)``.

    Returns:
        ``(populations, samples)``; the values as they are where there are too few samples or populations.
    """
    known = torch.cat(list(functions), 1)
    known = torch.where(known.isfinite(), known, 0.0)
    num_populations, num_samples, num_functions = known.shape
    half = num_populations // 2
    if half < 1 or half * num_samples < SAMPLES_PER_FUNCTION * num_functions:
        return values
    known = known / known.square().mean((0, 1)).sqrt().clamp(min=1e-300)
    cleaned = torch.empty_like(values)
    for here, there in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        inputs = known[there].flatten(0, 1)
        targets = (values[there] - values[there].mean()).flatten()
        normal = inputs.T @ inputs
        normal.diagonal().add_(RIDGE * len(inputs))
        coefficients = torch.linalg.solve(normal, inputs.T @ targets)
        cleaned[here] = values[here] - known[here] @ coefficients
    return cleaned
