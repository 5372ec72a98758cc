"""Changes of variables: integrate y(u) what is given as x(sigma), with u a function of sigma and x = s(sigma) y.

    dy/du = dsigma/du (field(sigma, x) - (s'/s) x) / s

A good chart takes known parts of the flow out of what a method has to approximate. The new variable u stretches
small scales of sigma, so that steps of comparable size cover the whole range; the scale s removes growth that every
solution shares.

sigma may be infinite at one end. There x has no limit, but x / sigma has, ``far``, and a state is that. Charts that are
``endless`` reach it, if the field says what it tends to: see ``base.EndlessField``.

A ``Stretch`` is a second variable, v(u): a multistep method that integrates in u may take its past slopes for a
polynomial in v. With u = sigma and v = log sigma, for example, it is DEIS with rho in the logarithm.

Song et al., arXiv 2010.02502 (the chart sigma); Lu et al., "DPM-Solver++", arXiv 2211.01095 (the chart data);
Zhang, Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", arXiv 2204.13902 (stretches).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import asinh, atan, cosh, exp, expm1, hypot, inf, isinf, log, log1p, pi, sinh, sqrt, tan
from typing import TYPE_CHECKING, ClassVar

from .base import EndlessField, column, field_of, field_told

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field


@dataclass(frozen=True)
class Chart(ABC):
    """A smooth, strictly monotone change of variable u(sigma), and a scale s(sigma) > 0 of the state.

    ``kind``      the name of the variable.
    ``positive``  whether it holds only for sigma > 0.
    ``endless``   whether u and y have limits where sigma is infinite: s / sigma tends to 1.
    """

    kind: ClassVar[str]
    positive: ClassVar[bool] = False
    endless: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The name that ``chart_named`` finds it by."""
        return self.kind

    @abstractmethod
    def u(self, sigma: float) -> float:
        """The variable at ``sigma``."""

    @abstractmethod
    def sigma(self, u: float) -> float:
        """The inverse of ``u``."""

    @abstractmethod
    def dsigma_du(self, u: float) -> float:
        """The derivative of ``sigma``."""

    def scale(self, sigma: float) -> float:
        """s(sigma), which is 1 unless a chart says otherwise."""
        return 1.0

    def growth(self, sigma: float) -> float:
        """s'(sigma) / s(sigma)."""
        return 0.0

    def slope_at_infinity(self, origin: Tensor, far: Tensor) -> Tensor:
        """dy/du where sigma is infinite; of an endless chart alone.

        There y is ``far``, the limit of x / sigma, and ``origin`` that of x - sigma field; all are ``(B, ...)``.
        """
        raise ValueError(f"the chart '{self.name}' does not reach sigma = infinity")

    def nodes(self, grid: Tensor) -> Tensor:
        """u at every point of ``grid``, shape ``(steps + 1,)``; float64 on the CPU."""
        import torch

        return torch.tensor([self.u(sigma) for sigma in grid.tolist()], dtype=torch.float64)

    def enter(self, x: Tensor, sigma: Tensor) -> Tensor:
        """y for the state ``x``, ``(B, ...)``, at ``sigma``, shape ``()``."""
        return x if isinf(float(sigma)) else x / self.scale(float(sigma))

    def leave(self, y: Tensor, sigma: Tensor) -> Tensor:
        """x for the state ``y``, ``(B, ...)``, at ``sigma``, shape ``()``."""
        return y if isinf(float(sigma)) else y * self.scale(float(sigma))

    def pull_back(self, field: Field) -> FieldInChart:
        """The same flow as ``field``: dy/du from u, shape ``()`` or ``(B,)``, and y, shape ``(B, ...)``."""
        return FieldInChart(self, field)


