"""What a solver is, what it gives, and the little that all solvers share.

A solver integrates dx/dsigma = field(sigma, x) along a grid:

    solution = solver.solve(field, x_start, grid)
    x_end = solver(field, x_start, grid)              # the state of the solution alone

``field``   right-hand side ``(sigma, x) -> dx/dsigma``; ``sigma`` is a float64 tensor of shape ``()`` on the
            CPU, ``x`` and the result have one shape, with the batch first: ``(B, ...)``. Solvers that choose the
            steps of each member by itself (``solvers.per_sample``) ask for some of the members at a time, each at
            its own sigma: ``sigma`` is then ``(A,)``, and ``x`` ``(A, ...)``. A field that treats its members
            differently has a method ``of``, which gives the field of some of them: see ``MemberField``.
``grid``    float64 tensor of shape ``(steps + 1,)`` on the CPU, strictly monotone, in either direction: the
            values of sigma to visit. The clock stays in float64 whatever the dtype and device of ``x``. Solvers that
            are ``endless`` take a grid that ends, or begins, at infinity, if the field is an ``EndlessField``; the
            state there is the limit of x / sigma.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isinf
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    Field = Callable[[Tensor, Tensor], Tensor]


class SolverError(RuntimeError):
    """A solver could not reach the end of its grid; the message says where it stopped and what to try."""


@runtime_checkable
class MemberField(Protocol):
    """A field of which each member of a batch has its own, such as one that is told a class for every image."""

    def of(self, members: Tensor) -> Field:
        """The field of some ``members``, by their places in the batch: int64, shape ``(A,)``, on the CPU."""


@runtime_checkable
class EndlessField(Protocol):
    """A field that is defined where sigma is infinite too. x / sigma and the slope have one limit there, ``far``."""

    def origin(self, far: Tensor) -> Tensor:
        """What x - sigma field(sigma, x) tends to as sigma grows along the way that ends at ``far``, ``(B, ...)``."""


@runtime_checkable
class ToldField(Protocol):
    """A field that is told sigma, as a network is, and can be told another than the one where its state lies."""

    def told(self, sigma: float) -> Field:
        """The same field, told ``sigma`` wherever it is evaluated."""


@runtime_checkable
class Seen(Protocol):
    """A solver whose every step can be seen."""

    def trajectory(
        self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None
    ) -> Iterator[tuple[float, Solution]]:
        """The points of the walk with the solution at each, as ``WalkingSolver.trajectory`` gives them."""


def field_told(field: Field, sigma: float) -> Field:
    """``field`` as it is where it is told ``sigma``.

    Raises:
        ValueError: if it is one that can be told nothing.
    """
    if not isinstance(field, ToldField):
        raise ValueError("this field cannot be told another sigma than its own; give it a method 'told'")
    return field.told(sigma)


def field_of(field: Field, members: Tensor) -> Field:
    """The part of ``field`` that belongs to ``members``, int64 ``(A,)``; the field itself where all share one."""
    return field.of(members) if isinstance(field, MemberField) else field


@dataclass(frozen=True, eq=False)
class Cost:
    """What each member of a batch cost, where members have steps of their own: int64, ``(B,)``, on the CPU.

    ``accepted``, ``rejected``  steps that were taken, and steps that were tried and refused.
    ``evaluations``             evaluations of the field.
    """

    accepted: Tensor
    rejected: Tensor
    evaluations: Tensor


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver gives.

    ``x``          the state at the end of the grid, ``(B, ...)``.
    ``companion``  the second state of a reversible method, of the same shape: with it the same method, on the grid
                   turned round, leads back exactly. None from all other methods.
    ``cost``       what each member cost, if they have steps of their own; else None, and the field knows the cost.
    ``notes``      sentences about what was not reached as it should have been.
    """

    x: Tensor
    companion: Tensor | None = None
    cost: Cost | None = None
    notes: tuple[str, ...] = ()

    def map(self, function: Callable[[Tensor], Tensor]) -> Solution:
        """The same solution with both states, each ``(B, ...)``, changed by ``function``."""
        companion = None if self.companion is None else function(self.companion)
        return replace(self, x=function(self.x), companion=companion)


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """A way to integrate ``dx/dsigma = field(sigma, x)``; immutable, and without memory between calls.

    ``adaptive``  whether the method chooses its own steps and uses of the grid only the two ends.
    ``tunable``   the names of those of its attributes that ``settings`` writes down, and ``tuned`` takes.
    ``order``     p such that the error of one pass over a grid of spacing h is O(h^p).
    ``source``    where the method is written down.
    ``positive``  whether all of the grid must lie above sigma = 0.
    ``undoes``    the name of another solver, if this one is made to walk back from where that leads, on the same grid.
    """

    adaptive: ClassVar[bool] = False
    tunable: ClassVar[tuple[str, ...]] = ()

    name: str
    order: int
    source: str
    positive: bool = False
    undoes: str = ""

    def __call__(self, field: Field, x: Tensor, grid: Tensor) -> Tensor:
        """The state at ``grid[-1]``, ``(B, ...)`` like ``x``; what else a solution holds is left out.

        Notes of the solution become UserWarnings. Arguments and errors are those of ``solve``.
        """
        solution = self.solve(field, x, grid)
        for note in solution.notes:
            warnings.warn(note, stacklevel=2)
        return solution.x

    @abstractmethod
    def solve(self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None) -> Solution:
        """Integrate ``x``, shape ``(B, ...)``, from ``grid[0]`` to ``grid[-1]``.

        ``companion``  of x, of the same shape; only a reversible method takes one.

        Raises:
            ValueError: if the grid is not finite and strictly monotone, or has fewer than two points; if there is a
                companion that the method has no use for.
            SolverError: if the end cannot be reached, naming the sigma where it stopped.
        """

    @abstractmethod
    def nfe(self, steps: int) -> int | None:
        """Number of field evaluations for ``steps`` steps; None where the method decides for itself."""

    @property
    def cost_of_step(self) -> str:
        """What a step costs in evaluations, and how many more the first ones take; in words where that varies."""
        many, one_less = self.nfe(100), self.nfe(99)
        if many is None or one_less is None:
            return "adaptive" if self.adaptive else "iterates"
        more = many - 100 * (many - one_less)
        return f"{many - one_less}{f' + {more}' if more else ''}"

    @property
    def endless(self) -> bool:
        """Whether the grid may end or begin at sigma = infinity."""
        return False

    @property
    def settings(self) -> dict[str, str | float]:
        """What to write down beside a result to be able to repeat it: ``solvers.solver_from`` reads it."""
        return {"name": self.name, **{key: getattr(self, key) for key in self.tunable}}

    def tuned(self, settings: Mapping[str, object]) -> Solver:
        """The same method with other values of what is ``tunable``, by name.

        Raises:
            ValueError: if there is no such setting, or its value is not a number, or not one that is allowed.
        """
        numbers: dict[str, Any] = {}
        for key, value in settings.items():
            if key not in self.tunable:
                has = f"its settings are: {', '.join(self.tunable)}" if self.tunable else "it has none"
                raise ValueError(f"solver '{self.name}' has no setting '{key}'; {has}")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{key} of solver '{self.name}' must be a number, but it is {value!r}")
            try:
                numbers[key] = float(value)
            except OverflowError:
                raise ValueError(f"{key} of solver '{self.name}' is larger than a float can be") from None
        return replace(self, **numbers)


