"""One latent, decoded with more and more steps: DDIM's images agree in what they show, whatever the number of steps.

Each latent is decoded by one solver on one grid with every number of steps. The sheet has a row for each latent and a
column for each number of steps; the curve shows how far the images are from those of the most steps, as RMSE per
dimension, pixels in [0, 1].

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, Section 5.2 and Figure 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from matplotlib.figure import Figure
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from ddim_ode.codec import draw_latents
from ddim_ode.files import write_file
from ddim_ode.images import tile
from ddim_ode.models import Model
from ddim_ode.session.plan import plan_sampling
from ddim_ode.session.request import Request
from ddim_ode.spacings import GRIDS

from .codec import decode
from .figures import COLOURS, label_counts, save_figure, shade
from .options import FIXED_STEP, ModelChoice, errors_in_a_line, model_options, out_option, within
from .pictures import rms
from .rows import Results, describe
from .spread import Spread, spread
from .tables import markdown

STEPS = (10, 20, 50, 100, 1000)


@dataclass(frozen=True)
class ConsistencyRow:
    """The distance of images of ``steps`` steps from those of the most steps, over the latents."""

    steps: int
    rmse: Spread


def decode_each(model: Model, x_T: Tensor, steps: Sequence[int], solver: str, grid: str, path: Path) -> list[Tensor]:
    """The images of ``x_T``, ``(B, C, H, W)``, for each of ``steps``; kept in the file ``path``, where some may be."""
    images = load_file(path) if path.exists() else {}
    for count in tqdm([count for count in steps if str(count) not in images], desc="decode", disable=None):
        plan = plan_sampling(Request(solver, count, grid), model)
        images[str(count)] = decode(model.ode(), x_T, plan.grid, plan.solver)
        write_file(path, save(images), overwrite=True)
    return [images[str(count)] for count in steps]


def rows_of(images: Mapping[int, Tensor]) -> list[ConsistencyRow]:
    """A row for each number of steps but the largest, from the images by that number, each ``(B, C, H, W)``."""
    most = max(images)
    distances = {steps: rms(images[steps] - images[most]) / 2 for steps in images}
    return [ConsistencyRow(steps, spread(distances[steps])) for steps in sorted(images) if steps != most]


def plot(rows: Sequence[ConsistencyRow], most: int) -> Figure:
    """The distances against the steps."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    steps = [row.steps for row in rows]
    axes.loglog(steps, [row.rmse.mean for row in rows], "o-", color=COLOURS[0], label="mean, 95 % interval")
    axes.loglog(steps, [row.rmse.median for row in rows], ":", color=COLOURS[0], label="median, 95 % interval")
    for of in ("mean", "median"):
        shade(axes, steps, [row.rmse for row in rows], of, COLOURS[0])
    slope = [rows[0].rmse.mean * steps[0] / count for count in steps]
    axes.loglog(steps, slope, "--", color="0.5", linewidth=1, label="slope -1")
    label_counts(axes, steps)
    axes.set_xlabel("steps S")
    axes.set_ylabel(f"RMSE to the images of S = {most}, pixels in [0, 1]")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    return figure


def table(rows: Sequence[ConsistencyRow], most: int) -> str:
    """Markdown: a line for each number of steps."""
    lines = []
    for row in rows:
        found = row.rmse
        interval = f"{found.mean_low:.2g} to {found.mean_high:.2g}"
        lines.append([row.steps, f"{found.mean:.2g}", interval, f"{found.median:.2g}"])
    return markdown(["S", f"RMSE to S = {most}, mean", "95 % interval", "median"], lines, words=())


def sheet(images: Mapping[int, Tensor]) -> Figure:
    """A column of pictures for each number of steps, from the images by that number, each ``(B, C, H, W)``."""
    count = len(next(iter(images.values())))
    figure = Figure(figsize=(len(images), 0.4 + count), layout="constrained")
    for axes, (steps, of) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
        axes.imshow(((tile(of, columns=1) + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"S = {steps}", fontsize="medium")
        axes.axis("off")
    return figure


@click.command(help=__doc__.split("\n")[0])
@model_options
@click.option("--solver", type=click.Choice(FIXED_STEP), default="euler", show_default=True)
@click.option("--grid", type=click.Choice(sorted(GRIDS)), default="trailing", show_default=True)
@click.option("--steps", type=click.IntRange(min=1), multiple=True, help=f"[default: {', '.join(map(str, STEPS))}]")
@click.option("--count", type=click.IntRange(min=1), default=8, show_default=True, help="Latents.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@out_option("consistency")
@errors_in_a_line()
def main(model: ModelChoice, solver: str, grid: str, steps: tuple[int, ...], count: int, seed: int, out: Path) -> None:
    loaded = model.load()
    steps = steps or within(STEPS, loaded)
    if len(set(steps)) < 2:
        raise ValueError(f"one number of steps, {steps[0]}, has nothing to be compared with; give another --steps")
    x_T = draw_latents(count, loaded.space.shape, seed=seed)
    about = {**describe(loaded), "solver": solver, "grid": grid, "count": count, "seed": seed}
    results = Results(ConsistencyRow, out, about)
    if not results.rows:
        results.note()  # before there are images
    ordered = sorted(set(steps))
    images = decode_each(loaded, x_T, ordered, solver, grid, out / "images.safetensors")
    results.replace(rows_of(dict(zip(ordered, images, strict=True))))
    save_figure(sheet(dict(zip(ordered, images, strict=True))), out / "sheet.png")
    save_figure(plot(results.rows, ordered[-1]), out / "consistency.png")
    click.echo(table(results.rows, ordered[-1]))


if __name__ == "__main__":
    main()
