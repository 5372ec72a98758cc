"""What a driver knows of its workers and their shards, whichever engine runs them.

A worker that dies is replaced, and its shard is done again by another, but not for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from ddim_ode.session.dataset.encoder import Job
from ddim_ode.session.dataset.serving import Failed, Ready, Refused
from ddim_ode.session.dataset.shards import Head

# So often a shard is begun, and so often a worker is started that says nothing.
TRIES = 3


class Lost(NamedTuple):
    """A shard that no worker could make, and why."""

    jobs: Sequence[Job]
    reason: str


class Died(NamedTuple):
    """A worker is no more; ``how`` goes on after 'its process died'."""

    how: str


Said = Ready | Refused | Failed | Died | Head


class Engine(Protocol):
    """Where workers run: each says first that it is ``Ready``, then what became of each shard that it was sent."""

    def may_start(self) -> bool:
        """Whether another worker can be started."""

    def start(self) -> Hashable:
        """Start one, and say which."""

    def send(self, worker: Any, jobs: Sequence[Job]) -> None:
        """Give a shard to a worker. If it has died, that is heard."""

    def hear(self) -> Sequence[tuple[Hashable, Said]]:
        """What workers say, once any does."""

    def close(self) -> None:
        """End all workers."""


@dataclass(eq=False)
class Crew:
    """Workers of an ``engine``, which are started when there is work for them.

    Shards are given to workers that are ready. One that waits for a worker to begin may be done by another meanwhile.
    """

    engine: Engine
    _idle: list[Hashable] = field(default_factory=list)
    _busy: dict[Hashable, Sequence[Job]] = field(default_factory=dict)
    _waiting: deque[Sequence[Job]] = field(default_factory=deque)
    _failures: dict[str, int] = field(default_factory=dict)
    _starting: set[Hashable] = field(default_factory=set)
    _silent: int = 0
    _key: str | None = None

    def key(self) -> str:
        """The key of the settings, as the first worker says it.

        Raises:
            ValueError, OSError: as ``ShardEncoder`` does.
            RuntimeError: if workers die before they say anything.
        """
        while self._key is None:
            if not self._starting:
                self._starting.add(self.engine.start())
            self._hear()
        return self._key

    def run(self, shards: Iterator[Sequence[Job]]) -> Iterator[Head | Lost]:
        """What becomes of each of the ``shards``, which are taken as there are workers for them, and one more.

        Errors are those of ``key``.
        """
        while True:
            self._give_out(shards)
            if not self._busy and not self._waiting:
                return
            self._ahead(shards, 1)  # it is listed while they work, and nobody waits for it
            yield from self._hear()

    def _give_out(self, shards: Iterator[Sequence[Job]]) -> None:
        """Find work for those who have none, and start someone for work that nobody has."""
        while self._idle and self._ahead(shards, 1):
            worker, jobs = self._idle.pop(), self._waiting.popleft()
            self._busy[worker] = jobs
            self.engine.send(worker, jobs)
        while self._silent < TRIES and self.engine.may_start() and self._ahead(shards, len(self._starting) + 1):
            self._starting.add(self.engine.start())

    def _ahead(self, shards: Iterator[Sequence[Job]], count: int) -> bool:
        """Whether so many shards wait, with some of the ``shards`` among them if need be."""
        while len(self._waiting) < count:
            jobs = next(shards, None)
            if jobs is None:
                return False
            self._waiting.append(jobs)
        return True

    def _hear(self) -> list[Head | Lost]:
        return [found for worker, said in self.engine.hear() for found in self._heard(worker, said)]

    def _heard(self, worker: Hashable, said: Said) -> list[Head | Lost]:
        if isinstance(said, Refused):
            raise said.error
        if isinstance(said, Ready):
            if self._key not in (None, said.key):
                raise ValueError(
                    "a worker has another model, or settings of other meaning, than the first one; let all of them "
                    "see the same files, and run it again"
                )
            self._key, self._silent = said.key, 0
            self._starting.discard(worker)
            self._idle.append(worker)
            return []
        if isinstance(said, Died):
            return self._died(worker, said.how)
        jobs = self._busy.pop(worker)
        self._idle.append(worker)
        return self._failed(jobs, said.reason) if isinstance(said, Failed) else [said]

    def _died(self, worker: Hashable, how: str) -> list[Head | Lost]:
        if worker not in self._starting:
            self._silent = 0  # it had a model, and another may have one again
        if worker in self._busy:
            return self._failed(self._busy.pop(worker), f"its process died {how}")
        if worker in self._idle:
            self._idle.remove(worker)
            return []
        self._starting.discard(worker)
        self._silent += 1
        if self._silent >= TRIES and not self._busy and not self._idle:
            raise RuntimeError(f"{TRIES} processes died {how} before they had a model to use")
        return []

    def _failed(self, jobs: Sequence[Job], reason: str) -> list[Head | Lost]:
        """Do a shard again, or give it up."""
        first = jobs[0].identity
        self._failures[first] = self._failures.get(first, 0) + 1
        if self._failures[first] < TRIES:
            self._waiting.append(jobs)
            return []
        return [Lost(jobs, f"{reason}, {TRIES} times")]

    def close(self) -> None:
        """End all workers."""
        self.engine.close()
