"""What accuracy costs: the error of the latent against network evaluations and seconds, for adaptive and fixed steps.

Adaptive solvers run over tolerances (relative and absolute ones equal), fixed-step ones over numbers of steps, all from
the smallest sigma of training up to the largest. The error is the RMSE per dimension of x_T to the reference latents.
Where steps are chosen for each sample, an evaluation counts for the samples it is made for: ``nfe`` is the mean over
the images.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import click
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from analysis.common import (
    CIFAR10_TEST,
    COLOURS,
    MARKERS,
    REFERENCES,
    Results,
    describe,
    load_images,
    save_figure,
    statistics,
)
from analysis.reference import make_references
from ddim_ode.codec import encode
from ddim_ode.grids import full_range, make_grid
from ddim_ode.models import DEFAULT_MODEL, Model, load_model
from ddim_ode.ode import EvaluationLimitError
from solvers import SOLVERS, SolverError, get_solver

CLEAN_END = "sigma-min"
ADAPTIVE = tuple(name for name, solver in SOLVERS.items() if solver.adaptive)
DEFAULT_ADAPTIVE = ("torchdiffeq-bosh3", "torchdiffeq-dopri5", "scipy-DOP853", "per-sample-bosh3")
DEFAULT_FIXED = ("euler", "dpmpp3m")
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
STEPS = (10, 20, 50, 100)


@dataclass(frozen=True)
class Row:
    """One solver at one setting: a tolerance, or a number of steps, and 0 for the other."""

    solver: str
    tolerance: float
    steps: int
    nfe: float
    seconds: float
    latent_rmse_mean: float
    latent_rmse_median: float
    latent_rmse_trimmed: float
    latent_rmse_low: float
    latent_rmse_high: float


def measure(
    model: Model,
    images: Tensor,
    settings: Sequence[tuple[str, float, int]],
    truth: Tensor,
    max_nfe: int,
    results: Results[Row],
) -> None:
    """Add a row for each (solver, tolerance, steps) that ``results`` lacks; with a progress bar.

    ``images`` and the latents ``truth`` are ``(B, C, H, W)``. Beyond ``max_nfe`` evaluations the error is infinite.
    """
    known = {(row.solver, row.tolerance, row.steps) for row in results.rows}
    for name, tolerance, steps in tqdm([s for s in settings if s not in known], desc="settings", disable=None):
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
        results.add(Row(name, tolerance, steps, seen[0] / len(images), seconds, *statistics(errors)))


def _count_samples(ode: torch.nn.Module) -> list[int]:
    """A list of one number: for how many samples, in all, the ODE has been evaluated."""
    seen = [0]

    def count(module: torch.nn.Module, arguments: tuple[Tensor, Tensor]) -> None:
        seen[0] += len(arguments[1])

    ode.register_forward_pre_hook(count)
    return seen


def plot(rows: Sequence[Row]) -> Figure:
    """Error against evaluations and against seconds; adaptive solvers in full lines, fixed steps dashed."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, cost, label in zip(
        panels, ("nfe", "seconds"), ("network evaluations of each image", "seconds"), strict=True
    ):
        for i, name in enumerate(dict.fromkeys(row.solver for row in rows)):
            curve = sorted((row for row in rows if row.solver == name), key=lambda row: row.nfe)
            xs, ys = [getattr(row, cost) for row in curve], [row.latent_rmse_median for row in curve]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            axes.loglog(xs, ys, linestyle="-" if curve[0].tolerance else "--", label=name, **style)
        axes.set_xlabel(label)
        axes.grid(visible=True, which="major", alpha=0.3)
    panels[0].set_ylabel("median RMSE of x_T to the reference")
    panels[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


@click.command(help=__doc__.split("\n")[0])
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Model folder or Hub name.")
@click.option("--adaptive", type=click.Choice(ADAPTIVE), multiple=True, default=DEFAULT_ADAPTIVE, show_default=True)
@click.option("--fixed", type=click.Choice(sorted(SOLVERS)), multiple=True, default=DEFAULT_FIXED, show_default=True)
@click.option("--tolerance", "tolerances", type=float, multiple=True, default=TOLERANCES, show_default=True)
@click.option("--images", type=click.Path(path_type=Path, exists=True, file_okay=False), default=CIFAR10_TEST)
@click.option("--count", type=click.IntRange(min=1), default=4, show_default=True, help="Images.")
@click.option("--max-nfe", type=click.IntRange(min=1), default=2000, show_default=True)
@click.option("--stride", type=click.IntRange(min=1), default=1, show_default=True, help="Of the reference.")
@click.option(
    "--references",
    type=click.Path(path_type=Path),
    default=REFERENCES,
    show_default=True,
    help="Folder that keeps the reference solutions.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo/work_precision"), show_default=True)
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
    try:
        loaded = load_model(model)
        pixels, names = load_images(images, loaded, count)
        about: Mapping[str, object] = {**describe(loaded, names), "stride": stride, "max_nfe": max_nfe, "seed": None}
        results = Results(Row, out, about)
        end = (CLEAN_END, len(loaded.schedule) - 1)
        truth = make_references(loaded, pixels, [end], folder=references, stride=stride)[end]
        settings = [(name, tolerance, 0) for name in adaptive for tolerance in tolerances]
        settings += [(name, 0.0, steps) for name in fixed for steps in STEPS]
        measure(loaded, pixels, settings, truth.x_T, max_nfe, results)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    save_figure(plot(results.rows), out / "work_precision.png")
    click.echo(f"{len(results.rows)} settings, reference accurate to {truth.accuracy:.2g} -> {out}")


if __name__ == "__main__":
    main()
