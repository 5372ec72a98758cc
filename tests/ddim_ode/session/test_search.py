"""The least effort that reaches a quality."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ddim_ode import ProbabilityFlowODE, decode, encode, make_grid, make_schedule
from ddim_ode.images import pixel_mse, psnr
from ddim_ode.models import Model
from ddim_ode.ode import EvaluationLimitError
from ddim_ode.processes import Flow, VariancePreserving
from ddim_ode.session.plan import Plan
from ddim_ode.session.request import MOST_STEPS, Request
from ddim_ode.session.search import cheapest, least, worst_psnr
from ddim_ode.session.worker import Worker
from ddim_ode.solvers import get_solver
from ddim_ode.spaces import PixelSpace
from ddim_ode.spacings import GRIDS, Tau

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
    worker = Worker(MODEL, 5, None)
    images = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images *= torch.tensor([0.1, 1.0, 0.3])[:, None, None, None]
    grid, solver = make_grid(SCHEDULE, "log-snr", 5), get_solver("euler")
    found = worst_psnr(worker, [images[:2], images[2:]], Plan(solver, solver, grid))
    free = ProbabilityFlowODE(lambda x, t: x.tanh(), SCHEDULE)
    errors = pixel_mse(images, decode(free, encode(free, images, grid, solver), grid, solver)).tolist()
    assert found == pytest.approx(psnr(max(errors)))
    assert len(set(errors)) == 3
    with pytest.raises(EvaluationLimitError):
        worst_psnr(worker, [images], Plan(solver, solver, make_grid(SCHEDULE, "log-snr", 6)))


class Tanh(nn.Module):
    """A network that costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (self.weight * x).tanh()


MODEL = Model("small", Tanh(), VariancePreserving(SCHEDULE, "epsilon"), 1, 4, 4)


def search(request: Request, target: float, max_nfe: int) -> tuple[Request, list[str]]:
    """The cheapest request for two random pictures, and what was tried on the way."""
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tried: list[str] = []
    worker = Worker(MODEL, max_nfe, None)
    return cheapest(request, MODEL, worker, lambda: [images], target, max_nfe=max_nfe, tried=tried.append), tried


@pytest.mark.parametrize("grid", [name for name, kind in GRIDS.items() if isinstance(kind, Tau)])
def test_no_more_steps_are_tried_than_there_are_timesteps(grid: str) -> None:
    """However many evaluations are allowed: 999, since the clean end may take one of the thousand."""
    with pytest.raises(ValueError, match=r"^no setting within --max-nfe 10000 brings every picture back at 1000 dB"):
        search(Request("euler", grid=grid), target=1e3, max_nfe=10_000)


def test_what_is_found_is_the_fewest_steps_and_keeps_the_other_wishes() -> None:
    wish = Request("heun", grid="karras", clean_end="zero")
    found, _ = search(wish, target=30, max_nfe=200)
    assert found == replace(wish, steps=found.steps)
    assert found.steps
    with pytest.raises(ValueError, match="no setting within --max-nfe"):
        search(wish, target=30, max_nfe=2 * found.steps - 1)


def test_the_default_grid_has_no_more_steps_than_timesteps_either() -> None:
    """That of flow matching; the search ends with the best it has seen, and no error of a grid."""
    flow, tried = Model("flow", Tanh(), Flow(), 1, 4, 4), list[str]()
    images = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.raises(ValueError, match=r"brings every picture back at 1000 dB; the best one tried reached"):
        cheapest(Request(), flow, Worker(flow, 1_200, None), lambda: [images], 1e3, max_nfe=1_200, tried=tried.append)
    assert any(line.startswith("tried angle-ab3, 999 steps") for line in tried)
    assert any(line.startswith("tried reab2, ") for line in tried)


class Doubled(PixelSpace):
    """One whose pictures look twice as bright as their states."""

    def picture(self, state: Tensor) -> Tensor:
        return 2 * state


def test_errors_are_of_what_states_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.5
    grid, solver = make_grid(SCHEDULE, "log-snr", 3), get_solver("euler")
    plan, worker = Plan(solver, solver, grid), Worker(MODEL, 10, None)
    own = worst_psnr(worker, [images], plan)
    monkeypatch.setattr(Model, "space", Doubled(1, 4, 4))
    assert worst_psnr(worker, [images], plan) == pytest.approx(own - psnr(0.25))


def test_a_limit_beyond_all_numbers_of_steps_is_none() -> None:
    found, _ = search(Request("euler"), target=20, max_nfe=2 * MOST_STEPS)
    assert found.steps == search(Request("euler"), target=20, max_nfe=100)[0].steps
