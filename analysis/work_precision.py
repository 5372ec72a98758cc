"""What accuracy costs: the error of the latent against network evaluations and seconds, for adaptive and fixed steps.

Adaptive solvers run over tolerances (relative and absolute ones equal), fixed-step ones over numbers of steps, all from
the smallest sigma of training up to the largest. The error is the RMSE per dimension of x_T to the reference latents.
Where steps are chosen for each sample, an evaluation counts for the samples it is made for: ``nfe`` is the mean over
the images; ``seconds`` is for all of them together. Adaptive solvers step in their own charts. The pair of methods that
there is with steps for the batch and with steps for each sample is measured in the same chart, too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import click
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor
from tqdm import tqdm

from ddim_ode.grids import full_range, make_grid
from ddim_ode.models import Model
from ddim_ode.ode import EvaluationLimitError
from ddim_ode.solvers import SOLVERS, AdaptiveSolver, Solver, SolverError

from .codec import encode
from .figures import COLOURS, MARKERS, draw_slopes, label_counts, mark_accuracy, round_counts, save_figure
from .options import (
    FIXED_STEP,
    ModelChoice,
    count_option,
    errors_in_a_line,
    images_option,
    model_options,
    out_option,
    references_option,
    stride_option,
)
from .pictures import load_images, rms
from .reference import make_references
from .rows import Results, describe
from .spread import Spread, spread
from .tables import markdown
from .timing import machine

CLEAN_END = "sigma-min"
ADAPTIVE = {name: solver for name, solver in SOLVERS.items() if isinstance(solver, AdaptiveSolver)}
CHARTS = {solver.chart.name: solver.chart for solver in ADAPTIVE.values()}
DEFAULT_ADAPTIVE = ("torchdiffeq-bosh3", "torchdiffeq-dopri5", "scipy-DOP853", "per-sample-bosh3")
DEFAULT_FIXED = ("euler", "dpmpp3m")
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
STEPS = (10, 20, 50, 100)
# The orders whose slopes are drawn.
ORDERS = (1, 3)

# The same pair of methods, with steps for the batch and for each sample.
BY_BATCH, BY_SAMPLE = "torchdiffeq-bosh3", "per-sample-bosh3"


@dataclass(frozen=True)
class Setting:
    """A solver, in the chart of that name where it is adaptive, at a tolerance or with a number of steps; the other of
    the two is 0."""

    solver: str
    chart: str
    tolerance: float
    steps: int

    def make_solver(self) -> Solver:
        """The solver."""
        if not self.tolerance:
            return SOLVERS[self.solver]
        tolerance = self.tolerance
        return replace(ADAPTIVE[self.solver], rtol=tolerance, atol=tolerance, chart=CHARTS[self.chart])


@dataclass(frozen=True)
class WorkPrecisionRow:
    """One solver at one setting."""

    setting: Setting
    nfe: float
    seconds: float
    latent_rmse: Spread


def make_settings(adaptive: Sequence[str], tolerances: Sequence[float], fixed: Sequence[str]) -> list[Setting]:
    """The settings for all ``adaptive`` and ``fixed`` solvers."""
    pairs = [(name, ADAPTIVE[name].chart.name) for name in adaptive]
    if BY_BATCH in adaptive and BY_SAMPLE in adaptive:
        pairs.append((BY_BATCH, ADAPTIVE[BY_SAMPLE].chart.name))
    return [
        *(Setting(*pair, tolerance, 0) for pair in pairs for tolerance in tolerances),
        *(Setting(name, "", 0.0, steps) for name in fixed for steps in STEPS),
    ]


def missing(settings: Sequence[Setting], rows: Sequence[WorkPrecisionRow]) -> list[Setting]:
    """The ``settings`` that have no row yet."""
    known = {row.setting for row in rows}
    return [setting for setting in settings if setting not in known]


def measure(
    model: Model,
    images: Tensor,
    settings: Sequence[Setting],
    truth: Tensor,
    max_nfe: int,
    results: Results[WorkPrecisionRow],
) -> None:
    """Add a row for each of the ``settings`` that ``results`` lacks; with a progress bar.

    ``images`` and the latents ``truth`` are ``(B, C, H, W)``. Beyond ``max_nfe`` evaluations the error is infinite.
    """
    encode(model.ode(), images, make_grid(model.schedule, "log-snr", 1), SOLVERS["euler"])  # first calls are slower
    for setting in tqdm(missing(settings, results.rows), desc="settings", disable=None):
        solver = setting.make_solver()
        grid = (
            make_grid(model.schedule, "log-snr", setting.steps, clean_end=CLEAN_END)
            if setting.steps
            else full_range(model.schedule, clean_end=CLEAN_END)
        )
        ode = model.ode(max_nfe=max_nfe)
        seen = _count_samples(ode)
        begin = time.perf_counter()
        try:
            errors = rms(encode(ode, images, grid, solver) - truth)
        except (SolverError, EvaluationLimitError):
            errors = torch.full((len(images),), inf)
        seconds = time.perf_counter() - begin
        results.add(WorkPrecisionRow(setting, seen[0] / len(images), seconds, spread(errors)))


def _count_samples(ode: torch.nn.Module) -> list[int]:
    """A list of one number: for how many samples, in all, the ODE has been evaluated."""
    seen = [0]

    def count(module: torch.nn.Module, arguments: tuple[Tensor, Tensor]) -> None:
        seen[0] += len(arguments[1])

    ode.register_forward_pre_hook(count)
    return seen


def plot(rows: Sequence[WorkPrecisionRow], accuracy: float) -> Figure:
    """Error against evaluations and against seconds; adaptive solvers in full lines, fixed steps dashed.

    ``accuracy``  RMSE of the reference latents to coarser ones; much below it an error says nothing.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, cost, label in zip(
        panels, ("nfe", "seconds"), ("network evaluations of each image", "seconds, for all images"), strict=True
    ):
        for i, (name, chart) in enumerate(dict.fromkeys((row.setting.solver, row.setting.chart) for row in rows)):
            curve = [row for row in rows if (row.setting.solver, row.setting.chart) == (name, chart)]
            curve.sort(key=lambda row: row.nfe)
            xs, ys = [getattr(row, cost) for row in curve], [row.latent_rmse.median for row in curve]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            curve_label = f"{name}, {chart}" if chart else name
            axes.loglog(xs, ys, linestyle="-" if chart else "--", label=curve_label, **style)
        mark_accuracy(axes, accuracy)
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


