"""Solutions of a model's ODE at every noise level: walked once in small steps, and read off between them.

A solution is kept in the angle chart, y = x_bar / sqrt(sd^2 + sigma^2) over u = atan(sigma / sd), where it hardly
moves, with its slope at every node; between two nodes it is the cubic that has both values and slopes (Hermite).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isinf

import torch
from torch import Tensor
from tqdm import tqdm

from ddim_ode.codec import latent_scale, to_device
from ddim_ode.grids import Grid
from ddim_ode.models import Model
from ddim_ode.ode import ProbabilityFlowODE, ToldODE
from ddim_ode.solvers import ANGLE, FixedStepSolver, correctable, fixed


def trajectory_solver(model: Model) -> FixedStepSolver:
    """What trajectories are walked by: third order in the angle chart, one evaluation a step."""
    # Towards infinity the logarithm has no end.
    return correctable("angle-ab3" if isinf(model.schedule.sigma_max) else "reab3")


@dataclass(frozen=True, eq=False)
class Portioned:
    """The slope of a model's ODE, or of one that is told another sigma, for ``size`` members of a batch at a time."""

    ode: ProbabilityFlowODE | ToldODE
    size: int

    def __call__(self, sigma: Tensor, x: Tensor) -> Tensor:
        """The slope at ``sigma``, ``()``, and ``x``, ``(B, C, H, W)``; of the shape of ``x``."""
        return self._each(partial(self.ode, sigma), x)

    def told(self, sigma: float) -> Portioned:
        """The same, told ``sigma`` wherever it is evaluated."""
        ode = self.ode if isinstance(self.ode, ProbabilityFlowODE) else self.ode.ode
        return replace(self, ode=ode.told(sigma))

    def origin(self, far: Tensor) -> Tensor:
        """As that of the ODE, ``(B, C, H, W)`` like ``far``."""
        return self._each(self.ode.origin, far)

    def _each(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([function(part) for part in torch.split(x, self.size)])


@dataclass(frozen=True, eq=False)
class Trajectories:
    """``y`` and its ``slopes`` dy/du at the angles ``u``, rising, ``(nodes,)``; both are ``(nodes, B, C, H, W)``."""

    u: tuple[float, ...]
    y: Tensor
    slopes: Tensor

    def at(self, sigma: float) -> Tensor:
        """The states x_bar at ``sigma``, ``(B, C, H, W)``; within the range that was walked.

        Raises:
            ValueError: if sigma lies outside.
        """
        u = ANGLE.u(sigma)
        if not self.u[0] - 1e-12 <= u <= self.u[-1] + 1e-12:
            raise ValueError(f"sigma = {sigma:g} lies outside of what was walked")
        left = min(max(bisect_right(self.u, u) - 1, 0), len(self.u) - 2)
        h = self.u[left + 1] - self.u[left]
        s = (u - self.u[left]) / h
        y = (
            (1 + 2 * s) * (1 - s) ** 2 * self.y[left]
            + s**2 * (3 - 2 * s) * self.y[left + 1]
            + h * s * (1 - s) ** 2 * self.slopes[left]
            - h * s**2 * (1 - s) * self.slopes[left + 1]
        )
        return ANGLE.leave(y, torch.tensor(sigma, dtype=torch.float64))

    def latents(self, sigma: float) -> Tensor:
        """The states at ``sigma`` as latents x_T of variance 1, ``(B, C, H, W)``. Errors are those of ``at``."""
        return self.at(sigma) / latent_scale(sigma)

    def take(self, members: slice) -> Trajectories:
        """The trajectories of some members of the batch alone."""
        return Trajectories(self.u, self.y[:, members], self.slopes[:, members])

    def not_finite(self) -> list[int]:
        """The members whose states or slopes are not all finite numbers."""
        finite = self.y.isfinite().flatten(2).all(2).all(0) & self.slopes.isfinite().flatten(2).all(2).all(0)
        return [i for i, fine in enumerate(finite.tolist()) if not fine]


def join(parts: Sequence[Trajectories]) -> Trajectories:
    """Several walks over the same nodes as one batch."""
    return Trajectories(
        parts[0].u, torch.cat([part.y for part in parts], 1), torch.cat([part.slopes for part in parts], 1)
    )


def walk(
    model: Model,
    begin: Tensor,
    grid: Grid,
    *,
    upward: bool,
    batch_size: int,
    label: str,
    names: Sequence[str] | None = None,
) -> Trajectories:
    """The trajectories from images, or downward from latents x_T, ``(B, C, H, W)``, along a ``grid`` that is fine.

    They cost one evaluation a step, and one more for the last slope. A progress bar shows how far they are.

    ``names``  what to call the members in messages.

    Raises:
        ValueError: if the network leads some of them to numbers that are not finite; the message names them.
    """
    names = names or [f"number {i + 1}" for i in range(len(begin))]
    parts = [
        _walk(model, batch, grid, upward, f"{label} {i + 1}")
        for i, batch in enumerate(torch.split(to_device(begin, model.device), batch_size))
    ]
    found = join(parts)
    lost = [names[member] for member in found.not_finite()]
    if lost:
        which = ", ".join(lost)
        raise ValueError(f"{label}: the network gives numbers that are not finite for: {which}; leave them out")
    return found


def _walk(model: Model, begin: Tensor, grid: Grid, upward: bool, label: str) -> Trajectories:
    field, solver = ANGLE.pull_back(model.ode()), trajectory_solver(model)
    slopes: list[Tensor] = []

    def recorded(u: Tensor, y: Tensor) -> Tensor:
        slopes.append(field(u, y))
        return slopes[-1]

    sigmas = grid.upward() if upward else grid.downward()
    nodes = ANGLE.nodes(sigmas)
    states = [ANGLE.enter(begin if upward else begin * latent_scale(grid.sigma_T), sigmas[0])]
    with torch.no_grad():
        points = fixed.walk(solver.step, recorded, states[0], nodes)
        states += [y for _, y, _ in tqdm(points, total=grid.steps, desc=label, leave=False, disable=None)]
        recorded(nodes[-1], states[-1])
    order = slice(None) if upward else slice(None, None, -1)
    angles = tuple(nodes.tolist())[order]
    return Trajectories(angles, torch.stack(states[order]), torch.stack(slopes[order]))
