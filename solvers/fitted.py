"""Methods with coefficients fitted to one field: a few steps on one grid, made better by known solutions.

Each step of a method with fixed steps is corrected by a linear combination of the slopes it knows and of the state it
begins with:

    y_{n+1} = step(y_n) + h sum_j a_{n,j} f_{n-j} + b_n y_n

in the chart of the method. The numbers a and b of each step minimize the mean squared distance to known solutions, by
least squares with a ridge, which holds them near 0, that is near the method itself. Every step is fitted on the states
that the fitted steps before it lead to, so that it repairs what those left over. A fit is to one field and one grid,
and says nothing of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from solvers.base import Solution, Solver, check_grid, combine
from solvers.fixed import FixedStepSolver

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from solvers.base import Field
    from solvers.fixed import Step

# For each step of a walk the weights of the slopes, newest first, and then that of the state.
Corrections = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class FittedSolver(Solver):
    """``base`` with the corrections ``up`` and ``down`` for the two directions of one grid, ``nodes`` (rising).

    Raises:
        ValueError: if a direction does not have corrections for each step.
    """

    base: FixedStepSolver
    nodes: tuple[float, ...]
    up: Corrections
    down: Corrections

    def __post_init__(self) -> None:
        steps = len(self.nodes) - 1
        if not len(self.up) == len(self.down) == steps:
            raise ValueError(
                f"{self.name} needs corrections for each of its {steps} steps in both directions, "
                f"but there are {len(self.up)} up and {len(self.down)} down; fit them anew"
            )

    def solve(self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None) -> Solution:
        return self.along(grid).solve(field, x, grid, companion)

    def along(self, grid: Tensor) -> FixedStepSolver:
        """The method with the corrections for the direction of ``grid``, ``(steps + 1,)``.

        Raises:
            ValueError: if it was fitted for another grid.
        """
        check_grid(grid)
        upward = bool(grid[-1] > grid[0])
        self._check_nodes(sorted(grid.tolist()))
        step = _CorrectedStep(self.base.step, self.up if upward else self.down)
        return replace(self.base, name=self.name, step=step)

    def _check_nodes(self, nodes: Sequence[float]) -> None:
        same = len(nodes) == len(self.nodes) and all(
            abs(a - b) <= 1e-9 * abs(b) for a, b in zip(nodes, self.nodes, strict=True)
        )
        if not same:
            raise ValueError(
                f"{self.name} was fitted for one grid of {len(self.nodes) - 1} steps from {self.nodes[0]:g} to "
                f"{self.nodes[-1]:g}, and not for this one of {len(nodes) - 1}; take that grid, or another solver"
            )

    def nfe(self, steps: int) -> int:
        return self.base.nfe(steps)

    @property
    def settings(self) -> dict[str, str | float]:
        """The name, and a digest of the fit, which tells it from any other."""
        content = repr((self.base.name, self.nodes, self.up, self.down))
        return {"name": self.name, "fit": sha256(content.encode()).hexdigest()[:12]}


@dataclass(frozen=True)
class _CorrectedStep:
    """A step that is followed by its correction.

    The state of the walk is the number of the step, the state of the inner step, and the slopes that are known.
    """

    inner: Step
    corrections: Corrections

    def __call__(self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        n, inner, slopes = state or (0, None, ())
        weights = self.corrections[n]
        x_next, inner, slopes = _uncorrected(self.inner, field, u, u_next, x, inner, slopes, len(weights) - 1)
        terms = _terms(u_next - u, x, slopes)
        if len(weights) != len(terms):
            raise ValueError(
                f"the corrections of step {n + 1} must be {len(terms)}, of {len(slopes)} slopes and the state, "
                f"but there are {len(weights)}; fit them anew"
            )
        return combine(x_next, 1.0, weights, terms), (n + 1, inner, slopes)


def fit(
    base: FixedStepSolver,
    field: Field,
    solutions: Sequence[Tensor],
    grid: Tensor,
    *,
    slopes: int = 4,
    ridge: float = 1e-3,
    share: float = 0.9,
) -> Corrections:
    """Corrections of ``base`` on ``grid``, shape ``(steps + 1,)``, from known solutions of ``field``.

    ``solutions``  the states at each node of the grid, in its order, each ``(B, ...)``.
    ``slopes``     as many of the newest ones take part, or as many as are known.
    ``ridge``      relative to the mean square of each term.
    ``share``      the part of the solutions, those nearest to what the method does anyway, that takes part in a step.

    Raises:
        ValueError: if there is not one solution for each node.
    """
    check_grid(grid)
    if len(solutions) != len(grid):
        raise ValueError(f"there must be a state for each of the {len(grid)} nodes, but there are {len(solutions)}")
    step = _FittingStep(base, list(solutions), grid.tolist(), slopes, ridge, share, [])
    replace(base, step=step)(field, solutions[0], grid)
    return tuple(step.found)


@dataclass(frozen=True)
class _FittingStep:
    """A corrected step that finds its own correction, and adds it to ``found``."""

    base: FixedStepSolver
    solutions: list[Tensor]
    grid: list[float]
    slopes: int
    ridge: float
    share: float
    found: list[tuple[float, ...]]

    def __call__(self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        import torch

        n, inner, slopes = state or (0, None, ())
        x_next, inner, slopes = _uncorrected(self.base.step, field, u, u_next, x, inner, slopes, self.slopes)
        target = self.solutions[n + 1]
        if self.base.chart:
            target = self.base.chart.enter(target, torch.tensor(self.grid[n + 1], dtype=torch.float64))
        terms = _terms(u_next - u, x, slopes)
        weights = _least_squares(terms, target - x_next, self.ridge, self.share)
        self.found.append(weights)
        return combine(x_next, 1.0, weights, terms), (n + 1, inner, slopes)


def _uncorrected(
    step: Step, field: Field, u: Tensor, u_next: Tensor, x: Tensor, inner: Any, slopes: tuple[Tensor, ...], most: int
) -> tuple[Tensor, Any, tuple[Tensor, ...]]:
    """What the step alone leads to, its new state, and at most ``most`` slopes known after it, newest first."""
    seen: list[Tensor] = []

    def watched(u: Tensor, x: Tensor) -> Tensor:
        seen.append(field(u, x))
        return seen[-1]

    x_next, inner = step(watched, u, u_next, x, inner)
    return x_next, inner, (*reversed(seen), *slopes)[:most]


def _terms(h: Tensor, x: Tensor, slopes: Sequence[Tensor]) -> list[Tensor]:
    return [*(h * slope for slope in slopes), x]


def _least_squares(terms: Sequence[Tensor], residual: Tensor, ridge: float, share: float) -> tuple[float, ...]:
    """Weights that make sum_j weight_j terms_j about ``residual``, all ``(B, ...)``; each is weighed with a ridge.

    A term that is zero everywhere has weight 0.
    """
    import torch

    columns = torch.stack([term.flatten(1) for term in terms], dim=-1)
    target = residual.flatten(1)
    nearest = target.square().mean(1).argsort()[: max(1, round(share * len(target)))]
    columns, target = columns[nearest].flatten(0, 1), target[nearest].flatten()
    gram = columns.T @ columns
    sizes = gram.diagonal()
    ridges = torch.where(sizes > 0, ridge * sizes, 1)
    solution: torch.Tensor = torch.linalg.solve(gram + ridges.diag(), columns.T @ target)
    return tuple(solution.tolist())