def table(rows: Sequence[WorkPrecisionRow]) -> str:
    """Markdown: a line for each setting."""
    lines = []
    for row in rows:
        setting = row.setting
        cells = (setting.solver, setting.chart, f"{setting.tolerance or setting.steps:g}", f"{row.nfe:.0f}")
        lines.append([*cells, f"{row.seconds:.2g}", f"{row.latent_rmse.median:.2g}"])
    heads = ("solver", "chart", "tolerance or steps", "NFE", "seconds", "RMSE, median")
    return markdown(heads, lines, words=(0, 1))


@click.command(help=__doc__.split("\n")[0])
@model_options
@click.option(
    "--adaptive", type=click.Choice(list(ADAPTIVE)), multiple=True, default=DEFAULT_ADAPTIVE, show_default=True
)
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
    model: ModelChoice,
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
    loaded = model.load()
    pixels, names = load_images(images, loaded, count)
    about = {**describe(loaded, names, pixels), **machine(), "stride": stride, "max_nfe": max_nfe, "seed": None}
    results = Results(WorkPrecisionRow, out, about)
    settings = make_settings(adaptive, tolerances, fixed)
    if missing(settings, results.rows):
        end = (CLEAN_END, len(loaded.schedule) - 1)
        truth = make_references(loaded, pixels, [end], folder=references, stride=stride)[end]
        results.note(reference_rmse=truth.accuracy)
        measure(loaded, pixels, settings, truth.x_T, max_nfe, results)
    accuracy = results.settings["reference_rmse"]
    save_figure(plot(results.rows, accuracy), out / "work_precision.png")
    click.echo(table(results.rows))
    click.echo(f"\nThe reference latents differ by {accuracy:.2g} (RMSE) from those of steps twice as long.")


if __name__ == "__main__":
    main()
