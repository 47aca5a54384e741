"""Small modules and losses of every kind that the engines must serve."""

import torch
from torch import nn


def mean_squared(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def cross_entropy(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


class TinyTransformer(nn.Module):
    """Embedding, one causal attention block, and an output that shares the embedding's weights."""

    def __init__(self, vocabulary=11, width=8, length=6):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(nn.functional.gelu(self.hidden(x)))
        return self.head(x)


def next_token(model, batch):
    (tokens,) = batch
    logits = model(tokens)[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def perceptron():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    return model, (torch.randn(50, 3).double(), torch.randn(50, 2).double()), mean_squared


def convolution():
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    ).double()
    return model, (torch.randn(40, 1, 8, 8).double(), torch.randint(4, (40,))), cross_entropy


def tied_transformer():
    torch.manual_seed(3)
    return TinyTransformer().double(), (torch.randint(11, (30, 6)),), next_token


ALL = {"perceptron": perceptron, "convolution": convolution, "transformer with tied weights": tied_transformer}


def fitted_regression(n=200, seed=0, dtype=torch.float64):
    """A linear model at its least-squares minimum, whose λ̂ is known in closed form at any nβ and γ."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=dtype)
    y = x @ torch.tensor([[1.0], [-0.5], [0.2]], dtype=dtype) + torch.randn(n, 1, generator=generator, dtype=dtype)
    model = nn.Linear(3, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    hessian = x.T @ x / n
    return model, (x, y), hessian


def half_squares(model, batch):
    """One loss per sample: the negative log likelihood of unit noise, up to a constant."""
    x, y = batch
    return 0.5 * (model(x) - y).square().squeeze(-1)


def regression_llc(hessian, n_beta, localization):
    """½ tr( nβS (nβS + γ)⁻¹ ), exactly."""
    values = torch.linalg.eigvalsh(hessian)
    return float(0.5 * (n_beta * values / (n_beta * values + localization)).sum())
