"""The exact inverse of one-step methods: what it leads to, the method leads back from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flows import MIXTURE, SIGMA_MAX, Recorded, real, relative_error, steps_in_proportion
from torch import Tensor, nn

from ddim_ode.solvers import SOLVERS, ExactInverse, SolverError, exact_inverse, way_back
from ddim_ode.solvers.exact import EXACT_SOLVERS

each_exact_solver = pytest.mark.parametrize("solver", EXACT_SOLVERS, ids=lambda s: s.name)
both_directions = pytest.mark.parametrize(
    ("begin", "end"), [(0.01, SIGMA_MAX), (SIGMA_MAX, 0.01)], ids=["encode", "decode"]
)


@each_exact_solver
@both_directions
@pytest.mark.parametrize("steps", [3, 10])
def test_the_base_leads_back_exactly(solver: ExactInverse, begin: float, end: float, steps: int) -> None:
    """Which it does not by its own order: the steps are large."""
    grid = steps_in_proportion(begin, end, steps)
    start, back = MIXTURE.at(begin), way_back(solver)
    x = replace(solver, tolerance=1e-13)(MIXTURE.field, start, grid)
    assert relative_error(back(MIXTURE.field, x, grid.flip(0)), start) < 1e-11
    assert relative_error(back(MIXTURE.field, back(MIXTURE.field, start, grid), grid.flip(0)), start) > 1e-4


def test_undoing_euler_is_the_implicit_euler_method() -> None:
    """On dx/dsigma = -x the step is x / (1 + h)."""
    x = replace(SOLVERS["exact-euler"], tolerance=1e-14)(lambda sigma, x: -x, real([[1.0, 2.0]]), real([0.0, 1.0, 1.5]))
    torch.testing.assert_close(x, real([[1 / 3, 2 / 3]]), rtol=1e-13, atol=0)


@each_exact_solver
def test_the_tolerance_is_what_it_costs(solver: ExactInverse) -> None:
    """And each step of the way back is that near to where it should lead."""
    grid = steps_in_proportion(0.01, SIGMA_MAX, 1)
    nfe = []
    for tolerance in (1e-3, 1e-6, 1e-9):
        field = Recorded(MIXTURE.field)
        x = replace(solver, tolerance=tolerance)(field, MIXTURE.data, grid)
        assert relative_error(way_back(solver)(MIXTURE.field, x, grid.flip(0)), MIXTURE.data) < tolerance
        nfe.append(field.nfe)
    assert nfe[0] <= nfe[1] < nfe[2]


def test_members_of_a_batch_wait_for_each_other_where_they_are() -> None:
    """The second one has a long way to go: at the first, which has arrived, that changes no bit but by rounding."""
    strength = real([0.1, 1.2]).reshape(2, 1)

    def field(sigma: Tensor, x: Tensor) -> Tensor:
        return strength[: len(x)] * (3 * x).sin()

    grid, start = real([0.5, 1.0, 2.0]), real([[0.3, -0.2, 0.4], [0.5, 0.1, -0.7]])
    alone, together = Recorded(field), Recorded(field)
    first = SOLVERS["exact-euler"](alone, start[:1], grid)
    both = SOLVERS["exact-euler"](together, start, grid)
    assert together.nfe > alone.nfe + 3
    torch.testing.assert_close(both[:1], first, rtol=1e-14, atol=0)


def test_acceleration() -> None:
    """Against the plain iteration, which is that of depth 0."""
    grid = steps_in_proportion(0.01, SIGMA_MAX, 10)
    nfe = {}
    for depth in (0, 5):
        field = Recorded(MIXTURE.field)
        replace(SOLVERS["exact-euler"], tolerance=1e-10, depth=depth)(field, MIXTURE.at(0.01), grid)
        nfe[depth] = field.nfe
    assert nfe[5] < 0.7 * nfe[0]


def test_a_network_in_single_precision_is_undone_to_its_rounding() -> None:
    """The mean square error of pixels in [0, 1], with a state in float64 and with one in float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))
    x_0 = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    grid = steps_in_proportion(0.01, SIGMA_MAX, 10)

    def field(sigma: Tensor, x: Tensor) -> Tensor:
        scale = float((1 + sigma**2).sqrt())
        return (float(sigma) * x / scale + 3 * net((x / scale).float()).to(x)) / scale

    with torch.no_grad():
        for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-11)):
            x = SOLVERS["exact-euler"](field, x_0.to(dtype), grid)
            back = SOLVERS["euler"](field, x, grid.flip(0))
            assert back.dtype == dtype
            assert float((back - x_0).square().mean()) / 4 < limit


def test_a_step_that_cannot_be_undone_is_an_error_that_names_sigma() -> None:
    """Euler's step from 2 to 1 takes every x to 0."""
    with pytest.raises(
        SolverError,
        match=r"^exact-euler: 150 iterations did not find what euler takes to the state at sigma = 1 from sigma = 2;",
    ):
        SOLVERS["exact-euler"](lambda sigma, x: x, real([[1.0]]), real([1.0, 2.0]))


def test_what_can_be_undone_is_found_by_its_name() -> None:
    assert exact_inverse("heun") == SOLVERS["exact-heun"]
    possible = sorted(solver.undoes for solver in SOLVERS.values() if isinstance(solver, ExactInverse))
    assert {"euler", "heun", "midpoint", "rk4"} <= set(possible)
    words = f"the steps of 'dpmpp3m' cannot be undone one by one; choose one of: {', '.join(possible)}"
    with pytest.raises(ValueError, match=f"^{words}$"):
        exact_inverse("dpmpp3m")


def test_what_comes_near_enough_is_accepted() -> None:
    """The nearest there was, when the iterations are used up; and no more than that is off."""
    hasty = replace(SOLVERS["exact-euler"], tolerance=1e-13, max_iterations=4)
    grid = steps_in_proportion(0.01, SIGMA_MAX, 1)
    with pytest.warns(UserWarning, match=r"^exact-euler: the step to sigma = 157\.\S+ is undone to ") as found:
        x = replace(hasty, accepted=1e-1)(MIXTURE.field, MIXTURE.data, grid)
    error = relative_error(SOLVERS["euler"](MIXTURE.field, x, grid.flip(0)), MIXTURE.data)
    assert 1e-11 < error < 1e-1
    assert "and not to the tolerance of 1e-13" in str(found[0].message)
    with pytest.raises(SolverError, match=r"4 iterations did not find what euler takes to the state at sigma = 0\.01 "):
        replace(hasty, accepted=1e-12)(MIXTURE.field, MIXTURE.data, grid)
