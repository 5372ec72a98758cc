"""How good a model is: its error in eps on test images, and how far its samples are from them.

``eps_mse``      mean squared error per dimension of the predicted eps, at evenly spaced timesteps, on the same test
                 images and noise for every model. That of v is (1 + sigma^2) times as large.
``frechet``      Frechet distance between samples and test images in the features of ``analysis.classifier``, which see
                 content and noise; with ``--inception`` the FID, where torch-fidelity and a network are at hand.
``wasserstein``  sliced Wasserstein distance between their pixels, in [-1, 1], which sees colour.
``accuracy``     the part of the samples that the classifier takes for the class that was asked for.

A model that knows CIFAR-10's classes is asked for each in turn, with each guidance of the options, and judged by class
too. Both distances are larger for fewer samples; the floor is that of as many training images. Samples are drawn by the
solver and grid of the options, by default DDIM with 50 steps, and kept, so that a killed run goes on. ``auto`` is what
the calibration of each model says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isnan, nan
from pathlib import Path

import click
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from ddim_ode.codec import decode, draw_latents
from ddim_ode.conditions import Condition
from ddim_ode.console import device_option
from ddim_ode.devices import find_device
from ddim_ode.images import save_image, tile, to_uint8
from ddim_ode.models import Model, load_model
from ddim_ode.session.plan import plan_sampling
from ddim_ode.session.request import Request
from ddim_ode.solvers import AUTO, SOLVERS
from ddim_ode.spacings import GRIDS
from ddim_ode.training.data import TrainingImages, read_training_images
from ddim_ode.training.objective import denoising_loss
from ddim_ode.work import load_tensors, save_tensors

from .classifier import CLASSES, SIZE, check_size
from .classifier import labels as folder_labels
from .families import table_of
from .figures import COLOURS, save_figure
from .frechet import frechet
from .options import errors_in_a_line, out_option
from .pictures import spread_over
from .recognition import ClassRow, accuracy, class_table, measure_classes
from .rows import Results, calibrated, pixels_digest
from .tables import markdown
from .timing import device_name

PROJECTIONS = 1000
SHEET = 100
CHUNK = 100
# As many parts of all timesteps has the table of errors.
ERROR_PARTS = 4


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
    accuracy: float = nan


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, and how its samples are drawn: of its classes in turn with ``guidance``, or of none if that is None."""

    model: Model
    label: str
    guidance: float | None = None

    @property
    def name(self) -> str:
        """What tables call its samples."""
        return self.label if self.guidance is None else f"{self.label}, guidance {self.guidance:g}"

    @property
    def file(self) -> str:
        """The same in the name of a file."""
        return self.label if self.guidance is None else f"{self.label}-guidance-{self.guidance:g}"

    def classes(self, count: int) -> Tensor:
        """The classes of ``count`` samples, one after another: ``(count,)``."""
        return torch.arange(count) % len(self.model.classes)


