"""What a process does that makes shards for a driver, whichever engine started it, and what it says."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ddim_ode.messages import in_a_line
from ddim_ode.session.dataset.encoder import Job, ShardEncoder
from ddim_ode.session.dataset.shards import Head
from ddim_ode.session.request import PlanError, Request


class Ready(NamedTuple):
    """It has a model; the ``key`` is that of the settings."""

    key: str


class Refused(NamedTuple):
    """What no other process will do better: wrong wishes, no such model, no room on the disk."""

    error: Exception


class Failed(NamedTuple):
    """It could not make the shard that it was given."""

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


def work(pipe: Connection, task: Task, number: int, beside: int = 1) -> None:
    """The life of a process, on the GPU of its ``number``: it makes shards that ``pipe`` brings, until that closes.

    ``beside``  so many of them share the cores of this machine: threads of several that wait for each other are many
                times slower than one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the driver answers
    torch.set_num_threads(max(1, torch.get_num_threads() // beside))
    if (devices := torch.cuda.device_count()) > 1:
        torch.cuda.set_device(number % devices)
    with suppress(EOFError, ConnectionError), warnings.catch_warnings():  # of a driver that has gone
        warnings.simplefilter("ignore")
        encoder = begin(task)
        if isinstance(encoder, Refused):
            pipe.send(encoder)
            return
        pipe.send(Ready(encoder.key))
        while True:
            pipe.send(answer(encoder, pipe.recv()))


def begin(task: Task) -> ShardEncoder | Refused:
    """What answers for the ``task``, with its model."""
    try:
        return task.encoder()
    except Exception as error:
        return Refused(_plain(error))


def answer(encoder: ShardEncoder, jobs: Sequence[Job]) -> Head | Failed | Refused:
    """What becomes of a shard.

    Raises:
        SystemExit: if the device has failed, which does no more work for this process, but may for another.
    """
    try:
        return encoder.encode_shard(jobs)
    except torch.AcceleratorError as error:
        raise SystemExit(f"Error: a process ends, since its device failed: {in_a_line(error)}") from error
    except OSError as error:
        return Refused(_plain(error))
    except Exception as error:  # whatever a network may run into: no memory, a fault of a device
        return Failed(in_a_line(error))


def _plain(error: Exception) -> Exception:
    """``error`` as one that can be sent to any process."""
    kinds = (PlanError, ValueError, OSError)
    return next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)(str(error))
