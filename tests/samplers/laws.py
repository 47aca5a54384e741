"""Targets with exact laws: quadratics, for which the discretised chains are known too, and a skewed density."""

import itertools

import numpy as np
import torch
from scipy.integrate import quad
from scipy.linalg import solve_discrete_lyapunov
from scipy.special import polygamma
from torch import Tensor

from samplers import GaussianLocalizer, Unlocalized, from_log_density


class Quadratic:
    """Loss ½ Σ hᵢ (w − c)ᵢ² in rotated coordinates, with optional additive gradient noise; float64.

    ``rotation`` is orthogonal; coordinates of the law are ``rotation.T @ w``. Gradient noise has variance
    ``noise`` per coordinate for the gradient that nβ multiplies, so that s² = nβ² · noise.
    """

    max_chains = None

    def __init__(self, curvature, n_beta=1.0, localization=1.0, noise=0.0, rotation=None, seed=3):
        self.h = torch.as_tensor(curvature, dtype=torch.float64)
        self.dim = len(self.h)
        self.n_beta = n_beta
        self.noise = noise
        self.rotation = torch.eye(self.dim, dtype=torch.float64) if rotation is None else rotation
        self.anchor = torch.zeros(self.dim, dtype=torch.float64)
        self.localizer = GaussianLocalizer(self.anchor, localization) if localization else Unlocalized()
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def stiffness(self) -> Tensor:
        """A = nβh + γ."""
        return self.n_beta * self.h + getattr(self.localizer, "strength", 0.0)

    @property
    def noise_variance(self) -> float:
        """s², of the nβ-scaled gradient."""
        return self.n_beta**2 * self.noise

    def loss_and_grad(self, position, batch=None):
        own = position @ self.rotation
        loss = 0.5 * (self.h * own.square()).sum(-1)
        gradient = (self.h * own) @ self.rotation.T
        if self.noise:
            gradient = gradient + self.noise**0.5 * torch.randn(
                gradient.shape, dtype=torch.float64, generator=self.generator
            )
        return loss, gradient

    def sum(self, x):
        return x.sum(-1)

    def coordinates(self, positions: Tensor) -> np.ndarray:
        """Positions ``(chain, draw, dim)`` in the coordinates of the law."""
        return (positions @ self.rotation).numpy()


def random_rotation(dim: int, seed: int = 1) -> Tensor:
    """An orthogonal matrix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))[0]


def sgld_variance(stiffness: Tensor, step_size: float | Tensor, noise_variance: float = 0.0, scale=1.0) -> Tensor:
    """Variance of w along an eigenvector of curvature A under the discretised chain, preconditioned by ``scale``.

    w' = (1 − ½εpA) w − ½εp·s·η + √(εp) ξ is an AR(1) process; its variance is the ratio below.
    """
    step = step_size * scale
    contraction = 1 - 0.5 * step * stiffness
    return (step + 0.25 * step**2 * noise_variance) / (1 - contraction**2)


class NoisyByBatch(Quadratic):
    """Gradient noise that a batch, a number, determines, as that of data does, of any variance per coordinate."""

    def __init__(self, curvature, noise=0.0, **settings):
        super().__init__(curvature, **settings)
        self.noise = torch.as_tensor(noise, dtype=torch.float64).expand(self.dim)

    def loss_and_grad(self, position, batch=None):
        noise, self.noise = self.noise, 0.0
        loss, gradient = super().loss_and_grad(position)
        self.noise = noise
        if batch is not None:
            self.generator.manual_seed(batch)
            kick = torch.randn(position.shape, dtype=torch.float64, generator=self.generator)
            gradient = gradient + noise.sqrt() * kick
        return loss, gradient

    @property
    def energy(self):
        """nβ·E[loss]."""
        return float(0.5 * (self.n_beta * self.h / self.stiffness).sum())

    def from_the_law(self, num_chains):
        draws = torch.randn(num_chains, self.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        return draws / self.stiffness.sqrt()


def numbers(generator, count):
    """Batches of :class:`NoisyByBatch`."""
    return itertools.count(int(torch.randint(10**9, (1,), generator=generator)))


class Cross:
    """Loss (w₁w₂)², singular where the axes cross: λ = ½ twice; with w ~ N(0, I/γ), γ = 1, as the localiser."""

    dim, max_chains = 2, None

    def __init__(self, n_beta=1.0):
        self.n_beta = n_beta
        self.anchor = torch.zeros(2, dtype=torch.float64)
        self.localizer = GaussianLocalizer(self.anchor, 1.0)

    def loss_and_grad(self, position, batch=None):
        product = position.prod(-1, keepdim=True)
        return product.squeeze(-1) ** 2, 2 * product * position.flip(-1)

    def sum(self, x):
        return x.sum(-1)

    @property
    def energy(self) -> float:
        """nβ·E[loss]: given w₁ = u, w₂ is normal of precision p = 1 + 2nβu²."""

        def density(u):
            return np.exp(-0.5 * u**2) / (1 + 2 * self.n_beta * u**2) ** 0.5

        def loss(u):
            return self.n_beta * u**2 / (1 + 2 * self.n_beta * u**2) * density(u)

        limits = {"a": 0.0, "b": 12.0, "points": np.geomspace(1e-5, 5.0, 12), "limit": 500}
        return quad(loss, **limits)[0] / quad(density, **limits)[0]


class Regression:
    """Least squares on data of n rows, ½ (x·w − y)², a batch being rows for each chain; at its optimum, with γ = 1."""

    max_chains = None

    def __init__(self, num_rows=1000, dim=5, seed=5):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(num_rows, dim, dtype=torch.float64, generator=generator)
        self.y = self.x.sum(-1) + torch.randn(num_rows, dtype=torch.float64, generator=generator)
        self.anchor = torch.linalg.lstsq(self.x, self.y.unsqueeze(-1)).solution.squeeze(-1)
        self.localizer = GaussianLocalizer(self.anchor, 1.0)
        self.dim, self.n_beta, self.calls = dim, num_rows / np.log(num_rows), 0

    def loss_and_grad(self, position, batch=None):
        self.calls += 1
        rows = slice(None) if batch is None else batch
        residual = torch.einsum("cd,bd->cb" if batch is None else "cd,cbd->cb", position, self.x[rows])
        residual = residual - self.y[rows]
        gradient = torch.einsum("cb,bd->cd" if batch is None else "cb,cbd->cd", residual, self.x[rows])
        return 0.5 * residual.square().mean(-1), gradient / residual.shape[1]

    def sum(self, x):
        return x.sum(-1)

    def batches(self, generator, count):
        """Two rows for each chain, with replacement."""
        while True:
            yield torch.randint(len(self.x), (count, 2), generator=generator)

    @property
    def hessian(self) -> Tensor:
        """Of nβ·loss, on the full data."""
        return self.x.T @ self.x * self.n_beta / len(self.x)


class LogGamma:
    """w = log X with X ~ Gamma(shape): skewed, with closed moments. A sign error shows in its mean."""

    def __init__(self, shape: float = 2.0):
        self.shape = shape
        self.mean = float(polygamma(0, shape))
        self.variance = float(polygamma(1, shape))
        self.third = float(polygamma(2, shape))
        self.potential = from_log_density(lambda w: (shape * w - w.exp()).sum(-1), dim=1)


def sgld_moments_of_log_gamma(law: LogGamma, step_size: float) -> tuple[float, float, float]:
    """Mean of w, of (w − law.mean)² and of (w − law.mean)³ under the discretised chain, by quadrature.

    w' ~ N(w − ½ε(exp w − shape), ε). On a grid of a fifth of √ε the trapezoidal rule is exact to rounding.
    """
    grid = np.linspace(-20.0, 3.5, int(23.5 / (0.2 * step_size**0.5)))
    mean = grid - 0.5 * step_size * (np.exp(grid) - law.shape)
    moved = np.exp(-0.5 * np.square(grid[:, None] - mean) / step_size)
    moved /= moved.sum(0)
    system, total = moved - np.eye(len(grid)), np.zeros(len(grid))
    system[-1], total[-1] = 1.0, 1.0  # in place of one equation, which the others imply: the sum is one
    weights = np.linalg.solve(system, total)
    first, second, third = (float(weights @ (grid - law.mean) ** power) for power in (1, 2, 3))
    return law.mean + first, second, third


def _stationary(map_: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Covariance of z' = map_ z + noise, where ``noise`` holds one column per independent standard normal."""
    return solve_discrete_lyapunov(map_, noise @ noise.T)


