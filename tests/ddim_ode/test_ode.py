"""The ODE as a function: what the network is given, what comes back, and what is counted."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from ddim_ode.codec import decode, encode
from ddim_ode.grids import make_grid
from ddim_ode.ode import EvaluationLimitError, ProbabilityFlowODE
from ddim_ode.predictions import PREDICTIONS
from ddim_ode.processes import Flow
from ddim_ode.schedule import make_schedule
from ddim_ode.solvers import get_solver

SCHEDULE = make_schedule()
MEAN, STD = 0.3, 0.5
sigmas = st.floats(0, 1).map(lambda part: SCHEDULE.sigma_min * (SCHEDULE.sigma_max / SCHEDULE.sigma_min) ** part)


def gaussian_eps(x: Tensor, t: Tensor) -> Tensor:
    """The best eps for data N(MEAN, STD^2): sigma (x_bar - mean) / (std^2 + sigma^2)."""
    sigma = SCHEDULE.sigma(t).reshape(-1, 1, 1, 1)
    return sigma * (x * (1 + sigma**2).sqrt() - MEAN) / (STD**2 + sigma**2)


def gaussian_v(x: Tensor, t: Tensor) -> Tensor:
    """The best v for the same data: sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0, with the x_0 that eps implies."""
    sigma = SCHEDULE.sigma(t).reshape(-1, 1, 1, 1)
    alpha, noise = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
    eps = gaussian_eps(x, t)
    return alpha * eps - noise * (x - noise * eps) / alpha


class Recorder(nn.Module):
    """A network of one weight that remembers what it was called with."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=dtype))
        self.x = self.t = torch.empty(0)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.x, self.t = x.detach(), t
        return self.weight * x


