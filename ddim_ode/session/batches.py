"""Inputs of any number are taken one after another and in batches; no more of them are in memory than two batches.

While one goes through the network, the next is read by threads, so that no device waits for files to be decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import groupby, islice
from typing import Protocol, TypeVar

from ddim_ode.driven import PipelineError
from ddim_ode.ode import EvaluationLimitError
from ddim_ode.solvers import SolverError

# What is told of an input that fails, while the others go on.
OnError = Callable[[Exception], object]

T = TypeVar("T")
Item = TypeVar("Item")


class MemberError(ValueError):
    """An input that was read, but that the solver or the network can do nothing with; the message names it."""


def each(
    inputs: Iterable[Item],
    make: Callable[[Item], T],
    on_error: OnError | None,
    *,
    ahead: int = 0,
    anywhere: Callable[[Item], bool] = lambda item: True,
) -> Iterator[tuple[int, T]]:
    """What ``make`` makes of each of the ``inputs``, with its number; those that fail are left out and reported.

    ``ahead``     so many more are made by threads while the caller is at work, in whose own the inputs are taken.
    ``anywhere``  whether threads may make it of an input; else that is done as it is taken.
    """
    made_ahead = _ahead(inputs, make, ahead, anywhere) if ahead else (partial(make, item) for item in inputs)
    with closing(made_ahead):
        for index, finish in enumerate(made_ahead):
            try:
                made = finish()
            except (ValueError, OSError) as error:
                if on_error is None:
                    raise
                on_error(error)
            else:
                yield index, made


# Decoding a picture leaves Python to others most of the time.
_THREADS = 4


def _ahead(
    inputs: Iterable[Item], make: Callable[[Item], T], count: int, anywhere: Callable[[Item], bool]
) -> Generator[Callable[[], T], None, None]:
    """What waits for each thing made, in order; ``count`` more are under way."""
    waiting, failure = deque[Future[T]](), None
    pool = ThreadPoolExecutor(_THREADS)
    try:
        try:
            for item in inputs:
                waiting.append(pool.submit(make, item) if anywhere(item) else _done(make, item))
                if len(waiting) > count:
                    yield waiting.popleft().result
        except Exception as error:  # of the inputs, after those that came before it
            failure = error
        while waiting:
            yield waiting.popleft().result
        if failure:
            raise failure
    finally:
        # Nobody is waited for: a generator that was left is ended by the garbage collector, in any thread, which may
        # hold the lock that those others need to end.
        pool.shutdown(wait=False, cancel_futures=True)


def _done(make: Callable[[Item], T], item: Item) -> Future[T]:
    """What ``make`` makes of ``item``, or its error, now."""
    future = Future[T]()
    try:
        future.set_result(make(item))
    except Exception as error:
        future.set_exception(error)
    return future


def batched(items: Iterable[T], size: int, alike: Callable[[T], object] = lambda item: None) -> Iterator[Sequence[T]]:
    """Runs of neighbours for which ``alike`` says the same, ``size`` at most."""
    for _, run in groupby(items, alike):
        while batch := list(islice(run, size)):
            yield batch


class Named(Protocol):
    """Something with a name for messages."""

    @property
    def name(self) -> str: ...


Member = TypeVar("Member", bound=Named)


def together_or_alone(
    batch: Sequence[Member], work: Callable[[Sequence[Member]], T], on_error: OnError | None
) -> Iterator[T]:
    """What ``work`` makes of the ``batch``; if that fails, what it makes of each member by itself.

    It fails where solver or pipeline do, or where more evaluations are taken than are allowed.

    So one member that cannot be done loses no other. It is reported by its ``name``, as a MemberError; without
    ``on_error`` the error is raised as it is.
    """
    try:
        done = work(batch)
    except (SolverError, PipelineError, EvaluationLimitError) as error:
        if on_error is None:
            raise
        if len(batch) > 1:
            for item in batch:
                yield from together_or_alone([item], work, on_error)
        else:
            on_error(MemberError(f"'{batch[0].name}': {error}"))
    else:
        yield done
