"""How fast errors fall with the number of steps: the order of each solver, on paper and on the network.

Every solver goes up a short stretch of sigma in more and more equal steps of log sigma. Its order is the slope of its
error once steps are short. Errors are RMSE per dimension of x_bar.

``closed``    dx_bar/d(log sigma) = sin(x_bar), to the closed solution, from sigma = 0.5 to 1.
``network``   images with noise of the lowest sigma added, from one timestep of training to the next, to a walk of
              many steps. Over longer stretches there are no orders to see: t(sigma) has a kink at each timestep, and
              long steps jump over the network's waves in t. The network computes in float64, but for its sines of t,
              which diffusers computes in float32: their rounding is as far as one can see. Whatever the device of the
              model, that is done on the CPU, since some devices have no float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import inf, isnan, log
from pathlib import Path
from statistics import linear_regression

import click
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from ddim_ode.codec import draw_latents
from ddim_ode.models import Model
from ddim_ode.solvers import SOLVERS, SolverError

from .figures import COLOURS, MARKERS, label_counts, save_figure
from .options import (
    FIXED_STEP,
    ModelChoice,
    count_option,
    errors_in_a_line,
    images_option,
    model_options,
    out_option,
)
from .pictures import load_images
from .rows import Results, describe
from .tables import markdown

STEPS = {"closed": (2, 4, 8, 16, 32, 64), "network": (1, 2, 4, 8, 16, 32)}
REFERENCE_STEPS = 64
DEFAULT_SOLVERS = ("euler", "midpoint", "rk4", "ab3", "dpmpp3m", "reab3", "unipc3-bh2-data")
CLOSED_SIGMAS = (0.5, 1.0)
# Errors below are rounding: of float64, and of the sines of t.
ROUNDING = {"closed": 1e-13, "network": 3e-11}
FITTED = 3

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ConvergenceRow:
    """RMSE per dimension of x_bar at the upper end, of a solver of declared ``order``."""

    problem: str
    solver: str
    order: int
    steps: int
    error: float


def closed_field(sigma: Tensor, x_bar: Tensor) -> Tensor:
    """The slope sin(x_bar) / sigma of ``x_bar``, ``(B, ...)``: along it tan(x_bar / 2) grows like sigma, ``()``."""
    return x_bar.sin() / sigma


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


def missing(problem: str, solvers: Sequence[str], rows: Sequence[ConvergenceRow]) -> list[tuple[str, int]]:
    """The solvers and numbers of steps that ``rows`` lack of ``problem``."""
    known = {(row.solver, row.steps) for row in rows if row.problem == problem}
    return [(name, steps) for name in solvers for steps in STEPS[problem] if (name, steps) not in known]


def measure(problem: Problem, solvers: Sequence[str], results: Results[ConvergenceRow]) -> None:
    """Add a row for each solver and number of steps that ``results`` lacks; with a progress bar."""
    for name, steps in tqdm(missing(problem.name, solvers, results.rows), desc=problem.name, disable=None):
        try:
            with torch.no_grad():
                found = SOLVERS[name](problem.field, problem.start, stretch(*problem.sigmas, steps))
            error = float((found - problem.end).square().mean().sqrt())
        except SolverError:
            error = inf
        results.add(ConvergenceRow(problem.name, name, SOLVERS[name].order, steps, error))


def slope(rows: Sequence[ConvergenceRow]) -> float:
    """Minus the slope of log error over log steps, by least squares over the last ``FITTED`` errors above rounding.

    NaN where there are too few.
    """
    usable = [row for row in rows if ROUNDING[row.problem] < row.error < inf][-FITTED:]
    if len(usable) < FITTED:
        return float("nan")
    xs, ys = ([log(getattr(row, name)) for row in usable] for name in ("steps", "error"))
    return -linear_regression(xs, ys).slope


def table(rows: Sequence[ConvergenceRow]) -> str:
    """Markdown: declared order and measured slopes."""
    lines = []
    for name in dict.fromkeys(row.solver for row in rows):
        own = [row for row in rows if row.solver == name]
        slopes = [slope([row for row in own if row.problem == problem]) for problem in STEPS]
        cells = ["" if isnan(value) else f"{value:.2f}" for value in slopes]
        lines.append([name, own[0].order, *cells])
    return markdown(["solver", "order", "slope, closed solution", "slope, network"], lines)


def plot(rows: Sequence[ConvergenceRow]) -> Figure:
    """A panel for each problem, with lines of slope 1 to 4; of more curves than colours only the default ones."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2)
    names = list(dict.fromkeys(row.solver for row in rows))
    if len(names) > len(COLOURS):
        names = [name for name in names if name in DEFAULT_SOLVERS]
    for axes, (problem, counts) in zip(panels, STEPS.items(), strict=True):
        for i, name in enumerate(names):
            curve = [row for row in rows if (row.problem, row.solver) == (problem, name)]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            axes.loglog([row.steps for row in curve], [row.error for row in curve], label=name, **style)
        top = max(row.error for row in rows if row.problem == problem and row.solver in names and row.error < inf)
        for order in (1, 2, 3, 4):
            ends = [min(counts), max(counts)]
            line = [top * (steps / ends[0]) ** -order for steps in ends]
            axes.loglog(ends, line, "--", color="0.6", linewidth=1, zorder=0)
            axes.annotate(f" {order}", (ends[1], line[1]), color="0.4", va="center")
        axes.axhline(ROUNDING[problem], color="0.6", linewidth=1, linestyle="-.", label="rounding")
        axes.set_ylim(bottom=ROUNDING[problem] / 10)
        axes.set_title({"closed": "field with a closed solution", "network": "network, between two timesteps"}[problem])
        label_counts(axes, counts)
        axes.set_xlabel("steps")
        axes.set_ylabel("RMSE per dimension of x_bar")
        axes.grid(visible=True, which="major", alpha=0.3)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.08, 0.5))
    return figure


