"""Our own fixed-step solvers: one driver, and steps that are either Runge-Kutta tables or Adams-Bashforth.

Notation: ``h = sigma_next - sigma`` is signed, so that every formula serves both directions.

Sources: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I" (1993), called HNW below;
Song, Meng, Ermon, "Denoising Diffusion Implicit Models", arXiv 2010.02502;
Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isclose, sqrt
from typing import TYPE_CHECKING, Any

from solvers.base import Solver, check_finite, check_grid

if TYPE_CHECKING:
    from torch import Tensor

    from solvers.base import Field

    # One step of the walk: (field, sigma, sigma_next, x, state) -> (x at sigma_next, state for the next step).
    # ``state`` is None on the first step; what it holds is the method's own affair.
    Step = Callable[[Field, Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True, kw_only=True)
class FixedStepSolver(Solver):
    """Walks the grid point by point; what a method remembers travels along as the state of the walk."""

    step: Step
    nfe_per_step: int

    def __call__(self, field: Field, x: Tensor, grid: Tensor) -> Tensor:
        check_grid(grid)
        state = None
        for sigma, sigma_next in pairwise(grid.unbind()):
            x, state = self.step(field, sigma, sigma_next, x, state)
            check_finite(x, self.name, "state", sigma_next)
        return x

    def nfe(self, steps: int) -> int:
        return steps * self.nfe_per_step

    @property
    def settings(self) -> dict[str, str | float]:
        return {"name": self.name}


@dataclass(frozen=True)
class RungeKuttaStep:
    """Explicit Runge-Kutta step of the Butcher tableau (a, b); the nodes c are the row sums of a. HNW, II.1.

    ``a[i]`` holds the weights of the slopes before stage i, so ``a[0]`` is empty.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    def __post_init__(self) -> None:
        if [len(row) for row in self.a] != list(range(len(self.b))):
            raise ValueError(f"row i of a must hold i weights, one row for each of b's {len(self.b)}; got {self.a}")
        if not isclose(sum(self.b), 1.0, rel_tol=1e-14):
            raise ValueError(f"the weights b must sum to 1, but {self.b} sum to {sum(self.b):.17g}")

    def __call__(self, field: Field, sigma: Tensor, sigma_next: Tensor, x: Tensor, state: None) -> tuple[Tensor, None]:
        h = sigma_next - sigma
        slopes: list[Tensor] = []
        for row in self.a:
            slopes.append(field(sigma.lerp(sigma_next, sum(row)), _plus(x, h, row, slopes)))
        return _plus(x, h, self.b, slopes), None


def _plus(x: Tensor, h: Tensor | float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h sum_j weights_j slopes_j; ``x`` and every slope have one shape ``(B, ...)``."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight != 0.0:
            x = x + (h * weight) * slope
    return x


@dataclass(frozen=True)
class AdamsBashforthStep:
    """Adams-Bashforth step of order k <= 4, exact on non-uniform grids: x_next = x + integral of the polynomial
    through the last k slopes. HNW, III.5 (variable step size).

    The start costs no extra evaluation. While fewer than k slopes are known, each step integrates the slopes at
    hand not from its own beginning but from the first point of the grid again, so that the low order of the first
    values is not carried on: the second point is then a two-stage Runge-Kutta value, and so forth. The first
    value itself comes from an Euler step; its slope, off by O(h^2), is good enough to interpolate at order 3
    but not at order 4, where it is used once and dropped.
    """

    order: int

    def __call__(
        self, field: Field, sigma: Tensor, sigma_next: Tensor, x: Tensor, state: _History | None
    ) -> tuple[Tensor, _History]:
        here = (float(sigma), x)
        past = state or _History(start=here)
        nodes = (*past.nodes, float(sigma))
        slopes = (*past.slopes, field(sigma, x))
        starting = len(nodes) < self.order
        sigma_base, x_base = past.start if starting else here
        x_next = _plus(x_base, 1.0, _interpolation_weights(nodes, sigma_base, float(sigma_next)), slopes)
        if not starting:
            return x_next, _History(here, past.taken + 1, nodes[1:], slopes[1:])
        if past.taken == 1 and self.order > 3:
            nodes, slopes = nodes[:1], slopes[:1]
        return x_next, _History(past.start, past.taken + 1, nodes, slopes)


@dataclass(frozen=True)
class _History:
    """``start``: where the start-up began, ``(sigma, x)``; ``taken``: the number of steps behind; then the slopes to
    go on with, oldest first, and the sigmas ``nodes`` they were taken at."""

    start: tuple[float, Tensor]
    taken: int = 0
    nodes: tuple[float, ...] = ()
    slopes: tuple[Tensor, ...] = ()


def _interpolation_weights(nodes: Sequence[float], begin: float, end: float) -> list[float]:
    """Weights w_j with sum_j w_j f(nodes_j) = integral from begin to end of f's Lagrange interpolant.

    By the two-point Gauss rule, which is exact for the cubics that four nodes give.
    """
    middle, half = (begin + end) / 2, (end - begin) / 2
    points = (middle - half / sqrt(3), middle + half / sqrt(3))
    return [half * sum(_lagrange(nodes, j, point) for point in points) for j in range(len(nodes))]


def _lagrange(nodes: Sequence[float], j: int, point: float) -> float:
    """The j-th Lagrange basis polynomial on ``nodes``, at ``point``."""
    value = 1.0
    for i, node in enumerate(nodes):
        if i != j:
            value *= (point - node) / (nodes[j] - node)
    return value


def _runge_kutta(
    name: str, *, order: int, a: tuple[tuple[float, ...], ...], b: tuple[float, ...], source: str
) -> FixedStepSolver:
    return FixedStepSolver(name=name, order=order, nfe_per_step=len(b), source=source, step=RungeKuttaStep(a, b))


def _adams_bashforth(order: int) -> FixedStepSolver:
    source = f"Adams-Bashforth with {order} slopes, variable steps: HNW, III.5"
    return FixedStepSolver(
        name=f"ab{order}", order=order, nfe_per_step=1, source=source, step=AdamsBashforthStep(order)
    )


FIXED_STEP_SOLVERS: tuple[FixedStepSolver, ...] = (
    _runge_kutta(
        "euler",
        order=1,
        a=((),),
        b=(1.0,),
        source="Euler; on the ODE of DDIM it is the DDIM step with eta = 0: arXiv 2010.02502, Eq. (13)",
    ),
    _runge_kutta(
        "heun",
        order=2,
        a=((), (1.0,)),
        b=(1 / 2, 1 / 2),
        source="explicit trapezoid: HNW, II.1; arXiv 2206.00364, Algorithm 1",
    ),
    _runge_kutta("midpoint", order=2, a=((), (1 / 2,)), b=(0.0, 1.0), source="explicit midpoint (Runge): HNW, II.1"),
    _runge_kutta(
        "rk4",
        order=4,
        a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        source="the classical Runge-Kutta method: HNW, II.1, Table 1.2",
    ),
    _adams_bashforth(2),
    _adams_bashforth(3),
    _adams_bashforth(4),
)
