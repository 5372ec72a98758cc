"""Corners, which one interpolates between: pictures, which are encoded first, latents, and random latents by seeds.

All tensors of one corner are ``(1, C, H, W)`` of the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddim_ode.codec import draw_latents
from ddim_ode.conditions import Asked, Blend, Condition
from ddim_ode.images import pixel_mse
from ddim_ode.interpolation import span
from ddim_ode.latents import Latent, load_latent
from ddim_ode.models import Model
from ddim_ode.session.batches import batched
from ddim_ode.session.plan import Plan
from ddim_ode.session.results import Interpolation, Picture
from ddim_ode.session.walks import Walk
from ddim_ode.session.worker import Worker, plan_settings
from ddim_ode.spaces import Readable


@dataclass(frozen=True, eq=False)
class Corner:
    """One end of an interpolation: the state of a ``picture``, a ``latent``, or ``noise`` from a seed.

    ``name``  what people call it: the file or the seed.
    """

    name: str
    picture: Tensor | None = None
    latent: Latent | None = None
    noise: Tensor | None = None


def count_images(corners: int, count: int) -> int:
    """How many images there are between so many corners, ``count`` in a row.

    Raises:
        ValueError: if there are neither two corners nor four, or fewer than two images in a row.
    """
    if count < 2:
        raise ValueError(f"there must be 2 images in a row or more, its ends, but there are to be {count}")
    if corners not in (2, 4):
        raise ValueError(
            f"interpolation is between two pictures, latent files or seeds, or four for a sheet, "
            f"but there are {corners}"
        )
    return count if corners == 2 else count * count


def load_corners(inputs: Sequence[Readable | Latent], seeds: Sequence[int], model: Model) -> list[Corner]:
    """Two corners or four: the ``inputs``, latents where a file's name ends with .pt, then those of ``seeds``.

    The noise of a seed is the first one that ``draw_latents`` draws.

    Raises:
        ValueError: for another number of corners, or a file that is no picture or no latent of this model.
    """
    count_images(len(inputs) + len(seeds), 2)
    corners = [_load(source, model) for source in inputs]
    _check_sizes(corners)
    for corner in corners:
        if corner.latent is not None:
            corner.latent.check_fits(model)
    return corners + [Corner(f"seed {seed}", noise=draw_latents(1, model.space.shape, seed=seed)) for seed in seeds]


def _load(source: Readable | Latent, model: Model) -> Corner:
    path = Path(source) if isinstance(source, str | Path) else None
    if path and path.suffix == ".pt":
        source = load_latent(path)
    if isinstance(source, Latent):
        return Corner(path.name if path else f"latent of {source.source.name}", latent=source)
    picture, about, _ = model.space.read(source)
    return Corner(about.name, picture=picture)


def _check_sizes(corners: Sequence[Corner]) -> None:
    """Raise ValueError if latents among the ``corners`` are of several sizes."""
    sizes = {tuple(corner.latent.x_T.shape[1:]): corner.name for corner in corners if corner.latent is not None}
    if len(sizes) > 1:
        each = " and ".join(f"'{name}' is {'x'.join(map(str, size))}" for size, name in sizes.items())
        raise ValueError(f"latents of several sizes have nothing between them: {each}; encode pictures in one size")


def encode_corners(
    worker: Worker, corners: Sequence[Corner], plan: Plan, conditions: Sequence[Condition]
) -> tuple[Tensor, Walk]:
    """The latents x_T of ``corners``, ``(len(corners), C, H, W)``, on the network's device, and what that took.

    Pictures go through the ODE together, each under its own of the ``conditions``, and the companions of latents are
    left out.

    Raises:
        LatentError: if a latent lies at another noise level than the end of the grid.
        EvaluationLimitError, RuntimeError: as ``codec.encode`` does.
    """
    for corner in corners:
        if corner.latent is not None:
            corner.latent.check_reaches(plan.grid)
    pictures = [(corner.picture, asked) for corner, asked in zip(corners, conditions, strict=True)]
    known = [(picture, asked) for picture, asked in pictures if picture is not None]
    encoded: list[Tensor] = []
    walk = Walk(plan.solver, plan.grid, 0, 0.0)
    if known:
        walker = worker.walker([asked for _, asked in known])
        solution, walk = walker.encode(worker.states(picture for picture, _ in known), plan.grid, plan.solver)
        encoded += torch.split(solution.x, 1)
    latents = (corner.noise if corner.latent is None else corner.latent.x_T for corner in corners)
    return torch.cat([encoded.pop(0) if x_T is None else worker.states([x_T]) for x_T in latents]), walk


def interpolate(
    worker: Worker,
    corners: Sequence[Corner],
    plan: Plan,
    conditions: Sequence[Condition],
    count: int,
    batch_size: int,
) -> Interpolation:
    """The way between ``corners``, each under its own of the ``conditions``, ``count`` images in a row.

    Errors are those of ``encode_corners``.
    """
    total = count_images(len(corners), count)
    ends, there = encode_corners(worker, corners, plan, conditions)
    states: list[Tensor] = []
    for batch in batched(zip(span(ends, count), between(conditions, count), strict=True), batch_size):
        x_T = torch.stack([x for x, _ in batch])
        label = f"decode {len(states) + 1}-{len(states) + len(batch)} of {total}"
        walker = worker.walker([asked for _, asked in batch])
        solution, back = walker.decode(x_T, plan.grid, plan.back, label=label)
        states += solution.x.cpu()
    plan = worker.having_told(plan, [corner.latent for corner in corners if corner.latent])
    images = worker.pictures(torch.stack(states))
    errors = corner_errors(corners, images, worker.pictures)
    names = [corner.name for corner in corners]
    common = plan_settings(worker.model, worker.model.fingerprint, plan, plan.back, ", ".join(names))
    settings = {name: value for name, value in common.items() if name not in ("class", "guidance")} | {
        "between": names,
        "conditions": [str(condition) for condition in conditions],
        "count": count,
        "mse": errors,
    }
    pictures = [Picture(image, settings | {"frame": i}) for i, image in enumerate(images)]
    return Interpolation(pictures, count, names, errors, conditions, plan, there, back, settings)


def between(conditions: Sequence[Condition], count: int) -> list[Asked]:
    """What is asked for at each of the points of ``interpolation.span``: at the corners the ``conditions`` themselves.

    Between those that differ it is some of each, in proportion.
    """
    if len(conditions) == 2:
        return _line(conditions[0], conditions[1], count)
    left, right = _line(conditions[0], conditions[2], count), _line(conditions[1], conditions[3], count)
    return [asked for a, b in zip(left, right, strict=True) for asked in _line(a, b, count)]


def _line(a: Asked, b: Asked, count: int) -> list[Asked]:
    if a.terms == b.terms:
        return [a] * count
    inner = (i / (count - 1) for i in range(1, count - 1))
    return [a, *(Blend(((a, 1 - share), (b, share))) for share in inner), b]


def corner_errors(corners: Sequence[Corner], images: Tensor, look: Callable[[Tensor], Tensor]) -> list[float]:
    """MSE per dimension, on the scale [0, 1], of the ends of an interpolation against what their states look like.

    ``images`` is all that was decoded from ``interpolation.span``, ``(B, C, H, W)``, and ``look`` says what a state
    looks like. Of other corners there is none.
    """
    count = len(images) if len(corners) == 2 else round(len(images) ** 0.5)
    places = (0, count - 1, len(images) - count, len(images) - 1)
    return [
        float(pixel_mse(look(corner.picture), images[place : place + 1]))
        for corner, place in zip(corners, places, strict=False)
        if corner.picture is not None
    ]
