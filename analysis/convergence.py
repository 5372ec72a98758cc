"""How fast errors fall with the number of steps: the order of each solver, on paper and on the network.

Every solver goes up a short stretch of sigma in more and more equal steps of log sigma; its error is the RMSE to a
walk of many steps. On a field with a known solution the slope is the order. On the network it is that only once steps
are shorter than a timestep of training: t(sigma) has a kink at each, and the network sees t through fast sines.

``network``   images with noise of the lowest sigma added, in x_bar.
``gaussian``  the field of data N(0, 0.1), which has a closed solution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, log, sqrt
from pathlib import Path
from statistics import linear_regression

import click
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from analysis.common import COLOURS, FIXED_STEP, MARKERS, Results, describe, label_counts, load_images, save_figure
from analysis.options import count_option, errors_in_a_line, images_option, model_option, out_option
from ddim_ode.codec import draw_latents
from ddim_ode.models import Model, load_model
from solvers import SOLVERS, SolverError

STEPS = (2, 4, 8, 16, 32, 64)
REFERENCE_STEPS = 256
DEFAULT_SOLVERS = ("euler", "midpoint", "rk4", "ab3", "dpmpp3m", "reab3", "unipc3-bh2-data")
# Not 1/4, of which the angle chart knows the solution.
VARIANCE = 0.1
# Of a state of order 1 in float64, after tens of steps.
ROUNDING = 1e-13
FITTED = 4

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """RMSE per dimension of x_bar at the upper end, of a solver of declared ``order``."""

    problem: str
    solver: str
    order: int
    steps: int
    error: float


def gaussian_field(sigma: Tensor, x_bar: Tensor) -> Tensor:
    """eps of data N(0, VARIANCE)."""
    return x_bar * float(sigma / (VARIANCE + sigma**2))


def stretch(low: float, high: float, steps: int) -> Tensor:
    """``steps`` equal steps of log sigma; float64, shape ``(steps + 1,)``."""
    return torch.logspace(log(low), log(high), steps + 1, base=torch.e, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Problem:
    """A field, and the states ``start`` and ``end``, ``(B, C, H, W)``, at the two ``sigmas`` of a stretch."""

    name: str
    field: Field
    sigmas: tuple[float, float]
    start: Tensor
    end: Tensor


def missing(problem: str, solvers: Sequence[str], rows: Sequence[Row]) -> list[tuple[str, int]]:
    """The solvers and numbers of steps that ``rows`` lack of ``problem``."""
    known = {(row.solver, row.steps) for row in rows if row.problem == problem}
    return [(name, steps) for name in solvers for steps in STEPS if (name, steps) not in known]


def measure(problem: Problem, solvers: Sequence[str], results: Results[Row]) -> None:
    """Add a row for each solver and number of steps that ``results`` lacks; with a progress bar."""
    for name, steps in tqdm(missing(problem.name, solvers, results.rows), desc=problem.name, disable=None):
        try:
            with torch.no_grad():
                found = SOLVERS[name](problem.field, problem.start, stretch(*problem.sigmas, steps))
            error = float((found - problem.end).square().mean().sqrt())
        except SolverError:
            error = inf
        results.add(Row(problem.name, name, SOLVERS[name].order, steps, error))


def slope(rows: Sequence[Row]) -> float:
    """Minus the slope of log error over log steps, by least squares over the last ``FITTED`` errors above rounding."""
    usable = [row for row in rows if ROUNDING < row.error < inf][-FITTED:]
    if len(usable) < FITTED:
        return float("nan")
    xs, ys = ([log(getattr(row, name)) for row in usable] for name in ("steps", "error"))
    return -linear_regression(xs, ys).slope


def table(rows: Sequence[Row]) -> str:
    """Markdown: declared order and measured slopes."""
    lines = ["| solver | order | slope, closed solution | slope, network |", "|---|---:|---:|---:|"]
    for name in dict.fromkeys(row.solver for row in rows):
        own = [row for row in rows if row.solver == name]
        slopes = [slope([row for row in own if row.problem == problem]) for problem in ("gaussian", "network")]
        lines.append(f"| {name} | {own[0].order} | {slopes[0]:.2f} | {slopes[1]:.2f} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row]) -> Figure:
    """A panel for each problem, with lines of slope 1 to 4; of more curves than markers only the default ones."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2)
    names = list(dict.fromkeys(row.solver for row in rows))
    if len(names) > len(MARKERS):
        names = [name for name in names if name in DEFAULT_SOLVERS]
    for axes, problem in zip(panels, ("gaussian", "network"), strict=True):
        for i, name in enumerate(names):
            curve = [row for row in rows if (row.problem, row.solver) == (problem, name)]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            axes.loglog([row.steps for row in curve], [row.error for row in curve], label=name, **style)
        top = max(row.error for row in rows if row.problem == problem and row.solver in names and row.error < inf)
        for order in (1, 2, 3, 4):
            ends = [min(STEPS), max(STEPS)]
            line = [top * (steps / ends[0]) ** -order for steps in ends]
            axes.loglog(ends, line, "--", color="0.6", linewidth=1, zorder=0)
            axes.annotate(f" {order}", (ends[1], line[1]), color="0.4", va="center")
        axes.set_title({"gaussian": "closed solution", "network": "network"}[problem])
        label_counts(axes, STEPS)
        axes.set_xlabel("steps")
        axes.set_ylabel("RMSE per dimension of x_bar")
        axes.grid(visible=True, which="major", alpha=0.3)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.08, 0.5))
    return figure


