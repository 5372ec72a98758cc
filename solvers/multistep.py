"""Linear multistep methods: one family, of which a member is named by what it integrates and interpolates in.

In a chart (``solvers.charts``) every solution satisfies y(u_next) = y(u) + integral of dy/du over u. A member replaces
the slope by the polynomial in a second variable v(u) through the last k slopes and integrates that exactly over u:

    chart   u          v                     is known as
    ------  ---------  --------------------  ---------------------------------------------------
    none    sigma      sigma                 Adams-Bashforth
    none    sigma      log sigma             DEIS with the logarithm of rho; DPM-Solver, multistep
    none    sigma      t of the VP SDE       DEIS-tAB
    data    1 / sigma  log sigma             DPM-Solver++, multistep
    angle   atan(...)  log sigma             exponential Adams-Bashforth in the angle chart (REAB)

A predictor-corrector (PEC) takes the slope at the point that was predicted, puts the polynomial through that too, and
goes on from the point corrected so: one evaluation a step, one order more. In the data and log sigma variables that is
UniPC. All formulas hold on any strictly monotone grid, in either direction.

Sources: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I" (1993), called HNW below;
Zhang, Chen, "Fast Sampling of Diffusion Models with Exponential Integrator" (DEIS), arXiv 2204.13902;
Lu et al., "DPM-Solver++", arXiv 2211.01095; Zhao et al., "UniPC", arXiv 2302.04867.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from .base import combine
from .charts import ANGLE, DATA, LOG, LOG_TAN, NONE, VP_TIME, Chart, Stretch
from .fixed import FixedStepSolver

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field

# (stretch, begin, end) -> the integral of v(u) - v(begin) over u, or something that is as good to second order.
FirstMoment = Callable[[Stretch, float, float], float]


def moment_bh1(stretch: Stretch, begin: float, end: float) -> float:
    """The moment as if v(u) had the slope of its end everywhere: B_1(h) = h of UniPC, arXiv 2302.04867, Section 3."""
    rise = stretch.v(end) - stretch.v(begin)
    return rise * rise * stretch.du_dv(stretch.v(end)) / 2


def moment_bh2(stretch: Stretch, begin: float, end: float) -> float:
    """The moment as if v(u) were linear: B_2(h) = e^h - 1 of UniPC, and the last term of DPM-Solver++(2M)."""
    return (stretch.v(end) - stretch.v(begin)) * (end - begin) / 2


def integration_weights(
    nodes: Sequence[float], begin: float, end: float, stretch: Stretch = NONE, moment: FirstMoment | None = None
) -> Sequence[float]:
    """Weights w_j with sum_j w_j f(nodes_j) = the integral over u from ``begin`` to ``end`` of the polynomial in v
    through the values f(nodes_j).

    ``moment``  of the line through two nodes, one of which is ``begin``; None for the exact one.
    """
    if moment and len(nodes) == 2:
        v_old, v_new = stretch.v(nodes[0]), stretch.v(nodes[1])
        weight = moment(stretch, begin, end) / (v_new - v_old)
        return [end - begin - weight, weight] if nodes[0] == begin else [-weight, end - begin + weight]
    return _exact_weights(tuple(nodes), begin, end, stretch)


@lru_cache(maxsize=4096)  # batch after batch goes along the same grid
def _exact_weights(nodes: tuple[float, ...], begin: float, end: float, stretch: Stretch) -> tuple[float, ...]:
    """The exact weights, by Gauss's rule in v: exact but for 2e-3 in a step over the whole range of log tan.

    The last one follows from the others, which makes constants exact whatever the rule.
    """
    known = [stretch.v(node) for node in nodes]
    v_begin, v_end = stretch.v(begin), stretch.v(end)
    weights = [0.0] * (len(nodes) - 1)
    for point, share in _gauss_rule() if weights else ():
        v = v_begin + (v_end - v_begin) * point
        slope = (v_end - v_begin) * share * stretch.du_dv(v)
        for j in range(len(weights)):
            weights[j] += slope * _lagrange(known, j, v)
    return (*weights, end - begin - sum(weights))


@cache
def _gauss_rule() -> tuple[tuple[float, float], ...]:
    """Points and weights on [0, 1], exact for polynomials of degree 31."""
    import numpy as np

    points, weights = np.polynomial.legendre.leggauss(16)
    return tuple(zip(((points + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))


def _lagrange(nodes: Sequence[float], j: int, point: float) -> float:
    """The j-th Lagrange basis polynomial on ``nodes``, at ``point``."""
    value = 1.0
    for i, node in enumerate(nodes):
        if i != j:
            value *= (point - node) / (nodes[j] - node)
    return value


@dataclass(frozen=True)
class AdamsBashforthStep:
    """The explicit member with ``slopes`` slopes, at most 4. HNW, III.5 (variable step size).

    The start costs no extra evaluation. While fewer slopes are known, each step integrates the slopes at hand not from
    its own beginning but from the first point of the grid again, so that the low order of the first values is not
    carried on: the second point is then a two-stage Runge-Kutta value, and so forth. The first value itself comes from
    an Euler step; its slope, off by O(h^2), is good enough to interpolate at order 3 but not at order 4, where it is
    used once and dropped.
    """

    slopes: int
    stretch: Stretch = NONE
    moment: FirstMoment | None = None

    def __call__(
        self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, state: _History | None
    ) -> tuple[Tensor, _History]:
        here = (float(u), x)
        past = state or _History(start=here)
        nodes = (*past.nodes, float(u))
        slopes = (*past.slopes, field(u, x))
        starting = len(nodes) < self.slopes
        u_base, x_base = past.start if starting else here
        weights = integration_weights(nodes, u_base, float(u_next), self.stretch, self.moment)
        x_next = combine(x_base, 1.0, weights, slopes)
        if not starting:
            return x_next, _History(here, past.taken + 1, nodes[1:], slopes[1:])
        if past.taken == 1 and self.slopes > 3:
            nodes, slopes = nodes[:1], slopes[:1]
        return x_next, _History(past.start, past.taken + 1, nodes, slopes)


@dataclass(frozen=True)
class _History:
    """``start``: where the start-up began, ``(u, x)``; ``taken``: the number of steps behind; then the slopes to go on
    with, oldest first, and the ``nodes`` u they were taken at."""

    start: tuple[float, Tensor]
    taken: int = 0
    nodes: tuple[float, ...] = ()
    slopes: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class PredictorCorrectorStep:
    """Predict with ``predictor`` slopes, evaluate, correct with ``corrector`` of them, the new one included.

    The walk hands on predictions; the slope of a prediction serves for its own correction, which comes with the next
    step, and as history thereafter. So each step costs one evaluation, and the end of the walk is a prediction.
    """

    predictor: int
    corrector: int
    stretch: Stretch = NONE
    moment: FirstMoment | None = None

    def __call__(
        self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, state: _Corrected | None
    ) -> tuple[Tensor, _Corrected]:
        past = state or _Corrected()
        nodes, slopes = (*past.nodes, float(u)), (*past.slopes, field(u, x))
        if past.base is not None:
            u_base, x_base = past.base
            x = self._extend(x_base, u_base, float(u), nodes[-self.corrector :], slopes[-self.corrector :])
        x_next = self._extend(x, float(u), float(u_next), nodes[-self.predictor :], slopes[-self.predictor :])
        kept = max(self.predictor, self.corrector) - 1
        return x_next, _Corrected((float(u), x), nodes[-kept:], slopes[-kept:])

    def _extend(self, x: Tensor, begin: float, end: float, nodes: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
        return combine(x, 1.0, integration_weights(nodes, begin, end, self.stretch, self.moment), slopes)


@dataclass(frozen=True)
class _Corrected:
    """``base``: the last corrected point, ``(u, x)``; then the slopes behind, oldest first, and their ``nodes`` u."""

    base: tuple[float, Tensor] | None = None
    nodes: tuple[float, ...] = ()
    slopes: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class ConstantAdamsBashforthStep:
    """Adams-Bashforth with the coefficients of equal steps, times the step there is; as many slopes as are known.

    Its order is 1 unless neighbouring steps differ little, but the error that it leaves has a small constant, and
    coefficients that cannot grow keep it stable where the right ones extrapolate far.
    """

    def __call__(
        self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        slopes = (*(state or ()), field(u, x))
        return combine(x, u_next - u, _EQUAL_STEPS[len(slopes)], slopes), slopes[-3:]


# By the number of slopes, oldest first. HNW, III.1, Eq. (1.5).
_EQUAL_STEPS = {
    1: (1.0,),
    2: (-1 / 2, 3 / 2),
    3: (5 / 12, -16 / 12, 23 / 12),
    4: (-9 / 24, 37 / 24, -59 / 24, 55 / 24),
}


def _multistep(
    name: str,
    *,
    order: int,
    source: str,
    step: AdamsBashforthStep | PredictorCorrectorStep,
    chart: Chart | None = None,
) -> FixedStepSolver:
    positive = step.stretch.positive or (chart is not None and chart.positive)
    return FixedStepSolver(
        name=name, order=order, nfe_per_step=1, source=source, step=step, chart=chart, positive=positive
    )


_AB = "Adams-Bashforth with {} slopes, variable steps: HNW, III.5"
_DEIS = "DEIS, {} slopes, polynomial in {}: arXiv 2204.13902, Section 3.3"
_DPM = "DPM-Solver++({}M), multistep in log sigma for the data prediction: arXiv 2211.01095, Section 4.2"
_REAB = "exponential Adams-Bashforth with {} slopes in the angle chart, polynomial in log sigma"
_ABAM = "predictor-corrector with {} slopes in the angle chart: HNW, III.1"
_UNIPC = "UniPC-{}, {}, {} prediction: arXiv 2302.04867, Algorithms 1 and 2"
_MOMENTS: dict[str, FirstMoment] = {"bh1": moment_bh1, "bh2": moment_bh2}


def _unipc(order: int, moment: str, form: str) -> FixedStepSolver:
    """It corrects with one slope more than it predicts with; what it gains stays below order 4 for its start."""
    return _multistep(
        f"unipc{order}-{moment}-{form}",
        order=3,
        source=_UNIPC.format(order, moment, form),
        step=PredictorCorrectorStep(order, order + 1, LOG, _MOMENTS[moment]),
        chart=DATA if form == "data" else None,
    )


ADAMS_BASHFORTH_SOLVERS: tuple[FixedStepSolver, ...] = tuple(
    _multistep(f"ab{k}", order=k, source=_AB.format(k), step=AdamsBashforthStep(k)) for k in (2, 3, 4)
)
MULTISTEP_SOLVERS: tuple[FixedStepSolver, ...] = (
    *ADAMS_BASHFORTH_SOLVERS,
    *(
        _multistep(f"deis-tab{k}", order=k, source=_DEIS.format(k, "t"), step=AdamsBashforthStep(k, VP_TIME))
        for k in (2, 3)
    ),
    *(
        _multistep(f"deis{k}", order=k, source=_DEIS.format(k, "log sigma"), step=AdamsBashforthStep(k, LOG))
        for k in (2, 3)
    ),
    _multistep("dpmpp2m", order=2, source=_DPM.format(2), step=AdamsBashforthStep(2, LOG, moment_bh2), chart=DATA),
    _multistep("dpmpp3m", order=3, source=_DPM.format(3), step=AdamsBashforthStep(3, LOG), chart=DATA),
    *(_unipc(order, moment, form) for order in (2, 3) for moment in _MOMENTS for form in ("eps", "data")),
    *(
        _multistep(f"reab{k}", order=k, source=_REAB.format(k), step=AdamsBashforthStep(k, LOG_TAN), chart=ANGLE)
        for k in (2, 3)
    ),
    *(
        _multistep(f"abam{k}", order=k, source=_ABAM.format(k), step=PredictorCorrectorStep(k, k), chart=ANGLE)
        for k in (2, 3)
    ),
    FixedStepSolver(
        name="ipndm4",
        order=1,
        nfe_per_step=1,
        source="iPNDM, up to 4 slopes with the coefficients of equal steps: arXiv 2204.13902",
        step=ConstantAdamsBashforthStep(),
    ),
)