@dataclass(frozen=True, eq=False)
class FieldInChart:
    """The flow of ``field`` in the variables of ``chart``."""

    chart: Chart
    field: Field

    def __call__(self, u: Tensor, y: Tensor) -> Tensor:
        """dy/du, ``(B, ...)``, at ``u``, ``()`` or ``(B,)``, and ``y``, ``(B, ...)``."""
        chart = self.chart
        sigma = _each(chart.sigma, u)
        if any(map(isinf, sigma.flatten().tolist())):
            if sigma.ndim or not isinstance(self.field, EndlessField):
                raise ValueError("this field is not defined at sigma = infinity; end the grid at a finite one")
            return chart.slope_at_infinity(self.field.origin(y), y)
        scale, growth = (_factor(f, sigma, y) for f in (chart.scale, chart.growth))
        x = y * scale
        return (self.field(sigma, x) - growth * x) * (_factor(chart.dsigma_du, u, y) / scale)

    def told(self, sigma: float) -> FieldInChart:
        """The flow of the field that is told ``sigma``."""
        return FieldInChart(self.chart, field_told(self.field, sigma))

    def of(self, members: Tensor) -> FieldInChart:
        """The flow of some ``members`` of the batch, by their places in it, int64 ``(A,)``."""
        return FieldInChart(self.chart, field_of(self.field, members))


def _each(function: Callable[[float], float], values: Tensor) -> Tensor:
    """``function`` of every one of ``values``, any shape; float64 on the CPU."""
    import torch

    if values.ndim == 0:
        return torch.tensor(function(float(values)), dtype=torch.float64)
    return torch.tensor([function(value) for value in values.flatten().tolist()], dtype=torch.float64).reshape(
        values.shape
    )


def _factor(function: Callable[[float], float], values: Tensor, y: Tensor) -> Tensor | float:
    """``function`` of ``values``, ``()`` or ``(B,)``, as what multiplies ``y``, ``(B, ...)``; of one it is a number,
    since a tensor for it would cost a small network's step a tenth of its time."""
    return function(float(values)) if values.ndim == 0 else column(_each(function, values), y)


@dataclass(frozen=True)
class SigmaChart(Chart):
    """sigma and x themselves."""

    kind: ClassVar[str] = "sigma"

    def u(self, sigma: float) -> float:
        return sigma

    def sigma(self, u: float) -> float:
        return u

    def dsigma_du(self, u: float) -> float:
        return 1.0


@dataclass(frozen=True)
class AsinhChart(Chart):
    """u = asinh(sigma): linear at 0, so that sigma = 0 is an ordinary point, and logarithmic from about 1 on."""

    kind: ClassVar[str] = "asinh"

    def u(self, sigma: float) -> float:
        return asinh(sigma)

    def sigma(self, u: float) -> float:
        return sinh(u)

    def dsigma_du(self, u: float) -> float:
        return cosh(u)


# The standard deviation of images with pixels in [-1, 1] is about 1/2.
IMAGE_SD = 0.5


@dataclass(frozen=True)
class AngleChart(Chart):
    """u = atan(sigma / sd) and s = sqrt(sd^2 + sigma^2): where data has variance sd^2, y has variance 1 everywhere.

    Along the flow of Gaussian data of that variance y does not change at all. dy/du is the part of the slope that a
    network with the preconditioning of Karras et al. (2022), arXiv 2206.00364, predicts, up to its sign.

    Raises:
        ValueError: if ``sd`` is not a finite number above 0.
    """

    kind: ClassVar[str] = "angle"
    endless: ClassVar[bool] = True
    sd: float = IMAGE_SD

    def __post_init__(self) -> None:
        if not 0 < self.sd < float("inf"):
            raise ValueError(f"sd of the angle chart must be a finite number above 0, but it is {self.sd:g}")

    @property
    def name(self) -> str:
        """The name holds sd where that is not the usual one."""
        return self.kind if self.sd == IMAGE_SD else f"{self.kind}-{self.sd!r}"

    def u(self, sigma: float) -> float:
        return atan(sigma / self.sd)

    def sigma(self, u: float) -> float:
        return self.sd * tan(u) if u < pi / 2 else inf

    def dsigma_du(self, u: float) -> float:
        return self.sd * (1 + tan(u) ** 2)

    def slope_at_infinity(self, origin: Tensor, far: Tensor) -> Tensor:
        return -origin / self.sd

    def scale(self, sigma: float) -> float:
        return hypot(sigma, self.sd)

    def growth(self, sigma: float) -> float:
        return sigma / (sigma**2 + self.sd**2)


