"""What is made of a model: solvers that are learned for it, and a pipeline of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddim_ode.commands.outputs import PATH, overwrite_option
from ddim_ode.console import device_option, say
from ddim_ode.session.options import class_option, config_option, guidance_option
from ddim_ode.session.request import PlanError, Request

if TYPE_CHECKING:
    from ddim_ode.calibration import Entry


@click.command()
@click.option("--model", default="default", show_default=True, metavar="FOLDER|ORG/NAME", help="Model to calibrate.")
@click.option(
    "--images", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Real images. [default: CIFAR-10's]"
)
@click.option(
    "--steps", type=click.IntRange(min=2), multiple=True, help="Steps, one or several. [default: seven, 5 to 20]"
)
@click.option("--latents", type=click.IntRange(min=4), default=32, show_default=True, help="Latents, half for judging.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the latents.")
@click.option(
    "--walks",
    type=click.IntRange(min=0),
    default=60,
    show_default=True,
    help="Walks of a batch that searching may take, for each number of steps and direction.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=2),
    default=16,
    show_default=True,
    help="Trajectories that are walked at once, and serve the search; on a GPU take more, of more --latents.",
)
@class_option()
@guidance_option
@device_option
@click.option(
    "--work",
    type=PATH,
    default=Path("demo/calibrate"),
    show_default=True,
    help="Folder for trajectories and results; what is there is not done again.",
)
@click.option("-o", "--output", type=PATH, help="Output file. [default: beside the model's weights]")
@overwrite_option
def calibrate(
    model: str,
    images: Path | None,
    steps: tuple[int, ...],
    latents: int,
    seed: int,
    walks: int,
    batch_size: int,
    label: str | None,
    guidance: float | None,
    device: str,
    work: Path,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Learn a solver for a model, for '--solver auto'; minutes for each number of steps.

    What is worse than the default on images and latents that it was not fitted to is refused. It is for a guidance,
    whatever the class; with --overwrite what a file holds for other steps or guidance stays.
    """
    from ddim_ode.analysis import pictures
    from ddim_ode.calibration import FILE, join_calibration, save_calibration
    from ddim_ode.devices import find_device
    from ddim_ode.files import check_writable
    from ddim_ode.grids import LEARNED
    from ddim_ode.images import list_pictures
    from ddim_ode.models import load_model
    from ddim_ode.session.calibrate import calibrate_in, usual
    from ddim_ode.session.material import BUDGETS, Effort
    from ddim_ode.session.request import plan_condition

    if Path(model).is_file():
        raise PlanError(
            f"a calibration lies in the folder of its model, and '{model}' is one file; make one of it: export"
        )
    loaded = load_model(model, device=find_device(device))
    if output is None and loaded.folder is None:
        raise click.UsageError(f"model '{model}' is in no folder; name a file with --output")
    target = output or Path(loaded.folder or ".") / FILE
    check_writable(target, overwrite=overwrite)
    effort = Effort(usual(loaded), steps or BUDGETS, latents, batch_size=batch_size, seed=seed, walks=walks)
    condition = plan_condition(Request(label=label, guidance=guidance), loaded)
    photographs = list_pictures(images or pictures.CIFAR10_TRAIN)
    calibration = calibrate_in(loaded, photographs, effort, work, condition=condition)
    save_calibration(join_calibration(calibration, target, loaded.schedule), target, overwrite=overwrite)
    for entry in calibration.entries:
        kind = "learned" if entry.grid.name == LEARNED else "fitted" if entry.fitted else "as it is"
        say(f"{entry.grid.steps} steps: {entry.solver} on {entry.grid.name}, {kind}; {_gains(entry)}")
    say(f"-> {target}")


def _gains(entry: Entry) -> str:
    """The errors of an entry, as parts of those of the default."""
    names = ("decode", "latent", "round_trip")
    if "decode of the default" not in entry.scores:
        return "the default leads to no finite numbers"
    parts = (f"{name} {entry.scores[name] / entry.scores[f'{name} of the default']:.2f}" for name in names)
    return f"errors as parts of the default's: {', '.join(parts)}"


@click.command()
@click.argument("model", metavar="FOLDER|FILE|ORG/NAME")
@config_option
@class_option()
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the pipeline, a new or an empty one.")
def export(model: str, config: Path | None, label: str | None, output: Path) -> None:
    """Write a model for one class, or for none, as a pipeline of diffusers that knows no classes.

    DDPMPipeline.from_pretrained(...) opens and samples it.
    """
    from ddim_ode.export import export_pipeline
    from ddim_ode.models import load_model

    loaded = load_model(model, config=config)
    condition = loaded.condition(label)
    export_pipeline(loaded, condition, output)
    say(f"'{loaded.name}' of {condition} -> {output}")
