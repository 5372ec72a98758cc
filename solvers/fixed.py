"""The driver of our own fixed-step solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from solvers.base import Solver, check_finite, check_grid

if TYPE_CHECKING:
    from torch import Tensor

    from solvers.base import Field
    from solvers.charts import Chart

    # One step of the walk: (field, u, u_next, x, state) -> (x at u_next, state for the next step).
    # ``state`` is None on the first step; what it holds is the method's own affair.
    Step = Callable[[Field, Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True, kw_only=True)
class FixedStepSolver(Solver):
    """Walks the grid point by point; what a method remembers travels along as the state of the walk.

    ``first_steps``  the evaluations of the first steps, if those are others than ``nfe_per_step``.
    ``chart``        the variables in which it walks; None for sigma and x themselves.
    ``only_sigma``   whether the step takes its variable for sigma, so that it makes sense in no chart.
    """

    step: Step
    nfe_per_step: int
    first_steps: tuple[int, ...] = ()
    chart: Chart | None = None
    only_sigma: bool = False

    def __call__(self, field: Field, x: Tensor, grid: Tensor) -> Tensor:
        check_grid(grid)
        if self.positive and not float(grid[[0, -1]].min()) > 0:
            raise ValueError(
                f"{self.name} needs a grid above sigma = 0, but this one goes from {float(grid[0]):g} to "
                f"{float(grid[-1]):g}; replace the 0 by a small sigma, or take another solver"
            )
        if self.chart is None:
            return self._walk(field, x, grid, grid)
        y = self._walk(self.chart.pull_back(field), self.chart.enter(x, grid[0]), self.chart.nodes(grid), grid)
        return self.chart.leave(y, grid[-1])

    def _walk(self, field: Field, x: Tensor, nodes: Tensor, grid: Tensor) -> Tensor:
        """Along ``nodes``, which stand for the points of ``grid``; both have shape ``(steps + 1,)``."""
        state = None
        for (u, u_next), sigma_next in zip(pairwise(nodes.unbind()), grid[1:], strict=True):
            x, state = self.step(field, u, u_next, x, state)
            check_finite(x, self.name, "state", sigma_next)
        return x

    def nfe(self, steps: int) -> int:
        return sum(self.first_steps[:steps]) + max(steps - len(self.first_steps), 0) * self.nfe_per_step


def in_chart(solver: FixedStepSolver, chart: Chart) -> FixedStepSolver:
    """The same method, walking in the variables of ``chart`` instead of sigma and x; its name says so.

    Raises:
        ValueError: if the solver has a chart of its own, or a step that is made for sigma.
    """
    if solver.only_sigma:
        raise ValueError(f"the step of {solver.name} is made for sigma itself and has no chart; take another solver")
    if solver.chart is not None:
        raise ValueError(f"{solver.name} walks in the chart '{solver.chart.name}' already; take one that has none")
    return replace(
        solver,
        name=f"{chart.name}-{solver.name}",
        source=f"{solver.source}; in the {chart.name} chart",
        chart=chart,
        positive=solver.positive or chart.positive,
    )
