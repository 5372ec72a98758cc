"""Adaptive solvers: they meet their tolerance, stay inside the interval, count honestly and fail in words."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
import torchdiffeq
from flows import GAUSSIAN, PROBLEMS, SIGMA_MAX, Field, Problem, Recorded, real, relative_error
from torch import Tensor

from ddim_ode.solvers import SOLVERS, AdaptiveSolver, Solver, SolverError, get_solver
from ddim_ode.solvers.charts import ASINH, SIGMA
from ddim_ode.solvers.scipy_adapter import SCIPY_SOLVERS, ScipySolver
from ddim_ode.solvers.torchdiffeq_adapter import TORCHDIFFEQ_SOLVERS

ADAPTIVE = [s for s in SOLVERS.values() if s.adaptive]

each_adaptive_solver = pytest.mark.parametrize("solver", ADAPTIVE, ids=lambda s: s.name)
each_scipy_solver = pytest.mark.parametrize("solver", SCIPY_SOLVERS, ids=lambda s: s.name)
each_torchdiffeq_solver = pytest.mark.parametrize("solver", TORCHDIFFEQ_SOLVERS, ids=lambda s: s.name)
each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
both_directions = pytest.mark.parametrize("ends", [(0.0, SIGMA_MAX), (SIGMA_MAX, 0.0)], ids=["encode", "decode"])


def tolerances(solver: AdaptiveSolver) -> tuple[float, float]:
    """What to test it at. At order 2 each factor of 100 takes ten times as many steps: thousands for 1e-6."""
    return (1e-4, 1e-6) if solver.order > 2 else (1e-3, 1e-4)


@both_directions
@each_problem
@pytest.mark.parametrize(
    ("solver", "tolerance"),
    [pytest.param(s, tolerance, id=f"{s.name}-{tolerance:g}") for s in ADAPTIVE for tolerance in tolerances(s)],
)
def test_tolerance_is_met(
    solver: AdaptiveSolver, tolerance: float, problem: Problem, ends: tuple[float, float]
) -> None:
    """The error at the end is at most 20 times the tolerance, relative to the state.

    A step may err by ``tolerance (1 + |x|)``: twice the tolerance where the state has size 1, its least here. The flow
    stretches errors as it stretches the state, so they add up unmagnified; over the dozens of steps that resolve
    the flow the sum comes to several times the error of one. A method whose estimate is wrong by an order, or one
    that passes the end, is beyond 20 by far.
    """
    solver = replace(solver, rtol=tolerance, atol=tolerance)
    begin, end = ends
    assert relative_error(solver(problem.field, problem.at(begin), real(ends)), problem.at(end)) < 20 * tolerance


@each_adaptive_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", [(0.0, SIGMA_MAX), (SIGMA_MAX, 0.0), (1.0, 1.01), (1.01, 1.0)])
def test_field_is_never_asked_outside_the_interval(
    solver: AdaptiveSolver, dtype: torch.dtype, ends: tuple[float, float]
) -> None:
    """On the short intervals the slow field tempts to a first step far beyond the end."""
    field = Recorded(lambda sigma, x: 1e-3 * x / (1 + sigma))
    replace(solver, rtol=1e-3, atol=1e-3)(field, torch.ones(1, 1, 2, 2, dtype=dtype), real(ends))
    slack = 1e-9 * max(ends)
    assert min(ends) - slack <= min(field.sigmas) <= max(field.sigmas) <= max(ends) + slack


@each_adaptive_solver
def test_only_the_ends_of_the_grid_matter(solver: AdaptiveSolver) -> None:
    grid = torch.linspace(0, 5, 6, dtype=torch.float64)
    solver = replace(solver, rtol=1e-3, atol=1e-3)
    on_all, on_ends = (solver(GAUSSIAN.field, GAUSSIAN.data, points) for points in (grid, grid[[0, -1]]))
    assert torch.equal(on_all, on_ends)


@each_problem
def test_stretched_variable_halves_the_cost_of_decoding(problem: Problem) -> None:
    """At one and the same tolerance, and met in both variables."""
    nfe = {}
    for chart in (ASINH, SIGMA):
        solver = replace(SOLVERS["torchdiffeq-dopri5"], chart=chart)
        field = Recorded(problem.field)
        x = solver(field, problem.at(SIGMA_MAX), real([SIGMA_MAX, 0.0]))
        assert relative_error(x, problem.data) < 20 * solver.rtol
        nfe[chart.name] = field.nfe
    assert nfe["asinh"] < 0.5 * nfe["sigma"]


@each_scipy_solver
def test_scipys_own_count_is_ours(solver: ScipySolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts the Jacobians apart; each costs us one evaluation."""
    solutions = []
    solve_ivp = scipy.integrate.solve_ivp

    def kept(*arguments: Any, **options: Any) -> Any:
        solutions.append(solve_ivp(*arguments, **options))
        return solutions[0]

    monkeypatch.setattr(scipy.integrate, "solve_ivp", kept)
    field = Recorded(GAUSSIAN.field)
    solver(field, GAUSSIAN.data, real([0.0, SIGMA_MAX]))
    assert field.nfe == solutions[0].nfev + solutions[0].njev


