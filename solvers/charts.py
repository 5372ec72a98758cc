"""Changes of variables: integrate y(u) what is given as x(sigma), with u a function of sigma and x = s(sigma) y.

    dy/du = dsigma/du (field(sigma, x) - (s'/s) x) / s

A good chart takes known parts of the flow out of what a method has to approximate. The new variable u stretches
small scales of sigma, so that steps of comparable size cover the whole range; the scale s removes growth that every
solution shares.

A ``Stretch`` is a second variable, v(u): a multistep method that integrates in u may take its past slopes for a
polynomial in v. With u = sigma and v = log sigma, for example, it is DEIS with rho in the logarithm.

Song et al., arXiv 2010.02502 (the chart sigma); Lu et al., "DPM-Solver++", arXiv 2211.01095 (the chart data);
Zhang, Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", arXiv 2204.13902 (stretches).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import asinh, atan, cosh, exp, expm1, hypot, log, log1p, sinh, sqrt, tan
from typing import TYPE_CHECKING

from solvers.base import column

if TYPE_CHECKING:
    from torch import Tensor

    from solvers.base import Field


@dataclass(frozen=True)
class Chart:
    """A smooth, strictly monotone change of variable u(sigma), and a scale s(sigma) > 0 of the state.

    ``growth``    s'(sigma) / s(sigma).
    ``positive``  whether it holds only for sigma > 0.
    """

    name: str
    u: Callable[[float], float]
    sigma: Callable[[float], float]
    dsigma_du: Callable[[float], float]
    scale: Callable[[float], float] = lambda sigma: 1.0
    growth: Callable[[float], float] = lambda sigma: 0.0
    positive: bool = False

    def nodes(self, grid: Tensor) -> Tensor:
        """u at every point of ``grid``, shape ``(steps + 1,)``; float64 on the CPU."""
        import torch

        return torch.tensor([self.u(sigma) for sigma in grid.tolist()], dtype=torch.float64)

    def enter(self, x: Tensor, sigma: Tensor) -> Tensor:
        """y for the state ``x``, ``(B, ...)``, at ``sigma``, shape ``()``."""
        return x / self.scale(float(sigma))

    def leave(self, y: Tensor, sigma: Tensor) -> Tensor:
        """x for the state ``y``, ``(B, ...)``, at ``sigma``, shape ``()``."""
        return y * self.scale(float(sigma))

    def pull_back(self, field: Field) -> Field:
        """The same flow as ``field``: dy/du from u, shape ``()`` or ``(B,)``, and y, shape ``(B, ...)``."""

        def field_in_chart(u: Tensor, y: Tensor) -> Tensor:
            sigma = _each(self.sigma, u)
            scale, growth = (column(_each(f, sigma), y) for f in (self.scale, self.growth))
            x = y * scale
            return (field(sigma, x) - growth * x) * (column(_each(self.dsigma_du, u), y) / scale)

        return field_in_chart


def _each(function: Callable[[float], float], values: Tensor) -> Tensor:
    """``function`` of every one of ``values``, any shape; float64 on the CPU."""
    import torch

    return torch.tensor([function(value) for value in values.flatten().tolist()], dtype=torch.float64).reshape(
        values.shape
    )


def angle(sd: float) -> Chart:
    """u = atan(sigma / sd) and s = sqrt(sd^2 + sigma^2): where data has variance sd^2, y has variance 1 everywhere.

    Along the flow of Gaussian data of that variance y does not change at all. dy/du is the part of the slope that a
    network with the preconditioning of Karras et al. (2022), arXiv 2206.00364, predicts, up to its sign.
    """
    return Chart(
        "angle",
        u=lambda sigma: atan(sigma / sd),
        sigma=lambda u: sd * tan(u),
        dsigma_du=lambda u: sd * (1 + tan(u) ** 2),
        scale=lambda sigma: hypot(sigma, sd),
        growth=lambda sigma: sigma / (sigma**2 + sd**2),
    )


# sigma and x themselves.
SIGMA = Chart("sigma", u=lambda sigma: sigma, sigma=lambda u: u, dsigma_du=lambda u: 1.0)
# Linear at 0, so that sigma = 0 is an ordinary point, and logarithmic from about 1 on.
ASINH = Chart("asinh", u=asinh, sigma=sinh, dsigma_du=cosh)
# The standard deviation of images with pixels in [-1, 1] is about 1/2.
ANGLE = angle(0.5)
# The time of the variance-preserving SDE up to a function of t: there dx_bar = eps d(sigma^2) / (2 sigma).
VARIANCE = Chart(
    "variance",
    u=lambda sigma: sigma**2,
    sigma=sqrt,
    dsigma_du=lambda u: 1 / (2 * sqrt(u)),
    positive=True,
)
# dy/du is x - sigma field(sigma, x), the data that a network predicts.
DATA = Chart(
    "data",
    u=lambda sigma: 1 / sigma,
    sigma=lambda u: 1 / u,
    dsigma_du=lambda u: -1 / u**2,
    scale=lambda sigma: sigma,
    growth=lambda sigma: 1 / sigma,
    positive=True,
)


@dataclass(frozen=True)
class Stretch:
    """A variable v(u) for polynomials through slopes that are integrated over u.

    ``positive``  whether it holds only for u > 0.
    """

    name: str
    v: Callable[[float], float]
    du_dv: Callable[[float], float]
    positive: bool = False


NONE = Stretch("none", v=lambda u: u, du_dv=lambda v: 1.0)
# log sigma up to its sign, where u is sigma or 1 / sigma: half the logarithm of the signal-to-noise ratio.
LOG = Stretch("log", v=log, du_dv=exp, positive=True)
# log sigma up to a constant, where u is the angle.
LOG_TAN = Stretch("log tan", v=lambda u: log(tan(u)), du_dv=lambda v: 1 / (2 * cosh(v)), positive=True)


def _vp_time(sigma: float) -> float:
    return (sqrt(_BETA_0**2 + 2 * _BETA_SLOPE * log1p(sigma**2)) - _BETA_0) / _BETA_SLOPE


def vp_sigma(t: float) -> float:
    """The sigma of the time ``t`` of the variance-preserving SDE: what undoes ``VP_TIME.v``, of sigma >= 0."""
    return sqrt(expm1(_BETA_0 * t + _BETA_SLOPE * t**2 / 2))


def _vp_sigma_slope(t: float) -> float:
    sigma = vp_sigma(t)
    return (_BETA_0 + _BETA_SLOPE * t) * (1 + sigma**2) / (2 * sigma)


# The time t in [0, 1] of the variance-preserving SDE, where u is sigma: log(1 + sigma^2) = 0.1 t + 19.9 t^2 / 2.
# Song et al., "Score-Based Generative Modeling through SDEs", arXiv 2011.13456, Appendix B and C.
_BETA_0, _BETA_SLOPE = 0.1, 19.9
VP_TIME = Stretch("vp-time", v=_vp_time, du_dv=_vp_sigma_slope, positive=True)
