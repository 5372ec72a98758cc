"""PNDM: beside diffusers' scheduler of that name, and what its order is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import log2, sqrt

import pytest
import torch
from diffusers import PNDMScheduler
from flows import MIXTURE, relative_error
from torch import Tensor

from ddim_ode.solvers import SOLVERS, Solver
from ddim_ode.solvers.charts import VP_TIME, vp_sigma
from ddim_ode.solvers.pndm import PseudoNumericalStep, middle_in_time

PNDM = SOLVERS["pndm"]
TIMES = range(950, -1, -50)  # of diffusers' grid 'leading' with 20 steps
ROUNDING = 5e-7  # diffusers keeps alpha_bar in float32


@pytest.fixture(scope="module")
def scheduler() -> PNDMScheduler:
    """With betas so small that the first steps, far out, are not nearly exact whatever the method."""
    scheduler = PNDMScheduler(beta_end=0.005)
    scheduler.set_timesteps(len(TIMES))
    return scheduler


@pytest.fixture(scope="module")
def sigmas(scheduler: PNDMScheduler) -> Tensor:
    """Of all timesteps of training, rising."""
    alpha_bar = scheduler.alphas_cumprod.double()
    return ((1 - alpha_bar) / alpha_bar).sqrt()


@pytest.fixture(scope="module")
def by_diffusers(scheduler: PNDMScheduler, sigmas: Tensor) -> Tensor:
    """x_bar at t = 0, with the field ``MIXTURE``. The scheduler's last step leads from there to there."""
    scales = (1 + sigmas**2).sqrt()
    x = MIXTURE.at(float(sigmas[950])) / scales[950]
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(MIXTURE.field(sigmas[t], x * scales[t]), t, x).prev_sample
    return x * scales[0]


def test_it_is_that_of_diffusers_given_its_middle_timesteps(sigmas: Tensor, by_diffusers: Tensor) -> None:
    middles = {(float(sigmas[t]), float(sigmas[s])): float(sigmas[(t + s) // 2]) for t, s in pairwise(TIMES)}
    solver = replace(PNDM, step=PseudoNumericalStep(lambda *ends: middles[ends]))
    x = solver(MIXTURE.field, MIXTURE.at(float(sigmas[950])), sigmas[list(TIMES)])
    assert relative_error(x, by_diffusers) < ROUNDING


def test_with_a_middle_in_the_time_of_another_schedule_it_is_still_nearly_that(
    sigmas: Tensor, by_diffusers: Tensor
) -> None:
    x = PNDM(MIXTURE.field, MIXTURE.at(float(sigmas[950])), sigmas[list(TIMES)])
    assert relative_error(x, by_diffusers) < ROUNDING


@pytest.mark.parametrize(
    "solver",
    [replace(PNDM, step=PseudoNumericalStep(lambda sigma, following: sqrt(sigma * following))), SOLVERS["ipndm4"]],
    ids=["geometric middle", "no start"],
)
def test_the_comparison_can_tell_other_methods(solver: Solver, sigmas: Tensor, by_diffusers: Tensor) -> None:
    x = solver(MIXTURE.field, MIXTURE.at(float(sigmas[950])), sigmas[list(TIMES)])
    assert relative_error(x, by_diffusers) > 10 * ROUNDING


@pytest.mark.parametrize("ends", [(0.3, 10.3), (10.3, 0.3)], ids=["encode", "decode"])
def test_order_is_two_where_neighbouring_steps_differ_little(ends: tuple[float, float]) -> None:
    """Beside that, on any grid, of one: see ``test_order_is_the_declared_one``. Nowhere is it four."""
    begin, end = ends
    errors = []
    for steps in (128, 256):
        grid = begin * (end / begin) ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        grid[-1] = end
        errors.append(relative_error(PNDM(MIXTURE.field, MIXTURE.at(begin), grid), MIXTURE.at(end)))
    assert log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("ends", [(0.0, 0.3), (0.3, 0.0), (2.0, 150.0), (-2.0, -0.1)])
def test_the_middle_is_half_way_in_time_and_has_the_sign_of_the_ends(ends: tuple[float, float]) -> None:
    middle = middle_in_time(*ends)
    assert min(ends) < middle < max(ends)
    times = [VP_TIME.v(sigma) for sigma in (ends[0], middle, ends[1])]
    assert times[1] - times[0] == pytest.approx(times[2] - times[1])


def test_sigma_of_the_time_of_sigma_is_sigma() -> None:
    for sigma in (0.0, 0.01, 1.0, 150.0):
        assert vp_sigma(VP_TIME.v(sigma)) == pytest.approx(sigma, abs=1e-12)
