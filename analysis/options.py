"""What the commands of the scripts share: options that mean the same in all of them, and errors in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from ddim_ode.console import device_option, one_line
from ddim_ode.devices import find_device
from ddim_ode.models import DEFAULT_MODEL, Model, load_model
from ddim_ode.session.options import class_option, guidance_option
from ddim_ode.session.request import MOST_IN_A_BATCH, Request, plan_condition
from ddim_ode.solvers import SOLVERS, SolverError

from .families import table_of
from .pictures import CIFAR10_TEST
from .reference import REFERENCES

T = TypeVar("T")

# The names of solvers whose evaluations are known beforehand.
FIXED_STEP = sorted(name for name, solver in SOLVERS.items() if solver.nfe(1))

_FOLDER = click.Path(path_type=Path, file_okay=False)


@dataclass(frozen=True)
class ModelChoice:
    """The ``name`` of a model, and of the ``device`` to put it on; and the class that it is asked for, if any.

    ``label``     the class by its name or number; ``guidance`` towards it.
    """

    name: str
    device: str
    label: str | None = None
    guidance: float | None = None

    def load(self) -> Model:
        """The model, on the device, as one that answers for the class alone.

        Raises:
            ValueError: if there is no such model, device or class, or the model is none that is measured here.
        """
        model = load_model(self.name, device=find_device(self.device))
        table_of(model)
        return model.bound(plan_condition(Request(label=self.label, guidance=self.guidance), model))


def model_options(command: Callable[..., T]) -> Callable[..., T]:
    """The options --model, --device, --class and --guidance, handed to the command as one ``model``."""

    @click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Model folder or Hub name.")
    @class_option()
    @guidance_option
    @device_option
    @wraps(command)
    def with_model(
        *context: click.Context, model: str, device: str, label: str | None, guidance: float | None, **values: Any
    ) -> T:
        return command(*context, model=ModelChoice(model, device, label, guidance), **values)

    return with_model


images_option = click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=CIFAR10_TEST,
    show_default="64 test images of CIFAR-10",
    help="Folder of pictures.",
)
batch_size_option = click.option("--batch-size", type=click.IntRange(1, MOST_IN_A_BATCH), default=16, show_default=True)
stride_option = click.option(
    "--stride",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Timesteps to a step of the reference, on average.",
)
references_option = click.option(
    "--references",
    type=_FOLDER,
    default=REFERENCES,
    show_default=True,
    help="Folder that keeps the reference solutions.",
)


def count_option(default: int | None = None) -> Callable[[Any], Any]:
    """The option for the number of images to take; all of them if there is no ``default``."""
    return click.option(
        "--count",
        type=click.IntRange(min=1),
        default=default,
        show_default=True if default else "all",
        help="Take so many of the images.",
    )


def out_option(name: str) -> Callable[[Any], Any]:
    """The option for the folder that the script ``name`` writes into."""
    return click.option(
        "--out",
        type=_FOLDER,
        default=Path("demo") / name,
        show_default=True,
        help="Folder for rows, settings and figures; rows in it are not measured again.",
    )


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """What the user can do something about ends the command with its message, and without a traceback."""
    try:
        yield
    except (OSError, ValueError, SolverError) as error:
        raise click.ClickException(one_line(error)) from error


def within(steps: Sequence[int], model: Model) -> tuple[int, ...]:
    """Those of the numbers of ``steps`` for which the schedule of ``model`` has timesteps."""
    return tuple(count for count in steps if count <= len(model.schedule))


def steps_for(solver: str, nfe: int) -> int:
    """The number of steps of the fixed-step ``solver`` that ``nfe`` evaluations pay for, but one at least."""
    steps = 1
    while (SOLVERS[solver].nfe(steps + 1) or 0) <= nfe:
        steps += 1
    return steps
