"""The walk: how every method with fixed steps goes along its grid, point by point."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .base import EndlessField, FiniteStates, Solution, Solver, check_grid, refuse_companion
from .charts import FLOW

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field
    from .charts import Chart

    # One step of the walk: (field, u, u_next, x, state) -> (x at u_next, state for the next step).
    # ``state`` is None on the first step; what it holds is the method's own affair.
    Step = Callable[[Field, Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]


def walk(step: Step, field: Field, x: Tensor, nodes: Tensor, state: Any = None) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """Go from ``x``, ``(B, ...)``, at ``nodes[0]`` along all ``nodes``, ``(steps + 1,)``, one ``step`` after another.

    After each step it gives ``(u, x, state)``: the node, shape ``()``, where the walk is now, the state of the
    solution there, ``(B, ...)``, and what the method remembers. Nothing else is kept.
    """
    for u, u_next in pairwise(nodes.unbind()):
        x, state = step(field, u, u_next, x, state)
        yield u_next, x, state


@dataclass(frozen=True, kw_only=True)
class WalkingSolver(Solver):
    """A method that walks the grid by steps of one kind; what it remembers travels along as the state of the walk.

    ``chart``       the variables in which it walks; None for sigma and x themselves, or for time and state of flow
                    matching on a grid that ends or begins at infinity.
    ``only_sigma``  whether it takes its variable for sigma, so that it makes sense in no chart.
    """

    chart: Chart | None = None
    only_sigma: bool = False

    @property
    def endless(self) -> bool:
        # What is positive takes a logarithm, which is infinite there.
        return not self.positive and not self.only_sigma and (self.chart or FLOW).endless

    def solve(self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None) -> Solution:
        solution = Solution(x)
        for solution in self._points(field, x, grid, companion):  # noqa: B007
            pass
        return _left(solution, self.chart_on(grid), grid[-1])

    def trajectory(
        self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None
    ) -> Iterator[tuple[float, Solution]]:
        """Each point of the ``grid``, ``(steps + 1,)``, and the solution there, from ``x``, ``(B, ...)``, on.

        The first is where the walk begins. Arguments and errors are those of ``solve``.
        """
        points = self._points(field, x, grid, companion)
        yield float(grid[0]), Solution(x, companion)
        for sigma, solution in zip(grid[1:], points, strict=True):
            yield float(sigma), _left(solution, self.chart_on(grid), sigma)

    def _points(self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None) -> Iterator[Solution]:
        """The solution after each step along the ``grid``, in the variables of the chart."""
        check_grid(grid, endless=self.endless and isinstance(field, EndlessField))
        self._check_above_zero(grid)
        nodes, chart = grid, self.chart_on(grid)
        if chart is not None:
            field, x, nodes = chart.pull_back(field), chart.enter(x, grid[0]), chart.nodes(grid)
            companion = None if companion is None else chart.enter(companion, grid[0])
        step, state = self._begin(grid, companion)
        return self._walk(zip(grid[1:], walk(step, field, x, nodes, state), strict=True))

    def _walk(self, points: Iterable[tuple[Tensor, tuple[Tensor, Tensor, Any]]]) -> Iterator[Solution]:
        states = FiniteStates(self.name)
        for sigma, (_, x, state) in points:
            states.see(x, sigma)
            yield Solution(x, self._companion(state), notes=self._notes(state))
        states.end()

    @abstractmethod
    def _begin(self, grid: Tensor, companion: Tensor | None) -> tuple[Step, Any]:
        """The step that leads along ``grid``, and the state with which the walk begins.

        ``companion``  of where it begins, in the variables of the chart.
        """

    def _companion(self, state: Any) -> Tensor | None:
        """The companion in the ``state`` of the walk, in the variables of the chart."""
        return None

    def _notes(self, state: Any) -> tuple[str, ...]:
        """What the ``state`` of the walk says of the steps so far, as sentences."""
        return ()

    def chart_on(self, grid: Tensor) -> Chart | None:
        """The variables in which it walks along the ``grid``."""
        return FLOW if self.chart is None and bool(grid[[0, -1]].isinf().any()) else self.chart

    def _check_above_zero(self, grid: Tensor) -> None:
        if self.positive and not float(grid[[0, -1]].min()) > 0:
            raise ValueError(
                f"{self.name} needs a grid above sigma = 0, but this one goes from {float(grid[0]):g} to "
                f"{float(grid[-1]):g}; replace the 0 by a small sigma, or take another solver"
            )


def _left(solution: Solution, chart: Chart | None, sigma: Tensor) -> Solution:
    """The ``solution`` at ``sigma``, ``()``, that was found in a ``chart``, in x itself."""
    return solution if chart is None else solution.map(lambda y: chart.leave(y, sigma))


@dataclass(frozen=True, kw_only=True)
class FixedStepSolver(WalkingSolver):
    """A method of one state.

    ``first_steps``  the evaluations of the first steps, if those are others than ``nfe_per_step``.
    """

    step: Step
    nfe_per_step: int
    first_steps: tuple[int, ...] = ()

    def _begin(self, grid: Tensor, companion: Tensor | None) -> tuple[Step, Any]:
        refuse_companion(self, companion)
        return self.step, None

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
