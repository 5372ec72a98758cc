"""PNDM: a pseudo Runge-Kutta start and then the pseudo linear multistep method.

Both are classical methods of order 4 whose Euler step is that of DDIM, which in sigma is Euler's own. What makes them
"pseudo" is left of them here in two places: the start takes its middle slopes half way in time, not in sigma, and
the multistep method has the coefficients of equal steps.

Liu, Ren, Lin, Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv 2202.09778, called PNDM below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import copysign
from typing import TYPE_CHECKING

from .base import combine
from .charts import VP_TIME, vp_sigma
from .fixed import FixedStepSolver
from .multistep import ConstantAdamsBashforthStep

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field

STARTING_STEPS = 3


def middle_in_time(sigma: float, sigma_next: float) -> float:
    """The sigma that lies, in the time of the variance-preserving SDE, half way between two of one sign."""
    time = (VP_TIME.v(sigma) + VP_TIME.v(sigma_next)) / 2
    return copysign(vp_sigma(time), sigma + sigma_next)


@dataclass(frozen=True)
class PseudoNumericalStep:
    """Three Runge-Kutta steps of four evaluations, then one evaluation a step. PNDM, Algorithm 2.

    ``middle``  the sigma of the second and third stage of a Runge-Kutta step, from those at its ends.

    Its order is 1 unless neighbouring steps differ little, and 2 where they do: neither the weights 1/6, 2/3, 1/6 nor
    those of equal steps are then off by more than O(h).
    """

    middle: Callable[[float, float], float] = middle_in_time

    def __call__(
        self, field: Field, sigma: Tensor, sigma_next: Tensor, x: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        known = state or ()
        if len(known) == STARTING_STEPS:
            return ConstantAdamsBashforthStep()(field, sigma, sigma_next, x, known)
        h = sigma_next - sigma
        middle = sigma.new_tensor(self.middle(float(sigma), float(sigma_next)))
        first = field(sigma, x)
        second = field(middle, x + (middle - sigma) * first)
        third = field(middle, x + (middle - sigma) * second)
        fourth = field(sigma_next, x + h * third)
        return combine(x, h, (1 / 6, 1 / 3, 1 / 3, 1 / 6), (first, second, third, fourth)), (*known, first)


PSEUDO_SOLVERS: tuple[FixedStepSolver, ...] = (
    FixedStepSolver(
        name="pndm",
        order=1,
        nfe_per_step=1,
        first_steps=(4,) * STARTING_STEPS,
        source="PNDM, three Runge-Kutta steps and then 4 slopes with the coefficients of equal steps: arXiv 2202.09778",
        step=PseudoNumericalStep(),
        only_sigma=True,
    ),
)
