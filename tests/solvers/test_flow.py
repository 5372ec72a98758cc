"""RF-Solver and FireFlow: against the formulas of their papers, in the time of flow matching."""

from __future__ import annotations

from itertools import pairwise

import torch
from flows import MIXTURE, relative_error
from torch import Tensor

from ddim_ode.solvers import get_solver
from ddim_ode.solvers.charts import FLOW

# u, rising, in unequal steps.
NODES = torch.tensor([0.1, 0.25, 0.5, 0.6, 0.9], dtype=torch.float64)
SIGMAS = NODES / (1 - NODES)


def velocity(u: Tensor, y: Tensor) -> Tensor:
    """eps - x_0, where y = (1 - u) x_0 + u eps."""
    sigma = u / (1 - u)
    x_bar = y / (1 - u)
    eps = MIXTURE.field(sigma, x_bar)
    return eps - (x_bar - sigma * eps)


def begin() -> Tensor:
    return MIXTURE.at(float(SIGMAS[0]))


def test_the_taylor_step_of_rf_solver() -> None:
    """y + h v + h^2 / 2 v', with v' from half a step ahead."""
    y = begin() * (1 - NODES[0])
    for u, u_next in pairwise(NODES.unbind()):
        h = u_next - u
        v = velocity(u, y)
        derivative = (velocity(u + h / 2, y + h / 2 * v) - v) / (h / 2)
        y = y + h * v + h**2 / 2 * derivative
    assert relative_error(get_solver("rf-solver")(MIXTURE.field, begin(), SIGMAS), y / (1 - NODES[-1])) < 1e-12


def test_the_reused_slope_of_fireflow() -> None:
    y, last = begin() * (1 - NODES[0]), None
    for u, u_next in pairwise(NODES.unbind()):
        h = u_next - u
        last = velocity(u + h / 2, y + h / 2 * (velocity(u, y) if last is None else last))
        y = y + h * last
    solver = get_solver("fireflow")
    assert relative_error(solver(MIXTURE.field, begin(), SIGMAS), y / (1 - NODES[-1])) < 1e-12
    assert solver.nfe(10) == 11


def test_they_walk_in_flow_time() -> None:
    assert {get_solver(name).chart for name in ("rf-solver", "fireflow")} == {FLOW}
    assert get_solver("fireflow").endless
