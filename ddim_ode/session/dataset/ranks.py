"""The engine 'torchrun': its ranks, on one machine or on several that see the same files under one name.

Rank 0 drives, with a process of its own beside it for its GPU. The other ranks connect to it and serve, each at its own
speed; where to, and the secret that both sides must know, they are told through torchrun's own store.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, Pipe, answer_challenge, deliver_challenge
from queue import SimpleQueue
from typing import Any

from torch.distributed import is_torchelastic_launched
from torch.distributed.rendezvous import rendezvous

from ddim_ode.session.dataset.crew import Crew, Died, Said
from ddim_ode.session.dataset.encoder import Job
from ddim_ode.session.dataset.local import Processes, give, spoken
from ddim_ode.session.dataset.serving import Task, work
from ddim_ode.session.request import PlanError

_LOOPBACK = "127.0.0.1"
# In seconds, before others are let in again.
_PAUSE = 0.1


def rank_crew(task: Task, workers: int) -> Crew:
    """All ranks, for rank 0.

    Raises:
        PlanError: if torchrun did not start this process, or other ``workers`` are wanted than 1 in each rank.
    """
    _check(started=is_torchelastic_launched())
    if workers != 1:
        raise PlanError(f"engine 'torchrun' has one worker in each rank, but workers are {workers}; leave them out")
    return Crew(_Ranks(task))


def serve_rank(task: Task) -> bool:
    """Serve until rank 0 is done, and say so; but not in rank 0 itself.

    Raises:
        PlanError: if torchrun did not start this process.
    """
    _check(started=is_torchelastic_launched())
    if not _number("RANK"):
        return False
    port, secret = _store().get(_entry()).decode().split()
    host = _LOOPBACK if _one_machine() else os.environ["MASTER_ADDR"]
    with suppress(EOFError, ConnectionError):  # it is done already
        work(Client((host, int(port)), authkey=bytes.fromhex(secret)), task, _number("LOCAL_RANK"))
    return True


def _check(*, started: bool) -> None:
    if not started:
        raise PlanError(
            "engine 'torchrun' is for processes that torchrun starts, but it did not start this one; begin the command "
            "with: torchrun --nproc_per_node N -m ddim_ode dataset"
        )


def _number(name: str) -> int:
    return int(os.environ[name])


def _one_machine() -> bool:
    return _number("LOCAL_WORLD_SIZE") == _number("WORLD_SIZE")


def _store() -> Any:
    """What all ranks share."""
    store, _, _ = next(rendezvous("env://"))
    return store


def _entry() -> str:
    """Where in the store rank 0 says how it is reached: another place each time that torchrun starts them all again."""
    return f"ddim-ode/{os.environ['TORCHELASTIC_RESTART_COUNT']}"


@dataclass(eq=False)
class _Ranks:
    """An ``Engine``; ranks that connect are taken in once there is work."""

    task: Task
    _joined: set[Connection] = field(default_factory=set)
    _thread: threading.Thread | None = None
    _closed: bool = False

    def __post_init__(self) -> None:
        self._own = Processes(self.task, [_number("LOCAL_RANK")])
        secret = secrets.token_bytes(32)
        host = _LOOPBACK if _one_machine() else ""
        self._secret, self._listener = secret, Listener((host, 0), backlog=_number("WORLD_SIZE"))
        self._port = self._listener.address[1]
        self._arrived = SimpleQueue[Connection]()
        self._bell, self._ringer = Pipe(duplex=False)
        self._store = _store()
        self._store.set(_entry(), f"{self._port} {secret.hex()}")

    def may_start(self) -> bool:
        """Whether the own process can be started; the others come by themselves."""
        return self._own.may_start()

    def start(self) -> Connection:
        """Start the own process, and let others in."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._accept, daemon=True)
            self._thread.start()
        return self._own.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                pipe = self._listener.accept()
            except OSError:  # one left at once, or too many files are open: others may come yet
                time.sleep(_PAUSE)
                continue
            # One that says nothing holds up none of the others.
            threading.Thread(target=self._greet, args=(pipe,), daemon=True).start()

    def _greet(self, pipe: Connection) -> None:
        """Let in who knows the secret, and show that this side does, too: what ``Client`` expects of a listener."""
        try:
            deliver_challenge(pipe, self._secret)
            answer_challenge(pipe, self._secret)
        except (AuthenticationError, EOFError, OSError):  # of a stranger, or of one that is gone
            pipe.close()
            return
        self._arrived.put(pipe)
        with suppress(OSError):  # of a run that is over
            self._ringer.send(None)

    def send(self, worker: Connection, jobs: Sequence[Job]) -> None:
        """Give it a shard."""
        give(worker, jobs)

    def hear(self) -> list[tuple[Connection, Said]]:
        """What they say, once any does."""
        found = list[tuple[Connection, Said]]()
        own = self._own.pipes()
        for pipe, said in spoken([*own, *self._joined, self._bell]):
            if pipe is self._bell:
                self._joined.add(self._arrived.get())
            elif said is not None:
                found.append((pipe, said))
            elif pipe in own:
                found.append((pipe, self._own.died(pipe)))
            else:
                self._joined.remove(pipe)
                pipe.close()
                found.append((pipe, Died("with its rank")))
        return found

    def close(self) -> None:
        """End the own process, and let the others go."""
        self._own.close()
        self._closed = True
        if self._thread is not None:
            with suppress(OSError):  # it waits for somebody, and is told so by one who leaves at once
                socket.create_connection((_LOOPBACK, self._port)).close()
            self._thread.join()
        self._listener.close()
        while not self._arrived.empty():
            self._joined.add(self._arrived.get())
        for pipe in (*self._joined, self._bell, self._ringer):
            pipe.close()
        self._joined.clear()
