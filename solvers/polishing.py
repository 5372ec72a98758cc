"""Making a fit better through the whole walk, by one damped step of Gauss and Newton's method for all of its numbers.

Least squares step by step (``solvers.learning``) lead each step as near to the solutions as it can be, whatever the
later steps make of what is left; and they know nothing of what the end of the walk is for. Here the weights of all
steps, and what the field is told in them, change together, so that the results of the walk err less. Derivatives are
differences: each costs the rest of a walk. Steps of some lengths are tried (Marquardt, "An algorithm for least-squares
estimation of nonlinear parameters", 1963); which of them is best, if any, solutions say that nothing is fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .base import SolverError, rms
from .learning import Fitting, Line, Step, Walk, ridge_solution

if TYPE_CHECKING:
    from torch import Tensor

    from .fitted import Fit

# A weight is changed so far that the state changes by as much of itself; what is told, by so much of itself. A network
# in float32 rounds a thousand times finer.
_CHANGE, _TOLD_CHANGE = 2e-3, 2e-2
# What is told changes by no more than this factor.
_MOST_TOLD = 2.0
_DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# So many elements of the results are enough to tell the numbers apart.
_MOST_ROWS = 2**18
# Its square is a number still.
_TINY = 1e-150


@dataclass(frozen=True)
class Number:
    """One number of a fit: in step ``n`` the weight number ``term``, or what the field is told if that is None."""

    n: int
    term: int | None


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a walk is to lead to.

    ``results``  what comes of its end, ``(B, ...)``: one tensor or several, ``(B, ...)``; they count alike.
    ``truths``   what these should be.
    """

    results: Callable[[Tensor], Sequence[Tensor]]
    truths: Sequence[Tensor]

    def errors(self, end: Tensor) -> list[Tensor]:
        """By how much the results err, each ``(B, ...)``."""
        return [found - truth for found, truth in zip(self.results(end), self.truths, strict=True)]


def polish(
    fitting: Fitting, walk: Walk, aim: Aim, track: Callable[[Sequence[Number]], Iterable[Number]] = iter
) -> Iterator[Walk]:
    """Walks on the solutions of ``fitting`` whose results should err less than those of ``walk``: longest step first.

    ``track``  goes through the numbers, and may show how far that is.
    """
    import torch

    errors = aim.errors(walk.x)
    scales = [_scale(error) for error in errors]
    residual = _joined(errors, scales)
    line, changes, rows = fitting.line(walk.nodes, walk.fit.told), [], []
    for number in track(_numbers(walk.fit)):
        if number.term == 0:  # the first of a step
            step = line.step(number.n, walk.points[number.n])
        change, end = _varied(line, walk, step, number)
        changes.append(change)
        rows.append(_joined(aim.errors(end), scales) - residual)
    jacobian = torch.stack(rows)
    gram, slope = (product.cpu().double() for product in (jacobian @ jacobian.T, jacobian @ residual))
    for damping in _DAMPINGS:
        moves = ridge_solution(gram, -slope, damping)
        trial = _moved(walk.fit, [move * change for move, change in zip(moves, changes, strict=True)])
        with suppress(SolverError):  # a shorter step may lead to finite numbers
            yield fitting.follow(walk.nodes, trial)


def _numbers(fit: Fit) -> list[Number]:
    """All that can be changed in a ``fit``; to move nodes along with it brings nothing more."""
    found = []
    for n, weights in enumerate(fit.weights):
        found += [Number(n, term) for term in range(len(weights))]
        found += [Number(n, None)] if fit.told else []
    return found


def _moved(fit: Fit, moves: Sequence[float]) -> Fit:
    """The ``fit`` with each of its numbers moved: weights by so much, what is told by such a part of itself."""
    weights, told = [list(row) for row in fit.weights], list(fit.told)
    for move, number in zip(moves, _numbers(fit), strict=True):
        if number.term is None:
            told[number.n] *= min(max(1 + move, 1 / _MOST_TOLD), _MOST_TOLD)
        else:
            weights[number.n][number.term] += move
    return replace(fit, weights=tuple(map(tuple, weights)), told=tuple(told))


def _varied(line: Line, walk: Walk, step: Step, number: Number) -> tuple[float, Tensor]:
    """How much a ``number`` of a ``step`` is changed to see what it does, and where that ends, ``(B, ...)``."""
    n, fit = number.n, walk.fit
    weights = list(fit.weights[n])
    if number.term is None:
        change = _TOLD_CHANGE
        told = (*fit.told[:n], fit.told[n] * (1 + change), *fit.told[n + 1 :])
        step = replace(line, told=told).step(n, walk.points[n])
    else:
        term = float(rms(step.terms[number.term]).mean())
        change = _CHANGE * float(rms(step.x).mean()) / term if term > 0 else 0.0
        weights[number.term] += change
    *_, end = line.points(fit.weights, n + 1, step.corrected(weights))
    return change, line.leave(end)


def _scale(error: Tensor) -> Tensor:
    """What to multiply an ``error``, ``(B, ...)``, with, ``(B, ...)``.

    The squares of each member then add up to its RMSE, in parts of the mean of all.
    """
    each = rms(error).clamp_min(_TINY)
    return (each * each.mean() * error[0].numel()).rsqrt().reshape(-1, *(1,) * (error.ndim - 1))


def _joined(errors: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    """All ``errors``, or some of their elements, scaled, as one; in float32, since differences have no more digits."""
    import torch

    parts = [(error * scale).flatten() for error, scale in zip(errors, scales, strict=True)]
    # Odd, so as not to take the same columns of each picture.
    return torch.cat([part[:: len(part) // _MOST_ROWS | 1] for part in parts]).float()
