"""Algebraically reversible methods: they carry two states, and walk back exactly the way they came.

From the pair at the end of a walk the same formulas, or their inverses, lead back to the pair at its beginning, to
rounding and whatever the field, the grid and its steps are. That says nothing of the latent: one state alone is as
good as its method is, and the published ones beside reversible Heun and McCallum-Foster are not good going up.

Notation: ``x`` is the state that the solver returns and ``y`` its companion; ``h`` is the signed step.

Kidger, Foster, Li, Lyons, "Efficient and Accurate Gradients for Neural SDEs", arXiv 2105.13493, Algorithms 1 and 2
(reversible Heun, which without noise is this);
Wallace, Gokul, Naik, "EDICT: Exact Diffusion Inversion via Coupled Transformations", arXiv 2211.12446;
Zhang, Lewis, Kleijn, "Exact Diffusion Inversion via Bi-directional Integration Approximation", arXiv 2307.10829;
Wang et al., "BELM: Bidirectional Explicit Linear Multi-step Sampler for Exact Inversion in Diffusion Models",
arXiv 2410.07273;
McCallum, Foster, "Efficient, Accurate and Stable Gradients for Neural ODEs", arXiv 2410.11648.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from solvers.base import Solver, check_finite, check_grid
from solvers.charts import ANGLE, SIGMA, Chart
from solvers.fixed import FixedStepSolver
from solvers.runge_kutta import RUNGE_KUTTA_SOLVERS

if TYPE_CHECKING:
    from torch import Tensor

    from solvers.base import Field


@dataclass(frozen=True, kw_only=True)
class ReversibleSolver(Solver):
    """A method of two states. As a solver it begins with one and forgets the other at the end."""

    def __call__(self, field: Field, x: Tensor, grid: Tensor) -> Tensor:
        return self.both(field, x, None, grid)[0]

    @abstractmethod
    def both(self, field: Field, x: Tensor, companion: Tensor | None, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Integrate ``x`` and its ``companion``, each ``(B, ...)``, from ``grid[0]`` to ``grid[-1]``.

        With the grid turned round, the pair at the end leads to that at the beginning. Without a companion the walk
        begins with x alone. Errors are those of a call.
        """

    def to_pair(self, field: Field, x: Tensor, grid: Tensor) -> Tensor:
        """From ``x``, ``(B, ...)``, to the pair at the end, as the two halves of a batch, ``(2 B, ...)``."""
        import torch

        return torch.cat(self.both(field, x, None, grid))

    def from_pair(self, field: Field, pair: Tensor, grid: Tensor) -> Tensor:
        """From a pair as the two halves of a batch, ``(2 B, ...)``, to the state at the end, ``(B, ...)``."""
        x, companion = pair.chunk(2)
        return self.both(field, x, companion, grid)[0]


@dataclass(frozen=True, kw_only=True)
class ReversibleHeun(ReversibleSolver):
    """One evaluation a step and one to begin with; in ``chart``, because it is stable for slow flows only.

    The companion, at first equal to x, is where the slopes are taken.
    """

    chart: Chart

    def both(self, field: Field, x: Tensor, companion: Tensor | None, grid: Tensor) -> tuple[Tensor, Tensor]:
        check_grid(grid)
        slope_at = self.chart.pull_back(field)
        nodes = self.chart.nodes(grid).unbind()
        y = self.chart.enter(x, grid[0])
        y_hat = y if companion is None else self.chart.enter(companion, grid[0])
        slope = slope_at(nodes[0], y_hat)
        for (u, u_next), sigma_next in zip(pairwise(nodes), grid[1:], strict=True):
            h = u_next - u
            y_hat = 2 * y - y_hat + h * slope
            slope_next = slope_at(u_next, y_hat)
            y = y + h / 2 * (slope + slope_next)
            slope = slope_next
            check_finite(y, self.name, "state", sigma_next)
        return self.chart.leave(y, grid[-1]), self.chart.leave(y_hat, grid[-1])

    def nfe(self, steps: int) -> int:
        return steps + 1