@click.command(help=__doc__.split("\n")[0])
@model_option
@click.option("--solver", "solvers", type=click.Choice(FIXED_STEP), multiple=True, default=DEFAULT_SOLVERS)
@click.option("--sigma", "ends", type=float, nargs=2, default=(0.5, 0.7), show_default=True, help="The stretch.")
@images_option
@count_option(2)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the noise on them.")
@out_option("convergence")
@errors_in_a_line()
def main(
    model: str, solvers: tuple[str, ...], ends: tuple[float, float], images: Path, count: int, seed: int, out: Path
) -> None:
    check_ends(ends)
    loaded = load_model(model)
    pixels, names = load_images(images, loaded, count)
    results = Results(Row, out, {**describe(loaded, names), "sigma": list(ends), "seed": seed})
    run(loaded, pixels, ends, solvers, seed, results)
    save_figure(plot(results.rows), out / "convergence.png")
    click.echo(table(results.rows))


def check_ends(ends: tuple[float, float]) -> None:
    """Whether steps of log sigma lead from the one to the other.

    Raises:
        ValueError: if they do not.
    """
    if not 0 < min(ends) < max(ends) < inf:
        given = " ".join(f"{sigma:g}" for sigma in ends)
        raise ValueError(f"--sigma must be two different numbers above 0, but it is {given}; try --sigma 0.5 0.7")


def run(
    model: Model, images: Tensor, ends: tuple[float, float], solvers: Sequence[str], seed: int, results: Results[Row]
) -> None:
    """Both problems; ``images`` are ``(B, C, H, W)``, pixels in [-1, 1]."""
    noise = draw_latents(len(images), (model.channels, model.height, model.width), seed=seed)
    exact = noise * sqrt((VARIANCE + ends[1] ** 2) / (VARIANCE + ends[0] ** 2))
    measure(Problem("gaussian", gaussian_field, ends, noise, exact), solvers, results)
    if not missing("network", solvers, results.rows):
        return
    noisy = images.double() + ends[0] * noise
    with torch.no_grad():
        end = SOLVERS["rk4"](model.ode(), noisy, stretch(*ends, REFERENCE_STEPS))
    measure(Problem("network", model.ode(), ends, noisy, end), solvers, results)


if __name__ == "__main__":
    main()
