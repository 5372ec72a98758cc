"""The search for nodes and for what to tell the field: it finds them, and nothing that is worse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import hypot, inf, nan

import pytest
import torch
from flows import Field, Recorded, gaussian, real
from torch import Tensor

from solvers import SOLVERS, SolverError
from solvers.fixed import FixedStepSolver
from solvers.learning import Fitting, Found, Place, Walk, begin, common_steps, search

NODES = (0.05, 0.3, 0.8, 2.0, 6.0, 20.0)
STEPS = len(NODES) - 1
# Pixels of three kinds, so that no one weight serves all.
STD = real([[0.1, 0.5], [1.0, 0.5]])
PROBLEM = gaussian(real(0.3), STD, torch.zeros(1, 1, 2, 2, dtype=torch.float64))


class Lying(Recorded):
    """The field, which takes what it is told for three times as much."""

    def __call__(self, sigma: Tensor, x: Tensor) -> Tensor:
        return self.told(float(sigma))(sigma, x)

    def told(self, sigma: float) -> Field:
        return lambda _, x: super(Lying, self).__call__(torch.tensor(3 * sigma, dtype=torch.float64), x)


def ends(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return hypot(1.0, NODES[-1]) * torch.randn((count, 1, 2, 2), generator=generator, dtype=torch.float64)


def fitting(field: Field, *, upward: bool, count: int = 30, seed: int = 0) -> Fitting:
    base = SOLVERS["euler"]
    assert isinstance(base, FixedStepSolver)
    end = ends(count, seed)
    return Fitting(
        base=base, field=field, upward=upward, solution=lambda sigma: PROBLEM.flow(end, NODES[-1], sigma), slopes=2
    )


def score(walks: Sequence[Walk]) -> float:
    """The errors of the walks at their ends, as parts of the states there."""
    truths = [PROBLEM.flow(ends(30, 0), NODES[-1], walk.nodes[-1]) for walk in walks]
    errors = [
        (walk.x - truth).square().mean() / truth.square().mean() for walk, truth in zip(walks, truths, strict=True)
    ]
    return float(sum(errors))


def last(found: Iterable[Found]) -> Found:
    *_, end = found
    return end


def test_what_is_told_is_found() -> None:
    """The truth is a third of sigma, in each step, both ways."""
    field = Lying(PROBLEM.field)
    ways = [fitting(field, upward=False), fitting(field, upward=True)]
    start = begin(NODES, [[1.0] * STEPS] * 2)
    found = last(search(ways, start, score, seed=0))
    assert found.score < 0.2 * score([way.walk(NODES) for way in ways])
    told_true = score([way.walk(found.place.nodes, [1 / 3] * STEPS) for way in ways])
    assert found.score < 1.1 * told_true


def test_each_result_is_as_good_as_the_one_before_and_costs_what_it_says() -> None:
    field = Recorded(PROBLEM.field)
    field.told = lambda sigma: lambda _, x: field(torch.tensor(sigma, dtype=torch.float64), x)  # type: ignore[attr-defined]
    found = list(search([fitting(field, upward=False)], begin(NODES, [[1.0] * STEPS]), score, seed=0))
    assert found[-1].evaluations == field.nfe
    for before, after in pairwise(found):
        assert after.score <= before.score
        assert after.evaluations >= before.evaluations
        assert (after.place.nodes[0], after.place.nodes[-1]) == (NODES[0], NODES[-1])
    walked = fitting(field, upward=False).walk(found[-1].place.nodes, found[-1].place.told[0])
    torch.testing.assert_close(walked.x, found[-1].walks[0].x, rtol=1e-12, atol=0)
    assert max(map(abs, found[-1].place.sizes)) < 0.01


def test_it_goes_on_where_it_was_left() -> None:
    way = fitting(Lying(PROBLEM.field), upward=True)
    whole = [f for f in search([way], begin(NODES, [[1.0] * STEPS]), score, seed=3) if f.place.sweeps <= 4]
    left = next(f.place for f in whole if f.place.sweeps == 2)
    again = next(f for f in search([way], left, score, seed=3) if f.place.sweeps == 4)
    assert again.place == next(f.place for f in whole if f.place.sweeps == 4)


def test_a_walk_is_not_walked_again_where_it_is_the_same() -> None:
    field = Lying(PROBLEM.field)
    way = fitting(field, upward=False)
    whole = way.walk(NODES, [1.0] * STEPS)
    before = field.nfe
    other = (*NODES[:1], 0.4, *NODES[2:])
    part = way.walk(other, [1.0] * STEPS, whole)
    assert field.nfe - before == 2 == STEPS - common_steps(whole, other[::-1], [1.0] * STEPS)
    torch.testing.assert_close(part.x, way.walk(other, [1.0] * STEPS).x, rtol=0, atol=0)
    assert way.walk(NODES, [1.0] * STEPS, whole) is whole


def test_from_infinity_what_is_told_is_finite() -> None:
    base = SOLVERS["angle-ab3"]
    assert isinstance(base, FixedStepSolver)

    class Endless:
        """The field x / sigma, of data 0."""

        def __call__(self, sigma: Tensor, x: Tensor) -> Tensor:
            return x / sigma

        def origin(self, far: Tensor) -> Tensor:
            return torch.zeros_like(far)

        def told(self, sigma: float) -> Field:
            asked.append(sigma)
            return self

    asked: list[float] = []
    x = torch.randn((3, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    way = Fitting(base=base, field=Endless(), upward=False, solution=lambda sigma: x * (1 if sigma == inf else sigma))
    walk = way.walk((0.1, 1.0, 10.0, inf), (1.0, 1.0, 2.0))
    assert walk.fit.told == pytest.approx((80.0, 10.0, 2.0))
    assert asked == list(walk.fit.told)


def test_what_is_not_finite_is_no_start_and_never_found() -> None:
    def broken(sigma: Tensor, x: Tensor) -> Tensor:
        return x * nan

    with pytest.raises(SolverError, match="the state is not finite"):
        fitting(broken, upward=False).walk(NODES)
    place = begin(NODES, [])
    assert isinstance(place, Place)
    assert replace(place, sweeps=1) != place
