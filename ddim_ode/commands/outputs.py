"""Options about the files that commands write."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from ddim_ode.console import Existing, FilePath

T = TypeVar("T")
PATH = FilePath()

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace output files that exist.")
output_option = click.option("-o", "--output", type=PATH, help="Output file for one input; folder for one or several.")


def existing_options(command: Callable[..., T]) -> Callable[..., T]:
    """What to do with output files that exist, handed to the command as ``existing``."""

    @overwrite_option
    @click.option("--skip-existing", is_flag=True, help="Leave out inputs whose output files exist.")
    @wraps(command)
    def with_existing(*arguments: Any, overwrite: bool, skip_existing: bool, **values: Any) -> T:
        return command(*arguments, existing=Existing(overwrite, skip_existing), **values)

    return with_existing
