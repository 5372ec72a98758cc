"""Any diffusers pipeline as a network: its own ``__call__`` is driven, so that what it makes of prompts is what it is.

The pipeline runs in a thread of its own, with a scheduler of its own class that does nothing: where its loop asks for
the next timestep, it is given what a solver asks for; what it has the network say, guided and all, goes to the solver.
So classifier-free guidance, added conditions, LoRA, ControlNet and masks are what the pipeline makes of them, without a
line of code for any. The text is encoded once for each walk.

What is lost: gradients, steps of their own for the members of a batch, and whatever depends on the number of a step.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn

from ddim_ode.embeddings import hash_of_told

# More than any walk takes by default; pipelines look at how many there are, and some make a list of as many.
_MANY = 20_000
# What a pipeline's thread is called.
THREAD = "pipeline of ddim-ode"
# The pipelines that are at work, each for one walk.
_BUSY: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()
_BUSY_LOCK = threading.Lock()


_WAIT = "wait for that one, or load the pipeline once more"


class PipelineError(RuntimeError):
    """A pipeline that cannot be driven as it is asked to; the message says why, and what to do."""


class _Line:
    """Between two threads, one of which waits whenever the other works."""

    def __init__(self, x: Tensor, t: Tensor) -> None:
        self.asked: tuple[Tensor, Tensor] | None = (x, t)
        self.questions: SimpleQueue[tuple[Tensor, Tensor] | None] = SimpleQueue()
        self.answers: SimpleQueue[Tensor | BaseException] = SimpleQueue()

    def hand_over(self, output: Tensor, sample: Tensor) -> Tensor:
        """In the thread of the pipeline: give the ``output``, and wait for the next x; without one ``sample`` it is.

        Raises:
            PipelineError: if the output is not that for what was asked.
        """
        asked = self.asked and self.asked[0]
        # What comes back is mostly the tensor itself, and then no device has to be waited for.
        if sample is not asked and (asked is None or not torch.equal(asked.to(sample), sample)):
            raise PipelineError(
                "the pipeline changes latents between its steps, as inpainting with an ordinary network does; it "
                "cannot be driven so"
            )
        self.answers.put(output)
        self.asked = self.questions.get()
        return sample if self.asked is None else self.asked[0]


class _Timesteps(torch.Tensor):
    """What the pipeline loops over: the timestep of each question, until there are no more."""

    line: _Line

    @staticmethod
    def of(line: _Line, t: Tensor) -> _Timesteps:
        timesteps: _Timesteps = t.detach().reshape(1).expand(_MANY).as_subclass(_Timesteps)
        timesteps.line = line
        return timesteps

    def __iter__(self) -> Iterator[Tensor]:
        last = None
        while self.line.asked is not None:
            if self.line.asked is last:
                raise PipelineError(
                    "the pipeline looks at its timesteps without a step for each; it cannot be driven so"
                )
            last = self.line.asked
            yield last[1]

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, slice) and index.stop is None:  # the first ones cut off, as for a strength below 1
            return self
        return self.as_subclass(torch.Tensor)[index]

    def to(self, *_: Any, **__: Any) -> _Timesteps:
        return self


def _idle(scheduler: Any, line: _Line, t: Tensor) -> Any:
    """A scheduler of the class and the configuration of ``scheduler`` that walks where the ``line`` leads."""
    kind = type(scheduler)

    class Idle(kind):  # type: ignore[misc, valid-type]
        order = 1
        init_noise_sigma = 1.0

        @wraps(kind.set_timesteps)  # pipelines look at its signature
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            kind.set_timesteps(self, *args, **kwargs)
            self.timesteps = _Timesteps.of(line, t)

        def scale_model_input(self, sample: Tensor, *_: Any) -> Tensor:
            return sample

        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, **options: Any) -> Any:
            reached = line.hand_over(model_output, sample)
            return (reached,) if options.get("return_dict") is False else _Step(reached)

    Idle.__name__, Idle.__qualname__, Idle.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Idle.from_config(scheduler.config)


class _Read(BaseException):
    """The ``scheduler`` of a pipeline, as it was told to walk; no error, and nobody's to catch."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.scheduler = scheduler


