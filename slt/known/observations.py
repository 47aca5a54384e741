"""Statistical models: how data are drawn from the truth, and the negative log likelihood whose excess is K."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from slt.known.excess import Weights
from slt.known.inputs import Grid, InputLaw

Data = tuple[Tensor, ...]


class Observations(Protocol):
    """What is observed, given the weights."""

    def draw(self, truth: nn.Module, n: int, generator: torch.Generator) -> Data:
        """``n`` samples from the model at the weights of ``truth``, float64."""
        ...

    def loss(self, model: nn.Module, batch: Data) -> Tensor:
        """Negative log likelihood per sample, ``(batch,)``, in nats, up to a constant."""
        ...


@dataclass(frozen=True)
class Regression:
    """y = f(x; w) + ξ, ξ ~ N(0, I): the loss is ½ ‖y − f(x)‖²."""

    inputs: InputLaw

    def draw(self, truth: nn.Module, n: int, generator: torch.Generator) -> Data:
        """Inputs ``(n, N)`` and outputs ``(n, M)``."""
        x = self.inputs.draw(n, generator)
        with torch.no_grad():
            y = truth(x)
        return x, y + torch.randn(y.shape, dtype=y.dtype, generator=generator)

    def loss(self, model: nn.Module, batch: Data) -> Tensor:
        """½ ‖y − f(x)‖²."""
        x, y = batch
        return 0.5 * (y - model(x)).square().sum(-1)


@dataclass(frozen=True)
class Location:
    """y ~ N(√2 g(w), I): the loss is ½ ‖y − √2 g(w)‖², whose excess is K = Σ_j g_j(w)² where g(w*) = 0."""

    generators: Callable[[Weights], Tensor]

    def draw(self, truth: nn.Module, n: int, generator: torch.Generator) -> Data:
        """Observations ``(n, k)``."""
        with torch.no_grad():
            mean = 2**0.5 * self.generators(dict(truth.named_parameters()))
        return (mean + torch.randn((n, len(mean)), dtype=mean.dtype, generator=generator),)

    def loss(self, model: nn.Module, batch: Data) -> Tensor:
        """½ ‖y − √2 g(w)‖²."""
        return 0.5 * (batch[0] - 2**0.5 * self.generators(dict(model.named_parameters()))).square().sum(-1)


@dataclass(frozen=True)
class Classification:
    """A class ~ softmax of the logits f(x; w), x uniform on a grid of points; one logit stands for (0, f)."""

    inputs: Grid

    def draw(self, truth: nn.Module, n: int, generator: torch.Generator) -> Data:
        """Inputs ``(n, N)`` and classes ``(n,)``."""
        x = self.inputs.draw(n, generator)
        with torch.no_grad():
            probabilities = two_sided(truth(x)).softmax(-1)
        return x, torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)

    def loss(self, model: nn.Module, batch: Data) -> Tensor:
        """Cross-entropy per sample."""
        return nn.functional.cross_entropy(two_sided(model(batch[0])), batch[1], reduction="none")


@dataclass(frozen=True)
class Density:
    """x from a density whose logarithm, up to that of a reference that does not depend on w, is given.

    Attributes:
        sample: ``(n, generator) → (n,)``, from the truth.
        log_ratio: ``(weights, x (n,)) → (n,)``, log p(x|w) − log p(x|w*).
    """

    sample: Callable[[int, torch.Generator], Tensor]
    log_ratio: Callable[[Weights, Tensor], Tensor]

    def draw(self, truth: nn.Module, n: int, generator: torch.Generator) -> Data:
        """Observations ``(n,)``."""
        return (self.sample(n, generator),)

    def loss(self, model: nn.Module, batch: Data) -> Tensor:
        """−log p(x|w), up to a constant."""
        return -self.log_ratio(dict(model.named_parameters()), batch[0])


def two_sided(logits: Tensor) -> Tensor:
    """Logits of two classes where there is one, (0, f); the same logits where there are more."""
    return torch.cat([torch.zeros_like(logits), logits], -1) if logits.shape[-1] == 1 else logits
