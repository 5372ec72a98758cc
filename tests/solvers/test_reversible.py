"""Reversible methods walk back the way they came, to rounding, on a field that no order of accuracy could save."""

from __future__ import annotations

from dataclasses import replace
from math import log2

import pytest
import torch
from flows import (
    CORRELATED,
    GAUSSIAN,
    MIXTURE,
    SIGMA_MAX,
    real,
    relative_error,
    steps_in_proportion,
    steps_of_two_sizes,
)
from torch import Tensor, nn

from ddim_ode.solvers import SOLVERS, ReversibleSolver, Solution
from ddim_ode.solvers.reversible import BDIA, EDICT, TwoStepSolver

REVERSIBLE = [s for s in SOLVERS.values() if isinstance(s, ReversibleSolver)]

each_reversible_solver = pytest.mark.parametrize("solver", REVERSIBLE, ids=lambda s: s.name)
each_two_step_solver = pytest.mark.parametrize(
    "solver", [s for s in REVERSIBLE if isinstance(s, TwoStepSolver)], ids=lambda s: s.name
)
both_directions = pytest.mark.parametrize(
    ("begin", "end"), [(0.01, SIGMA_MAX), (SIGMA_MAX, 0.01)], ids=["encode", "decode"]
)


def rough(sigma: Tensor, x: Tensor) -> Tensor:
    """As a lightly trained network may be: without bound on its change in sigma, and with one in x."""
    return torch.sin(2 * x / (1 + sigma)) + (13 * sigma).cos()


@each_reversible_solver
@pytest.mark.parametrize("steps", [2, 6, 20, 50])
@both_directions
def test_the_pair_leads_back_exactly(solver: ReversibleSolver, begin: float, end: float, steps: int) -> None:
    """Both of its states do, to the pair that leads to it again. What O-BELM rounds on the way down grows going up."""
    tolerance = 1e-6 if solver.name == "o-belm" and begin > end else 1e-10
    grid = steps_in_proportion(begin, end, steps)
    start = CORRELATED.data * max(begin, 1)
    there = solver.solve(rough, start, grid)
    back = solver.solve(rough, there.x, grid.flip(0), there.companion)
    assert relative_error(back.x, start) < tolerance
    again = solver.solve(rough, back.x, grid, back.companion)
    assert relative_error(pair(again), pair(there)) < tolerance


def pair(solution: Solution) -> Tensor:
    """Both states, ``(2 B, ...)``."""
    assert solution.companion is not None
    return torch.cat([solution.x, solution.companion])


def network() -> nn.Sequential:
    """Random, with float32 weights that are large enough for slopes that change much."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))
    for weights in net.parameters():
        weights.data *= 2
    return net


@each_reversible_solver
@pytest.mark.parametrize("steps", [6, 10])
def test_a_network_in_single_precision_is_walked_back_to_rounding(solver: ReversibleSolver, steps: int) -> None:
    """Mean square of pixels in [0, 1]. EDICT's authors compute in float64, for a reason that shows here."""
    net = network()
    x_0 = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    grid = steps_in_proportion(0.01, SIGMA_MAX, steps)

    def field(sigma: Tensor, x: Tensor) -> Tensor:
        scale = (1 + sigma.float() ** 2).sqrt()
        return (sigma.float() * x / scale + net(x / scale)) / scale

    with torch.no_grad():
        there = solver.solve(field, x_0, grid)
        x = solver.solve(field, there.x, grid.flip(0), there.companion).x
        alone = solver(field, solver(field, x_0, grid), grid.flip(0))
    assert x.dtype == torch.float32
    assert float((x - x_0).square().mean()) / 4 < (1e-8 if solver.name == "edict" else 1e-12)
    assert float((alone - x_0).square().mean()) / 4 > 5e-8


@each_reversible_solver
@both_directions
def test_one_state_alone_does_not(solver: ReversibleSolver, begin: float, end: float) -> None:
    grid = steps_in_proportion(begin, end, 10)
    start = CORRELATED.data * max(begin, 1)
    back = solver(rough, solver(rough, start, grid), grid.flip(0))
    assert relative_error(back, start) > 1e-3


@each_reversible_solver
def test_a_call_begins_with_one_state_and_gives_one(solver: ReversibleSolver) -> None:
    grid = real([0.5, 1.0, 3.0])
    there = solver.solve(CORRELATED.field, CORRELATED.data, grid)
    assert torch.equal(there.x, solver(CORRELATED.field, CORRELATED.data, grid))
    assert there.companion is not None
    assert there.companion.shape == there.x.shape
    assert not torch.equal(there.companion, there.x)


def test_more_steps_make_edicts_encoder_worse() -> None:
    """While its decoder gets better; and with nothing mixed in, so does the encoder."""

    def errors(solver: EDICT, begin: float, end: float) -> list[float]:
        grids = (steps_in_proportion(begin, end, steps) for steps in (32, 64, 128))
        return [relative_error(solver(GAUSSIAN.field, GAUSSIAN.at(begin), g), GAUSSIAN.at(end)) for g in grids]

    up, down = errors(SOLVERS["edict"], 0.3, 10.3), errors(SOLVERS["edict"], 10.3, 0.3)
    assert up[0] < 0.1 < up[1] < 100 < up[2]
    assert down[0] > down[1] > down[2]
    unmixed = errors(replace(SOLVERS["edict"], mixing=1.0), 0.3, 10.3)
    assert log2(unmixed[1] / unmixed[2]) == pytest.approx(1, abs=0.2)


def test_bdia_with_less_than_all_of_the_step_back_encodes_badly() -> None:
    """Errors grow by 1 / gamma a step on the way up; with almost none, on the way down, it is Euler's method."""
    grid = steps_in_proportion(0.3, 10.3, 20)

    def second_moment(solver: BDIA) -> float:
        return float(solver(GAUSSIAN.field, GAUSSIAN.at(0.3), grid).square().mean())

    truth = float(GAUSSIAN.at(10.3).square().mean())
    assert second_moment(SOLVERS["bdia"]) == pytest.approx(truth, rel=0.01)
    assert second_moment(replace(SOLVERS["bdia"], gamma=0.5)) > 10 * truth
    euler = SOLVERS["euler"](MIXTURE.field, MIXTURE.at(10.3), grid.flip(0))
    no_step_back = replace(SOLVERS["bdia"], gamma=1e-14)(MIXTURE.field, MIXTURE.at(10.3), grid.flip(0))
    assert relative_error(no_step_back, euler) < 1e-12


def test_o_belm_encodes_badly_where_steps_grow() -> None:
    """Over all sigmas of a schedule in 20 steps: worse than it decodes, and worse than BDIA."""
    grid = steps_in_proportion(0.01, SIGMA_MAX, 20)
    low, high = GAUSSIAN.at(0.01), GAUSSIAN.at(SIGMA_MAX)
    errors = {name: relative_error(SOLVERS[name](GAUSSIAN.field, low, grid), high) for name in ("o-belm", "bdia")}
    assert 3 * errors["bdia"] < errors["o-belm"]
    assert relative_error(SOLVERS["o-belm"](GAUSSIAN.field, high, grid.flip(0)), low) < errors["o-belm"] / 2


@each_two_step_solver
def test_leapfrogging_needs_steps_that_change_slowly(solver: TwoStepSolver) -> None:
    """Or else it is of order 1; of order 2 it is in ``test_fixed``."""
    errors = [
        relative_error(solver(MIXTURE.field, MIXTURE.at(0.3), steps_of_two_sizes(0.3, 10.3, n)), MIXTURE.at(10.3))
        for n in (128, 256)
    ]
    assert log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.2)
