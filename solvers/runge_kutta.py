"""Explicit Runge-Kutta methods: a table each.

Notation: ``h = sigma_next - sigma`` is signed, so that every formula serves both directions.

Sources: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I" (1993), called HNW below;
Song, Meng, Ermon, "Denoising Diffusion Implicit Models", arXiv 2010.02502;
Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364;
Lu et al., "DPM-Solver", arXiv 2206.00927.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose
from typing import TYPE_CHECKING

from .base import combine
from .fixed import FixedStepSolver

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field


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
            slopes.append(field(sigma.lerp(sigma_next, sum(row)), combine(x, h, row, slopes)))
        return combine(x, h, self.b, slopes), None


def geometric_midpoint(field: Field, sigma: Tensor, sigma_next: Tensor, x: Tensor, state: None) -> tuple[Tensor, None]:
    """Step by the slope half way in log sigma: DPM-Solver-2, arXiv 2206.00927, Algorithm 1.

    ``sigma`` and ``sigma_next`` are ``()``, and ``x`` is ``(B, ...)``.
    """
    middle = (sigma * sigma_next).sqrt()
    x_middle = x + (middle - sigma) * field(sigma, x)
    return x + (sigma_next - sigma) * field(middle, x_middle), None


def _runge_kutta(
    name: str, *, order: int, a: tuple[tuple[float, ...], ...], b: tuple[float, ...], source: str
) -> FixedStepSolver:
    return FixedStepSolver(name=name, order=order, nfe_per_step=len(b), source=source, step=RungeKuttaStep(a, b))


RUNGE_KUTTA_SOLVERS: tuple[FixedStepSolver, ...] = (
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
    FixedStepSolver(
        name="dpm-solver-2",
        order=2,
        nfe_per_step=2,
        source="DPM-Solver-2, the midpoint in log sigma: arXiv 2206.00927, Algorithm 1",
        step=geometric_midpoint,
        positive=True,
    ),
)
