"""The command line: ``python cli.py COMMAND``, installed as ``ddim-ode``. It parses, calls and reports.

Only click is imported here, and what is cheap of the project: torch and the rest come with the command that needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import wraps
from importlib import import_module
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from analysis import ANALYSES
from ddim_ode.console import (
    Bar,
    Existing,
    Failures,
    FilePath,
    GridName,
    OneLineErrors,
    check_outputs,
    device_option,
    find_frames,
    find_targets,
    save,
    say,
    warn,
    warn_of,
)
from ddim_ode.grids import CLEAN_ENDS
from ddim_ode.processes import PREDICTIONS
from ddim_ode.session.plan import DEFAULT_STEPS, Request
from ddim_ode.spacings import DEFAULT_GRID, GRIDS
from solvers import AUTO, DEFAULT_SOLVER, SOLVERS, Solver

if TYPE_CHECKING:
    from ddim_ode.calibration import Entry
    from ddim_ode.latents import Latent
    from ddim_ode.models import Model
    from ddim_ode.session.results import Sample
    from ddim_ode.session.session import Session
    from ddim_ode.training.checkpoint import Checkpoint

# The sheet of samples that training leaves at every save.
PREVIEW_IMAGES, PREVIEW_STEPS = 36, 20
PATH = FilePath()

T = TypeVar("T")


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

    @property
    def wishes(self) -> dict[str, Any]:
        """What the options wish of solver and grid, by the names of ``Request``."""
        names = {option.name for option in fields(Request)}
        return {name: value for name, value in asdict(self).items() if name in names}

    def session(self) -> Session:
        """The model, ready to work, with a progress bar on a terminal."""
        from ddim_ode.session.session import Session

        limits = {"batch_size": self.batch_size, "max_nfe": self.max_nfe}
        return Session(self.model, device=self.device, progress=Bar(), **limits)


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
        "--model",
        default="default",
        show_default=True,
        metavar="FOLDER|ORG/NAME",
        help="Model folder in diffusers' format, or a name on the Hub; 'default' is the embedded one.",
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


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Encode images to latents and back with a diffusion model, through the ODE of DDIM.

    \b
    Examples:
      python cli.py encode photo.png                              writes photo.latent.pt
      python cli.py decode photo.latent.pt                        writes photo.decoded.png
      python cli.py decode photo.latent.pt --solver euler --steps 20 -o euler.png
      python cli.py reconstruct *.png -o out/                     round trips and their errors
      python cli.py sample -n 64 --seed 1 -o sheet.png            new images
      python cli.py train pictures.zip --minutes 60 -o model      a model of your own
      python cli.py interpolate a.png b.png -n 9                  from one to the other
      python cli.py info                                          the solvers and grids
    """


@main.command()
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMG...")
@run_options
@click.option("--check", is_flag=True, help="Say how good the latents are; costs four times the evaluations.")
@click.option("--exact", is_flag=True, help="Undo exactly what decoding with --solver, or with euler, will do.")
@output_option
@existing_options
def encode(
    run: Run, images: tuple[Path, ...], check: bool, exact: bool, output: Path | None, existing: Existing
) -> None:
    """Encode pictures to latent files, IMG.latent.pt.

    With --exact each step of a one-step decoder is undone by iteration, so that decoding gives back the picture.
    """
    failures = Failures()
    jobs = find_targets(images, output, ".latent.pt", existing, failures)
    request = Request(**run.wishes, exact=exact)
    for batch in run.session().encode_batches([path for path, _ in jobs], request, on_error=failures.report):
        warn(*batch.walk.notes)
        saved = []
        for encoded in batch:
            with failures.caught():
                save(encoded.latent, jobs[encoded.index][1], overwrite=existing.overwrite)
                saved.append(encoded)
        found = None
        with failures.caught(RuntimeError):  # by then the latents are saved
            found = batch.check() if check else None
        for encoded in saved:
            name, target = encoded.latent.source.name, jobs[encoded.index][1]
            say(f"{name} -> {target} ({encoded.report(found)})")
            warn(*encoded.warnings(found))
    failures.exit()


