"""Fixed-step solvers: their order, their cost, and the formulas behind our own."""

from __future__ import annotations

from dataclasses import replace
from math import log2, prod

import numpy as np
import pytest
import torch
from flows import (
    CORRELATED,
    GAUSSIAN,
    MIXTURE,
    Problem,
    Recorded,
    real,
    relative_error,
    steps_in_proportion,
    steps_of_two_sizes,
)
from hypothesis import given
from hypothesis import strategies as st

from ddim_ode.solvers import FIXED_STEP_SOLVERS, SOLVERS, ExactInverse, Solver
from ddim_ode.solvers.fixed import FixedStepSolver
from ddim_ode.solvers.multistep import PredictorCorrectorStep
from ddim_ode.solvers.reversible import TwoStepSolver
from ddim_ode.solvers.runge_kutta import RungeKuttaStep

# What is solved by iteration is solved to rounding here.
FIXED = [replace(s, tolerance=1e-13) if isinstance(s, ExactInverse) else s for s in SOLVERS.values() if not s.adaptive]

each_fixed_solver = pytest.mark.parametrize("solver", FIXED, ids=lambda s: s.name)
each_counted_solver = pytest.mark.parametrize(
    "solver", [s for s in FIXED if not isinstance(s, ExactInverse)], ids=lambda s: s.name
)
# EDICT has no order away from zero: tests.solvers.test_reversible.
each_fixed_solver_and_way = pytest.mark.parametrize(
    ("solver", "ends"),
    [
        pytest.param(solver, ends, id=f"{solver.name}-{way}")
        for solver in FIXED
        for way, ends in (("encode", (0.3, 10.3)), ("decode", (10.3, 0.3)))
        if (solver.name, way) != ("edict", "encode")
    ],
)
each_runge_kutta_solver = pytest.mark.parametrize(
    "solver", [s for s in FIXED_STEP_SOLVERS if isinstance(s.step, RungeKuttaStep)], ids=lambda s: s.name
)


def measured_order(solver: Solver, problem: Problem, begin: float, end: float, steps: int) -> float:
    """Slope of the error between ``steps`` and twice as many: past the first bends, and far above round-off."""
    make_grid = steps_in_proportion if isinstance(solver, TwoStepSolver) else steps_of_two_sizes
    errors = [
        relative_error(solver(problem.field, problem.at(begin), make_grid(begin, end, n)), problem.at(end))
        for n in (steps, 2 * steps)
    ]
    assert errors[1] > 1e-12, "so near to round-off a slope means nothing"
    return log2(errors[0] / errors[1])


def highest_order(solver: Solver) -> int:
    """The declared order, but for a corrector of more than 3 slopes: until its start tells, it is as good as those."""
    step = getattr(solver, "step", None)
    return step.corrector if isinstance(step, PredictorCorrectorStep) else solver.order


@each_fixed_solver_and_way
def test_order_is_the_declared_one(solver: Solver, ends: tuple[float, float]) -> None:
    """EDICT's steps must be small beside the time in which its states come together, some ten of them."""
    steps = 128 if solver.name == "edict" else 64
    assert solver.order - 0.2 < measured_order(solver, MIXTURE, *ends, steps=steps) < highest_order(solver) + 0.2


@each_fixed_solver_and_way
@pytest.mark.parametrize("problem", [GAUSSIAN, CORRELATED], ids=lambda p: p.name)
def test_order_on_gaussians_is_no_less(solver: Solver, problem: Problem, ends: tuple[float, float]) -> None:
    """It may be more: on flows x sqrt(s^2 + sigma^2) the h^3 error of the midpoint rule vanishes everywhere."""
    assert measured_order(solver, problem, *ends, steps=128) > solver.order - 0.2


@each_counted_solver
def test_nfe_is_steps_times_nfe_per_step(solver: Solver) -> None:
    """And what it says of a walk of no steps, and of its first ones, if those cost more."""
    per_step, first = solver.nfe(9) - solver.nfe(8), getattr(solver, "first_steps", ())
    for steps in (1, 2, 3, 4, 7):
        field = Recorded(GAUSSIAN.field)
        solver(field, GAUSSIAN.data, torch.linspace(0.5, 5, steps + 1, dtype=torch.float64))
        more = solver.nfe(0) + sum(cost - per_step for cost in first[:steps])
        assert field.nfe == solver.nfe(steps) == steps * per_step + more


@pytest.mark.parametrize(("name", "cost"), [("euler", 7), ("heun", 14), ("reversible-heun", 8), ("pndm", 16)])
def test_seven_steps_of_some_cost_what_their_authors_say(name: str, cost: int) -> None:
    assert SOLVERS[name].nfe(7) == cost


