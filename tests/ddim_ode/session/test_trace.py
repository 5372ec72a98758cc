"""Traces: what is seen along a walk, against a flow that is known and against the walk that nobody watches."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import hypot, isfinite
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import build
from torch import Tensor, nn

from ddim_ode import Flow, Request, Session, VarianceExploding, from_module
from ddim_ode.analysis.trace_plot import plot
from ddim_ode.calibration import Calibration, Entry, Learned
from ddim_ode.grids import learned_grid
from ddim_ode.session.plan import PlanError
from ddim_ode.session.trace import spread


class Normal(nn.Module):
    """The scores of N(0, 1), where the flow is x_bar = x_0 sqrt(1 + sigma^2)."""

    def forward(self, x_bar: Tensor, sigma: Tensor) -> Tensor:
        return -x_bar / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


class Straight(nn.Module):
    """The velocity of flow matching for the same."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        u = (t / 1000).reshape(-1, 1, 1, 1)
        return x * (2 * u - 1) / ((1 - u) ** 2 + u**2)


@pytest.fixture
def session() -> Session:
    return Session(from_module(Normal(), process=VarianceExploding(sigma_min=0.01, sigma_max=50.0), shape=(3, 8, 8)))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


def test_errors_are_those_of_each_step(session: Session, photo: Path) -> None:
    """Of Euler's they are known: a step from sigma to s multiplies by 1 + (s - sigma) sigma / (1 + sigma^2)."""
    trace = session.trace(photo, Request("euler", steps=12), shown=13)
    for points in (trace.up, trace.down):
        x = trace.image.double() if points is trace.up else None
        for before, after in pairwise(points):
            a, b = before.sigma, after.sigma
            state = before.clean.double() * (1 + a * a)  # since the clean estimate is x_bar / (1 + sigma^2)
            factor = 1 + (b - a) * a / (1 + a * a) - hypot(1, b) / hypot(1, a)
            expected = float(state.square().mean().sqrt()) * abs(factor) / hypot(1, b)
            assert after.error == pytest.approx(expected, rel=2e-2)
            x = None if x is None else x * (1 + (b - a) * a / (1 + a * a))
        if x is not None:
            last = points[-1]
            assert float((last.clean.double() * (1 + last.sigma**2) - x).abs().max()) < 1e-4 * float(x.abs().max())


@pytest.mark.parametrize("solver", ["euler", "dpmpp3m", "heun", "reversible-heun", "bdia"])
def test_to_be_watched_changes_nothing(session: Session, photo: Path, solver: str) -> None:
    trace = session.trace(photo, Request(solver, steps=6))
    alone = session.reconstruct(photo, solver=solver, steps=6)
    assert trace.mse == alone.mse
    assert (trace.there.nfe, trace.back.nfe) == (alone.there.nfe, alone.back.nfe)
    assert [point.sigma for point in trace.up] == list(trace.plan.grid.sigmas)
    assert [point.sigma for point in trace.down] == list(trace.plan.grid.sigmas[::-1])
    assert [point.error is None for point in trace.up] == [True, *[False] * 6]
    assert solver in trace.report()


def test_what_is_learned_is_seen_where_it_steps(session: Session, photo: Path) -> None:
    model = session.model
    grid = learned_grid(model.schedule, [0.01, 0.2, 2.0, 50.0], "sigma-min")
    up = Learned(((0.0, 0.0),) * 3, sigmas=(0.1, 1.0))
    entry = Entry("euler", grid, up, replace(up, sigmas=(0.3, 3.0)), {})
    trace = session.calibrated(Calibration(model.fingerprint, (entry,), {})).trace(photo, Request(steps=3))
    assert [point.sigma for point in trace.up] == pytest.approx([0.01, 0.1, 1.0, 50.0])
    assert [point.sigma for point in trace.down] == pytest.approx([50.0, 3.0, 0.3, 0.01])
    assert trace.there.solver.name == trace.back.solver.name == "auto"


@pytest.mark.parametrize("solver", ["auto", "dpmpp2m", "reversible-heun"])
def test_infinity_is_left_out(photo: Path, solver: str) -> None:
    session = Session(from_module(Straight(), process=Flow(), shape=(3, 8, 8)))
    trace = session.trace(photo, Request(solver, steps=5))
    for points in (trace.up, trace.down):
        assert len(points) >= 5
        assert all(isfinite(point.sigma) for point in points)
        assert all(point.error is not None and isfinite(point.error) for point in points[1:])


def test_one_step_to_infinity_shows_nothing(photo: Path) -> None:
    session = Session(from_module(Straight(), process=Flow(), shape=(3, 8, 8)))
    with pytest.raises(PlanError, match=r"^one step alone leads to infinity, where there is nothing to see; take 2"):
        session.trace(photo, Request("euler", steps=1))


def test_a_pipeline_comes_back_as_reconstruct_says(photo: Path) -> None:
    session = Session(build("SD 1.5"), prompt="a cat")
    trace = session.trace(photo, Request("euler", steps=2))
    assert trace.mse == pytest.approx(session.reconstruct(photo, solver="euler", steps=2).mse)


@pytest.mark.parametrize("solver", ["torchdiffeq-dopri5", "per-sample-bosh3", "scipy-RK45"])
def test_steps_that_cannot_be_seen(session: Session, photo: Path, solver: str) -> None:
    with pytest.raises(PlanError, match=f"^solver '{solver}' shows none of its steps; take one with fixed steps"):
        session.trace(photo, Request(solver))


def test_the_figure_shows_ten_pictures_a_way(session: Session, photo: Path) -> None:
    trace = session.trace(photo, Request("euler", steps=20))
    figure = plot(trace)
    assert len(figure.axes) == 21
    assert len(figure.axes[-1].lines) == 2
    assert [spread(21, 3), spread(3, 10), spread(11, 10)] == [[0, 10, 20], [0, 1, 2], [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]]
    assert [i for i, point in enumerate(trace.up) if point.clean is not None] == spread(21, 10)
    assert len(plot(session.trace(photo, Request("euler", steps=3))).axes) == 9
    assert torch.isfinite(trace.image).all()
