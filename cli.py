"""The command line, ``ddim-ode COMMAND``, or ``python cli.py COMMAND`` in a clone. It parses, calls and reports.

Only click is imported here, and what is cheap of the project: torch and the rest come with the command that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from importlib import import_module
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ddim_ode import __version__
from ddim_ode.analysis import ANALYSES
from ddim_ode.conditions import NO_CLASS
from ddim_ode.console import (
    Existing,
    Failures,
    FilePath,
    OneLineErrors,
    Writer,
    check_outputs,
    device_option,
    find_dataset_targets,
    find_frames,
    find_targets,
    save,
    say,
    warn,
    warn_of,
)
from ddim_ode.predictions import PREDICTIONS
from ddim_ode.session.dataset.engines import DEFAULT_ENGINE, ENGINES
from ddim_ode.session.dataset.formats import DEFAULT_FORMAT, FORMATS
from ddim_ode.session.options import Run, class_option, config_option, guidance_option, model_options, run_options
from ddim_ode.session.request import DEFAULT_STRENGTH, PlanError, Request
from ddim_ode.solvers import DEFAULT_SOLVER, SOLVERS
from ddim_ode.spacings import GRIDS, SCHEDULER

if TYPE_CHECKING:
    from ddim_ode.calibration import Entry
    from ddim_ode.latents import Latent
    from ddim_ode.models import Model
    from ddim_ode.session.results import Sample
    from ddim_ode.session.session import Session
    from ddim_ode.training.checkpoint import Checkpoint

# The sheet of samples that training leaves at every save.
PREVIEW_STEPS, PREVIEW_COLUMNS = 20, 6
# Of a model with classes: a row for each of so many, spread over all of them.
PREVIEW_OF_EACH, PREVIEW_ROWS = 8, 16
ALL_CLASSES = "all"
PATH = FilePath()

T = TypeVar("T")


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


@click.version_option(__version__, message="ddim-ode %(version)s")
@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Encode images to latents and back with a diffusion model, through the ODE of DDIM.

    \b
    Examples:
      ddim-ode encode photo.png                              writes photo.latent.pt
      ddim-ode decode photo.latent.pt                        writes photo.decoded.png
      ddim-ode decode photo.latent.pt --solver euler --steps 20 -o euler.png
      ddim-ode reconstruct a.png b.png -o out/               round trips and their errors
      ddim-ode sample -n 64 --seed 1 -o sheet.png            new images
      ddim-ode dataset pictures.zip -o latents               latents of many pictures, in shards
      ddim-ode train pictures.zip --minutes 60 -o model      a model of your own
      ddim-ode interpolate a.png b.png -n 9                  from one to the other
      ddim-ode sample --class horse --guidance 2 -o horses.png
      ddim-ode edit horse.png --from horse --to deer --guidance 3
      ddim-ode info                                          the solvers and grids
    """


@main.command()
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMG...")
@run_options
@class_option()
@click.option("--check", is_flag=True, help="Say how good the latents are; costs four times the evaluations.")
@click.option("--exact", is_flag=True, help="Undo exactly what decoding with --solver, or with euler, will do.")
@click.option("--no-prompt", is_flag=True, help="Leave the texts that a pipeline is asked for out of the files.")
@output_option
@existing_options
def encode(
    run: Run,
    images: tuple[Path, ...],
    label: str | None,
    check: bool,
    exact: bool,
    no_prompt: bool,
    output: Path | None,
    existing: Existing,
) -> None:
    """Encode pictures to latent files, IMG.latent.pt.

    With --exact each step of a one-step decoder is undone by iteration, so that decoding gives back the picture. With
    --guidance above 1 encoding is unsure, and each latent is decoded to say what is lost.
    """
    failures = Failures()
    jobs = find_targets(images, output, ".latent.pt", existing, failures)
    session = run.session()
    request = Request(**run.wishes(session.model), exact=exact, label=label)
    for batch in session.encode_batches([path for path, _ in jobs], request, on_error=failures.report):
        warn(*batch.walk.notes)
        saved = []
        for encoded in batch:
            with failures.caught():
                latent = encoded.latent.without_prompt() if no_prompt else encoded.latent
                save(latent, jobs[encoded.index][1], overwrite=existing.overwrite)
                saved.append(encoded)
        found = lost = None
        with failures.caught(RuntimeError):  # by then the latents are saved
            found = batch.check() if check else None
            if batch.guided:
                lost = found.reconstruction_mse if found else batch.round_trip()
        for encoded in saved:
            name, target = encoded.latent.source.name, jobs[encoded.index][1]
            say(f"{name} -> {target} ({encoded.report(found)})")
            warn(*encoded.warnings(found, lost=lost))
    failures.exit()


