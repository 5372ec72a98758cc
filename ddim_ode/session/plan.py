"""Plans: which solver and which grid, for what somebody wishes of a model, and why. The one place that decides it.

What a request leaves open is filled in, in this order: by the latent that is to be decoded, by the model's calibration
for the number of steps, by the defaults. Where that is not what one would expect, the plan says so in ``why``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isinf
from typing import TYPE_CHECKING

from ddim_ode.conditions import UNCONDITIONAL, Condition
from ddim_ode.grids import ENDS, VP_END, full_range, grid_of_timesteps, make_grid
from ddim_ode.session.learned import learned_solver
from ddim_ode.session.request import (
    DEFAULT_STEPS,
    PlanError,
    Request,
    default_grid,
    default_solver,
    plan_condition,
    towards_classes,
)
from ddim_ode.solvers import (
    AUTO,
    DEFAULT_SOLVER,
    ExactInverse,
    ReversibleSolver,
    Solver,
    exact_inverse,
    get_solver,
    solver_from,
    way_back,
)
from ddim_ode.spacings import GRIDS, SCHEDULER

if TYPE_CHECKING:
    from ddim_ode.calibration import Entry
    from ddim_ode.grids import Grid
    from ddim_ode.latents import Latent
    from ddim_ode.models import Model

# The grid of sampling with noise, whose steps are those of DDPM.
NOISE_GRID = "trailing"


@dataclass(frozen=True)
class Plan:
    """What will be done.

    ``solver``     the one to encode with; ``back`` the one to decode with.
    ``grid``       the nodes of the walk, in both directions.
    ``exact``      whether decoding begins with both states of a reversible solver, and so leads back exactly.
    ``why``        sentences about what is not as one might expect, for people to read.
    ``condition``  what the network is asked for.
    ``otherwise``  sentences that say that a pipeline is asked for something else than where a latent was encoded.
    """

    solver: Solver
    back: Solver
    grid: Grid
    exact: bool = False
    why: tuple[str, ...] = ()
    condition: Condition = UNCONDITIONAL
    otherwise: tuple[str, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """All sentences."""
        return (*self.why, *self.otherwise)


def check_cost(solver: Solver, grid: Grid, max_nfe: int) -> None:
    """Refuse what is known beforehand to take more evaluations than ``max_nfe``.

    Raises:
        PlanError: if it does; the message says how many steps would do.
    """
    steps = grid.steps
    least = solver.nfe(steps) or (0 if solver.adaptive else steps)
    if least > max_nfe:
        most = bisect_right(range(1, steps), max_nfe, key=lambda fewer: solver.nfe(fewer) or fewer)
        fewer = f"take at most {most} steps, or " if most else ""
        raise PlanError(
            f"solver '{solver.name}' takes {least} network evaluations or more for {steps} steps, and the limit is "
            f"{max_nfe}; {fewer}raise --max-nfe"
        )


def plan_encoding(request: Request, model: Model) -> Plan:
    """The plan to encode pictures with ``model``, and to decode them again.

    Raises:
        ValueError: if wishes do not go together, with one another (PlanError) or with the model.
    """
    return _from_clean_end(plan_sampling(request, model), model)


def _from_clean_end(plan: Plan, model: Model) -> Plan:
    """The ``plan``, if ``model`` has a slope at its clean end, where encoding begins."""
    if plan.grid.sigmas[0] == 0 and not model.process.at_zero:
        raise PlanError(
            f"model '{model.name}' predicts {model.process.predicts} and has no slope at sigma = 0, where encoding "
            "would begin; take the clean end sigma-min"
        )
    return plan


def plan_sampling(request: Request, model: Model) -> Plan:
    """The plan to decode random latents with ``model``. Errors are those of ``plan_encoding``."""
    condition = plan_condition(request, model)
    entry, why = _calibrated(request, model, condition, request.steps or DEFAULT_STEPS)
    if entry:
        solver = _solver_of(entry, model)
        return Plan(solver, way_back(solver), entry.grid, why=why, condition=condition)
    plan = _wished(request, model, t_end=None)
    return replace(plan, why=why + plan.why)


def _wished(request: Request, model: Model, *, t_end: float | None) -> Plan:
    """The plan of what is wished, whatever a calibration says, up to the timestep ``t_end``; the last one if None."""
    condition, solver = plan_condition(request, model), _solver(request, model)
    grid, why = _grid(request, model, solver, t_end=t_end)
    return Plan(solver, way_back(solver), grid, isinstance(solver, ReversibleSolver), why, condition)


def plan_edit(request: Request, model: Model, strength: float) -> Plan:
    """The plan to encode pictures up to a part of all timesteps, the ``strength``, and to decode them from there.

    Raises:
        ValueError: as ``plan_encoding`` does, and for a strength that is less than a timestep or more than 1.
    """
    last = len(model.schedule) - 1
    if not 1 <= strength * last <= last:
        raise PlanError(f"the strength must be from {1 / last:.3g}, a timestep, to 1, but it is {strength:g}")
    if (isinstance(request.grid, tuple) or request.grid == SCHEDULER) and strength < 1:
        raise PlanError("a list of timesteps says where it ends; take --strength 1, or the name of a grid")
    calibrated = request.solver in (None, AUTO)
    usual = default_solver(model, request.grid)
    wished = replace(request, solver=usual) if calibrated else request
    plan = _from_clean_end(_wished(wished, model, t_end=None if strength == 1 else strength * last), model)
    # Below the end of its grid, or as another class, a calibration says nothing.
    why = (f"{AUTO} is {usual}: a calibration is for the whole way and one guidance",) if calibrated else ()
    return replace(plan, why=plan.why + why)


def plan_noise(request: Request, model: Model) -> Plan:
    """The plan for sampling with noise in each step, whose cost and grid are those of Euler's method.

    Raises:
        PlanError: if a solver is asked for.
    """
    if request.solver:
        raise PlanError(f"--eta and --sigma-hat are steps of their own; leave out --solver {request.solver}")
    if model.process.family != "vp" or isinf(model.schedule.sigma_max):
        raise PlanError(
            f"noise in each step is DDPM's, and model '{model.name}' is none with a finite end; leave out --eta and "
            "--sigma-hat"
        )
    condition = plan_condition(request, model)
    solver = replace(_solver(replace(request, solver="euler"), model), name="ancestral")
    # Noise is added to what a step predicts, and so there is no evaluation at sigma = 0.
    grid, _ = _grid(replace(request, grid=request.grid or NOISE_GRID), model, solver, t_end=None, evaluates_end=False)
    return Plan(solver, solver, grid, condition=condition)


def plan_decoding(request: Request, latent: Latent, model: Model) -> Plan:
    """The plan to decode ``latent`` as it was encoded, but for what is asked for.

    Raises:
        ValueError: as ``plan_encoding``; LatentError if the latent was made with a calibration that the model does not
            have now, or lies at another noise level than the one where the grid begins.
    """
    from ddim_ode.latents import LatentError

    condition = plan_condition(request, model, latent)
    steps = DEFAULT_STEPS if latent.grid.name == ENDS else latent.grid.steps
    why: tuple[str, ...] = ()
    if AUTO in (request.solver, latent.solver["name"]):
        as_encoded = latent.solver["name"] == AUTO and request.steps in (None, steps)
        as_encoded = as_encoded and model.strength(condition) == _strength(latent, model)
        entry, why = _calibrated(request, model, condition, request.steps or steps)
        if as_encoded and _agrees(request, latent.grid):
            solver = _calibrated_way_back(latent, model)
            return Plan(solver, solver, latent.grid, condition=condition)
        if entry and latent.reached_by(entry.grid):
            solver = _solver_of(entry, model)
            return Plan(solver, solver, entry.grid, why=(*why, *_left_behind(latent, condition)), condition=condition)
        if entry:
            usual = default_solver(model, request.grid)
            why = (f"{AUTO} is {usual}: the calibration for {entry.grid.steps} steps ends at another sigma",)
    own = _solver(request, model, latent)
    solver = own if request.solver not in (None, AUTO) else way_back(own)
    grid = latent.grid
    if grid.name == ENDS and request.solver is None and not own.adaptive:
        raise LatentError(
            f"the latent is damaged: solver '{own.name}' takes steps, but it names none; name them with --solver and "
            "--steps, if you know them"
        )
    # What chooses its own steps takes none of Euler's to infinity, but begins beside it.
    wishes = request.steps or request.grid or request.clean_end or (solver.adaptive and isinf(grid.sigma_T))
    if wishes or (grid.name == ENDS and not solver.adaptive):
        name = request.grid or (None if solver.adaptive else _named(grid) or default_grid(model, solver))
        wished = replace(request, grid=name, clean_end=request.clean_end or grid.clean_end)
        if not (request.grid or solver.adaptive or _named(grid) or grid.name == ENDS):
            why += (f"on {name}, since the nodes of the latent, '{grid.name}', are for the steps and ends they have",)
        grid, more = _grid(wished, model, solver, steps=steps, t_end=latent.grid.timesteps[-1])
        why += more
    latent.check_reaches(grid)
    _check_ends(solver, grid, model)
    same = solver.settings == {**solver.settings, **latent.solver} and grid == latent.grid
    same = same and condition.terms == latent.condition.terms and _same_asked(latent, model)
    exact = latent.companion is not None and same and isinstance(solver, ReversibleSolver)
    why += () if exact else _left_behind(latent, condition)
    there = own if way_back(own) == solver else solver
    return Plan(there, solver, grid, exact, why, condition, _asked_otherwise(latent, model))


def _named(grid: Grid) -> str | None:
    """The name of ``grid``, if others can be made by it."""
    return grid.name if grid.name in GRIDS else None


def _asked_otherwise(latent: Latent, model: Model) -> tuple[str, ...]:
    """Say that the pipeline of ``model`` is asked for something else than where ``latent`` was encoded, if it is."""
    from ddim_ode.asked import describe

    if not latent.asked or not model.asked or _same_asked(latent, model):
        return ()
    return (f"asked for {describe(model.asked)}, and encoded as {describe(latent.asked)}",)


def _same_asked(latent: Latent, model: Model) -> bool:
    """Whether the pipeline of ``model``, if it is of one, is asked for what ``latent`` was encoded as."""
    from ddim_ode.asked import same_asked

    if latent.asked is None or model.asked is None:
        return latent.asked is model.asked
    return same_asked(latent.asked, model.asked)


def plan_interpolation(
    requests: Sequence[Request], latents: Sequence[Latent | None], model: Model
) -> tuple[Plan, list[Condition]]:
    """The plan to interpolate between pictures and ``latents``: that of the first latent, if there is one.

    For each corner there is a request, which differ in their classes alone, and a latent or None; what each is asked
    for is returned too. Companions play no part, since what lies between has none.

    Raises:
        ValueError: as ``plan_decoding`` does; and if a calibrated solver is to serve more than one guidance.
    """
    requests = towards_classes(requests, latents, model)
    conditions = [plan_condition(request, model, latent) for request, latent in zip(requests, latents, strict=True)]
    known = [(request, latent) for request, latent in zip(requests, latents, strict=True) if latent]
    if known:
        plan = plan_decoding(*known[0], model)
        without = ("without the companion: what lies between latents has none",) if plan.exact else ()
        others = (text for _, latent in known[1:] for text in _asked_otherwise(latent, model))
        # Each once: several corners may be asked for the same.
        otherwise = tuple(dict.fromkeys((*plan.otherwise, *others)))
        plan = replace(plan, exact=False, why=plan.why + without, otherwise=otherwise)
    else:
        plan = plan_encoding(requests[0], model)
    strengths = {model.strength(condition) for condition in conditions}
    if plan.solver.name == AUTO and len(strengths) > 1:
        several = " and ".join(f"{strength:g}" for strength in sorted(strengths))
        raise PlanError(
            f"the calibration is for one guidance, and corners have {several}; name a solver, such as --solver "
            f"{DEFAULT_SOLVER}"
        )
    return plan, conditions


def _agrees(request: Request, grid: Grid) -> bool:
    """Whether a calibrated solver on ``grid`` is what the request asks for, whatever its steps."""
    return (
        request.solver in (None, AUTO)
        and request.grid in (None, grid.name)
        and request.clean_end in (None, grid.clean_end)
        and request.rtol is None
        and request.atol is None
    )


def _calibrated(
    request: Request, model: Model, condition: Condition, steps: int
) -> tuple[Entry | None, tuple[str, ...]]:
    """What the calibration of ``model`` says for so many steps, if it is asked; and why it is not followed."""
    if request.exact or request.solver not in (None, AUTO):
        return None, ()
    strength = model.strength(condition)
    entry = model.calibration.find(steps, strength) if model.calibration else None
    falls_back = f"{AUTO} is {default_solver(model, request.grid)}"
    if not isinstance(request.grid, str | None):
        return None, (f"{falls_back}: the calibration has grids of its own, and not these timesteps",)
    if entry is None:
        guided = f" with guidance {strength:g}" if strength != 1 else ""
        return None, (f"{falls_back}: model '{model.name}' is not calibrated for {steps} steps{guided}",)
    for what, wish, own in (
        ("grid", request.grid, entry.grid.name),
        ("clean end", request.clean_end, entry.grid.clean_end),
    ):
        if wish not in (None, own):
            return None, (f"{falls_back}: the calibration for {steps} steps is for the {what} '{own}', not '{wish}'",)
    # What takes fixed steps refuses a tolerance, and so does the default solver.
    return (entry if _agrees(request, entry.grid) else None), ()


def _calibrated_way_back(latent: Latent, model: Model) -> Solver:
    from ddim_ode.latents import LatentError

    entry = model.calibration.find(latent.grid.steps, _strength(latent, model)) if model.calibration else None
    solver = _solver_of(entry, model) if entry else None
    if solver is None or solver.settings != latent.solver:
        raise LatentError(
            f"the latent was encoded with a calibration for {latent.grid.steps} steps that model '{model.name}' does "
            f"not have now; name a solver, such as --solver {DEFAULT_SOLVER}"
        )
    return solver


def _strength(latent: Latent, model: Model) -> float:
    """The guidance that ``latent`` was encoded with, as ``Model.strength`` has it."""
    from ddim_ode.asked import guidance_of

    asked = latent.asked if model.asked is not None else None
    return latent.condition.strength if asked is None else guidance_of(asked)


def _solver_of(entry: Entry, model: Model) -> Solver:
    from ddim_ode.calibration import CalibrationError

    try:
        return learned_solver(entry.solver, entry.grid, entry.up, entry.down)
    except ValueError as error:
        raise CalibrationError(
            f"the calibration of model '{model.name}' for {entry.grid.steps} steps is damaged: {error}; make it anew "
            "with: calibrate"
        ) from error


def _left_behind(latent: Latent, condition: Condition) -> tuple[str, ...]:
    """Say that the companion plays no part under this ``condition``, if ``latent`` has one."""
    if latent.companion is None:
        return ()
    own = f"{latent.solver['name']} in {latent.grid.steps} steps on {latent.grid.name}"
    own += f" and {latent.condition}" if condition.terms != latent.condition.terms else ""
    return (f"without the companion, which leads back exactly with {own} alone",)


def _solver(request: Request, model: Model, latent: Latent | None = None) -> Solver:
    """The solver of the request; where it names none, that of ``latent``, and else the default."""
    if request.exact:
        if (request.rtol, request.atol) != (None, None):
            raise PlanError("--exact undoes steps to a tolerance of its own; leave out --rtol and --atol")
        return exact_inverse(request.solver or "euler")
    settings = latent.solver if latent and request.solver in (None, latent.solver["name"]) else {}
    name = request.solver or settings.get("name", AUTO)
    if name == AUTO:
        return get_solver(default_solver(model, request.grid), rtol=request.rtol, atol=request.atol)
    wished = {key: value for key, value in (("rtol", request.rtol), ("atol", request.atol)) if value is not None}
    tuned = solver_from({"name": name, **settings})
    return get_solver(tuned.name, **wished) if wished and not tuned.adaptive else tuned.tuned(wished)


def _grid(
    request: Request,
    model: Model,
    solver: Solver,
    *,
    steps: int = DEFAULT_STEPS,
    t_end: float | None,
    evaluates_end: bool = True,
) -> tuple[Grid, tuple[str, ...]]:
    """The grid of the request, up to the timestep ``t_end`` (the last one if None); and what is to be said of it."""
    clean_end = request.clean_end or ("sigma-min" if solver.positive else None)
    why: tuple[str, ...] = ()
    name = request.grid or default_grid(model, solver)
    if clean_end is None and evaluates_end and not model.process.at_zero:
        clean_end = "sigma-min"
        why = _moved_end(name, model.process.predicts)
    if solver.adaptive:
        if request.steps or request.grid:
            raise PlanError(
                f"solver '{solver.name}' chooses its own steps and takes no --steps or --grid; "
                "set --rtol and --atol instead"
            )
        return full_range(model.schedule, clean_end=clean_end or "sigma-min", t_end=t_end), ()
    if name == SCHEDULER:
        grid = _scheduler_grid(model, request.steps or steps)
        if request.clean_end not in (None, grid.clean_end):
            raise PlanError(f"the scheduler's own grid ends at {grid.clean_end}; leave out --clean-end")
    elif isinstance(name, tuple):
        grid = grid_of_timesteps(model.schedule, name, clean_end=clean_end or "zero")
        if request.steps not in (None, grid.steps):
            raise PlanError(f"these timesteps make {grid.steps} steps, not {request.steps}; leave out --steps")
    else:
        grid = make_grid(model.schedule, name, request.steps or steps, clean_end=clean_end, t_end=t_end)
    _check_ends(solver, grid, model)
    return grid, why


def _scheduler_grid(model: Model, steps: int) -> Grid:
    """The nodes of the scheduler of the model's pipeline. Errors are those of ``pipelines.scheduler_grid``."""
    from ddim_ode import pipelines

    return pipelines.scheduler_grid(model, steps)


