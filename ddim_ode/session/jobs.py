"""Jobs: inputs that were read, each with the plan of what is to be done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ddim_ode.grids import Grid
from ddim_ode.images import Source
from ddim_ode.latents import Latent, LatentError, load_latent
from ddim_ode.session.batches import OnError, batched, each
from ddim_ode.session.plan import Plan
from ddim_ode.session.request import PlanError, Request
from ddim_ode.solvers import Solver
from ddim_ode.spaces import Readable, Space

# A latent to decode: a file's path, its content, the latent itself, or what gives it when it is called.
LatentLike = str | Path | bytes | Latent | Callable[[], Latent]
# What is wished for all inputs, or for one after another.
Requests = Request | Iterable[Request] | None


@dataclass(frozen=True, eq=False)
class PictureJob:
    """A picture that was read, the number ``index`` of the inputs, and what is to be done with it.

    ``state``   of the ODE, ``(1, C, H, W)``; ``pixels`` of the picture, in [-1, 1].
    """

    index: int
    state: Tensor
    source: Source
    pixels: Tensor
    plan: Plan

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.source.name


@dataclass(frozen=True, eq=False)
class LatentJob:
    """A latent that was read, the number ``index`` of the inputs, and how it is to be decoded."""

    index: int
    latent: Latent
    plan: Plan

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"latent of {self.latent.source.name}"


Job = PictureJob | LatentJob


def alike(job: Job) -> tuple[Solver, Solver, Grid, bool]:
    """What jobs must have in common to go through the network together; their conditions may differ."""
    plan = job.plan
    return plan.solver, plan.back, plan.grid, plan.exact


def picture_jobs(
    pictures: Iterable[Readable],
    request: Requests,
    space: Space,
    plan: Callable[[Request], Plan],
    on_error: OnError | None,
    batch_size: int,
) -> Iterator[Sequence[PictureJob]]:
    """The ``pictures``, read into ``space`` and planned for by ``plan``, in batches of those that are ``alike``."""

    def look(pair: tuple[Readable, Request | Plan]) -> tuple[tuple[Tensor, Source], Request | Plan]:
        return space.pixels(pair[0]), pair[1]

    def job(found: tuple[int, tuple[tuple[Tensor, Source], Request | Plan]]) -> PictureJob:
        index, ((pixels, source), own) = found
        own = plan(own) if isinstance(own, Request) else own
        return PictureJob(index, space.state(pixels), source, pixels, own)

    pairs: Iterable[tuple[Readable, Request | Plan]]
    if request is None or isinstance(request, Request):
        common = plan(request or Request())
        pairs = ((picture, common) for picture in pictures)
    else:
        pairs = _paired(pictures, request)
    # Threads ask nothing of a model, which is at work meanwhile; and a picture of Pillow is the caller's, who may
    # change it once it is taken.
    looked = each(pairs, look, on_error, ahead=batch_size, anywhere=lambda pair: not _is_open(pair[0]))
    return batched((own for _, own in each(looked, job, on_error)), batch_size, alike)


def latent_jobs(
    latents: Iterable[LatentLike], plan: Callable[[Latent], Plan], on_error: OnError | None, batch_size: int
) -> Iterator[Sequence[LatentJob]]:
    """The ``latents``, read and planned for by ``plan``, in batches of those that are ``alike``.

    A LatentError of ``plan`` about one that was named by its path says the path.
    """

    def load(source: LatentLike) -> tuple[LatentLike, Latent]:
        if isinstance(source, Latent):
            return source, source
        return source, source() if callable(source) else load_latent(source)

    def job(found: tuple[int, tuple[LatentLike, Latent]]) -> LatentJob:
        index, (source, latent) = found
        try:
            return LatentJob(index, latent, plan(latent))
        except ValueError as error:
            if isinstance(error, PlanError) or not isinstance(source, str | Path):
                raise
            raise LatentError(f"'{source}': {error}") from error

    # Threads ask nothing of a model, which is at work meanwhile.
    loaded = each(latents, load, on_error, ahead=batch_size)
    return batched((own for _, own in each(loaded, job, on_error)), batch_size, alike)


def _is_open(picture: Readable) -> bool:
    """Whether it is neither the name of a file nor its content."""
    return not isinstance(picture, str | Path | bytes)


def _paired(pictures: Iterable[Readable], requests: Iterable[Request]) -> Iterator[tuple[Readable, Request]]:
    count, others = 0, iter(requests)
    for picture in pictures:
        request = next(others, None)
        if request is None:
            raise ValueError(f"there must be a request for each picture, but there are only {count} of them")
        count += 1
        yield picture, request
    if next(others, None) is not None:
        raise ValueError(f"there must be a request for each picture, but there are more than the {count} pictures")
