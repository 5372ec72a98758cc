"""Embedded Runge-Kutta pairs whose steps are chosen for each member of the batch by itself: ``per-sample-NAME``.

The field is called once for each stage, with all members that are still on their way, each at its own sigma: sigma has
shape ``(A,)`` and x ``(A, ...)``, A being their number. So a member's result does not depend on its batch, but for the
rounding of the field, and an easy one does not pay for a hard one: it leaves the batch when it has arrived.

Notation: u is the variable of the chart, y the state in it, h a signed step in u.

Sources: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I" (1993), called HNW below, and "II" (1996);
Bogacki, Shampine, "A 3(2) pair of Runge-Kutta formulas", Applied Mathematics Letters 2 (1989);
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from .adaptive import AdaptiveSolver
from .base import (
    Cost,
    Solution,
    SolverError,
    by_member,
    check_grid,
    column,
    combine,
    field_of,
    refuse_companion,
    rms,
)
from .charts import ANGLE

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field
    from .charts import Chart

# A step is chosen a little shorter than the estimate allows, and changes by no more than these factors. HNW, II.4.
SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0
# The exponents of the last estimate and of the one before, times the order of the estimate. HNW II, IV.2, Eq. (2.43c).
LAST, BEFORE = 0.7, 0.4
# The least step, as a part of the interval.
LEAST_STEP = 1e-13


@dataclass(frozen=True)
class EmbeddedPair:
    """An explicit Runge-Kutta method with an estimate of its error; its nodes are the row sums of a. HNW, II.4.

    ``a``      the weights of the slopes before each stage. The last row is the step itself, so that the slope of the
               last stage is the first one of the next step.
    ``error``  the weights of the estimate: those of the step less those of its companion.
    ``order``  p such that the estimate is O(h^p).
    """

    a: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    order: int


@dataclass(frozen=True, kw_only=True)
class PerSampleSolver(AdaptiveSolver):
    """A pair in the chart's variable; the steps of a member follow from its own estimates, by a PI controller.

    The field must take sigma of shape ``(A,)``, and any part of the batch; one whose members differ is asked for the
    field of those that are on their way.
    """

    pair: EmbeddedPair

    def solve(self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None) -> Solution:
        import torch

        check_grid(grid)
        refuse_companion(self, companion)
        slopes = _Slopes(field, self.chart, self.name, self.chart.nodes(grid[[0, -1]]))
        walk = self._begin(slopes, self.chart.enter(x, grid[0]))
        accepted, rejected = torch.zeros(2, len(x), dtype=torch.int64)
        arrived = [walk.only(walk.u == slopes.end)]
        while len(walk.member):
            walk, good = self._attempt(slopes, walk)
            accepted[walk.member] += good
            rejected[walk.member] += ~good
            arrived.append(walk.only(walk.u == slopes.end))
            walk = walk.only(walk.u != slopes.end)
        members = torch.cat([part.member for part in arrived])
        y = torch.cat([part.y for part in arrived])[members.argsort().to(x.device)]
        evaluations = 2 + (accepted + rejected) * len(self.pair.a)
        return Solution(self.chart.leave(y, grid[-1]), cost=Cost(accepted, rejected, evaluations))

    def _begin(self, slopes: _Slopes, y: Tensor) -> _Walk:
        """The walk at its beginning: all members, their first slopes, and steps by HNW, II.4, "Starting Step Size".

        The probe of that rule is kept inside the interval.
        """
        import torch

        member = torch.arange(len(y))
        u = torch.full((len(y),), slopes.begin, dtype=torch.float64)
        slope = slopes(u, y, member)
        allowed = self.atol + self.rtol * y.detach().abs()
        size, speed = _norm(y / allowed), _norm(slope / allowed)
        probe = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).clamp(max=slopes.length)
        bent = slopes(u + slopes.sign * probe, y + column(slopes.sign * probe, y) * slope, member)
        largest = torch.maximum(speed, _norm((bent - slope) / allowed) / probe)
        step = torch.minimum((0.01 / largest.clamp(min=1e-15)) ** (1 / self.pair.order), 100 * probe)
        return _Walk(member, u, step, y, slope, torch.ones_like(u), torch.zeros_like(member, dtype=torch.bool))

    def _attempt(self, slopes: _Slopes, walk: _Walk) -> tuple[_Walk, Tensor]:
        """One step of each member, taken or refused, with the next step to try; and which were taken, ``(A,)``."""
        import torch

        left = (slopes.end - walk.u).abs()
        step = torch.minimum(walk.step, left)
        slopes.check_step(step, walk)
        y, last, error = self._step(slopes, walk, slopes.sign * step)
        good = error <= 1
        ratio = SAFETY * error.clamp(min=1e-10) ** (-LAST / self.pair.order)
        ratio = torch.where(good, ratio * walk.error ** (BEFORE / self.pair.order), ratio)
        ratio = ratio.clamp(SHRINK, GROW)
        ratio = torch.where(walk.held | ~good, ratio.clamp(max=1.0), ratio)
        u = torch.where(step == left, slopes.end, walk.u + slopes.sign * step)
        return _Walk(
            member=walk.member,
            u=torch.where(good, u, walk.u),
            step=step * ratio,
            y=torch.where(column(good, y), y, walk.y),
            slope=torch.where(column(good, y), last, walk.slope),
            error=torch.where(good, error.clamp(min=1e-4), walk.error),
            held=~good,
        ), good

    def _step(self, slopes: _Slopes, walk: _Walk, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The state after ``h``, ``(A,)``, its slope, and the estimated error, ``(A,)``, as a part of the allowed."""
        import torch

        stages, y = [walk.slope], walk.y
        for row in self.pair.a:
            y = combine(walk.y, column(h, y), row, stages)
            stages.append(slopes(walk.u + sum(row) * h, y, walk.member))
        with torch.no_grad():
            estimate = combine(torch.zeros_like(y), column(h, y), self.pair.error, stages)
            allowed = self.atol + self.rtol * torch.maximum(walk.y.abs(), y.abs())
        return y, stages[-1], _norm(estimate / allowed)


