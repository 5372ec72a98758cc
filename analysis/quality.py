"""How good a model is: its error in eps on test images, and how far its samples are from them.

``eps_mse``      mean squared error per dimension of the predicted eps, at evenly spaced timesteps, on the same test
                 images and noise for every model. That of v is (1 + sigma^2) times as large.
``frechet``      Frechet distance between samples and test images in the features of ``analysis.classifier``, which see
                 content and noise; with ``--inception`` the FID, where torch-fidelity and a network are at hand.
``wasserstein``  sliced Wasserstein distance between their pixels, in [-1, 1], which sees colour.

Both distances are larger for fewer samples; the floor is that of as many training images. Samples are drawn by the
solver and grid of the options, by default DDIM with 50 steps, and kept, so that a killed run goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from analysis.classifier import SIZE, check_size
from analysis.figures import COLOURS, save_figure
from analysis.frechet import frechet
from analysis.options import errors_in_a_line, out_option
from analysis.pictures import spread_over
from analysis.rows import Results
from analysis.tables import markdown
from ddim_ode.codec import decode, draw_latents
from ddim_ode.console import device_option
from ddim_ode.devices import find_device
from ddim_ode.images import save_image, tile, to_uint8
from ddim_ode.models import Model, load_model
from ddim_ode.session.plan import plan_sampling
from ddim_ode.session.request import Request
from ddim_ode.spacings import GRIDS
from ddim_ode.training.data import TrainingImages, read_training_images
from ddim_ode.training.objective import denoising_loss
from ddim_ode.work import load_tensors, save_tensors
from solvers import SOLVERS

PROJECTIONS = 1000
SHEET = 100
CHUNK = 100


@dataclass(frozen=True)
class ErrorRow:
    """The error of ``model`` at timestep ``t`` of noise level ``sigma``, mean over the images."""

    model: str
    t: int
    sigma: float
    eps_mse: float


@dataclass(frozen=True)
class DistanceRow:
    """How far ``count`` images of ``what``, a model's samples or training images, are from as many test images.

    ``colour_shift``  root mean square, over the channels, of the difference of the mean colours, pixels in [-1, 1].
    ``contrast``      standard deviation of the pixels, as a multiple of that of the test images.
    """

    what: str
    count: int
    frechet: float
    wasserstein: float
    colour_shift: float
    contrast: float


def measure_errors(model: Model, label: str, images: Tensor, *, seed: int, batch_size: int = 50) -> list[ErrorRow]:
    """A row for each of about fifty timesteps, evenly spread, on ``images``, ``(B, C, H, W)``, pixels in [-1, 1]."""
    noise = draw_latents(len(images), (model.channels, model.height, model.width), seed=seed).float()
    rows = []
    # Evenly spaced, so that their mean stands for that over all.
    spacing = max(1, len(model.schedule) // 50)
    for t in tqdm(range(spacing // 2, len(model.schedule), spacing), desc=f"eps of {label}", disable=None):
        with torch.no_grad():
            errors = [
                denoising_loss(
                    model.network,
                    model.schedule,
                    model.prediction,
                    x_0.to(model.device),
                    torch.full((len(x_0),), t, device=model.device),
                    z.to(model.device),
                    gamma="1",
                )
                for x_0, z in zip(torch.split(images, batch_size), torch.split(noise, batch_size), strict=True)
            ]
        rows.append(ErrorRow(label, t, float(model.schedule.sigma(t)), float(torch.cat(errors).mean())))
    return rows


def draw_samples(
    model: Model, label: str, count: int, folder: Path, *, solver: str, grid: str, steps: int, seed: int
) -> Tensor:
    """``count`` images ``(count, C, H, W)``, uint8, as a PNG would hold them; kept in ``folder``, where some may be."""
    path = folder / f"samples-{label}.pt"
    shape = model.space.shape
    done = list(torch.split(load_tensors(path, [(None, *shape)])[0], CHUNK)) if path.exists() else []
    x_T = draw_latents(count, shape, seed=seed)
    plan = plan_sampling(Request(solver, steps, grid), model)
    for i in tqdm(range(0, count, CHUNK), desc=f"samples of {label}", disable=None):
        if i < len(done) * CHUNK:
            continue
        latents = x_T[i : i + CHUNK].float().to(model.device)
        images = decode(model.ode(), latents, plan.grid, plan.solver, dtype=torch.float32)
        done.append(to_uint8(images.cpu()))
        save_tensors([torch.cat(done)], path)
    return torch.cat(done)[:count]


def sliced_wasserstein(a: Tensor, b: Tensor, *, seed: int) -> float:
    """Sliced 2-Wasserstein distance between as many images each, ``(N, C, H, W)``, uint8, on the scale [-1, 1].

    The root mean square, over random directions of the pixel space, of the distance between the projections.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = ((images.flatten(1).float() / 127.5 - 1) for images in (a, b))
    directions = torch.randn((PROJECTIONS, x.shape[1]), generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    gaps = [
        ((x @ chunk.T).sort(0).values - (y @ chunk.T).sort(0).values).square().mean()
        for chunk in torch.split(directions, 50)
    ]
    return float(torch.stack(gaps).mean().sqrt())


def colours(a: Tensor, b: Tensor) -> tuple[float, float]:
    """``colour_shift`` and ``contrast`` of a ``DistanceRow``, of ``a`` against ``b``, both ``(N, C, H, W)``, uint8."""
    x, y = ((images.transpose(0, 1).flatten(1).double() / 127.5 - 1) for images in (a, b))
    return float((x.mean(1) - y.mean(1)).square().mean().sqrt()), float(x.std() / y.std())


def plot(rows: Sequence[ErrorRow]) -> Figure:
    """The error of eps per timestep, a curve for each model."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for colour, label in zip(COLOURS, dict.fromkeys(row.model for row in rows), strict=False):
        curve = [row for row in rows if row.model == label]
        axes.semilogy([row.t for row in curve], [row.eps_mse for row in curve], "o-", color=colour, label=label)
    axes.set_xlabel("timestep t")
    axes.set_ylabel("MSE of eps per dimension, test images")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    return figure


def table(errors: Sequence[ErrorRow], distances: Sequence[DistanceRow]) -> str:
    """Markdown: a line for each model, and one for training images."""
    heads = ("", "eps-MSE, mean over t", "images", "Frechet", "sliced Wasserstein", "colour shift", "contrast")
    lines = []
    for row in distances:
        curve = [error.eps_mse for error in errors if error.model == row.what]
        mean = f"{sum(curve) / len(curve):.4f}" if curve else ""
        cells = (row.what, mean, row.count, f"{row.frechet:.3f}", f"{row.wasserstein:.4f}")
        lines.append([*cells, f"{row.colour_shift:.3f}", f"{row.contrast:.3f}"])
    return markdown(heads, lines)


def run(
    models: dict[str, Model],
    test: TrainingImages,
    train: TrainingImages | None,
    folder: Path,
    *,
    count: int,
    error_images: int,
    sampler: tuple[str, str, int],
    seed: int,
    inception: bool,
) -> tuple[list[ErrorRow], list[DistanceRow]]:
    """Measure all that ``folder`` does not hold yet, save it there, and return it.

    ``count``    of samples, and of the images they are compared with; ``error_images`` those for ``eps_mse``.
    ``sampler``  solver, grid and steps.

    Raises:
        ValueError: if there are fewer images than ``count``, or the folder holds other measurements.
    """
    for images in (test, *((train,) if train else ())):
        if len(images.pixels) < count:
            raise ValueError(
                f"'{images.name}' holds {len(images.pixels)} images, fewer than {count} as wanted; lower --count"
            )
    if len(test.pixels) < error_images:
        raise ValueError(f"'{test.name}' holds fewer than {error_images} images; lower --error-images")
    for model in models.values():
        check_size(model)
    solver, grid, steps = sampler
    settings = {
        "models": {label: model.fingerprint for label, model in models.items()},
        "datasets": {images.name: len(images.pixels) for images in (test, train) if images},
        "count": count,
        "error_images": error_images,
        "sampler": {"solver": solver, "grid": grid, "steps": steps},
        "features": "Inception" if inception else "analysis.classifier",
        "seed": seed,
    }
    errors = Results(ErrorRow, folder, settings, "errors.csv")
    distances = Results(DistanceRow, folder, settings, "distances.csv")
    chosen = torch.tensor(spread_over(error_images, len(test.pixels)))
    x_0 = test.images(chosen, torch.zeros(error_images, dtype=torch.bool))
    real = test.pixels[spread_over(count, len(test.pixels))]

    def add_distances(what: str, images: Tensor) -> None:
        content, pixels = frechet(images, real, inception=inception), sliced_wasserstein(images, real, seed=seed)
        distances.add(DistanceRow(what, count, content, pixels, *colours(images, real)))

    known = {row.what for row in distances.rows}
    if train and train.name not in known:
        add_distances(train.name, train.pixels[spread_over(count, len(train.pixels))])
    for label, model in models.items():
        if label not in {row.model for row in errors.rows}:
            errors.replace([*errors.rows, *measure_errors(model, label, x_0, seed=seed)])
        if label not in known:
            samples = draw_samples(model, label, count, folder, solver=solver, grid=grid, steps=steps, seed=seed)
            sheet = tile(samples[:SHEET].float() / 127.5 - 1, columns=10)
            about = {**settings, "model": label}
            save_image(sheet, folder / f"samples-{label}.png", settings=about, zoom=2, overwrite=True)
            add_distances(label, samples)
    return errors.rows, distances.rows


@click.command(help=__doc__.split("\n")[0])
@click.argument("test_images", type=click.Path(path_type=Path, exists=True))
@click.option("--train", type=click.Path(path_type=Path, exists=True), help="Training images, for the floor.")
@click.option("--model", "names", multiple=True, default=("default",), show_default=True, help="One or several.")
@click.option("--count", type=click.IntRange(min=2), default=5000, show_default=True, help="Samples of each model.")
@click.option("--error-images", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--solver", type=click.Choice(sorted(SOLVERS)), default="euler", show_default=True)
@click.option("--grid", type=click.Choice(sorted(GRIDS)), default="trailing", show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--inception", is_flag=True, help="FID in Inception's features; downloads their weights.")
@device_option
@out_option("quality")
@errors_in_a_line()
def main(
    test_images: Path,
    train: Path | None,
    names: tuple[str, ...],
    count: int,
    error_images: int,
    solver: str,
    grid: str,
    steps: int,
    seed: int,
    inception: bool,
    device: str,
    out: Path,
) -> None:
    models = {Path(name).name: load_model(name, device=find_device(device)) for name in names}
    if len(models) < len(names):
        raise ValueError(f"two of the models have the same name: {', '.join(names)}; rename a folder")
    test = read_training_images(test_images, 3, SIZE, SIZE)
    real = read_training_images(train, 3, SIZE, SIZE) if train else None
    errors, distances = run(
        models,
        test,
        real,
        out,
        count=count,
        error_images=error_images,
        sampler=(solver, grid, steps),
        seed=seed,
        inception=inception,
    )
    save_figure(plot(errors), out / "errors.png")
    click.echo(table(errors, distances))


if __name__ == "__main__":
    main()
