"""The paper's family: forward processes that share their marginals, and the noise that a step of each takes and gives.

Notation: sigma is the noise level of this package, sqrt((1 - alpha_bar) / alpha_bar); what the paper calls sigma_t is
the standard deviation of the noise that a step adds to x. In x_bar = x / sqrt(alpha_bar) the whole family is short:
the marginals are N(x_0, sigma_t^2 I), and the step from x_bar_t to x_bar_{t-1} keeps ``down`` of the noise that is
there and adds ``up`` of its own,

    x_bar_{t-1} = x_0 + down (x_bar_t - x_0) / sigma_t + up z,    down^2 + up^2 = sigma_{t-1}^2,    z ~ N(0, I).

So ``up`` is the paper's sigma_t / sqrt(alpha_bar_{t-1}), and ``down`` its sqrt(1 - alpha_bar_{t-1} - sigma_t^2) over
the same. The generative process makes the same step with the network's guess of x_0 in the place of x_0.

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, Sections 3 and 4.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

from torch import Tensor

from ddim_ode.grids import Grid

# Standard normal noise, fresh on each call: ``(B, C, H, W)``.
Noise = Callable[[], Tensor]


def noise_of_eta(sigma: float, sigma_next: float, eta: float) -> float:
    """``up`` of the step from ``sigma`` down to ``sigma_next``: Eq. (16), over sqrt(alpha_bar_next).

    ``eta``  0 for DDIM, without noise; 1 for DDPM. On a step to sigma = 0 there is none for any eta.

    Raises:
        ValueError: if eta lies outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], from DDIM to DDPM, but it is {eta:g}")
    return eta * sigma_next * sqrt(1 - (sigma_next / sigma) ** 2)


def noise_of_sigma_hat(sigma: float, sigma_next: float) -> float:
    """The larger noise of the variance that the paper calls sigma-hat, sqrt(1 - alpha_bar / alpha_bar_next) in x.

    It does not keep the marginals. None on a step to sigma = 0, as in DDPM. Section 5.1.
    """
    return sqrt((1 + sigma_next**2) * (sigma**2 - sigma_next**2) / (1 + sigma**2)) if sigma_next else 0.0


def kept_noise(sigma_next: float, up: float) -> float:
    """``down`` of a step to ``sigma_next`` that adds ``up``, at most sigma_next."""
    return sqrt(max(sigma_next**2 - up**2, 0.0))


@dataclass(frozen=True)
class ForwardProcess:
    """q(x_1, ..., x_T | x_0): x_T from its marginal, then x_{t-1} given x_t and x_0. Eq. (6) and (7).

    ``sigmas``  the noise levels of x_1 ... x_T, rising, above 0.
    ``ups``     the noise of the steps from x_t to x_{t-1}, t = 1 ... T, in x_bar. The first, that of the step to x_0,
                belongs to the generative process alone; of the others none is larger than sigma_{t-1}.

    Images and states are ``(B, C, H, W)``; t is 1 ... T, as in the paper.

    Raises:
        ValueError: if the two lists do not fit together or do not hold such numbers.
    """

    sigmas: tuple[float, ...]
    ups: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sigmas or len(self.sigmas) != len(self.ups):
            raise ValueError(
                f"a process needs as many noises as sigmas, at least one, but it has {len(self.ups)} "
                f"and {len(self.sigmas)}"
            )
        for sigma, following in pairwise((0.0, *self.sigmas)):
            if not following > sigma:
                raise ValueError(f"sigmas must rise strictly from above 0, but {following:g} follows {sigma:g}")
        for t, (up, most) in enumerate(zip(self.ups, (float("inf"), *self.sigmas), strict=False), start=1):
            if not 0 <= up <= most:
                raise ValueError(f"the noise of step {t} must lie in [0, {most:g}], but it is {up:g}")

    def __len__(self) -> int:
        """The number T of steps."""
        return len(self.sigmas)

    def alpha_bar(self, t: int) -> float:
        """alpha_bar of x_t; 1 at t = 0."""
        return 1 / (1 + self.sigmas[t - 1] ** 2) if t else 1.0

    def down(self, t: int) -> float:
        """How much of the noise in x_bar_t is left in x_bar_{t-1}; nothing of it in x_0."""
        return kept_noise(self.sigmas[t - 2], self.ups[t - 1]) if t > 1 else 0.0

    def marginal(self, x_0: Tensor, t: int) -> tuple[Tensor, float]:
        """The mean of x_t given x_0, sqrt(alpha_bar_t) x_0, ``(B, C, H, W)``; its deviation, sqrt(1 - alpha_bar_t)."""
        alpha_bar = self.alpha_bar(t)
        return sqrt(alpha_bar) * x_0, sqrt(1 - alpha_bar)

    def posterior(self, x_t: Tensor, x_0: Tensor, t: int) -> tuple[Tensor, float]:
        """The mean, ``(B, C, H, W)``, and the standard deviation of x_{t-1} given x_t and x_0: Eq. (7)."""
        x_bar = x_t / sqrt(self.alpha_bar(t))
        scale = sqrt(self.alpha_bar(t - 1))
        return scale * (x_0 + self.down(t) / self.sigmas[t - 1] * (x_bar - x_0)), scale * self.ups[t - 1]

    def sample(self, x_0: Tensor, noise: Noise) -> Iterator[Tensor]:
        """Draw x_T, ..., x_1, in this order, each ``(B, C, H, W)``."""
        mean, std = self.marginal(x_0, len(self))
        x_t = mean + std * noise()
        yield x_t
        for t in range(len(self), 1, -1):
            mean, std = self.posterior(x_t, x_0, t)
            x_t = mean + std * noise()
            yield x_t


def forward_process(grid: Grid, eta: float) -> ForwardProcess:
    """The process of ``eta`` over the nodes of ``grid`` above sigma = 0; Eq. (16).

    Raises:
        ValueError: if eta lies outside [0, 1].
    """
    sigmas = tuple(sigma for sigma in grid.sigmas if sigma > 0)
    ups = (noise_of_eta(sigma, following, eta) for following, sigma in pairwise((0.0, *sigmas)))
    return ForwardProcess(sigmas, tuple(ups))
