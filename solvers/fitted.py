"""Methods with coefficients fitted to one field: a few steps on one grid, made better by known solutions.

Each step of a method with fixed steps is corrected by a linear combination of the slopes it knows and of the state it
begins with:

    y_{n+1} = step(y_n) + h sum_j a_{n,j} f_{n-j} + b_n y_n

in the chart of the method. Besides, the field may be told another sigma than that of the node where the state lies.
``solvers.learning`` finds the numbers a and b, what to tell, and the nodes. A fit is to one field and one grid, and
says nothing of others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .base import Solution, Solver, check_grid, combine, field_told
from .fixed import FixedStepSolver

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field
    from .fixed import Step

# For each step of a walk the weights of the slopes, newest first, and then that of the state.
Corrections = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Fit:
    """What is fitted for one direction of a grid: the ``weights`` of each step, in the order of the walk.

    ``told``   for each step the sigma that the field is told in it; () for that of the nodes.
    ``nodes``  the sigmas, rising, where it steps between the ends of the grid; () for those of the grid.
    """

    weights: Corrections
    told: tuple[float, ...] = ()
    nodes: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FittedSolver(Solver):
    """``base`` with what was fitted for the two directions of one grid, ``nodes`` (rising).

    A direction may have nodes of its own: of the grid it is given it then takes the two ends.

    Raises:
        ValueError: if a direction does not have weights for each step, for the state and for no more slopes than are
            known there, tells the field another number of sigmas, or has another number of nodes, or some that do not
            rise between the ends.
    """

    base: FixedStepSolver
    nodes: tuple[float, ...]
    up: Fit
    down: Fit

    def __post_init__(self) -> None:
        steps = len(self.nodes) - 1
        if not len(self.up.weights) == len(self.down.weights) == steps:
            raise ValueError(
                f"{self.name} needs corrections for each of its {steps} steps in both directions, but there are "
                f"{len(self.up.weights)} up and {len(self.down.weights)} down; fit them anew"
            )
        for fit in (self.up, self.down):
            self._check(fit)

    def _check(self, fit: Fit) -> None:
        steps = len(self.nodes) - 1
        kept = 0
        for n, weights in enumerate(fit.weights, 1):
            most = kept + self.base.nfe(n) - self.base.nfe(n - 1)
            if not 1 <= len(weights) <= most + 1:
                raise ValueError(
                    f"the corrections of step {n} must be of 0 to {most} slopes and the state, but there are "
                    f"{len(weights)}; fit them anew"
                )
            kept = len(weights) - 1
        if fit.told and (len(fit.told) != steps or self.base.nfe(steps) != steps):
            raise ValueError(
                f"the field must be told one sigma in each of {steps} steps of one evaluation, or none, but there are "
                f"{len(fit.told)} for {self.base.nfe(steps)} evaluations; fit them anew"
            )
        if fit.nodes:
            nodes = (self.nodes[0], *fit.nodes, self.nodes[-1])
            if len(nodes) != steps + 1 or any(b <= a for a, b in pairwise(nodes)):
                raise ValueError(
                    f"there must be {steps - 1} nodes that rise between {nodes[0]:g} and {nodes[-1]:g}, but they are "
                    f"{fit.nodes}; fit them anew"
                )

    def solve(self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None) -> Solution:
        solver, grid = self._on(grid)
        return solver.solve(field, x, grid, companion)

    def trajectory(
        self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None
    ) -> Iterator[tuple[float, Solution]]:
        """The points of the walk, at the nodes of its own where it has some, as those of its base."""
        solver, grid = self._on(grid)
        return solver.trajectory(field, x, grid, companion)

    def _on(self, grid: Tensor) -> tuple[FixedStepSolver, Tensor]:
        """What walks along ``grid``, ``(steps + 1,)``, and where it steps."""
        import torch

        check_grid(grid, endless=self.endless)
        self._check_nodes(sorted(grid.tolist()))
        upward = bool(grid[-1] > grid[0])
        fit = self.up if upward else self.down
        if fit.nodes:
            inner = grid.new_tensor(fit.nodes if upward else fit.nodes[::-1])
            grid = torch.cat([grid[:1], inner, grid[-1:]])
        return corrected(self.base, fit, name=self.name), grid

    def _check_nodes(self, nodes: Sequence[float]) -> None:
        same = len(nodes) == len(self.nodes) and all(
            a == b or abs(a - b) <= 1e-9 * abs(b) for a, b in zip(nodes, self.nodes, strict=True)
        )
        if not same:
            raise ValueError(
                f"{self.name} was fitted for one grid of {len(self.nodes) - 1} steps from {self.nodes[0]:g} to "
                f"{self.nodes[-1]:g}, and not for this one of {len(nodes) - 1}; take that grid, or another solver"
            )

    def nfe(self, steps: int) -> int:
        return self.base.nfe(steps)

    @property
    def endless(self) -> bool:
        return self.base.endless

    @property
    def settings(self) -> dict[str, str | float]:
        """The name, and a digest of the fit, which tells it from any other."""
        # Weights alone are written as they were when there was nothing else: latents were encoded with such digests.
        ways = (fit if fit.told or fit.nodes else fit.weights for fit in (self.up, self.down))
        content = repr((self.base.name, self.nodes, *ways))
        return {"name": self.name, "fit": sha256(content.encode()).hexdigest()[:12]}


def corrected(base: FixedStepSolver, fit: Fit, *, name: str = "") -> FixedStepSolver:
    """``base`` with what was fitted for one direction of one grid; it is called ``name``, if there is one."""
    return replace(base, name=name or base.name, step=_CorrectedStep(base.step, fit))


@dataclass(frozen=True)
class _CorrectedStep:
    """A step that is followed by its correction.

    The state of the walk is the number of the step, the state of the inner step, and the slopes that are known.
    """

    inner: Step
    fit: Fit

    def __call__(self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        n, inner, slopes = state or (0, None, ())
        weights = self.fit.weights[n]
        field = field_told(field, self.fit.told[n]) if self.fit.told else field
        x_next, inner, slopes = uncorrected(self.inner, field, u, u_next, x, inner, slopes, len(weights) - 1)
        return combine(x_next, 1.0, weights, terms(u_next - u, x, slopes)), (n + 1, inner, slopes)


def uncorrected(
    step: Step, field: Field, u: Tensor, u_next: Tensor, x: Tensor, inner: Any, slopes: tuple[Tensor, ...], most: int
) -> tuple[Tensor, Any, tuple[Tensor, ...]]:
    """What the ``step`` alone leads to, its new state, and at most ``most`` slopes known after it, newest first.

    ``u`` and ``u_next`` are ``()``; ``x`` and all slopes are ``(B, ...)``.
    """
    seen: list[Tensor] = []

    def watched(u: Tensor, x: Tensor) -> Tensor:
        seen.append(field(u, x))
        return seen[-1]

    x_next, inner = step(watched, u, u_next, x, inner)
    return x_next, inner, (*reversed(seen), *slopes)[:most]


def terms(h: Tensor, x: Tensor, slopes: Sequence[Tensor]) -> list[Tensor]:
    """What a correction is combined of in a step of the length ``h``, ``()``; ``x`` and the slopes are ``(B, ...)``."""
    return [*(h * slope for slope in slopes), x]
