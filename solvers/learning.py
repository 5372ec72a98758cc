"""Finding what a fitted method needs: weights, the sigmas that the field is told, and the nodes.

The weights of each step minimize the mean squared distance to known solutions, by least squares with a ridge, which
holds them near 0, that is near the method itself. Every step is fitted on the states that the fitted steps before it
lead to, so that it repairs what those left over.

Nodes and what is told are searched for, with the weights found anew for each trial: variable projection (Golub,
Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems whose variables separate", 1973).
The search tries one direction after another, there and back, in random order, with a step of its own that grows with
success and shrinks without (pattern search; Hooke, Jeeves, "Direct search solution of numerical and statistical
problems", 1961). A direction is a hat over neighbouring nodes in the logarithm of sigma, wide or narrow. It costs no
gradients, and a trial begins where it differs from the best one so far: nothing is kept but a state and a slope for
each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, isinf
from random import Random
from typing import TYPE_CHECKING, Any

from .base import SolverError, check_finite, combine, field_told
from .charts import SIGMA
from .fitted import Fit, terms, uncorrected
from .fixed import FixedStepSolver

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field
    from .charts import Chart

# What is told at sigma = infinity to begin with, as a multiple of the node beside it.
_FAR = 8.0
# Steps of the search in log sigma: at first, and for what is told in the first evaluation, where most is gained; where
# one is small enough to leave the direction alone.
_NODE_STEP, _TOLD_STEP, _FIRST_STEP, _LEAST_STEP = 0.3, 0.1, 0.5, 0.01
_GROWTH, _SHRINKAGE = 1.5, 0.4
# Neighbouring nodes keep this far apart.
_NEAREST = 1.05


@dataclass(frozen=True, eq=False)
class Point:
    """Where a walk is, in its chart: ``x``, ``(B, ...)``, what the method remembers, and the slopes that are known."""

    x: Tensor
    inner: Any = None
    slopes: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Step:
    """Where a step leads by itself, ``x``, ``(B, ...)``, the ``terms`` it can be corrected by, and what is kept."""

    x: Tensor
    terms: tuple[Tensor, ...]
    inner: Any
    slopes: tuple[Tensor, ...]

    def corrected(self, weights: Sequence[float]) -> Point:
        """Where it leads with these ``weights`` of the terms."""
        return Point(combine(self.x, 1.0, weights, self.terms), self.inner, self.slopes)


@dataclass(frozen=True, eq=False)
class Line:
    """The steps of a method along a ``grid``, ``(steps + 1,)``, in a chart, each before it is corrected.

    ``nodes``   the grid in the chart, each ``()``; ``field`` is in the chart too.
    ``told``    for each step the sigma that the field is told; () for that of the node.
    ``slopes``  as many of the newest ones are terms.
    """

    method: Callable[..., tuple[Tensor, Any]]
    chart: Chart
    field: Field
    grid: Tensor
    nodes: tuple[Tensor, ...]
    told: tuple[float, ...]
    slopes: int

    def step(self, n: int, point: Point) -> Step:
        """Step number ``n``, from ``point`` on."""
        u, u_next = self.nodes[n : n + 2]
        field = field_told(self.field, self.told[n]) if self.told else self.field
        x, inner, slopes = uncorrected(self.method, field, u, u_next, point.x, point.inner, point.slopes, self.slopes)
        return Step(x, tuple(terms(u_next - u, point.x, slopes)), inner, slopes)

    def points(self, weights: Sequence[Sequence[float]], n: int, point: Point) -> Iterator[Point]:
        """Where it is before each step from number ``n`` on, and at the end, with ``weights`` for all steps."""
        yield point
        for k in range(n, len(weights)):
            point = self.step(k, point).corrected(weights[k])
            yield point

    def enter(self, x: Tensor, n: int) -> Tensor:
        """The state ``x``, ``(B, ...)``, at node number ``n``, in the chart."""
        return self.chart.enter(x, self.grid[n])

    def leave(self, end: Point) -> Tensor:
        """The state at the last node, ``(B, ...)``."""
        return self.chart.leave(end.x, self.grid[-1])


@dataclass(frozen=True, eq=False)
class Walk:
    """A walk along ``nodes`` in its order, the ``fit`` that was found on it, and ``x``, ``(B, ...)``, at its end.

    ``told``    for each step the sigma that the field is told, as a multiple of the node's.
    ``points``  where it was before each step.
    """

    nodes: tuple[float, ...]
    told: tuple[float, ...]
    fit: Fit
    x: Tensor
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How weights are found: corrections of ``base`` that lead along known solutions of ``field``.

    ``upward``    whether it walks towards larger sigma.
    ``solution``  the known state, ``(B, ...)``, at a sigma.
    ``slopes``    as many of the newest ones take part, or as many as are known.
    ``ridge``     relative to the mean square of each term.
    ``share``     the part of the solutions, those nearest to what the method does anyway, that takes part in a step.
    """

    base: FixedStepSolver
    field: Field
    upward: bool
    solution: Callable[[float], Tensor]
    # Of 4, 6 and 9 slopes, and of ridges from 1e-6 to 1e-3: with 4 and 1e-3 errors are up to a half larger in 20 steps,
    # and the same in 6; more slopes, or less of a ridge, bring nothing.
    slopes: int = 6
    ridge: float = 1e-5
    share: float = 0.9

    def walk(self, nodes: Sequence[float], told: Sequence[float] = (), before: Walk | None = None) -> Walk:
        """The walk along all ``nodes``, ``steps + 1`` rising sigmas, that finds its weights as it goes.

        ``told``    for each step, in the order of the walk, what the field is told, as a multiple of the node; () for
                    the nodes themselves.
        ``before``  a walk of as many steps; what it has in common with this one is not walked again.

        Raises:
            SolverError: if the end is not finite.
        """
        way, told = self.way(nodes), tuple(told)
        first = common_steps(before, way, told) if before else 0
        if before and first == len(way) - 1:
            return before
        line = self.line(way, tuple(factor * _finite(way, n) for n, factor in enumerate(told)))
        points, weights = (list(before.points[:first]), list(before.fit.weights[:first])) if before else ([], [])
        point = before.points[first] if before else self._start(line)
        for n in range(first, len(way) - 1):
            points.append(point)
            step = line.step(n, point)
            missing = line.enter(self.solution(way[n + 1]), n + 1) - step.x
            weights.append(_least_squares(step.terms, missing, self.ridge, self.share))
            point = step.corrected(weights[-1])
        return self._walked(line, told, Fit(tuple(weights), line.told), points, point)

    def follow(self, way: tuple[float, ...], fit: Fit) -> Walk:
        """The walk along a ``way`` with a ``fit`` that is known, on these solutions. Errors are those of ``walk``."""
        line = self.line(way, fit.told)
        *points, end = line.points(fit.weights, 0, self._start(line))
        return self._walked(line, tuple(sigma / _finite(way, n) for n, sigma in enumerate(fit.told)), fit, points, end)

    def line(self, way: tuple[float, ...], told: tuple[float, ...]) -> Line:
        """The steps along a ``way``; the field is ``told`` these sigmas, or those of the nodes if there are none."""
        import torch

        grid = torch.tensor(way, dtype=torch.float64)
        chart = self.base.chart_on(grid) or SIGMA
        nodes, field = chart.nodes(grid).unbind(), chart.pull_back(self.field)
        return Line(self.base.step, chart, field, grid, nodes, told, self.slopes)

    def _start(self, line: Line) -> Point:
        return Point(line.enter(self.solution(float(line.grid[0])), 0))

    def _walked(self, line: Line, told: tuple[float, ...], fit: Fit, points: Sequence[Point], end: Point) -> Walk:
        x = line.leave(end)
        check_finite(x, self.base.name, "state", line.grid[-1])
        return Walk(tuple(line.grid.tolist()), told, fit, x, tuple(points))

    def way(self, nodes: Sequence[float]) -> tuple[float, ...]:
        """The ``nodes``, rising, in the order of the walk."""
        return tuple(nodes) if self.upward else tuple(reversed(nodes))


