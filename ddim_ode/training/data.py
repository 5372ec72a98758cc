"""The pictures to train on, read once from a folder or a zip file and held in memory at the model's size."""

from __future__ import annotations

import hashlib
import lzma
import os
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ddim_ode.images import ImageFileError, fit_picture, open_picture, to_uint8

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_NAMED = 5  # as many files are named in a message


class DataError(ValueError):
    """Pictures that a model cannot be trained on."""


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """What was read from the folder or zip file called ``name``.

    ``pixels``   ``(N, C, H, W)``, uint8.
    ``files``    the path of each in the folder or zip file, in alphabetical order.
    ``skipped``  why each other file is not among them.
    """

    name: str
    pixels: Tensor
    files: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def images(self, indices: Tensor, flips: Tensor) -> Tensor:
        """The images at ``indices``, mirrored where ``flips``, both ``(B,)``: ``(B, C, H, W)``, float32, in [-1, 1]."""
        chosen = self.pixels[indices]
        chosen = torch.where(flips[:, None, None, None], chosen.flip(-1), chosen)
        return chosen.float() / 127.5 - 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and pixels of all."""
        digest = hashlib.sha256(repr((self.files, self.pixels.shape)).encode())
        digest.update(self.pixels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device) -> TrainingImages:
        """The same with the pixels on ``device``."""
        return replace(self, pixels=self.pixels.to(device))


def read_training_images(source: Path, channels: int, height: int, width: int) -> TrainingImages:
    """Read the pictures in the folder or zip file ``source`` and its sub-folders, fitted as ``load_image`` does.

    Files that are no readable pictures are skipped, and said to be. Shows a progress bar.

    Raises:
        DataError: if there is no picture at all, or one is smaller than the model.
    """
    with closing(_open_source(source)) as files, ThreadPoolExecutor() as pool:
        names = files.names()
        if not names:
            raise DataError(f"there are no pictures in '{source}'; it should hold {', '.join(sorted(SUFFIXES))} files")

        def read(name: str) -> Tensor | str | tuple[int, int]:
            try:
                picture = open_picture(files.read(name), name)
                if picture.width < width or picture.height < height:
                    return picture.size
                image = fit_picture(picture, channels, height, width)
            except ImageFileError as error:
                return str(error)
            return to_uint8(image)

        found = list(tqdm(pool.map(read, names), total=len(names), desc="pictures", leave=False, disable=None))
    small = [
        f"'{name}' ({size[0]} x {size[1]})" for name, size in zip(names, found, strict=True) if isinstance(size, tuple)
    ]
    if small:
        raise DataError(
            f"{len(small)} pictures in '{source}' are smaller than the model's {width} x {height} pixels: "
            f"{_first(small)}; take them away, enlarge them, or train a smaller model"
        )
    read_ones = {name: image for name, image in zip(names, found, strict=True) if isinstance(image, Tensor)}
    skipped = tuple(reason for reason in found if isinstance(reason, str))
    if not read_ones:
        raise DataError(f"none of the {len(names)} files in '{source}' can be read; the first one: {skipped[0]}")
    return TrainingImages(source.resolve().name, torch.stack([*read_ones.values()]), tuple(read_ones), skipped)


def describe_skipped(skipped: tuple[str, ...]) -> str:
    """One line: how many files were skipped, and the first of them with their reasons."""
    return f"{len(skipped)} unreadable pictures were skipped: {_first(skipped)}"


def _first(texts: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f"; and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return "; ".join(texts[:_NAMED]) + more


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        """Paths of all files that look like pictures, relative to the root."""
        found = (Path(folder) / name for folder, _, names in os.walk(self._root) for name in names)
        return sorted(str(path.relative_to(self._root)) for path in found if _is_picture(path.name))

    def read(self, name: str) -> bytes:
        """The content of the file called ``name``."""
        try:
            return (self._root / name).read_bytes()
        except OSError as error:
            raise ImageFileError(f"cannot read '{name}': {error.strerror}") from error

    def close(self) -> None:
        """Do nothing, since no file is open."""


class _Zip:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip = zipfile.ZipFile(path)

    def names(self) -> list[str]:
        """The names of all members that look like pictures."""
        return sorted(name for name in self._zip.namelist() if _is_picture(name.rsplit("/", 1)[-1]))

    def read(self, name: str) -> bytes:
        """The content of the member called ``name``."""
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, RuntimeError, EOFError) as error:
            raise ImageFileError(f"cannot read '{name}': {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._zip.close()


def _open_source(source: Path) -> _Folder | _Zip:
    if source.is_dir():
        return _Folder(source)
    if not source.exists():
        raise DataError(f"there is no folder or zip file '{source}'")
    try:
        return _Zip(source)
    except zipfile.BadZipFile:
        raise DataError(f"'{source}' is neither a folder nor a zip file of pictures") from None


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
