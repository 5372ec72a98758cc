"""Traces: the way of a picture to noise and back, seen at each step of the walk.

At each node there are the clean estimate that the network has of x_bar there, x_bar - sigma eps, and the error of the
step that has led to it: how far it ends from where smaller steps would, begun at the same state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite, sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddim_ode.conditions import Asked
from ddim_ode.grids import Grid, halved, middle
from ddim_ode.images import pixel_mse
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.session.plan import Plan
from ddim_ode.session.request import PlanError
from ddim_ode.session.walks import Walk
from ddim_ode.session.worker import Worker, plan_settings
from ddim_ode.solvers import Seen, Solution, Solver, get_solver, rms
from ddim_ode.spaces import Read

if TYPE_CHECKING:
    from ddim_ode.codec import Field

# What a step is held against, in two steps of its own: of fourth order, and at home at both ends.
_JUDGE = "angle-rk4"


@dataclass(frozen=True, eq=False)
class Point:
    """A node of a walk.

    ``clean``  what the network takes for the picture there, ``(C, H, W)`` on the CPU, pixels in [-1, 1]; of some nodes.
    ``error``  RMS error of the step that led here, in x, which has about unit variance; None where the walk begins.
    """

    sigma: float
    clean: Tensor | None
    error: float | None


@dataclass(frozen=True, eq=False)
class Trace:
    """The picture ``name``, ``image`` ``(C, H, W)``, on its way ``up`` to noise and ``down`` again.

    ``mse``          of what comes back, pixels in [0, 1].
    ``there, back``  the two walks.
    ``settings``     what made it.
    """

    name: str
    image: Tensor
    up: Sequence[Point]
    down: Sequence[Point]
    mse: float
    plan: Plan
    there: Walk
    back: Walk
    settings: dict[str, object]

    def report(self) -> str:
        """How it was done, what came back, and where the largest errors are, in a line."""
        worst = (max(points[1:], key=lambda point: point.error or 0.0) for points in (self.up, self.down))
        up, down = (f"{point.error:.2g} at sigma = {point.sigma:.3g}" for point in worst)
        return (
            f"{self.there.report()}; comes back with MSE {self.mse:.3g} on [0, 1]; the largest error of a step is {up} "
            f"on the way up and {down} on the way down"
        )


def trace(worker: Worker, picture: Read, plan: Plan, *, shown: int) -> Trace:
    """The way of a ``picture`` up and down as the ``plan`` says; of each way so many nodes are ``shown``.

    Raises:
        PlanError: if its solver has steps that cannot be seen, or there are none but to infinity.
        SolverError, EvaluationLimitError: if it does not reach the end.
    """
    if sum(map(isfinite, plan.grid.sigmas)) < 2:
        raise PlanError("one step alone leads to infinity, where there is nothing to see; take 2 steps or more")
    x_0, condition = worker.states([picture.state]), plan.condition
    walker, up, down = worker.walker([condition]), _recorder(plan.solver), _recorder(plan.back)
    there, walk_there = walker.encode(x_0, plan.grid, up, label="trace up")
    companion = there.companion if plan.exact else None
    back, walk_back = walker.decode(there.x, plan.grid, down, companion=companion, label="trace down")
    mse = float(pixel_mse(picture.pixels, worker.pictures(back.x)))
    settings = plan_settings(worker.model, worker.model.fingerprint, plan, plan.solver, picture.source.name)
    return Trace(
        name=picture.source.name,
        image=worker.pictures(x_0)[0],
        up=_points(worker, condition, plan.grid, up.states, "errors up", shown),
        down=_points(worker, condition, plan.grid, down.states, "errors down", shown),
        mse=mse,
        plan=plan,
        there=replace(walk_there, solver=plan.solver),
        back=replace(walk_back, solver=plan.back),
        settings=settings | {"mse": mse},
    )


@dataclass(frozen=True, kw_only=True)
class _Recorder(Solver):
    """The ``inner`` solver, which leaves behind the ``states`` it goes through, ``(1, C, H, W)`` with their sigmas.

    It raises PlanError if the steps of that one cannot be seen.
    """

    inner: Solver
    states: list[tuple[float, Tensor]]

    def solve(self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None) -> Solution:
        if not isinstance(self.inner, Seen):
            raise PlanError(
                f"solver '{self.inner.name}' shows none of its steps; take one with fixed steps, such as auto or euler"
            )
        self.states.clear()
        solution = Solution(x)
        for sigma, solution in self.inner.trajectory(field, x, grid, companion):
            self.states.append((sigma, solution.x))
        return solution

    def nfe(self, steps: int) -> int | None:
        return self.inner.nfe(steps)

    @property
    def endless(self) -> bool:
        return self.inner.endless


def _recorder(solver: Solver) -> _Recorder:
    return _Recorder(name=solver.name, order=solver.order, source=solver.source, inner=solver, states=[])


def _points(
    worker: Worker, condition: Asked, grid: Grid, states: Sequence[tuple[float, Tensor]], label: str, shown: int
) -> list[Point]:
    """What is seen at the ``states`` of a walk along ``grid`` but for those at infinity, where x_bar has no limit."""
    walker, judge, errors = worker.walker([condition], times=16), get_solver(_JUDGE), list[float | None]([None])
    finite = [(sigma, x) for sigma, x in states if isfinite(sigma)]
    places, clean = spread(len(finite), shown), list[Tensor]()

    def judged() -> Solution:
        for (sigma, x), (following, found) in pairwise(finite):
            nodes = torch.tensor([sigma, middle(*sorted((sigma, following))), following], dtype=torch.float64)
            errors.append(float(rms(found - judge(walker.ode, x, nodes))) / sqrt(1 + following**2))
        clean.extend(_clean(walker.ode, *finite[place]) for place in places)
        return Solution(finite[-1][1])

    with torch.no_grad():
        walker.watch(label, halved(grid, worker.model.schedule), judge, judged)
    pictures = dict(zip(places, worker.pictures(torch.cat(clean)), strict=True))
    return [Point(sigma, pictures.get(i), errors[i]) for i, (sigma, _) in enumerate(finite)]


def spread(count: int, shown: int) -> list[int]:
    """Which of ``count`` nodes are shown: so many, spread evenly and with both ends; all if there are no more."""
    last = count - 1
    return list(range(count)) if count <= shown else [round(i * last / (shown - 1)) for i in range(shown)]


def _clean(ode: ProbabilityFlowODE, sigma: float, x_bar: Tensor) -> Tensor:
    """x_bar - sigma eps, ``(1, C, H, W)`` like ``x_bar``."""
    return x_bar if sigma == 0 else x_bar - sigma * ode(torch.tensor(sigma, dtype=x_bar.dtype), x_bar)
