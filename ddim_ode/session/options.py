"""The options that the commands share and that make a ``Request`` and a ``Session``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial, wraps
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import click
from click.shell_completion import CompletionItem

from ddim_ode.conditions import NO_CLASS
from ddim_ode.console import Bar, FilePath, GridName, device_option
from ddim_ode.dtypes import DTYPES
from ddim_ode.grids import CLEAN_ENDS
from ddim_ode.session.request import AUTO_BATCH, DEFAULT_STEPS, FLOW_GRID, FLOW_SOLVER, Request
from ddim_ode.solvers import AUTO, DEFAULT_SOLVER, SOLVERS
from ddim_ode.spacings import DEFAULT_GRID

if TYPE_CHECKING:
    from ddim_ode.asked import AskedFor
    from ddim_ode.models import Model
    from ddim_ode.session.batches import OnError
    from ddim_ode.session.session import Session

T = TypeVar("T")
FC = TypeVar("FC", bound=Callable[..., Any])


# What --solver takes; and those that take the steps they are asked for.
SOLVER_NAMES = [AUTO, *sorted(SOLVERS)]
STEP_SOLVER_NAMES = [AUTO, *sorted(name for name, solver in SOLVERS.items() if not solver.adaptive)]


@dataclass(frozen=True)
class Run:
    """The options that the commands share, each named as on the command line."""

    model: str
    device: str
    batch_size: int | Literal["auto"]
    max_nfe: int
    solver: str | None
    steps: int | None
    grid: str | tuple[float, ...] | None
    clean_end: str | None
    rtol: float | None
    atol: float | None
    guidance: float | None
    prompt: str | None
    negative_prompt: str | None
    size: tuple[int, int] | None
    config: Path | None
    dtype: str | None
    compile: bool

    def wishes(self, model: Model | None = None) -> dict[str, Any]:
        """What the options wish of ``model``, by the names of ``Request``; without a guidance that is of a prompt.

        Without a model it is what they wish of any.
        """
        names = {option.name for option in fields(Request)} - ({"guidance"} if model and model.asked else set())
        return {name: value for name, value in asdict(self).items() if name in names}

    def session(self, latents: Sequence[Path] = ()) -> Session:
        """The model, ready to work, with a progress bar on a terminal.

        A pipeline is asked for what the options say, and else for what all of the ``latents`` were encoded as, in the
        size of the first.

        Raises:
            ValueError: if there is no such model, or the latents were encoded as several things.
        """
        from ddim_ode.asked import describe

        told = [found for found in map(_told, latents) if found]
        session = self._open(told)
        asked = list(dict.fromkeys(describe(found.asked) for found in told))
        if len(asked) > 1 and self.prompt is None:
            several = "; ".join(asked[:3])
            raise ValueError(f"the latents were encoded as several things: {several}; say what to ask for: --prompt")
        return session.asked_for(**self._wanted(told[0], session.model)) if told else session

    def sessions(self, latents: Sequence[Path], on_error: OnError) -> Iterator[tuple[Session, list[Path]]]:
        """The model, ready to work, with those of the ``latents`` in turn that a pipeline is asked for alike.

        What the options leave open each latent says for itself, and its size. One that says too little, or what the
        pipeline refuses, is reported to ``on_error``, and the others go on.

        Raises:
            ValueError: if there is no such model.
        """
        from ddim_ode.session.batches import MemberError

        def refuse(error: ValueError, paths: Sequence[Path]) -> None:
            for path in paths:
                on_error(MemberError(f"'{path.name}': {error}"))

        told = [_told(path) for path in latents]
        session = self._open([found for found in told if found])
        wanted = list[tuple[dict[str, Any], Path]]()
        for path, found in zip(latents, told, strict=True):
            try:
                wanted.append((self._wanted(found, session.model) if found else {}, path))
            except ValueError as error:
                refuse(error, [path])
        for wishes, members in groupby(wanted, itemgetter(0)):
            paths = [path for _, path in members]
            try:
                own = session.asked_for(**wishes) if wishes else session
            except ValueError as error:
                refuse(error, paths)
            else:
                yield own, paths

    def _open(self, told: Sequence[_Told]) -> Session:
        if told and self.model == "default":
            raise ValueError(
                f"a latent was encoded with the pipeline '{told[0].model:.200}', and model '{self.model}' is none; "
                "name the pipeline with --model"
            )
        session = self.opener(told=bool(told))(progress=Bar())
        # Of a factory it is known only now that it is a pipeline.
        late = not told and session.model.asked is not None and self.guidance is not None
        return session.asked_for(guidance=self.guidance) if late else session

    def opener(self, *, told: bool = False) -> Callable[..., Session]:
        """What makes that session, in this process or in another; ``told`` if latents say what a pipeline is asked for.

        It takes what else a session may be given, such as what is told of its progress.
        """
        from ddim_ode.pipelines import is_pipeline
        from ddim_ode.session.session import Session

        asked: dict[str, Any] = {"prompt": self.prompt, "negative_prompt": self.negative_prompt, "size": self.size}
        if told or any(value is not None for value in asked.values()) or is_pipeline(self.model):
            asked["prompt"] = self.prompt or ""
            asked["guidance"] = self.guidance
        return partial(
            Session,
            self.model,
            device=self.device,
            batch_size=self.batch_size,
            max_nfe=self.max_nfe,
            config=self.config,
            dtype=self.dtype,
            compile=self.compile,
            **asked,
        )

    def request(self, *, label: str | None = None) -> Request:
        """What the options wish of any model, and the class ``label``."""
        return Request(**self.wishes(), label=label)

    def _wanted(self, told: _Told, model: Model) -> dict[str, Any]:
        """What a pipeline should be asked for, where the options leave it to a latent."""
        own = told.asked
        if self.prompt is None and own["prompt"] is None:
            raise ValueError("the latent does not say its prompt, which was left out of it; pass --prompt")
        names = ("prompt", "negative_prompt", "guidance")
        wanted: dict[str, Any] = {name: own[name] for name in names if getattr(self, name) is None}
        height, width = (model.factor * side for side in told.size)
        return wanted | ({} if self.size else {"height": height, "width": width})


class _Told(NamedTuple):
    """What a latent of a pipeline was encoded as: ``size`` is height and width of x_T, ``model`` its name."""

    asked: AskedFor
    size: tuple[int, int]
    model: str


def _told(path: Path) -> _Told | None:
    """What the latent in the file ``path`` says, if it is of a pipeline; what cannot be read is left for later."""
    from ddim_ode.latents import LatentError, load_latent

    with suppress(LatentError):
        latent = load_latent(path)
        if latent.asked:
            return _Told(latent.asked, (latent.x_T.shape[2], latent.x_T.shape[3]), latent.model)
    return None


class Size(click.ParamType):  # type: ignore[type-arg]
    """Height and width in pixels, as 512x768, or one number for both."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", value) if isinstance(value, str) else None
        if match is None:
            self.fail(f"'{value}' is no size; say HEIGHTxWIDTH in pixels, such as 512x768, or one number for both")
        return int(match[1]), int(match[2] or match[1])


