"""Pictures of every kind, fitted to a model's size and back, and files that are no pictures."""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
from collections.abc import Callable
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image, TiffImagePlugin

from ddim_ode.images import (
    ImageFileError,
    Source,
    fit_picture,
    load_image,
    open_picture,
    pixel_mse,
    psnr,
    save_image,
    tile,
    to_picture,
)
from ddim_ode.training.data import is_picture

WHITE, BLACK = 255.0, 0.0


def levels(picture: Image.Image, tmp_path: Path, suffix: str = ".png", channels: int = 3) -> list[float]:
    """The three or one levels, on the scale of 0 to 255, that a picture of one colour has as an image of 2 x 2."""
    path = tmp_path / f"picture{suffix}"
    picture.save(path)
    image, source = load_image(path, channels, 2, 2)
    assert source == Source(path.name, picture.size)
    assert image.shape == (1, channels, 2, 2)
    assert image.dtype == torch.float64
    assert image.flatten(2).max(2).values.equal(image.flatten(2).min(2).values)
    return [round(float(level), 3) for level in (image[0, :, 0, 0] + 1) * 127.5]


def palette(*colour: int, transparent: bool = False) -> Image.Image:
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, *colour])
    if transparent:
        picture.info["transparency"] = 1
    return picture


@pytest.mark.parametrize(
    ("picture", "suffix", "expected"),
    [
        (Image.new("1", (2, 2), 1), ".png", [WHITE] * 3),
        (Image.new("1", (2, 2), 0), ".png", [BLACK] * 3),
        (Image.new("L", (2, 2), 100), ".png", [100] * 3),
        (Image.new("L", (2, 2), 100), ".bmp", [100] * 3),
        (Image.new("LA", (2, 2), (100, 255)), ".png", [100] * 3),
        (Image.new("LA", (2, 2), (100, 0)), ".png", [WHITE] * 3),
        (Image.new("LA", (2, 2), (100, 51)), ".png", [0.2 * 100 + 0.8 * 255] * 3),
        (palette(10, 20, 30), ".png", [10, 20, 30]),
        (palette(10, 20, 30), ".gif", [10, 20, 30]),
        (palette(10, 20, 30, transparent=True), ".png", [WHITE] * 3),
        (Image.new("RGB", (2, 2), (10, 20, 30)), ".png", [10, 20, 30]),
        (Image.new("RGB", (2, 2), (10, 20, 30)), ".tiff", [10, 20, 30]),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 255)), ".png", [10, 20, 30]),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), ".png", [WHITE] * 3),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 51)), ".png", [0.2 * c + 0.8 * 255 for c in (10, 20, 30)]),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), ".tiff", [255, 0, 0]),
        (Image.new("CMYK", (2, 2), (0, 0, 0, 255)), ".tiff", [BLACK] * 3),
        (Image.new("I;16", (2, 2), 65535), ".png", [WHITE] * 3),
        (Image.new("I;16", (2, 2), 257 * 100), ".png", [100] * 3),
        (Image.new("I;16", (2, 2), 257 * 100 + 64), ".png", [round(100 + 64 / 257, 3)] * 3),
        (Image.new("I;16B", (2, 2), 257 * 100), ".tiff", [100] * 3),
        (Image.new("F", (2, 2), 0.4), ".tiff", [0.4 * 255] * 3),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_pictures_of_every_mode(picture: Image.Image, suffix: str, expected: list[float], tmp_path: Path) -> None:
    assert levels(picture, tmp_path, suffix) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("L", (2, 2), 100), 100),
        (Image.new("RGB", (2, 2), (200, 100, 50)), 0.299 * 200 + 0.587 * 100 + 0.114 * 50),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), WHITE),
        (Image.new("I;16", (2, 2), 257 * 100), 100),
        (Image.new("1", (2, 2), 1), WHITE),
    ],
)
def test_for_one_channel_colour_becomes_luminance(picture: Image.Image, expected: float, tmp_path: Path) -> None:
    assert levels(picture, tmp_path, channels=1) == pytest.approx([expected], abs=0.51)


