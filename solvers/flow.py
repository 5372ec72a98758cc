"""Methods of flow matching, in its time u = sigma / (1 + sigma) and its state x / (1 + sigma); they reach infinity.

Wang et al., "Taming Rectified Flow for Inversion and Editing", arXiv 2411.04746 (RF-Solver);
Deng et al., "FireFlow: Fast Inversion of Rectified Flow for Image Semantic Editing", arXiv 2412.07517.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .charts import FLOW
from .fixed import FixedStepSolver
from .runge_kutta import RUNGE_KUTTA_SOLVERS

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field


def reused_midpoint(field: Field, u: Tensor, u_next: Tensor, x: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor]:
    """The midpoint rule that goes to the middle with the slope of the last middle; at first with that at ``u``.

    ``u`` and ``u_next`` are ``()``; ``x`` and the last ``slope`` are ``(B, ...)``.
    """
    h = u_next - u
    slope = field(u, x) if slope is None else slope
    slope = field(u + h / 2, x + h / 2 * slope)
    return x + h * slope, slope


_MIDPOINT = next(solver for solver in RUNGE_KUTTA_SOLVERS if solver.name == "midpoint")
FLOW_SOLVERS: tuple[FixedStepSolver, ...] = (
    # Its Taylor step with the derivative from a difference over half a step is the midpoint rule.
    replace(_MIDPOINT, name="rf-solver", source="RF-Solver, the midpoint in flow time: arXiv 2411.04746", chart=FLOW),
    FixedStepSolver(
        name="fireflow",
        order=2,
        nfe_per_step=1,
        first_steps=(2,),
        source="FireFlow, the midpoint in flow time with the slope of the last one: arXiv 2412.07517",
        step=reused_midpoint,
        chart=FLOW,
    ),
)
