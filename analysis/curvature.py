"""Where the trajectory bends: how much each stretch of sigma asks of a solver, and where each grid puts its steps.

``bend``    the second derivative of the state y in the variable u that a solver steps in, |d2y/du2| (du/dl)^2 / |y|
            with l = log sigma, in two charts: x_bar over sigma itself, and the angle chart, y = x_bar / sqrt(sd^2 +
            sigma^2) over u = arctan(sigma / sd), which takes out of the flow what Gaussian data would do.
``error``   of one Euler step of a tenth of log sigma in each of the two, relative to the state. To leading order it is
            half the bend times the square of the step.

Both are root mean squares over pixels; mean and standard deviation over the images are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path

import click
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from ddim_ode.grids import make_grid
from ddim_ode.models import Model
from ddim_ode.session.trajectories import Trajectories, walk
from ddim_ode.solvers import ANGLE, SOLVERS, Chart
from ddim_ode.spacings import GRIDS

from .figures import COLOURS, save_figure
from .options import ModelChoice, count_option, errors_in_a_line, images_option, model_options, out_option
from .pictures import load_images, rms
from .rows import Results, describe
from .tables import markdown

STEP = 0.1  # of log sigma
GRID_STEPS = 20
TABLE_LINES = 10
CHARTS = ("sigma", "angle")


@dataclass(frozen=True)
class CurvatureRow:
    """What was found at one sigma in one chart."""

    chart: str
    sigma: float
    bend_mean: float
    bend_sd: float
    error_mean: float
    error_sd: float


def measure(model: Model, found: Trajectories, sigmas: Sequence[float], results: Results[CurvatureRow]) -> None:
    """Add the rows that ``results`` lacks, along ``found``; with a progress bar."""
    known = {(row.chart, row.sigma) for row in results.rows}
    cases = [(name, sigma) for sigma in sigmas for name in CHARTS if (name, sigma) not in known]
    for name, sigma in tqdm(cases, desc="curvature", disable=None):
        bend = _bend(model, found, sigma, ANGLE if name == "angle" else None)
        error = _step_error(model, found, sigma, "angle-euler" if name == "angle" else "euler")
        results.add(CurvatureRow(name, sigma, *_mean_and_sd(bend), *_mean_and_sd(error)))


def _bend(model: Model, found: Trajectories, sigma: float, chart: Chart | None) -> Tensor:
    """Central difference of the slope dy/du over STEP of log sigma, of each image relative to the state; ``(B,)``."""
    field = chart.pull_back(model.ode()) if chart else model.ode()
    us, slopes = [], []
    for level in (sigma / exp(STEP / 2), sigma * exp(STEP / 2)):
        us.append(chart.u(level) if chart else level)
        state = found.at(level) / (chart.scale(level) if chart else 1.0)
        with torch.no_grad():
            slopes.append(field(torch.tensor(us[-1], dtype=torch.float64), state))
    du_dl = sigma / chart.dsigma_du(chart.u(sigma)) if chart else sigma
    state = found.at(sigma) / (chart.scale(sigma) if chart else 1.0)
    return rms(slopes[1] - slopes[0]) / (us[1] - us[0]) * du_dl**2 / rms(state)


def _step_error(model: Model, found: Trajectories, sigma: float, solver: str) -> Tensor:
    """The error of one step of STEP around ``sigma``, for each image relative to its state; ``(B,)``."""
    grid = torch.tensor([sigma / exp(STEP / 2), sigma * exp(STEP / 2)], dtype=torch.float64)
    with torch.no_grad():
        reached = SOLVERS[solver](model.ode(), found.at(float(grid[0])), grid)
    end = found.at(float(grid[1]))
    return rms(reached - end) / rms(end)


def _mean_and_sd(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std(correction=0))


def plot(rows: Sequence[CurvatureRow], model: Model) -> Figure:
    """Bend, local error, and the nodes of every grid, over one axis of sigma."""
    figure = Figure(figsize=(8, 9), layout="constrained")
    figure.suptitle(
        f"mean over the images, standard deviation shaded; steps of {STEP:g} of log sigma", fontsize="medium"
    )
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 1))
    for axes, what, label in zip(
        panels,
        ("bend", "error"),
        ("bend,\nper (log sigma)²", "error of one Euler step,\nrelative to the state"),
        strict=False,
    ):
        for colour, name in zip(COLOURS, CHARTS, strict=False):
            curve = sorted((row for row in rows if row.chart == name), key=lambda row: row.sigma)
            xs = [row.sigma for row in curve]
            mean, sd = ([getattr(row, f"{what}_{part}") for row in curve] for part in ("mean", "sd"))
            axes.loglog(xs, mean, color=colour, label=f"chart: {name}")
            low = [max(m - s, m / 10) for m, s in zip(mean, sd, strict=True)]
            high = [m + s for m, s in zip(mean, sd, strict=True)]
            axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_ylabel(label)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    for i, name in enumerate(sorted(GRIDS)):
        nodes = [sigma for sigma in make_grid(model.schedule, name, GRID_STEPS).sigmas if sigma > 0]
        panels[2].plot(nodes, [i] * len(nodes), "|", color="black", markersize=9)
    panels[2].set_yticks(range(len(GRIDS)), sorted(GRIDS))
    panels[2].set_ylabel(f"nodes of {GRID_STEPS} steps")
    panels[2].set_xlabel("sigma")
    return figure


def table(rows: Sequence[CurvatureRow]) -> str:
    """Markdown: bend and error in each chart, means over the images, at some of the noise levels."""
    heads = ["sigma", *(f"{what}, {name}" for name in CHARTS for what in ("bend", "error"))]
    lines = []
    sigmas = sorted({row.sigma for row in rows})
    for sigma in sigmas[:: -(-len(sigmas) // TABLE_LINES)]:
        here = {row.chart: row for row in rows if row.sigma == sigma}
        cells = [f"{value:.2g}" for name in CHARTS for value in (here[name].bend_mean, here[name].error_mean)]
        lines.append([f"{sigma:.3g}", *cells])
    return markdown(heads, lines, words=())


def run(
    model: Model, images: Tensor, names: Sequence[str], points: int, reference_steps: int, folder: Path
) -> list[CurvatureRow]:
    """Measure what has no row in ``folder`` yet, at ``points`` noise levels along trajectories, and return all rows.

    ``images``  ``(B, C, H, W)`` in [-1, 1]; ``names`` are the names of their files.

    Raises:
        ValueError: if the folder has rows of other settings.
    """
    about = {**describe(model, names, images), "points": points, "reference_steps": reference_steps, "seed": None}
    results = Results(CurvatureRow, folder, about)
    if len(results.rows) == points * len(CHARTS):
        return results.rows
    fine = make_grid(model.schedule, "log-snr", reference_steps, clean_end="sigma-min")
    found = walk(model, images, fine, upward=True, batch_size=16, label="trajectories", names=names)
    low, high = fine.sigmas[0] * exp(STEP / 2), fine.sigma_T * exp(-STEP / 2)
    sigmas = [low * (high / low) ** (i / (points - 1)) for i in range(points)]
    measure(model, found, sigmas, results)
    return results.rows


@click.command(help=__doc__.split("\n")[0])
@model_options
@click.option("--points", type=click.IntRange(min=2), default=40, show_default=True, help="Noise levels.")
@click.option("--reference-steps", type=click.IntRange(min=10), default=200, show_default=True)
@images_option
@count_option(8)
@out_option("curvature")
@errors_in_a_line()
def main(model: ModelChoice, points: int, reference_steps: int, images: Path, count: int, out: Path) -> None:
    loaded = model.load()
    pixels, names = load_images(images, loaded, count)
    rows = run(loaded, pixels, names, points, reference_steps, out)
    save_figure(plot(rows, loaded), out / "curvature.png")
    click.echo(table(rows))


if __name__ == "__main__":
    main()