@dataclass(frozen=True)
class FlowChart(Chart):
    """u = sigma / (1 + sigma) and s = 1 + sigma: the time and the state of flow matching, where y goes straight.

    Euler's step is the same in it as in sigma and x. Lipman et al., "Flow Matching for Generative Modeling",
    arXiv 2210.02747, with u = 1 where there is noise alone.
    """

    kind: ClassVar[str] = "flow"
    endless: ClassVar[bool] = True

    def u(self, sigma: float) -> float:
        return 1.0 if isinf(sigma) else sigma / (1 + sigma)

    def sigma(self, u: float) -> float:
        return u / (1 - u) if u < 1 else inf

    def dsigma_du(self, u: float) -> float:
        return 1 / (1 - u) ** 2

    def scale(self, sigma: float) -> float:
        return 1 + sigma

    def growth(self, sigma: float) -> float:
        return 1 / (1 + sigma)

    def slope_at_infinity(self, origin: Tensor, far: Tensor) -> Tensor:
        return far - origin


@dataclass(frozen=True)
class VarianceChart(Chart):
    """u = sigma^2, the time of the variance-preserving SDE up to a function of t; dx_bar = eps du / (2 sigma)."""

    kind: ClassVar[str] = "variance"
    positive: ClassVar[bool] = True

    def u(self, sigma: float) -> float:
        return sigma**2

    def sigma(self, u: float) -> float:
        return sqrt(u)

    def dsigma_du(self, u: float) -> float:
        return 1 / (2 * sqrt(u))


@dataclass(frozen=True)
class DataChart(Chart):
    """u = 1 / sigma and s = sigma: dy/du is x - sigma field(sigma, x), the data that a network predicts."""

    kind: ClassVar[str] = "data"
    positive: ClassVar[bool] = True

    def u(self, sigma: float) -> float:
        return 1 / sigma

    def sigma(self, u: float) -> float:
        return 1 / u

    def dsigma_du(self, u: float) -> float:
        return -1 / u**2

    def scale(self, sigma: float) -> float:
        return sigma

    def growth(self, sigma: float) -> float:
        return 1 / sigma


SIGMA, ASINH, ANGLE, FLOW = SigmaChart(), AsinhChart(), AngleChart(), FlowChart()
VARIANCE, DATA = VarianceChart(), DataChart()
CHARTS: dict[str, Chart] = {chart.name: chart for chart in (SIGMA, ASINH, ANGLE, FLOW, VARIANCE, DATA)}


def chart_named(name: str) -> Chart:
    """The chart of this ``name``: a key of ``CHARTS``, or 'angle-SD' for the angle of another standard deviation.

    Raises:
        ValueError: if there is none.
    """
    if name in CHARTS:
        return CHARTS[name]
    kind, _, sd = name.partition("-")
    try:
        if kind == AngleChart.kind:
            return AngleChart(float(sd))
    except ValueError:
        pass
    choices = ", ".join(sorted(CHARTS))
    raise ValueError(f"unknown chart '{name}'; choose one of: {choices}, or angle-SD with SD > 0")


@dataclass(frozen=True)
class Stretch:
    """A variable v(u) for polynomials through slopes that are integrated over u.

    ``positive``  whether it holds only for u > 0.
    """

    name: str
    v: Callable[[float], float]
    du_dv: Callable[[float], float]
    positive: bool = False


def _same(u: float) -> float:
    return u


def _one(v: float) -> float:
    return 1.0


def _log_tan(u: float) -> float:
    return log(tan(u))


def _log_tan_slope(v: float) -> float:
    return 1 / (2 * cosh(v))


# Their functions have names, so that a step which holds one can be pickled.
NONE = Stretch("none", v=_same, du_dv=_one)
# log sigma up to its sign, where u is sigma or 1 / sigma: half the logarithm of the signal-to-noise ratio.
LOG = Stretch("log", v=log, du_dv=exp, positive=True)
# log sigma up to a constant, where u is the angle.
LOG_TAN = Stretch("log tan", v=_log_tan, du_dv=_log_tan_slope, positive=True)


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
