"""torchdiffeq's explicit methods as solvers: ``torchdiffeq-NAME``.

Left out are ``explicit_adams`` and ``implicit_adams`` (and the alias ``fixed_adams``), whose coefficients hold
for equal steps only and lose their order on any other grid, and ``scipy_solver``, which ignores scipy's failures.

Chen, torchdiffeq, https://github.com/rtqichen/torchdiffeq.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .adaptive import FIRST_STEP, AdaptiveSolver, Watch
from .base import Solution, Solver, SolverError, check_finite, refuse_companion

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .base import Field

# The kinds of devices that have no float64.
WITHOUT_FLOAT64 = {"mps"}

_SOURCE = "torchdiffeq, method '{}'"


@dataclass(frozen=True, kw_only=True)
class TorchdiffeqFixedSolver(Solver):
    """A fixed-step method of torchdiffeq, walking the given grid."""

    method: str
    nfe_per_step: int

    def solve(self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None) -> Solution:
        refuse_companion(self, companion)
        watch = Watch(field, self.name, grid)
        # Asking for the two ends only, and giving the grid as an option, keeps two states instead of steps + 1.
        options = {"grid_constructor": lambda func, y0, t: grid.to(t)}
        end = _odeint(watch, x, grid[[0, -1]], method=self.method, options=options)
        check_finite(end, self.name, "state", grid[-1])
        return Solution(end)

    def nfe(self, steps: int) -> int:
        return steps * self.nfe_per_step


@dataclass(frozen=True, kw_only=True)
class TorchdiffeqAdaptiveSolver(AdaptiveSolver):
    """An adaptive Runge-Kutta method of torchdiffeq, in the chart's variable, never outside the interval.

    ``estimate``   how large its estimate of the error is beside the error of an Euler step, for a pair whose
                   companion was made to have a small error: the tolerances are multiplied by it.
    """

    method: str
    estimate: float = 1.0

    def solve(self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None) -> Solution:
        refuse_companion(self, companion)
        watch = Watch(field, self.name, grid)
        ends = self.chart.nodes(grid[[0, -1]])
        # Without step_t it steps over the end and interpolates back; without first_step it probes beyond it.
        options = {
            "dtype": _clock(x),
            "step_t": ends[-1:].to(_clock(x)).to(x.device),
            "first_step": FIRST_STEP * float(abs(ends[1] - ends[0])),
        }
        try:
            y = _odeint(
                self.chart.pull_back(watch),
                self.chart.enter(x, grid[0]),
                ends,
                method=self.method,
                options=options,
                rtol=self.rtol * self.estimate,
                atol=self.atol * self.estimate,
            )
        except AssertionError as error:  # its way to say that the step became too small
            if watch.inside:
                raise
            raise SolverError(watch.stopped(str(error))) from error
        return Solution(self.chart.leave(y, grid[-1]))


def _odeint(
    field: Field,
    x: Tensor,
    ends: Tensor,
    *,
    method: str,
    options: dict[str, Any],
    rtol: float = 0.0,
    atol: float = 0.0,
) -> Tensor:
    """The state at ``ends[1]``. torchdiffeq casts its clock to the state's dtype, so it is handed a float64 state
    wherever the device has float64; the field still sees, and the caller still gets, the dtype of ``x``."""
    from torchdiffeq import odeint

    clock = _clock(x)

    def func(sigma: Tensor, state: Tensor) -> Tensor:
        return field(sigma.cpu().double(), state.to(x.dtype)).to(clock)

    ends = ends.to(clock).to(x.device)
    states: Tensor = odeint(func, x.to(clock), ends, method=method, options=options, rtol=rtol, atol=atol)
    return states[-1].to(x.dtype)


def _clock(x: Tensor) -> torch.dtype:
    """The dtype in which torchdiffeq counts the time for the state ``x``, ``(B, ...)``."""
    import torch

    return x.dtype if x.device.type in WITHOUT_FLOAT64 else torch.float64


def _fixed(method: str, order: int, nfe_per_step: int) -> TorchdiffeqFixedSolver:
    return TorchdiffeqFixedSolver(
        name=f"torchdiffeq-{method}",
        order=order,
        nfe_per_step=nfe_per_step,
        method=method,
        source=_SOURCE.format(method),
    )


def _adaptive(method: str, order: int, estimate: float = 1.0) -> TorchdiffeqAdaptiveSolver:
    return TorchdiffeqAdaptiveSolver(
        name=f"torchdiffeq-{method}", order=order, method=method, estimate=estimate, source=_SOURCE.format(method)
    )


TORCHDIFFEQ_SOLVERS: tuple[Solver, ...] = (
    _fixed("euler", 1, 1),
    _fixed("midpoint", 2, 2),
    _fixed("heun2", 2, 2),
    _fixed("heun3", 3, 3),
    _fixed("rk4", 4, 4),
    _adaptive("dopri5", 5),
    _adaptive("dopri8", 8),
    _adaptive("bosh3", 3),
    _adaptive("fehlberg2", 2, estimate=1 / 256),  # HNW, II.4: RKF1(2) has (k_3 - k_1) h / 512, Euler's pair h / 2
    _adaptive("adaptive_heun", 2),
)
