"""Spaces: what the state of the ODE is of a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ddim_ode.devices import device_of
from ddim_ode.images import Source, fit_picture, load_image, open_picture, prepare

# A picture to read: a file's path, its content, or a picture that is open.
Readable = str | Path | bytes | Image.Image


class Read(NamedTuple):
    """A picture that was read, on the CPU.

    ``state``   of the ODE, float64 ``(1, C, H, W)``.
    ``pixels``  of the picture, float64 in [-1, 1], ``(1, channels, height, width)``.
    """

    state: Tensor
    source: Source
    pixels: Tensor


class Space(ABC):
    """What the state of the ODE is of a picture."""

    @abstractmethod
    def pixels(self, picture: Readable) -> tuple[Tensor, Source]:
        """Those of the ``picture``, as ``Read`` has them, and where it came from; any thread may ask.

        Raises:
            ImageFileError: if it cannot be read as a picture.
        """

    @abstractmethod
    def state(self, pixels: Tensor) -> Tensor:
        """What the state is of ``pixels``, ``(1, channels, height, width)``: float64 on the CPU, ``(1, C, H, W)``."""

    def read(self, picture: Readable) -> Read:
        """The ``picture`` as a state. Errors are those of ``pixels``."""
        pixels, source = self.pixels(picture)
        return Read(self.state(pixels), source, pixels)


@dataclass(frozen=True)
class PixelSpace(Space):
    """The state is the image itself: ``channels`` x ``height`` x ``width`` pixels in [-1, 1]."""

    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one state."""
        return self.channels, self.height, self.width

    def pixels(self, picture: Readable) -> tuple[Tensor, Source]:
        return _read(picture, *self.shape)

    def state(self, pixels: Tensor) -> Tensor:
        return pixels

    def picture(self, states: Tensor) -> Tensor:
        """What ``states`` look like, both ``(B, C, H, W)``: pixels in [-1, 1]."""
        return states


@dataclass(frozen=True, eq=False)
class AutoencoderSpace(Space):
    """The state is what an ``autoencoder`` of diffusers makes of a picture of ``factor`` times its height and width.

    ``channels, height, width``  those of the state.
    """

    autoencoder: Any
    channels: int
    height: int
    width: int
    factor: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one state."""
        return self.channels, self.height, self.width

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a picture, in pixels."""
        return self.height * self.factor, self.width * self.factor

    def pixels(self, picture: Readable) -> tuple[Tensor, Source]:
        return _read(picture, 3, *self.size)

    def state(self, pixels: Tensor) -> Tensor:
        """What the autoencoder makes of ``pixels``, ``(1, 3, height, width)``: the middle of what it says, so that
        nothing is random."""
        with torch.no_grad(), self._computing() as where:
            found = self.autoencoder.encode(pixels.to(*where))
            z = found.latent_dist.mode() if hasattr(found, "latent_dist") else _first(found, ("latents", "latent"))
            shift, scale = self._numbers(z)
            return ((z - shift) * scale).cpu().double()

    def picture(self, states: Tensor) -> Tensor:
        """What ``states``, ``(B, C, H, W)``, decode to: ``(B, 3, H, W)``, pixels in [-1, 1]; in their dtype, there."""
        with torch.no_grad(), self._computing() as where:
            x = states.to(*where)
            shift, scale = self._numbers(x)
            parts = [self.autoencoder.decode(part).sample for part in torch.split(x / scale + shift, 1)]
            return torch.cat(parts).to(states)

    @staticmethod
    def numbers(autoencoder: Any) -> str:
        """What states are scaled and shifted by, as ``autoencoder`` says it."""
        names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
        values = {name: getattr(autoencoder.config, name, None) for name in names}
        return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)

    @contextmanager
    def _computing(self) -> Iterator[tuple[torch.device, torch.dtype]]:
        """Where and in what the autoencoder computes; in float32 if it asks for that, as that of SDXL does."""
        own = next(self.autoencoder.parameters()).dtype
        upcast = bool(getattr(self.autoencoder.config, "force_upcast", False)) and own == torch.float16
        if upcast:
            self.autoencoder.float()
        try:
            yield device_of(self.autoencoder), next(self.autoencoder.parameters()).dtype
        finally:
            if upcast:
                self.autoencoder.to(own)

    def _numbers(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What states are shifted and scaled by, in shapes that broadcast to ``z``."""
        config = self.autoencoder.config
        mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        shift = mean if mean is not None and deviation is not None else getattr(config, "shift_factor", None) or 0.0
        scale = torch.as_tensor(float(config.scaling_factor)).to(z)
        if deviation is not None and mean is not None:
            scale = scale / torch.as_tensor(deviation).to(z).reshape(1, -1, 1, 1)
        return torch.as_tensor(shift).to(z).reshape(1, -1, 1, 1), scale.reshape(1, -1, 1, 1)


def _first(found: object, names: Sequence[str]) -> Tensor:
    """The first of its attributes ``names`` that ``found`` has."""
    tensor: Tensor = next(getattr(found, name) for name in names if hasattr(found, name))
    return tensor


def _read(picture: Readable, channels: int, height: int, width: int) -> tuple[Tensor, Source]:
    """The ``picture``, ``(1, channels, height, width)``, float64, pixels in [-1, 1]; and where it came from.

    Raises:
        ImageFileError: if it cannot be read as a picture.
    """
    if isinstance(picture, str | Path):
        return load_image(Path(picture), channels, height, width)
    upright = open_picture(picture, "picture") if isinstance(picture, bytes) else prepare(picture, "picture")
    return fit_picture(upright, channels, height, width)[None], Source("picture", upright.size)