class BatchSize(click.IntRange):
    """A number of images, or what finds it."""

    name = "batch size"

    def __init__(self) -> None:
        super().__init__(min=1)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"N|{AUTO_BATCH}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == AUTO_BATCH else super().convert(value, param, ctx)


config_option = click.option(
    "--config",
    type=FilePath(),
    metavar="FOLDER|FILE",
    help="Of a model that is one file, what it does not say: a folder of diffusers, or its YAML or JSON.",
)
guidance_option = click.option(
    "--guidance",
    type=float,
    metavar="W",
    help="How strongly towards the class or the prompt: 1 is as it was learned. Default: 1, or that of the latent that "
    "is decoded.",
)


def class_option(*, several: str = "") -> Callable[[FC], FC]:
    """The option --class, handed to the command as ``label``, or as ``labels`` where there may be ``several``.

    ``several``  what they are for, for the help.
    """
    default = "none, or that of the latent that is decoded"
    help = f"Class of the model, by its name or number; '{NO_CLASS}' for no class. Default: {default}. {several}"
    name = "labels" if several else "label"
    return click.option("--class", name, multiple=bool(several), metavar="NAME|NUMBER", help=help.strip())


def _files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A shell completes the name of a model as that of a file or a folder."""
    return [CompletionItem(incomplete, type="file")]


_prompt_option = click.option(
    "--prompt",
    metavar="TEXT",
    help="What a pipeline is asked for. Default: nothing, or that of the latent that is decoded.",
)
_negative_prompt_option = click.option(
    "--negative-prompt", metavar="TEXT", help="What it is asked to avoid, with guidance above 1."
)
_size_option = click.option(
    "--size",
    type=Size(),
    metavar="HxW",
    help="Size of its pictures. Default: its own, or that of the latent that is decoded.",
)
_model_option = click.option(
    "--model",
    default="default",
    show_default=True,
    metavar="FOLDER|FILE|ORG/NAME",
    shell_complete=_files,
    help="Folder or file of a model or a pipeline, a name on the Hub (of a pipeline with --prompt or --size), "
    "package.module:factory, or the one that ships, 'default', which knows CIFAR-10's classes.",
)
_solver_option = click.option(
    "--solver",
    type=click.Choice(SOLVER_NAMES, case_sensitive=False),
    metavar="NAME",
    help=f"Solver, one of those that 'info' lists. Default: that of the latent that is decoded, or {AUTO}: what the "
    f"model's calibration says for the number of steps, or else {DEFAULT_SOLVER}, of flow matching {FLOW_SOLVER}.",
)
_steps_option = click.option(
    "--steps",
    type=click.IntRange(min=1),
    help=f"Number of steps (fixed-step solvers). Default: {DEFAULT_STEPS}, or those of the latent that is decoded.",
)
_grid_option = click.option(
    "--grid",
    type=GridName(),
    help="Noise levels to visit (fixed-step solvers). Default: that of the latent that is decoded, or of the "
    f"calibration, or else {DEFAULT_GRID}, of flow matching {FLOW_GRID}.",
)
_clean_end_option = click.option(
    "--clean-end", type=click.Choice(CLEAN_ENDS), help="Noise level at which the image is taken."
)
_rtol_option = click.option("--rtol", type=float, help="Relative tolerance (adaptive solvers). Default: 1e-5.")
_atol_option = click.option("--atol", type=float, help="Absolute tolerance (adaptive solvers). Default: 1e-5.")
_max_nfe_option = click.option(
    "--max-nfe",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Largest number of network evaluations for a batch, one way.",
)
_dtype_option = click.option(
    "--dtype",
    type=click.Choice([*DTYPES]),
    help="What the network computes in; the state of the ODE stays in float64, on mps in float32. Default: float32.",
)
_compile_option = click.option(
    "--compile", is_flag=True, help="Compile the network: slow at first, then faster, above all on GPUs."
)
_batch_size_option = click.option(
    "--batch-size",
    type=BatchSize(),
    default=16,
    show_default=True,
    help=f"Number of images that go through the network together; '{AUTO_BATCH}' tries how many are worth it.",
)
# What a session is opened with, and what is wished of it.
_MODEL_OPTIONS = (
    _prompt_option,
    _negative_prompt_option,
    _size_option,
    _model_option,
    config_option,
    _max_nfe_option,
    device_option,
    _dtype_option,
    _compile_option,
    _batch_size_option,
)
_RUN_OPTIONS = (
    _prompt_option,
    _negative_prompt_option,
    _size_option,
    _model_option,
    config_option,
    _solver_option,
    _steps_option,
    _grid_option,
    _clean_end_option,
    _rtol_option,
    _atol_option,
    guidance_option,
    _max_nfe_option,
    device_option,
    _dtype_option,
    _compile_option,
    _batch_size_option,
)


def _as_run(options: Sequence[Callable[[FC], FC]]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    def shared(command: Callable[..., T]) -> Callable[..., T]:
        @wraps(command)
        def with_run(**values: Any) -> T:
            run = Run(**{option.name: values.pop(option.name, None) for option in fields(Run)})
            return command(run, **values)

        for option in reversed(options):
            with_run = option(with_run)
        return with_run

    return shared


# The shared options, these without the prompt, or those of the model alone, handed to the command as one ``Run``.
run_options, model_options = _as_run(_RUN_OPTIONS), _as_run(_MODEL_OPTIONS)
promptless_options = _as_run([option for option in _RUN_OPTIONS if option is not _prompt_option])
