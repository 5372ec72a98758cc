"""What the page asks of a session is what the command line does, within a limit of time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_pipelines import build

from ddim_ode import Session, load_latent
from ddim_ode.cli import main
from ddim_ode.images import psnr
from ddim_ode.page.work import CURVE, Clock, Desk, TooLongError, Wishes, enlarged, histogram, latent_image
from ddim_ode.session.walks import Progress


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def desk(class_model: Path, tmp_path: Path) -> Desk:
    clock = Clock(60)
    (tmp_path / "page").mkdir()
    return Desk(Session(class_model, progress=clock), clock, tmp_path / "page")


def test_files_are_those_of_the_command_line(desk: Desk, picture: Path, class_model: Path, tmp_path: Path) -> None:
    found = desk.there_and_back(picture, Wishes("heun", "karras", 3, "dog", 1.0))
    options = ["--model", str(class_model)]
    words = ["encode", str(picture), "--solver", "heun", "--grid", "karras", "--steps", "3", "--class", "dog"]
    for line in ([*words, "-o", "a.pt"], ["decode", "a.pt", "-o", "a.png"]):
        line = [str(tmp_path / word) if word.startswith("a.p") else word for word in line]
        assert CliRunner().invoke(main, [*line, *options]).exit_code == 0
    latent, decoded = found.files
    assert (latent.name, decoded.name) == ("photo.latent.pt", "photo.decoded.png")
    assert torch.equal(load_latent(latent).x_T, load_latent(tmp_path / "a.pt").x_T)
    assert decoded.read_bytes() == (tmp_path / "a.png").read_bytes()
    assert found.report.startswith("MSE ")
    assert found.report.count("heun, 3 steps on karras, 6 NFE, ") == 2
    assert min(found.seen.size) >= 256


def test_the_curve_is_that_of_reconstruct(desk: Desk, picture: Path) -> None:
    curve = list(desk.curve(picture, Wishes("euler", None, 7)))
    assert [steps for steps, _ in curve] == list(CURVE)
    expected = desk.session.reconstruct(picture, solver="euler", steps=4).mse
    assert dict(curve)[4] == pytest.approx(psnr(expected))


def test_between_and_edits(desk: Desk, picture: Path) -> None:
    frames, line, file = desk.between([picture, picture], Wishes("euler", None, 3), 5)
    assert len(frames) == 5
    assert line.startswith("MSE of the ends ")
    with Image.open(file) as sheet:
        assert sheet.size[0] > 5 * 8
    strip, line = desk.edited(picture, "dog", 0.5, Wishes("euler", None, 3, "cat", 1.0))
    assert strip.name == "photo.edit.png"
    assert line.startswith("strength 0.5: ")


def test_a_pipeline_is_asked_for_a_prompt(picture: Path, tmp_path: Path) -> None:
    clock = Clock(60)
    desk = Desk(Session(build("SD 1.5"), prompt="", progress=clock), clock, tmp_path)
    found = desk.there_and_back(picture, Wishes("euler", None, 2, "a cat", 1.0))
    assert load_latent(found.files[0]).asked["prompt"] == "a cat"


def test_time_is_limited(class_model: Path, picture: Path, tmp_path: Path) -> None:
    clock = Clock(0.0)
    told = list[Progress]()
    desk = Desk(Session(class_model, progress=clock), clock, tmp_path)
    clock.start(told.append)
    with pytest.raises(TooLongError, match=r"^this takes longer than the 0 s that a request may take; ask for fewer"):
        desk.there_and_back(picture, Wishes("euler", None, 5))
    assert told[0].label == "encode"
    assert list(tmp_path.glob("**/*.pt")) == []
    clock.seconds = 60.0
    clock.start()
    assert desk.there_and_back(picture, Wishes("euler", None, 5)).files[0].is_file()


def test_the_histogram_is_of_all_values() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).clamp(-3.9, 3.9)
    bins = histogram(x)
    assert sum(part for _, part, _ in bins) == pytest.approx(1)
    assert sum(normal for _, _, normal in bins) == pytest.approx(1, abs=1e-4)
    assert max(abs(part - normal) for _, part, normal in bins) < 2e-3
    middle, _, normal = max(bins, key=lambda entry: entry[2])
    assert normal == pytest.approx(0.25 / (2 * torch.pi) ** 0.5 * torch.tensor(-(middle**2) / 2).exp().item(), rel=1e-2)


@pytest.mark.parametrize(("channels", "shape"), [(1, (1, 4, 4)), (3, (3, 4, 4)), (4, (1, 10, 10)), (16, (1, 10, 46))])
def test_latents_of_any_channels_are_pictures(channels: int, shape: tuple[int, ...]) -> None:
    class Some:
        x_T = torch.randn(1, channels, 4, 4, dtype=torch.float64)

    image = latent_image(Some())  # type: ignore[arg-type]
    assert tuple(image.shape) == shape
    assert float(image.abs().max()) <= 1
    assert min(enlarged(image).size) >= 256
