"""Requests: what somebody wishes of solver, grid and class, before it is known what becomes of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ddim_ode.conditions import NO_CLASS, UNCONDITIONAL, Condition, Label
from ddim_ode.solvers import DEFAULT_SOLVER
from ddim_ode.spacings import DEFAULT_GRID, GRIDS, SCHEDULER, Tau

if TYPE_CHECKING:
    from ddim_ode.latents import Latent
    from ddim_ode.model import Model
    from ddim_ode.solvers import Solver

DEFAULT_STEPS = 50
# Of all timesteps, up to which a picture that is edited is encoded.
DEFAULT_STRENGTH = 0.7
# The nodes of a grid are all in memory, and nobody needs more.
MOST_STEPS = 1_000_000
MOST_IN_A_BATCH = 1_000_000
# In the place of a number of images that go through the network together.
AUTO_BATCH: Final = "auto"


# Of 13 solvers on 6 grids these err least from infinity and to it, for a mixture of 20 Gaussians in 48 dimensions: by
# RMS 0.012 (images) and 0.012 (latents) in 10 steps, where the defaults of other families err 0.071 and 0.054, Euler
# 0.096 and 0.20; in 20 steps 0.002 and 0.001.
FLOW_SOLVER, FLOW_GRID = "angle-ab3", "trailing"


def default_solver(model: Model, grid: str | tuple[float, ...] | None) -> str:
    """The solver that is taken on ``grid``, None for the default one, where none is asked for, nor calibrated."""
    uniform = not isinstance(grid, str) or grid == SCHEDULER or isinstance(GRIDS.get(grid), Tau)
    return FLOW_SOLVER if model.process.family == "flow" and uniform else DEFAULT_SOLVER


def default_grid(model: Model, solver: Solver) -> str:
    """The grid that ``solver`` is given where none is asked for: for logarithms of sigma one in log sigma."""
    return FLOW_GRID if model.process.family == "flow" and not solver.positive else DEFAULT_GRID


class PlanError(ValueError):
    """Wishes that do not go together; the message says which, and what to ask for instead."""


@dataclass(frozen=True)
class Request:
    """What somebody wishes; None leaves a wish open.

    ``solver``      a key of ``solvers.SOLVERS``, or 'auto' for what the calibration of the model says.
    ``steps``       number of steps, at least 1; for solvers that do not choose their own.
    ``grid``        a key of ``GRIDS``, 'scheduler' for the nodes that a pipeline's own scheduler walks, or the
                    timesteps themselves, rising; any sequence of them becomes a tuple.
    ``clean_end``   noise level at which the image is taken: one of ``grids.CLEAN_ENDS``.
    ``rtol, atol``  tolerances of an adaptive solver.
    ``exact``       for encoding: undo exactly what decoding with ``solver``, or with euler, will do.
    ``label``       a class of the model, by its name or its number; 'none' for no class.
    ``guidance``    W towards that class: 1 for the class as it was learned, more for more of it.

    Raises:
        PlanError: if ``steps`` is no integer from 1 to MOST_STEPS, or ``grid`` neither a name nor numbers.
    """

    solver: str | None = None
    steps: int | None = None
    grid: str | tuple[float, ...] | None = None
    clean_end: str | None = None
    rtol: float | None = None
    atol: float | None = None
    exact: bool = False
    label: Label | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and not (isinstance(self.steps, int) and 1 <= self.steps <= MOST_STEPS):
            raise PlanError(f"steps must be an integer from 1 to {MOST_STEPS}, but it is {self.steps!r}")
        if not isinstance(self.grid, str | None):
            object.__setattr__(self, "grid", _timesteps(self.grid))


def _timesteps(grid: Iterable[float]) -> tuple[float, ...]:
    try:
        return tuple(float(t) for t in grid)
    except (TypeError, ValueError, OverflowError):
        raise PlanError(f"a grid must be a name or a list of timesteps, but it is {grid!r:.80}") from None


def towards_classes(requests: Sequence[Request], latents: Sequence[Latent | None], model: Model) -> Sequence[Request]:
    """The ``requests``; where some ask for a class, those that ask for none are without the guidance of the others."""
    plain = [replace(request, guidance=None) for request in requests]
    asked = [plan_condition(request, model, latent) for request, latent in zip(plain, latents, strict=True)]
    if all(condition.label is None for condition in asked):
        return requests
    return [
        without if condition.label is None else request
        for request, without, condition in zip(requests, plain, asked, strict=True)
    ]


def plan_condition(request: Request, model: Model, latent: Latent | None = None) -> Condition:
    """What the request asks of the network; where it names no class, what ``latent`` was encoded with."""
    if model.asked is not None and request.guidance is not None:
        raise PlanError(
            f"guidance {request.guidance:g} of a pipeline is towards its prompt; say it to the session, or to asked_for"
        )
    own = latent.condition if latent else UNCONDITIONAL
    unnamed = own.label is not None and model.classes[own.label : own.label + 1] == (str(own.label),)
    label: Label | None = own.label if unnamed or own.name in (None, NO_CLASS) else own.name
    label = label if request.label is None else request.label
    guidance = own.guidance if request.guidance is None else request.guidance
    condition = model.condition(label, guidance=guidance)
    if condition.label is None and request.guidance not in (None, 1):
        raise PlanError(f"guidance {guidance:g} must be towards a class; name one, or leave it out")
    return condition
