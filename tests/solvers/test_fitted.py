"""Fitted corrections: better on solutions that they were not fitted to, and honest about what they are for."""

from __future__ import annotations

from dataclasses import replace
from math import hypot
from typing import Any

import pytest
import torch
from flows import MIXTURE, Field, Recorded, gaussian, real
from torch import Tensor

from ddim_ode.solvers import SOLVERS
from ddim_ode.solvers.fitted import Fit, FittedSolver
from ddim_ode.solvers.fixed import FixedStepSolver
from ddim_ode.solvers.learning import Fitting

NODES = (0.05, 0.3, 0.8, 2.0, 6.0, 20.0)
GRID = torch.tensor(NODES, dtype=torch.float64)
EULER = SOLVERS["euler"]


def states(count: int, seed: int) -> list[Tensor]:
    """Solutions of the mixture's field at the nodes, from random states at the last one."""
    generator = torch.Generator().manual_seed(seed)
    end = hypot(1.0, NODES[-1]) * torch.randn((count, 1, 2, 2), generator=generator, dtype=torch.float64)
    return [MIXTURE.flow(end, NODES[-1], sigma) for sigma in NODES[:-1]] + [end]


def fit(base: FixedStepSolver, field: Field, solutions: list[Tensor], *, upward: bool, **options: Any) -> Fit:
    """A fit to the states at the nodes, rising."""
    known = dict(zip(NODES, solutions, strict=True))
    return Fitting(base=base, field=field, upward=upward, solution=known.__getitem__, **options).walk(NODES).fit


def fitted(
    base: FixedStepSolver, solutions: list[Tensor], field: Field = MIXTURE.field, **options: Any
) -> FittedSolver:
    return FittedSolver(
        name=f"fitted-{base.name}",
        order=base.order,
        source="a test",
        positive=base.positive,
        base=base,
        nodes=NODES,
        up=fit(base, field, solutions, upward=True, **options),
        down=fit(base, field, solutions, upward=False, **options),
    )


@pytest.mark.parametrize("name", ["euler", "ab2", "dpmpp3m", "reab2"])
def test_errors_on_other_solutions_are_smaller(name: str) -> None:
    base = SOLVERS[name]
    assert isinstance(base, FixedStepSolver)
    solver, (known, others) = fitted(base, states(60, seed=0)), (states(60, seed=0), states(60, seed=1))
    assert not known[0].equal(others[0])
    for grid, begin, end in ((GRID, others[0], others[-1]), (GRID.flip(0), others[-1], others[0])):
        error, before = ((s(MIXTURE.field, begin, grid) - end).square().mean().sqrt() for s in (solver, base))
        assert float(error) < 0.7 * float(before)


