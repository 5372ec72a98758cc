"""The exact inverse of a one-step method: for each step the state that the method takes to where we are.

A step of a decoder takes x at sigma to S(x) at a smaller sigma. To undo it is to solve S(x) = z for x, which implicit
methods do in the same way: undoing Euler's steps is the implicit Euler method. The solution is found by iteration,

    x <- x + r,    r = c (z - S(x)),

1 / c being what S multiplies by in the flow of Gaussian data, where one iteration is enough. Anderson's acceleration
takes, instead of the last x + r, the combination of the last few for which that of their r is least.

Where the steps are large S may take several x to one z, or none. For Euler's method and a small network of CIFAR-10
the iteration fails, for one image or another, where the step to the image is from sigma = 0.17 or more, as on 20 steps
evenly spaced in t.

Anderson, "Iterative Procedures for Nonlinear Integral Equations", Journal of the ACM 12 (1965); in the form of Walker,
Ni, "Anderson Acceleration for Fixed-Point Iterations", SIAM Journal on Numerical Analysis 49 (2011), Eq. (2.1). To
invert the steps of DDIM by a fixed point: Pan et al., "Effective Real Image Editing with Accelerated Iterative
Diffusion Inversion", arXiv 2309.04907.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from .base import SolverError, by_member, check_finite, check_within, column, refuse_companion, rms
from .charts import ANGLE, SIGMA
from .fixed import FixedStepSolver, WalkingSolver
from .runge_kutta import RUNGE_KUTTA_SOLVERS

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field
    from .charts import Chart
    from .fixed import Step


@dataclass(frozen=True, kw_only=True)
class ExactInverse(WalkingSolver):
    """Walks to where the steps of ``base``, on the same grid turned round, lead back from; it evaluates as it needs.

    ``base``            a method without memory, or it could not be undone step by step, and without a chart.
    ``tolerance``       of what a step of the base leads to, by root mean square relative to where it should lead. The
                        default is some times the rounding of a network in float32, and the least in float32.
    ``accepted``        what is good enough where ``max_iterations`` for one step do not meet the tolerance: some steps
                        of a network come near a state and do not reach it. A note of the solution says so.
    ``depth``           how many of the last iterations are combined.

    Every member of a batch has its own iteration, and what first meets the tolerance is its result. Gradients are
    those of the iteration, and somewhat less exact than its result.
    """

    tunable: ClassVar[tuple[str, ...]] = ("tolerance",)

    base: FixedStepSolver
    tolerance: float = 1e-6
    accepted: float = 1e-4
    max_iterations: int = 150
    depth: int = 5

    def __post_init__(self) -> None:
        check_within("tolerance", self.tolerance, 0, 1)

    def _begin(self, grid: Tensor, companion: Tensor | None) -> tuple[Step, Any]:
        refuse_companion(self, companion)
        chart = self.chart_on(grid) or SIGMA

        def step(
            field: Field, u: Tensor, u_next: Tensor, x: Tensor, worst: tuple[float, float]
        ) -> tuple[Tensor, tuple[float, float]]:
            """A step undone; ``worst`` is by how much the worst step so far was missed, and its sigma."""
            x, missed = self._undo(field, x, u, u_next, chart)
            return x, max(worst, (missed, chart.sigma(float(u_next))))

        return step, (0.0, 0.0)

    def _notes(self, worst: tuple[float, float]) -> tuple[str, ...]:
        missed, sigma = worst
        if not missed:
            return ()
        return (
            f"{self.name}: the step to sigma = {sigma:.6g} is undone to {missed:.2g} of the state only, and "
            f"not to the tolerance of {self.tolerance:g}; more steps, or another grid, may be undone better",
        )

    def _undo(self, field: Field, x: Tensor, u: Tensor, u_next: Tensor, chart: Chart) -> tuple[Tensor, float]:
        """What a step of the base from ``u_next`` to ``u``, both ``()``, takes to ``x``, ``(B, ...)``, in the chart.

        And by how much it takes it elsewhere, as a part of the state of the worst member; 0 within the tolerance.
        """
        import torch

        here, there = (chart.sigma(float(end)) for end in (u, u_next))
        shrunk = float(self.base.step(chart.pull_back(_Gaussian()), u_next, u, torch.ones(()).double(), None)[0])
        if shrunk == 0:
            raise SolverError(
                f"{self.name}: one step of {self.base.name} from sigma = {there:.6g} to sigma = {here:.6g} leaves "
                "nothing of where it began, and cannot be undone; take 2 steps or more"
            )
        stretch = 1 / shrunk
        guess = best = stretch * x
        tolerance = max(self.tolerance, 8 * torch.finfo(x.dtype).eps)
        size, least = rms(guess), torch.full((len(x),), inf, dtype=x.dtype, device=x.device)
        mixer = _Anderson(self.depth)
        for _ in range(self.max_iterations):
            residual = stretch * (x - self.base.step(field, u_next, u, guess, None)[0])
            check_finite(residual, self.name, "state", chart.sigma(float(u_next)))
            error = rms(residual)
            nearer = (error < least) & (least > tolerance * size)
            best, least = guess.where(column(nearer, x), best), error.where(nearer, least)
            if bool((least <= tolerance * size).all()):
                return best, 0.0
            guess = mixer.improve(guess, residual)
        if bool((least <= self.accepted * size).all()):
            return best, float((least / size).nan_to_num().max())
        raise SolverError(
            f"{self.name}: {self.max_iterations} iterations did not find what {self.base.name} takes to the state at "
            f"sigma = {here:.6g} from sigma = {there:.6g}; try more steps, another grid, or a reversible solver, and a "
            "network in float32 if it is in half precision"
        )

    def nfe(self, steps: int) -> None:
        return None


class _Gaussian:
    """The field of data of the standard deviation of images."""

    def __call__(self, sigma: Tensor, x: Tensor) -> Tensor:
        return ANGLE.growth(float(sigma)) * x

    def origin(self, far: Tensor) -> Tensor:
        return 0 * far


class _Anderson:
    """The combination of up to ``depth`` + 1 guesses and residuals, by itself for each member of a batch.

    It begins anew when it has so many: near a step that can hardly be undone old ones hold the iteration up.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._last: tuple[Tensor, Tensor] | None = None
        self._moves: list[Tensor] = []
        self._changes: list[Tensor] = []

    def improve(self, guess: Tensor, residual: Tensor) -> Tensor:
        """The next guess; all ``(B, ...)``."""
        import torch

        if len(self._moves) == self._depth:
            self._moves, self._changes, self._last = [], [], None
        if self._last is not None:
            self._moves.append(by_member(guess - self._last[0]))
            self._changes.append(by_member(residual - self._last[1]))
        self._last = guess, residual
        if not self._moves:
            return guess + residual
        changes = torch.stack(self._changes, -1)
        weights = _least_squares(changes.detach(), by_member(residual.detach()))
        moved = (torch.stack(self._moves, -1) + changes) @ weights
        better: Tensor = guess + residual - moved.reshape(guess.shape)
        return better


def _least_squares(columns: Tensor, target: Tensor) -> Tensor:
    """w, ``(B, k, 1)``, with columns w nearest to the target: ``(B, D, k)`` and ``(B, D)``.

    A column of zeros, of a member that no longer moves, has weight 0, as a slight ridge sees to.
    """
    import torch

    lengths = columns.norm(dim=1, keepdim=True)
    lengths = lengths.where(lengths > 0, torch.ones_like(lengths))
    columns = columns / lengths
    ridge = 1e4 * torch.finfo(columns.dtype).eps * torch.eye(columns.shape[-1]).to(columns)
    weights: Tensor = torch.linalg.solve(columns.mT @ columns + ridge, columns.mT @ target.unsqueeze(-1)) / lengths.mT
    return weights


def _exact(base: FixedStepSolver) -> ExactInverse:
    return ExactInverse(
        name=f"exact-{base.name}",
        order=base.order,
        source=f"the exact inverse of {base.name}, by Anderson's iteration",
        undoes=base.name,
        base=base,
    )


# One-step methods that reach sigma = 0.
EXACT_SOLVERS: tuple[ExactInverse, ...] = tuple(_exact(base) for base in RUNGE_KUTTA_SOLVERS if not base.positive)
