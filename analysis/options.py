"""What the commands of the scripts share: options that mean the same in all of them, and errors in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from analysis.common import CIFAR10_TEST, REFERENCES
from ddim_ode.models import DEFAULT_MODEL
from solvers import SolverError

_FOLDER = click.Path(path_type=Path, file_okay=False)

model_option = click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Model folder or Hub name.")
images_option = click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=CIFAR10_TEST,
    show_default="64 test images of CIFAR-10",
    help="Folder of pictures.",
)
stride_option = click.option(
    "--stride",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="The reference steps over so many timesteps at once.",
)
references_option = click.option(
    "--references",
    type=_FOLDER,
    default=REFERENCES,
    show_default=True,
    help="Folder that keeps the reference solutions.",
)


def count_option(default: int | None = None) -> Callable[[Any], Any]:
    """How many of the images to take; all of them if there is no ``default``."""
    return click.option(
        "--count",
        type=click.IntRange(min=1),
        default=default,
        show_default=True if default else "all",
        help="Take so many of the images.",
    )


def out_option(name: str) -> Callable[[Any], Any]:
    """Where the script ``name`` writes, unless told otherwise."""
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
        raise click.ClickException(str(error)) from error
