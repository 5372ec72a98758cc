"""Encode real images, decode them again, and measure what is lost: DDIM's Table 2 for any solver and grid.

There are four figures, because a small reconstruction error does not make a good latent: leading errors of even order
cancel on the way back, and the identity makes none at all.

``mse``            reconstruction MSE per dimension, pixels in [0, 1].
``latent_rmse``    RMSE per dimension of x_T, which has about unit variance, against the reference latent of the same
                   image, clean end and noise level (``analysis.reference``).
``decode_mse``     like ``mse``, of what the reference latent is decoded to. The image is its exact decoding.
``second_moment``  of x_T: about 1 where the latent is such as random ones are. ``moment_error`` is how far off its
                   mean over the images is from that of the reference, |ratio - 1|.

Of all but ``moment_error`` there are mean, median and trimmed mean over the images, with bootstrap intervals. Cost is
counted in network evaluations (NFE) in one direction.

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, Section 5.4 and Table 2.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import inf
from pathlib import Path

import click
import torch
from torch import Tensor
from tqdm import tqdm

from ddim_ode.grids import CLEAN_ENDS, Grid
from ddim_ode.images import pixel_mse
from ddim_ode.models import Model
from ddim_ode.session.plan import plan_encoding
from ddim_ode.session.request import Request
from ddim_ode.solvers import SOLVERS, SolverError, way_back
from ddim_ode.spacings import GRIDS
from ddim_ode.work import load_json

from .codec import decode, encode
from .figures import save_figure
from .options import (
    FIXED_STEP,
    ModelChoice,
    batch_size_option,
    count_option,
    errors_in_a_line,
    images_option,
    model_options,
    out_option,
    references_option,
    steps_for,
    stride_option,
    within,
)
from .pictures import load_images, rms
from .reconstruction_plot import PAPER, Case, ReconstructionRow, plot, table
from .reference import REFERENCES, End, Reference, end_of, make_references
from .reference import SOLVER as REFERENCE_SOLVER
from .rows import Results, describe, load_rows
from .spread import spread


def measure(
    model: Model, images: Tensor, cases: Sequence[Case], references: Mapping[End, Reference], batch_size: int
) -> Iterator[ReconstructionRow]:
    """A row for each case, as soon as it is measured, on ``images``, ``(B, C, H, W)`` in [-1, 1]."""
    for case in tqdm(cases, desc="cases", disable=None):
        yield _measure(model, images, case, references, batch_size)


def _measure(
    model: Model, images: Tensor, case: Case, references: Mapping[End, Reference], batch_size: int
) -> ReconstructionRow:
    grid = _grid(model, case)
    begin = time.perf_counter()
    trips = [_round_trip(model, batch, case, grid) for batch in torch.split(images, batch_size)]
    seconds = time.perf_counter() - begin
    truth = references[end_of(grid)].x_T
    x_T, x_0 = (torch.cat(parts) for parts in zip(*(trip[:2] for trip in trips), strict=True))
    decoded = torch.cat([_decode(model, batch, case, grid) for batch in torch.split(truth, batch_size)])
    moments, true_moments = (latents.square().flatten(1).mean(1) for latents in (x_T, truth))
    return ReconstructionRow(
        model.name,
        len(images),
        case.solver,
        SOLVERS[case.solver].order,
        case.grid,
        case.clean_end,
        case.steps,
        trips[0][2],
        grid.sigma_T,
        seconds,
        spread(pixel_mse(images, x_0)),
        spread(rms(x_T - truth)),
        spread(pixel_mse(images, decoded)),
        spread(moments),
        float((moments.mean() / true_moments.mean() - 1).abs()),
    )


def _grid(model: Model, case: Case) -> Grid:
    """The grid of ``case`` in the schedule of ``model``; ValueError where there is none with as many steps."""
    request = Request(case.solver, case.steps, case.grid, case.clean_end)
    return plan_encoding(request, model).grid


def _decode(model: Model, x_T: Tensor, case: Case, grid: Grid) -> Tensor:
    """What the latents ``x_T``, ``(B, C, H, W)``, decode to."""
    try:
        return decode(model.ode(), x_T, grid, way_back(SOLVERS[case.solver]))
    except SolverError:
        return torch.full_like(x_T, inf)


def _round_trip(model: Model, batch: Tensor, case: Case, grid: Grid) -> tuple[Tensor, Tensor, int]:
    """The latents of ``batch``, ``(B, C, H, W)``, what they decode to, and the evaluations of one direction."""
    ode, solver = model.ode(), SOLVERS[case.solver]
    try:
        x_T = encode(ode, batch, grid, solver)
    except SolverError:
        lost = torch.full_like(batch, inf)
        return lost, lost, solver.nfe(case.steps) or 0
    return x_T, _decode(model, x_T, case, grid), ode.nfe


def run(
    model: Model,
    images: Tensor,
    names: Sequence[str],
    cases: Sequence[Case],
    folder: Path,
    *,
    stride: int = 1,
    references: Path = REFERENCES,
    batch_size: int = 16,
) -> list[ReconstructionRow]:
    """Measure the ``cases`` that have no row in ``folder`` yet, save each at once, and return all rows.

    ``images``      ``(B, C, H, W)`` in [-1, 1]; ``names`` are the names of their files.
    ``stride``      timesteps to a step of the reference, on average.
    ``references``  folder that keeps it.

    Raises:
        ValueError: if the folder has rows of another model or other images, or a grid of ``cases`` does not exist.
    """
    settings = {
        **describe(model, names, images),
        "reference": f"{REFERENCE_SOLVER}, timesteps to a step: {stride}",
        "seed": None,
    }
    results = Results(ReconstructionRow, folder, settings)
    known = {row.case for row in results.rows}
    missing = [case for case in cases if case not in known]
    if missing:
        ends = {end_of(_grid(model, case)) for case in missing}
        truth = make_references(model, images, ends, folder=references, stride=stride, batch_size=batch_size)
        accuracy = {f"{clean_end}, t = {t}": reference.accuracy for (clean_end, t), reference in truth.items()}
        results.note(reference_rmse={**results.settings.get("reference_rmse", {}), **accuracy})
        for row in measure(model, images, missing, truth, batch_size):
            results.add(row)
    return results.rows


def report(folder: Path) -> None:
    """Draw the rows in ``folder`` beside them and print the table.

    Raises:
        ValueError: if there are none.
    """
    rows = load_rows(ReconstructionRow, folder / "rows.csv")
    if not rows:
        raise ValueError(f"there are no rows in '{folder}' to plot; measure some first")
    settings = load_json(folder / "settings.json")
    accuracy = max(settings.get("reference_rmse", {}).values(), default=None)
    save_figure(plot(rows, accuracy), folder / "reconstruction.png")
    click.echo(table(rows))
    click.echo(f"\nplot: {folder / 'reconstruction.png'}   rows: {folder / 'rows.csv'}", err=True)


@click.command(help=__doc__.split("\n")[0])
@model_options
@click.option(
    "--solver",
    "solvers",
    type=click.Choice(FIXED_STEP),
    multiple=True,
    default=("euler", "heun"),
    show_default=True,
    help="May be given more than once, as may all the next four.",
)
@click.option(
    "--grid", "grids", type=click.Choice(sorted(GRIDS)), multiple=True, default=("linear",), show_default=True
)
@click.option(
    "--clean-end",
    "clean_ends",
    type=click.Choice(CLEAN_ENDS),
    multiple=True,
    help="[default: the grid's own, or sigma-min where the solver cannot reach 0]",
)
@click.option(
    "--nfe", "nfes", type=click.IntRange(min=1), multiple=True, help="Evaluations to pay for. [default: the paper's]"
)
@click.option(
    "--steps", type=click.IntRange(min=1), multiple=True, help="Steps, whatever they cost, beside or instead of --nfe."
)
@images_option
@count_option()
@batch_size_option
@stride_option
@references_option
@out_option("reconstruction")
@click.option("--plot-only", is_flag=True, help="Measure nothing.")
@errors_in_a_line()
def main(
    model: ModelChoice,
    solvers: tuple[str, ...],
    grids: tuple[str, ...],
    clean_ends: tuple[str, ...],
    nfes: tuple[int, ...],
    steps: tuple[int, ...],
    images: Path,
    count: int | None,
    batch_size: int,
    stride: int,
    references: Path,
    out: Path,
    plot_only: bool,
) -> None:
    if not plot_only:
        loaded = model.load()
        pixels, names = load_images(images, loaded, count)
        budgets = nfes or (() if steps else within(tuple(PAPER), loaded))
        cases = make_cases(solvers, grids, clean_ends, budgets, steps)
        run(loaded, pixels, names, cases, out, stride=stride, references=references, batch_size=batch_size)
    report(out)


def make_cases(
    solvers: Sequence[str], grids: Sequence[str], clean_ends: Sequence[str], nfes: Sequence[int], steps: Sequence[int]
) -> list[Case]:
    """Every combination, each once, the cheapest first; of no ``clean_ends`` each grid's own, where the solver reaches
    it."""
    cases = {
        Case(solver, grid, clean_end, count): None
        for solver, grid in product(solvers, grids)
        for clean_end in clean_ends or ("sigma-min" if SOLVERS[solver].positive else GRIDS[grid].clean_end,)
        for count in (*(steps_for(solver, nfe) for nfe in nfes), *steps)
    }
    return sorted(cases, key=lambda case: SOLVERS[case.solver].nfe(case.steps) or 0)


if __name__ == "__main__":
    main()
