"""The pictures to train on, read once from a folder or a zip file and held in memory at the model's size."""

from __future__ import annotations

import hashlib
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from threading import Lock

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ddim_ode.conditions import NO_CLASS
from ddim_ode.files import read_file
from ddim_ode.images import NOT_READ, ImageFileError, fit_picture, open_picture, to_uint8

_NAMED = 5  # as many files are named in a message
# More than this part of all pictures must not be unreadable, unless so wished.
UNREADABLE = 1 / 1000
# No picture in a zip or tar file is larger, packed out; what is said to be is not even begun.
_LARGEST_MEMBER = 1 << 28


class DataError(ValueError):
    """Pictures that a model cannot be trained on."""


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """What was read from the folder or zip file called ``name``.

    ``pixels``   ``(N, C, H, W)``, uint8.
    ``files``    the path of each in the folder or zip file, in alphabetical order.
    ``skipped``  why each other picture is not among them.
    ``left_out``  how many files are there beside them whose names are not those of pictures.
    """

    name: str
    pixels: Tensor
    files: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    left_out: int = 0

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the folders that the pictures lie in, in alphabetical order.

        Raises:
            DataError: if a picture lies in no folder, there are not two of them, or one is called what no class is.
        """
        folders = [Path(name).parent.name for name in self.files]
        loose = next((name for name, folder in zip(self.files, folders, strict=True) if not folder), None)
        if loose is not None:
            raise DataError(f"'{loose}' lies in no folder of '{self.name}', and the folder is its class; put it in one")
        names = tuple(sorted(set(folders)))
        if len(names) < 2 or NO_CLASS in names:
            raise DataError(
                f"the classes must be two folders or more, and none of them called '{NO_CLASS}', but those of the "
                f"pictures in '{self.name}' are: {', '.join(names):.300}"
            )
        return names

    @cached_property
    def labels(self) -> Tensor:
        """The number of each picture's class: ``(N,)``, int64, beside the pixels."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        labels = [numbers[Path(name).parent.name] for name in self.files]
        return torch.tensor(labels, device=self.pixels.device)

    def images(self, indices: Tensor, flips: Tensor) -> Tensor:
        """The images at ``indices``, mirrored where ``flips``, both ``(B,)``: ``(B, C, H, W)``, float32, in [-1, 1]."""
        chosen = self.pixels[indices]
        chosen = torch.where(flips[:, None, None, None], chosen.flip(-1), chosen)
        return chosen.float() / 127.5 - 1

    def warnings(self) -> list[str]:
        """Sentences about the files that are not among the pictures."""
        found = []
        if self.skipped:
            found.append(describe_skipped(self.skipped, len(self.files) + len(self.skipped)))
        if self.left_out:
            found.append(f"{self.left_out} other files in '{self.name}' are no pictures by their names, and left out")
        return found

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and pixels of all."""
        digest = hashlib.sha256(os.fsencode(repr((self.files, self.pixels.shape))))
        digest.update(self.pixels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device) -> TrainingImages:
        """The same with the pixels on ``device``."""
        return replace(self, pixels=self.pixels.to(device))


def read_training_images(
    source: Path, channels: int, height: int, width: int, *, skip_unreadable: bool = False
) -> TrainingImages:
    """Read the pictures in the folder or zip file ``source`` and its sub-folders, fitted as ``load_image`` does.

    Whatever Pillow can open is read; pictures that cannot be read are skipped, and said to be. Folders that are
    symbolic links are entered, each but once. Shows a progress bar.

    ``skip_unreadable``  however many they are; else more than one in a thousand are an error.

    Raises:
        DataError: if there is no picture at all, one is smaller than the model, or too many cannot be read.
    """
    with closing(_open_source(source)) as files, ThreadPoolExecutor() as pool:
        every = files.names()
        names = [name for name in every if is_picture(name)]
        if not names:
            raise DataError(f"there are no pictures in '{source}'; it should hold files such as .jpg or .png")

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
    if len(skipped) > UNREADABLE * len(names) and not skip_unreadable:
        raise DataError(
            f"'{source}': {describe_skipped(skipped, len(names))}; more than one in a thousand, so mend them, take "
            "them away, or ask for it with --skip-unreadable"
        )
    pixels = torch.stack([*read_ones.values()])
    return TrainingImages(source.resolve().name, pixels, tuple(read_ones), skipped, len(every) - len(names))


def describe_skipped(skipped: tuple[str, ...], count: int) -> str:
    """A line that says how many of ``count`` pictures were skipped, and the first of them with their reasons."""
    return f"{len(skipped)} unreadable pictures of {count} were skipped: {_first(skipped)}"


def _first(texts: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f"; and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return "; ".join(texts[:_NAMED]) + more


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        """The paths of all files, relative to the root."""
        return sorted(str(path.relative_to(self._root)) for path in self._files(self._root, set()))

    def _files(self, folder: Path, entered: set[str]) -> Iterator[Path]:
        """All files in ``folder`` and below it, but not in folders that were ``entered`` before, by another way."""
        if os.path.realpath(folder) in entered:
            return
        entered.add(os.path.realpath(folder))
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                yield from self._files(path, entered)
            else:
                yield path

    def read(self, name: str) -> bytes:
        """The content of the file called ``name``."""
        return read_file(self._root / name, "picture", ImageFileError)

    def close(self) -> None:
        """Do nothing, since no file is open."""


# NotImplementedError, of a compression that Python does not know, is a RuntimeError.
# ValueError is of a name whose bytes are no text.
_UNREADABLE_MEMBER = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, RuntimeError, EOFError, ValueError)


def too_large(size: int) -> bool:
    """Whether a file in an archive, of this ``size`` in bytes, is larger than any picture."""
    return size > _LARGEST_MEMBER


def check_member(name: str, size: int) -> None:
    """Raise ImageFileError if the file called ``name`` in an archive is ``too_large``."""
    if too_large(size):
        raise ImageFileError(f"cannot read '{name}': it is {size} bytes long, and no picture is as large")


class PictureZip:
    """The files in a zip file, for threads too.

    Raises:
        BadZipFile, NotImplementedError, ValueError, EOFError: if ``path`` is none, or none that can be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._zip = zipfile.ZipFile(path)
        self._lock = Lock()  # one ZipFile is not safe between threads

    def names(self) -> list[str]:
        """The names of all members that are files."""
        return sorted(info.filename for info in self._zip.infolist() if not info.is_dir())

    def read(self, name: str) -> bytes:
        """The content of the member called ``name``."""
        check_member(name, self._zip.getinfo(name).file_size)
        try:
            with self._lock:
                return self._zip.read(name)
        except _UNREADABLE_MEMBER as error:
            raise ImageFileError(f"cannot read '{name}': {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._zip.close()


def _open_source(source: Path) -> _Folder | PictureZip:
    if source.is_dir():
        return _Folder(source)
    if not source.exists():
        raise DataError(f"there is no folder or zip file '{source}'")
    if not source.is_file():
        raise DataError(f"'{source}' is a device, a pipe or a socket; name a folder or a zip file of pictures")
    try:
        return PictureZip(source)
    except zipfile.BadZipFile:
        raise DataError(f"'{source}' is neither a folder nor a zip file of pictures") from None
    except (NotImplementedError, ValueError, EOFError) as error:
        raise DataError(f"cannot read the zip file '{source}': {error}") from error


def is_picture(name: str) -> bool:
    """Whether the file is one that Pillow opens, by its name; hidden files and those in hidden folders are not."""
    hidden = any(part.startswith(".") for part in Path(name).parts)
    return not hidden and Path(name).suffix.lower() in _picture_suffixes()


@cache
def _picture_suffixes() -> frozenset[str]:
    opened = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in opened if kind in Image.OPEN and kind not in NOT_READ)
