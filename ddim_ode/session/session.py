"""A session: a model that encodes, decodes, reconstructs, samples and interpolates, one picture or any number.

    session = Session("default")                       # or a model's folder, a name on the Hub, a Model
    latent = session.encode("photo.jpg", steps=10)     # what `cli.py encode photo.jpg --steps 10` writes
    latent.save("photo.latent.pt")
    session.decode("photo.latent.pt").save("photo.png")

What is said of one input holds for many: ``encode_all`` and its like take any iterable, work in batches, and keep no
more than a batch in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ddim_ode.ancestral import Ancestral, seeded_noise
from ddim_ode.codec import stream_latents, to_device
from ddim_ode.devices import find_device
from ddim_ode.grids import Grid, halved
from ddim_ode.images import Source, pixel_mse
from ddim_ode.interpolation import span
from ddim_ode.latents import Latent, LatentError, load_latent
from ddim_ode.models import DEFAULT_MODEL, Model, load_model
from ddim_ode.session import check as checking
from ddim_ode.session.batches import MemberError, OnError, batched, each, together_or_alone
from ddim_ode.session.corners import corner_errors, count_images, encode_corners, load_corners
from ddim_ode.session.plan import (
    MOST_IN_A_BATCH,
    Plan,
    PlanError,
    Request,
    check_cost,
    plan_decoding,
    plan_encoding,
    plan_interpolation,
    plan_noise,
    plan_sampling,
)
from ddim_ode.session.results import (
    Decoded,
    Encoded,
    EncodedBatch,
    Interpolation,
    Picture,
    Reconstructed,
    Sample,
    check_sheet,
)
from ddim_ode.session.search import cheapest
from ddim_ode.session.walks import Listener, Walker
from ddim_ode.spaces import Readable
from solvers import Solution, Solver, finer

# A latent to decode: a file's path, its content, or the latent itself.
LatentLike = str | Path | bytes | Latent
# A picture that was read: its number, its pixels, (1, C, H, W), and where they came from.
ReadPicture = tuple[int, tuple[Tensor, Source]]


def _name(job: ReadPicture) -> str:
    return job[1][1].name


class Session:
    """A model, ready to work.

    ``model``       'default', a model's folder, its name on the Hub, or a ``Model``, which stays on its device.
    ``device``      'auto', 'cpu', 'cuda' or 'mps': where to put a model that is loaded here.
    ``batch_size``  as many pictures go through the network together.
    ``max_nfe``     the most network evaluations for a batch, one way.
    ``progress``    is told of every evaluation.

    Solvers that fail raise ``solvers.SolverError``, a limit that is reached ``ode.EvaluationLimitError``; whatever is
    wrong with what a session is given is a ValueError.

    Raises:
        ValueError: if there is no such model or device, or the batch size or the limit is out of range.
    """

    def __init__(
        self,
        model: Model | str | Path = DEFAULT_MODEL,
        *,
        device: str = "auto",
        batch_size: int = 16,
        max_nfe: int = 10_000,
        progress: Listener | None = None,
    ) -> None:
        if not 1 <= batch_size <= MOST_IN_A_BATCH:
            raise ValueError(f"batch_size must be from 1 to {MOST_IN_A_BATCH}, but it is {batch_size}")
        self.model = model if isinstance(model, Model) else load_model(str(model), device=find_device(device))
        self.batch_size = batch_size
        self.max_nfe = max_nfe
        self._progress = progress
        self._walker = Walker(self.model.ode(max_nfe=max_nfe), progress)

    def encode(
        self,
        picture: Readable,
        *,
        solver: str | None = None,
        steps: int | None = None,
        grid: str | tuple[float, ...] | None = None,
        clean_end: str | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        exact: bool = False,
    ) -> Latent:
        """The latent of ``picture``: a file's path or content, or a picture of Pillow's.

        The wishes are those of ``Request``.

        Raises:
            ValueError: if the picture cannot be read, or the wishes do not go together.
            SolverError, EvaluationLimitError: if the solver does not reach the end.
        """
        request = Request(solver, steps, grid, clean_end, rtol, atol, exact)
        (encoded,) = self.encode_all([picture], request)
        encoded.walk.warn()
        return encoded.latent

    def decode(
        self,
        latent: LatentLike,
        *,
        solver: str | None = None,
        steps: int | None = None,
        grid: str | tuple[float, ...] | None = None,
        clean_end: str | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        any_model: bool = False,
    ) -> Picture:
        """The picture that ``latent`` decodes to, as it was encoded but for what is wished.

        ``latent``     a file's path or content, or a ``Latent``.
        ``any_model``  accept a latent of other weights or another schedule.

        Raises:
            ValueError: if the latent cannot be read or belongs to another model, or the wishes do not go together.
            SolverError, EvaluationLimitError: if the solver does not reach the end.
        """
        request = Request(solver, steps, grid, clean_end, rtol, atol)
        (decoded,) = self.decode_all([latent], request, any_model=any_model)
        decoded.walk.warn()
        return decoded.picture

    def reconstruct(
        self,
        picture: Readable,
        *,
        solver: str | None = None,
        steps: int | None = None,
        grid: str | tuple[float, ...] | None = None,
        clean_end: str | None = None,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> Reconstructed:
        """``picture`` encoded and decoded again, with what was lost. Errors are those of ``encode``."""
        (reconstructed,) = self.reconstruct_all([picture], Request(solver, steps, grid, clean_end, rtol, atol))
        return reconstructed

    def sample(
        self,
        count: int = 1,
        *,
        seed: int = 0,
        eta: float | None = None,
        sigma_hat: bool = False,
        solver: str | None = None,
        steps: int | None = None,
        grid: str | tuple[float, ...] | None = None,
        clean_end: str | None = None,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> Iterator[Sample]:
        """``count`` new images, decoded from random latents; neither depends on the batches nor on ``count``.

        ``eta``        noise in each step, from 0, DDIM, to 1, DDPM, instead of a solver of the ODE; None for none.
        ``sigma_hat``  the larger noise of DDPM's other variance.

        Raises:
            ValueError: if the wishes do not go together, eta lies outside [0, 1], or ``count`` is below 1.
            SolverError, EvaluationLimitError: if the solver does not reach the end.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, but it is {count}")
        request = Request(solver, steps, grid, clean_end, rtol, atol)
        noisy, eta = eta is not None or sigma_hat, 1.0 if eta is None else eta
        plan = self._affordable((plan_noise if noisy else plan_sampling)(request, self.model))
        settings = self._settings(plan.solver, plan.grid, "samples") | {"seed": seed, "count": count}
        settings |= {"eta": eta, "sigma_hat": sigma_hat} if noisy else {}
        shape = self.model.space.shape

        def noise(members: range) -> Ancestral:
            return Ancestral(seeded_noise(members, shape, seed=seed), eta, sigma_hat)

        noise(range(1))  # which refuses a wrong eta before any work
        latents = islice(stream_latents(shape, seed=seed), count)
        return self._sample(plan, latents, count, noise if noisy else None, settings)

    def interpolate(
        self,
        inputs: Sequence[Readable | Latent] = (),
        *,
        seeds: Sequence[int] = (),
        count: int = 9,
        solver: str | None = None,
        steps: int | None = None,
        grid: str | tuple[float, ...] | None = None,
        clean_end: str | None = None,
        rtol: float | None = None,
        atol: float | None = None,
    ) -> Interpolation:
        """The way between two corners on a great circle, ``count`` images, or between four, ``count`` x ``count``.

        ``inputs``  pictures, latent files (whose names end with .pt) and latents; then random latents by ``seeds``.

        Raises:
            ValueError: if there are neither two corners nor four, one cannot be read, or wishes do not go together.
            SolverError, EvaluationLimitError: if the solver does not reach the end.
        """
        corners = load_corners(inputs, seeds, self.model)
        known = [corner.latent for corner in corners if corner.latent]
        check_sheet(count_images(len(corners), count), self.model.space.shape)
        plan = plan_interpolation(Request(solver, steps, grid, clean_end, rtol, atol), known, self.model)
        plan = self._affordable(plan)
        ends, there = encode_corners(self._walker, corners, plan, self.model.device)
        names = [corner.name for corner in corners]
        settings = self._settings(plan.back, plan.grid, ", ".join(names)) | {"between": names, "count": count}
        walks = [
            (solution.x.cpu(), walk)
            for solution, walk in self._walker.decode_batches(
                torch.split(span(ends, count), self.batch_size), count_images(len(corners), count), plan.grid, plan.back
            )
        ]
        images = torch.cat([decoded for decoded, _ in walks])
        errors = corner_errors(corners, images)
        settings |= {"mse": errors}
        pictures = [Picture(image, settings | {"frame": i}) for i, image in enumerate(images)]
        return Interpolation(pictures, count, names, errors, plan, there, walks[-1][1], settings)

    def encode_all(
        self, pictures: Iterable[Readable], request: Request | None = None, *, on_error: OnError | None = None
    ) -> Iterator[Encoded]:
        """The latents of any number of ``pictures``, in their order.

        ``on_error``  is told of each picture that fails, while the others go on; without it, the error is raised.
        """
        return (encoded for batch in self.encode_batches(pictures, request, on_error=on_error) for encoded in batch)

    def encode_batches(
        self, pictures: Iterable[Readable], request: Request | None = None, *, on_error: OnError | None = None
    ) -> Iterator[EncodedBatch]:
        """What ``encode_all`` gives, batch by batch, so that each batch can be checked."""
        plan = self._affordable(plan_encoding(request or Request(), self.model))

        def work(chunk: Sequence[ReadPicture]) -> EncodedBatch:
            return self._encode_batch(plan, chunk, on_error)

        chunks = batched(each(pictures, self.model.space.read, on_error), self.batch_size)
        return (done for chunk in chunks for done in together_or_alone(chunk, work, _name, on_error))

    def decode_all(
        self,
        latents: Iterable[LatentLike],
        request: Request | None = None,
        *,
        any_model: bool = False,
        on_error: OnError | None = None,
    ) -> Iterator[Decoded]:
        """What any number of ``latents`` decode to, in their order; arguments are those of ``decode``, ``encode_all``.

        Neighbours that are to be decoded alike go through the network together.
        """
        wishes = request or Request()

        def load(source: LatentLike) -> tuple[Latent, Plan]:
            latent = source if isinstance(source, Latent) else load_latent(source)
            try:
                latent.check_fits(self.model, any_model=any_model)
                return latent, self._affordable(plan_decoding(wishes, latent, self.model))
            except ValueError as error:
                if isinstance(error, PlanError) or not isinstance(source, str | Path):
                    raise
                raise LatentError(f"'{source}': {error}") from error

        def alike(job: tuple[int, tuple[Latent, Plan]]) -> tuple[Solver, Grid, bool]:
            plan = job[1][1]
            return plan.back, plan.grid, plan.exact

        def name(job: tuple[int, tuple[Latent, Plan]]) -> str:
            return f"latent of {job[1][0].source.name}"

        chunks = batched(each(latents, load, on_error), self.batch_size, alike)
        done = (part for chunk in chunks for part in together_or_alone(chunk, self._decode_batch, name, on_error))
        return (decoded for part in done for decoded in part)

    def reconstruct_all(
        self, pictures: Iterable[Readable], request: Request | None = None, *, on_error: OnError | None = None
    ) -> Iterator[Reconstructed]:
        """Encode and decode any number of ``pictures``, in their order; arguments are those of ``encode_all``."""
        plan = self._affordable(plan_encoding(request or Request(), self.model))
        work = partial(self._reconstruct_batch, plan)
        chunks = batched(each(pictures, self.model.space.read, on_error), self.batch_size)
        done = (part for chunk in chunks for part in together_or_alone(chunk, work, _name, on_error))
        return (found for part in done for found in part)

    def readable(self, pictures: Sequence[Readable], *, on_error: OnError) -> list[int]:
        """The numbers of those ``pictures`` that can be read; ``on_error`` is told of the others."""
        return [index for index, _ in each(pictures, self.model.space.read, on_error)]

    def cheapest(
        self, pictures: Sequence[Readable], target_psnr: float, request: Request, *, tried: Callable[[str], object]
    ) -> Request:
        """The ``request`` with the solver and the steps that bring every picture back so well, in dB, at least cost.

        ``tried``  is told of each setting that was tried, in a line. The pictures are read anew for each.

        Raises:
            ValueError: if there is no such setting, or the request fixes the number of steps.
        """

        def batches() -> Iterator[Tensor]:
            for chunk in batched(each(pictures, self.model.space.read, None), self.batch_size):
                yield self._states([image for _, (image, _) in chunk])

        return cheapest(request, self.model, self._walker, batches, target_psnr, max_nfe=self.max_nfe, tried=tried)

    def _encode_batch(self, plan: Plan, chunk: Sequence[ReadPicture], on_error: OnError | None) -> EncodedBatch:
        x_0 = self._states([image for _, (image, _) in chunk])
        solution, walk = self._walker.encode(x_0, plan.grid, plan.solver)

        def latent(job: tuple[int, tuple[int, Source]]) -> Encoded:
            member, (index, source) = job
            try:
                found = self._latent(plan, solution, member, source, walk.nfe_of(member))
            except LatentError as error:
                raise MemberError(f"'{source.name}': {error}") from error
            return Encoded(index, member, found, plan, walk)

        members = enumerate((index, source) for index, (_, source) in chunk)
        latents = [encoded for _, encoded in each(members, latent, on_error)]
        return EncodedBatch(latents, walk, lambda: self._check(plan, x_0, solution))

    def _latent(self, plan: Plan, solution: Solution, member: int, source: Source, nfe: int) -> Latent:
        part = slice(member, member + 1)
        return Latent(
            x_T=solution.x[part].cpu(),
            grid=plan.grid,
            solver=plan.solver.settings,
            schedule=self.model.schedule,
            model=self.model.name,
            fingerprint=self.model.fingerprint,
            source=source,
            nfe=nfe,
            companion=None if solution.companion is None else solution.companion[part].cpu(),
        )

    def _check(self, plan: Plan, x_0: Tensor, solution: Solution) -> checking.Check:
        # Finer steps are twice as many, of an adaptive solver up to four times.
        walker = Walker(self.model.ode(max_nfe=4 * self.max_nfe), self._progress)
        fine_grid = plan.grid if plan.solver.adaptive else halved(plan.grid, self.model.schedule)
        fine = (finer(plan.solver), fine_grid)
        return checking.check(
            walker, x_0, solution.x, plan.grid, finer=fine, back=plan.back, companion=solution.companion
        )

    def _decode_batch(self, chunk: Sequence[tuple[int, tuple[Latent, Plan]]]) -> list[Decoded]:
        plan = chunk[0][1][1]
        x_T = self._states([latent.x_T for _, (latent, _) in chunk])
        companions = [latent.companion for _, (latent, _) in chunk if plan.exact and latent.companion is not None]
        companion = self._states(companions) if companions else None
        solution, walk = self._walker.decode(x_T, plan.grid, plan.back, companion=companion)
        images, found = solution.x.cpu(), []
        for member, (index, (latent, own)) in enumerate(chunk):
            settings = self._settings(plan.back, plan.grid, latent.source.name)
            found.append(Decoded(index, member, Picture(images[member], settings), latent, own, walk))
        return found

    def _reconstruct_batch(self, plan: Plan, chunk: Sequence[ReadPicture]) -> list[Reconstructed]:
        x_0 = self._states([image for _, (image, _) in chunk])
        there, walk_there = self._walker.encode(x_0, plan.grid, plan.solver)
        back, walk_back = self._walker.decode(there.x, plan.grid, plan.back, companion=there.companion)
        errors, decoded = pixel_mse(x_0, back.x).tolist(), back.x.cpu()
        alone: list[float | None] = [None] * len(chunk)
        if there.companion is not None:
            alone = pixel_mse(x_0, self._walker.decode(there.x, plan.grid, plan.back)[0].x).tolist()
        return [
            Reconstructed(
                index=index,
                member=member,
                name=source.name,
                image=image[0],
                decoded=decoded[member],
                mse=errors[member],
                mse_alone=alone[member],
                plan=plan,
                there=walk_there,
                back=walk_back,
                settings=self._settings(plan.solver, plan.grid, source.name) | {"mse": errors[member]},
            )
            for member, (index, (image, source)) in enumerate(chunk)
        ]

    def _sample(
        self,
        plan: Plan,
        latents: Iterable[Tensor],
        count: int,
        noise: Callable[[range], Ancestral] | None,
        settings: dict[str, object],
    ) -> Iterator[Sample]:
        batches = (torch.stack(list(batch)) for batch in batched(latents, self.batch_size))
        for solution, walk in self._walker.decode_batches(
            batches, count, plan.grid, plan.solver, label="sample", noise=noise
        ):
            for image in solution.x.cpu():
                yield Sample(Picture(image, settings), plan, walk)

    def _affordable(self, plan: Plan) -> Plan:
        """The ``plan``, if its cost is not known to be above the limit."""
        check_cost(plan.solver, plan.grid, self.max_nfe)
        check_cost(plan.back, plan.grid, self.max_nfe)
        return plan

    def _states(self, parts: Sequence[Tensor]) -> Tensor:
        """The ``parts``, each ``(1, C, H, W)``, as one batch on the device of the network."""
        return to_device(torch.cat(list(parts)), self.model.device)

    def _settings(self, solver: Solver, grid: Grid, source: str) -> dict[str, object]:
        """What made a picture of ``source``, to be written into its file."""
        return {
            "source": source,
            "model": self.model.name,
            "fingerprint": self.model.fingerprint,
            "solver": solver.settings,
            "grid": grid.name,
            "clean_end": grid.clean_end,
            "steps": None if solver.adaptive else grid.steps,
            "sigma_T": grid.sigma_T,
        }
