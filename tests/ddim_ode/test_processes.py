"""What networks predict: every row of the table against the definition of x, and against diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddim_ode.codec import decode, encode
from ddim_ode.grids import make_grid
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.predictions import PREDICTIONS
from ddim_ode.schedule import make_schedule
from ddim_ode.solvers import SOLVERS, get_solver

SCHEDULE = make_schedule()
each_prediction = pytest.mark.parametrize("name", PREDICTIONS)
timesteps = st.integers(0, len(SCHEDULE) - 1)


def draw(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_prediction
@given(t=timesteps)
def test_of_its_target_eps_is_found(name: str, t: int) -> None:
    """With x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps."""
    row, alpha_bar, (x_0, eps) = PREDICTIONS[name], SCHEDULE.alpha_bar[t], (draw(0), draw(1))
    x = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    found = row.eps(row.target(x_0, eps, alpha_bar), x, SCHEDULE.sigma(t))
    torch.testing.assert_close(found, eps, rtol=0, atol=1e-11)


@each_prediction
@given(t=timesteps)
def test_own_gamma_is_the_square_of_what_an_error_of_eps_is_in_the_output(name: str, t: int) -> None:
    row, alpha_bar, sigma, x = PREDICTIONS[name], SCHEDULE.alpha_bar[t], SCHEDULE.sigma(t), draw(0)
    error = row.eps(draw(1) + draw(2), x, sigma) - row.eps(draw(1), x, sigma)
    expected = draw(2).square().mean()
    torch.testing.assert_close(row.own_gamma(alpha_bar) * error.square().mean(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample"])  # which are all that diffusers knows
def test_euler_is_diffusers_ddim(name: str) -> None:
    """Down to alpha_bar = 1, within the rounding of diffusers' float32 table, for a network of any kind."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) * (1 + t / 1000).reshape(-1, 1, 1, 1)

    scheduler = DDIMScheduler(prediction_type=name, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x = draw(3)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.double().expand(2)), t, x).prev_sample
    ode = ProbabilityFlowODE(network, SCHEDULE, prediction=name)
    images = decode(ode, draw(3), make_grid(SCHEDULE, "trailing", 10, clean_end="zero"), get_solver("euler"))
    torch.testing.assert_close(images, x.double(), rtol=0, atol=1e-4)


@each_prediction
def test_the_flow_of_a_gaussian_is_the_same_whatever_is_predicted(name: str) -> None:
    """There and back, from what the best network for data N(0.3, 0.6^2) predicts."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        sigma = SCHEDULE.sigma(t).reshape(-1, 1, 1, 1)
        x_bar = x * (1 + sigma**2).sqrt()
        eps = sigma * (x_bar - 0.3) / (0.6**2 + sigma**2)
        return PREDICTIONS[name].target(x_bar - sigma * eps, eps, 1 / (1 + sigma**2))

    ode, grid = ProbabilityFlowODE(network, SCHEDULE, prediction=name), make_grid(SCHEDULE, "log-snr", 40)
    stretch = ((0.6**2 + grid.sigma_T**2) / (0.6**2 + grid.sigmas[0] ** 2)) ** 0.5
    truth = (0.3 + (draw(4) - 0.3) * stretch) / (1 + grid.sigma_T**2) ** 0.5
    x_T = encode(ode, draw(4), grid, get_solver("rk4"))
    torch.testing.assert_close(x_T, truth, rtol=0, atol=2e-4)
    torch.testing.assert_close(decode(ode, truth, grid, get_solver("rk4")), draw(4), rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", [name for name, row in PREDICTIONS.items() if not row.at_zero])
def test_without_a_slope_at_zero_it_says_so(name: str) -> None:
    """Also of one member of a batch; and a solver that does not evaluate there gets there."""
    ode = ProbabilityFlowODE(lambda x, t: x.tanh(), SCHEDULE, prediction=name)
    for sigma in (torch.tensor(0.0), torch.tensor([1.0, 0.0])):
        with pytest.raises(ValueError, match=r"has no slope at sigma = 0, .* 0 / 0; take the clean end 'sigma-min'"):
            ode(sigma, draw(0))
    grid = make_grid(SCHEDULE, "trailing", 5, clean_end="zero")
    with pytest.raises(ValueError, match="has no slope at sigma = 0"):
        encode(ode, draw(0), grid, SOLVERS["euler"])
    assert bool(decode(ode, draw(0), grid, SOLVERS["euler"]).isfinite().all())
