"""Problems with a known answer: dx/dsigma = eps(sigma, x) for data of known density.

With sigma times standard normal noise added, the data has a density p, and eps = -sigma grad log p(x). For data
N(mu, Sigma) that is sigma (Sigma + sigma^2 I)^-1 (x - mu), and the flow from sigma_0 to sigma_1 stretches x - mu by
sqrt((lam + sigma_1^2) / (lam + sigma_0^2)) along every eigenvector of Sigma, lam being its variance.

States have shape ``(B, C, H, W)``. The fields compute in float64 and answer in the dtype of the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

SIGMA_MAX = 157.4  # the far end of DDPM's schedule

Field = Callable[[Tensor, Tensor], Tensor]

real = partial(torch.tensor, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Problem:
    """A field with its exact flow, and some data to follow along it.

    ``field``  ``(sigma, x)``: sigma ``()`` or ``(B,)``, x ``(B, C, H, W)``, to dx/dsigma ``(B, C, H, W)``.
    ``flow``   ``(x, sigma_0, sigma_1)``: where x at sigma_0 is at sigma_1; both ``(B, C, H, W)``.
    ``data``   x at sigma = 0, ``(B, C, H, W)`` in float64.
    """

    name: str
    field: Field
    flow: Callable[[Tensor, float, float], Tensor]
    data: Tensor

    def at(self, sigma: float) -> Tensor:
        """Where the data is at ``sigma``, ``(B, C, H, W)``."""
        return _data_at(self, sigma)


@cache
def _data_at(problem: Problem, sigma: float) -> Tensor:
    return problem.flow(problem.data, 0.0, sigma)


def level(sigma: Tensor, x: Tensor) -> Tensor:
    """``sigma``, ``()`` or ``(B,)``, in a shape to compute with ``x``, ``(B, ...)``."""
    return sigma.reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim else sigma


def gaussian(mean: Tensor, std: Tensor, data: Tensor) -> Problem:
    """Data N(mean, std^2) in each component by itself; ``mean`` and ``std`` broadcast to ``(C, H, W)``."""

    def field(sigma: Tensor, x: Tensor) -> Tensor:
        sigma = level(sigma, x)
        return (sigma * (x.double() - mean) / (std**2 + sigma**2)).to(x)

    def flow(x: Tensor, sigma_0: float, sigma_1: float) -> Tensor:
        return mean + (x - mean) * ((std**2 + sigma_1**2) / (std**2 + sigma_0**2)).sqrt()

    return Problem("gaussian", field, flow, data)


def correlated(mean: Tensor, covariance: Tensor, data: Tensor) -> Problem:
    """Data N(mean, covariance); ``mean`` is ``(C, H, W)`` and ``covariance`` ``(D, D)`` with D = C H W."""
    variances, axes = torch.linalg.eigh(covariance)

    def stretch(x: Tensor, factors: Tensor) -> Tensor:
        """x - mean, multiplied by one of ``factors``, ``(D,)`` or ``(B, D)``, along each axis."""
        return (((x - mean).flatten(1) @ axes * factors) @ axes.T).reshape(x.shape)

    def field(sigma: Tensor, x: Tensor) -> Tensor:
        sigma = sigma[..., None]
        return stretch(x.double(), sigma / (variances + sigma**2)).to(x)

    def flow(x: Tensor, sigma_0: float, sigma_1: float) -> Tensor:
        return mean + stretch(x, ((variances + sigma_1**2) / (variances + sigma_0**2)).sqrt())

    return Problem("correlated", field, flow, data)


def mixture(weights: Tensor, means: Tensor, stds: Tensor, data: Tensor) -> Problem:
    """Data from K Gaussians N(means[k], stds[k]^2 I), drawn with ``weights``, ``(K,)``; ``means`` is ``(K, C, H, W)``.

    Its flow has no closed form and is integrated by scipy itself, to a relative 1e-13.
    """
    dimension = means[0].numel()

    def field(sigma: Tensor, x: Tensor) -> Tensor:
        sigma = sigma[..., None]  # (1,) or (B, 1), beside (K,)
        variances = stds**2 + sigma**2
        offsets = x.double()[:, None] - means
        squares = offsets.flatten(2).square().sum(-1)
        logits = weights.log() - dimension / 2 * variances.log() - squares / (2 * variances)
        pulls = logits.softmax(-1) * sigma / variances
        return torch.einsum("bk,bkchw->bchw", pulls, offsets).to(x)

    def flow(x: Tensor, sigma_0: float, sigma_1: float) -> Tensor:
        def slope(sigma: float, y: np.ndarray) -> np.ndarray:
            return field(real(sigma), torch.tensor(y).reshape(x.shape)).numpy().ravel()

        start = x.numpy().ravel()
        solution = solve_ivp(slope, (sigma_0, sigma_1), start, method="DOP853", rtol=1e-13, atol=1e-13)
        return torch.tensor(solution.y[:, -1]).reshape(x.shape)

    return Problem("mixture", field, flow, data)


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _covariance() -> Tensor:
    """Positive definite, ``(4, 4)``, with correlations of either sign."""
    factor = _normal(4, 4, seed=1)
    return factor @ factor.T / 4 + 0.05 * torch.eye(4)


_MEAN, _STD = 0.5 * _normal(1, 2, 2, seed=2), 0.3 + 0.5 * _normal(1, 2, 2, seed=3).abs()
_MEANS = _normal(3, 1, 2, 2, seed=4)
_DATA = _normal(2, 1, 2, 2, seed=5)

GAUSSIAN = gaussian(_MEAN, _STD, _DATA)
CORRELATED = correlated(_MEAN, _covariance(), _DATA)
MIXTURE = mixture(
    weights=real([0.2, 0.3, 0.5]),
    means=_MEANS,
    stds=real([0.3, 0.5, 0.4]),
    data=_MEANS[:2] + 0.3 * _DATA,
)
PROBLEMS = (GAUSSIAN, CORRELATED, MIXTURE)


class Recorded:
    """A field that keeps every sigma it is asked for, ``sigmas``, in the order of the calls."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self.sigmas: list[Tensor] = []

    @property
    def nfe(self) -> int:
        return len(self.sigmas)

    def __call__(self, sigma: Tensor, x: Tensor) -> Tensor:
        self.sigmas.append(sigma)
        return self._field(sigma, x)


def relative_error(x: Tensor, exact: Tensor) -> float:
    """|x - exact| / |exact|, Euclidean over the whole batch; shapes are equal."""
    return float((x - exact).norm() / exact.norm())


def steps_of_two_sizes(begin: float, end: float, steps: int) -> Tensor:
    """A grid between two positive ends, in either direction, for an even number of ``steps``.

    In log sigma its steps have the sizes 1, 2, 1, 2, ..., so that no refinement makes neighbours equal: a formula
    that only holds for equal steps, or for nearly equal ones, keeps its error.
    """
    sizes = real([1.0, 2.0] * (steps // 2))
    part = torch.cat([torch.zeros(1), sizes.cumsum(0)]) / sizes.sum()
    grid = begin * (end / begin) ** part
    grid[[0, -1]] = real([begin, end])
    return grid


def steps_in_proportion(begin: float, end: float, steps: int) -> Tensor:
    """A grid between two positive ends, in either direction, with equal steps in log sigma."""
    grid = begin * (end / begin) ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    grid[[0, -1]] = real([begin, end])
    return grid
