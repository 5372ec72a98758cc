"""Data sets of latents: made from pictures, and taken from."""

from __future__ import annotations

from pathlib import Path

import click

from ddim_ode.commands.outputs import PATH, existing_options, output_option
from ddim_ode.console import Existing, Failures, find_dataset_targets, save, say
from ddim_ode.session.dataset.engines import DEFAULT_ENGINE, ENGINES
from ddim_ode.session.dataset.formats import DEFAULT_FORMAT, FORMATS
from ddim_ode.session.options import Run, class_option, run_options


@click.command()
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


@click.command()
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
