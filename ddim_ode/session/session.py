"""A session: a model that encodes, decodes, reconstructs, samples and interpolates, one picture or any number.

    session = Session("default")                       # or a model's folder, a name on the Hub, a Model
    latent = session.encode("photo.jpg", steps=10)     # what `ddim-ode encode photo.jpg --steps 10` writes
    latent.save("photo.latent.pt")
    session.decode("photo.latent.pt").save("photo.png")

What is said of one input holds for many: ``encode_all`` and its like take any iterable, work in batches, and keep no
more than two of them in memory, the one at work and the one that is read meanwhile.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

from torch import Tensor

from ddim_ode.ancestral import Ancestral, seeded_noise
from ddim_ode.calibration import Calibration
from ddim_ode.codec import stream_latents
from ddim_ode.conditions import Label
from ddim_ode.latents import Latent, LatentError
from ddim_ode.models import DEFAULT_MODEL, Model
from ddim_ode.session.batches import OnError, batched, each, together_or_alone
from ddim_ode.session.capacity import find_batch_size
from ddim_ode.session.corners import count_images, interpolate, load_corners
from ddim_ode.session.edits import edit
from ddim_ode.session.jobs import LatentLike, PictureJob, Requests, latent_jobs, picture_jobs
from ddim_ode.session.opening import Texts, open_model
from ddim_ode.session.plan import (
    Plan,
    check_cost,
    plan_decoding,
    plan_edit,
    plan_encoding,
    plan_interpolation,
    plan_noise,
    plan_sampling,
)
from ddim_ode.session.request import (
    AUTO_BATCH,
    DEFAULT_STRENGTH,
    MOST_IN_A_BATCH,
    PlanError,
    Request,
    plan_condition,
    towards_classes,
)
from ddim_ode.session.results import (
    Decoded,
    Edit,
    Encoded,
    EncodedBatch,
    Interpolation,
    Picture,
    Reconstructed,
    Sample,
    check_sheet,
)
from ddim_ode.session.search import cheapest
from ddim_ode.session.trace import Trace, trace
from ddim_ode.session.walks import Listener
from ddim_ode.session.worker import Worker
from ddim_ode.spaces import Readable

# A class for all, or one for each.
Labels = Label | Sequence[Label] | None


def _each_label(label: Labels, count: int) -> list[Label | None]:
    """The class of each of ``count``.

    Raises:
        ValueError: if there are several, but not as many.
    """
    if label is None or isinstance(label, str | int):
        return [label] * count
    if len(label) != count:
        raise ValueError(f"there must be one class, or one for each of {count}, but there are {len(label)}")
    return list(label)


def _load(model: Model) -> tuple[object, ...]:
    """What of what a pipeline is asked for decides how much a call takes."""
    return model.space.shape, model.asked and model.asked["guidance"]


def _warning(samples: Iterable[Sample]) -> Iterator[Sample]:
    """The ``samples``; warns once in each batch of what the solver could not do as it should."""
    last = None
    for sample in samples:
        if sample.walk is not last:
            sample.walk.warn()
        last = sample.walk
        yield sample


class Session:
    """A model, ready to work.

    ``model``       'default', a folder or a file of a model or a pipeline, its name on the Hub, a ``Model``, or a
                    pipeline of diffusers in memory; the last two stay on their device.
    ``device``      'auto', 'cpu', 'cuda' or 'mps': where to put a model that is loaded here.
    ``batch_size``  as many pictures go through the network together; 'auto' tries how many are worth it, and fit.
    ``max_nfe``     the most network evaluations for a batch, one way.
    ``progress``    is told of every evaluation.
    ``prompt, negative_prompt, guidance``  of a pipeline, which is driven as ``from_pipeline`` says; a ``Model`` of one
                    keeps what is not given. With them, a name on the Hub is that of a pipeline.
    ``size``        height and width of a pipeline's pictures, in pixels; its own unless given.
    ``config``      of a model that is one file, what the file does not say: a folder or a file, see ``formats``.
    ``dtype``       a key of ``dtypes.DTYPES``: what the network of a model that is loaded here computes in, float32
                    unless given. The state of the ODE stays in float64, but on 'mps', which has none.
    ``compile``     compile the network, which takes a minute at first; of pipelines those that can be written out.

    Solvers that fail raise ``solvers.SolverError``, a limit that is reached ``ode.EvaluationLimitError``; whatever is
    wrong with what a session is given is a ValueError.

    Raises:
        ValueError: if there is no such model or device, or the batch size or the limit is out of range.
    """

    def __init__(
        self,
        model: Model | str | Path | object = DEFAULT_MODEL,
        *,
        device: str = "auto",
        batch_size: int | Literal["auto"] = 16,
        max_nfe: int = 10_000,
        progress: Listener | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        config: str | Path | None = None,
        dtype: str | None = None,
        compile: bool = False,
    ) -> None:
        if batch_size != AUTO_BATCH and not (isinstance(batch_size, int) and 1 <= batch_size <= MOST_IN_A_BATCH):
            allowed = f"'{AUTO_BATCH}' or from 1 to {MOST_IN_A_BATCH}"
            raise ValueError(f"batch_size must be {allowed}, but it is {batch_size!r}")
        if size is not None and (len(size) != 2 or not all(type(side) is int and side > 0 for side in size)):
            raise ValueError(f"size must be (height, width), two positive integers, but it is {size}")
        texts = Texts(prompt, negative_prompt, guidance, *(size or ()))
        self.model = open_model(model, device, texts, config=config, dtype=dtype, compile=compile)
        self._wished_batch = batch_size
        self.batch_size: int = find_batch_size(self.model) if batch_size == AUTO_BATCH else batch_size
        self.max_nfe = max_nfe
        self._worker = Worker(self.model, max_nfe, progress, tf32=dtype == "tf32")
        self._worker.walker(())  # which refuses a wrong limit before any work

    @property
    def tf32(self) -> bool:
        """Whether a GPU may leave out digits of products of float32."""
        return self._worker.tf32

    def asked_for(
        self,
        *,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Session:
        """A session of the same pipeline, asked for something else; what is None stays. See ``Model.asked_for``."""
        model = self.model.asked_for(
            prompt=prompt, negative_prompt=negative_prompt, guidance=guidance, height=height, width=width
        )
        session = self._with(model)
        # As many of another size, or with other guidance, may not fit; a prompt alone changes nothing.
        if self._wished_batch == AUTO_BATCH and _load(model) != _load(self.model):
            session.batch_size = find_batch_size(model)
        return session

    def calibrated(self, calibration: Calibration) -> Session:
        """A session of the same model with this ``calibration``, such as ``learn_solver`` makes.

        Raises:
            CalibrationError: if it was made for other weights.
        """
        return self._with(self.model.calibrated(calibration))

    def _with(self, model: Model) -> Session:
        session = copy(self)
        session.model, session._worker = model, replace(self._worker, model=model)
        return session

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
        label: Label | None = None,
        guidance: float | None = None,
        exact: bool = False,
    ) -> Latent:
        """The latent of ``picture``: a file's path or content, or a picture of Pillow's.

        The wishes are those of ``Request``. With guidance above 1 the latent is decoded as well, and a UserWarning says
        what was lost.

        Raises:
            ValueError: if the picture cannot be read, or the wishes do not go together.
            SolverError, EvaluationLimitError: if the solver does not reach the end.
        """
        request = Request(solver, steps, grid, clean_end, rtol, atol, exact, label, guidance)
        (batch,) = self.encode_batches([picture], request)
        (encoded,) = batch
        encoded.walk.warn()
        lost = None
        try:
            lost = batch.round_trip() if batch.guided else None
        except RuntimeError as error:  # which loses no latent
            warnings.warn(f"the latent of '{encoded.latent.source.name}' cannot be decoded: {error}", stacklevel=2)
        for text in encoded.warnings(lost=lost):
            warnings.warn(text, stacklevel=2)
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
        label: Label | None = None,
        guidance: float | None = None,
        any_model: bool = False,
    ) -> Picture:
        """The picture that ``latent`` decodes to, as it was encoded but for what is wished.

        ``latent``     a file's path or content, a ``Latent``, or a function that gives it.
        ``any_model``  accept a latent of other weights or another schedule.

        Raises:
            ValueError: if the latent cannot be read or belongs to another model, or the wishes do not go together.
            SolverError, EvaluationLimitError: if the solver does not reach the end.
        """
        request = Request(solver, steps, grid, clean_end, rtol, atol, label=label, guidance=guidance)
        (decoded,) = self.decode_all([latent], request, any_model=any_model)
        decoded.walk.warn()
        for text in decoded.plan.otherwise:
            warnings.warn(text, stacklevel=2)
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
        label: Label | None = None,
        guidance: float | None = None,
    ) -> Reconstructed:
        """``picture`` encoded and decoded again, with what was lost. Errors are those of ``encode``."""
        request = Request(solver, steps, grid, clean_end, rtol, atol, label=label, guidance=guidance)
        (reconstructed,) = self.reconstruct_all([picture], request)
        reconstructed.there.warn()
        reconstructed.back.warn()
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
        label: Labels = None,
        guidance: float | None = None,
    ) -> Iterator[Sample]:
        """``count`` new images, decoded from random latents; neither depends on the batches nor on ``count``.

        ``eta``        noise in each step, from 0, DDIM, to 1, DDPM, instead of a solver of the ODE; None for none.
        ``sigma_hat``  the larger noise of DDPM's other variance.
        ``label``      a class for all, or one for each image.

        Raises:
            ValueError: if the wishes do not go together, eta lies outside [0, 1], or ``count`` is below 1.
            SolverError, EvaluationLimitError: if the solver does not reach the end.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, but it is {count}")
        noisy, eta = eta is not None or sigma_hat, 1.0 if eta is None else eta
        labels = _each_label(label, count)
        wishes = [
            Request(solver, steps, grid, clean_end, rtol, atol, label=own, guidance=guidance)
            for own in dict.fromkeys(labels)
        ]
        asked = towards_classes(wishes, [None] * len(wishes), self.model)
        plan = plan_noise if noisy else plan_sampling
        plans = {wish.label: self._affordable(plan(wish, self.model)) for wish in asked}
        settings: dict[str, object] = {"seed": seed, "count": count}
        settings |= {"eta": eta, "sigma_hat": sigma_hat} if noisy else {}
        shape = self.model.space.shape

        def noise(members: range) -> Ancestral:
            return Ancestral(seeded_noise(members, shape, seed=seed), eta, sigma_hat)

        noise(range(1))  # which refuses a wrong eta before any work
        jobs = zip(islice(stream_latents(shape, seed=seed), count), (plans[own] for own in labels), strict=True)
        batches = batched(jobs, self.batch_size, lambda job: (job[1].solver, job[1].grid))
        return _warning(self._worker.sample(batches, count, noise if noisy else None, settings))

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
        label: Labels = None,
        guidance: float | None = None,
    ) -> Interpolation:
        """The way between two corners on a great circle, ``count`` images, or between four, ``count`` x ``count``.

        ``inputs``  pictures, latent files (whose names end with .pt) and latents; then random latents by ``seeds``.
        ``label``   a class for all, or one for each corner; latents have their own unless there is one. Where corners
                    differ, what lies between is asked for some of each.

        A UserWarning says where a pipeline is asked for something else than a latent was encoded as.

        Raises:
            ValueError: if there are neither two corners nor four, one cannot be read, or wishes do not go together.
            SolverError, EvaluationLimitError: if the solver does not reach the end.
        """
        corners = load_corners(inputs, seeds, self.model)
        check_sheet(count_images(len(corners), count), self.model.space.shape)
        requests = [
            Request(solver, steps, grid, clean_end, rtol, atol, label=own, guidance=guidance)
            for own in _each_label(label, len(corners))
        ]
        plan, conditions = plan_interpolation(requests, [corner.latent for corner in corners], self.model)
        found = interpolate(self._worker, corners, self._affordable(plan), conditions, count, self.batch_size)
        found.there.warn()
        found.back.warn()
        for text in found.plan.otherwise:
            warnings.warn(text, stacklevel=2)
        return found

    def edit(
        self,
        picture: Readable,
        to: Label,
        *,
        strength: float | Sequence[float] = DEFAULT_STRENGTH,
        solver: str | None = None,
        steps: int | None = None,
        grid: str | tuple[float, ...] | None = None,
        clean_end: str | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        label: Label | None = None,
        guidance: float | None = None,
    ) -> Edit:
        """``picture`` encoded as the class ``label``, or as none, and decoded as the class ``to``, with ``guidance``.

        Of a pipeline ``label`` and ``to`` are prompts, ``label`` that of the session unless given; the picture is
        encoded without guidance, and decoded with that of the session unless there is another.

        ``strength``  how far up to encode: a part of all timesteps, above 0 and at most 1, or several of them.

        Errors are those of ``encode``.
        """
        read = self.model.space.read(picture)
        here, there = self._worker, self._worker
        request = Request(solver, steps, grid, clean_end, rtol, atol, label=to, guidance=guidance)
        if self.model.asked is not None:
            source, target = (None if text is None else str(text) for text in (label, to))
            here = replace(here, model=self.model.asked_for(prompt=source, guidance=1.0))
            there = replace(there, model=self.model.asked_for(prompt=target, guidance=guidance))
            request, label = replace(request, label=None, guidance=None), None
        strengths = [strength] if isinstance(strength, int | float) else sorted(strength)
        if not strengths:
            raise PlanError("there must be a strength, or several of them, above 0 and at most 1, but there is none")
        plans = [self._affordable(plan_edit(request, self.model, part)) for part in strengths]
        own = self.model.condition(label)
        found = edit(here, there, read, own, dict(zip(strengths, plans, strict=True)))
        for walk in (walk for part in found.edits for walk in (part.there, part.back)):
            walk.warn()
        return found

    def trace(self, picture: Readable, request: Request | None = None, *, shown: int = 10) -> Trace:
        """The way of ``picture`` up to noise and back, seen at each step; the ``request`` says what is wished.

        ``shown``  at so many nodes of each way, 2 at least, there is a picture of what the network takes it for.

        Raises:
            ValueError: as ``encode`` does, and if the solver has steps that cannot be seen.
            SolverError, EvaluationLimitError: if the solver does not reach the end.
        """
        if shown < 2:
            raise ValueError(f"at least 2 nodes of a way are shown, but {shown} are asked for")
        read = self.model.space.read(picture)
        plan = self._affordable(plan_encoding(request or Request(), self.model))
        return trace(self._worker, read, plan, shown=shown)

    def encode_all(
        self, pictures: Iterable[Readable], request: Requests = None, *, on_error: OnError | None = None
    ) -> Iterator[Encoded]:
        """The latents of any number of ``pictures``, in their order.

        ``request``   what is wished for all, or for each of them. Neighbours whose solver and grid are the same go
                      through the network together, whatever their classes.
        ``on_error``  is told of each picture that fails, while the others go on; without it, the error is raised.
        """
        return (encoded for batch in self.encode_batches(pictures, request, on_error=on_error) for encoded in batch)

    def encode_batches(
        self, pictures: Iterable[Readable], request: Requests = None, *, on_error: OnError | None = None
    ) -> Iterator[EncodedBatch]:
        """What ``encode_all`` gives, batch by batch, so that each batch can be checked."""

        def work(jobs: Sequence[PictureJob]) -> EncodedBatch:
            return self._worker.encode(jobs, on_error)

        return (
            done for jobs in self._jobs(pictures, request, on_error) for done in together_or_alone(jobs, work, on_error)
        )

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

        def plan(latent: Latent) -> Plan:
            latent.check_fits(self.model, any_model=any_model)
            self._check_condition(wishes, latent)
            return self._affordable(plan_decoding(wishes, latent, self.model))

        batches = latent_jobs(latents, plan, on_error, self.batch_size)
        done = (part for jobs in batches for part in together_or_alone(jobs, self._worker.decode, on_error))
        return (decoded for part in done for decoded in part)

    def reconstruct_all(
        self, pictures: Iterable[Readable], request: Requests = None, *, on_error: OnError | None = None
    ) -> Iterator[Reconstructed]:
        """Encode and decode any number of ``pictures``, in their order; arguments are those of ``encode_all``."""
        batches = self._jobs(pictures, request, on_error)
        done = (part for jobs in batches for part in together_or_alone(jobs, self._worker.reconstruct, on_error))
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
                yield self._worker.states(found.state for _, found in chunk)

        return cheapest(request, self.model, self._worker, batches, target_psnr, max_nfe=self.max_nfe, tried=tried)

    def _jobs(
        self, pictures: Iterable[Readable], request: Requests, on_error: OnError | None
    ) -> Iterator[Sequence[PictureJob]]:
        """The ``pictures``, read and planned for, in batches that go through the network together."""

        def plan(wishes: Request) -> Plan:
            return self._affordable(plan_encoding(wishes, self.model))

        return picture_jobs(pictures, request, self.model.space, plan, on_error, self.batch_size)

    def _check_condition(self, request: Request, latent: Latent) -> None:
        """Raise LatentError if the request asks for guidance, and neither it nor the latent for a class."""
        try:
            plan_condition(request, self.model, latent)
        except PlanError as error:
            raise LatentError(f"{error}") from error

    def _affordable(self, plan: Plan) -> Plan:
        """The ``plan``, if its cost is not known to be above the limit."""
        check_cost(plan.solver, plan.grid, self.max_nfe)
        check_cost(plan.back, plan.grid, self.max_nfe)
        return plan
