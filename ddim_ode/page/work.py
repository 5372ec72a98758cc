"""What the page asks of a session: one request at a time, in a folder of its own and within a limit of time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import erf, sqrt
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ddim_ode.conditions import Label
from ddim_ode.images import pixel_mse, psnr, tile
from ddim_ode.latents import Latent
from ddim_ode.session.request import Request
from ddim_ode.session.results import Picture
from ddim_ode.session.session import Session
from ddim_ode.session.walks import Progress

# Of a latent, whose values are about N(0, 1): what is shown of it, in so many parts.
_REACH, _BINS = 4.0, 32
# Folders of results that are kept.
_MOST_PLACES = 50
# The numbers of steps whose errors are drawn.
CURVE = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100)
# Shorter sides of pictures are drawn with pixels as large as that needs.
_SHOWN = 256


class TooLongError(RuntimeError):
    """A request that takes longer than the page allows."""


class Clock:
    """The listener of the page's session. It ends a request after so many ``seconds``.

    ``tell``  is told how far the request at work is.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self._end = seconds, time.monotonic() + seconds
        self.tell: Callable[[Progress], object] | None = None

    def start(self, tell: Callable[[Progress], object] | None = None) -> None:
        """A request begins."""
        self.tell, self._end = tell, time.monotonic() + self.seconds

    def __call__(self, progress: Progress) -> None:
        if self.tell:
            self.tell(progress)
        if not progress.done and time.monotonic() > self._end:
            raise TooLongError(
                f"this takes longer than the {self.seconds:g} s that a request may take; ask for fewer steps or "
                "pictures, or start the page with more --seconds"
            )


@dataclass(frozen=True)
class Wishes:
    """What is chosen on the page; None where nothing is. ``asked`` is a class, or of a pipeline a prompt."""

    solver: str | None = None
    grid: str | None = None
    steps: int | None = None
    asked: str | None = None
    guidance: float | None = None

    def of(self, label: Label | None) -> dict[str, Any]:
        """What a session's methods are called with, to ask for the class ``label``."""
        walk = {"solver": self.solver, "grid": self.grid, "steps": self.steps}
        return walk | {"label": label, "guidance": None if label is None else self.guidance}


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """A picture as the model sees it, its latent, and what comes back, with ``files`` of the latter two.

    ``bins``  of the values of the latent: their middle, the part of all values in them, and that of N(0, 1).
    """

    seen: Image.Image
    latent: Image.Image
    back: Image.Image
    bins: Sequence[tuple[float, float, float]]
    report: str
    files: tuple[Path, Path]


@dataclass(frozen=True, eq=False)
class Desk:
    """The ``session`` of a page, whose ``clock`` listens to it, and the ``folder`` that all files go to."""

    session: Session
    clock: Clock
    folder: Path
    _places: deque[Path] = field(default_factory=deque)

    def there_and_back(self, picture: Path, wishes: Wishes) -> RoundTrip:
        """The ``picture`` encoded and decoded. Errors are those of ``Session.encode`` and ``decode``."""
        session, label = self._asked(wishes)
        read = session.model.space.read(picture)
        (encoded,) = session.encode_all([picture], Request(**wishes.of(label)))
        (decoded,) = session.decode_all([encoded.latent])
        for walk in (encoded.walk, decoded.walk):
            walk.warn()
        latent, back = encoded.latent, decoded.picture
        mse = float(pixel_mse(read.pixels, back.image[None]))
        place = self._place()
        files = place / f"{picture.stem}.latent.pt", place / f"{picture.stem}.decoded.png"
        latent.save(files[0])
        back.save(files[1])
        return RoundTrip(
            seen=enlarged(read.pixels[0]),
            latent=enlarged(latent_image(latent)),
            back=enlarged(back.image),
            bins=histogram(latent.x_T),
            report=f"MSE {mse:.3g} on [0, 1], {psnr(mse):.1f} dB; mean square of the latent "
            f"{float(latent.x_T.square().mean()):.3f}. Encode {encoded.report()}; decode {decoded.report()}",
            files=files,
        )

    def curve(self, picture: Path, wishes: Wishes) -> Iterator[tuple[int, float]]:
        """Steps, and the PSNR in dB of what comes back; one after the other as they are found."""
        session, label = self._asked(wishes)
        for steps in CURVE:
            yield steps, psnr(session.reconstruct(picture, **wishes.of(label) | {"steps": steps}).mse)

    def between(self, pictures: Sequence[Path], wishes: Wishes, count: int) -> tuple[list[Image.Image], str, Path]:
        """The way between two ``pictures`` in ``count`` images, in a line, and all of it as a file."""
        session, label = self._asked(wishes)
        found = session.interpolate(pictures, count=count, **wishes.of(label))
        path = self._place() / "between.png"
        found.sheet.save(path)
        return [enlarged(picture.image) for picture in found.pictures], found.report(), path

    def edited(self, picture: Path, to: str, strength: float, wishes: Wishes) -> tuple[Path, str]:
        """The ``picture`` of what it shows made into one of ``to``, as a file of the strip, and how in a line."""
        walk = wishes.of(wishes.asked) | {"guidance": wishes.guidance}
        found = self.session.edit(picture, to, strength=strength, **walk)
        path = self._place() / f"{picture.stem}.edit.png"
        found.strip.save(path)
        return path, found.edits[0].report()

    def _asked(self, wishes: Wishes) -> tuple[Session, Label | None]:
        """The session, and the class to ask for; a pipeline is asked for the text instead."""
        if self.session.model.asked is None:
            return self.session, wishes.asked
        return self.session.asked_for(prompt=wishes.asked or "", guidance=wishes.guidance), None

    def _place(self) -> Path:
        """A new folder; the oldest one goes where there are many."""
        self._places.append(Path(mkdtemp(dir=self.folder)))
        if len(self._places) > _MOST_PLACES:
            rmtree(self._places.popleft(), ignore_errors=True)
        return self._places[-1]


def enlarged(image: Tensor) -> Image.Image:
    """An ``image``, ``(C, H, W)`` with pixels in [-1, 1], large enough to be looked at."""
    return Picture(image, {}, zoom=max(1, -(-_SHOWN // min(image.shape[-2:])))).to_pil()


def latent_image(latent: Latent) -> Tensor:
    """What x_T looks like, ``(C', H', W')``: as a picture if it has 1 or 3 channels, else its channels side by side."""
    x = (latent.x_T[0] / _REACH).clamp(-1, 1)
    return x if len(x) in (1, 3) else tile(x[:, None], columns=-(-len(x) // 2))


def histogram(x: Tensor) -> list[tuple[float, float, float]]:
    """The middles of bins, the part of the values of ``x``, any shape, in each, and that of N(0, 1)."""
    edges = torch.linspace(-_REACH, _REACH, _BINS + 1, dtype=torch.float64)
    counts = torch.histc(x.double(), bins=_BINS, min=-_REACH, max=_REACH) / x.numel()
    below = [erf(float(edge) / sqrt(2)) / 2 for edge in edges]
    parts = zip(edges, edges[1:], counts, below, below[1:], strict=False)
    return [(float(a + b) / 2, float(count), p_b - p_a) for a, b, count, p_a, p_b in parts]