def state(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("integrate", [odeint, odeint_adjoint])
@pytest.mark.parametrize("ends", [(SCHEDULE.sigma_min, 30.0), (30.0, SCHEDULE.sigma_min)])
def test_torchdiffeq_takes_it_as_it_is(integrate: object, ends: tuple[float, float]) -> None:
    """And finds the flow of a Gaussian."""
    ode = ProbabilityFlowODE(gaussian_eps, SCHEDULE)
    start = state()
    _, end = integrate(ode, start, torch.tensor(ends, dtype=torch.float64), rtol=1e-9, atol=1e-9)  # type: ignore[operator]
    stretch = ((STD**2 + ends[1] ** 2) / (STD**2 + ends[0] ** 2)) ** 0.5
    torch.testing.assert_close(end, MEAN + (start - MEAN) * stretch, rtol=1e-6, atol=1e-6)
    assert ode.nfe > 0


@given(sigmas)
@settings(max_examples=200)
def test_a_plain_function_sees_x_and_t_of_sigma(sigma: float) -> None:
    x_bar = state()
    slope = ProbabilityFlowODE(gaussian_eps, SCHEDULE)(torch.tensor(sigma, dtype=torch.float64), x_bar)
    torch.testing.assert_close(slope, sigma * (x_bar - MEAN) / (STD**2 + sigma**2), rtol=1e-9, atol=1e-11)


@given(sigmas)
@settings(max_examples=200)
def test_eps_and_v_of_the_same_data_have_the_same_slope(sigma: float) -> None:
    level = torch.tensor(sigma, dtype=torch.float64)
    by_eps = ProbabilityFlowODE(gaussian_eps, SCHEDULE)(level, state())
    by_v = ProbabilityFlowODE(gaussian_v, SCHEDULE, prediction="v_prediction")(level, state())
    torch.testing.assert_close(by_v, by_eps, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("t", [0, 1, 10, 250, 500, 999])
def test_of_the_v_of_diffusers_it_finds_the_noise(t: int) -> None:
    """At the nodes of the table, within the rounding of diffusers' float32 table."""
    scheduler, timestep = DDIMScheduler(), torch.tensor([t, t])
    x_0, noise = state(seed=1), state(seed=2)
    v = scheduler.get_velocity(x_0, noise, timestep)
    x_bar = scheduler.add_noise(x_0, noise, timestep) / SCHEDULE.alpha_bar[t].sqrt()
    ode = ProbabilityFlowODE(lambda x, t: v, SCHEDULE, prediction="v_prediction")
    torch.testing.assert_close(ode(SCHEDULE.sigma(t), x_bar), noise, rtol=0, atol=2e-4)


@pytest.mark.parametrize("prediction", [name for name, row in PREDICTIONS.items() if row.at_zero])
def test_at_sigma_zero_it_is_the_network_on_the_image_at_t_zero(prediction: str) -> None:
    network = Recorder(torch.float64)
    slope = ProbabilityFlowODE(network, SCHEDULE, prediction=prediction)(torch.tensor(0.0), state())
    assert network.t.tolist() == [0, 0]
    assert network.x.equal(state())
    if prediction in ("epsilon", "v_prediction"):
        torch.testing.assert_close(slope, 0.7 * state())


def test_a_sigma_for_each_member_is_each_member_by_itself() -> None:
    ode = ProbabilityFlowODE(gaussian_v, SCHEDULE, prediction="v_prediction")
    levels = torch.tensor([0.0, 0.5, 140.0], dtype=torch.float64)
    x_bar = state(batch=3)
    together = ode(levels, x_bar)
    for i, level in enumerate(levels):
        torch.testing.assert_close(together[i : i + 1], ode(level, x_bar[i : i + 1]), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("dtype", "time_dtype"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_the_state_is_cast_once_to_the_network_and_once_back(dtype: torch.dtype, time_dtype: torch.dtype) -> None:
    network = Recorder(dtype)
    sigma = SCHEDULE.sigma(998.3)
    with torch.no_grad():
        slope = ProbabilityFlowODE(network, SCHEDULE)(sigma, state())
    x = state() / (1 + sigma**2).sqrt()
    assert slope.dtype == torch.float64
    assert slope.equal((network.weight.detach() * x.to(dtype)).double())
    assert network.x.dtype == dtype
    assert network.t.dtype == time_dtype
    assert network.t.tolist() == pytest.approx([998.3, 998.3], abs=1e-4)


def test_the_slope_has_the_dtype_of_the_state() -> None:
    slope = ProbabilityFlowODE(Recorder(torch.float64), SCHEDULE)(torch.tensor(1.0), state().float())
    assert slope.dtype == torch.float32


class Lonely(nn.Module):
    """A module without weights."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x.square()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_without_weights_is_called_in_the_dtype_of_the_state(dtype: torch.dtype) -> None:
    x_bar = state().to(dtype)
    slope = ProbabilityFlowODE(Lonely(), SCHEDULE)(torch.tensor(2.0), x_bar)
    torch.testing.assert_close(slope, x_bar.square() / 5)


def test_it_counts_every_call_until_it_is_reset() -> None:
    ode = ProbabilityFlowODE(gaussian_eps, SCHEDULE, max_nfe=3)
    for count in (1, 2, 3):
        ode(torch.tensor(1.0), state())
        assert ode.nfe == count
    with pytest.raises(EvaluationLimitError, match=r"limit of 3 network evaluations was reached at sigma = 0\.25;"):
        ode(torch.tensor(0.25), state())
    assert ode.nfe == 3
    ode.reset()
    assert ode.nfe == 0
    ode(torch.tensor(1.0), state())


def test_the_limit_says_how_far_it_got_on_the_way_from_where_to_where() -> None:
    ode = ProbabilityFlowODE(gaussian_eps, SCHEDULE, max_nfe=7)
    grid = make_grid(SCHEDULE, "trailing", 10)
    for convert, stop, way in ((encode, grid.sigmas[7], "0 to 157.407"), (decode, grid.sigmas[-8], "157.407 to 0")):
        ode.reset()
        words = (
            f"the limit of 7 network evaluations was reached at sigma = {stop:.6g}; raise the limit, or take fewer "
            f"steps or larger tolerances (on the way from sigma = {way})"
        )
        with pytest.raises(EvaluationLimitError, match=re.escape(words)):
            convert(ode, state(), grid, get_solver("euler"))


def test_wrong_arguments_are_refused() -> None:
    choices = ", ".join(sorted(PREDICTIONS))
    with pytest.raises(ValueError, match=f"^unknown prediction 'nonsense'; choose one of: {choices}$"):
        ProbabilityFlowODE(gaussian_eps, SCHEDULE, prediction="nonsense")
    with pytest.raises(ValueError, match="max_nfe must be at least 1, but it is 0"):
        ProbabilityFlowODE(gaussian_eps, SCHEDULE, max_nfe=0)


def test_the_network_is_told_another_sigma() -> None:
    """It is told that alone: where the state lies, what it is scaled by and what eps is made of stay."""
    network, x_bar = Recorder(torch.float64), state()
    ode = ProbabilityFlowODE(network, SCHEDULE, prediction="v_prediction")
    here, told = torch.tensor(2.0, dtype=torch.float64), 5.0
    expected = ode(here, x_bar)
    own = network.t
    assert ode.told(told)(here, x_bar).equal(expected)
    assert float(network.t[0]) == pytest.approx(float(SCHEDULE.t(told)))
    assert float(own[0]) == pytest.approx(float(SCHEDULE.t(2.0)))
    torch.testing.assert_close(network.x, x_bar / 5**0.5)
    assert ode.nfe == 2


def test_the_network_is_told_another_sigma_than_infinity() -> None:
    network, noise = Recorder(torch.float64), state()
    ode = ProbabilityFlowODE(network, Flow())
    expected = ode.origin(noise)
    assert float(network.t[0]) == float(Flow().label(torch.tensor(float("inf"))))
    assert ode.told(3.0).origin(noise).equal(expected)
    assert float(network.t[0]) == pytest.approx(float(Flow().label(torch.tensor(3.0))))
    assert ode.nfe == 2
