"""The options that the commands share and that make a ``Request`` and a ``Session``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ddim_ode.conditions import NO_CLASS
from ddim_ode.console import Bar, GridName, device_option
from ddim_ode.grids import CLEAN_ENDS
from ddim_ode.session.request import DEFAULT_STEPS, Request
from ddim_ode.spacings import DEFAULT_GRID
from solvers import AUTO, DEFAULT_SOLVER, SOLVERS

if TYPE_CHECKING:
    from ddim_ode.session.session import Session

T = TypeVar("T")
FC = TypeVar("FC", bound=Callable[..., Any])


@dataclass(frozen=True)
class Run:
    """The options that the commands share, each named as on the command line."""

    model: str
    device: str
    batch_size: int
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

    @property
    def wishes(self) -> dict[str, Any]:
        """What the options wish of solver and grid, by the names of ``Request``; guidance only if it is of classes."""
        names = {option.name for option in fields(Request)} - ({"guidance"} if self._of_pipeline else set())
        return {name: value for name, value in asdict(self).items() if name in names}

    @property
    def _of_pipeline(self) -> bool:
        from ddim_ode.pipelines import is_pipeline

        return (self.prompt, self.negative_prompt) != (None, None) or is_pipeline(self.model)

    def session(self, latents: Sequence[Path] = ()) -> Session:
        """The model, ready to work, with a progress bar on a terminal.

        A pipeline is asked for what the options say, and else for what the ``latents`` were encoded as.

        Raises:
            ValueError: if there is no such model, or the latents were encoded as several things.
        """
        from ddim_ode.session.session import Session

        asked: dict[str, Any] = {}
        if self._of_pipeline:
            own = self._asked(latents)
            for name in ("prompt", "negative_prompt", "guidance"):
                wish = getattr(self, name)
                asked[name] = own.get(name) if wish is None else wish
            asked["prompt"] = asked["prompt"] or ""
            asked["guidance"] = 1.0 if asked["guidance"] is None else asked["guidance"]
        return Session(
            self.model,
            device=self.device,
            batch_size=self.batch_size,
            max_nfe=self.max_nfe,
            progress=Bar(),
            **asked,
        )

    def _asked(self, latents: Sequence[Path]) -> Mapping[str, Any]:
        """What the ``latents`` were encoded as, if that is one thing; those that cannot be read are left for later."""
        from ddim_ode.latents import LatentError, describe, load_latent

        found: list[Mapping[str, Any]] = []
        for path in latents:
            with suppress(LatentError):
                asked = load_latent(path).asked
                if asked and asked not in found:
                    found.append(asked)
        if len(found) > 1 and self.prompt is None:
            several = "; ".join(map(describe, found[:3]))
            raise ValueError(f"the latents were encoded as several things: {several}; decode each by itself")
        return found[0] if len(found) == 1 else {}


guidance_option = click.option(
    "--guidance",
    type=float,
    metavar="W",
    help="How strongly towards the class or the prompt: 1 is as it was learned. Default: 1; of a latent its own.",
)


def class_option(*, several: str = "") -> Callable[[FC], FC]:
    """The option --class, handed to the command as ``label``, or as ``labels`` where there may be ``several``.

    ``several``  what they are for, for the help.
    """
    help = f"Class of the model, by its name or number; '{NO_CLASS}' for no class. Default: none; of a latent its own."
    help = f"{help} {several}".strip()
    name = "labels" if several else "label"
    return click.option("--class", name, multiple=bool(several), metavar="NAME|NUMBER", help=help)


def run_options(command: Callable[..., T]) -> Callable[..., T]:
    """The shared options, handed to the command as one ``Run``."""

    @wraps(command)
    def with_run(**values: Any) -> T:
        run = Run(**{option.name: values.pop(option.name) for option in fields(Run)})
        return command(run, **values)

    for option in reversed(_RUN_OPTIONS):
        with_run = option(with_run)
    return with_run


_RUN_OPTIONS = (
    click.option(
        "--prompt", metavar="TEXT", help="What a pipeline is asked for. Default: nothing; of a latent its own."
    ),
    click.option("--negative-prompt", metavar="TEXT", help="What it is asked to avoid, with guidance above 1."),
    click.option(
        "--model",
        default="default",
        show_default=True,
        metavar="FOLDER|ORG/NAME",
        help="Folder of a model or a pipeline in diffusers' format, a name on the Hub (of a pipeline with --prompt), "
        "package.module:factory, or the one that ships, 'default', which knows CIFAR-10's classes.",
    ),
    click.option(
        "--solver",
        type=click.Choice([AUTO, *sorted(SOLVERS)], case_sensitive=False),
        metavar="NAME",
        help=f"Solver, one of those that 'info' lists. Default: the latent's own, or {AUTO}: what the model's "
        f"calibration says for the number of steps, or else {DEFAULT_SOLVER}.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(min=1),
        help=f"Number of steps (fixed-step solvers). Default: {DEFAULT_STEPS}, or the latent's own.",
    ),
    click.option(
        "--grid",
        type=GridName(),
        help=f"Noise levels to visit (fixed-step solvers). Default: {DEFAULT_GRID}, or the latent's own.",
    ),
    click.option("--clean-end", type=click.Choice(CLEAN_ENDS), help="Noise level at which the image is taken."),
    click.option("--rtol", type=float, help="Relative tolerance (adaptive solvers). Default: 1e-5."),
    click.option("--atol", type=float, help="Absolute tolerance (adaptive solvers). Default: 1e-5."),
    guidance_option,
    click.option(
        "--max-nfe",
        type=click.IntRange(min=1),
        default=10_000,
        show_default=True,
        help="Largest number of network evaluations for a batch, one way.",
    ),
    device_option,
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        help="Number of images that go through the network together.",
    ),
)