@main.command()
@click.argument("pictures", type=PATH, metavar="FOLDER|ZIP|TAR|LIST")
@run_options
@class_option()
@click.option("-o", "--output", type=PATH, required=True, help="Folder for the shards; what is there is kept.")
@click.option(
    "--shard-size", type=click.IntRange(1, 1 << 20), default=256, show_default=True, help="Latents in a file."
)
@click.option(
    "--engine",
    type=click.Choice(sorted(ENGINES)),
    default=DEFAULT_ENGINE,
    show_default=True,
    help=f"Where to encode: {'; '.join(f'{name}, {kind.text}' for name, kind in sorted(ENGINES.items()))}.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Processes with a model each, on GPUs in turn; 0 is none but this one.",
)
@click.option(
    "--format",
    type=click.Choice(sorted(FORMATS)),
    help=f"Format of the shards. [default: that of those that are there, or {DEFAULT_FORMAT}]",
)
@click.option("--check", is_flag=True, help="Decode a few of the latents in the end, and say how pictures come back.")
def dataset(
    run: Run,
    pictures: Path,
    label: str | None,
    output: Path,
    shard_size: int,
    engine: str,
    workers: int,
    format: str | None,
    check: bool,
) -> None:
    """Encode a data set of pictures, named by a folder, a zip or tar file, or a text file, to shards of latents.

    Run it again to go on after an interruption, or with pictures that are new or changed: what is done stays. A latent
    of it is taken out, as a file, by 'take'.
    """
    from ddim_ode.session.dataset.check import CHECKED
    from ddim_ode.session.dataset.run import encode_dataset

    request = run.request(label=label)
    done = encode_dataset(
        pictures,
        output,
        run.opener(),
        request,
        shard_size=shard_size,
        engine=engine,
        workers=workers,
        format=format,
        check=CHECKED if check else 0,
    )
    if done.pictures:  # not of a rank that only served
        say(done.report())
    if line := done.failure():
        raise click.ClickException(line)


@main.command()
@click.argument("latents", type=PATH, metavar="DATASET")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@output_option
@existing_options
def take(latents: Path, names: tuple[str, ...], output: Path | None, existing: Existing) -> None:
    """Take latents out of a data set by the names of their pictures, as latent files, NAME.latent.pt, to decode.

    They lie in folders as their pictures do.
    """
    from ddim_ode.session.dataset.load import load_dataset

    failures = Failures()
    found, stems = load_dataset(latents), dict[str, Path]()
    for name in names:
        with failures.caught():
            stems[name] = found.stem(name)
    jobs = find_dataset_targets(stems, output, ".latent.pt", existing, failures, one=len(names) == 1)
    for name, target in jobs:
        with failures.caught():
            save(found[name], target, overwrite=existing.overwrite)
            say(f"{name} -> {target}")
    failures.exit()