def measure_errors(model: Model, label: str, images: Tensor, *, seed: int, batch_size: int = 50) -> list[ErrorRow]:
    """A row for each of about fifty timesteps, evenly spread, on ``images``, ``(B, C, H, W)``, pixels in [-1, 1].

    The network is asked for no class.
    """
    noise = draw_latents(len(images), (model.channels, model.height, model.width), seed=seed).float()
    rows = []
    # Evenly spaced, so that their mean stands for that over all.
    spacing = max(1, len(model.schedule) // 50)
    for t in tqdm(range(spacing // 2, len(model.schedule), spacing), desc=f"eps of {label}", disable=None):
        with torch.no_grad():
            errors = [
                denoising_loss(
                    model.network,
                    table_of(model),
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
    subject: Subject, count: int, folder: Path, *, solver: str, grid: str | None, steps: int, seed: int
) -> Tensor:
    """``count`` images ``(count, C, H, W)``, uint8, as a PNG would hold them; kept in ``folder``, where some may be.

    Of no ``grid`` what the solver has by itself.
    """
    path, model = folder / f"samples-{subject.file}.pt", subject.model
    shape = model.space.shape
    done = list(torch.split(load_tensors(path, [(None, *shape)])[0], CHUNK)) if path.exists() else []
    x_T = draw_latents(count, shape, seed=seed)
    plan = plan_sampling(Request(solver, steps, grid), model)
    for i in tqdm(range(0, count, CHUNK), desc=f"samples of {subject.name}", disable=None):
        if i < len(done) * CHUNK:
            continue
        latents = x_T[i : i + CHUNK].float().to(model.device)
        conditions = None
        if subject.guidance is not None:
            numbers = subject.classes(count)[i : i + CHUNK].tolist()
            conditions = [Condition(number, subject.guidance) for number in numbers]
        images = decode(model.ode(conditions=conditions), latents, plan.grid, plan.solver, dtype=torch.float32)
        done.append(to_uint8(images.cpu()))
        save_tensors([torch.cat(done)], path)
    return torch.cat(done)[:count]


def sample_sheet(subject: Subject, samples: Tensor) -> Tensor:
    """The first hundred of ``samples``, ``(N, C, H, W)``, uint8, as one picture; of classes a row for each."""
    first = samples[:SHEET]
    if subject.guidance is not None:
        first = first[subject.classes(len(first)).argsort(stable=True)]
    return tile(first.float() / 127.5 - 1, columns=10)


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


def table(distances: Sequence[DistanceRow]) -> str:
    """Markdown: a line for the samples of each model and guidance, and one for training images."""
    heads = ("", "images", "Frechet", "recognized", "sliced Wasserstein", "colour shift", "contrast")
    lines = []
    for row in distances:
        recognized = "" if isnan(row.accuracy) else f"{row.accuracy:.1%}"
        cells = (row.what, row.count, f"{row.frechet:.3f}", recognized, f"{row.wasserstein:.4f}")
        lines.append([*cells, f"{row.colour_shift:.3f}", f"{row.contrast:.3f}"])
    return markdown(heads, lines)


def error_table(errors: Sequence[ErrorRow]) -> str:
    """Markdown: a line for each model with the error of eps in parts of the timesteps, and over all."""
    labels = list(dict.fromkeys(row.model for row in errors))
    last = max((row.t for row in errors), default=0)
    edges = [last * i / ERROR_PARTS for i in range(ERROR_PARTS)] + [inf]
    heads = ["eps-MSE, mean over t", *(f"t from {edge:.0f}" for edge in edges[:-1]), "all t"]
    lines = []
    for label in labels:
        curve = [(row.t, row.eps_mse) for row in errors if row.model == label]
        parts = [[e for t, e in curve if low <= t < high] for low, high in pairwise(edges)]
        lines.append([label, *(f"{sum(part) / max(len(part), 1):.4f}" for part in (*parts, [e for _, e in curve]))])
    return markdown(heads, lines)


def run(
    models: dict[str, Model],
    test: TrainingImages,
    train: TrainingImages | None,
    folder: Path,
    *,
    count: int,
    error_images: int,
    sampler: tuple[str, str | None, int],
    guidances: Sequence[float] = (),
    seed: int,
    inception: bool,
) -> tuple[list[ErrorRow], list[DistanceRow], list[ClassRow]]:
    """Measure all that ``folder`` does not hold yet, save it there, and return it.

    ``count``      of samples, and of the images they are compared with; ``error_images`` those for ``eps_mse``.
    ``sampler``    solver, grid, if it is not the solver's own, and steps.
    ``guidances``  those of models that know CIFAR-10's classes.

    Raises:
        ValueError: if there are fewer images than ``count``, or the folder holds other measurements.
    """
    _check(models, test, train, count, error_images)
    solver, grid, steps = sampler
    settings = {
        "models": {label: model.fingerprint for label, model in models.items()},
        "datasets": {
            images.name: f"{len(images.pixels)}, {pixels_digest(images.pixels)}" for images in (test, train) if images
        },
        "count": count,
        "error_images": error_images,
        "sampler": {"solver": solver, "grid": grid, "steps": steps},
        "guidances": list(guidances),
        "features": "Inception" if inception else "analysis.classifier",
        "seed": seed,
        "device": device_name(next(iter(models.values())).device),
        "torch": torch.__version__,
    }
    if solver == AUTO:
        settings["calibrated"] = {label: calibrated(model) for label, model in models.items()}
    errors = Results(ErrorRow, folder, settings, "errors.csv")
    distances = Results(DistanceRow, folder, settings, "distances.csv")
    classes = Results(ClassRow, folder, settings, "classes.csv")
    chosen = torch.tensor(spread_over(error_images, len(test.pixels)))
    x_0 = test.images(chosen, torch.zeros(error_images, dtype=torch.bool))
    members = spread_over(count, len(test.pixels))
    real, real_labels = test.pixels[members], _labels(test, members)

    def judge(what: str, images: Tensor, labels: Tensor | None) -> None:
        right = nan
        if labels is not None and real_labels is not None:
            right = accuracy(images, labels)
            by_class = measure_classes(what, images, labels, real, real_labels, inception=inception)
            classes.replace([*(row for row in classes.rows if row.what != what), *by_class])
        content, pixels = frechet(images, real, inception=inception), sliced_wasserstein(images, real, seed=seed)
        distances.add(DistanceRow(what, count, content, pixels, *colours(images, real), right))

    known = {row.what for row in distances.rows}
    if train and train.name not in known:
        members = spread_over(count, len(train.pixels))
        judge(train.name, train.pixels[members], _labels(train, members))
    for label, model in models.items():
        if label not in {row.model for row in errors.rows}:
            errors.replace([*errors.rows, *measure_errors(model, label, x_0, seed=seed)])
        for subject in subjects(model, label, guidances):
            if subject.name in known:
                continue
            samples = draw_samples(subject, count, folder, solver=solver, grid=grid, steps=steps, seed=seed)
            about = {**settings, "model": subject.name}
            sheet = folder / f"samples-{subject.file}.png"
            save_image(sample_sheet(subject, samples), sheet, settings=about, zoom=2, overwrite=True)
            judge(subject.name, samples, None if subject.guidance is None else subject.classes(count))
    return errors.rows, distances.rows, classes.rows


def _check(
    models: dict[str, Model], test: TrainingImages, train: TrainingImages | None, count: int, error_images: int
) -> None:
    for images in (test, *((train,) if train else ())):
        if len(images.pixels) < count:
            raise ValueError(
                f"'{images.name}' holds {len(images.pixels)} images, fewer than {count} as wanted; lower --count"
            )
    if len(test.pixels) < error_images:
        raise ValueError(f"'{test.name}' holds fewer than {error_images} images; lower --error-images")
    for model in models.values():
        check_size(model)


def _labels(data: TrainingImages, members: Sequence[int]) -> Tensor | None:
    """The classes of some of the images, ``(N,)``; None where their folders have the names of none."""
    try:
        return folder_labels(data)[members]
    except ValueError:
        return None


def subjects(model: Model, label: str, guidances: Sequence[float]) -> list[Subject]:
    """The ``model`` with each of the ``guidances``, if it knows the classes that samples are judged by."""
    if model.classes != CLASSES or not guidances:
        return [Subject(model, label)]
    return [Subject(model, label, guidance) for guidance in guidances]


@click.command(help=__doc__.split("\n")[0])
@click.argument("test_images", type=click.Path(path_type=Path, exists=True))
@click.option("--train", type=click.Path(path_type=Path, exists=True), help="Training images, for the floor.")
@click.option("--model", "names", multiple=True, default=("default",), show_default=True, help="One or several.")
@click.option("--count", type=click.IntRange(min=2), default=5000, show_default=True, help="Samples of each model.")
@click.option(
    "--guidance",
    "guidances",
    type=float,
    multiple=True,
    default=(0.0, 1.0, 2.0),
    show_default=True,
    help="Of models that know CIFAR-10's classes; several, one after another.",
)
@click.option("--error-images", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--solver", type=click.Choice([AUTO, *sorted(SOLVERS)]), default="euler", show_default=True)
@click.option("--grid", type=click.Choice(sorted(GRIDS)), show_default="trailing; of 'auto' its own")
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
    guidances: tuple[float, ...],
    error_images: int,
    solver: str,
    grid: str | None,
    steps: int,
    seed: int,
    inception: bool,
    device: str,
    out: Path,
) -> None:
    loaded = [load_model(name, device=find_device(device)) for name in names]
    models = {(model.folder or Path(model.name)).name: model for model in loaded}
    if len(models) < len(names):
        raise ValueError(f"two of the models have the same name: {', '.join(names)}; rename a folder")
    test = read_training_images(test_images, 3, SIZE, SIZE)
    real = read_training_images(train, 3, SIZE, SIZE) if train else None
    errors, distances, classes = run(
        models,
        test,
        real,
        out,
        count=count,
        error_images=error_images,
        sampler=(solver, grid or (None if solver == AUTO else "trailing"), steps),
        guidances=guidances,
        seed=seed,
        inception=inception,
    )
    save_figure(plot(errors), out / "errors.png")
    click.echo("\n\n".join([error_table(errors), table(distances), *([class_table(classes)] if classes else [])]))


if __name__ == "__main__":
    main()
