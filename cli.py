"""The command line, ``ddim-ode COMMAND``, or ``python cli.py COMMAND`` in a clone. It parses, calls and reports.

Only click is imported here, and what is cheap of the project: torch and the rest come with the command that needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddim_ode import __version__
from ddim_ode.commands.analyze import analyze
from ddim_ode.commands.datasets import dataset, take
from ddim_ode.commands.info import info
from ddim_ode.commands.models import calibrate, export
from ddim_ode.commands.outputs import PATH, existing_options, output_option, overwrite_option
from ddim_ode.commands.train import train
from ddim_ode.conditions import NO_CLASS
from ddim_ode.console import (
    Existing,
    Failures,
    OneLineErrors,
    Writer,
    check_outputs,
    find_dataset_targets,
    find_frames,
    find_targets,
    save,
    say,
    warn,
    warn_of,
)
from ddim_ode.session.options import Run, class_option, model_options, promptless_options, run_options
from ddim_ode.session.request import DEFAULT_STRENGTH, Request

if TYPE_CHECKING:
    from ddim_ode.session.jobs import LatentLike
    from ddim_ode.session.results import Sample
    from ddim_ode.session.session import Session

ALL_CLASSES = "all"


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
    groups: Iterable[tuple[Session, Sequence[LatentLike], Sequence[Path]]]
    if found is not None:
        if not found:
            raise ValueError(f"there are no latents in '{latents[0]}'; 'manifest.jsonl' in it says why")
        stems = {name: found.stem(name) for name in found.names}
        jobs = find_dataset_targets(stems, output, ".decoded.png", existing, failures, one=False)
        of_found = [partial(found.__getitem__, name) for name, _ in jobs]
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
    save(found.sheet, output, overwrite=overwrite)
    for picture, target in zip(found.pictures, targets, strict=False):
        save(picture, target, overwrite=overwrite)
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
@promptless_options
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
    session = run.session()
    found = session.edit(image, to, strength=strengths, label=own, **run.wishes(session.model))
    for part in found.edits:
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


for command in (analyze, calibrate, dataset, export, info, take, train):
    main.add_command(command)


if __name__ == "__main__":
    main()