def test_sixteen_bits_of_depth_are_kept(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) + 30000
    Image.fromarray(values).save(tmp_path / "deep.png")
    image, _ = load_image(tmp_path / "deep.png", 1, 3, 4)
    np.testing.assert_allclose((image[0, 0] + 1) / 2 * 65535, values, atol=0.01)


pixels = st_numpy.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])))


@given(pixels)
@settings(max_examples=100)
def test_at_the_size_of_the_model_no_pixel_changes(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    """Neither on the way in nor on the way out."""
    height, width, channels = array.shape
    path = tmp_path_factory.getbasetemp() / "exact.png"
    Image.fromarray(array.squeeze(2) if channels == 1 else array).save(path)
    image, _ = load_image(path, channels, height, width)
    np.testing.assert_allclose(image[0].permute(1, 2, 0), array / 127.5 - 1, atol=1e-7)
    save_image(image[0], path, settings={}, overwrite=True)
    with Image.open(path) as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB")
        np.testing.assert_array_equal(np.asarray(picture).reshape(array.shape), array)


@pytest.mark.parametrize(
    ("size", "box"), [((30, 10), (10, 0, 20, 10)), ((10, 30), (0, 10, 10, 20)), ((10, 10), (0, 0, 10, 10))]
)
def test_the_middle_of_the_models_aspect_is_taken(
    size: tuple[int, int], box: tuple[int, int, int, int], tmp_path: Path
) -> None:
    """Green in the middle, red where it must be cut off."""
    picture = Image.new("RGB", size, (255, 0, 0))
    picture.paste((0, 255, 0), box)
    picture.save(tmp_path / "picture.png")
    image, source = load_image(tmp_path / "picture.png", 3, 10, 10)
    assert source.size == size
    assert image[0].mean((1, 2)).tolist() == pytest.approx([-1, 1, -1])


def test_a_wide_model_takes_a_wide_part(tmp_path: Path) -> None:
    picture = Image.new("L", (20, 20), 0)
    picture.paste(255, (0, 5, 20, 15))
    picture.save(tmp_path / "picture.png")
    image, _ = load_image(tmp_path / "picture.png", 1, 10, 20)
    torch.testing.assert_close(image, torch.ones(1, 1, 10, 20, dtype=torch.float64))


def test_a_single_pixel_fills_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (255, 0, 255)).save(tmp_path / "pixel.png")
    image, source = load_image(tmp_path / "pixel.png", 3, 32, 32)
    assert source.size == (1, 1)
    assert image.equal(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64).reshape(1, 3, 1, 1).expand(1, 3, 32, 32))


def test_resizing_is_lanczos_filtering_without_rounding(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(64, 192, (40, 50), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    image, _ = load_image(tmp_path / "noise.png", 1, 8, 10)
    expected = Image.fromarray(noise.astype(np.float32)).resize((10, 8), Image.Resampling.LANCZOS)
    np.testing.assert_allclose((image[0, 0] + 1) * 127.5, np.asarray(expected), atol=1e-3)


def test_resizing_stays_within_the_range_of_pixels(tmp_path: Path) -> None:
    """Lanczos filtering overshoots at edges."""
    picture = Image.new("L", (64, 64), 0)
    picture.paste(255, (0, 0, 31, 64))
    picture.save(tmp_path / "edge.png")
    image, _ = load_image(tmp_path / "edge.png", 1, 20, 20)
    assert float(image.min()) == -1
    assert float(image.max()) == 1


UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, UPRIGHT),
        (2, UPRIGHT[:, ::-1]),
        (3, UPRIGHT[::-1, ::-1]),
        (4, UPRIGHT[::-1]),
        (5, UPRIGHT.T),
        (6, np.rot90(UPRIGHT)),
        (7, np.rot90(UPRIGHT, 2).T),
        (8, np.rot90(UPRIGHT, -1)),
    ],
)
def test_the_exif_rotation_is_applied(orientation: int, stored: np.ndarray, tmp_path: Path) -> None:
    """To a picture that was stored as the camera held it; orientations as in the EXIF standard, tag 274."""
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.png", exif=exif)
    image, source = load_image(tmp_path / "photo.png", 1, 2, 3)
    assert source.size == (3, 2)
    np.testing.assert_allclose((image[0, 0] + 1) * 127.5, UPRIGHT, atol=1e-4)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("L", (2, 2), level) for level in (50, 100, 150)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "film.gif", 1, 2, 2)[0].mean() == pytest.approx(50 / 127.5 - 1)


