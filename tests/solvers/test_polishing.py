"""Polishing: its derivatives are those of the walk, and what it finds errs less, also where it was not fitted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from fitting_problem import NODES, PROBLEM, STEPS, Lying, ends, fitting, score
from torch import Tensor

from ddim_ode.solvers.fitted import Fit, corrected
from ddim_ode.solvers.learning import Fitting, Walk
from ddim_ode.solvers.polishing import Aim, _moved, _numbers, _varied, polish


def aim_at(way: Fitting, walk: Walk) -> Aim:
    return Aim(results=lambda x: (x,), truths=(way.solution(walk.nodes[-1]),))


@pytest.mark.parametrize("upward", [True, False])
@pytest.mark.parametrize("told", [(), (1.0,) * STEPS])
def test_the_end_errs_less_also_for_others(upward: bool, told: tuple[float, ...]) -> None:
    way = fitting(Lying(PROBLEM.field), upward=upward)
    walk = way.walk(NODES, told)
    polished = min(polish(way, walk, aim_at(way, walk)), key=score)
    assert score(polished) < 0.7 * score(walk)
    assert polished.nodes == walk.nodes
    others = fitting(Lying(PROBLEM.field), upward=upward, seed=1)
    truth = others.solution(walk.nodes[-1])
    errors = [float((others.follow(walk.nodes, fit).x - truth).square().mean()) for fit in (walk.fit, polished.fit)]
    assert errors[1] < 0.8 * errors[0]


def test_it_is_the_walk_of_the_solver() -> None:
    way = fitting(Lying(PROBLEM.field), upward=False)
    walk = way.walk(NODES, (1.0,) * STEPS)
    polished = next(polish(way, walk, aim_at(way, walk)))
    found = corrected(way.base, polished.fit)(
        way.field, way.solution(NODES[-1]), torch.tensor(walk.nodes, dtype=torch.float64)
    )
    torch.testing.assert_close(polished.x, found, rtol=1e-12, atol=0)


def test_derivatives_are_those_of_the_walk() -> None:
    """Changed so little, the end moves by half as much where a number changes by half as much."""
    way = fitting(Lying(PROBLEM.field), upward=True)
    walk = way.walk(NODES, (1.0,) * STEPS)
    line = way.line(walk.nodes, walk.fit.told)
    numbers = _numbers(walk.fit)
    for i, number in enumerate(numbers):
        change, end = _varied(line, walk, line.step(number.n, walk.points[number.n]), number)
        moved = [0.0] * len(numbers)
        moved[i] = change / 2
        half = way.follow(walk.nodes, _moved(walk.fit, moved)).x
        torch.testing.assert_close(half - walk.x, (end - walk.x) / 2, rtol=0.1, atol=1e-3 * float(walk.x.std()))


def test_several_results_count_alike() -> None:
    """A result that is a thousand times as large has no more to say; that of nobody's interest, nothing to lose."""
    way = fitting(PROBLEM.field, upward=False)
    walk = way.walk(NODES)
    (truth,) = aim_at(way, walk).truths

    def both(factor: float, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., :1], factor * x[..., 1:]

    fits = [
        next(polish(way, walk, Aim(results=partial(both, factor), truths=both(factor, truth)))).fit
        for factor in (1, 1000)
    ]
    for a, b in zip(fits[0].weights, fits[1].weights, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-6)


def test_nothing_better_is_the_same() -> None:
    """At the truth there is nothing to gain, and where the field is nowhere finite nothing is found."""
    way = fitting(PROBLEM.field, upward=False)
    walk = way.walk(NODES)
    exact = Aim(results=lambda x: (x,), truths=(walk.x,))
    assert all(found.fit == walk.fit for found in polish(way, walk, exact))
    broken = replace(way, field=lambda sigma, x: x * torch.nan)
    assert list(polish(broken, walk, aim_at(way, walk))) == []


def test_steps_are_of_several_lengths() -> None:
    """The first is the longest, and fits best what it was made for."""
    way = fitting(Lying(PROBLEM.field), upward=False)
    walk = way.walk(NODES, (1.0,) * STEPS)
    found = list(polish(way, walk, aim_at(way, walk)))
    before = torch.tensor([x for row in walk.fit.weights for x in row])
    moves = [float((torch.tensor([x for row in each.fit.weights for x in row]) - before).norm()) for each in found]
    assert len(moves) > 2
    assert moves[0] == max(moves) > 2 * moves[-1] == 2 * min(moves)
    assert min(found, key=score) in found[:2]


def test_numbers_that_change_nothing_stay() -> None:
    """A state of zeros has no part in the first step."""
    way = replace(fitting(PROBLEM.field, upward=True), solution=lambda sigma: 0 * ends(30, 0) * sigma)
    walk = replace(way.walk(NODES), fit=Fit(((0.0, 0.0),) * 1 + ((0.0, 0.0, 0.0),) * (STEPS - 1)))
    walk = way.follow(walk.nodes, walk.fit)
    aim = Aim(results=lambda x: (x,), truths=(torch.ones_like(walk.x),))
    found = next(polish(way, walk, aim))
    assert found.fit.weights[0][-1] == 0
    assert any(any(row) for row in found.fit.weights)  # others did not stay