@each_fixed_solver
def test_every_point_of_the_grid_reaches_the_field_exactly(solver: Solver) -> None:
    """Also with a float32 state, which torchdiffeq would round the clock to. A chart may cost the last bits.

    FireFlow asks half way between them.
    """
    if solver.name == "fireflow":
        pytest.skip("judged by its formula")
    grid = steps_of_two_sizes(0.3, 10.3, 8)
    single, double = Recorded(GAUSSIAN.field), Recorded(GAUSSIAN.field)
    solver(single, GAUSSIAN.data.float(), grid)
    solver(double, GAUSSIAN.data, grid)
    asked = sorted(float(sigma) for sigma in single.sigmas)
    inner = grid[1:-1].tolist()
    if getattr(solver, "chart", None) is None:
        assert set(inner) <= set(asked)
    assert all(min(abs(sigma / node - 1) for sigma in asked) < 1e-13 for node in inner)
    assert set(asked) == {float(sigma) for sigma in double.sigmas}


@each_fixed_solver
@given(
    start=st.floats(0.05, 2),
    steps=st.lists(st.floats(0.05, 1), min_size=1, max_size=6),
    downwards=st.booleans(),
    batch=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_a_batch_equals_its_members(
    solver: Solver, start: float, steps: list[float], downwards: bool, batch: int, seed: int
) -> None:
    grid = start + real([0.0, *steps]).cumsum(0)
    grid = grid.flip(0) if downwards else grid
    x = torch.randn(batch, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    members = [solver(GAUSSIAN.field, member, grid) for member in x.split(1)]
    rounding = 1e-11 if isinstance(solver, ExactInverse) else 1e-14
    torch.testing.assert_close(solver(GAUSSIAN.field, x, grid), torch.cat(members), rtol=rounding, atol=rounding)


# A rooted tree is the sorted tuple of the trees that hang from its root. HNW, II.2: a method has order p if
# for every tree of at most p vertices b . Phi(tree) = 1 / gamma(tree).
Tree = tuple["Tree", ...]


def trees(vertices: int) -> set[Tree]:
    """All rooted trees with that many vertices: each comes from a smaller one by a new leaf somewhere."""
    return {()} if vertices == 1 else {larger for tree in trees(vertices - 1) for larger in with_a_new_leaf(tree)}


def with_a_new_leaf(tree: Tree) -> set[Tree]:
    grown = {tuple(sorted((*tree, ())))}
    for i, child in enumerate(tree):
        grown |= {tuple(sorted((*tree[:i], larger, *tree[i + 1 :]))) for larger in with_a_new_leaf(child)}
    return grown


def size(tree: Tree) -> int:
    return 1 + sum(map(size, tree))


def density(tree: Tree) -> int:
    return size(tree) * prod(map(density, tree))


def stage_weights(a: np.ndarray, tree: Tree) -> np.ndarray:
    return prod((a @ stage_weights(a, child) for child in tree), start=np.ones(len(a)))


def defect(step: RungeKuttaStep, vertices: int) -> float:
    """The largest violation of the order conditions with that many vertices."""
    stages = len(step.b)
    a = np.array([[*row, *[0.0] * (stages - len(row))] for row in step.a])
    return max(abs(float(np.dot(step.b, stage_weights(a, tree))) - 1 / density(tree)) for tree in trees(vertices))


def test_rooted_trees_are_all_there() -> None:
    """Their numbers: HNW, II.2, Table 2.1."""
    assert [len(trees(vertices)) for vertices in range(1, 8)] == [1, 1, 2, 4, 9, 20, 48]


@each_runge_kutta_solver
def test_tableau_meets_the_order_conditions_and_no_more(solver: FixedStepSolver) -> None:
    assert all(defect(solver.step, vertices) < 1e-15 for vertices in range(1, solver.order + 1))
    assert defect(solver.step, solver.order + 1) > 1e-3


def test_tableau_with_a_missing_weight_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"row i of a must hold i weights, one row for each of b's 2; got \(\(\), \(\)\)"
    ):
        RungeKuttaStep(a=((), ()), b=(0.5, 0.5))


def test_tableau_with_a_missing_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one row for each of b's 2"):
        RungeKuttaStep(a=((),), b=(0.5, 0.5))


def test_tableau_that_is_not_consistent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the weights b must sum to 1, but \(0.5, 0.6\) sum to 1.1"):
        RungeKuttaStep(a=((), (1.0,)), b=(0.5, 0.6))


def test_torchdiffeqs_adams_loses_its_order_on_unequal_steps() -> None:
    """Why it is not among our solvers: of order 4 on equal steps, it falls to 1 here."""
    from torchdiffeq import odeint

    def error(steps: int) -> float:
        grid = steps_of_two_sizes(0.3, 10.3, steps)
        options = {"max_order": 4, "grid_constructor": lambda func, y0, t: grid}
        x = odeint(GAUSSIAN.field, GAUSSIAN.at(0.3), grid[[0, -1]], method="explicit_adams", options=options)[-1]
        return relative_error(x, GAUSSIAN.at(10.3))

    assert log2(error(128) / error(256)) == pytest.approx(1, abs=0.2)
