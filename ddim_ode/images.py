"""Pictures in files and images as tensors: reading, fitting to a model's size, writing.

Notation: an image tensor is ``(B, C, H, W)``, float64, pixels in [-1, 1]; a picture is what Pillow opens.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, log10
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from ddim_ode.files import check_writable, read_file, strict_json, write_file
from ddim_ode.messages import in_a_line

# Of the pictures that are looked for in a folder.
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
# The rule by which a picture of any size becomes an image of the model's; it is stored with the latent.
FIT = "exif-rotate, alpha over white, center-crop to the model's aspect, lanczos"


@dataclass(frozen=True)
class Source:
    """The origin of an image: the file's ``name``, the picture's ``size`` (width, height), and how it was fitted."""

    name: str
    size: tuple[int, int]
    fit: str = FIT


class ImageFileError(ValueError):
    """A file that is no picture, or not a whole one."""


def load_image(path: Path, channels: int, height: int, width: int) -> tuple[Tensor, Source]:
    """The picture in ``path``, fitted to ``(1, channels, height, width)``, pixels in [-1, 1]; and where it came from.

    Any mode that Pillow opens: the EXIF rotation is applied, transparency is laid over white, deep grey keeps its
    depth, colour becomes luminance for a model of one channel, and of an animation the first frame is taken. The
    largest centred part of the model's aspect is resized by Lanczos filtering; at its own size no pixel changes.

    Raises:
        ImageFileError: if the file is missing, empty, no ordinary file, truncated, too large, or not a picture; or if
            the range of its pixels is not known, or one of them is not a number.
    """
    picture = open_picture(read_file(path, "picture", ImageFileError), str(path))
    return fit_picture(picture, channels, height, width)[None], Source(path.name, picture.size)


def list_pictures(folder: Path) -> list[Path]:
    """The files in ``folder``, by name, whose names are those of pictures."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)


# Formats that Pillow hands to other programs, as PostScript to Ghostscript, which runs it.
NOT_READ = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5"})


def open_picture(content: bytes, name: str) -> Image.Image:
    """The picture in a file's ``content``, as ``prepare`` makes it; ``name`` is for messages.

    Raises:
        ImageFileError: if it is empty, truncated, too large, or not a picture, or as ``prepare`` does.
    """
    if not content:
        raise ImageFileError(f"'{name}' is empty")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.format in NOT_READ:
                raise ImageFileError(f"'{name}' is {picture.format}, which another program would have to draw")
            return prepare(picture, name)
    except ImageFileError:
        raise
    except UnidentifiedImageError:
        raise ImageFileError(f"'{name}' is not a picture that Pillow can open") from None
    except Exception as error:  # whatever Pillow's many decoders run into
        raise ImageFileError(f"cannot read the picture '{name}': {in_a_line(error)}") from error


def prepare(picture: Image.Image, name: str) -> Image.Image:
    """A copy of ``picture``, turned as its EXIF data say; one with deep pixels is of the mode F, in [0, 1].

    EXIF data that cannot be read are left out, with a UserWarning. ``name`` is for messages.

    Raises:
        ImageFileError: if the range of its pixels is not known, one of them is not a number, or they are in LAB.
    """
    picture.load()
    if picture.mode == "LAB":
        raise ImageFileError(f"'{name}' has its colours in LAB, which are not turned into RGB here; save it as RGB")
    orientation = _orientation(picture, name)
    picture = _shallow(picture, name)
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture.copy()


# What the EXIF orientation asks for: Exif 2.3, tag 0x0112.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(picture: Image.Image, name: str) -> int | None:
    try:
        value = picture.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data fail in many ways; the pixels are sound
        warnings.warn(f"the EXIF data of '{name}' are damaged; the picture is taken as upright", stacklevel=2)
        return None
    return value if isinstance(value, int) else None


def _shallow(picture: Image.Image, name: str) -> Image.Image:
    """``picture`` itself, or one of deep pixels as mode F in [0, 1].

    Of integers of 16 bits the range is known; of others, and of floating-point pixels, if the file says it, or if they
    lie in [0, 1].
    """
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ImageFileError(f"'{name}' holds pixels that are not finite numbers; mend it, or leave it out")
    low, high = _range(picture, values, name)
    return Image.fromarray((values - low) / (high - low))


# TIFF 6.0: bits per sample, photometric interpretation (0: white is zero), sample format (1: unsigned), and the range.
_BITS, _PHOTOMETRIC, _FORMAT, _LEAST, _MOST = 258, 262, 339, 340, 341