@main.command()
@click.argument("latents", nargs=-1, required=True, type=PATH, metavar="LATENT...|DATASET")
@run_options
@class_option()
@click.option("--any-model", is_flag=True, help="Accept another model or schedule than the latent's own.")
@output_option
@existing_options
def decode(
    run: Run,
    latents: tuple[Path, ...],
    label: str | None,
    any_model: bool,
    output: Path | None,
    existing: Existing,
) -> None:
    """Decode latent files to pictures, NAME.decoded.png.

    Each is decoded with the solver, on the grid and as the class or the prompt that it was encoded with, unless the
    options name others, and in its own size. All of a data set are decoded where one is named, into folders as those of
    its pictures.
    """
    from ddim_ode.session.dataset.load import TEMPLATE, is_dataset, load_dataset

    failures = Failures()
    found = load_dataset(latents[0]) if len(latents) == 1 and is_dataset(latents[0]) else None
    groups: Iterable[tuple[Session, Iterable[Path | Latent], Sequence[Path]]]
    if found is not None:
        if not found:
            raise ValueError(f"there are no latents in '{latents[0]}'; 'manifest.jsonl' in it says why")
        stems = {name: found.stem(name) for name in found.names}
        jobs = find_dataset_targets(stems, output, ".decoded.png", existing, failures, one=False)
        of_found = (found[name] for name, _ in jobs)
        groups = [(run.session([found.folder / TEMPLATE]), of_found, [target for _, target in jobs])]
    else:
        paths = dict(find_targets(latents, output, ".decoded.png", existing, failures))
        sessions = run.sessions(list(paths), failures.report)
        groups = ((own, members, [paths[path] for path in members]) for own, members in sessions)
    with Writer(failures) as writer:
        for session, sources, targets in groups:
            request = Request(**run.wishes(session.model), label=label)
            for decoded in session.decode_all(sources, request, any_model=any_model, on_error=failures.report):
                warn_of(decoded.walk, decoded.member)
                target = targets[decoded.index]
                text = f"{decoded.latent.source.name} -> {target} ({decoded.report()})"
                writer.write(decoded.picture, target, text, overwrite=existing.overwrite)
    failures.exit()


@main.command()
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMG...")
@run_options
@class_option()
@click.option(
    "--target-psnr",
    type=float,
    metavar="DB",
    help="Find the fewest steps in which every picture comes back so well, of --solver or of a few good ones.",
)
@output_option
@existing_options
def reconstruct(
    run: Run,
    images: tuple[Path, ...],
    label: str | None,
    target_psnr: float | None,
    output: Path | None,
    existing: Existing,
) -> None:
    """Encode and decode pictures, print the errors, and save both side by side, IMG.reconstruction.png.

    A picture that comes back well does not make its latent a good one: see 'encode --check'.
    """
    failures = Failures()
    jobs = find_targets(images, output, ".reconstruction.png", existing, failures)
    session = run.session()
    request = Request(**run.wishes(session.model), label=label)
    if target_psnr is not None:
        jobs = [jobs[i] for i in session.readable([path for path, _ in jobs], on_error=failures.report)]
        if jobs:
            request = session.cheapest([path for path, _ in jobs], target_psnr, request, tried=say)
    with Writer(failures) as writer:
        for found in session.reconstruct_all([path for path, _ in jobs], request, on_error=failures.report):
            warn_of(found.there, found.member)
            warn_of(found.back, found.member)
            target = jobs[found.index][1]
            text = f"{found.name}: {found.report()} -> {target}"
            writer.write(found.picture, target, text, overwrite=existing.overwrite)
    failures.exit()


