"""scipy's initial value solvers as solvers: ``scipy-NAME``. They run in float64 on the CPU, without gradients.

Virtanen et al., "SciPy 1.0", Nature Methods 17 (2020); scipy.integrate.solve_ivp.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .adaptive import FIRST_STEP, AdaptiveSolver, Watch
from .base import Solution, SolverError, refuse_companion

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from .base import Field


@dataclass(frozen=True, kw_only=True)
class ScipySolver(AdaptiveSolver):
    """A method of ``scipy.integrate.solve_ivp``, in the chart's variable.

    ``implicit``  whether the method solves equations with the field's Jacobian (LSODA: where it finds the problem
                  stiff). The Jacobian is taken by autograd, because scipy's differences are too fine for a float32
                  network; it costs one evaluation and a backward pass for each component of the state, so these
                  methods are for small states, or for a great deal of patience.
    """

    method: str
    implicit: bool = False

    def solve(self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None) -> Solution:
        import torch

        refuse_companion(self, companion)
        self._check_no_graph(x)
        watch = Watch(field, self.name, grid)
        field_in_u = self.chart.pull_back(watch)

        def slope(u: float, y: Tensor) -> Tensor:
            state = y.reshape(x.shape).to(x)
            return field_in_u(torch.tensor(u, dtype=torch.float64), state).cpu().double().flatten()

        def func(u: float, y: np.ndarray) -> np.ndarray:
            slope_at = slope(u, torch.from_numpy(y))
            self._check_no_graph(slope_at)
            return slope_at.numpy()

        def jacobian(u: float, y: np.ndarray) -> np.ndarray:
            with torch.enable_grad():
                matrix: Tensor = torch.func.jacrev(lambda y: slope(u, y))(torch.from_numpy(y))
            return matrix.numpy()

        begin, end = self.chart.nodes(grid[[0, -1]]).tolist()
        options: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol, "first_step": FIRST_STEP * abs(end - begin)}
        if self.implicit:
            options["jac"] = jacobian
        y_begin = self.chart.enter(x.detach().cpu().double(), grid[0]).flatten().numpy()
        y_end, failure = _solve(func, (begin, end), y_begin, self.method, options)
        if failure:
            raise SolverError(watch.stopped(failure.rstrip(".")))
        return Solution(self.chart.leave(torch.from_numpy(y_end).reshape(x.shape), grid[-1]).to(x))

    def _check_no_graph(self, tensor: Tensor) -> None:
        import torch

        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(
                f"{self.name} cannot be differentiated; use one of our own or torchdiffeq's solvers, "
                "or call it under torch.no_grad()"
            )


def _solve(
    func: Callable[[float, np.ndarray], np.ndarray],
    ends: tuple[float, float],
    y: np.ndarray,
    method: str,
    options: dict[str, Any],
) -> tuple[np.ndarray, str]:
    """The state at ``ends[1]`` and an empty string, or else any state and why the end was not reached."""
    from scipy.integrate import solve_ivp

    with warnings.catch_warnings():
        # LSODA puts the reason of a failure into a warning, and what it returns then says nothing.
        warnings.filterwarnings("error", message="lsoda: ", category=UserWarning)
        try:
            solution = solve_ivp(func, ends, y, method=method, t_eval=[ends[1]], **options)  # else every step is kept
        except UserWarning as warning:
            return y, str(warning)
    return (solution.y[:, -1], "") if solution.success else (y, solution.message)


def _solver(method: str, order: int, *, implicit: bool = False) -> ScipySolver:
    source = f"scipy.integrate.solve_ivp, method '{method}'"
    return ScipySolver(name=f"scipy-{method}", order=order, method=method, implicit=implicit, source=source)


SCIPY_SOLVERS: tuple[ScipySolver, ...] = (
    _solver("RK45", 5),
    _solver("DOP853", 8),
    _solver("LSODA", 12, implicit=True),  # of variable order, at most 12
    _solver("Radau", 5, implicit=True),
)