def test_a_jpeg_is_close_to_what_it_was_made_from(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (200, 30, 90)).save(tmp_path / "photo.jpg")
    image, _ = load_image(tmp_path / "photo.jpg", 3, 32, 32)
    assert ((image[0].mean((1, 2)) + 1) * 127.5).tolist() == pytest.approx([200, 30, 90], abs=2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (Path.touch, "is empty"),
        (Path.mkdir, "is a folder, not a picture; name the files in it"),
        (lambda path: path.write_text("a thousand words"), "is not a picture that Pillow can open"),
    ],
    ids=["missing", "empty", "folder", "text"],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path / "photo.png")
    with pytest.raises(ImageFileError, match=rf"photo\.png' {words}$"):
        load_image(tmp_path / "photo.png", 3, 8, 8)


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize("part", [0.001, 0.01, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("form", ["png", "jpeg", "gif", "bmp", "tiff", "webp"])
def test_a_truncated_picture_is_refused(form: str, part: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format=form)
    path = tmp_path / f"photo.{form}"
    path.write_bytes(buffer.getvalue()[: max(1, int(part * len(buffer.getvalue())))])
    with pytest.raises(ImageFileError, match=re.escape(f"'{path}'")):
        load_image(path, 3, 8, 8)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (30, 30)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(ImageFileError, match=r"cannot read the picture '.*bomb\.png': Image size \(900 pixels\)"):
        load_image(tmp_path / "bomb.png", 1, 8, 8)


def test_of_a_very_large_picture_pillow_warns_and_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (30, 30)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.warns(Image.DecompressionBombWarning):
        image, _ = load_image(tmp_path / "large.png", 1, 8, 8)
    assert image.shape == (1, 1, 8, 8)


@pytest.mark.parametrize("channels", [2, 4])
def test_no_picture_has_two_or_four_channels(channels: int) -> None:
    with pytest.raises(ImageFileError, match=f"pictures have 1 or 3 channels, but the model takes {channels}"):
        fit_picture(Image.new("RGB", (2, 2)), channels, 8, 8)


def test_a_picture_is_clipped_and_rounded() -> None:
    image = torch.tensor([-7.0, -1.0, -1 + 1.4 / 127.5, 0.0, 1.0, 1.5], dtype=torch.float64).reshape(1, 1, 6)
    assert np.asarray(to_picture(image)).tolist() == [[0, 0, 1, 128, 255, 255]]


@pytest.mark.parametrize("zoom", [1, 3])
def test_a_saved_image_carries_its_settings(zoom: int, tmp_path: Path) -> None:
    settings = {"solver": {"name": "heun", "rtol": 1e-5}, "steps": None, "source": "Zoë.png"}
    image = torch.linspace(-1, 1, 12).reshape(1, 3, 4)
    save_image(image, tmp_path / "image.png", settings=settings, zoom=zoom)
    with Image.open(tmp_path / "image.png") as picture:
        assert json.loads(picture.text["ddim-ode"]) == settings
        assert picture.size == (4 * zoom, 3 * zoom)
        assert np.array_equal(np.asarray(picture)[::zoom, ::zoom], np.asarray(to_picture(image)))


def test_a_saved_image_replaces_nothing_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="exists already"):
        save_image(torch.zeros(1, 3, 4), path, settings={})
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["image.gif", "image.PNG.jpg", "image.v2"])
def test_no_image_is_saved_under_the_name_of_another_format(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^pictures are written as PNG, but '.*' ends in '\.\w+'; name a \.png file$"):
        save_image(torch.zeros(1, 3, 4), tmp_path / name, settings={})
    assert not list(tmp_path.iterdir())
    save_image(torch.zeros(1, 3, 4), tmp_path / "image.PNG", settings={})


def test_tiles_lie_row_by_row_with_white_between() -> None:
    images = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 2, 3, 4) / 10
    sheet = tile(images, columns=3, gap=2)
    assert sheet.shape == (2, 3 + 2 + 3, 4 + 2 + 4 + 2 + 4)
    expected = torch.ones(8, 16)
    expected[:3, :4], expected[:3, 6:10], expected[:3, 12:] = 0.0, 0.1, 0.2
    expected[5:, :4], expected[5:, 6:10] = 0.3, 0.4
    assert sheet.equal(expected.expand(2, 8, 16))


