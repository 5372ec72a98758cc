"""The charts: their maps belong together, and the flow is the same in each."""

from __future__ import annotations

import pytest
import torch
from flows import real
from hypothesis import given
from hypothesis import strategies as st

from solvers import charts

each_chart = pytest.mark.parametrize(
    "chart", [value for value in vars(charts).values() if isinstance(value, charts.Chart)], ids=lambda c: c.name
)


@each_chart
@given(sigma=st.floats(0, 1e5))
def test_sigma_of_u_is_sigma(chart: charts.Chart, sigma: float) -> None:
    assert float(chart.sigma(chart.u(real(sigma)))) == pytest.approx(sigma, rel=1e-14)


@each_chart
@given(u=st.floats(-10, 10))
def test_dsigma_du_is_the_derivative(chart: charts.Chart, u: float) -> None:
    at = real(u, requires_grad=True)
    (derivative,) = torch.autograd.grad(chart.sigma(at), at)
    torch.testing.assert_close(chart.dsigma_du(at), derivative)


@each_chart
def test_zero_is_an_ordinary_point(chart: charts.Chart) -> None:
    assert float(chart.u(real(0.0))) == 0.0
    assert float(chart.dsigma_du(real(0.0))) == pytest.approx(1.0)


@each_chart
def test_pull_back_follows_the_chain_rule(chart: charts.Chart) -> None:
    u, x = real(1.5), real([2.0, 3.0])
    slope = chart.pull_back(lambda sigma, x: sigma * x)(u, x)
    torch.testing.assert_close(slope, chart.dsigma_du(u) * chart.sigma(u) * x)
