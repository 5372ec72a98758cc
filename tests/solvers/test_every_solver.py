"""What holds for every registered solver, whatever its kind."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from math import exp

import pytest
import torch
from flows import CORRELATED, GAUSSIAN, Field, Recorded, level, real, relative_error
from torch import Tensor

from ddim_ode.solvers import SOLVERS, ExactInverse, PerSampleSolver, ReversibleSolver, Solver, SolverError, get_solver
from ddim_ode.solvers.charts import FLOW
from ddim_ode.solvers.fixed import WalkingSolver
from ddim_ode.solvers.scipy_adapter import ScipySolver


def sharp(solver: Solver) -> Solver:
    """With an iteration that is no part of the error."""
    return replace(solver, tolerance=1e-10) if isinstance(solver, ExactInverse) else solver


# The tolerance is not what is tested here, and the low orders need many steps for a small one.
ALL = [get_solver(name, rtol=1e-3, atol=1e-3) if s.adaptive else sharp(s) for name, s in SOLVERS.items()]


def each(solvers: list[Solver]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("solver", solvers, ids=lambda s: s.name)


each_solver = each(ALL)
each_walking_solver = each([s for s in ALL if isinstance(s, WalkingSolver)])
# The time of flow matching is none of -sigma.
each_reversible_in_sign = each([s for s in ALL if not s.positive and getattr(s, "chart", None) is not FLOW])
each_solver_above_zero = each([s for s in ALL if s.positive])
each_scipy_solver = each([s for s in ALL if isinstance(s, ScipySolver)])
each_differentiable_solver = each([s for s in ALL if not isinstance(s, ScipySolver)])

GRID = torch.linspace(0.25, 2.25, 9, dtype=torch.float64)

STEPS_FROM_0 = torch.linspace(0, 2, 17, dtype=torch.float64)


def broken(error: Exception, *, calls: int) -> Field:
    """A field that works so many times and then raises ``error``."""
    good = Recorded(CORRELATED.field)

    def field(sigma: Tensor, x: Tensor) -> Tensor:
        if good.nfe == calls:
            raise error
        return good(sigma, x)

    return field


class FieldError(Exception):
    """Of no kind that a solver could know."""


@each_reversible_in_sign
def test_backward_equals_forward_on_the_reversed_field(solver: Solver) -> None:
    start = CORRELATED.at(2.25)
    backward = solver(CORRELATED.field, start, GRID.flip(0))
    forward = solver(lambda sigma, x: -CORRELATED.field(-sigma, x), start, -GRID.flip(0))
    torch.testing.assert_close(backward, forward, rtol=1e-12, atol=1e-12)


@each_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_keeps_its_dtype_and_the_clock_is_float64(solver: Solver, dtype: torch.dtype) -> None:
    states: list[Tensor] = []

    def field(sigma: Tensor, x: Tensor) -> Tensor:
        states.append(x)
        return CORRELATED.field(sigma, x)

    recorded = Recorded(field)
    x = solver(recorded, CORRELATED.data.to(dtype), GRID)
    assert {state.dtype for state in states} == {x.dtype} == {dtype}
    assert {state.shape[1:] for state in states} == {x.shape[1:]}
    assert x.shape == states[0].shape == CORRELATED.data.shape
    assert {sigma.dtype for sigma in recorded.sigmas} == {torch.float64}
    one_for_each = isinstance(solver, PerSampleSolver)
    assert [sigma.shape for sigma in recorded.sigmas] == [y.shape[:1] if one_for_each else () for y in states]
    assert one_for_each or len({len(y) for y in states}) == 1


@each_solver
def test_state_may_have_any_shape(solver: Solver) -> None:
    grid = torch.linspace(2.25, 0.25, 33, dtype=torch.float64)
    for shape in ((3,), (2, 5), (1, 3, 2, 2)):
        x = solver(lambda sigma, x: x, torch.ones(shape, dtype=torch.float64), grid)
        alike = torch.full(shape, float(x.flatten()[0]), dtype=torch.float64)
        torch.testing.assert_close(x, alike, rtol=1e-13, atol=0)
        assert float(x.flatten()[0]) == pytest.approx(exp(-2), abs=0.05)


@each_solver
def test_calls_are_independent_of_one_another(solver: Solver) -> None:
    first = solver(CORRELATED.field, CORRELATED.data, GRID)
    solver(GAUSSIAN.field, GAUSSIAN.data + 1, GRID.flip(0))
    with pytest.raises(FieldError):
        solver(broken(FieldError(), calls=5), CORRELATED.data, GRID)
    assert torch.equal(solver(CORRELATED.field, CORRELATED.data, GRID), first)


@each_solver
def test_the_state_handed_in_is_left_alone(solver: Solver) -> None:
    x, grid = CORRELATED.data.clone(), GRID.clone()
    solver(CORRELATED.field, x, grid)
    assert torch.equal(x, CORRELATED.data)
    assert torch.equal(grid, GRID)


@each_solver
def test_memory_does_not_grow_with_the_steps(solver: Solver) -> None:
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def field(sigma: Tensor, x: Tensor) -> Tensor:
        seen.append(weakref.ref(x))
        alive.append(sum(ref() is not None for ref in seen))
        return CORRELATED.field(sigma, x)

    solver(field, CORRELATED.data, torch.linspace(0.25, 20, 101, dtype=torch.float64))
    assert len(seen) > 20
    assert max(alive) <= 5


@each_solver
@pytest.mark.parametrize("error", [FieldError("mine"), AssertionError("mine")], ids=lambda e: type(e).__name__)
def test_an_error_of_the_field_goes_through_unchanged(solver: Solver, error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        solver(broken(error, calls=5), CORRELATED.data, GRID)
    assert raised.value is error


@each_solver
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_slope_that_is_not_finite_is_an_error_that_names_sigma(solver: Solver, bad: float) -> None:
    def field(sigma: Tensor, x: Tensor) -> Tensor:
        return x * torch.where(level(sigma, x) < 0.9, 1.0, bad)

    with pytest.raises(SolverError, match=rf"^{solver.name}: the (slope|state) is not finite at sigma = ") as raised:
        solver(field, CORRELATED.data, GRID)
    sigma = float(re.search(r"at sigma = ([\d.]+);", str(raised.value))[1])
    assert 0.9 <= sigma <= (2.25 if solver.adaptive else 1.25), "within a step of where it began"


BAD_GRIDS = [
    (
        real([0.5, 0.3, 0.12, 0.12]),
        r"grid must be strictly monotone, but grid\[3\] = 0.12 follows grid\[2\] = 0.12",
    ),
    (real([0.0, 1.0, 0.5]), r"grid must be strictly monotone, but grid\[2\] = 0.5 follows grid\[1\] = 1"),
    (real([0.0, float("nan"), 1.0]), r"grid must be strictly monotone, but grid\[1\] = nan follows grid\[0\] = 0"),
    (real([float("-inf"), 1.0]), r"grid must be finite, but grid\[0\] = -inf"),
    (real([0.0, 1.0, float("inf")]), r"grid must be finite, but grid\[2\] = inf"),
    (real([1.0]), r"grid must be a 1-D tensor of at least two points, but its shape is \(1,\)"),
    (real([]), r"grid must be a 1-D tensor of at least two points, but its shape is \(0,\)"),
    (real(1.0), r"grid must be a 1-D tensor of at least two points, but its shape is \(\)"),
    (
        real([[0.0, 1.0], [2.0, 3.0]]),
        r"grid must be a 1-D tensor of at least two points, but its shape is \(2, 2\)",
    ),
    (torch.tensor([0.0, 1.0]), r"grid must be float64, but it is torch.float32; make it with dtype=torch.float64"),
    (torch.tensor([0, 1]), r"grid must be float64, but it is torch.int64; make it with dtype=torch.float64"),
]


@each_solver
def test_a_bad_grid_is_refused_before_the_first_evaluation(solver: Solver) -> None:
    """Repeated, turning, not a number, infinite, too short, of the wrong shape, or of the wrong dtype."""
    field = Recorded(CORRELATED.field)
    for grid, message in BAD_GRIDS:
        with pytest.raises(ValueError, match=f"^{message}$"):
            solver(field, CORRELATED.data, grid)
    assert field.nfe == 0


@each_solver_above_zero
@pytest.mark.parametrize("grid", [real([0.0, 1.0, 2.0]), real([2.0, 1.0, 0.0]), real([-1.0, 1.0])])
def test_a_grid_that_touches_zero_is_refused_by_methods_that_need_its_logarithm(solver: Solver, grid: Tensor) -> None:
    field = Recorded(CORRELATED.field)
    with pytest.raises(
        ValueError, match=rf"^{solver.name} needs a grid above sigma = 0, but .*; replace the 0 by a small sigma"
    ):
        solver(field, CORRELATED.data, grid)
    assert field.nfe == 0


@each_walking_solver
def test_a_trajectory_shows_each_point_of_the_walk(solver: WalkingSolver) -> None:
    """It costs what the walk costs, and its last point is the solution; the first is where it begins."""
    field = Recorded(CORRELATED.field)
    points = list(solver.trajectory(field, CORRELATED.data, GRID))
    assert [sigma for sigma, _ in points] == GRID.tolist()
    assert torch.equal(points[0][1].x, CORRELATED.data)
    evaluations, end = field.nfe, solver.solve(field, CORRELATED.data, GRID)
    assert field.nfe == 2 * evaluations
    assert torch.equal(points[-1][1].x, end.x)
    assert (points[-1][1].companion is None) == (end.companion is None)
    half = solver.solve(CORRELATED.field, CORRELATED.data, GRID[:5])
    assert torch.equal(points[4][1].x, half.x)


@each([s for s in ALL if not isinstance(s, ReversibleSolver)])
def test_a_companion_is_refused_by_methods_of_one_state(solver: Solver) -> None:
    field = Recorded(CORRELATED.field)
    with pytest.raises(ValueError, match=f"^{solver.name} keeps one state and takes no companion; leave it out, or"):
        solver.solve(field, CORRELATED.data, GRID, CORRELATED.data)
    assert field.nfe == 0


@each_reversible_in_sign
@pytest.mark.parametrize("grid", [STEPS_FROM_0, STEPS_FROM_0.flip(0)], ids=["up", "down"])
def test_zero_is_an_ordinary_point_for_all_others(solver: Solver, grid: Tensor) -> None:
    x = solver(GAUSSIAN.field, GAUSSIAN.at(float(grid[0])), grid)
    assert relative_error(x, GAUSSIAN.at(float(grid[-1]))) < 0.2


@each_differentiable_solver
def test_gradient_is_that_of_the_flow(solver: Solver) -> None:
    """On a linear flow the gradient is as far off as the state, give or take the direction it is taken in."""
    grid = torch.linspace(0.3, 3, 41, dtype=torch.float64)
    start, weights = CORRELATED.at(0.3), CORRELATED.data.flip(0) + 1

    def gradient_and_end(flow: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        x = start.clone().requires_grad_()
        end = flow(x)
        return torch.autograd.grad((end * weights).sum(), x)[0], end.detach()

    exact_gradient, exact_end = gradient_and_end(lambda x: CORRELATED.flow(x, 0.3, 3.0))
    gradient, end = gradient_and_end(lambda x: solver(CORRELATED.field, x, grid))
    assert relative_error(gradient, exact_gradient) < 5 * relative_error(end, exact_end)


@each_scipy_solver
def test_scipy_refuses_to_be_differentiated(solver: Solver) -> None:
    with pytest.raises(ValueError, match=f"^{solver.name} cannot be differentiated; use one of our own or torchdiffeq"):
        solver(CORRELATED.field, CORRELATED.data.clone().requires_grad_(), GRID)


@each_scipy_solver
def test_scipy_refuses_to_drop_the_graph_of_the_field(solver: Solver) -> None:
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=f"^{solver.name} cannot be differentiated; .* call it under torch.no_grad"):
        solver(lambda sigma, x: scale * CORRELATED.field(sigma, x), CORRELATED.data, GRID)


@each_scipy_solver
def test_scipy_runs_on_what_requires_grad_under_no_grad(solver: Solver) -> None:
    with torch.no_grad():
        x = solver(CORRELATED.field, CORRELATED.data.clone().requires_grad_(), GRID)
    assert torch.equal(x, solver(CORRELATED.field, CORRELATED.data, GRID))