@dataclass(frozen=True)
class _Walk:
    """The members that are on their way, A of them, each with a row in every tensor.

    ``member``  their places in the batch; ``u``, ``y``, ``slope`` where they are, ``(A,)``, ``(A, ...)``, ``(A, ...)``;
    ``step``    the size of the next step to try; ``error`` the estimate of the last one taken; ``held`` whether the
                last one was refused; all ``(A,)`` on the CPU.
    """

    member: Tensor
    u: Tensor
    step: Tensor
    y: Tensor
    slope: Tensor
    error: Tensor
    held: Tensor

    def only(self, chosen: Tensor) -> _Walk:
        """The members that are True in ``chosen``, ``(A,)``."""
        every = (getattr(self, field.name) for field in fields(self))
        return _Walk(*(values[chosen.to(values.device)] for values in every))


class _Slopes:
    """dy/du in a chart, and the interval in u: ``begin``, ``end``, ``length`` and ``sign``."""

    def __init__(self, field: Field, chart: Chart, name: str, ends: Tensor) -> None:
        self.begin, self.end = ends.tolist()
        self.length = abs(self.end - self.begin)
        self.sign = 1.0 if self.end > self.begin else -1.0
        self._field = chart.pull_back(field)
        self._chart = chart
        self._name = name

    def __call__(self, u: Tensor, y: Tensor, member: Tensor) -> Tensor:
        """The slopes at ``u``, ``(A,)``, and ``y``, ``(A, ...)``, of the ``member``s; SolverError if not finite."""
        slope = field_of(self._field, member)(u, y)
        finite = by_member(slope).isfinite().all(dim=1).cpu()
        for i in (~finite).nonzero().flatten().tolist():
            raise SolverError(
                f"{self._name}: the slope is not finite at sigma = {self._chart.sigma(float(u[i])):.6g}; "
                f"it is that of sample {int(member[i])}: check the input and the network, or try a smaller tolerance"
            )
        return slope

    def check_step(self, step: Tensor, walk: _Walk) -> None:
        """Raise SolverError if a size in ``step``, ``(A,)``, is too small to arrive with, short of the end itself."""
        small = (step < LEAST_STEP * self.length) & (step < (self.end - walk.u).abs())
        for i in small.nonzero().flatten().tolist():
            at, end = (self._chart.sigma(u) for u in (float(walk.u[i]), self.end))
            raise SolverError(
                f"{self._name} stopped at sigma = {at:.6g} of {end:.6g} with sample {int(walk.member[i])}: "
                f"its step fell to {float(step[i]):.2g} of the variable '{self._chart.name}'. Try a larger rtol."
            )


def _norm(values: Tensor) -> Tensor:
    """The root mean square of each member of ``values``, ``(A, ...)``; float64 ``(A,)`` on the CPU, without a graph."""
    return rms(values).cpu().double()


# Pair and chart were chosen by the latents of 8 images of CIFAR-10 with a small network: it is too rough in t for
# Dormand and Prince's pair 5(4), which errs twice as much at equal cost; and the angle takes 0.6 of the evaluations
# that asinh takes at the same tolerance, for a smaller error.
_BOGACKI_SHAMPINE = EmbeddedPair(
    a=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    order=3,
)

PER_SAMPLE_SOLVERS: tuple[PerSampleSolver, ...] = (
    PerSampleSolver(
        name="per-sample-bosh3",
        order=3,
        pair=_BOGACKI_SHAMPINE,
        source="Bogacki and Shampine's pair 3(2), with steps of its own for each sample: HNW, II.4",
        chart=ANGLE,
    ),
)