@dataclass(frozen=True)
class Place:
    """How far a search has come.

    ``nodes``   the best so far, ``steps + 1`` rising sigmas.
    ``told``    what the field is told on the walk along them, as in ``Walk``.
    ``sizes``   how far it steps in each direction.
    ``sweeps``  how often it has tried all directions.
    """

    nodes: tuple[float, ...]
    told: tuple[float, ...]
    sizes: tuple[float, ...]
    sweeps: int = 0

    def resized(self, i: int, size: float) -> Place:
        """The same place with another step in direction number ``i``."""
        return replace(self, sizes=(*self.sizes[:i], size, *self.sizes[i + 1 :]))


def begin(nodes: Sequence[float], told: Sequence[float] = ()) -> Place:
    """Where a search begins: at ``nodes``, ``steps + 1`` rising sigmas, and with what is ``told``; () for the nodes."""
    steps = len(nodes) - 1
    return Place(tuple(nodes), tuple(told) or (1.0,) * steps, tuple(each.size for each in _directions(steps)))


@dataclass(frozen=True, eq=False)
class Found:
    """What a search has come to: its ``place``, the ``walk`` along it, and the ``score`` of that.

    ``evaluations``  of the field, so far.
    """

    place: Place
    walk: Walk
    score: float
    evaluations: int


