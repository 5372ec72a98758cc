"""The engine 'ray': actors on the nodes of a cluster of Ray, which all see the pictures and the output under one name.

A GPU is for one actor, where the cluster has any; else a CPU is. An actor for which there is no room yet waits for it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ddim_ode.session.dataset.crew import Crew, Died, Said
from ddim_ode.session.dataset.encoder import Job, ShardEncoder
from ddim_ode.session.dataset.serving import Failed, Ready, Refused, Task, answer, begin
from ddim_ode.session.dataset.shards import Head
from ddim_ode.session.request import PlanError


def ray_crew(task: Task, workers: int) -> Crew:
    """As many actors as ``workers``, as far as the cluster has room: the one that runs here, that of RAY_ADDRESS, or a
    new one of this machine.

    Raises:
        PlanError: if Ray is not installed, or there are no ``workers``.
    """
    if not workers:
        raise PlanError("0 workers are this process itself, which is for engine 'local'; 'ray' takes 1 or more")
    if find_spec("ray") is None:
        raise PlanError("engine 'ray' needs the package ray; install it with: pip install 'ddim-ode[ray]'")
    return Crew(_Actors(task, workers))


class _Serving:
    """What an actor is."""

    def __init__(self, folder: Path, task: Task) -> None:
        with suppress(OSError):  # since it is another machine, on which names may be absolute
            os.chdir(folder)
        self._task = task

    def begin(self) -> Ready | Refused:
        """Load the model."""
        found = begin(self._task)
        if isinstance(found, Refused):
            return found
        self._encoder: ShardEncoder = found
        return Ready(found.key)

    def answer(self, jobs: Sequence[Job]) -> Head | Failed | Refused:
        """What becomes of a shard."""
        return answer(self._encoder, jobs)


@dataclass(eq=False)
class _Actors:
    """An ``Engine``; Ray is asked for nothing before the first actor is. ``_said`` is what each was last asked."""

    task: Task
    size: int
    _said: dict[Any, Any] = field(default_factory=dict)
    _actor: Any = None
    _connected: bool = False

    def may_start(self) -> bool:
        """Whether another actor can be started."""
        return len(self._said) < self.size

    def start(self) -> Any:
        """Start an actor."""
        if self._actor is None:
            self._connect()
        actor = self._actor.remote(Path.cwd(), self.task)
        self._said[actor] = actor.begin.remote()
        return actor

    def _connect(self) -> None:
        import ray

        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
            self._connected = True
        room = ray.remote(num_gpus=1) if ray.cluster_resources().get("GPU") else ray.remote(num_cpus=1)
        self._actor = room(_Serving)

    def send(self, worker: Any, jobs: Sequence[Job]) -> None:
        """Give it a shard."""
        self._said[worker] = worker.answer.remote(jobs)

    def hear(self) -> list[tuple[Any, Said]]:
        """What they say, once any does."""
        import ray

        asked = {answer: actor for actor, answer in self._said.items() if answer is not None}
        found, _ = ray.wait([*asked])
        return [(asked[answer], self._heard(asked[answer], answer)) for answer in found]

    def _heard(self, actor: Any, answer: Any) -> Said:
        import ray

        self._said[actor] = None
        try:
            said: Said = ray.get(answer)
        except ray.exceptions.RayError as error:
            self._said.pop(actor)
            ray.kill(actor)
            return Died(f"under Ray ({_last_line(error)})")
        return said

    def close(self) -> None:
        """End them all, and what was started for them."""
        if self._actor is None:
            return
        import ray

        for actor in self._said:
            ray.kill(actor)
        self._said.clear()
        if self._connected:
            ray.shutdown()


def _last_line(error: Exception) -> str:
    """The end of what ``error`` says, where its cause is, without the advice after it."""
    line = str(error).strip().splitlines()[-1]
    return line.split("Some common causes")[0].strip(" .")