def refuse_companion(solver: Solver, companion: Tensor | None) -> None:
    """Raise ValueError if there is a ``companion``, ``(B, ...)``, for a ``solver`` that keeps one state."""
    if companion is not None:
        raise ValueError(
            f"{solver.name} keeps one state and takes no companion; leave it out, or take a reversible solver"
        )


def check_within(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless the setting ``name`` has a ``value`` above ``low`` and at most ``high``."""
    if not low < value <= high:
        raise ValueError(f"{name} must be above {low:g} and at most {high:g}, but it is {value:g}")


def check_grid(grid: Tensor, *, endless: bool = False) -> None:
    """Raise ValueError unless ``grid``, shape ``(steps + 1,)``, is float64, strictly monotone and, unless ``endless``,
    finite."""
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"grid must be a 1-D tensor of at least two points, but its shape is {tuple(grid.shape)}")
    if not grid.is_floating_point() or grid.element_size() < 8:
        raise ValueError(f"grid must be float64, but it is {grid.dtype}; make it with dtype=torch.float64")
    values = grid.tolist()
    for i in (0, -1):
        if isinf(values[i]) and not (endless and values[i] > 0):
            raise ValueError(f"grid must be finite, but grid[{i % len(values)}] = {values[i]:g}")
    upwards = values[-1] > values[0]
    for i in range(1, len(values)):
        if not (values[i] > values[i - 1] if upwards else values[i] < values[i - 1]):
            raise ValueError(
                f"grid must be strictly monotone, but grid[{i}] = {values[i]:g} "
                f"follows grid[{i - 1}] = {values[i - 1]:g}"
            )


def check_finite(x: Tensor, name: str, what: str, sigma: Tensor | float) -> None:
    """Raise SolverError if ``x``, any shape, holds a NaN or an infinity; ``what`` names it in the message."""
    if not bool(x.isfinite().all()):
        raise_not_finite(name, what, sigma)


def raise_not_finite(name: str, what: str, sigma: Tensor | float) -> NoReturn:
    """Raise SolverError: the ``what`` of the solver ``name`` is not finite at ``sigma``."""
    raise SolverError(
        f"{name}: the {what} is not finite at sigma = {float(sigma):.6g}; "
        "try more steps, another grid or a smaller tolerance, and check the input and the network"
    )


class FiniteStates:
    """Looks whether the states of a walk of the solver ``name`` are finite, and waits for no device before its end.

    On a CPU each is looked at as it comes.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: list[tuple[Tensor, Tensor]] = []

    def see(self, x: Tensor, sigma: Tensor) -> None:
        """The state ``x``, any shape, that the walk has come to at ``sigma``, ``()``.

        Raises:
            SolverError: as ``check_finite`` does, on a CPU.
        """
        if x.device.type == "cpu":
            check_finite(x, self._name, "state", sigma)
        else:
            self._seen.append((x.isfinite().all(), sigma))

    def end(self) -> None:
        """The end of the walk.

        Raises:
            SolverError: with the first sigma where a state was not finite.
        """
        import torch

        flags = torch.stack([finite for finite, _ in self._seen]).tolist() if self._seen else []
        if not all(flags):
            raise_not_finite(self._name, "state", self._seen[flags.index(False)][1])


def column(values: Tensor, x: Tensor) -> Tensor:
    """``values``, ``()`` or one for each member, ``(B,)``, in a shape that multiplies ``x``, ``(B, ...)``."""
    if values.ndim == 0:
        return values
    values = values.to(x.device, x.dtype) if values.is_floating_point() else values.to(x.device)
    return values.reshape(-1, *[1] * (x.ndim - 1))


def by_member(x: Tensor) -> Tensor:
    """``x``, ``(B, ...)``, as ``(B, D)``; also if B is 0."""
    return x.reshape(len(x), x.shape[1:].numel())


def rms(x: Tensor) -> Tensor:
    """The root mean square of each member of ``x``, ``(B, ...)``, without a graph: ``(B,)``."""
    size: Tensor = by_member(x.detach()).square().mean(1).sqrt()
    return size


def combine(x: Tensor, h: Tensor | float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h sum_j weights_j slopes_j; ``x`` and every slope have one shape ``(B, ...)``."""
    import torch

    for weight, slope in zip(weights, slopes, strict=True):
        if weight != 0.0:
            # A number goes into the sum itself, which is one pass over the state instead of two.
            x = torch.add(x, slope, alpha=h * weight) if isinstance(h, float) else x + (h * weight) * slope
    return x
