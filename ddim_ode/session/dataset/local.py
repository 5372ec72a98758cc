"""The engine 'local': processes on this machine, on GPUs in turn; or none but this one."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from ddim_ode.session.dataset.crew import Crew, Died, Lost, Said
from ddim_ode.session.dataset.encoder import Job, ShardEncoder
from ddim_ode.session.dataset.serving import Task, work
from ddim_ode.session.dataset.shards import Head

# In seconds: what compilers have started in a process ends well if the process does.
_PATIENCE = 3.0


def local_crew(task: Task, workers: int) -> Crew | Alone:
    """As many processes as ``workers``, or with 0 this one."""
    return Crew(Processes(task, range(workers))) if workers else Alone(task)


def spoken(pipes: Sequence[Connection]) -> Iterator[tuple[Connection, Any]]:
    """What comes through ``pipes``, once anything does; None through one whose other end is closed."""
    speaking = wait(pipes)
    for pipe in [pipe for pipe in pipes if pipe in speaking]:
        try:
            yield pipe, pipe.recv()
        except (EOFError, OSError):
            yield pipe, None


def give(pipe: Connection, jobs: Sequence[Job]) -> None:
    """Send a shard through ``pipe``; if the other end is closed, that will be heard."""
    with suppress(OSError):
        pipe.send(jobs)


@dataclass(eq=False)
class Processes:
    """An ``Engine``: a process for each of ``numbers``, which pick its GPU."""

    task: Task
    numbers: Sequence[int]
    _running: dict[Connection, tuple[Any, int]] = field(default_factory=dict)

    def pipes(self) -> list[Connection]:
        """To those that run."""
        return [*self._running]

    def may_start(self) -> bool:
        """Whether another process can be started."""
        return len(self._running) < len(self.numbers)

    def start(self) -> Connection:
        """Start a process."""
        context = multiprocessing.get_context("spawn")
        taken = {number for _, number in self._running.values()}
        number = next(number for number in self.numbers if number not in taken)
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self.task, number, len(self.numbers)), daemon=True)
        process.start()
        theirs.close()
        self._running[ours] = process, number
        return ours

    def send(self, worker: Connection, jobs: Sequence[Job]) -> None:
        """Give it a shard."""
        give(worker, jobs)

    def hear(self) -> list[tuple[Connection, Said]]:
        """What they say, once any does."""
        return [(pipe, self.died(pipe) if said is None else said) for pipe, said in spoken(self.pipes())]

    def died(self, pipe: Connection) -> Died:
        """Bury the process at the other end."""
        process, _ = self._running.pop(pipe)
        process.join()
        pipe.close()
        code = process.exitcode
        return Died(f"with signal {-code}" if code is not None and code < 0 else f"with exit status {code}")

    def close(self) -> None:
        """End them all: those that have nothing to do end by themselves, and others are not waited for much longer."""
        for pipe in self._running:
            pipe.close()
        patience = time.monotonic() + _PATIENCE
        for process, _ in self._running.values():
            process.join(max(0.0, patience - time.monotonic()))
            process.terminate()
            process.join()
            process.close()
        self._running.clear()


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