def _reader(scheduler: Any) -> Any:
    """A scheduler of the class and the configuration of ``scheduler`` that is read as soon as it knows its nodes."""
    kind = type(scheduler)

    class Reader(kind):  # type: ignore[misc, valid-type]
        armed = False  # some schedulers set timesteps as they are made

        @wraps(kind.set_timesteps)
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            kind.set_timesteps(self, *args, **kwargs)
            if self.armed:
                raise _Read(self)

    Reader.__name__, Reader.__qualname__, Reader.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    reader = Reader.from_config(scheduler.config)
    reader.armed = True
    return reader


class _Step:
    """What a scheduler's step returns."""

    def __init__(self, prev_sample: Tensor) -> None:
        self.prev_sample = prev_sample


class DrivenPipeline(nn.Module):
    """The network of a diffusers ``pipeline``, asked with what its ``__call__`` is given: a function of x and t.

    ``call``    what the pipeline is called with beside latents: for B images, ``call(B)``.
    ``pack``    what makes the pipeline's latents of x, ``(B, C, H, W)``; ``unpack`` undoes it.

    A walk begins with the first question and ends with ``close``, after which the pipeline is as it was. There is one
    walk of a pipeline at a time. After the first one ``embedding`` is the hash of what the network is told of the
    prompt.
    """

    def __init__(
        self,
        pipeline: Any,
        denoiser: nn.Module,
        call: Callable[[int], Mapping[str, Any]],
        pack: Callable[[Tensor], Tensor],
        unpack: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._pipeline = pipeline
        self._call = call
        self._pack, self._unpack = pack, unpack
        self._walk: _Walk | None = None
        self.embedding: str | None = None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)``, t ``(B,)``, all alike, in the pipeline's timesteps; returns ``(B, C, H, W)``.

        Raises:
            PipelineError: if the pipeline is at work elsewhere, or t is not the same for all.
            Exception: whatever the pipeline raises.
        """
        if bool((t != t[0]).any()):
            raise PipelineError(
                "a pipeline is asked for one timestep at a time, but members of the batch are at several; take a "
                "solver with steps for all, or a batch of one"
            )
        return self.all_at(x, t[0])

    def all_at(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)``, all at the pipeline's timestep t, ``()``; returns ``(B, C, H, W)``.

        No device is waited for, as ``forward`` has to. Errors are those of ``forward``.
        """
        if self._walk is not None and self._walk.owner != threading.get_ident():
            raise PipelineError(f"the pipeline is at work for another thread; {_WAIT}")
        packed = self._pack(x)
        if self._walk is not None and self._walk.count != len(x):  # of other pictures
            self.close()
        try:
            if self._walk is None:
                answer = self._begin(packed, t)
            else:
                self._walk.ask(packed, t)
                answer = self._walk.answer()
            return self._unpack(answer)
        except BaseException:
            self.close()
            raise

    def _begin(self, x: Tensor, t: Tensor) -> Tensor:
        """The first answer of a new walk, which shows what the network is told of the prompt."""

        def hear(_: nn.Module, __: tuple[Any, ...], told: dict[str, Any]) -> None:
            if self.embedding is None:
                self.embedding = hash_of_told(told, len(x))

        hook = self.denoiser.register_forward_pre_hook(hear, with_kwargs=True)
        try:
            self._walk = _Walk(self._pipeline, x, t, self._call(len(x)))
            self._walk.start()
            return self._walk.answer()
        finally:
            hook.remove()

    def scheduler_of(self, x: Tensor, steps: int) -> Any:
        """The pipeline's scheduler as the pipeline tells it to walk ``steps`` steps from latents like ``x``.

        Raises:
            PipelineError: if the pipeline is at work elsewhere.
            Exception: whatever the pipeline raises.
        """
        with _borrowed(self._pipeline, _reader):
            try:
                call = {**self._call(len(x)), "num_inference_steps": steps}
                self._pipeline(latents=self._pack(x), output_type="latent", **call)
            except _Read as read:
                return read.scheduler
        raise PipelineError("the pipeline did not tell its scheduler how to walk; make a grid of timesteps yourself")

    def close(self) -> None:
        """End the walk, if there is one; the pipeline is as it was before."""
        walk = self._walk
        if walk is not None and walk.owner == threading.get_ident():
            self._walk = None
            walk.end()


