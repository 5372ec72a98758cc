"""A problem to fit a solver to: pixels of three kinds, so that no one weight serves all."""

from __future__ import annotations

from math import hypot

import torch
from flows import Field, Recorded, gaussian, real
from torch import Tensor

from ddim_ode.solvers import SOLVERS
from ddim_ode.solvers.fixed import FixedStepSolver
from ddim_ode.solvers.learning import Fitting, Walk

NODES = (0.05, 0.3, 0.8, 2.0, 6.0, 20.0)
STEPS = len(NODES) - 1
STD = real([[0.1, 0.5], [1.0, 0.5]])
PROBLEM = gaussian(real(0.3), STD, torch.zeros(1, 1, 2, 2, dtype=torch.float64))


class Lying(Recorded):
    """The field, which takes what it is told for three times as much."""

    def __call__(self, sigma: Tensor, x: Tensor) -> Tensor:
        return self.told(float(sigma))(sigma, x)

    def told(self, sigma: float) -> Field:
        return lambda _, x: super(Lying, self).__call__(torch.tensor(3 * sigma, dtype=torch.float64), x)


def ends(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return hypot(1.0, NODES[-1]) * torch.randn((count, 1, 2, 2), generator=generator, dtype=torch.float64)


def fitting(field: Field, *, upward: bool, count: int = 30, seed: int = 0) -> Fitting:
    base = SOLVERS["euler"]
    assert isinstance(base, FixedStepSolver)
    end = ends(count, seed)
    return Fitting(
        base=base, field=field, upward=upward, solution=lambda sigma: PROBLEM.flow(end, NODES[-1], sigma), slopes=2
    )


def score(walk: Walk) -> float:
    """The error at the end of a walk, as a part of the state there."""
    truth = PROBLEM.flow(ends(30, 0), NODES[-1], walk.nodes[-1])
    return float((walk.x - truth).square().mean() / truth.square().mean())
