"""The first test: Euler's method on a grid of tau is DDIM with eta = 0, by its formula and by diffusers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from flows import relative_error
from torch import Tensor

from ddim_ode.codec import decode, encode
from ddim_ode.grids import make_grid
from ddim_ode.models import EMBEDDED, Model, load_model
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.schedule import NoiseSchedule, make_schedule
from ddim_ode.solvers import get_solver
from ddim_ode.spacings import GRIDS, Tau

EULER = get_solver("euler")
TAUS = sorted(name for name, kind in GRIDS.items() if isinstance(kind, Tau))
SCHEDULES = {
    "ddpm": make_schedule(),
    "stable-diffusion": make_schedule("scaled_linear", beta_start=0.00085, beta_end=0.012),
}


def nonlinear_eps(x: Tensor, t: Tensor) -> Tensor:
    """An arbitrary network: it mixes neighbours and channels, and depends on each member's t."""
    phase = (t / 300).reshape(-1, 1, 1, 1)
    return torch.tanh(x + phase.cos()) + 0.3 * x.roll(1, 1).sin() * (1 + phase) - 0.2 * x.roll(1, -1) / (1 + x**2)


def ddim_walk(eps: Callable[[Tensor, Tensor], Tensor], schedule: NoiseSchedule, x: Tensor, tau: list[int]) -> Tensor:
    """DDIM, Eq. (12), with sigma_t = 0, from each timestep of ``tau`` to the next; -1 is alpha = 1, labelled 0.

    x_s = sqrt(alpha_s) (x_t - sqrt(1 - alpha_t) eps) / sqrt(alpha_t) + sqrt(1 - alpha_s) eps
    """
    alpha_bar = [*schedule.alpha_bar, torch.tensor(1.0, dtype=torch.float64)]
    for t, s in pairwise(tau):
        e = eps(x, torch.full((len(x),), max(t, 0), dtype=torch.float64))
        predicted_x_0 = (x - (1 - alpha_bar[t]).sqrt() * e) / alpha_bar[t].sqrt()
        x = alpha_bar[s].sqrt() * predicted_x_0 + (1 - alpha_bar[s]).sqrt() * e
    return x


@pytest.mark.parametrize("steps", [1, 7, 10, 50, 333, 1000])
@pytest.mark.parametrize("name", TAUS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_euler_is_ddim(schedule: NoiseSchedule, name: str, steps: int) -> None:
    """To 1e-12 of the whole; of a single small element processors differ in the last digits of the sines here."""
    grid = make_grid(schedule, name, steps, clean_end="zero")
    tau = [-1, *(int(t) for t in grid.timesteps[1:])]
    ode = ProbabilityFlowODE(nonlinear_eps, schedule)
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
    for result, expected in (
        (decode(ode, x, grid, EULER), ddim_walk(nonlinear_eps, schedule, x, tau[::-1])),
        (encode(ode, x, grid, EULER), ddim_walk(nonlinear_eps, schedule, x, tau)),
    ):
        assert relative_error(result, expected) < 1e-12
    assert ode.nfe == 2 * steps


@pytest.fixture(scope="module")
def embedded() -> Model:
    model = load_model()
    model.network.double()
    return model


@pytest.mark.parametrize("steps", [10, 20, 50, 100])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_euler_on_the_embedded_model_is_diffusers_ddim(embedded: Model, spacing: str, steps: int) -> None:
    """Within the rounding of diffusers, which keeps its table in float32. Another grid is off by about 0.04.

    The network is in float64, for its own rounding would cover that.
    """
    scheduler = DDIMScheduler.from_pretrained(
        EMBEDDED["default"] / "scheduler", timestep_spacing=spacing, set_alpha_to_one=True
    )
    scheduler.set_timesteps(steps)
    x_T = x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(embedded.network(x, t.double().expand(1)), t, x, eta=0.0).prev_sample
    ours = decode(embedded.ode(), x_T, make_grid(embedded.schedule, spacing, steps), EULER)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)
