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
from typing import TYPE_CHECKING, Any, ClassVar

from .base import check_within
from .charts import ANGLE
from .fixed import FixedStepSolver, WalkingSolver
from .runge_kutta import RUNGE_KUTTA_SOLVERS

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field
    from .fixed import Step


@dataclass(frozen=True, kw_only=True)
class ReversibleSolver(WalkingSolver):
    """A method of two states, of which the second, the companion, travels along as the state of the walk.

    With the grid turned round, the pair at the end leads to that at the beginning. Without a companion the walk begins
    with x alone.
    """


@dataclass(frozen=True, kw_only=True)
class ReversibleHeun(ReversibleSolver):
    """One evaluation a step and one to begin with; it wants a chart, because it is stable for slow flows only.

    The companion, at first equal to x, is where the slopes are taken. The state of the walk is that and the last slope.
    """

    def _begin(self, grid: Tensor, companion: Tensor | None) -> tuple[Step, Any]:
        return self._step, (companion, None)

    def _step(
        self, field: Field, u: Tensor, u_next: Tensor, y: Tensor, state: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h = u_next - u
        y_hat = y if state[0] is None else state[0]
        slope = field(u, y_hat) if state[1] is None else state[1]
        y_hat = 2 * y - y_hat + h * slope
        slope_next = field(u_next, y_hat)
        return y + h / 2 * (slope + slope_next), (y_hat, slope_next)

    def _companion(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0]

    def nfe(self, steps: int) -> int:
        return steps + 1


@dataclass(frozen=True, kw_only=True)
class CoupledSolver(ReversibleSolver):
    """Two states at the same sigma, at first equal, that change in turn, each by what the other one is.

    Towards sigma = 0 it takes the formulas as they are published, away from it their inverses: an image is encoded by
    undoing what would generate it.
    """

    def _begin(self, grid: Tensor, companion: Tensor | None) -> tuple[Step, Any]:
        return self._towards_zero if _leads_to_zero(grid) else self._away_from_zero, companion

    def _towards_zero(
        self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self._step(field, u, u_next, x, x if y is None else y)

    def _away_from_zero(
        self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self._undo(field, u_next, u, x, x if y is None else y)

    def _companion(self, state: Tensor) -> Tensor:
        return state

    @abstractmethod
    def _step(self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The pair at ``u_next`` from that at ``u``."""

    @abstractmethod
    def _undo(self, field: Field, u: Tensor, u_next: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The pair at ``u`` from the pair at ``u_next`` that ``_step`` made of it."""


def _leads_to_zero(grid: Tensor) -> bool:
    return bool(grid[-1].abs() < grid[0].abs())


@dataclass(frozen=True, kw_only=True)
class EDICT(CoupledSolver):
    """Two Euler steps, each with the slope at the other state, and then a mixture of the two: arXiv 2211.12446.

    ``mixing``  the part p of itself that each state keeps; the authors take 0.93 for 50 steps.

    The mixture shrinks the distance of the two states by p^2 in every step towards 0. Away from it the distance grows
    by 1 / p^2 a step, which the flow makes up for while steps are large: from some 150 on over a whole schedule more
    steps make the latent worse. The authors compute in float64, and need to. In their code the states also change their
    roles from step to step; here they keep them.
    """

    tunable: ClassVar[tuple[str, ...]] = ("mixing",)

    mixing: float = 0.93

    def __post_init__(self) -> None:
        check_within("mixing", self.mixing, 0, 1)

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


def _rescaled_slope(field: Field, sigma: Tensor, sigma_next: Tensor, x_next: Tensor) -> Tensor:
    """The slope at ``sigma`` where x / sqrt(1 + sigma^2), what a network sees, is what it is at ``sigma_next``."""
    return field(sigma, x_next * ((1 + sigma**2) / (1 + sigma_next**2)).sqrt())


@dataclass(frozen=True, kw_only=True)
class McCallumFoster(CoupledSolver):
    """A one-step method of any kind made reversible, for twice its evaluations: arXiv 2410.11648.

    ``base``      the method, without a chart of its own.
    ``coupling``  the part lambda of itself that x keeps in a step; near 1. Away from 0 the states part by 1 / lambda.

    In sigma and x it is not stable for the large steps of a decoder; in the angle chart it is.
    """

    tunable: ClassVar[tuple[str, ...]] = ("coupling",)

    base: FixedStepSolver
    coupling: float = 0.999

    def __post_init__(self) -> None:
        check_within("coupling", self.coupling, 0, 1)

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


@dataclass(frozen=True, kw_only=True)
class TwoStepSolver(ReversibleSolver):
    """x_{n+1} = a x_{n-1} + b x_n + c field(sigma_n, x_n), solved for x_{n-1} as easily; one evaluation a step.

    The companion is the state at the second point of the grid where a walk begins, and at the last but one where it
    ends. The first step is Euler's. As in ``CoupledSolver`` the formula is the published one towards sigma = 0, and its
    inverse away from it. Its order is that on grids whose steps change slowly; if they do not, errors of alternating
    sign add up where they should cancel, to order 1.
    """

    def _begin(self, grid: Tensor, companion: Tensor | None) -> tuple[Step, Any]:
        return _Leap(self, _leads_to_zero(grid), companion), None

    def _companion(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[1]

    @abstractmethod
    def coefficients(self, last: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and c, each ``()``, of the step from ``last`` over ``sigma`` to ``sigma_next``, on the way to 0."""

    def nfe(self, steps: int) -> int:
        return steps


@dataclass(frozen=True, eq=False)
class _Leap:
    """The step of a ``TwoStepSolver``; its state is the last sigma, ``()``, and the state x there, ``(B, ...)``.

    ``companion``  what the first step leads to, if that is known; without it, the first step is Euler's.
    """

    method: TwoStepSolver
    towards_zero: bool
    companion: Tensor | None

    def __call__(
        self, field: Field, sigma: Tensor, sigma_next: Tensor, x: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if state is None:
            first = x + (sigma_next - sigma) * field(sigma, x) if self.companion is None else self.companion
            return first, (sigma, x)
        last, before = state
        slope = field(sigma, x)
        if self.towards_zero:
            a, b, c = self.method.coefficients(last, sigma, sigma_next)
            return a * before + b * x + c * slope, (sigma, x)
        a, b, c = self.method.coefficients(sigma_next, sigma, last)
        return (before - b * x - c * slope) / a, (sigma, x)


@dataclass(frozen=True, kw_only=True)
class BDIA(TwoStepSolver):
    """The mean of Euler's step forward and of its step back, taken back: BDIA-DDIM, arXiv 2307.10829.

    ``gamma``  weight of the step back, above 0; with 0 it would be DDIM. With 1, the leapfrog rule in
               x / sqrt(1 + sigma^2), it is stable either way. With less, away from sigma = 0 errors grow by 1 / gamma
               a step.
    """

    tunable: ClassVar[tuple[str, ...]] = ("gamma",)

    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_within("gamma", self.gamma, 0, 1)

    def coefficients(self, last: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        back = self.gamma * ((1 + sigma_next**2) / (1 + last**2)).sqrt()
        return back, 1 - back, sigma_next - sigma + back * (sigma - last)


@dataclass(frozen=True, kw_only=True)
class OBELM(TwoStepSolver):
    """The leapfrog rule for unequal steps, of order 2: O-BELM, arXiv 2410.07273.

    Beside the solution it has another one, which a step multiplies by -(h_n / h_{n-1})^2: it dies out where steps
    become shorter, towards sigma = 0, and grows where they become longer. So on the usual grids it decodes well, and
    what it encodes to is no latent, though it leads back to the image. The formula is its own inverse.
    """

    def coefficients(self, last: Tensor, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
    EDICT(
        name="edict",
        order=1,
        source="EDICT with p = 0.93: arXiv 2211.12446; not for encoding in many steps",
        only_sigma=True,
    ),
    BDIA(name="bdia", order=2, source="BDIA-DDIM with gamma = 1: arXiv 2307.10829", only_sigma=True),
    OBELM(name="o-belm", order=2, source="O-BELM: arXiv 2410.07273; not for encoding in growing steps"),
)
