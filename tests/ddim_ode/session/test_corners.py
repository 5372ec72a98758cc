"""What is interpolated between: in which order corners come, where their pictures lie in the sheet, and what fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ddim_ode.codec import draw_latents, encode
from ddim_ode.conditions import UNCONDITIONAL
from ddim_ode.grids import make_grid
from ddim_ode.models import Model, load_model
from ddim_ode.session.corners import Corner, corner_errors, count_images, encode_corners, load_corners
from ddim_ode.session.plan import Plan
from ddim_ode.session.worker import Worker
from ddim_ode.solvers import get_solver


@pytest.fixture
def model(tiny_model: Path) -> Model:
    return load_model(str(tiny_model))


def test_two_make_a_row_and_four_a_square() -> None:
    assert count_images(2, 9) == 9
    assert count_images(4, 5) == 25
    with pytest.raises(ValueError, match="but there are 3"):
        count_images(3, 5)


def test_pictures_and_seeds_are_encoded_in_their_order(model: Model, tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "navy")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    corners = load_corners([tmp_path / "a.png", tmp_path / "b.png"], [3, 4], model)
    assert [corner.name for corner in corners] == ["a.png", "b.png", "seed 3", "seed 4"]
    grid, solver = make_grid(model.schedule, "log-snr", 3), get_solver("euler")
    x_T, walk = encode_corners(Worker(model, 10, None), corners, Plan(solver, solver, grid), [UNCONDITIONAL] * 4)
    assert walk.nfe == 3
    assert x_T.shape == (4, 3, 8, 8)
    for i, corner in enumerate(corners[:2]):
        assert corner.picture is not None
        assert torch.allclose(x_T[i : i + 1], encode(model.ode(), corner.picture, grid, solver), atol=1e-5)
    assert x_T[2].equal(draw_latents(1, (3, 8, 8), seed=3)[0])
    assert x_T[3].equal(draw_latents(1, (3, 8, 8), seed=4)[0])


def test_errors_are_those_of_the_corners_of_the_sheet() -> None:
    """Of a sheet of 3 x 3 grey images, brighter row by row; the scale of pixels is twice that of errors."""
    images = torch.arange(9.0).reshape(9, 1, 1, 1) / 4 - 1
    corners = [Corner("a", picture=images[:1]), Corner("noise"), *(Corner("0", picture=images[:1]) for _ in range(2))]
    assert corner_errors(corners, images, lambda x: x) == pytest.approx([0, (6 / 8) ** 2, 1])
    assert corner_errors([Corner("noise"), Corner("b", picture=images[8:])], images, lambda x: x) == [0]


def test_a_row_has_two_ends() -> None:
    with pytest.raises(ValueError, match=r"^there must be 2 images in a row or more, its ends, but there are to be 1$"):
        count_images(2, 1)
