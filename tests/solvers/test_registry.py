"""The registry: what it holds, how it is asked, and what it costs to import."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from torchdiffeq._impl.odeint import SOLVERS as TORCHDIFFEQS_OWN

from ddim_ode import solvers
from ddim_ode.solvers import AUTO, SOLVERS, AdaptiveSolver, Solver, get_solver, solver_from, way_back
from ddim_ode.solvers.torchdiffeq_adapter import TORCHDIFFEQ_SOLVERS

each_name = pytest.mark.parametrize("name", SOLVERS)
each_adaptive_name = pytest.mark.parametrize("name", [name for name, s in SOLVERS.items() if s.adaptive])
each_fixed_name = pytest.mark.parametrize("name", [name for name, s in SOLVERS.items() if not s.adaptive])


@each_name
def test_get_solver_finds_every_solver_by_its_name(name: str) -> None:
    assert get_solver(name) == SOLVERS[name]
    assert get_solver(name).name == name


# Other values than the registered ones, of every setting that some solver writes down.
OTHERS = {
    "rtol": 1e-3,
    "atol": 1e-4,
    "chart": "angle-0.7",
    "mixing": 0.9,
    "coupling": 0.99,
    "gamma": 0.5,
    "tolerance": 1e-5,
}


@each_name
def test_settings_are_enough_to_get_the_solver_again(name: str) -> None:
    """With the values it is registered with, and with others; also through a file, where numbers are numbers."""
    solver = SOLVERS[name]
    assert solver_from(solver.settings) == solver
    others = {key: OTHERS[key] for key in solver.settings if key != "name"}
    tuned = solver_from({"name": name, **others})
    assert tuned.settings == {"name": name, **others}
    assert solver_from(json.loads(json.dumps(tuned.settings))) == tuned
    assert (tuned != solver) == bool(others)


@each_name
def test_every_solver_pickles(name: str) -> None:
    assert pickle.loads(pickle.dumps(SOLVERS[name])) == SOLVERS[name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "huen"}, "^unknown solver 'huen'; choose one of: "),
        ({}, "^unknown solver 'None'"),
        ({"name": "auto", "fit": "0123"}, "^'auto' means what the calibration of a model says"),
        ({"name": "heun", "gamma": 1.0}, "^solver 'heun' has no setting 'gamma'; it has none$"),
        ({"name": "bdia", "mixing": 1.0}, "^solver 'bdia' has no setting 'mixing'; its settings are: gamma$"),
        ({"name": "bdia", "gamma": "1"}, "^gamma of solver 'bdia' must be a number, but it is '1'$"),
        ({"name": "bdia", "gamma": True}, "^gamma of solver 'bdia' must be a number, but it is True$"),
        ({"name": "bdia", "gamma": 1.5}, r"^gamma must be above 0 and at most 1, but it is 1.5$"),
        ({"name": "edict", "mixing": 0.0}, "^mixing must be above 0 and at most 1, but it is 0$"),
        ({"name": "mccallum-foster-rk4", "coupling": float("nan")}, "^coupling must be above 0 and at most 1, .* nan$"),
        ({"name": "exact-euler", "tolerance": -1.0}, "^tolerance must be above 0 and at most 1, but it is -1$"),
        ({"name": "scipy-RK45", "rtol": 2}, "^rtol must be at least 1e-13 and below 1, but it is 2$"),
        ({"name": "scipy-RK45", "chart": "cone"}, "^unknown chart 'cone'; choose one of: angle, .*, or angle-SD"),
        ({"name": "scipy-RK45", "chart": "angle-0"}, "^unknown chart 'angle-0'; choose"),
    ],
)
def test_settings_of_no_solver_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solver_from(settings)


@each_name
def test_every_solver_names_its_source(name: str) -> None:
    assert SOLVERS[name].source


@each_name
def test_the_way_back_is_the_same_method_or_the_one_that_it_undoes(name: str) -> None:
    solver = SOLVERS[name]
    assert way_back(solver).name == (solver.undoes or name)
    assert not way_back(solver).undoes


@each_name
def test_no_solver_is_lost_to_another_of_the_same_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"^there are two solvers with the name '{name}'; give one of them another$"):
        solvers._by_name([*SOLVERS.values(), replace(SOLVERS["euler"], name=name)])


def test_no_solver_takes_the_name_of_what_a_calibration_says() -> None:
    with pytest.raises(ValueError, match=r"^there are two solvers with the name 'auto'"):
        solvers._by_name([replace(SOLVERS["euler"], name=AUTO)])


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
def test_tolerance_out_of_range_is_refused(name: str) -> None:
    for tolerance, value in product(("rtol", "atol"), (0.0, -1e-3, 1e-14, 1.0, float("nan"), float("inf"))):
        with pytest.raises(ValueError, match=rf"^{tolerance} must be at least 1e-13 and below 1, but it is {value:g}$"):
            get_solver(name, **{tolerance: value})


@each_fixed_name
def test_tolerance_for_fixed_steps_is_refused(name: str) -> None:
    for tolerance in ("rtol", "atol"):
        with pytest.raises(ValueError, match=rf"^solver '{name}' takes fixed steps and has no tolerances; set the"):
            get_solver(name, **{tolerance: 1e-3})


def test_torchdiffeq_solvers_are_all_but_the_left_out() -> None:
    left_out = {"explicit_adams", "implicit_adams", "fixed_adams", "scipy_solver"}
    assert {solver.method for solver in TORCHDIFFEQ_SOLVERS} == set(TORCHDIFFEQS_OWN) - left_out


@pytest.mark.parametrize("solver", TORCHDIFFEQ_SOLVERS, ids=lambda s: s.name)
def test_order_of_torchdiffeq_solvers_is_torchdiffeqs(solver: Solver) -> None:
    assert solver.order == TORCHDIFFEQS_OWN[solver.method].order


def test_importing_solvers_imports_no_backend() -> None:
    backends = "{'torch', 'scipy', 'torchdiffeq', 'numpy'}"
    script = f"import sys, ddim_ode.solvers; print(sorted({backends} & set(sys.modules)))"
    root = Path(solvers.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_chart_that_ends_above_zero_is_known_of_an_adaptive_solver() -> None:
    solver = solver_from({"name": "per-sample-bosh3", "chart": "data"})
    assert solver.positive
    assert not solver_from({"name": "per-sample-bosh3"}).positive


def test_a_setting_larger_than_a_float_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^rtol of solver 'scipy-RK45' is larger than a float can be$"):
        solver_from({"name": "scipy-RK45", "rtol": 10**400})


def test_without_a_step_back_there_is_no_inverse() -> None:
    with pytest.raises(ValueError, match="gamma must be above 0 and at most 1, but it is 0"):
        solver_from({"name": "bdia", "gamma": 0})