def search(fitting: Fitting, place: Place, score: Callable[[Walk], float], *, seed: int) -> Iterator[Found]:
    """Look for nodes, and for what to tell the field, that make the ``score`` small.

    It gives what it has found at first, after each direction, and after each sweep over all of them. Between two sweeps
    it can be left, and taken up again at the place that it had come to. It ends when its steps are small everywhere.

    Raises:
        SolverError: if the walk at ``place`` ends at no finite numbers.
    """
    directions = _directions(len(place.nodes) - 1)
    walk = fitting.walk(place.nodes, place.told)
    found = Found(place, walk, score(walk), len(place.told))
    yield found
    while max(map(abs, found.place.sizes)) >= _LEAST_STEP:
        order = list(range(len(directions)))
        Random(f"{seed} {found.place.sweeps}").shuffle(order)
        for i in order:
            if abs(found.place.sizes[i]) >= _LEAST_STEP:
                found = _tried(fitting, found, score, directions[i], i)
                yield found
        found = replace(found, place=replace(found.place, sweeps=found.place.sweeps + 1))
        yield found


def _tried(fitting: Fitting, found: Found, score: Callable[[Walk], float], direction: _Direction, i: int) -> Found:
    """What is found when one ``direction``, number ``i``, is tried there and, if that is no better, back."""
    size = found.place.sizes[i]
    for step in (size, -size):
        place = direction.moved(found.place, step)
        if direction.of_nodes and any(b < _NEAREST * a for a, b in pairwise(place.nodes)):
            continue
        same = common_steps(found.walk, fitting.way(place.nodes), place.told)
        found = replace(found, evaluations=found.evaluations + len(place.told) - same)
        try:
            walk = fitting.walk(place.nodes, place.told, found.walk)
        except SolverError:
            continue
        value = score(walk)
        if value < found.score:
            return replace(found, place=place.resized(i, step * _GROWTH), walk=walk, score=value)
    return replace(found, place=found.place.resized(i, size * _SHRINKAGE))


@dataclass(frozen=True)
class _Direction:
    """A change by multiples of ``hat`` of the logarithms of the nodes, or of what is told; ``size`` at first."""

    of_nodes: bool
    hat: tuple[float, ...]
    size: float

    def moved(self, place: Place, size: float) -> Place:
        """Another ``place``, so far away."""
        if self.of_nodes:
            return replace(place, nodes=self._scaled(place.nodes, size))
        return replace(place, told=self._scaled(place.told, size))

    def _scaled(self, values: tuple[float, ...], size: float) -> tuple[float, ...]:
        return tuple(x * exp(size * height) if height else x for x, height in zip(values, self.hat, strict=True))


def _directions(steps: int) -> list[_Direction]:
    """Hats of all widths that are powers of 2, up to a quarter of the ``steps``."""
    found = []
    for width in (2**k for k in range(steps.bit_length()) if k == 0 or 2**k <= steps / 4):
        # The ends stay where they are.
        for centre in range(width, steps - width + 1, width):
            found.append(_Direction(True, _hat(steps + 1, centre, width), _NODE_STEP))
        for centre in range(0, steps, width):
            size = _FIRST_STEP if (width, centre) == (1, 0) else _TOLD_STEP
            found.append(_Direction(False, _hat(steps, centre, width), size))
    return found


def _hat(count: int, centre: int, width: int) -> tuple[float, ...]:
    return tuple(max(0.0, 1 - abs(n - centre) / width) for n in range(count))


def common_steps(before: Walk, nodes: Sequence[float], told: Sequence[float]) -> int:
    """How many steps a walk along ``nodes``, in its order, has in common with one ``before``."""
    steps = len(nodes) - 1
    differ = (
        n
        for n in range(steps)
        if before.nodes[: n + 2] != tuple(nodes[: n + 2]) or before.told[: n + 1] != tuple(told[: n + 1])
    )
    return next(differ, steps)


def _finite(nodes: Sequence[float], n: int) -> float:
    """Node number ``n``, or what stands for it if it is infinite."""
    return _FAR * nodes[n + 1] if isinf(nodes[n]) else nodes[n]


def _least_squares(terms: Sequence[Tensor], residual: Tensor, ridge: float, share: float) -> tuple[float, ...]:
    """Weights that make sum_j weight_j terms_j about ``residual``, all ``(B, ...)``; each is weighed with a ridge.

    A term that is zero everywhere has weight 0.
    """
    import torch

    columns = torch.stack([term.flatten(1) for term in terms], dim=-1)
    target = residual.flatten(1)
    nearest = target.square().mean(1).argsort()[: max(1, round(share * len(target)))]
    columns, target = columns[nearest].flatten(0, 1), target[nearest].flatten()
    return ridge_solution(columns.T @ columns, columns.T @ target, ridge)


def ridge_solution(gram: Tensor, right: Tensor, ridge: float) -> tuple[float, ...]:
    """The solution of normal equations, ``(n, n)`` and ``(n,)``, with a ``ridge`` relative to each diagonal element.

    What has no part in them is 0.
    """
    import torch

    sizes = gram.diagonal()
    ridges = torch.where(sizes > 0, ridge * sizes, 1)
    solution: torch.Tensor = torch.linalg.solve(gram + ridges.diag(), right)
    return tuple(solution.tolist())
