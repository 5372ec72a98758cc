"""What a wanted quality costs: the least effort that reaches it, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from math import inf

from torch import Tensor

from ddim_ode.images import psnr
from ddim_ode.models import Model
from ddim_ode.ode import EvaluationLimitError
from ddim_ode.session.plan import Plan, plan_encoding
from ddim_ode.session.request import MOST_STEPS, PlanError, Request, default_grid, default_solver
from ddim_ode.session.worker import Worker
from ddim_ode.solvers import AUTO, Solver, SolverError, get_solver
from ddim_ode.spacings import GRIDS, Tau

# The solvers that are looked through for the cheapest, where none is named.
CANDIDATES = (AUTO, "dpmpp2m", "reab2")

# In dB; more than float64 can tell.
MOST_PSNR = 1000


def least(quality: Callable[[int], float], target: float, most: int) -> int | None:
    """The least effort in [1, ``most``] whose ``quality`` is ``target`` or more; None if none that it tries is so good.

    By doubling and then halving. What is returned has been tried; a lesser one is missed if between it and this one
    the quality is below the target once more.
    """
    failed, effort = 0, min(1, most)
    while effort > failed and not quality(effort) >= target:
        failed, effort = effort, min(2 * effort, most)
    if effort <= failed:
        return None
    while effort - failed > 1:
        middle = (failed + effort) // 2
        if quality(middle) >= target:
            effort = middle
        else:
            failed = middle
    return effort


def worst_psnr(worker: Worker, batches: Iterable[Tensor], plan: Plan) -> float:
    """The PSNR, in dB, of the image that comes back worst, encoded and decoded by ``plan``.

    Of a pipeline with an autoencoder it is to the images that this makes of the states themselves.

    ``batches``  of states, each ``(B, C, H, W)``: of images, with pixels in [-1, 1].

    Errors are those of ``codec.encode``.
    """
    errors: list[float] = []
    for x_0 in batches:
        walker = worker.walker([plan.condition] * len(x_0))
        found, _ = walker.encode(x_0, plan.grid, plan.solver)
        back, _ = walker.decode(found.x, plan.grid, plan.back, companion=found.companion)
        errors += worker.errors(x_0, back.x).tolist()
    return min(map(psnr, errors))


def cheapest(
    request: Request,
    model: Model,
    worker: Worker,
    batches: Callable[[], Iterable[Tensor]],
    target: float,
    *,
    max_nfe: int,
    tried: Callable[[str], object],
) -> Request:
    """The request with the solver and the number of steps that bring every image back well at the least cost.

    ``batches``  gives the images anew at each call, in batches ``(B, C, H, W)``.
    ``target``   the PSNR, in dB, that every image must reach, in at most ``max_nfe`` evaluations one way.
    ``tried``    is told of each setting that was tried, in a line.

    Raises:
        ValueError: if there is no such setting, or the request fixes the number of steps (PlanError).
    """
    if not 0 < target <= MOST_PSNR:
        raise ValueError(f"the PSNR to reach must be above 0 and at most {MOST_PSNR} dB, but it is {target:g}")
    if request.steps or isinstance(request.grid, tuple):
        raise PlanError("--target-psnr finds the number of steps; leave out --steps and lists of timesteps")
    reached_of: list[float] = []

    @cache
    def reached(name: str, steps: int) -> float:
        wished = replace(request, solver=name, steps=steps)
        called = _method(wished, model).name
        try:
            plan = plan_encoding(wished, model)
            called = plan.solver.name
            reached_of.append(worst_psnr(worker, batches(), plan))
        except (SolverError, EvaluationLimitError, PlanError) as error:  # of a plan, that it is of too few steps
            tried(f"tried {called}, {steps} steps: {' '.join(str(error).split())}")
            return -inf
        tried(f"tried {called}, {steps} steps: {reached_of[-1]:.2f} dB")
        return reached_of[-1]

    found, limit = None, max_nfe
    for name in (request.solver,) if request.solver else CANDIDATES:
        most = _most_steps(replace(request, solver=name), model, limit)
        if most:
            plan_encoding(replace(request, solver=name, steps=most), model)  # or else it is another wish that is wrong
        if most and found and reached(name, most) < target:
            continue  # not the cheapest, so there is no need to begin from one step
        steps = least(partial(reached, name), target, most)
        if steps:
            found = replace(request, solver=name, steps=steps)
            limit = (_method(found, model).nfe(steps) or 0) - 1
    if found is None:
        best = f"the best one tried reached {max(reached_of):.2f} dB" if reached_of else "nothing came back"
        raise ValueError(
            f"no setting within --max-nfe {max_nfe} brings every picture back at {target:g} dB; {best}; "
            "ask for less, or raise the limit"
        )
    return found


def _method(request: Request, model: Model) -> Solver:
    """The solver of the request, or the usual one, whose steps cost what those of a calibrated one do."""
    named = request.solver not in (None, AUTO)
    return get_solver(request.solver if named and request.solver else default_solver(model, request.grid))


def _most_steps(request: Request, model: Model, nfe: int) -> int:
    """The most steps that the solver of the request can take for ``nfe`` evaluations, and on its grid."""
    solver = _method(request, model)
    if solver.adaptive:
        raise PlanError(f"solver '{solver.name}' chooses its own steps; leave out --target-psnr")
    affordable = (steps for steps in range(nfe, 0, -1) if (solver.nfe(steps) or 0) <= nfe)
    of_timesteps = isinstance(GRIDS.get(str(request.grid or default_grid(model, solver))), Tau)
    return min(next(affordable, 0), len(model.schedule) - 1 if of_timesteps else MOST_STEPS)
