"""Decode the same latents with our solvers and with the schedulers of diffusers, and measure what each is off by.

The error is the RMSE per dimension, pixels in [-1, 1], to the image that the ODE solved with tiny steps makes of the
latent, at the clean end that the competitor stops at: sigma = 0, or the smallest sigma of training. diffusers'
schedulers are driven as its pipelines do it, on every spacing of timesteps they offer. Cost is counted in calls of the
network, by the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import click
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from ddim_ode.codec import draw_latents
from ddim_ode.grids import make_grid
from ddim_ode.models import Model
from ddim_ode.solvers import SOLVERS, SolverError

from .codec import decode
from .figures import COLOURS, label_counts, mark_accuracy, save_figure
from .options import (
    ModelChoice,
    errors_in_a_line,
    model_options,
    out_option,
    references_option,
    steps_for,
    stride_option,
)
from .pictures import rms
from .reference import SOLVER as REFERENCE_SOLVER
from .reference import decoded_references
from .rows import Results, describe
from .schedulers import decode_with_scheduler, schedulers
from .spread import Spread, spread
from .tables import markdown

BUDGETS = (5, 8, 10, 20)
FAMILIES = ("diffusers", "ddim-ode")
SEED = 0
OURS = ("dpmpp2m", "dpmpp3m", "unipc2-bh2-data", "unipc3-bh2-data", "reab2", "reab3", "abam3", "ipndm4", "midpoint")
OUR_GRIDS = ("log-snr", "karras", "quad")


@dataclass(frozen=True)
class DecodeErrorRow:
    """One competitor at one cost; errors are RMSE per dimension, pixels in [-1, 1], over the latents."""

    family: str
    name: str
    spacing: str
    budget: int
    nfe: int
    rmse: Spread


@dataclass(frozen=True)
class Competitor:
    """``run(budget)`` gives images ``(B, C, H, W)``, the clean end they are at, and the calls of the network."""

    family: str
    name: str
    spacing: str
    run: Callable[[int], tuple[Tensor, str, int]]


def competitors(model: Model, x_T: Tensor) -> Iterator[Competitor]:
    """Ours and theirs, for the latents ``x_T``, ``(B, C, H, W)``."""
    for name, grid in product(OURS, OUR_GRIDS):
        yield Competitor("ddim-ode", name, grid, partial(_ours, model, x_T, name, grid))
    for label, spacing, kind, options in schedulers():
        yield Competitor("diffusers", label, spacing, partial(decode_with_scheduler, model, x_T, kind, options))


def _ours(model: Model, x_T: Tensor, name: str, grid_name: str, budget: int) -> tuple[Tensor, str, int]:
    ode, solver = model.ode(), SOLVERS[name]
    grid = make_grid(model.schedule, grid_name, steps_for(name, budget), clean_end="sigma-min")
    return decode(ode, x_T, grid, solver), grid.clean_end, ode.nfe


def missing(
    model: Model, x_T: Tensor, known: Sequence[DecodeErrorRow], budgets: Sequence[int]
) -> list[tuple[Competitor, int]]:
    """Each competitor, for the latents ``x_T``, ``(B, C, H, W)``, and budget that has no row in ``known``."""
    done = {(row.family, row.name, row.spacing, row.budget) for row in known}
    return [
        (competitor, budget)
        for budget in budgets
        for competitor in competitors(model, x_T)
        if (competitor.family, competitor.name, competitor.spacing, budget) not in done
    ]


def measure(jobs: Sequence[tuple[Competitor, int]], references: Mapping[str, Tensor]) -> Iterator[DecodeErrorRow]:
    """A row for each competitor and budget, with an infinite error where it fails; shows progress.

    ``references``  images ``(B, C, H, W)`` by the clean end.
    """
    for competitor, budget in tqdm(jobs, desc="competitors", disable=None):
        try:
            images, clean_end, nfe = competitor.run(budget)
        except SolverError:
            images, clean_end, nfe = torch.full_like(references["zero"], torch.inf), "zero", budget
        rmse = rms(images - references[clean_end])
        yield DecodeErrorRow(
            competitor.family,
            competitor.name,
            competitor.spacing,
            budget,
            nfe,
            spread(rmse),
        )


def _best(rows: Sequence[DecodeErrorRow], family: str, budget: int) -> DecodeErrorRow:
    return min((row for row in rows if (row.budget, row.family) == (budget, family)), key=lambda row: row.rmse.mean)


def plot(rows: Sequence[DecodeErrorRow], accuracy: float) -> Figure:
    """The error of every competitor against its cost, and the best of either family.

    ``accuracy``  RMSE of the reference images to coarser ones; much below it an error says nothing.
    """
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.subplots()
    budgets = sorted({row.budget for row in rows})
    for family, colour, marker, shift in zip(FAMILIES, COLOURS, ("o", "s"), (0.98, 1.02), strict=False):
        found = [row for row in rows if row.family == family and row.rmse.mean < torch.inf]
        xs, ys = [row.nfe * shift for row in found], [row.rmse.mean for row in found]
        axes.loglog(xs, ys, marker, color=colour, markersize=4, alpha=0.5, label=f"each of {family}")
        best = [_best(rows, family, budget).rmse.mean for budget in budgets]
        axes.loglog(budgets, best, marker + "-", color=colour, label=f"best of {family}")
    mark_accuracy(axes, accuracy)
    label_counts(axes, budgets)
    axes.set_xlabel("calls of the network (NFE)")
    axes.set_ylabel("decode error: RMSE, pixels in [-1, 1]")
    axes.grid(visible=True, which="major", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def table(rows: Sequence[DecodeErrorRow]) -> str:
    """Markdown: for each budget the best of either family, and the error of ours in parts of theirs."""
    lines = []
    for budget in sorted({row.budget for row in rows}):
        best = [_best(rows, family, budget) for family in FAMILIES]
        cells = [cell for row in best for cell in (f"{row.name}, {row.spacing}", f"{row.rmse.mean:.4f}")]
        lines.append([budget, *cells, f"{best[1].rmse.mean / best[0].rmse.mean:.2f}"])
    return markdown(["NFE", "best of diffusers", "RMSE", "best of ours", "RMSE", "ratio"], lines, words=(1, 3))


@click.command(help=__doc__.split("\n")[0])
@model_options
@click.option("--nfe", "budgets", type=click.IntRange(min=2), multiple=True, default=BUDGETS, show_default=True)
@click.option("--count", type=click.IntRange(min=2), default=64, show_default=True, help="How many latents.")
@stride_option
@references_option
@out_option("decode_error")
@errors_in_a_line()
def main(model: ModelChoice, budgets: tuple[int, ...], count: int, stride: int, references: Path, out: Path) -> None:
    loaded = model.load()
    x_T = draw_latents(count, (loaded.channels, loaded.height, loaded.width), seed=SEED)
    settings = {
        **describe(loaded),
        "latents": count,
        "seed": SEED,
        "reference": f"{REFERENCE_SOLVER}, timesteps to a step: {stride}",
    }
    results = Results(DecodeErrorRow, out, settings)
    if jobs := missing(loaded, x_T, results.rows, budgets):
        truth = decoded_references(loaded, x_T, folder=references, stride=stride)
        results.note(reference_rmse=truth.accuracy)
        for row in measure(jobs, truth.at):
            results.add(row)
    accuracy = results.settings["reference_rmse"]
    save_figure(plot(results.rows, accuracy), out / "decode_error.png")
    click.echo(table(results.rows))
    click.echo(f"\nThe reference images differ by {accuracy:.2g} (RMSE) from those of steps twice as long.")


if __name__ == "__main__":
    main()
