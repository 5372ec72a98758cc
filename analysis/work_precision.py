"""What accuracy costs: the error of the latent against network evaluations and seconds, for adaptive and fixed steps.

Adaptive solvers run over tolerances (relative and absolute ones equal), fixed-step ones over numbers of steps, all from
the smallest sigma of training up to the largest. The error is the RMSE per dimension of x_T to the reference latents.
Where steps are chosen for each sample, an evaluation counts for the samples it is made for: ``nfe`` is the mean over
the images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import click
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor
from tqdm import tqdm

from analysis.common import (
    COLOURS,
    FIXED_STEP,
    MARKERS,
    Results,
    describe,
    label_counts,
    load_images,
    round_counts,
    save_figure,
)
from analysis.options import (
    count_option,
    errors_in_a_line,
    images_option,
    model_option,
    out_option,
    references_option,
    stride_option,
)
from analysis.reconstruction_plot import draw_slopes
from analysis.reference import make_references
from analysis.spread import Spread, spread
from analysis.timing import machine
from ddim_ode.codec import encode
from ddim_ode.grids import full_range, make_grid
from ddim_ode.models import Model, load_model
from ddim_ode.ode import EvaluationLimitError
from solvers import SOLVERS, SolverError, get_solver

CLEAN_END = "sigma-min"
ADAPTIVE = tuple(name for name, solver in SOLVERS.items() if solver.adaptive)
DEFAULT_ADAPTIVE = ("torchdiffeq-bosh3", "torchdiffeq-dopri5", "scipy-DOP853", "per-sample-bosh3")
DEFAULT_FIXED = ("euler", "dpmpp3m")
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
STEPS = (10, 20, 50, 100)
# The orders whose slopes are drawn.
ORDERS = (1, 3)

# Solver, tolerance and steps; one of the last two is 0.
Setting = tuple[str, float, int]


@dataclass(frozen=True)
class Row:
    """One solver at one setting: a tolerance, or a number of steps, and 0 for the other."""

    solver: str
    tolerance: float
    steps: int
    nfe: float
    seconds: float
    latent_rmse: Spread


def missing(settings: Sequence[Setting], rows: Sequence[Row]) -> list[Setting]:
    """Those of the ``settings`` that have no row yet."""
    known = {(row.solver, row.tolerance, row.steps) for row in rows}
    return [setting for setting in settings if setting not in known]


def measure(
    model: Model,
    images: Tensor,
    settings: Sequence[Setting],
    truth: Tensor,
    max_nfe: int,
    results: Results[Row],
) -> None:
    """Add a row for each (solver, tolerance, steps) that ``results`` lacks; with a progress bar.

    ``images`` and the latents ``truth`` are ``(B, C, H, W)``. Beyond ``max_nfe`` evaluations the error is infinite.
    """
    encode(model.ode(), images, make_grid(model.schedule, "log-snr", 1), SOLVERS["euler"])  # first calls are slower
    for name, tolerance, steps in tqdm(missing(settings, results.rows), desc="settings", disable=None):
        solver = get_solver(name, rtol=tolerance, atol=tolerance) if tolerance else SOLVERS[name]
        grid = (
            make_grid(model.schedule, "log-snr", steps, clean_end=CLEAN_END)
            if steps
            else full_range(model.schedule, clean_end=CLEAN_END)
        )
        ode = model.ode(max_nfe=max_nfe)
        seen = _count_samples(ode)
        begin = time.perf_counter()
        try:
            errors = (encode(ode, images, grid, solver) - truth).square().flatten(1).mean(1).sqrt()
        except (SolverError, EvaluationLimitError):
            errors = torch.full((len(images),), inf)
        seconds = time.perf_counter() - begin
        results.add(Row(name, tolerance, steps, seen[0] / len(images), seconds, spread(errors)))


def _count_samples(ode: torch.nn.Module) -> list[int]:
    """A list of one number: for how many samples, in all, the ODE has been evaluated."""
    seen = [0]

    def count(module: torch.nn.Module, arguments: tuple[Tensor, Tensor]) -> None:
        seen[0] += len(arguments[1])

    ode.register_forward_pre_hook(count)
    return seen


def plot(rows: Sequence[Row], accuracy: float) -> Figure:
    """Error against evaluations and against seconds; adaptive solvers in full lines, fixed steps dashed.

    ``accuracy``  RMSE of the reference latents to coarser ones; below it an error says nothing.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, cost, label in zip(
        panels, ("nfe", "seconds"), ("network evaluations of each image", "seconds"), strict=True
    ):
        for i, name in enumerate(dict.fromkeys(row.solver for row in rows)):
            curve = sorted((row for row in rows if row.solver == name), key=lambda row: row.nfe)
            xs, ys = [getattr(row, cost) for row in curve], [row.latent_rmse.median for row in curve]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            axes.loglog(xs, ys, linestyle="-" if curve[0].tolerance else "--", label=name, **style)
        axes.axhline(accuracy, color="0.6", linewidth=1, linestyle="-.", label="the reference's own accuracy")
        axes.set_xlabel(label)
        axes.grid(visible=True, which="major", alpha=0.3)
    draw_slopes(panels[0], min(row.nfe for row in rows), {order: order for order in ORDERS})
    label_counts(panels[0], round_counts(row.nfe for row in rows))
    panels[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[1].xaxis.set_major_formatter("{x:g}")
    panels[1].xaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("median RMSE of x_T to the reference")
    panels[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


@click.command(help=__doc__.split("\n")[0])
@model_option
@click.option("--adaptive", type=click.Choice(ADAPTIVE), multiple=True, default=DEFAULT_ADAPTIVE, show_default=True)
@click.option("--fixed", type=click.Choice(FIXED_STEP), multiple=True, default=DEFAULT_FIXED, show_default=True)
@click.option(
    "--tolerance",
    "tolerances",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    default=TOLERANCES,
    show_default=True,
)
@images_option
@count_option(4)
@click.option("--max-nfe", type=click.IntRange(min=1), default=2000, show_default=True)
@stride_option
@references_option
@out_option("work_precision")
@errors_in_a_line()
def main(
    model: str,
    adaptive: tuple[str, ...],
    fixed: tuple[str, ...],
    tolerances: tuple[float, ...],
    images: Path,
    count: int,
    max_nfe: int,
    stride: int,
    references: Path,
    out: Path,
) -> None:
    loaded = load_model(model)
    pixels, names = load_images(images, loaded, count)
    about = {**describe(loaded, names), **machine(), "stride": stride, "max_nfe": max_nfe, "seed": None}
    results = Results(Row, out, about)
    settings: list[Setting] = [(name, tolerance, 0) for name in adaptive for tolerance in tolerances]
    settings += [(name, 0.0, steps) for name in fixed for steps in STEPS]
    if missing(settings, results.rows):
        end = (CLEAN_END, len(loaded.schedule) - 1)
        truth = make_references(loaded, pixels, [end], folder=references, stride=stride)[end]
        results.note(reference_rmse=truth.accuracy)
        measure(loaded, pixels, settings, truth.x_T, max_nfe, results)
    accuracy = results.settings["reference_rmse"]
    save_figure(plot(results.rows, accuracy), out / "work_precision.png")
    click.echo(f"{len(results.rows)} settings, reference accurate to {accuracy:.2g} -> {out}")


if __name__ == "__main__":
    main()
