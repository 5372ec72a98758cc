"""A crew of processes that encode shards: one that dies is replaced, and its shard is done again, but not for ever."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ddim_ode.session.dataset.encoder import Job, ShardEncoder
from ddim_ode.session.dataset.shards import Head
from ddim_ode.session.request import PlanError, Request

# So often a shard is begun, and so often a process is started that says nothing.
TRIES = 3


class Lost(NamedTuple):
    """A shard that no process could make, and why."""

    jobs: Sequence[Job]
    reason: str


class _Ready(NamedTuple):
    key: str


class _Refused(NamedTuple):
    """What no other process will do better: wrong wishes, no such model, no room on the disk."""

    error: Exception


class _Failed(NamedTuple):
    reason: str


@dataclass(frozen=True)
class Task:
    """What every process of a crew is told; all of it can be sent to one."""

    opener: Callable[[], Any]
    request: Request
    source: Path
    output: Path
    format: str

    def encoder(self) -> ShardEncoder:
        """What does it."""
        return ShardEncoder(self.opener, self.request, self.source, self.output, self.format)


def _work(pipe: Connection, task: Task, number: int) -> None:
    """The life of a process: it makes the shards that come through ``pipe``, until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the driver answers
    if (devices := torch.cuda.device_count()) > 1:
        torch.cuda.set_device(number % devices)
    with suppress(EOFError, BrokenPipeError), warnings.catch_warnings():  # of a driver that has gone
        warnings.simplefilter("ignore")
        _serve(pipe, task)


def _serve(pipe: Connection, task: Task) -> None:
    try:
        encoder = task.encoder()
    except Exception as error:
        pipe.send(_Refused(_plain(error)))
        return
    pipe.send(_Ready(encoder.key))
    while True:
        jobs = pipe.recv()
        try:
            pipe.send(encoder.encode_shard(jobs))
        except OSError as error:
            pipe.send(_Refused(_plain(error)))
        except Exception as error:  # whatever a network may run into: no memory, a fault of a device
            pipe.send(_Failed(" ".join(str(error).split()) or type(error).__name__))


def _plain(error: Exception) -> Exception:
    """``error`` as one that can be sent to any process."""
    kinds = (PlanError, ValueError, OSError)
    return next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)(str(error))


@dataclass(eq=False)
class _Member:
    process: Any
    pipe: Connection
    number: int
    ready: bool = False
    jobs: Sequence[Job] | None = None


@dataclass(eq=False)
class Crew:
    """Up to ``size`` processes for one ``task``, which are started when there is work for them."""

    task: Task
    size: int
    _members: list[_Member] = field(default_factory=list)
    _again: deque[Sequence[Job]] = field(default_factory=deque)
    _deaths: dict[str, int] = field(default_factory=dict)
    _silent: int = 0
    _key: str | None = None

    def key(self) -> str:
        """The key of the settings, as the first process says it.

        Raises:
            ValueError, OSError: as ``ShardEncoder`` does.
            RuntimeError: if processes die before they say anything.
        """
        while self._key is None:
            if not self._members:
                self._start()
            self._hear()
        return self._key

    def run(self, shards: Iterator[Sequence[Job]]) -> Iterator[Head | Lost]:
        """What becomes of each of the ``shards``, which are taken as there are processes for them.

        Errors are those of ``key``.
        """
        while True:
            self._give_out(shards)
            if all(member.jobs is None for member in self._members):
                return
            yield from self._hear()

    def _give_out(self, shards: Iterator[Sequence[Job]]) -> None:
        """Find work for those who have none, and someone new for work, as long as there is any."""
        while True:
            idle = next((member for member in self._members if member.jobs is None), None)
            if idle is None and len(self._members) == self.size:
                return
            jobs = self._again.popleft() if self._again else next(shards, None)
            if jobs is None:
                return
            member = idle or self._start()
            member.jobs = jobs
            if member.ready:
                self._send(member)

    def _send(self, member: _Member) -> None:
        with suppress(OSError):  # it has died, as will be heard
            member.pipe.send(member.jobs)

    def _start(self) -> _Member:
        context = multiprocessing.get_context("spawn")
        taken = {member.number for member in self._members}
        number = next(number for number in range(self.size) if number not in taken)
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.task, number), daemon=True)
        process.start()
        theirs.close()
        self._members.append(_Member(process, ours, number))
        return self._members[-1]

    def _hear(self) -> Iterator[Head | Lost]:
        """What those say that have something to say, once there are any."""
        by_pipe = {member.pipe: member for member in self._members}
        found = list[Head | Lost]()
        for pipe in wait([*by_pipe]):
            member = by_pipe[pipe]  # type: ignore[index]
            try:
                said = member.pipe.recv()
            except (EOFError, OSError):
                found += self._died(member)
            else:
                found += self._heard(member, said)
        return iter(found)

    def _heard(self, member: _Member, said: Any) -> list[Head | Lost]:
        if isinstance(said, _Refused):
            raise said.error
        if isinstance(said, _Ready):
            self._key, self._silent, member.ready = said.key, 0, True
            if member.jobs is not None:
                self._send(member)
            return []
        jobs, member.jobs = member.jobs or (), None
        return self._failed(jobs, said.reason) if isinstance(said, _Failed) else [said]

    def _died(self, member: _Member) -> list[Head | Lost]:
        member.process.join()
        member.pipe.close()
        self._members.remove(member)
        code = member.process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
        if member.ready:
            return self._failed(member.jobs, f"its process died with {how}") if member.jobs else []
        self._silent += 1
        if self._silent == TRIES:
            raise RuntimeError(f"{TRIES} processes one after another died with {how} before they had a model to use")
        if member.jobs:
            self._again.append(member.jobs)
        return []

    def _failed(self, jobs: Sequence[Job], reason: str) -> list[Head | Lost]:
        """Do a shard again, or give it up."""
        first = jobs[0].identity
        self._deaths[first] = self._deaths.get(first, 0) + 1
        if self._deaths[first] < TRIES:
            self._again.append(jobs)
            return []
        return [Lost(jobs, f"{reason}, {TRIES} times")]

    def close(self) -> None:
        """End all processes."""
        for member in self._members:
            member.process.terminate()
            member.process.join()
            member.process.close()
            member.pipe.close()
        self._members.clear()


@dataclass(eq=False)
class Alone:
    """The same work in this process, where a debugger can follow it; if the process dies, the run ends."""

    task: Task
    _encoder: ShardEncoder | None = None

    def key(self) -> str:
        """The key of the settings. Errors are those of ``ShardEncoder``."""
        return self._ready().key

    def run(self, shards: Iterator[Sequence[Job]]) -> Iterator[Head | Lost]:
        """What becomes of each of the ``shards``."""
        return (self._ready().encode_shard(jobs) for jobs in shards)

    def _ready(self) -> ShardEncoder:
        self._encoder = self._encoder or self.task.encoder()
        return self._encoder

    def close(self) -> None:
        """Close the source, and let go of the model."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None