def _moved_end(grid: str | tuple[float, ...], predicts: str) -> tuple[str, ...]:
    """Say that the clean end is not the grid's own, if it is not, for a network without a slope at sigma = 0."""
    own = "zero" if isinstance(grid, tuple) or grid not in GRIDS else GRIDS[grid].clean_end
    if own != "zero":
        return ()
    return (f"the image is taken at sigma-min: a network that predicts {predicts} has no slope at sigma = 0",)


def _check_ends(solver: Solver, grid: Grid, model: Model) -> None:
    """Raise PlanError if the solver does not take one of the ends of the grid, or the model has no such end."""
    if grid.clean_end == VP_END and model.process.family != "vp":
        raise PlanError(
            f"the clean end {VP_END} is of the family 'vp', and model '{model.name}' is of '{model.process.family}'; "
            "take sigma-min"
        )
    if isinf(grid.sigma_T) and not solver.endless and isinstance(solver, ReversibleSolver | ExactInverse):
        raise PlanError(
            f"solver '{solver.name}' cannot begin at sigma = infinity, where the noise of model '{model.name}' is, and "
            "lead back exactly; take reversible-heun, or the exact inverse of euler"
        )
    if isinf(grid.sigma_T) and not solver.endless and grid.steps < 2:
        raise PlanError(f"solver '{solver.name}' needs 2 steps or more from sigma = infinity, but there is 1")
    if solver.positive and grid.sigmas[0] == 0:
        raise PlanError(
            f"solver '{solver.name}' cannot reach sigma = 0, where the clean end 'zero' is; "
            "pass --clean-end sigma-min, or take another solver"
        )
