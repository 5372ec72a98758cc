"""What there is, and what is in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddim_ode.console import Failures, say
from ddim_ode.session.options import config_option
from ddim_ode.solvers import SOLVERS
from ddim_ode.spacings import GRIDS, SCHEDULER

if TYPE_CHECKING:
    from ddim_ode.latents import Latent
    from ddim_ode.models import Model


@click.command()
@click.argument("targets", nargs=-1, metavar="[LATENT|DATASET|MODEL]...")
@config_option
def info(targets: tuple[str, ...], config: Path | None) -> None:
    """Say what is in latent files, data sets and models; without arguments, list the solvers and grids.

    A file NAME.pt is a latent, and a model with --config.
    """
    if not targets:
        _list_registries()
        return
    failures = Failures()
    for target in targets:
        with failures.caught():
            _describe(target, config)
    failures.exit()


def _list_registries() -> None:
    say("Solvers (order, NFE per step + those that the first ones take more, source):")
    for name, solver in sorted(SOLVERS.items()):
        say(f"  {name:26} {solver.order:2}  {solver.cost_of_step:8}  {solver.source}")
    say("Grids (clean end unless given, rule):")
    for name, grid in sorted(GRIDS.items()):
        say(f"  {name:26} {grid.clean_end:12}  {grid.source}")
    say(f"  {SCHEDULER:26} {'its own':12}  Of a pipeline: what its scheduler walks.")


def _describe(target: str, config: Path | None) -> None:
    from ddim_ode.formats.load import FILES
    from ddim_ode.latents import load_latent
    from ddim_ode.session.dataset.load import LatentDataset, is_dataset, load_dataset
    from ddim_ode.session.session import Session

    ending = Path(target).suffix.lower()
    as_model = config is not None or ending in set(FILES) - {".pt"}
    if not as_model and (Path(target).is_file() or ending == ".pt"):
        found: Latent | LatentDataset | Model = load_latent(Path(target))
    elif is_dataset(Path(target)):
        found = load_dataset(target)
    else:
        found = Session(target, device="cpu", config=config).model
    for line in found.summary().splitlines():
        say(line)