def test_a_linear_flow_is_solved_exactly() -> None:
    """Data N(0, 1): every solution is the same function of sigma but for a factor, which one weight can give."""
    problem = gaussian(real(0.0), real(1.0), torch.ones(3, 1, 2, 2, dtype=torch.float64))
    begin = torch.randn((5, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solutions = [problem.flow(begin, NODES[0], sigma) for sigma in NODES]
    solver = fitted(EULER, solutions, problem.field, slopes=1, ridge=1e-12)
    other = 7 * problem.data
    torch.testing.assert_close(
        solver(problem.field, other, GRID), problem.flow(other, NODES[0], NODES[-1]), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(
        solver(problem.field, other, GRID.flip(0)), problem.flow(other, NODES[-1], NODES[0]), rtol=1e-9, atol=0
    )


def test_a_large_ridge_leaves_the_method_as_it_is() -> None:
    weights = fit(SOLVERS["ab2"], MIXTURE.field, states(10, seed=0), upward=True, ridge=1e12).weights
    assert max(abs(weight) for step in weights for weight in step) < 1e-9


def test_slopes_that_are_zero_have_no_weight() -> None:
    """Where nothing moves, and where only the first step is at rest."""
    x = torch.randn((5, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    still = fit(EULER, lambda sigma, x: 0 * x, [x] * 6, upward=True).weights
    assert still[:2] == ((0.0, 0.0), (0.0, 0.0, 0.0))
    late = fit(EULER, lambda sigma, x: x * (sigma > 0.1), [x, x, *[2 * x] * 4], upward=True).weights
    assert late[0] == (0.0, 0.0)
    assert late[1][1] == 0.0
    assert late[1][0] > 0


def test_weights_by_step_and_cost() -> None:
    solver = fitted(SOLVERS["ab2"], states(10, seed=0))
    assert [len(step) for step in solver.up.weights] == [2, 3, 4, 5, 6]
    recorded = Recorded(MIXTURE.field)
    solver(recorded, states(2, seed=3)[0], GRID)
    assert recorded.nfe == solver.nfe(5) == 5
    assert not solver.adaptive


def test_settings_tell_one_fit_from_another() -> None:
    solver, same, other = (fitted(EULER, states(10, seed=seed)) for seed in (0, 0, 1))
    assert solver.settings == same.settings != other.settings
    assert solver.settings["name"] == solver.name
    assert replace(solver, base=SOLVERS["ab2"]).settings != solver.settings


def test_corrections_that_do_not_fit_the_steps_are_refused() -> None:
    solver = fitted(EULER, states(10, seed=0))
    weights = solver.up.weights
    for wrong in ({"up": Fit(weights[:-1])}, {"down": Fit(())}):
        with pytest.raises(ValueError, match=r"corrections for each of its 5 steps in both directions, but there are"):
            replace(solver, **wrong)
    for row in ((), (0.1,) * 4):
        spoilt = Fit((weights[0], row, *weights[2:]))
        words = rf"^the corrections of step 2 must be of 0 to 2 slopes and the state, but there are {len(row)}; fit"
        with pytest.raises(ValueError, match=words):
            replace(solver, up=spoilt)
    # A slope that is forgotten in one step is not known in the next.
    with pytest.raises(ValueError, match="of step 3 must be of 0 to 1 slopes and the state, but there are 3"):
        replace(solver, up=Fit((weights[0], (0.1,), (0.1,) * 3, *weights[3:])))
    for base, told in ((EULER, (1.0,) * 4), (SOLVERS["midpoint"], (1.0,) * 5)):
        with pytest.raises(ValueError, match="told one sigma in each of 5 steps of one evaluation, or none"):
            replace(solver, base=base, down=Fit(solver.down.weights, told))


class Told:
    """Euler's field, x, which is told another sigma: then it is that sigma."""

    def __call__(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x

    def told(self, sigma: float) -> Field:
        return lambda _, x: torch.full_like(x, sigma)


def test_the_field_is_told_what_was_fitted() -> None:
    """Without weights each step adds h times what is told in it."""
    nothing, told = Fit(((0.0, 0.0),) * 5), (1.0, 2.0, 0.5, 0.0, 3.0)
    solver = replace(fitted(EULER, states(10, seed=0)), up=nothing, down=replace(nothing, told=told))
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    expected = sum(t * float(h) for t, h in zip(told, GRID.flip(0).diff(), strict=True))
    torch.testing.assert_close(solver(Told(), x, GRID.flip(0)), torch.full_like(x, expected))
    assert not bool(solver(Told(), x, GRID).any())
    with pytest.raises(ValueError, match="this field cannot be told another sigma than its own"):
        solver(MIXTURE.field, x, GRID.flip(0))


def test_a_direction_steps_where_its_own_nodes_are() -> None:
    """Between the ends of the grid it is given; without weights it is the method itself there."""
    inner = (0.1, 0.5, 1.0, 4.0)
    nothing = ((0.0, 0.0),) * 5
    solver = replace(fitted(EULER, states(10, seed=0)), up=Fit(nothing, nodes=inner), down=Fit(nothing))
    x = states(2, seed=3)[0]
    own = torch.tensor([NODES[0], *inner, NODES[-1]], dtype=torch.float64)
    assert solver(MIXTURE.field, x, GRID).equal(EULER(MIXTURE.field, x, own))
    assert solver(MIXTURE.field, x, GRID.flip(0)).equal(EULER(MIXTURE.field, x, GRID.flip(0)))
    for wrong in (inner[:-1], (*inner[:-1], 20.0), inner[::-1]):
        with pytest.raises(ValueError, match=r"there must be 4 nodes that rise between 0.05 and 20, but they are"):
            replace(solver, down=Fit(nothing, nodes=wrong))


def test_other_grids_are_refused() -> None:
    solver = fitted(EULER, states(10, seed=0))
    for grid in (GRID[:-1], GRID * 1.01, torch.cat([GRID, GRID[-1:] * 2])):
        with pytest.raises(ValueError, match=r"was fitted for one grid of 5 steps from 0.05 to 20, and not for this"):
            solver(MIXTURE.field, torch.zeros(1, 1, 2, 2), grid)
