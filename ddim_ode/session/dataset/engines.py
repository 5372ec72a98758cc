"""The registry of engines: where the processes run that make the shards of a data set. Its names need no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ddim_ode.session.dataset.crew import Crew
    from ddim_ode.session.dataset.local import Alone
    from ddim_ode.session.dataset.serving import Task


class EngineKind(NamedTuple):
    """An engine, in a few words.

    ``crew``   what does a task with a number of workers.
    ``serve``  serve another process that drives, if this is to, and say whether it was so; None where none is.
    """

    text: str
    crew: Callable[[Task, int], Crew | Alone]
    serve: Callable[[Task], bool] | None = None


def _local(task: Task, workers: int) -> Crew | Alone:
    from ddim_ode.session.dataset.local import local_crew

    return local_crew(task, workers)


def _ray(task: Task, workers: int) -> Crew:
    from ddim_ode.session.dataset.ray_actors import ray_crew

    return ray_crew(task, workers)


def _ranks(task: Task, workers: int) -> Crew:
    from ddim_ode.session.dataset.ranks import rank_crew

    return rank_crew(task, workers)


def _serve_rank(task: Task) -> bool:
    from ddim_ode.session.dataset.ranks import serve_rank

    return serve_rank(task)


DEFAULT_ENGINE = "local"
ENGINES: dict[str, EngineKind] = {
    "local": EngineKind("processes of this machine", _local),
    "ray": EngineKind("actors on a cluster of Ray", _ray),
    "torchrun": EngineKind("the ranks that torchrun started", _ranks, _serve_rank),
}
