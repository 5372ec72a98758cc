"""The check of a latent against the truth: the exact flow of Gaussian data."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddim_ode.codec import decode, encode, encode_solution
from ddim_ode.grids import Grid, halved, make_grid
from ddim_ode.images import pixel_mse
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.schedule import make_schedule
from ddim_ode.session.check import MOMENT_TOLERANCE, check
from ddim_ode.session.walks import Walker
from ddim_ode.solvers import finer, get_solver
from ddim_ode.spacings import GRIDS

SCHEDULE = make_schedule()
STD = 0.6


def eps(x: Tensor, t: Tensor) -> Tensor:
    """The best one for data N(0, STD^2)."""
    sigma = SCHEDULE.sigma(t).reshape(-1, 1, 1, 1)
    return sigma * x * (1 + sigma**2).sqrt() / (STD**2 + sigma**2)


def error_of(x_T: Tensor, x_0: Tensor, grid: Grid) -> Tensor:
    stretch = sqrt((STD**2 + grid.sigma_T**2) / (STD**2 + grid.sigmas[0] ** 2) / (1 + grid.sigma_T**2))
    return (x_T - x_0 * stretch).square().flatten(1).mean(1).sqrt()


@pytest.mark.parametrize("name", ["euler", "heun", "ab2", "dpmpp2m", "reab2", "torchdiffeq-bosh3"])
def test_the_estimate_is_the_error_within_a_factor_of_three(name: str) -> None:
    """Euler's is half of it: the finer latent has the other half."""
    solver = get_solver(name, rtol=1e-3, atol=1e-3) if name.startswith("torchdiffeq") else get_solver(name)
    ode = ProbabilityFlowODE(eps, SCHEDULE)
    x_0 = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = make_grid(SCHEDULE, "log-snr", 40)
    x_T = encode(ode, x_0, grid, solver)
    found = check(Walker(ode), x_0, x_T, grid, finer=(finer(solver), halved(grid, SCHEDULE)), back=solver)
    ratio = found.latent_rmse / error_of(x_T, x_0, grid)
    assert float(ratio.min()) > 1 / 3
    assert float(ratio.max()) < 3
    assert torch.equal(found.reconstruction_mse, pixel_mse(x_0, decode(ode, x_T, grid, solver)))


def test_each_walk_has_the_limit_to_itself() -> None:
    solver, x_0, grid = get_solver("euler"), torch.ones(1, 1, 4, 4).double(), make_grid(SCHEDULE, "log-snr", 5)
    ode = ProbabilityFlowODE(eps, SCHEDULE, max_nfe=10)
    x_T = encode(ode, x_0, grid, solver)
    check(Walker(ode), x_0, x_T, grid, finer=(solver, halved(grid, SCHEDULE)), back=solver)
    assert ode.nfe == 5


@pytest.mark.parametrize(("name", "drifts"), [("o-belm", True), ("bdia", False), ("dpmpp3m", False)])
def test_the_second_moment_tells_a_method_that_cannot_encode(name: str, drifts: bool) -> None:
    """Though some of them lead back exactly. The truth is at least as far off as 3 %, or is not."""
    solver, ode = get_solver(name), ProbabilityFlowODE(eps, SCHEDULE)
    x_0 = STD * torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = make_grid(SCHEDULE, "log-snr", 32)
    found = encode_solution(ode, x_0, grid, solver)
    x_T, companion = found.x, found.companion
    finer_way = (finer(solver), halved(grid, SCHEDULE))
    found = check(Walker(ode), x_0, x_T, grid, finer=finer_way, back=solver, companion=companion)
    assert torch.equal(found.second_moment, x_T.square().mean((1, 2, 3)))
    assert torch.equal(found.finer_moment, encode(ode, x_0, finer_way[1], solver).square().mean((1, 2, 3)))
    truth = (x_0 / STD).square().mean((1, 2, 3))
    assert (((found.second_moment / truth - 1).abs() > MOMENT_TOLERANCE) == found.drifts).all()
    assert found.drifts.tolist() == 3 * [drifts]


@given(name=st.sampled_from(sorted(GRIDS)), steps=st.integers(1, 60), clean_end=st.sampled_from(["zero", "sigma-min"]))
def test_a_halved_grid_keeps_every_node_and_adds_one_in_each_step(name: str, steps: int, clean_end: str) -> None:
    grid = make_grid(SCHEDULE, name, steps, clean_end=clean_end)
    finer_grid = halved(grid, SCHEDULE)
    assert finer_grid.sigmas[::2] == grid.sigmas
    assert finer_grid.steps == 2 * grid.steps
    assert finer_grid.clean_end == grid.clean_end
    assert finer_grid.timesteps[::2] == pytest.approx(grid.timesteps, abs=1e-8)
