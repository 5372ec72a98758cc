"""Euler in sigma against Euler in time: is DDIM's step better than that of the score SDE's ODE?

Both discretize the same flow. DDIM steps in sigma; the probability-flow ODE of the variance-preserving SDE, stepped in
its time, becomes in x_bar a step in sigma^2: dx_bar = eps d(sigma^2) / (2 sigma), with sigma where the step begins.
The paper expects the first to do better with few steps. Everything else is equal: network, grid, evaluations. Errors
are those of ``analysis.reconstruction``.

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, Section 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ddim_ode.spacings import GRIDS

from .figures import save_figure
from .options import (
    ModelChoice,
    count_option,
    errors_in_a_line,
    images_option,
    model_options,
    out_option,
    references_option,
    stride_option,
)
from .pictures import load_images
from .reconstruction import make_cases, run
from .reconstruction_plot import ReconstructionRow, plot
from .tables import markdown

SOLVERS = ("euler", "variance-euler")
STEPS = (5, 10, 20, 50, 100, 200)


def table(rows: Sequence[ReconstructionRow]) -> str:
    """Markdown: what each of the two loses, in the mean, and how far off its latents are."""
    lines = []
    found = {(row.grid, row.steps, row.solver): row for row in rows}
    for grid, steps in dict.fromkeys((row.grid, row.steps) for row in rows):
        pair = [found[grid, steps, solver] for solver in SOLVERS]
        cells = [f"{row.mse.mean:.2g}" for row in pair] + [f"{row.latent_rmse.mean:.2g}" for row in pair]
        lines.append([grid, steps, *cells])
    heads = ("grid", "steps", "round trip, MSE: in sigma", "in time", "latent, RMSE: in sigma", "in time")
    return markdown(heads, lines)


@click.command(help=__doc__.split("\n")[0])
@model_options
@click.option("--grid", "grids", type=click.Choice(sorted(GRIDS)), multiple=True, default=("quad", "log-snr"))
@click.option("--steps", type=click.IntRange(min=1), multiple=True, default=STEPS, show_default=True)
@images_option
@count_option()
@stride_option
@references_option
@out_option("euler_time")
@errors_in_a_line()
def main(
    model: ModelChoice,
    grids: tuple[str, ...],
    steps: tuple[int, ...],
    images: Path,
    count: int | None,
    stride: int,
    references: Path,
    out: Path,
) -> None:
    loaded = model.load()
    pixels, names = load_images(images, loaded, count)
    cases = make_cases(SOLVERS, grids, ("sigma-min",), (), steps)
    rows = run(loaded, pixels, names, cases, out, stride=stride, references=references)
    save_figure(plot(rows), out / "euler_time.png")
    click.echo(table(rows))


if __name__ == "__main__":
    main()
