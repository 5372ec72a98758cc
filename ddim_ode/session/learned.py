"""The solver that a calibration speaks of: what its entries hold, put into the steps of a method."""

from __future__ import annotations

from functools import lru_cache

from ddim_ode.calibration import Learned
from ddim_ode.grids import Grid
from ddim_ode.solvers import Fit, Solver, fitted_solver


@lru_cache(maxsize=32)  # each of many latents is planned for
def learned_solver(name: str, grid: Grid, up: Learned, down: Learned) -> Solver:
    """The solver called ``name`` with what was learned ``up`` and ``down`` the ``grid``; itself if that is nothing.

    Raises:
        ValueError: if there is no such solver, or what was learned does not belong to its steps.
    """
    return fitted_solver(name, grid.sigmas, *(Fit(way.weights, way.told, way.sigmas) for way in (up, down)))
