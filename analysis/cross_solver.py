"""Encode with one solver and decode with another: whose latents mean what to whom.

A small error on the diagonal and a large one beside it say that a solver undoes its own mistakes, and that its latents
are its own affair. All solvers walk grids of one kind, in as many steps as the same number of
network evaluations each way pays for. Those that are made to undo another one only encode.

Errors are reconstruction MSE per dimension, pixels in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log10
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from ddim_ode.grids import Grid, make_grid
from ddim_ode.images import pixel_mse
from ddim_ode.models import Model
from ddim_ode.solvers import SOLVERS, SolverError
from ddim_ode.spacings import GRIDS

from .codec import decode, encode
from .figures import save_figure
from .options import (
    FIXED_STEP,
    ModelChoice,
    count_option,
    errors_in_a_line,
    images_option,
    model_options,
    out_option,
    steps_for,
)
from .pictures import load_images
from .rows import Results, describe
from .spread import Spread, spread
from .tables import markdown

DEFAULT_SOLVERS = ("euler", "ddim-inverse", "ddim-predicted", "midpoint", "ab2", "reab2", "dpmpp3m", "reversible-heun")


@dataclass(frozen=True)
class CrossSolverRow:
    """The error over the images, infinite where a solver left the finite numbers; ``nfe`` could be spent each way."""

    encoder: str
    decoder: str
    nfe: int
    mse: Spread


def run(
    model: Model, images: Tensor, names: Sequence[str], solvers: Sequence[str], grid_name: str, nfe: int, folder: Path
) -> list[CrossSolverRow]:
    """Measure the pairs that have no row in ``folder`` yet, save each at once, and return all rows. Shows progress.

    ``images``  ``(B, C, H, W)`` in [-1, 1]; ``names`` are the names of their files.

    Raises:
        ValueError: if the folder has rows of other settings.
    """
    results = Results(
        CrossSolverRow, folder, {**describe(model, names, images), "grid": grid_name, "nfe": nfe, "seed": None}
    )
    known = {(row.encoder, row.decoder) for row in results.rows}
    for encoder in tqdm(solvers, desc="encoders", disable=None):
        missing = [name for name in solvers if not SOLVERS[name].undoes and (encoder, name) not in known]
        x_T = _convert(model, images, encoder, _grid(model, grid_name, encoder, nfe), up=True) if missing else images
        for decoder in missing:
            decoded = _convert(model, x_T, decoder, _grid(model, grid_name, decoder, nfe), up=False)
            errors = pixel_mse(images, decoded).nan_to_num(inf, inf)
            results.add(CrossSolverRow(encoder, decoder, nfe, spread(errors)))
    return results.rows


def _grid(model: Model, name: str, solver: str, nfe: int) -> Grid:
    return make_grid(model.schedule, name, steps_for(solver, nfe), clean_end="sigma-min")


def _convert(model: Model, x: Tensor, solver: str, grid: Grid, *, up: bool) -> Tensor:
    try:
        return (encode if up else decode)(model.ode(), x, grid, SOLVERS[solver])
    except SolverError:
        return torch.full_like(x, inf)


def table(rows: Sequence[CrossSolverRow]) -> str:
    """Markdown: the trimmed mean of the error of every pair; a line for each encoder."""
    decoders = list(dict.fromkeys(row.decoder for row in rows))
    errors = {(row.encoder, row.decoder): f"{row.mse.trimmed:.2g}" for row in rows}
    lines = [
        [encoder, *(errors.get((encoder, decoder), "") for decoder in decoders)]
        for encoder in dict.fromkeys(row.encoder for row in rows)
    ]
    return markdown(["encoded with, decoded with:", *decoders], lines)


def plot(rows: Sequence[CrossSolverRow]) -> Figure:
    """The median error of every pair, as colours and as exponents of 10."""
    encoders, decoders = (list(dict.fromkeys(getattr(row, end) for row in rows)) for end in ("encoder", "decoder"))
    errors = {(row.encoder, row.decoder): row.mse.median for row in rows}
    shown = np.array([[_exponent(errors.get((a, b), inf)) for b in decoders] for a in encoders])
    figure = Figure(figsize=(2.5 + 0.75 * len(decoders), 1.8 + 0.5 * len(encoders)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="cividis_r", aspect="auto")
    middle = (np.nanmin(shown) + np.nanmax(shown)) / 2
    for (i, j), value in np.ndenumerate(shown):
        text = "lost" if np.isnan(value) else f"{value:.1f}"
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value > middle else "black")
    axes.set_xticks(range(len(decoders)), decoders, rotation=40, ha="right")
    axes.set_yticks(range(len(encoders)), encoders)
    axes.set_xlabel(f"decoded with, in {rows[0].nfe} NFE at most")
    axes.set_ylabel(f"encoded with, in {rows[0].nfe} NFE at most")
    figure.colorbar(image, label="log10 of the median MSE, pixels in [0, 1]")
    return figure


def _exponent(mse: float) -> float:
    return log10(max(mse, 1e-16)) if mse < inf else float("nan")


@click.command(help=__doc__.split("\n")[0])
@model_options
@click.option("--solver", "solvers", type=click.Choice(FIXED_STEP), multiple=True, default=DEFAULT_SOLVERS)
@click.option("--grid", type=click.Choice(sorted(GRIDS)), default="log-snr", show_default=True)
@click.option("--nfe", type=click.IntRange(min=2), default=20, show_default=True, help="Evaluations each way.")
@images_option
@count_option()
@out_option("cross_solver")
@errors_in_a_line()
def main(
    model: ModelChoice, solvers: tuple[str, ...], grid: str, nfe: int, images: Path, count: int | None, out: Path
) -> None:
    loaded = model.load()
    pixels, names = load_images(images, loaded, count)
    rows = run(loaded, pixels, names, solvers, grid, nfe, out)
    save_figure(plot(rows), out / "cross_solver.png")
    click.echo(table(rows))


if __name__ == "__main__":
    main()
