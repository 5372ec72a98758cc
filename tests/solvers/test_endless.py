"""Grids that end, or begin, at sigma = infinity: every solver that takes them, against flows that are known there.

Of data with the density p, x / sigma tends to ``far`` and x - sigma eps to the mean of p.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log2

import pytest
import torch
from flows import GAUSSIAN, MIXTURE, Problem, relative_error
from torch import Tensor

from ddim_ode.solvers import SOLVERS, ReversibleSolver, Solver, SolverError, get_solver
from ddim_ode.solvers.charts import CHARTS, FLOW

ENDLESS = [solver for solver in SOLVERS.values() if solver.endless]
UNDOING = [solver for solver in ENDLESS if solver.name.startswith("exact-")]
OTHERS = [solver for solver in SOLVERS.values() if not solver.endless]
each_endless = pytest.mark.parametrize("solver", ENDLESS, ids=lambda solver: solver.name)


@dataclass(frozen=True, eq=False)
class Endless:
    """A problem's field, and what it tends to."""

    problem: Problem
    mean: Tensor

    def __call__(self, sigma: Tensor, x: Tensor) -> Tensor:
        assert bool(sigma.isfinite().all())
        return self.problem.field(sigma, x)

    def origin(self, far: Tensor) -> Tensor:
        return self.mean.expand_as(far)


# The mean and the spread of each component, read off the flow: x - mean is stretched by sigma / std.
_AT = 1e8
_STRETCH = (GAUSSIAN.at(_AT)[0] - GAUSSIAN.at(_AT)[1]) / (GAUSSIAN.data[0] - GAUSSIAN.data[1])
_STD = _AT / _STRETCH
_MEAN = GAUSSIAN.data[0] - (GAUSSIAN.at(_AT)[0] - GAUSSIAN.data[0]) / (_STRETCH - 1)


def ends_at_infinity(steps: int, begin: float = 0.0) -> Tensor:
    """Equal steps in the time of flow matching."""
    u = torch.linspace(begin, 1, steps + 1, dtype=torch.float64)
    return torch.tensor([FLOW.sigma(float(v)) for v in u], dtype=torch.float64)


def error(solver: Solver, steps: int) -> float:
    """Of the image that a known latent of Gaussian data decodes to."""
    field, far = Endless(GAUSSIAN, _MEAN), (GAUSSIAN.data - _MEAN) / _STD
    return relative_error(solver(field, far, ends_at_infinity(steps).flip(0)), GAUSSIAN.data)


def test_infinity_is_reached_by_the_methods_one_would_expect() -> None:
    names = {solver.name for solver in ENDLESS}
    assert {"euler", "rk4", "ab3", "reversible-heun", "mccallum-foster-rk4", "o-belm", "exact-euler"} <= names
    assert names.isdisjoint({"dpmpp3m", "reab3", "edict", "bdia", "ddim-inverse", "per-sample-bosh3", "scipy-DOP853"})


@each_endless
def test_from_infinity_with_its_order(solver: Solver) -> None:
    """As far as a start of low order allows, and O-BELM's doubled steps near infinity."""
    if solver.undoes:
        pytest.skip("judged by the solver that it undoes")
    coarse, fine = error(solver, 40), error(solver, 80)
    assert fine < 1e-11 or log2(coarse / fine) > min(solver.order, 3) - 0.4


@each_endless
def test_there_and_back(solver: Solver) -> None:
    """From infinity and to it again; with both states, or the exact inverse, to rounding."""
    back = SOLVERS[solver.undoes] if solver.undoes else solver
    field, grid = Endless(GAUSSIAN, _MEAN), ends_at_infinity(20)
    there = solver.solve(field, GAUSSIAN.data, grid)
    assert bool(there.x.isfinite().all())
    again = back.solve(field, there.x, grid.flip(0), there.companion).x
    exact = isinstance(solver, ReversibleSolver) or solver in UNDOING
    assert relative_error(again, GAUSSIAN.data) < (1e-5 if solver in UNDOING else 1e-11 if exact else 0.2)


def test_one_step_over_the_whole_way_cannot_be_undone() -> None:
    """Euler's from infinity to 0 leads from everywhere to the mean."""
    grid = torch.tensor([0.0, inf], dtype=torch.float64)
    with pytest.raises(SolverError, match="one step of euler from sigma = inf to sigma = 0 leaves nothing of where it"):
        get_solver("exact-euler")(Endless(GAUSSIAN, _MEAN), GAUSSIAN.data, grid)


def test_euler_takes_the_step_that_data_and_noise_make() -> None:
    """x = origin + sigma far down, far = slope up: the same in every chart."""
    mean = (torch.tensor([0.2, 0.3, 0.5]).double()[:, None, None, None] * torch.zeros(3, 1, 2, 2)).sum(0)
    field, far, euler = Endless(MIXTURE, mean), MIXTURE.data, get_solver("euler")
    down = euler(field, far, torch.tensor([inf, 30.0]).double())
    torch.testing.assert_close(down, mean + 30 * far, rtol=1e-13, atol=0)
    up = euler(field, down, torch.tensor([30.0, inf]).double())
    torch.testing.assert_close(up, MIXTURE.field(torch.tensor(30.0).double(), down), rtol=1e-12, atol=1e-14)
    finite, grid = torch.tensor([0.1, 1.0, 30.0]).double(), torch.tensor([0.1, 1.0, 30.0, inf]).double()
    inner = euler(field, MIXTURE.data, finite)
    whole = euler(field, MIXTURE.data, grid)
    torch.testing.assert_close(whole, MIXTURE.field(finite[-1], inner), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("solver", OTHERS, ids=lambda solver: solver.name)
def test_others_refuse(solver: Solver) -> None:
    with pytest.raises(ValueError, match="grid must be finite"):
        solver(Endless(GAUSSIAN, _MEAN), GAUSSIAN.data, ends_at_infinity(4, 0.1))


@each_endless
def test_a_field_that_ends_is_said_to(solver: Solver) -> None:
    with pytest.raises(ValueError, match="grid must be finite"):
        solver(GAUSSIAN.field, GAUSSIAN.data, ends_at_infinity(4).flip(0))


@pytest.mark.parametrize("chart", [chart for chart in CHARTS.values() if chart.endless], ids=lambda chart: chart.name)
def test_slopes_tend_to_those_at_infinity(chart: object) -> None:
    field, far = Endless(GAUSSIAN, _MEAN), (GAUSSIAN.data - _MEAN) / _STD
    pulled = chart.pull_back(field)
    sigma = 1e5
    near = chart.enter(GAUSSIAN.at(sigma), torch.tensor(sigma))
    there = pulled(torch.tensor(chart.u(inf)).double(), far)
    torch.testing.assert_close(pulled(torch.tensor(chart.u(sigma)).double(), near), there, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="not defined at sigma = infinity"):
        chart.pull_back(GAUSSIAN.field)(torch.tensor(chart.u(inf)).double(), far)
    assert chart.sigma(chart.u(inf)) == inf
    assert chart.leave(far, torch.tensor(inf)) is far


def test_other_charts_do_not_reach_it() -> None:
    with pytest.raises(ValueError, match="'asinh' does not reach"):
        CHARTS["asinh"].slope_at_infinity(GAUSSIAN.data, GAUSSIAN.data)
