"""Training of a model."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ddim_ode.commands.outputs import PATH
from ddim_ode.conditions import NO_CLASS
from ddim_ode.console import warn
from ddim_ode.predictions import PREDICTIONS
from ddim_ode.session.request import PlanError
from ddim_ode.solvers import DEFAULT_SOLVER

if TYPE_CHECKING:
    from torch import Tensor

    from ddim_ode.models import Model
    from ddim_ode.training.checkpoint import Checkpoint


# The sheet of samples that training leaves at every save.
PREVIEW_STEPS, PREVIEW_COLUMNS = 20, 6
# Of a model with classes: a row for each of so many, spread over all of them.
PREVIEW_OF_EACH, PREVIEW_ROWS = 8, 16


@click.command()
@click.argument("source", type=PATH, metavar="FOLDER|ZIP")
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the model.")
@click.option("--steps", type=int, help="Length of the run in steps.")
@click.option("--minutes", type=float, help="Length of the run in minutes, over all its parts if it is resumed.")
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder, with its settings.")
@click.option("--unet", type=PATH, help="JSON configuration of diffusers' UNet2DModel.")
@click.option("--init", metavar="FOLDER|ORG/NAME", help="Begin with the weights of this model, and with its network.")
@click.option("--classes", is_flag=True, help="Train on classes: the folder of a picture is its class.")
@click.option(
    "--label-dropout",
    type=float,
    default=0.15,
    show_default=True,
    help="Part of the pictures whose class is left out, so that the network learns to do without.",
)
@click.option(
    "--prediction",
    metavar="|".join(PREDICTIONS),
    default="v_prediction",
    show_default=True,
    help="What the network predicts.",
)
@click.option("--schedule", metavar="linear|cosine", default="linear", show_default=True, help="Noise schedule.")
@click.option(
    "--gamma",
    metavar="1|1/alpha_bar",
    help="Weights of L_gamma; 1 is the paper's. [default: the plain error: 1 for epsilon, 1/alpha_bar for v]",
)
@click.option("--batch-size", type=int, default=128, show_default=True, help="Images in a step.")
@click.option("--learning-rate", type=float, default=6e-4, show_default=True, help="Learning rate at its height.")
@click.option("--ema", type=float, default=0.9995, show_default=True, help="Decay of the average of the weights.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all that is random.")
@click.option("--cpu", is_flag=True, help="Do not use a GPU.")
@click.option("--bf16", is_flag=True, help="Compute in bfloat16 where that is safe.")
@click.option("--compile", is_flag=True, help="Use torch.compile: slow to begin, faster afterwards.")
@click.option("--processes", type=int, help="Refuse to run in any other number of processes than this.")
@click.option("--save-minutes", type=float, default=10.0, show_default=True, help="Time from one save to the next.")
@click.option("--skip-unreadable", is_flag=True, help="Train though many pictures cannot be read.")
@click.option("--licence", default="not stated", show_default=True, help="Licence of the model, for its card.")
def train(
    source: Path,
    output: Path,
    resume: bool,
    unet: Path | None,
    init: str | None,
    classes: bool,
    cpu: bool,
    compile: bool,
    processes: int | None,
    save_minutes: float,
    skip_unreadable: bool,
    **values: Any,
) -> None:
    """Train a diffusion model on the pictures in a folder or zip file.

    Every save leaves a checkpoint, a model that '--model' takes, its card, its loss and a sheet of samples. On several
    devices or processes: torchrun --nproc_per_node N -m ddim_ode train ...
    """
    import torch

    from ddim_ode.training.loop import Hardware
    from ddim_ode.training.loop import train as run
    from ddim_ode.training.publish import publish
    from ddim_ode.training.start import prepare

    ctx = click.get_current_context()
    given = {name for name in values if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if init and (resume or unet):
        raise PlanError("--init is for a new run, and brings its network with it; leave out --resume and --unet")
    if "label_dropout" in given and not (classes or resume):
        raise PlanError("--label-dropout leaves out classes, but there are none; pass --classes")
    start = prepare(
        source,
        output,
        values,
        given,
        resume=resume,
        unet=unet,
        init=init,
        classes=classes,
        skip_unreadable=skip_unreadable,
    )
    settings, data = start.settings, start.data
    warn(*data.warnings())

    def save(model: Model, checkpoint: Checkpoint) -> None:
        samples, columns = _preview(model, settings.batch_size, settings.seed)
        publish(model, checkpoint, data, output, samples=samples, columns=columns)

    hardware = Hardware(cpu=cpu, compile=compile, processes=processes)
    run(
        settings,
        data,
        output,
        publish=save,
        hardware=hardware,
        resume=start.checkpoint,
        begin=start.weights,
        save_minutes=save_minutes,
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _preview(model: Model, batch_size: int, seed: int) -> tuple[Tensor, int]:
    """Samples of ``model``, ``(B, C, H, W)``, for a sheet with so many columns."""
    import torch

    from ddim_ode.session.session import Session

    shown = range(0, len(model.classes), ceil(len(model.classes) / PREVIEW_ROWS) or 1)
    columns = PREVIEW_OF_EACH if shown else PREVIEW_COLUMNS
    wanted = [model.classes[i] for i in shown for _ in range(columns)] or [NO_CLASS] * columns**2
    session = Session(model, batch_size=batch_size)
    samples = session.sample(len(wanted), label=wanted, seed=seed, steps=PREVIEW_STEPS, solver=DEFAULT_SOLVER)
    return torch.stack([found.picture.image for found in samples]), columns
