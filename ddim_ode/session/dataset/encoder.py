"""What becomes of the pictures of one shard, in whatever process: latents in a file, or reasons why there are none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch

from ddim_ode.files import write_file
from ddim_ode.images import ImageFileError, Source
from ddim_ode.latents import Latent
from ddim_ode.messages import in_a_line
from ddim_ode.session.dataset.shards import Failed, Head, Row, Shard, empty, shard_name, write_shard
from ddim_ode.session.dataset.sources import Entry, Pictures, open_pictures
from ddim_ode.session.plan import Plan, check_cost, plan_encoding
from ddim_ode.session.request import Request
from ddim_ode.session.session import Session

TEMPLATE = "template.latent.pt"


class Job(NamedTuple):
    """A picture to encode: where it is, the SHA-256 of its bytes, and the identity of its latent."""

    entry: Entry
    digest: bytes
    identity: str


def identity_of(digest: bytes, key: str) -> str:
    """The identity of the latent of a picture, by the SHA-256 of its bytes and the ``key`` of the settings."""
    return hashlib.sha256(digest + bytes.fromhex(key)).hexdigest()


def key_of(session: Session, plan: Plan) -> str:
    """SHA-256 over all that decides a latent beside the picture: the model, what it is asked for, solver and grid."""
    model, grid = session.model, plan.grid
    settings = {
        "fingerprint": model.fingerprint,
        "beside": dict(model.fingerprints),
        "family": model.process.family,
        "shape": model.space.shape,
        "condition": asdict(plan.condition),
        "asked": model.asked and dict(model.asked),
        "solver": dict(plan.solver.settings),
        "clean_end": grid.clean_end,
        "sigmas": grid.sigmas,
        "timesteps": grid.timesteps,
        "dtype": next((str(parameter.dtype) for parameter in model.network.parameters()), None),
        "tf32": session.tf32,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def open_for(opener: Callable[[], Session], request: Request) -> tuple[Session, Request]:
    """The session that does the ``request``, and what is left to ask of it: guidance of a pipeline is its model's."""
    session = opener()
    if session.model.asked is None or request.guidance is None:
        return session, request
    return session.asked_for(guidance=request.guidance), replace(request, guidance=None)


class ShardEncoder:
    """What makes shards of the pictures in ``source``, in the folder ``output``, in a ``format`` of ``FORMATS``.

    Raises:
        ValueError, OSError: if there is no such model, wishes do not go together, or the source cannot be read.
    """

    def __init__(
        self, opener: Callable[[], Session], request: Request, source: Path, output: Path, format: str
    ) -> None:
        self._session, self._request = open_for(opener, request)
        self._output, self._format = output, format
        plan = plan_encoding(self._request, self._session.model)
        check_cost(plan.solver, plan.grid, self._session.max_nfe)
        self.key = key_of(self._session, plan)
        self._pictures: Pictures = open_pictures(source)

    def close(self) -> None:
        """Close the source."""
        self._pictures.close()

    def encode_shard(self, jobs: Sequence[Job]) -> Head:
        """Encode the pictures into one file, and say what is in it; if there is that file, nothing is done again.

        Raises:
            OSError: if the file cannot be written.
            WorkError: if it is there, and damaged.
        """
        name = shard_name([job.identity for job in jobs], self._format)
        if (self._output / name).exists():
            head = Shard(self._output / name).head
            if not any(failed.again for failed in head.failed):
                return head
        found = self._latents(jobs)
        failed, rows, latents = [], [], []
        for i, job in enumerate(jobs):
            latent = found[i] if i in found else self._alone(job)
            if isinstance(latent, Failed):
                failed.append(latent)
            else:
                latents.append(latent)
                rows.append(Row(job.identity, job.entry.name, latent.source.size, latent.source.fit, latent.nfe))
        head = Head(name, self.key, tuple(rows), tuple(failed))
        self._write(head, latents)
        return head

    def _latents(self, jobs: Sequence[Job]) -> dict[int, Latent]:
        """The latents of those that have one, by their numbers."""
        numbers = list[int]()

        def contents() -> Iterator[bytes]:
            for number, job in enumerate(jobs):
                with suppress(ImageFileError):
                    content = self._read(job)
                    numbers.append(number)
                    yield content

        done = self._session.encode_all(contents(), self._request, on_error=lambda error: None)
        return {numbers[encoded.index]: encoded.latent for encoded in done}

    def _alone(self, job: Job) -> Latent | Failed:
        """The latent of a picture that had none among others, or why it has none."""
        errors = list[Exception]()
        try:
            content = self._read(job)
        except ImageFileError as error:
            return Failed(job.identity, str(error), again=True)
        for encoded in self._session.encode_all([content], self._request, on_error=errors.append):
            return encoded.latent
        return Failed(job.identity, in_a_line(errors[0]))

    def _read(self, job: Job) -> bytes:
        """The content of a picture.

        Raises:
            ImageFileError: if it cannot be read, or is another one than it was when it was listed.
        """
        content = self._pictures.read(job.entry)
        if hashlib.sha256(content).digest() != job.digest:
            raise ImageFileError(f"'{job.entry.name}' was changed while others were encoded; encode it again")
        return content

    def _write(self, head: Head, latents: Sequence[Latent]) -> None:
        if not latents:
            write_shard(self._output, head, empty(self._session.model.space.shape), None)
            return
        self._write_template(latents[0])
        companions = [latent.companion for latent in latents if latent.companion is not None]
        x_T = torch.cat([latent.x_T for latent in latents])
        write_shard(self._output, head, x_T, torch.cat(companions) if companions else None)

    def _write_template(self, latent: Latent) -> None:
        """Write what latents of this data set have in common, unless another process has."""
        companion = None if latent.companion is None else torch.zeros_like(latent.companion)
        zeros = torch.zeros_like(latent.x_T)
        template = replace(latent, x_T=zeros, companion=companion, source=Source("a data set", (1, 1)), nfe=0)
        with suppress(FileExistsError):
            write_file(self._output / TEMPLATE, template.to_bytes())
