"""What a solver is, and the little that all solvers share.

A solver integrates dx/dsigma = field(sigma, x) along a grid:

    x_end = solver(field, x_start, grid)

``field``   right-hand side ``(sigma, x) -> dx/dsigma``; ``sigma`` is a float64 tensor of shape ``()`` on the
            CPU, ``x`` and the result have one shape, with the batch first: ``(B, ...)``. Solvers that choose the
            steps of each member by itself (``solvers.per_sample``) ask for some of the members at a time, each at
            its own sigma: ``sigma`` is then ``(A,)``, and ``x`` ``(A, ...)``.
``grid``    float64 tensor of shape ``(steps + 1,)`` on the CPU, strictly monotone, in either direction: the
            values of sigma to visit. The clock stays in float64 whatever the dtype and device of ``x``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isinf
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    Field = Callable[[Tensor, Tensor], Tensor]


class SolverError(RuntimeError):
    """A solver could not reach the end of its grid; the message says where it stopped and what to try."""


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """A way to integrate ``dx/dsigma = field(sigma, x)``; immutable, and without memory between calls.

    ``adaptive``  whether the method chooses its own steps and uses of the grid only the two ends.
    ``order``     p such that the error of one pass over a grid of spacing h is O(h^p).
    ``source``    where the method is written down.
    ``positive``  whether all of the grid must lie above sigma = 0.
    ``undoes``    the name of another solver, if this one is made to walk back from where that leads, on the same grid.
    """

    adaptive: ClassVar[bool] = False

    name: str
    order: int
    source: str
    positive: bool = False
    undoes: str = ""

    @abstractmethod
    def __call__(self, field: Field, x: Tensor, grid: Tensor) -> Tensor:
        """Integrate ``x``, shape ``(B, ...)``, from ``grid[0]`` to ``grid[-1]``; returns the same shape.

        Raises:
            ValueError: if the grid is not finite and strictly monotone, or has fewer than two points.
            SolverError: if the end cannot be reached, naming the sigma where it stopped.
        """

    @abstractmethod
    def nfe(self, steps: int) -> int | None:
        """Number of field evaluations for ``steps`` steps; None where the method decides for itself."""

    @property
    def settings(self) -> dict[str, str | float]:
        """What to write down beside a result to be able to repeat it."""
        return {"name": self.name}


def check_grid(grid: Tensor) -> None:
    """Raise ValueError unless ``grid``, shape ``(steps + 1,)``, is float64, finite and strictly monotone."""
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"grid must be a 1-D tensor of at least two points, but its shape is {tuple(grid.shape)}")
    if not grid.is_floating_point() or grid.element_size() < 8:
        raise ValueError(f"grid must be float64, but it is {grid.dtype}; make it with dtype=torch.float64")
    values = grid.tolist()
    for i in (0, -1):
        if isinf(values[i]):
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
        raise SolverError(
            f"{name}: the {what} is not finite at sigma = {float(sigma):.6g}; "
            "try more steps, another grid or a smaller tolerance, and check the input and the network"
        )


def column(values: Tensor, x: Tensor) -> Tensor:
    """``values``, ``()`` or one for each member, ``(B,)``, in a shape that multiplies ``x``, ``(B, ...)``."""
    if values.ndim == 0:
        return values
    values = values.to(x.device, x.dtype) if values.is_floating_point() else values.to(x.device)
    return values.reshape(-1, *[1] * (x.ndim - 1))


def rows(x: Tensor) -> Tensor:
    """``x``, ``(B, ...)``, as ``(B, D)``; also if B is 0."""
    return x.reshape(len(x), x.shape[1:].numel())


def plus(x: Tensor, h: Tensor | float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h sum_j weights_j slopes_j; ``x`` and every slope have one shape ``(B, ...)``."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight != 0.0:
            x = x + (h * weight) * slope
    return x