@main.command()
@click.option(
    "-n", "--count", type=click.IntRange(min=1), default=16, show_default=True, help="Number of images, of each class."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the latents.")
@click.option("--eta", type=click.FloatRange(0, 1), help="Noise in each step: from 0, DDIM, to 1, DDPM; no --solver.")
@click.option("--sigma-hat", is_flag=True, help="The larger noise of DDPM's other variance; no --solver.")
@run_options
@class_option(several=f"Several make a sheet with a row for each, of -n images; '{ALL_CLASSES}' is all of them.")
@click.option("-o", "--output", type=PATH, default=Path("samples.png"), show_default=True)
@overwrite_option
def sample(
    run: Run,
    count: int,
    seed: int,
    eta: float | None,
    sigma_hat: bool,
    labels: tuple[str, ...],
    output: Path,
    overwrite: bool,
) -> None:
    """Decode random latents to new images and save them as one sheet.

    With --eta or --sigma-hat the images come not through the ODE but with noise in each step, on the grid 'trailing'
    unless another is named.
    """
    from ddim_ode.images import check_image_path
    from ddim_ode.session.results import check_sheet, sheet

    check_image_path(output, overwrite=overwrite)
    session = run.session()
    every = labels == (ALL_CLASSES,) and ALL_CLASSES not in session.model.classes
    classes = session.model.classes if every else labels or (NO_CLASS,)
    if not classes:
        raise ValueError(f"model '{session.model.name}' knows no classes; leave --class out")
    columns = count if len(classes) > 1 else ceil(sqrt(count))
    check_sheet(len(classes) * count, session.model.space.shape)
    wanted = [name for name in classes for _ in range(count)]
    samples: list[Sample] = []
    wishes = run.wishes(session.model)
    for found in session.sample(len(wanted), seed=seed, eta=eta, sigma_hat=sigma_hat, label=wanted, **wishes):
        warn_of(found.walk, len(samples) % session.batch_size)
        samples.append(found)
    pictures = [found.picture for found in samples]
    settings = {**pictures[-1].settings, "class": None if len(classes) > 1 else labels[0] if labels else None}
    save(sheet(pictures, columns, {**settings, "classes": classes}), output, overwrite=overwrite)
    noisy = eta is not None or sigma_hat
    noise = f" and noise of eta {1 if eta is None else eta:g}{', sigma-hat' if sigma_hat else ''}" if noisy else ""
    say(f"{len(wanted)} images from seed {seed}{noise} -> {output} (last batch: {samples[-1].report()})")


@main.command()
@click.argument("inputs", nargs=-1, type=PATH, metavar="[IMG|LATENT]...")
@click.option("--seed", "seeds", type=click.IntRange(min=0), multiple=True, help="Seed of a random latent.")
@click.option("-n", "--count", type=click.IntRange(min=2), default=9, show_default=True, help="Images in a row.")
@run_options
@class_option(several="One for all, or one for each of the corners in their order; latents have their own.")
@click.option("--frames", type=PATH, metavar="FOLDER", help="Write each image there by itself.")
@click.option("-o", "--output", type=PATH, default=Path("interpolation.png"), show_default=True)
@overwrite_option
def interpolate(
    run: Run,
    inputs: tuple[Path, ...],
    seeds: tuple[int, ...],
    count: int,
    labels: tuple[str, ...],
    frames: Path | None,
    output: Path,
    overwrite: bool,
) -> None:
    """Decode the way from one latent to another, on a great circle, and save it as one strip.

    The way is between two pictures, latent files or --seed, or any of them mixed. Four make a sheet of --count rows,
    whose corners are upper left, upper right, lower left, lower right. Latent files are decoded on the grid of the
    first of them. Between corners of two classes lies some of both.
    """
    from ddim_ode.images import check_image_path
    from ddim_ode.session.corners import count_images
    from ddim_ode.session.results import check_sheet

    check_image_path(output, overwrite=overwrite)
    number = count_images(len(inputs) + len(seeds), count)
    session = run.session([path for path in inputs if path.suffix == ".pt"])
    check_sheet(number, session.model.space.shape)
    targets = find_frames(frames, number, output, overwrite) if frames else []
    check_outputs([output, *targets], inputs)
    label = labels[0] if len(labels) == 1 else labels or None
    found = session.interpolate(inputs, seeds=seeds, count=count, label=label, **run.wishes(session.model))
    warn(*found.there.notes, *found.back.notes)
    for picture, target in zip(found.pictures, targets, strict=False):
        save(picture, target, overwrite=overwrite)
    save(found.sheet, output, overwrite=overwrite)
    names = ", ".join(found.names)
    say(f"{number} images between {names} -> {output} (last batch: {found.report()})")


@main.command()
@click.argument("image", type=PATH, metavar="IMG")
@click.option(
    "--from",
    "own",
    metavar="CLASS|TEXT",
    help="What the picture shows: a class, or a pipeline's prompt. Default: none.",
)
@click.option("--to", required=True, metavar="CLASS|TEXT", help="What it should show.")
@click.option(
    "--strength",
    "strengths",
    type=float,
    multiple=True,
    default=(DEFAULT_STRENGTH,),
    show_default=True,
    help="How far up to encode, as a part of all timesteps; may be given several times.",
)
@run_options
@click.option("-o", "--output", type=PATH, help="Output file. [default: IMG.edit.png]")
@overwrite_option
def edit(
    run: Run,
    image: Path,
    own: str | None,
    to: str,
    strengths: tuple[float, ...],
    output: Path | None,
    overwrite: bool,
) -> None:
    """Make a picture of one class or prompt into one of another, and save what it was, came back as, and became.

    The picture is encoded as --from, without guidance, up to --strength, and decoded as --to with --guidance. The less
    strength, the more of it stays.
    """
    from ddim_ode.images import check_image_path

    target = output or image.with_name(f"{image.stem}.edit.png")
    check_image_path(target, overwrite=overwrite)
    check_outputs([target], [image])
    if run.prompt is not None:
        raise PlanError(
            "--prompt is of other commands; pass --from for what the picture shows, --to for what it should"
        )
    session = run.session()
    found = session.edit(image, to, strength=strengths, label=own, **run.wishes(session.model))
    for part in found.edits:
        warn(*part.there.notes, *part.back.notes)
        say(f"{found.name}: {part.report()}")
    save(found.strip, target, overwrite=overwrite)
    say(f"{found.name} from {found.own} to {found.to} -> {target}")


@main.command()
@click.argument("image", type=PATH, metavar="IMG")
@run_options
@class_option()
@click.option("-o", "--output", type=PATH, help="Output file. [default: IMG.trace.png]")
@overwrite_option
def trace(run: Run, image: Path, label: str | None, output: Path | None, overwrite: bool) -> None:
    """Draw the way of a picture to noise and back: what the network takes for it, and the error of each step."""
    from ddim_ode.analysis import figures, trace_plot
    from ddim_ode.files import write_file
    from ddim_ode.images import check_image_path

    target = output or image.with_name(f"{image.stem}.trace.png")
    check_image_path(target, overwrite=overwrite)
    check_outputs([target], [image])
    session = run.session()
    found = session.trace(image, Request(**run.wishes(session.model), label=label))
    warn(*found.there.notes, *found.back.notes)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, figures.png(trace_plot.plot(found), found.settings), overwrite=overwrite)
    say(f"{found.name} -> {target} ({found.report()})")


