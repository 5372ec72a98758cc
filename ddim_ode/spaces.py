"""Spaces: what the state of the ODE is of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from ddim_ode.images import Source, fit_picture, load_image, open_picture, prepare

# A picture to read: a file's path, its content, or a picture that is open.
Readable = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class PixelSpace:
    """The state is the image itself: ``channels`` x ``height`` x ``width`` pixels in [-1, 1]."""

    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one state."""
        return self.channels, self.height, self.width

    def read(self, picture: Readable) -> tuple[Tensor, Source]:
        """The ``picture`` as a state, float64 ``(1, C, H, W)`` on the CPU; and where it came from.

        Raises:
            ImageFileError: if it cannot be read as a picture.
        """
        if isinstance(picture, str | Path):
            return load_image(Path(picture), *self.shape)
        upright = open_picture(picture, "picture") if isinstance(picture, bytes) else prepare(picture, "picture")
        return fit_picture(upright, *self.shape)[None], Source("picture", upright.size)