@main.command()
@click.argument("latents", nargs=-1, required=True, type=PATH, metavar="LATENT...")
@run_options
@click.option("--any-model", is_flag=True, help="Accept another model or schedule than the latent's own.")
@output_option
@existing_options
def decode(run: Run, latents: tuple[Path, ...], any_model: bool, output: Path | None, existing: Existing) -> None:
    """Decode latent files to pictures, NAME.decoded.png.

    Each is decoded with the solver and on the grid that it was encoded with, unless the options name others.
    """
    failures = Failures()
    jobs = find_targets(latents, output, ".decoded.png", existing, failures)
    paths, request = [path for path, _ in jobs], Request(**run.wishes)
    for decoded in run.session().decode_all(paths, request, any_model=any_model, on_error=failures.report):
        warn_of(decoded.walk, decoded.member)
        with failures.caught():
            target = jobs[decoded.index][1]
            save(decoded.picture, target, overwrite=existing.overwrite)
            say(f"{decoded.latent.source.name} -> {target} ({decoded.report()})")
    failures.exit()


@main.command()
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMG...")
@run_options
@click.option(
    "--target-psnr",
    type=float,
    metavar="DB",
    help="Find the fewest steps in which every picture comes back so well, of --solver or of a few good ones.",
)
@output_option
@existing_options
def reconstruct(
    run: Run, images: tuple[Path, ...], target_psnr: float | None, output: Path | None, existing: Existing
) -> None:
    """Encode and decode pictures, print the errors, and save both side by side, IMG.reconstruction.png.

    A picture that comes back well does not make its latent a good one: see 'encode --check'.
    """
    failures = Failures()
    jobs = find_targets(images, output, ".reconstruction.png", existing, failures)
    session, request = run.session(), Request(**run.wishes)
    if target_psnr is not None:
        jobs = [jobs[i] for i in session.readable([path for path, _ in jobs], on_error=failures.report)]
        if jobs:
            request = session.cheapest([path for path, _ in jobs], target_psnr, request, tried=say)
    for found in session.reconstruct_all([path for path, _ in jobs], request, on_error=failures.report):
        warn_of(found.there, found.member)
        warn_of(found.back, found.member)
        with failures.caught():
            target = jobs[found.index][1]
            save(found.picture, target, overwrite=existing.overwrite)
            say(f"{found.name}: {found.report()} -> {target}")
    failures.exit()


@main.command()
@click.option("-n", "--count", type=click.IntRange(min=1), default=16, show_default=True, help="Number of images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the latents.")
@click.option("--eta", type=click.FloatRange(0, 1), help="Noise in each step: from 0, DDIM, to 1, DDPM; no --solver.")
@click.option("--sigma-hat", is_flag=True, help="The larger noise of DDPM's other variance; no --solver.")
@run_options
@click.option("-o", "--output", type=PATH, default=Path("samples.png"), show_default=True)
@overwrite_option
def sample(run: Run, count: int, seed: int, eta: float | None, sigma_hat: bool, output: Path, overwrite: bool) -> None:
    """Decode random latents to new images and save them as one sheet.

    With --eta or --sigma-hat the images come not through the ODE but with noise in each step, on the grid 'trailing'
    unless another is named.
    """
    from ddim_ode.images import check_image_path
    from ddim_ode.session.results import check_sheet, sheet

    check_image_path(output, overwrite=overwrite)
    session = run.session()
    check_sheet(count, session.model.space.shape)
    samples: list[Sample] = []
    for found in session.sample(count, seed=seed, eta=eta, sigma_hat=sigma_hat, **run.wishes):
        warn_of(found.walk, len(samples) % session.batch_size)
        samples.append(found)
    pictures = [found.picture for found in samples]
    save(sheet(pictures, ceil(sqrt(count)), pictures[-1].settings), output, overwrite=overwrite)
    noisy = eta is not None or sigma_hat
    noise = f" and noise of eta {1 if eta is None else eta:g}{', sigma-hat' if sigma_hat else ''}" if noisy else ""
    say(f"{count} images from seed {seed}{noise} -> {output} ({samples[-1].report()} for the last batch)")


