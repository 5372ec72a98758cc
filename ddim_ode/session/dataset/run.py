"""A run: the pictures of a source are listed, cut into shards, given to a crew, and written down.

    encode_dataset("pictures", "latents", partial(Session, "default"), Request(steps=10), workers=2)
    for latent in load_dataset("latents"): ...

In memory are the names of the shards, and those of the pictures in the shards at work; all else is in a ``Ledger``.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ddim_ode.files import REMNANTS
from ddim_ode.images import ImageFileError
from ddim_ode.latents import LatentError
from ddim_ode.session.dataset.check import Checked, check_dataset
from ddim_ode.session.dataset.crew import Crew, Lost
from ddim_ode.session.dataset.encoder import Job, identity_of, open_for
from ddim_ode.session.dataset.engines import DEFAULT_ENGINE, ENGINES
from ddim_ode.session.dataset.home import pick_format, read_home, read_template, wishes_of, write_home
from ddim_ode.session.dataset.ledger import Ledger
from ddim_ode.session.dataset.local import Alone
from ddim_ode.session.dataset.manifest import MANIFEST, Line, Manifest
from ddim_ode.session.dataset.serving import Task
from ddim_ode.session.dataset.shards import Head, Shard, list_shards
from ddim_ode.session.dataset.sources import Pictures, open_pictures
from ddim_ode.session.request import Request
from ddim_ode.session.session import Session
from ddim_ode.training.data import DataError
from ddim_ode.work import WorkError, claimed

SHARD_SIZE = 256
# A place is one number, of the shard and the row in it.
_ROWS = 1 << 20


@dataclass
class Summary:
    """What a run did: how many ``pictures`` there are, and what became of them.

    ``encoded``  by this run; ``kept`` those that were done before.
    ``again``    pictures with the same bytes as another, whose latent is also theirs.
    ``failed``   pictures without a latent; ``reason`` says why, of the first.
    ``checked``  what came back of some latents, if that was asked for.
    """

    folder: Path
    pictures: int = 0
    encoded: int = 0
    kept: int = 0
    again: int = 0
    failed: int = 0
    reason: str | None = None
    seconds: float = 0.0
    checked: Checked | None = None

    def report(self) -> str:
        """That in a line."""
        rate = f", {self.encoded / self.seconds:.3g} a second" if self.encoded and self.seconds else ""
        return (
            f"{self.pictures} pictures -> {self.folder} ({self.encoded} encoded, {self.kept} were there, "
            f"{self.again} the same as others, {self.failed} failed; {self.seconds:.1f} s{rate})"
            f"{f'; {self.checked.report()}' if self.checked else ''}"
        )

    def failure(self) -> str | None:
        """A line about the pictures without a latent, and about latents that could not be checked, if there are any."""
        parts = list[str]()
        if self.failed:
            parts.append(
                f"{self.failed} of {self.pictures} pictures have no latent, and '{self.folder / MANIFEST}' says why; "
                f"the first: {self.reason}"
            )
        if self.checked and self.checked.failed:
            parts.append(
                f"{len(self.checked.failed)} latents could not be checked; the first: {self.checked.failed[0]}"
            )
        return "; ".join(parts) or None


def encode_dataset(
    pictures: str | Path,
    output: str | Path,
    opener: Callable[[], Session] = Session,
    request: Request | None = None,
    *,
    shard_size: int = SHARD_SIZE,
    engine: str = DEFAULT_ENGINE,
    workers: int = 1,
    format: str | None = None,
    check: int = 0,
) -> Summary:
    """Encode all ``pictures``, in a folder, a zip or tar file, or named by a text file, into the data set ``output``.

    What is there already is not done again. On a terminal there is a progress bar.

    ``opener``      makes the session, in each process once: ``partial(Session, model, device=..., ...)``.
    ``shard_size``  as many pictures are one file, and are done again together if their process dies.
    ``engine``      where the processes run: one of ``ENGINES``. With 'torchrun' each rank calls this alike, and all
                    but rank 0 only serve it: what they return says 0 pictures.
    ``workers``     number of processes, each with a model, on GPUs in turn; 0 is this process itself.
    ``format``      of the shards, a key of ``formats.FORMATS``; that of those that are there, or 'safetensors'.
    ``check``       so many latents at most are decoded in the end, in this process, and compared with their pictures.

    Raises:
        ValueError: if there are no pictures or no such model or engine, wishes do not go together, or the data set is
            damaged, at work elsewhere, or of other settings or another format.
        OSError: if it cannot be written.
        RuntimeError: if processes die before they have a model.
    """
    if not 1 <= shard_size <= _ROWS:
        raise ValueError(f"shard_size must be from 1 to {_ROWS}, but it is {shard_size}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, but it is {workers}")
    if check < 0:
        raise ValueError(f"check must be at least 0, but it is {check}")
    if engine not in ENGINES:
        raise ValueError(f"unknown engine '{engine}'; choose one of: {', '.join(sorted(ENGINES))}")
    source, folder, begin = Path(pictures), Path(output), time.perf_counter()
    request = request or Request()
    kind, crews = pick_format(folder, read_home(folder), format), ENGINES[engine]
    task = Task(opener, request, source.resolve(), folder.resolve(), kind)
    if crews.serve is not None and crews.serve(task):
        return Summary(folder)
    with closing(open_pictures(source)) as files:
        if next(files.entries(), None) is None:
            raise DataError(f"there are no pictures in '{source}'; it should hold files such as .jpg or .png")
        with _own(folder):
            with closing(crews.crew(task, workers)) as crew:
                summary = Run(folder, files, crew, wishes_of(opener, request), shard_size, kind).go()
            summary.seconds = time.perf_counter() - begin
            if check:
                summary.checked = check_dataset(folder, files, open_for(opener, request)[0], check)
    return summary


@contextmanager
def _own(folder: Path) -> Iterator[None]:
    """Keep others out of ``folder``, and leave neither what killed processes began, nor an empty new one."""
    new = not folder.exists()
    try:
        with claimed(folder):
            for path in folder.glob(REMNANTS):
                path.unlink(missing_ok=True)
            yield
    finally:
        if new:
            with suppress(OSError):  # since there is something in it
                folder.rmdir()


@dataclass(eq=False)
class Run:
    """A run over ``files`` with a ``crew``, in shards of ``size``; ``wishes`` are those of the key, as ``home`` says.

    ``waiting`` are names by identities not done yet; ``done``, places by identities, or reasons why there is none.
    """

    folder: Path
    files: Pictures
    crew: Crew | Alone
    wishes: str | None
    size: int
    format: str
    shards: list[str] = field(default_factory=list)
    waiting: dict[str, list[str]] = field(default_factory=dict)
    key: str = ""
    before: int = 0

    def go(self) -> Summary:
        """Do all that is not done."""
        self.summary = Summary(self.folder)
        known = self._begin()
        with ExitStack() as stack:
            self.done = stack.enter_context(closing(Ledger()))
            for path in list_shards(self.folder):
                head = Shard(path).head
                self._know(replace(head, failed=tuple(failed for failed in head.failed if not failed.again)))
            self.before = len(self.shards)
            self.manifest = stack.enter_context(closing(Manifest(self.folder)))
            self.bar = stack.enter_context(_bar(self.files))
            todo = self._todo()
            first = next(todo, None)
            if first is not None:
                if not known:
                    self._check(self.crew.key())
                for result in self.crew.run(chain([first], todo)):
                    self._take(result)
            self.manifest.finish()
        return self.summary

    def _begin(self) -> bool:
        """Find the key of the settings; whether it is known to be that of the processes."""
        home = read_home(self.folder)
        if home and self.wishes is not None and home.get("wishes") == self.wishes:
            self.key = home["key"]
            return False
        found = self.crew.key()
        self.key = home["key"] if home else found
        self._check(found)
        if not home:
            write_home(self.folder, self.key, self.wishes, self.format)
        return True

    def _check(self, found: str) -> None:
        """Raise WorkError unless the data set is of the settings that are asked for."""
        if found == self.key:
            return
        made = ""
        with suppress(LatentError):
            template = read_template(self.folder)
            steps = f"{template.solver['name']}, {template.grid.steps} steps on {template.grid.name}"
            made = f" (model '{template.model}', {steps}, {template.condition})"
        raise WorkError(f"'{self.folder}' holds latents of other settings{made}; name another folder, or take those")

    def _todo(self) -> Iterator[Sequence[Job]]:
        """The pictures that are not done, in shards."""
        jobs: list[Job] = []
        for entry in self.files.entries():
            self.summary.pictures += 1
            try:
                digest = hashlib.sha256(self.files.read(entry)).digest()
            except ImageFileError as error:
                self._say(entry.name, None, str(error))
                continue
            identity = identity_of(digest, self.key)
            place = self.done.get(bytes.fromhex(identity))
            if place is not None:
                self._say(entry.name, identity, place)
                self._count(place)
            elif identity in self.waiting:
                self.waiting[identity].append(entry.name)
            else:
                self.waiting[identity] = [entry.name]
                jobs.append(Job(entry, digest, identity))
            if len(jobs) == self.size:
                yield jobs
                jobs = []
        if jobs:
            yield jobs

    def _count(self, place: int | str) -> None:
        """Count a picture that is found done: before this run, or by it, for one with the same bytes."""
        if isinstance(place, int):
            before = place < self.before * _ROWS
            self.summary.kept += before
            self.summary.again += not before

    def _take(self, result: Head | Lost) -> None:
        """Write down what became of a shard."""
        if isinstance(result, Lost):
            found: dict[str, int | str] = {job.identity: result.reason for job in result.jobs}
            self._remember(found)
        else:
            found = self._know(result)
        for identity, place in found.items():
            names = self.waiting.pop(identity, [])
            for name in names:
                self._say(name, identity, place)
            if names and not isinstance(place, str):
                self.summary.encoded += 1
                self.summary.again += len(names) - 1
        self.manifest.flush()

    def _know(self, head: Head) -> dict[str, int | str]:
        """Remember what is in a shard, and say it: places by identities, or reasons."""
        if head.key != self.key:
            raise WorkError(f"'{self.folder / head.name}' is of other settings than its data set; take it away")
        first = len(self.shards) * _ROWS
        self.shards.append(head.name)
        found: dict[str, int | str] = {row.identity: first + i for i, row in enumerate(head.rows)}
        found |= {failed.identity: failed.reason for failed in head.failed}
        self._remember(found)
        return found

    def _remember(self, found: Mapping[str, int | str]) -> None:
        self.done.put((bytes.fromhex(identity), place) for identity, place in found.items())

    def _say(self, name: str, identity: str | None, place: int | str) -> None:
        """Write a line for a picture that is done, or that failed."""
        if isinstance(place, str):
            reason = place.replace("'picture'", f"'{name}'", 1)
            self.summary.failed += 1
            self.summary.reason = self.summary.reason or reason
            self.manifest.list(Line(name, identity, reason=reason))
        else:
            shard, row = divmod(place, _ROWS)
            self.manifest.list(Line(name, identity, self.shards[shard], row))
        self.bar.update()


def _bar(files: Pictures) -> Any:
    """A progress bar on a terminal, with how many pictures there are."""
    total = None
    if sys.stderr.isatty():
        first = next(files.entries(), None)
        # Those that come with their content take as long to count as to read.
        if first is not None and first.content is None:
            total = sum(1 for _ in files.entries())
    return tqdm(total=total, desc="pictures", unit=" pictures", leave=False, disable=None)
