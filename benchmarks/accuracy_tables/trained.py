"""Small models at their minimum, each with its data and loss, by seed: what the faults are injected into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Trained(NamedTuple):
    """A model at w*, its data, and its negative log likelihood per sample, in nats."""

    model: nn.Module
    data: tuple[Tensor, Tensor]
    loss_fn: Callable[..., Tensor]


def linear(seed: int, n: int = 500, inputs: int = 6) -> Trained:
    """Least squares with unit noise, whose λ̂ is known in closed form."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(inputs, 1, generator=generator, dtype=torch.float64)
    y += torch.randn(n, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(inputs, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return Trained(model, (x, y), squares(1.0))


def linear_llc(trained: Trained, n_beta: float, localization: float) -> float:
    """½ tr(nβS (nβS + γ)⁻¹), exactly."""
    x = trained.data[0]
    curvatures = n_beta * torch.linalg.eigvalsh(x.T @ x / len(x))
    return float(0.5 * (curvatures / (curvatures + localization)).sum())


def softmax(seed: int, n: int = 1000, inputs: int = 4, classes: int = 3) -> Trained:
    """Classes that overlap, and a softmax of a linear map with a bias: no unique minimum, but one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator, dtype=torch.float64)
    logits = x @ torch.randn(inputs, classes, generator=generator, dtype=torch.float64)
    y = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    model = initialised(nn.Linear(inputs, classes, dtype=torch.float64), generator)
    return descended(Trained(model, (x, y), cross_entropy))


def poisson(seed: int, n: int = 1000, inputs: int = 3) -> Trained:
    """Counts with a log-linear rate."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator, dtype=torch.float64)
    rate = (0.5 * x @ torch.randn(inputs, 1, generator=generator, dtype=torch.float64)).exp()
    y = torch.poisson(rate, generator=generator)
    model = initialised(nn.Linear(inputs, 1, dtype=torch.float64), generator)
    return descended(Trained(model, (x, y), counts))


def network(seed: int, n: int = 1000, noise: float = 0.5, scales: tuple[float, float] = (1.0, 1.0)) -> Trained:
    """Two tanh units at the minimum near a truth of two, which look in different directions.

    Args:
        seed: Of the truth and the data.
        n: Samples.
        noise: Of the outputs, which have a width of about one.
        scales: Of the inputs, by which the network is as badly conditioned as one likes.

    Returns:
        The network.
    """
    generator = torch.Generator().manual_seed(seed)
    model = initialised(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double(), generator)
    x = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 4 - 2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 0.2
        model[0].weight += torch.tensor([[1.5, 0.0], [0.0, 1.5]])
        model[2].weight += torch.tensor([[1.0, -1.0]])
        y = model(x) + noise * torch.randn(n, 1, generator=generator, dtype=torch.float64)
        x *= torch.tensor(scales, dtype=torch.float64)
        model[0].weight /= torch.tensor(scales, dtype=torch.float64)
    return descended(Trained(model, (x, y), squares(noise)))


def squares(noise: float) -> Callable[..., Tensor]:
    """The negative log likelihood of Gaussian noise of this width, up to a constant."""

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return (model(x) - y).square().squeeze(-1) / (2 * noise**2)

    return loss_fn


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x), y, reduction="none")


def counts(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    log_rate = model(x)
    return (log_rate.exp() - y * log_rate).squeeze(-1)


def initialised(model: nn.Module, generator: torch.Generator) -> Any:
    """The module with all weights standard normal."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def descended(trained: Trained, evaluations: int = 1000) -> Trained:
    """The same, at the minimum that L-BFGS finds."""
    optimizer = torch.optim.LBFGS(
        trained.model.parameters(), max_iter=evaluations, line_search_fn="strong_wolfe", history_size=50,
        tolerance_grad=1e-9, tolerance_change=1e-14,
    )  # fmt: skip

    def value() -> Tensor:
        optimizer.zero_grad()
        loss = trained.loss_fn(trained.model, trained.data).mean()
        loss.backward()
        return loss

    optimizer.step(value)
    optimizer.zero_grad(set_to_none=True)
    return trained
