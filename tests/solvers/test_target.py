"""Encoders for a DDIM decoder: the round trip over Euler's way back, and the rule of diffusers."""

from __future__ import annotations

from math import log2

import pytest
import torch
from diffusers import DDIMInverseScheduler
from flows import CORRELATED, MIXTURE, relative_error, steps_of_two_sizes

from ddim_ode.solvers import SOLVERS, way_back


def round_trip_error(name: str, steps: int) -> float:
    grid = steps_of_two_sizes(0.3, 10.3, steps)
    start = MIXTURE.at(0.3)
    end = SOLVERS[name](MIXTURE.field, start, grid)
    return relative_error(way_back(SOLVERS[name])(MIXTURE.field, end, grid.flip(0)), start)


def test_predicted_target_undoes_euler_to_second_order() -> None:
    """Though its own order, and Euler's, is 1."""
    errors = [round_trip_error("ddim-predicted", steps) for steps in (128, 256)]
    assert log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)
    assert errors[1] < 0.05 * round_trip_error("euler", 256)


def test_rescaled_target_is_the_rule_of_diffusers() -> None:
    """On the grid of timesteps 0, 100, ..., 900, from alpha_bar = 1 on. diffusers keeps its table in float32."""
    scheduler = DDIMInverseScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps].double()
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), (1 / alpha_bar - 1).sqrt()])
    x = CORRELATED.data
    for i, t in enumerate(scheduler.timesteps):
        # It asks the network at the new timestep with the old sample, x / sqrt(1 + sigma^2) of the old sigma.
        sigma = grid[i + 1]
        eps = CORRELATED.field(sigma, x * (1 + sigma**2).sqrt())
        x = scheduler.step(eps, t, x).prev_sample
    ours = SOLVERS["ddim-inverse"](CORRELATED.field, CORRELATED.data, grid)
    assert relative_error(ours / (1 + grid[-1] ** 2).sqrt(), x) < 1e-5