@click.command(help=__doc__.split("\n")[0])
@model_options
@click.option("--solver", "solvers", type=click.Choice(FIXED_STEP), multiple=True, default=DEFAULT_SOLVERS)
@click.option(
    "--timestep", "t", type=click.IntRange(min=0), default=10, show_default=True, help="Where the stretch begins."
)
@images_option
@count_option(2)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the noise on them.")
@out_option("convergence")
@errors_in_a_line()
def main(model: ModelChoice, solvers: tuple[str, ...], t: int, images: Path, count: int, seed: int, out: Path) -> None:
    loaded = model.load()
    if t > len(loaded.schedule) - 2:
        last = len(loaded.schedule) - 2
        raise ValueError(f"there is no stretch from timestep {t} to the next; choose --timestep from 0 to {last}")
    pixels, names = load_images(images, loaded, count)
    results = Results(ConvergenceRow, out, {**describe(loaded, names, pixels), "timestep": t, "seed": seed})
    run(loaded, pixels, t, solvers, seed, results)
    save_figure(plot(results.rows), out / "convergence.png")
    click.echo(table(results.rows))


def run(
    model: Model, images: Tensor, t: int, solvers: Sequence[str], seed: int, results: Results[ConvergenceRow]
) -> None:
    """Measure both problems, the network from timestep ``t`` on, with ``images``, ``(B, C, H, W)``, in [-1, 1]."""
    noise = draw_latents(len(images), (model.channels, model.height, model.width), seed=seed)
    low, high = CLOSED_SIGMAS
    start, end = 2 * noise.atan(), 2 * (noise * high / low).atan()
    measure(Problem("closed", closed_field, CLOSED_SIGMAS, start, end), solvers, results)
    if not missing("network", solvers, results.rows):
        return
    low, high = float(model.schedule.sigma(t)), float(model.schedule.sigma(t + 1))
    exact = replace(model, network=deepcopy(model.network).cpu().double())
    start = images.double() + low * noise
    with torch.no_grad():
        end = SOLVERS["rk4"](exact.ode(), start, stretch(low, high, REFERENCE_STEPS))
    measure(Problem("network", exact.ode(), (low, high), start, end), solvers, results)


if __name__ == "__main__":
    main()