def _in_each_coordinate(covariance, stiffness, noise_variance, scale) -> np.ndarray:
    """``(dim, 2, 2)`` of (w, q), by way of w / √scale, in which the preconditioner is the identity."""
    result = []
    scales, variances = (np.broadcast_to(each, len(stiffness)) for each in (scale, noise_variance))
    for curvature, factor, variance in zip(stiffness.tolist(), scales, variances, strict=True):
        back = np.diag([factor**0.5, 1.0])
        result.append(back @ covariance(factor * curvature, factor * variance) @ back)
    return np.array(result)


def sghmc_covariance(stiffness: Tensor, step_size, friction, noise_variance=0.0, gradient_noise=0.0, scale=1.0):
    """Covariance ``(dim, 2, 2)`` of position and momentum under the discretised chain, in each coordinate.

    q' = (1 − hC) q − hA w + σξ, w' = w + h q', with σ² = 2hC − h²V̂ + h²s².
    """

    def covariance(curvature, variance):
        kept = 1 - step_size * friction
        deviation = (2 * step_size * friction + step_size**2 * (variance - gradient_noise)) ** 0.5
        kick = np.array([[1.0, 0.0], [-step_size * curvature, kept]])
        drift = np.array([[1.0, step_size], [0.0, 1.0]])
        return _stationary(drift @ kick, drift @ np.array([[0.0], [deviation]]))

    return _in_each_coordinate(covariance, stiffness, noise_variance, scale)


def baoab_covariance(stiffness: Tensor, step_size, friction, noise_variance=0.0, scale=1.0, noise_rate=None):
    """Covariance ``(dim, 2, 2)`` of position and momentum, before both half-kicks, under the discretised chain.

    Kick by the noisy gradient, half a drift, exact friction and noise, half a drift. ``noise_rate`` is the friction
    that the injected noise would balance, where that is another one: a thermostat held at its mean.
    """

    def covariance(curvature, variance):
        kept = np.exp(-step_size * friction)
        deviation = ((noise_rate or friction) / friction * (1 - kept**2)) ** 0.5
        kick = np.array([[1.0, 0.0], [-step_size * curvature, 1.0]])
        drift = np.array([[1.0, 0.5 * step_size], [0.0, 1.0]])
        rub = np.diag([1.0, kept])
        of_gradient = drift @ rub @ drift @ np.array([[0.0], [step_size * variance**0.5]])
        of_bath = drift @ np.array([[0.0], [deviation]])
        return _stationary(drift @ rub @ drift @ kick, np.hstack([of_gradient, of_bath]))

    return _in_each_coordinate(covariance, stiffness, noise_variance, scale)