@main.command()
@click.argument("inputs", nargs=-1, type=PATH, metavar="[IMG|LATENT]...")
@click.option("--seed", "seeds", type=click.IntRange(min=0), multiple=True, help="Seed of a random latent.")
@click.option("-n", "--count", type=click.IntRange(min=2), default=9, show_default=True, help="Images in a row.")
@run_options
@click.option("--frames", type=PATH, metavar="FOLDER", help="Write each image there by itself.")
@click.option("-o", "--output", type=PATH, default=Path("interpolation.png"), show_default=True)
@overwrite_option
def interpolate(
    run: Run,
    inputs: tuple[Path, ...],
    seeds: tuple[int, ...],
    count: int,
    frames: Path | None,
    output: Path,
    overwrite: bool,
) -> None:
    """Decode the way from one latent to another, on a great circle, and save it as one strip.

    The way is between two pictures, latent files or --seed, or any of them mixed. Four make a sheet of --count rows,
    whose corners are upper left, upper right, lower left, lower right. Latent files are decoded on the grid of the
    first of them.
    """
    from ddim_ode.images import check_image_path
    from ddim_ode.session.corners import count_images
    from ddim_ode.session.results import check_sheet

    check_image_path(output, overwrite=overwrite)
    number = count_images(len(inputs) + len(seeds), count)
    session = run.session()
    check_sheet(number, session.model.space.shape)
    targets = find_frames(frames, number, output, overwrite) if frames else []
    check_outputs([output, *targets], inputs)
    found = session.interpolate(inputs, seeds=seeds, count=count, **run.wishes)
    warn(*found.there.notes, *found.back.notes)
    for picture, target in zip(found.pictures, targets, strict=False):
        save(picture, target, overwrite=overwrite)
    save(found.sheet, output, overwrite=overwrite)
    names = ", ".join(found.names)
    say(f"{number} images between {names}: {found.report()} for the last batch -> {output}")


@main.command()
@click.argument("source", type=PATH, metavar="FOLDER|ZIP")
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the model.")
@click.option("--steps", type=int, help="Length of the run in steps.")
@click.option("--minutes", type=float, help="Length of the run in minutes, over all its parts if it is resumed.")
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder, with its settings.")
@click.option("--unet", type=PATH, help="JSON configuration of diffusers' UNet2DModel.")
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
    cpu: bool,
    compile: bool,
    processes: int | None,
    save_minutes: float,
    skip_unreadable: bool,
    **values: Any,
) -> None:
    """Train a diffusion model on the pictures in a folder or zip file.

    Every save leaves a checkpoint, a model that '--model' takes, its card, its loss and a sheet of samples. On several
    devices or processes: torchrun --nproc_per_node N cli.py train ...
    """
    import torch

    from ddim_ode.session.session import Session
    from ddim_ode.training.checkpoint import check_new, load_checkpoint
    from ddim_ode.training.data import read_training_images
    from ddim_ode.training.loop import Hardware
    from ddim_ode.training.loop import train as run
    from ddim_ode.training.publish import publish
    from ddim_ode.training.settings import Settings, load_unet_config

    checkpoint = load_checkpoint(output) if resume else None
    if checkpoint:
        ctx = click.get_current_context()
        given = {name: values[name] for name in values if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        settings = checkpoint.settings.resumed(given | ({"unet": load_unet_config(unet)} if unet else {}))
    else:
        settings = Settings(unet=load_unet_config(unet), **values)
        check_new(output)
    if output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"'{output}' lies in '{source}', and its pictures would be trained on; name another folder")
    data = read_training_images(source, *settings.image_shape(), skip_unreadable=skip_unreadable)
    warn(*data.warnings())

    def save(model: Model, checkpoint: Checkpoint) -> None:
        session = Session(model, batch_size=settings.batch_size)
        samples = session.sample(PREVIEW_IMAGES, seed=settings.seed, steps=PREVIEW_STEPS, solver=DEFAULT_SOLVER)
        images = torch.stack([found.picture.image for found in samples])
        publish(model, checkpoint, data, output, samples=images)

    hardware = Hardware(cpu=cpu, compile=compile, processes=processes)
    run(settings, data, output, publish=save, hardware=hardware, resume=checkpoint, save_minutes=save_minutes)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@main.command()