@each_torchdiffeq_solver
def test_torchdiffeqs_evaluations_are_ours_and_it_keeps_two_states(
    solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its evaluations are the calls of the function it is handed."""
    handed: list[Recorded] = []
    odeint = torchdiffeq.odeint

    def watched(func: Field, *arguments: Any, **options: Any) -> Tensor:
        handed.append(Recorded(func))
        states = odeint(handed[0], *arguments, **options)
        assert len(states) == 2
        return states

    monkeypatch.setattr(torchdiffeq, "odeint", watched)
    field = Recorded(GAUSSIAN.field)
    solver(field, GAUSSIAN.data, torch.linspace(0, 5, 21, dtype=torch.float64))
    assert field.nfe == handed[0].nfe > 0


def blow_up(sigma: Tensor, x: Tensor) -> Tensor:
    """From x = 1 at 0 the solution is 1 / (1 - sigma): there is none at sigma = 1."""
    return x**2


@each_adaptive_solver
def test_a_solution_that_ends_early_is_an_error_that_names_sigma(solver: AdaptiveSolver) -> None:
    with pytest.raises(SolverError, match=rf"^{solver.name}.* at sigma = ") as raised:
        replace(solver, rtol=1e-2, atol=1e-2)(blow_up, real([[[[1.0]]]]), real([0.0, 2.0]))
    sigma = float(re.search(r"at sigma = ([\d.]+)", str(raised.value))[1])
    assert sigma == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchdiffeq-dopri5", r"underflow in dt \S+"),
        ("scipy-RK45", "Required step size is less than spacing between numbers"),
    ],
)
def test_the_backends_words_are_passed_on(name: str, words: str) -> None:
    solver = get_solver(name, rtol=1e-3, atol=1e-3)
    with pytest.raises(SolverError, match=rf"^{name} stopped at sigma = \S+ of 2: {words}\. Try a larger rtol\.$"):
        solver(blow_up, real([[[[1.0]]]]), real([0.0, 2.0]))


@each_scipy_solver
def test_success_of_every_scipy_method_is_read(solver: ScipySolver, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = SimpleNamespace(success=False, message="Not today.", y=np.ones((2, 1)))
    monkeypatch.setattr(scipy.integrate, "solve_ivp", lambda *arguments, **options: failure)
    with pytest.raises(
        SolverError, match=rf"^{solver.name} stopped at sigma = 3 of 4: Not today\. Try a larger rtol\.$"
    ):
        solver(blow_up, torch.ones(1, 1, 1, 2), real([3.0, 4.0]))


def test_lsodas_reason_is_passed_on() -> None:
    """On a field that is rough at every scale. It stands in a warning, which no longer is one."""
    with pytest.raises(SolverError, match=r"^scipy-LSODA stopped at sigma = \S+ of 2: lsoda: Repeated convergence"):
        SOLVERS["scipy-LSODA"](lambda sigma, x: 1e6 * (1e12 * sigma * x).sin(), real([[[[1.0]]]]), real([0.0, 2.0]))
