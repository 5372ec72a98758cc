"""Algebraically reversible methods: they carry two states, and walk back exactly the way they came.

From the pair at the end of a walk the same formulas lead back to the pair at its beginning, to rounding and whatever
the field, the grid and its steps are. One state alone is as good as a method of its order is.

Kidger, Foster, Li, Lyons, "Efficient and Accurate Gradients for Neural SDEs", arXiv 2105.13493, Algorithms 1 and 2
(reversible Heun, which without noise is this).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from solvers.base import Solver, check_finite, check_grid
from solvers.charts import ANGLE, Chart

if TYPE_CHECKING:
    from torch import Tensor

    from solvers.base import Field


@dataclass(frozen=True, kw_only=True)
class ReversibleHeun(Solver):
    """One evaluation a step and one to begin with; in ``chart``, because it is stable for slow flows only.

    As a solver it begins with two equal states and forgets the second one at the end. ``both`` takes and returns two.
    """

    chart: Chart

    def __call__(self, field: Field, x: Tensor, grid: Tensor) -> Tensor:
        return self.both(field, x, x, grid)[0]

    def both(self, field: Field, x: Tensor, x_hat: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Integrate the pair ``x``, ``x_hat``, each ``(B, ...)``, from ``grid[0]`` to ``grid[-1]``.

        ``x_hat`` is where the slopes are taken. With the grid turned round, the pair at the end leads to that at the
        beginning. Errors are those of a call.
        """
        check_grid(grid)
        slope_at = self.chart.pull_back(field)
        nodes = self.chart.nodes(grid).unbind()
        y, y_hat = self.chart.enter(x, grid[0]), self.chart.enter(x_hat, grid[0])
        slope = slope_at(nodes[0], y_hat)
        for (u, u_next), sigma_next in zip(pairwise(nodes), grid[1:], strict=True):
            h = u_next - u
            y_hat = 2 * y - y_hat + h * slope
            slope_next = slope_at(u_next, y_hat)
            y = y + h / 2 * (slope + slope_next)
            slope = slope_next
            check_finite(y, self.name, "state", sigma_next)
        return self.chart.leave(y, grid[-1]), self.chart.leave(y_hat, grid[-1])

    @property
    def stacked(self) -> Callable[[Field, Tensor, Tensor], Tensor]:
        """``both`` as a solver of one state: the pair as the two halves of a batch, ``(2 B, ...)``."""
        import torch

        def solve(field: Field, pair: Tensor, grid: Tensor) -> Tensor:
            x, x_hat = pair.chunk(2)
            return torch.cat(self.both(field, x, x_hat, grid))

        return solve

    def nfe(self, steps: int) -> int:
        return steps + 1

    @property
    def settings(self) -> dict[str, str | float]:
        return {"name": self.name}


REVERSIBLE_SOLVERS: tuple[ReversibleHeun, ...] = (
    ReversibleHeun(
        name="reversible-heun",
        order=2,
        source="reversible Heun in the angle chart: arXiv 2105.13493, Algorithms 1 and 2",
        chart=ANGLE,
    ),
)
