"""What the notebooks compute is what theory says."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import pytest
import torch

from ddim_ode import decode, load_model, make_grid
from ddim_ode.analysis.lessons import ddim, decode_errors, plot_errors, plot_radii, radii, show
from ddim_ode.codec import draw_latents
from ddim_ode.models import Model
from ddim_ode.solvers import SOLVERS


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(str(tiny_model))


def test_the_formula_is_euler(model: Model) -> None:
    grid, x_T = make_grid(model.schedule, "trailing", 5), draw_latents(2, (3, 8, 8), seed=0)
    by_formula = ddim(model.ode(), x_T, grid.downward())
    torch.testing.assert_close(by_formula, decode(model.ode(), x_T, grid, SOLVERS["euler"]), rtol=0, atol=1e-6)


def test_errors_of_euler_fall_in_first_order(model: Model) -> None:
    x_T = draw_latents(2, (3, 8, 8), seed=0)
    truth = decode(model.ode(), x_T, make_grid(model.schedule, "log-snr", 400), SOLVERS["reab3"])
    errors = decode_errors(model, x_T, truth, ("euler", "reab3"), (20, 40))
    assert errors["euler"][0] / errors["euler"][1] == pytest.approx(2, abs=0.3)
    assert errors["reab3"][1] < errors["euler"][1]
    (axes,) = plot_errors(errors, (20, 40)).axes
    assert [line.get_label() for line in axes.lines] == ["euler", "reab3", "slope -1"]


def test_radii_on_the_great_circle_and_on_the_line() -> None:
    a, b = torch.zeros(1, 1, 2, dtype=torch.float64), torch.zeros(1, 1, 2, dtype=torch.float64)
    a[..., 0], b[..., 1] = sqrt(2), sqrt(2)
    found = radii(a, b, 3)
    assert found["slerp"] == pytest.approx([1, 1, 1])
    assert found["line"] == pytest.approx([1, sqrt(0.5), 1])
    (axes,) = plot_radii(found).axes
    assert [float(x) for x in axes.lines[0].get_xdata()] == [0, 0.5, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_shown_whole(channels: int) -> None:
    (axes,) = show(torch.zeros(3, channels, 4, 4, dtype=torch.float64), columns=2).axes
    assert axes.images[0].get_array().shape[:2] == (10, 10)