def test_errors_are_measured_on_the_scale_of_zero_to_one() -> None:
    a = torch.zeros(2, 1, 1, 2)
    b = torch.tensor([[2.0, 0.0], [0.2, 0.2]]).reshape(2, 1, 1, 2)
    assert pixel_mse(a, b).tolist() == pytest.approx([0.5, 0.01])
    assert pixel_mse(a, b).dtype == torch.float64
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(1) == 0
    assert psnr(0) == math.inf


def tiff(pixels: np.ndarray, path: Path, **tags: float) -> Path:
    """A TIFF of one band with these pixels, which says what ``tags`` say: 'least', 'most', 'photometric'."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        tag = {"least": 340, "most": 341, "photometric": 262}[name]
        info.tagtype[tag] = 3 if name == "photometric" else 12 if pixels.dtype == np.float32 else 9
        info[tag] = value
    Image.fromarray(pixels).save(path, tiffinfo=info)
    return path


@pytest.mark.parametrize(
    ("pixels", "kind", "least", "most"),
    [
        (np.array([[0, 255]], np.float32), "floating-point pixels", 0, 255),
        (np.array([[-1, 1]], np.float32), "floating-point pixels", -1, 1),
        (np.array([[0.5, 1.7]], np.float32), "floating-point pixels", 0.5, 1.7),
        (np.array([[0, 255]], np.int32), "integer pixels of more than 16 bits", 0, 255),
        (np.array([[-5, 70000]], np.int32), "integer pixels of more than 16 bits", -5, 70000),
    ],
)
def test_pixels_of_an_unknown_range_are_refused_unless_the_file_says_it(
    pixels: np.ndarray, kind: str, least: float, most: float, tmp_path: Path
) -> None:
    path = tiff(pixels, tmp_path / "deep.tif")
    with pytest.raises(ImageFileError, match=rf"deep.tif' holds {kind}.* from {least:g} to {most:g}, and does not say"):
        load_image(path, 1, 1, 2)
    known = tiff(pixels, tmp_path / "known.tif", least=least, most=most)
    assert load_image(known, 1, 1, 2)[0].flatten().tolist() == pytest.approx([-1, 1], abs=1e-6)


@pytest.mark.parametrize(
    ("pixels", "least", "most"),
    [
        (np.array([[0, 1]], np.float32), 1000, 2000),
        (np.array([[0, 300]], np.int32), 0, 100),
        (np.array([[0, 300]], np.float32), 0, 1e300),
        (np.array([[0, 300]], np.float32), 0, math.inf),
        (np.array([[0, 0]], np.float32), -math.inf, 0),
    ],
)
def test_a_range_that_is_none_is_refused(pixels: np.ndarray, least: float, most: float, tmp_path: Path) -> None:
    """Pixels outside of it, or one so wide that all pixels would be black."""
    path = tiff(pixels, tmp_path / "deep.tif", least=least, most=most)
    if least == -math.inf:
        assert load_image(path, 1, 1, 2)[0].flatten().tolist() == [-1, -1]
    else:
        with pytest.raises(ImageFileError, match=r"deep.tif' (says that its pixels are from|holds .* does not say)"):
            load_image(path, 1, 1, 2)


def test_sixteen_bits_with_white_as_zero_are_turned_round(tmp_path: Path) -> None:
    pixels = np.array([[0, 65535]], np.uint16)
    for photometric, expected in ((1, [-1, 1]), (0, [1, -1])):
        path = tiff(pixels, tmp_path / f"{photometric}.tif", photometric=photometric)
        assert load_image(path, 1, 1, 2)[0].flatten().tolist() == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_pixel_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    path = tiff(np.array([[0.5, value]], np.float32), tmp_path / "nan.tif")
    with pytest.raises(ImageFileError, match=r"nan.tif' holds pixels that are not finite numbers"):
        load_image(path, 1, 1, 2)


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(ImageFileError, match="is no ordinary file, but a pipe, a device or a socket"):
            load_image(path, 3, 8, 8)


@pytest.mark.parametrize("error", [RuntimeError("color planes"), NotImplementedError(), TypeError("x"), MemoryError()])
def test_whatever_a_decoder_runs_into_is_a_picture_that_cannot_be_read(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    path = tmp_path / "a.png"
    Image.new("L", (2, 2)).save(path)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(
        ImageFileError, match=f"cannot read the picture '.*a.png': {str(error) or type(error).__name__}"
    ):
        load_image(path, 1, 2, 2)


def test_a_picture_is_turned_though_its_exif_data_cannot_be_written_again(tmp_path: Path) -> None:
    """And taken as upright, with a warning, where they cannot even be read."""
    picture = Image.fromarray(np.array([[0, 85], [170, 255]], np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png", 1, 2, 2)[0].flatten().tolist() == pytest.approx([1 / 3, -1, 1, -1 / 3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("PIL.Image.Exif.tobytes", lambda *_: 1 / 0)
        turned, _ = load_image(tmp_path / "turned.png", 1, 2, 2)
        assert turned.flatten().tolist() == pytest.approx([1 / 3, -1, 1, -1 / 3])
        patch.setattr("PIL.Image.Exif.get", lambda *_: struct.unpack("<I", b""))
        with pytest.warns(
            UserWarning, match=r"the EXIF data of '.*turned.png' are damaged; the picture is taken as up"
        ):
            upright, _ = load_image(tmp_path / "turned.png", 1, 2, 2)
    assert upright.flatten().tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])


def test_no_other_program_is_started_to_draw_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript is a program, which Ghostscript would run, for ever if it says so."""
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n{} loop\n"
    with pytest.raises(ImageFileError, match=r"^'photo\.png' is EPS, which another program would have to draw$"):
        open_picture(content, "photo.png")
    assert not started.exists()
    assert not is_picture("a.eps")
    assert is_picture("a.jpg")


def test_settings_are_json_of_finite_numbers(tmp_path: Path) -> None:
    settings = {"sigma_T": inf, "list": [1.5, -inf, {"nan": nan}], "steps": 3, "none": None}
    save_image(torch.zeros(3, 4, 4), tmp_path / "a.png", settings=settings)

    def fail(word: str) -> None:
        pytest.fail(f"{word} is not JSON")

    with Image.open(tmp_path / "a.png") as picture:
        found = json.loads(picture.text["ddim-ode"], parse_constant=fail)
    assert found == {"sigma_T": "infinity", "list": [1.5, "-infinity", {"nan": "nan"}], "steps": 3, "none": None}
