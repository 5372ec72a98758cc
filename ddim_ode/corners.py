"""What to interpolate between: pictures, which are encoded first, latent files, and random latents by their seeds.

All tensors of one corner are ``(1, C, H, W)`` of the model's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddim_ode.codec import Solve, draw_latents, encode, state_dtype
from ddim_ode.grids import Grid
from ddim_ode.images import load_image, pixel_mse
from ddim_ode.latents import Latent, load_latent
from ddim_ode.models import Model
from ddim_ode.ode import ProbabilityFlowODE


@dataclass(frozen=True, eq=False)
class Corner:
    """One end of an interpolation: a ``picture`` with pixels in [-1, 1], a ``latent`` file, or ``noise`` from a seed.

    ``name``  what people call it: the file or the seed.
    """

    name: str
    picture: Tensor | None = None
    latent: Latent | None = None
    noise: Tensor | None = None


def count_images(corners: int, count: int) -> int:
    """How many images there are between so many corners, ``count`` in a row.

    Raises:
        ValueError: if there are neither two corners nor four.
    """
    if corners not in (2, 4):
        raise ValueError(
            f"interpolation is between two pictures, latent files or seeds, or four for a sheet, "
            f"but there are {corners}"
        )
    return count if corners == 2 else count * count


def load_corners(paths: Sequence[Path], seeds: Sequence[int], model: Model) -> list[Corner]:
    """Two corners or four: those in ``paths``, latent files where the name ends with .pt, then those of ``seeds``.

    The noise of a seed is the first one that ``draw_latents`` draws.

    Raises:
        ValueError: for another number of corners, or a file that is no picture or no latent of this model.
    """
    count_images(len(paths) + len(seeds), 1)
    shape = (model.channels, model.height, model.width)
    corners = [_load(path, shape, model) for path in paths]
    return corners + [Corner(f"seed {seed}", noise=draw_latents(1, shape, seed=seed)) for seed in seeds]


def _load(path: Path, shape: tuple[int, int, int], model: Model) -> Corner:
    if path.suffix != ".pt":
        return Corner(path.name, picture=load_image(path, *shape)[0])
    latent = load_latent(path)
    latent.check_fits(model)
    return Corner(path.name, latent=latent)


def encode_corners(
    ode: ProbabilityFlowODE, corners: Sequence[Corner], grid: Grid, solver: Solve, device: torch.device
) -> Tensor:
    """Their latents x_T, ``(len(corners), C, H, W)``, on the ``device`` of the network; pictures go through the ODE
    together, and the companions of latent files are left out.

    Raises:
        LatentError: if a latent file lies at another noise level than the end of ``grid``.
        EvaluationLimitError, RuntimeError: as ``encode`` does.
    """
    for corner in corners:
        if corner.latent is not None:
            corner.latent.check_reaches(grid)
    dtype = state_dtype(device)
    pictures = [corner.picture for corner in corners if corner.picture is not None]
    x_T = encode(ode, torch.cat(pictures).to(device, dtype), grid, solver) if pictures else torch.empty(0)
    encoded = iter(torch.split(x_T, 1))
    known = (corner.noise if corner.latent is None else corner.latent.x_T for corner in corners)
    return torch.cat([next(encoded) if x_T is None else x_T.to(device, dtype) for x_T in known])


def corner_errors(corners: Sequence[Corner], images: Tensor) -> list[float]:
    """MSE per dimension, on the scale [0, 1], of the ends of an interpolation against the pictures they were.

    ``images`` is all that was decoded from ``interpolation.span``, ``(B, C, H, W)``. Of other corners there is none.
    """
    count = len(images) if len(corners) == 2 else round(len(images) ** 0.5)
    places = (0, count - 1, len(images) - count, len(images) - 1)
    return [
        float(pixel_mse(corner.picture, images[place : place + 1].cpu()))
        for corner, place in zip(corners, places, strict=False)
        if corner.picture is not None
    ]
