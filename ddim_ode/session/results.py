"""What a session gives: pictures and latents, each with the plan and the walks that made it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ddim_ode.asked import DISTILLED
from ddim_ode.conditions import Condition
from ddim_ode.images import png, psnr, save_image, tile, to_picture
from ddim_ode.latents import Latent
from ddim_ode.session.check import Check
from ddim_ode.session.parts import Parts
from ddim_ode.session.plan import Plan
from ddim_ode.session.walks import Walk
from ddim_ode.solvers import ExactInverse


@dataclass(frozen=True, eq=False)
class Picture:
    """An ``image``, ``(C, H, W)`` on the CPU, pixels in [-1, 1] up to overshoot, with the ``settings`` that made it.

    ``zoom``  each pixel becomes a square of this side in the file.
    """

    image: Tensor
    settings: Mapping[str, object]
    zoom: int = 1

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a PNG file that carries the settings. Errors are those of ``images.save_image``."""
        save_image(self.image, Path(path), settings=self.settings, zoom=self.zoom, overwrite=overwrite)

    def to_bytes(self) -> bytes:
        """The content of that file."""
        return png(self.image, settings=self.settings, zoom=self.zoom)

    def to_pil(self) -> Image.Image:
        """The picture for Pillow and notebooks, with 8 bits a channel."""
        return Image.open(io.BytesIO(self.to_bytes())) if self.zoom > 1 else to_picture(self.image)


# In pixels: more than that other programs do not open without a warning.
LARGEST_SHEET = 2**26


def sheet(pictures: Sequence[Picture], columns: int, settings: Mapping[str, object]) -> Picture:
    """The ``pictures`` as one, row by row, each at least 64 pixels high."""
    images = torch.stack([picture.image for picture in pictures])
    return Picture(tile(images, columns=columns), settings, zoom=_zoom(images.shape[-2]))


def check_sheet(count: int, shape: tuple[int, int, int]) -> None:
    """Find out before the work is done whether ``count`` images of the ``shape`` (C, H, W) fit on a ``sheet``.

    Raises:
        ValueError: if they are too many for one picture; the message says how many are not.
    """
    _, height, width = shape
    most = LARGEST_SHEET // (_zoom(height) ** 2 * height * width)
    if count > most:
        raise ValueError(f"{count} images of {width} x {height} are too many for one picture; {most} have room on it")


