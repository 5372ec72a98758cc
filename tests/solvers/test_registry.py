"""The registry: what it holds, how it is asked, and what it costs to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torchdiffeq._impl.odeint import SOLVERS as TORCHDIFFEQS_OWN

import solvers
from solvers import SOLVERS, AdaptiveSolver, Solver, get_solver, way_back
from solvers.scipy_adapter import SCIPY_SOLVERS
from solvers.torchdiffeq_adapter import TORCHDIFFEQ_SOLVERS

each_name = pytest.mark.parametrize("name", SOLVERS)
each_adaptive_name = pytest.mark.parametrize("name", [name for name, s in SOLVERS.items() if s.adaptive])
each_fixed_name = pytest.mark.parametrize("name", [name for name, s in SOLVERS.items() if not s.adaptive])


@each_name
def test_get_solver_finds_every_solver_by_its_name(name: str) -> None:
    assert get_solver(name) == SOLVERS[name]
    assert get_solver(name).name == name


@each_name
def test_settings_are_enough_to_get_the_solver_again(name: str) -> None:
    settings = SOLVERS[name].settings
    tolerances = {key: settings[key] for key in ("rtol", "atol") if key in settings}
    assert get_solver(settings["name"], **tolerances) == SOLVERS[name]
    assert bool(tolerances) == SOLVERS[name].adaptive


@each_name
def test_every_solver_names_its_source(name: str) -> None:
    assert SOLVERS[name].source


@each_name
def test_the_way_back_is_the_same_method_or_the_one_that_it_undoes(name: str) -> None:
    solver = SOLVERS[name]
    assert way_back(solver).name == (solver.undoes or name)
    assert not way_back(solver).undoes


def test_no_solver_is_lost_to_another_of_the_same_name() -> None:
    own = [name for name in SOLVERS if not name.startswith(("torchdiffeq-", "scipy-"))]
    assert len(SOLVERS) == len(own) + len(TORCHDIFFEQ_SOLVERS) + len(SCIPY_SOLVERS)


def test_adaptive_solvers_are_those_with_a_tolerance() -> None:
    assert all(solver.adaptive == isinstance(solver, AdaptiveSolver) for solver in SOLVERS.values())


def test_unknown_solver_lists_the_choices() -> None:
    choices = ", ".join(sorted(SOLVERS))
    with pytest.raises(ValueError, match=f"^unknown solver 'huen'; choose one of: {choices}$"):
        get_solver("huen")


@each_adaptive_name
def test_tolerances_replace_the_default_ones_each_by_itself(name: str) -> None:
    assert get_solver(name, rtol=1e-3).settings == {**SOLVERS[name].settings, "rtol": 1e-3}
    assert get_solver(name, atol=1e-4).settings == {**SOLVERS[name].settings, "atol": 1e-4}


@each_adaptive_name
@pytest.mark.parametrize("tolerance", ["rtol", "atol"])
@pytest.mark.parametrize("value", [0.0, -1e-3, 1e-14, 1.0, float("nan"), float("inf")])
def test_tolerance_out_of_range_is_refused(name: str, tolerance: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{tolerance} must be at least 1e-13 and below 1, but it is {value:g}$"):
        get_solver(name, **{tolerance: value})


@each_fixed_name
@pytest.mark.parametrize("tolerance", ["rtol", "atol"])
def test_tolerance_for_fixed_steps_is_refused(name: str, tolerance: str) -> None:
    with pytest.raises(ValueError, match=rf"^solver '{name}' takes fixed steps and has no tolerances; set the number"):
        get_solver(name, **{tolerance: 1e-3})


def test_torchdiffeq_solvers_are_all_but_the_left_out() -> None:
    left_out = {"explicit_adams", "implicit_adams", "fixed_adams", "scipy_solver"}
    assert {solver.method for solver in TORCHDIFFEQ_SOLVERS} == set(TORCHDIFFEQS_OWN) - left_out


@pytest.mark.parametrize("solver", TORCHDIFFEQ_SOLVERS, ids=lambda s: s.name)
def test_order_of_torchdiffeq_solvers_is_torchdiffeqs(solver: Solver) -> None:
    assert solver.order == TORCHDIFFEQS_OWN[solver.method].order


def test_importing_solvers_imports_no_backend() -> None:
    script = "import sys, solvers; print(sorted({'torch', 'scipy', 'torchdiffeq', 'numpy'} & set(sys.modules)))"
    root = Path(solvers.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