def _range(picture: Image.Image, values: NDArray[np.float32], name: str) -> tuple[float, float]:
    """The values of black and white."""
    tags = getattr(picture, "tag_v2", {})
    low, high = (_number(_first(tags, tag, None)) for tag in (_LEAST, _MOST))
    is_integer = picture.mode != "F"
    unsigned_16 = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
    if tags:
        unsigned_16 = is_integer and _first(tags, _BITS, 1) == 16 and _first(tags, _FORMAT, 1) == 1
    least, most = float(values.min()), float(values.max())
    slack = 1e-6 * (abs(least) + abs(most))  # the rounding of the pixels to float32
    if low is not None and high is not None and not low - slack <= least <= most <= high + slack:
        raise ImageFileError(
            f"'{name}' says that its pixels are from {low:g} to {high:g}, but they are from {least:g} to {most:g}; "
            "mend its tags, or save it with 8 or 16 bits"
        )
    if low is None or high is None or not 1e-30 < high - low < 1e30:
        low, high = (0.0, 65535.0) if unsigned_16 else (0.0, 1.0)
        if not unsigned_16 and (is_integer or values.min() < 0 or values.max() > 1):
            kind = "integer pixels of more than 16 bits, or with signs," if is_integer else "floating-point pixels"
            raise ImageFileError(
                f"'{name}' holds {kind} from {values.min():g} to {values.max():g}, and does not say which of them are "
                "black and white; save it with 8 or 16 bits, or with floating-point pixels in [0, 1]"
            )
    return (high, low) if _first(tags, _PHOTOMETRIC, 1) == 0 else (low, high)


def _number(value: Any) -> float | None:
    """A tag's value as a number; None if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, ArithmeticError):
        return None


def _first(tags: Mapping[int, Any], tag: int, default: Any) -> Any:
    """The value of a TIFF ``tag``, or the first one where there are several."""
    value = tags.get(tag, default)
    return value[0] if isinstance(value, tuple) else value


def fit_picture(picture: Image.Image, channels: int, height: int, width: int) -> Tensor:
    """The ``picture``, as ``prepare`` makes it, as an image ``(channels, height, width)`` by the rule ``FIT``.

    It is float64, with pixels in [-1, 1].

    Raises:
        ImageFileError: if ``channels`` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ImageFileError(f"pictures have 1 or 3 channels, but the model takes {channels}")
    # One after another, since a band of a large picture takes much memory.
    fitted = [
        ImageOps.fit(band, (width, height), method=Image.Resampling.LANCZOS) for band in _bands(picture, channels)
    ]
    pixels = np.stack([np.asarray(band, dtype=np.float64) for band in fitted])
    return torch.from_numpy(pixels * 2 - 1).clamp(-1, 1)


def _bands(picture: Image.Image, channels: int) -> Iterator[Image.Image]:
    """The picture as ``channels`` bands of mode F with values in [0, 1]."""
    if picture.mode == "F":
        yield from [picture] * channels
        return
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB" if channels == 3 else "L")
    for band in range(channels):
        yield Image.fromarray(np.asarray(picture.getchannel(band), dtype=np.float32) / 255)


def to_uint8(images: Tensor) -> Tensor:
    """``images`` of any shape, pixels in [-1, 1], in the 256 values of a picture file; here, and only here, clipped."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_picture(image: Tensor) -> Image.Image:
    """The image ``(C, H, W)``, pixels in [-1, 1], as an 8-bit picture."""
    values = to_uint8(image.detach().cpu().double())  # some devices have no float64
    return Image.fromarray(values.permute(1, 2, 0).squeeze(-1).numpy())


def tile(images: Tensor, columns: int, *, gap: int = 2) -> Tensor:
    """Images ``(B, C, H, W)`` as one ``(C, H', W')``, row by row, with white gaps of ``gap`` pixels."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = images.new_ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def check_image_path(path: Path, *, overwrite: bool) -> None:
    """Find out before the work is done whether ``save_image`` may write ``path``.

    Raises:
        ValueError: if its name is that of another format than PNG.
        OSError: as ``files.check_writable`` does.
    """
    if path.suffix.lower() not in ("", ".png"):
        raise ValueError(f"pictures are written as PNG, but '{path}' ends in '{path.suffix}'; name a .png file")
    check_writable(path, overwrite=overwrite)


def save_image(
    image: Tensor, path: Path, *, settings: Mapping[str, object], zoom: int = 1, overwrite: bool = False
) -> None:
    """Write the image ``(C, H, W)``, pixels in [-1, 1], as an 8-bit PNG that carries ``settings`` as JSON text.

    ``zoom``  each pixel becomes a square of this side, for small images that people are to look at.

    Raises:
        ValueError: if its name is that of another format.
        OSError: if the file exists and ``overwrite`` is false, or cannot be written.
    """
    check_image_path(path, overwrite=overwrite)
    write_file(path, png(image, settings=settings, zoom=zoom), overwrite=overwrite)


def png(image: Tensor, *, settings: Mapping[str, object], zoom: int = 1) -> bytes:
    """The content of the file that ``save_image`` writes for the image ``(C, H, W)``, pixels in [-1, 1]."""
    picture = to_picture(image)
    if zoom > 1:
        picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    text = PngImagePlugin.PngInfo()
    text.add_text("ddim-ode", strict_json(settings))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def pixel_mse(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared error of each image, ``(B,)``, on the scale [0, 1], of images ``(B, C, H, W)`` in [-1, 1].

    It is float64 on the CPU, wherever the images are.
    """
    return ((a.cpu().double() - b.cpu().double()) / 2).square().flatten(1).mean(1)


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of an ``mse`` on the scale [0, 1]."""
    return inf if mse == 0 else -10 * log10(mse)