@click.option("--model", default="default", show_default=True, metavar="FOLDER|ORG/NAME", help="Model to calibrate.")
@click.option(
    "--images", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Real images. [default: CIFAR-10's]"
)
@click.option(
    "--steps", type=click.IntRange(min=2), multiple=True, help="Steps, one or several. [default: seven, 5 to 20]"
)
@click.option("--latents", type=click.IntRange(min=4), default=32, show_default=True, help="Latents, half for judging.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the latents.")
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
    device: str,
    work: Path,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Fit a solver to a model, for '--solver auto'; minutes to an hour.

    A fit that is worse than the default on images and latents that it was not fitted to is refused.
    """
    from analysis.pictures import CIFAR10_TRAIN
    from ddim_ode.calibration import FILE, save_calibration
    from ddim_ode.devices import find_device
    from ddim_ode.files import check_writable
    from ddim_ode.images import list_pictures
    from ddim_ode.models import load_model
    from ddim_ode.session.calibrate import BUDGETS, Effort, calibrate_in

    loaded = load_model(model, device=find_device(device))
    if output is None and loaded.folder is None:
        raise click.UsageError(f"model '{model}' is in no folder; name a file with --output")
    target = output or Path(loaded.folder or ".") / FILE
    check_writable(target, overwrite=overwrite)
    effort = Effort((DEFAULT_SOLVER, DEFAULT_GRID), steps or BUDGETS, latents, seed=seed)
    calibration = calibrate_in(loaded, list_pictures(images or CIFAR10_TRAIN), effort, work)
    save_calibration(calibration, target, overwrite=overwrite)
    for count, entry in calibration.entries.items():
        kind = "fitted" if entry.fitted else "as it is"
        say(f"{count} steps: {entry.solver} on {entry.grid.name}, {kind}; {_gains(entry)}")
    say(f"-> {target}")


def _gains(entry: Entry) -> str:
    """The errors of an entry, as parts of those of the default."""
    names = ("decode", "latent", "round_trip")
    parts = (f"{name} {entry.scores[name] / entry.scores[f'{name} of the default']:.2f}" for name in names)
    return f"errors as parts of the default's: {', '.join(parts)}"


class Analyses(click.Group):
    """The scripts of ``analysis``, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the scripts, and 'all'."""
        return ["all", *(name.replace("_", "-") for name in sorted(ANALYSES))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of the script ``name``; of the report for 'all'."""
        if name not in self.list_commands(ctx):
            return None
        module = "report" if name == "all" else name.replace("-", "_")
        command: click.Command = import_module(f"analysis.{module}").main
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, which imports none of the scripts."""
        with formatter.section("Analyses"):
            lines = [(name.replace("_", "-"), text) for name, text in sorted(ANALYSES.items())]
            formatter.write_dl([("all", "All of these but quality, and one report."), *lines])


@main.command(cls=Analyses)
def analyze() -> None:
    """Measure and plot: what solvers and models are good for."""


@main.command()
@click.argument("targets", nargs=-1, metavar="[LATENT|MODEL]...")
def info(targets: tuple[str, ...]) -> None:
    """Say what is in latent files and models; without arguments, list the solvers and grids."""
    if not targets:
        _list_registries()
        return
    failures = Failures()
    for target in targets:
        with failures.caught():
            _describe(target)
    failures.exit()


def _list_registries() -> None:
    say("Solvers (order, NFE per step + those that the first ones take more, source):")
    for name, solver in sorted(SOLVERS.items()):
        say(f"  {name:26} {solver.order:2}  {_cost(solver):8}  {solver.source}")
    say("Grids (clean end unless given, rule):")
    for name, grid in sorted(GRIDS.items()):
        say(f"  {name:26} {grid.clean_end:12}  {grid.source}")


def _cost(solver: Solver) -> str:
    many, one_less = solver.nfe(100), solver.nfe(99)
    if many is None or one_less is None:
        return "adaptive" if solver.adaptive else "iterates"
    more = many - 100 * (many - one_less)
    return f"{many - one_less}{f' + {more}' if more else ''}"


def _describe(target: str) -> None:
    from ddim_ode.latents import load_latent
    from ddim_ode.models import load_model

    if Path(target).is_file() or target.endswith(".pt"):
        found: Latent | Model = load_latent(Path(target))
    else:
        found = load_model(target)
    for line in found.summary().splitlines():
        say(line)


if __name__ == "__main__":
    main()