@dataclass(frozen=True, kw_only=True)
class CoupledSolver(ReversibleSolver):
    """Two states at the same sigma, at first equal, that change in turn, each by what the other one is; in ``chart``.

    Towards sigma = 0 it takes the formulas as they are published, away from it their inverses: an image is encoded by
    undoing what would generate it.
    """

    chart: Chart = SIGMA

    def both(self, field: Field, x: Tensor, companion: Tensor | None, grid: Tensor) -> tuple[Tensor, Tensor]:
        check_grid(grid)
        towards_zero = bool(grid[-1].abs() < grid[0].abs())
        slope_at = self.chart.pull_back(field)
        x = self.chart.enter(x, grid[0])
        y = x if companion is None else self.chart.enter(companion, grid[0])
        for (u, u_next), sigma_next in zip(pairwise(self.chart.nodes(grid).unbind()), grid[1:], strict=True):
            x, y = self._step(slope_at, u, u_next, x, y) if towards_zero else self._undo(slope_at, u_next, u, x, y)
            check_finite(x, self.name, "state", sigma_next)
        return self.chart.leave(x, grid[-1]), self.chart.leave(y, grid[-1])

    @abstractmethod
    def _step(self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The pair at ``u_next`` from that at ``u``."""

    @abstractmethod
    def _undo(self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The pair at ``u`` from the pair at ``u_next`` that ``_step`` made of it."""


@dataclass(frozen=True, kw_only=True)
class EDICT(CoupledSolver):
    """Two Euler steps, each with the slope at the other state, and then a mixture of the two: arXiv 2211.12446.

    ``mixing``  the part p of itself that each state keeps; the authors take 0.93 for 50 steps.

    The mixture shrinks the distance of the two states by p^2 in every step towards 0. Away from it the distance grows
    by 1 / p^2 a step, which the flow makes up for while steps are large: from some 150 on over a whole schedule more
    steps make the latent worse. The authors compute in float64, and need to. In their code the states also change their
    roles from step to step; here they keep them.
    """

    mixing: float = 0.93

    def _step(self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        p = self.mixing
        x = x + (u_next - u) * field(u, y)
        y = y + (u_next - u) * _rescaled_slope(field, u, u_next, x)
        x = p * x + (1 - p) * y
        return x, p * y + (1 - p) * x

    def _undo(self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        p = self.mixing
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        y = y - (u_next - u) * _rescaled_slope(field, u, u_next, x)
        return x - (u_next - u) * field(u, y), y

    def nfe(self, steps: int) -> int:
        return 2 * steps

    @property
    def settings(self) -> dict[str, str | float]:
        return {"name": self.name, "mixing": self.mixing}


def _rescaled_slope(field: Field, sigma: Tensor, sigma_next: Tensor, x_next: Tensor) -> Tensor:
    """The slope at ``sigma`` where x / sqrt(1 + sigma^2), what a network sees, is what it is at ``sigma_next``."""
    return field(sigma, x_next * ((1 + sigma**2) / (1 + sigma_next**2)).sqrt())


@dataclass(frozen=True, kw_only=True)
class McCallumFoster(CoupledSolver):
    """Any one-step method made reversible, for twice its evaluations: arXiv 2410.11648.

    ``base``      the method, without a chart of its own.
    ``coupling``  the part lambda of itself that x keeps in a step; near 1. Away from 0 the states part by 1 / lambda.

    In sigma and x it is not stable for the large steps of a decoder; in the angle chart it is.
    """

    base: FixedStepSolver
    coupling: float = 0.999

    def _step(self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self.coupling * x + (1 - self.coupling) * y + self._gain(field, u, u_next, y)
        return x, y - self._gain(field, u_next, u, x)

    def _undo(self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y = y + self._gain(field, u_next, u, x)
        return (x - self._gain(field, u, u_next, y) - (1 - self.coupling) * y) / self.coupling, y

    def _gain(self, field: Field, u: Tensor, u_next: Tensor, x: Tensor) -> Tensor:
        """What a step of the base from ``u`` to ``u_next`` adds to ``x``."""
        return self.base.step(field, u, u_next, x, None)[0] - x

    def nfe(self, steps: int) -> int:
        return 2 * self.base.nfe(steps)

    @property
    def settings(self) -> dict[str, str | float]:
        return {"name": self.name, "coupling": self.coupling}


@dataclass(frozen=True, kw_only=True)
class TwoStepSolver(ReversibleSolver):
    """x_{n+1} = a x_{n-1} + b x_n + c field(sigma_n, x_n), solved for x_{n-1} as easily; one evaluation a step.

    The companion is the state at the second point of the grid where a walk begins, and at the last but one where it
    ends. The first step is Euler's. As in ``CoupledSolver`` the formula is the published one towards sigma = 0, and its
    inverse away from it. Its order is that on grids whose steps change slowly; if they do not, errors of alternating
    sign add up where they should cancel, to order 1.
    """

    def both(self, field: Field, x: Tensor, companion: Tensor | None, grid: Tensor) -> tuple[Tensor, Tensor]:
        check_grid(grid)
        towards_zero = bool(grid[-1].abs() < grid[0].abs())
        sigmas = grid.unbind()
        before, x = x, self._first(field, x, grid) if companion is None else companion
        for last, sigma, sigma_next in zip(sigmas, sigmas[1:], sigmas[2:], strict=False):
            slope = field(sigma, x)
            if towards_zero:
                a, b, c = self._coefficients(last, sigma, sigma_next)
                before, x = x, a * before + b * x + c * slope
            else:
                a, b, c = self._coefficients(sigma_next, sigma, last)
                before, x = x, (before - b * x - c * slope) / a
            check_finite(x, self.name, "state", sigma_next)
        return x, before

    def _first(self, field: Field, x: Tensor, grid: Tensor) -> Tensor:
        x = x + (grid[1] - grid[0]) * field(grid[0], x)
        check_finite(x, self.name, "state", grid[1])
        return x

    @abstractmethod
    def _coefficients(self, last: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and c of the step from ``last`` over ``sigma`` to ``sigma_next``, three points on the way to 0."""

    def nfe(self, steps: int) -> int:
        return steps


@dataclass(frozen=True, kw_only=True)
class BDIA(TwoStepSolver):
    """The mean of Euler's step forward and of its step back, taken back: BDIA-DDIM, arXiv 2307.10829.

    ``gamma``  weight of the step back; with 0 it would be DDIM. With 1, the leapfrog rule in x / sqrt(1 + sigma^2), it
               is stable either way. With less, away from sigma = 0 errors grow by 1 / gamma a step.
    """

    gamma: float = 1.0

    def _coefficients(self, last: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        back = self.gamma * ((1 + sigma_next**2) / (1 + last**2)).sqrt()
        return back, 1 - back, sigma_next - sigma + back * (sigma - last)

    @property
    def settings(self) -> dict[str, str | float]:
        return {"name": self.name, "gamma": self.gamma}


@dataclass(frozen=True, kw_only=True)
class OBELM(TwoStepSolver):
    """The leapfrog rule for unequal steps, of order 2: O-BELM, arXiv 2410.07273.

    Beside the solution it has another one, which a step multiplies by -(h_n / h_{n-1})^2: it dies out where steps
    become shorter, towards sigma = 0, and grows where they become longer. So on the usual grids it decodes well, and
    what it encodes to is no latent, though it leads back to the image. The formula is its own inverse.
    """

    def _coefficients(self, last: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ratio = (sigma_next - sigma) / (sigma - last)
        return ratio**2, 1 - ratio**2, (sigma_next - sigma) * (1 + ratio)


def _mccallum_foster(base: FixedStepSolver) -> McCallumFoster:
    return McCallumFoster(
        name=f"mccallum-foster-{base.name}",
        order=base.order,
        source=f"the reversible method of arXiv 2410.11648 over {base.name}, in the angle chart",
        chart=ANGLE,
        base=base,
    )


REVERSIBLE_SOLVERS: tuple[ReversibleSolver, ...] = (
    ReversibleHeun(
        name="reversible-heun",
        order=2,
        source="reversible Heun in the angle chart: arXiv 2105.13493, Algorithms 1 and 2",
        chart=ANGLE,
    ),
    *(_mccallum_foster(base) for base in RUNGE_KUTTA_SOLVERS if base.name in ("midpoint", "rk4")),
    EDICT(name="edict", order=1, source="EDICT with p = 0.93: arXiv 2211.12446; not for encoding in many steps"),
    BDIA(name="bdia", order=2, source="BDIA-DDIM with gamma = 1: arXiv 2307.10829"),
    OBELM(name="o-belm", order=2, source="O-BELM: arXiv 2410.07273; not for encoding in growing steps"),
)
