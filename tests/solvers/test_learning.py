"""The search for nodes and for what to tell the field: it finds them, and nothing that is worse."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import inf, nan

import pytest
import torch
from fitting_problem import NODES, PROBLEM, STEPS, Lying, fitting, score
from flows import Field, Recorded
from torch import Tensor

from ddim_ode.solvers import SOLVERS, SolverError
from ddim_ode.solvers.fixed import FixedStepSolver
from ddim_ode.solvers.learning import Fitting, Found, _directions, begin, common_steps, search


def last(found: Iterable[Found]) -> Found:
    *_, end = found
    return end


@pytest.mark.parametrize("upward", [True, False])
def test_what_is_told_is_found(upward: bool) -> None:
    """The truth is a third of sigma, in each step: telling nothing errs four times as much."""
    way = fitting(Lying(PROBLEM.field), upward=upward)
    found = last(search(way, begin(NODES), score, seed=0))
    assert found.score < 0.25 * score(way.walk(NODES))


def test_each_result_is_as_good_as_the_one_before_and_costs_what_it_says() -> None:
    field = Recorded(PROBLEM.field)
    field.told = lambda sigma: lambda _, x: field(torch.tensor(sigma, dtype=torch.float64), x)  # type: ignore[attr-defined]
    found = list(search(fitting(field, upward=False), begin(NODES), score, seed=0))
    assert found[-1].evaluations == field.nfe
    for before, after in pairwise(found):
        assert after.score <= before.score
        assert after.evaluations >= before.evaluations
        assert (after.place.nodes[0], after.place.nodes[-1]) == (NODES[0], NODES[-1])
    walked = fitting(field, upward=False).walk(found[-1].place.nodes, found[-1].place.told)
    torch.testing.assert_close(walked.x, found[-1].walk.x, rtol=1e-12, atol=0)
    assert max(map(abs, found[-1].place.sizes)) < 0.01


def test_it_goes_on_where_it_was_left() -> None:
    way = fitting(Lying(PROBLEM.field), upward=True)
    whole = [f for f in search(way, begin(NODES), score, seed=3) if f.place.sweeps <= 4]
    left = next(f.place for f in whole if f.place.sweeps == 2)
    again = next(f for f in search(way, left, score, seed=3) if f.place.sweeps == 4)
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


def test_what_is_not_finite_is_refused_and_never_found() -> None:
    class Broken(Lying):
        def told(self, sigma: float) -> Field:
            return super().told(sigma if sigma > 0.25 else nan)

    with pytest.raises(SolverError, match="the state is not finite"):
        fitting(Broken(PROBLEM.field), upward=False).walk(NODES, [1e-3] * STEPS)
    for found in search(fitting(Broken(PROBLEM.field), upward=False), begin(NODES), score, seed=0):
        assert bool(found.walk.x.isfinite().all())
        assert min(found.walk.fit.told) > 0.25


@pytest.mark.parametrize("steps", range(1, 21))
def test_the_ends_stay_where_they_are(steps: int) -> None:
    place = begin([10.0**n for n in range(steps + 1)])
    moved = [direction.moved(place, 0.5) for direction in _directions(steps)]
    assert {(each.nodes[0], each.nodes[-1]) for each in moved} == {(place.nodes[0], place.nodes[-1])}
    changed = {n for each in moved for n in range(1, steps) if each.nodes[n] != place.nodes[n]}
    assert changed == set(range(1, steps))
    assert {n for each in moved for n in range(steps) if each.told[n] != 1.0} == set(range(steps))