def _zoom(height: int) -> int:
    return -(-64 // height)


def describe(plan: Plan, walk: Walk, member: int | None = None) -> str:
    """What was done, what it cost, and why, in a line; of a ``member`` of the batch, or of the batch."""
    return "; ".join((walk.report(member), *_asked(plan.condition, walk.nfe_of(member)), *plan.remarks))


def _asked(condition: Condition, nfe: int) -> tuple[str, ...]:
    """What the network was asked for ``nfe`` times, if it was for a class; and what that took of it."""
    if condition.label is None:
        return ()
    calls = len(condition.terms)
    return (f"{condition}{f', {calls * nfe} network calls an image' if calls > 1 else ''}",)


@dataclass(frozen=True, eq=False)
class Encoded:
    """The ``latent`` of the input number ``index``, which was the number ``member`` of its batch."""

    index: int
    member: int
    latent: Latent
    plan: Plan
    walk: Walk

    @property
    def unsure(self) -> bool:
        """Whether guidance amplifies the errors of encoding, and what decodes does not undo them exactly."""
        plan = self.plan
        return not 0 <= self._strength <= 1 and not plan.exact and not isinstance(plan.solver, ExactInverse)

    @property
    def _strength(self) -> float:
        """The guidance where it mixes two answers, of a class or a prompt."""
        asked = self.latent.asked
        if asked is None or asked["guidance_kind"] == DISTILLED:
            return self.plan.condition.strength
        return float(asked["guidance"] or 0)

    def report(self, found: Check | None = None) -> str:
        """How it was encoded, in a line; and how good it is, if that was ``found`` out for its batch."""
        line = describe(self.plan, self.walk, self.member)
        return f"{line}; {found.report(self.member)}" if found else line

    def warnings(self, found: Check | None = None, *, lost: Tensor | None = None) -> tuple[str, ...]:
        """Sentences, if what was ``found`` shows that this is no latent, or guidance makes encoding unsure.

        ``lost``  the errors of the round trips of the batch, ``(B,)``, where they were measured.
        """
        i, solver, warnings = self.member, self.plan.solver, list[str]()
        if found is not None and bool(found.drifts[i]):
            finer_steps = "smaller tolerances" if solver.adaptive else "twice the steps"
            warnings.append(
                f"the latent of '{self.latent.source.name}' by '{solver.name}' is wrong: its second moment is "
                f"{float(found.second_moment[i]):.4g} here and {float(found.finer_moment[i]):.4g} with {finer_steps}; "
                "take those, or another solver"
            )
        if lost is not None and self.unsure:
            warnings.append(
                f"guidance {self._strength:g} makes encoding unsure: '{self.latent.source.name}' comes back with "
                f"an MSE of {float(lost[i]):.3g} on [0, 1]; encode without guidance and decode with it, take more "
                "steps, or a reversible solver"
            )
        return tuple(warnings)


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """Latents that were encoded together; ``check`` says how good they are, for four times their evaluations.

    ``round_trip``  decodes them, and gives the MSE of each, pixels in [0, 1], ``(B,)``.
    """

    latents: Sequence[Encoded]
    walk: Walk
    check: Callable[[], Check]
    round_trip: Callable[[], Tensor]

    def __iter__(self) -> Iterator[Encoded]:
        return iter(self.latents)

    @property
    def guided(self) -> bool:
        """Whether guidance makes one of them unsure."""
        return any(encoded.unsure for encoded in self.latents)


@dataclass(frozen=True, eq=False)
class Decoded:
    """The ``picture`` that ``latent``, the input number ``index`` and number ``member`` of its batch, decodes to."""

    index: int
    member: int
    picture: Picture
    latent: Latent
    plan: Plan
    walk: Walk

    def report(self) -> str:
        """How it was decoded, in a line."""
        return describe(self.plan, self.walk, self.member)


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """The picture number ``index``, named ``name``, there and back; it was the number ``member`` of its batch.

    ``image, decoded``  before and after, ``(C, H, W)`` on the CPU, pixels in [-1, 1].
    ``mse``             between the two, per dimension, pixels in [0, 1]; ``mse_alone`` without the companion, if there
                        is one.
    ``there, back``     the two walks of the batch.
    ``parts``           whose the error is, if images are latents of an autoencoder.
    """

    index: int
    member: int
    name: str
    image: Tensor
    decoded: Tensor
    mse: float
    mse_alone: float | None
    plan: Plan
    there: Walk
    back: Walk
    settings: Mapping[str, object]
    parts: Parts | None = None

    @property
    def picture(self) -> Picture:
        """The image before and after side by side, large enough to be looked at."""
        pair = tile(torch.stack([self.image, self.decoded]), columns=2)
        return Picture(pair, self.settings, zoom=-(-256 // self.image.shape[-2]))

    def report(self) -> str:
        """What was lost, and how it was encoded and decoded, in a line."""
        alone = "" if self.mse_alone is None else f" ({self.mse_alone:.3g} from x_T alone)"
        parts = f" ({self.parts.report()})" if self.parts else ""
        return (
            f"MSE {self.mse:.3g} on [0, 1]{alone}, PSNR {psnr(self.mse):.2f} dB{parts}, encode "
            f"{describe(self.plan, self.there, self.member)}, decode {self.back.report(self.member)}"
        )


@dataclass(frozen=True, eq=False)
class Sample:
    """A new image as a ``picture``, decoded from a random latent; ``walk`` is that of its batch."""

    picture: Picture
    plan: Plan
    walk: Walk

    def report(self) -> str:
        """How the batch was decoded, in a line."""
        return describe(self.plan, self.walk)


@dataclass(frozen=True, eq=False)
class Interpolation:
    """The way from one corner to the next, or between four, as pictures, row by row.

    ``names``        of the corners; ``errors`` the MSE, pixels in [0, 1], of those of them that were pictures.
    ``conditions``   what the network is asked for at the corners.
    ``there, back``  the walk of the pictures to their latents, and that of the last batch decoded.
    """

    pictures: Sequence[Picture]
    columns: int
    names: Sequence[str]
    errors: Sequence[float]
    conditions: Sequence[Condition]
    plan: Plan
    there: Walk
    back: Walk
    settings: Mapping[str, object]

    @property
    def sheet(self) -> Picture:
        """The whole way as one picture."""
        return sheet(self.pictures, self.columns, self.settings)

    def report(self) -> str:
        """How the corners were encoded, if any were, what they lost, and how all was decoded, in a line."""
        ends = f"MSE of the ends {', '.join(f'{mse:.3g}' for mse in self.errors)} on [0, 1], "
        encoded = f"{ends}encode {self.there.report()}, " if self.errors else ""
        if len({condition.terms for condition in self.conditions}) == 1:
            return f"{encoded}decode {describe(self.plan, self.back)}"
        most = len({label for condition in self.conditions for label, _ in condition.terms})
        way = f"{' to '.join(map(str, self.conditions))}, {most * self.back.nfe} network calls an image at most"
        return f"{encoded}decode {'; '.join((self.back.report(), way, *self.plan.remarks))}"


@dataclass(frozen=True, eq=False)
class EditedAt:
    """What a picture became that was encoded up to a part of all timesteps, the ``strength``.

    ``again, edited``  decoded as what it was, and as what it should be: ``(C, H, W)`` on the CPU.
    ``mse``            of the first of these against the picture, pixels in [0, 1].
    ``there, back``    the walk up, and that of the edit down.
    """

    strength: float
    again: Tensor
    edited: Tensor
    mse: float
    plan: Plan
    there: Walk
    back: Walk

    def report(self) -> str:
        """How it was done, and what encoding lost, in a line."""
        return (
            f"strength {self.strength:g}: comes back with MSE {self.mse:.3g} on [0, 1], encode {self.there.report()}, "
            f"decode {describe(self.plan, self.back)}"
        )


@dataclass(frozen=True, eq=False)
class Edit:
    """The picture ``name``, ``image`` ``(C, H, W)``, as another class, at one strength or several, rising.

    ``own, to``  what it was encoded and decoded as.
    """

    name: str
    image: Tensor
    own: str
    to: str
    edits: Sequence[EditedAt]
    settings: Mapping[str, object]

    @property
    def strip(self) -> Picture:
        """The picture, what came back of it from the largest strength, and the edits, side by side."""
        images = [self.image, self.edits[-1].again, *(found.edited for found in self.edits)]
        return Picture(
            tile(torch.stack(images), columns=len(images)), self.settings, zoom=-(-128 // self.image.shape[-2])
        )