@contextmanager
def _borrowed(pipeline: Any, scheduler: Callable[[Any], Any]) -> Iterator[None]:
    """The ``pipeline`` for ourselves, silent, with what ``scheduler`` makes of its own; afterwards it is as it was.

    Raises:
        PipelineError: if it is at work elsewhere.
    """
    with _BUSY_LOCK:
        lock = _BUSY.setdefault(pipeline, threading.Lock())
    if not lock.acquire(blocking=False):
        raise PipelineError(f"the pipeline is at work for another walk; {_WAIT}")
    own, before = pipeline.scheduler, dict(vars(pipeline))
    try:
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = scheduler(own)
        yield
    finally:
        pipeline.scheduler = own
        _put_back(pipeline, before)
        lock.release()


# What a pipeline notes of a call is of these, as its guidance and the number of its steps; its hooks, say, are not.
_NOTES = (type(None), bool, int, float, str, dict, Tensor)


def _put_back(pipeline: Any, before: Mapping[str, Any]) -> None:
    """Have the ``pipeline`` note of its calls what it did ``before``, by the names of its attributes."""
    attributes = vars(pipeline)
    for name in [name for name, value in attributes.items() if name.startswith("_") and type(value) in _NOTES]:
        if name in before:
            attributes[name] = before[name]
        else:
            del attributes[name]


def _surroundings(device: torch.device) -> list[AbstractContextManager[Any]]:
    """What holds for the calling thread and should for another one: autocast, and the device and stream of a GPU."""
    kind, found = device.type, list[AbstractContextManager[Any]]()
    if torch.is_autocast_enabled(kind):
        found.append(torch.autocast(kind, torch.get_autocast_dtype(kind)))
    if kind == "cuda":
        found.append(torch.cuda.stream(torch.cuda.current_stream(device)))
    return found


class _Walk:
    """One call of a pipeline, in a thread; it is there to be asked until its ``end``."""

    def __init__(self, pipeline: Any, x: Tensor, t: Tensor, call: Mapping[str, Any]) -> None:
        self._pipeline, self._line = pipeline, _Line(x, t)
        self.owner, self.count = threading.get_ident(), len(x)
        self._thread = threading.Thread(target=self._run, args=(x, call), name=THREAD, daemon=True)
        self._surroundings = _surroundings(x.device)
        self._loan = ExitStack()
        self._loan.enter_context(_borrowed(pipeline, lambda own: _idle(own, self._line, t)))

    def start(self) -> None:
        """Call the pipeline, which is asked for the first time."""
        try:
            self._thread.start()
        except BaseException:
            self._loan.close()
            raise

    def _run(self, x: Tensor, call: Mapping[str, Any]) -> None:
        try:
            with ExitStack() as stack:
                for surrounding in self._surroundings:
                    stack.enter_context(surrounding)
                self._pipeline(latents=x, output_type="latent", **call)
        except BaseException as error:
            self._line.answers.put(error)
        else:
            # Nobody waits for this, unless the loop ended by itself.
            self._line.answers.put(PipelineError("the pipeline ended before the walk did; it cannot be driven"))
        finally:
            # Here, so that it is given back even if nobody waits for the end.
            self._loan.close()

    def ask(self, x: Tensor, t: Tensor) -> None:
        self._line.questions.put((x, t))

    def answer(self) -> Tensor:
        answer = self._line.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self) -> None:
        """Let the pipeline come to its end, where it puts back what is its own."""
        self._line.questions.put(None)
        if self._thread.ident is not None:
            self._thread.join()
