"""The charts: their maps belong together, and the flow is the same in each."""

from __future__ import annotations

from math import exp

import pytest
import torch
from flows import CORRELATED, MIXTURE, real, relative_error, steps_of_two_sizes
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from ddim_ode.solvers import SOLVERS, charts
from ddim_ode.solvers.charts import ANGLE, DATA, Chart, Stretch
from ddim_ode.solvers.fixed import FixedStepSolver, in_chart

CHARTS = [value for value in vars(charts).values() if isinstance(value, Chart)]
STRETCHES = [value for value in vars(charts).values() if isinstance(value, Stretch)]

each_chart = pytest.mark.parametrize("chart", CHARTS, ids=lambda c: c.name)
each_chart_with_zero = pytest.mark.parametrize("chart", [c for c in CHARTS if not c.positive], ids=lambda c: c.name)
each_stretch = pytest.mark.parametrize("stretch", STRETCHES, ids=lambda s: s.name)
log_sigmas = st.floats(-5, 6)


def difference(function: object, at: float) -> float:
    """The derivative of ``function``, by Richardson's extrapolation of central differences; good to about 1e-9."""
    h = 1e-3 * max(abs(at), 1e-3)
    coarse, fine = ((function(at + d) - function(at - d)) / (2 * d) for d in (h, h / 2))
    return (4 * fine - coarse) / 3


@each_chart
@given(log_sigma=log_sigmas)
def test_sigma_of_u_is_sigma(chart: Chart, log_sigma: float) -> None:
    """The angle has few digits left where it is nearly a right one."""
    sigma = exp(log_sigma)
    assert chart.sigma(chart.u(sigma)) == pytest.approx(sigma, rel=1e-15 * max(10, sigma / 0.5))


@each_chart
@given(log_sigma=log_sigmas)
def test_derivatives_are_those_of_the_maps(chart: Chart, log_sigma: float) -> None:
    sigma = exp(log_sigma)
    assert chart.dsigma_du(chart.u(sigma)) * difference(chart.u, sigma) == pytest.approx(1, rel=1e-7)
    assert chart.growth(sigma) * chart.scale(sigma) == pytest.approx(difference(chart.scale, sigma), rel=1e-7, abs=1e-9)


@each_chart_with_zero
def test_zero_is_an_ordinary_point(chart: Chart) -> None:
    assert chart.u(0.0) == chart.sigma(0.0) == 0.0
    assert chart.dsigma_du(0.0) > 0
    assert chart.scale(0.0) > 0


@each_chart
def test_leaving_undoes_entering(chart: Chart) -> None:
    sigma = real(1.5)
    torch.testing.assert_close(chart.leave(chart.enter(CORRELATED.data, sigma), sigma), CORRELATED.data)


@each_chart
@pytest.mark.parametrize("ends", [(0.3, 10.3), (10.3, 0.3)], ids=["encode", "decode"])
def test_the_flow_is_the_same_in_every_chart(chart: Chart, ends: tuple[float, float]) -> None:
    solver = in_chart(SOLVERS["rk4"], chart)
    begin, end = ends
    x = solver(MIXTURE.field, MIXTURE.at(begin), steps_of_two_sizes(begin, end, 128))
    assert relative_error(x, MIXTURE.at(end)) < 1e-6


def test_gaussian_data_stands_still_in_the_angle_chart() -> None:
    sd = 0.5
    slope = ANGLE.pull_back(lambda sigma, x: sigma * x / (sigma**2 + sd**2))(real(1.2), CORRELATED.data)
    assert float(slope.abs().max()) < 1e-14


def test_slope_in_the_data_chart_is_the_data_prediction() -> None:
    sigma, y = 2.5, CORRELATED.data
    slope = DATA.pull_back(CORRELATED.field)(real(1 / sigma), y)
    x = sigma * y
    torch.testing.assert_close(slope, x - sigma * CORRELATED.field(real(sigma), x))


def test_only_a_solver_without_a_chart_can_be_moved() -> None:
    with pytest.raises(ValueError, match=r"^reab2 walks in the chart 'angle' already; take one that has none$"):
        in_chart(SOLVERS["reab2"], DATA)


@pytest.mark.parametrize("name", ["ddim-inverse", "pndm"])
def test_a_step_that_is_made_for_sigma_can_not(name: str) -> None:
    with pytest.raises(ValueError, match=f"^the step of {name} is made for sigma itself and has no chart; "):
        in_chart(SOLVERS[name], ANGLE)


def test_a_chart_above_zero_makes_its_solvers_so() -> None:
    heun = SOLVERS["heun"]
    assert isinstance(heun, FixedStepSolver)
    assert in_chart(heun, DATA).positive
    assert not in_chart(heun, ANGLE).positive


@each_stretch
@given(u=st.floats(0.02, 1.5))
def test_du_dv_is_the_derivative(stretch: Stretch, u: float) -> None:
    assert stretch.du_dv(stretch.v(u)) * difference(stretch.v, u) == pytest.approx(1, rel=1e-7)


def test_vp_time_is_that_of_the_variance_preserving_sde() -> None:
    """With beta(t) = 0.1 + 19.9 t: log(1 + sigma^2) is the integral of beta up to t."""
    for sigma in (0.02, 0.5, 3.0, 80.0):
        t = charts.VP_TIME.v(sigma)
        assert exp(quad(lambda s: 0.1 + 19.9 * s, 0, t)[0]) - 1 == pytest.approx(sigma**2)
