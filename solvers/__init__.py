"""Solvers of initial value problems in torch: ``solver.solve(field, x, grid) -> Solution``. See ``solvers.base``.

Importing this package is cheap: torch, torchdiffeq and scipy are imported when a solver runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .adaptive import AdaptiveSolver as AdaptiveSolver
from .base import Cost as Cost
from .base import Seen as Seen
from .base import Solution as Solution
from .base import Solver as Solver
from .base import SolverError as SolverError
from .base import rms as rms
from .charts import ANGLE as ANGLE
from .charts import VARIANCE
from .charts import Chart as Chart
from .exact import EXACT_SOLVERS
from .exact import ExactInverse as ExactInverse
from .fitted import Fit as Fit
from .fitted import FittedSolver
from .fitted import corrected as corrected
from .fixed import FixedStepSolver as FixedStepSolver
from .fixed import in_chart
from .flow import FLOW_SOLVERS
from .multistep import ADAMS_BASHFORTH_SOLVERS, MULTISTEP_SOLVERS
from .per_sample import PER_SAMPLE_SOLVERS
from .per_sample import PerSampleSolver as PerSampleSolver
from .pndm import PSEUDO_SOLVERS
from .reversible import REVERSIBLE_SOLVERS
from .reversible import ReversibleSolver as ReversibleSolver
from .runge_kutta import RUNGE_KUTTA_SOLVERS
from .scipy_adapter import SCIPY_SOLVERS
from .target import TARGET_SOLVERS
from .torchdiffeq_adapter import TORCHDIFFEQ_SOLVERS

# What the calibration of a model says; and what is taken where that says nothing, or there is none.
AUTO = "auto"
DEFAULT_SOLVER = "dpmpp3m"

# The registry: command line, tests, plots and docs read it.
FIXED_STEP_SOLVERS: tuple[FixedStepSolver, ...] = (
    *RUNGE_KUTTA_SOLVERS,
    *MULTISTEP_SOLVERS,
    *PSEUDO_SOLVERS,
    *TARGET_SOLVERS,
    *FLOW_SOLVERS,
    in_chart(RUNGE_KUTTA_SOLVERS[0], VARIANCE),
    *(in_chart(s, ANGLE) for s in RUNGE_KUTTA_SOLVERS + ADAMS_BASHFORTH_SOLVERS if not s.positive),
)


def _by_name(solvers: Iterable[Solver]) -> dict[str, Solver]:
    """The registry of ``solvers``; ValueError where one would take the place of another."""
    registry: dict[str, Solver] = {}
    for solver in solvers:
        if solver.name in (AUTO, *registry):
            raise ValueError(f"there are two solvers with the name '{solver.name}'; give one of them another")
        registry[solver.name] = solver
    return registry


SOLVERS = _by_name(
    (
        *FIXED_STEP_SOLVERS,
        *REVERSIBLE_SOLVERS,
        *EXACT_SOLVERS,
        *PER_SAMPLE_SOLVERS,
        *TORCHDIFFEQ_SOLVERS,
        *SCIPY_SOLVERS,
    )
)


def way_back(solver: Solver) -> Solver:
    """The solver for the other direction: the one that ``solver`` undoes, or itself."""
    return SOLVERS[solver.undoes] if solver.undoes else solver


def exact_inverse(name: str) -> ExactInverse:
    """The solver that undoes the one called ``name`` exactly, step by step.

    Raises:
        ValueError: if there is none.
    """
    solver = SOLVERS.get(f"exact-{name}")
    if not isinstance(solver, ExactInverse):
        possible = ", ".join(sorted(solver.undoes for solver in EXACT_SOLVERS))
        raise ValueError(f"the steps of '{name}' cannot be undone one by one; choose one of: {possible}")
    return solver


def correctable(name: str) -> FixedStepSolver:
    """The solver called ``name``, if corrections can be fitted to its steps.

    Raises:
        ValueError: if there is no such solver, or it does not take fixed steps of one state.
    """
    solver = get_solver(name)
    if not isinstance(solver, FixedStepSolver):
        possible = ", ".join(sorted(solver.name for solver in FIXED_STEP_SOLVERS))
        raise ValueError(f"solver '{name}' does not take fixed steps of one state; choose one of: {possible}")
    return solver


def fitted_solver(name: str, nodes: tuple[float, ...], up: Fit, down: Fit) -> Solver:
    """The solver called ``name`` with what was fitted for the two directions of one grid, ``nodes``, rising: 'auto'.

    Without any weights it is the solver itself.

    Raises:
        ValueError: as ``correctable`` and ``FittedSolver`` do.
    """
    base = correctable(name)
    if not up.weights and not down.weights:
        return base
    source = f"{base.source}; with corrections fitted to one model"
    return FittedSolver(
        name=AUTO, order=base.order, source=source, positive=base.positive, base=base, nodes=nodes, up=up, down=down
    )


def finer(solver: Solver) -> Solver:
    """The same method with a tenth of its tolerances; a fixed-step one, without corrections, takes a finer grid."""
    if isinstance(solver, FittedSolver):
        return solver.base
    if not isinstance(solver, AdaptiveSolver):
        return solver
    least = 1e-13
    return replace(solver, rtol=max(solver.rtol / 10, least), atol=max(solver.atol / 10, least))


def solver_from(settings: Mapping[str, object]) -> Solver:
    """The registered solver of these ``settings``, such as a latent file holds them: ``Solver.settings`` read back.

    Raises:
        ValueError: if there is no solver of that ``name``, a setting that it does not have, or a value that is not
            allowed. The name 'auto' is refused: what it means is written in the calibration of a model.
    """
    others = {key: value for key, value in settings.items() if key != "name"}
    name = settings.get("name")
    if name == AUTO:
        raise ValueError(f"'{AUTO}' means what the calibration of a model says; decode it with a Session of the model")
    return get_solver(str(name)).tuned(others)


def get_solver(name: str, *, rtol: float | None = None, atol: float | None = None) -> Solver:
    """The solver called ``name``, with tolerances other than its own where they are given.

    Raises:
        ValueError: if there is no such solver, if a fixed-step solver is given a tolerance, or if a tolerance
            lies outside [1e-13, 1).
    """
    if name not in SOLVERS:
        raise ValueError(f"unknown solver '{name}'; choose one of: {', '.join(sorted(SOLVERS))}")
    solver = SOLVERS[name]
    if rtol is None and atol is None:
        return solver
    if not isinstance(solver, AdaptiveSolver):
        raise ValueError(f"solver '{name}' takes fixed steps and has no tolerances; set the number of steps instead")
    return replace(solver, rtol=solver.rtol if rtol is None else rtol, atol=solver.atol if atol is None else atol)