@main.command()
@model_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all of them.")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True, help="Port to listen on.")
@click.option("--seconds", type=click.IntRange(min=1), default=120, show_default=True, help="Most for a request.")
def page(run: Run, host: str, port: int, seconds: int) -> None:
    """Show a page in the browser: pictures there and back, between two, and edited. Needs the extra [page]."""
    from ddim_ode.page.app import serve

    serve(run.opener(), host=host, port=port, seconds=seconds)


@main.command()
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


@main.command()
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

    from ddim_ode.session.session import Session
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
    start = prepare(source, output, values, given, resume, unet, init, classes, skip_unreadable)
    settings, data = start.settings, start.data
    warn(*data.warnings())

    def save(model: Model, checkpoint: Checkpoint) -> None:
        session = Session(model, batch_size=settings.batch_size)
        shown = range(0, len(model.classes), ceil(len(model.classes) / PREVIEW_ROWS) or 1)
        columns = PREVIEW_OF_EACH if shown else PREVIEW_COLUMNS
        wanted = [model.classes[i] for i in shown for _ in range(columns)] or [NO_CLASS] * columns**2
        samples = session.sample(
            len(wanted), label=wanted, seed=settings.seed, steps=PREVIEW_STEPS, solver=DEFAULT_SOLVER
        )
        images = torch.stack([found.picture.image for found in samples])
        publish(model, checkpoint, data, output, samples=images, columns=columns)

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
        command: click.Command = import_module(f"ddim_ode.analysis.{module}").main
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, which imports none of the scripts."""
        with formatter.section("Analyses"):
            lines = [(name.replace("_", "-"), text) for name, text in sorted(ANALYSES.items())]
            formatter.write_dl([("all", "One report of most of these."), *lines])


@main.command(cls=Analyses)
def analyze() -> None:
    """Measure and plot: what solvers and models are good for."""


@main.command()
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


if __name__ == "__main__":
    main()
