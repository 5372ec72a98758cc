"""What is taken for flow matching by default, beside others: the numbers that the documentation says, measured anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flows import mixture
from torch import Tensor

from ddim_ode import Flow, ProbabilityFlowODE, make_grid
from ddim_ode.codec import decode, encode
from ddim_ode.solvers import get_solver

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
COUNT, STEPS = 20, 20
_DRAW = torch.Generator().manual_seed(0)
MEANS = 0.5 * torch.randn(COUNT, 3, 4, 4, generator=_DRAW, dtype=torch.float64)
STDS = 0.1 + 0.3 * torch.rand(COUNT, generator=_DRAW, dtype=torch.float64)
X_T = torch.randn(64, 3, 4, 4, generator=_DRAW, dtype=torch.float64)
MIXTURE = mixture(torch.full((COUNT,), 1 / COUNT, dtype=torch.float64), MEANS, STDS, MEANS)
# Solver, grid, clean end, and the errors of images and latents.
ERRORS = {
    "angle-ab3": ("trailing", "0.0021", "0.0013"),
    "dpmpp3m": ("log-snr", "0.048", "0.013"),
    "fireflow": ("trailing", "0.0035", "0.0049"),
    "euler": ("trailing", "0.030", "0.10"),
}


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """The best network: eps - x_0, told 1000 u."""
    u = t[0] / 1000
    if float(u) == 1:
        return x - MEANS.mean(0)
    sigma, x_bar = u / (1 - u), x / (1 - u)
    eps = MIXTURE.field(sigma, x_bar)
    return eps - (x_bar - sigma * eps)


def ode() -> ProbabilityFlowODE:
    return ProbabilityFlowODE(velocity, Flow())


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Those of the latents, in the chart of flow matching in many small steps."""
    grid = make_grid(Flow().schedule, "trailing", 999, clean_end="sigma-min")
    return decode(ode(), X_T, grid, get_solver("rk4"))


@pytest.mark.parametrize("solver", ERRORS)
def test_the_errors_are_those_that_the_documentation_says(images: Tensor, solver: str) -> None:
    name, of_images, of_latents = ERRORS[solver]
    grid = make_grid(Flow().schedule, name, STEPS, clean_end="sigma-min")
    assert rms(decode(ode(), X_T, grid, get_solver(solver)) - images) == pytest.approx(float(of_images), rel=0.05)
    assert rms(encode(ode(), images, grid, get_solver(solver)) - X_T) == pytest.approx(float(of_latents), rel=0.05)
    prose = " ".join(PAGE.split())
    assert of_images in prose
    assert of_latents in prose
