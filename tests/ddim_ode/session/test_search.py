"""The least effort that reaches a quality."""

from __future__ import annotations

from math import nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddim_ode import ProbabilityFlowODE, decode, encode, make_grid, make_schedule
from ddim_ode.images import pixel_mse, psnr
from ddim_ode.ode import EvaluationLimitError
from ddim_ode.session.plan import Plan
from ddim_ode.session.search import least, worst_psnr
from ddim_ode.session.walks import Walker
from solvers import get_solver

SCHEDULE = make_schedule()


@given(enough=st.integers(1, 300), most=st.integers(0, 300))
def test_least_is_the_first_that_is_good_enough_if_there_is_one(enough: int, most: int) -> None:
    tried: list[int] = []

    def quality(effort: int) -> float:
        tried.append(effort)
        return effort / 2

    assert least(quality, enough / 2, most) == (enough if enough <= most else None)
    assert all(1 <= effort <= most for effort in tried)
    assert len(set(tried)) == len(tried) <= 2 + 2 * most.bit_length()


def test_what_least_returns_is_good_enough_even_where_more_effort_is_worse() -> None:
    lucky = {3, 8, 13}
    assert least(lambda effort: float(effort in lucky), 1.0, 100) in lucky


def test_least_takes_no_quality_that_is_not_a_number() -> None:
    assert least(lambda effort: 50.0 if effort >= 6 else nan, 40.0, 10) == 6


def test_worst_psnr_is_that_of_the_worst_image_of_all_batches() -> None:
    """Each way of each batch begins to count its evaluations anew."""
    ode = ProbabilityFlowODE(lambda x, t: x.tanh(), SCHEDULE, max_nfe=5)
    images = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images *= torch.tensor([0.1, 1.0, 0.3])[:, None, None, None]
    grid, solver = make_grid(SCHEDULE, "log-snr", 5), get_solver("euler")
    found = worst_psnr(Walker(ode), [images[:2], images[2:]], Plan(solver, solver, grid))
    free = ProbabilityFlowODE(lambda x, t: x.tanh(), SCHEDULE)
    errors = pixel_mse(images, decode(free, encode(free, images, grid, solver), grid, solver)).tolist()
    assert found == pytest.approx(psnr(max(errors)))
    assert len(set(errors)) == 3
    with pytest.raises(EvaluationLimitError):
        worst_psnr(Walker(ode), [images], Plan(solver, solver, make_grid(SCHEDULE, "log-snr", 6)))
