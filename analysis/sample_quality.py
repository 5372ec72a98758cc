"""Samples with few steps and with noise: how far from real images, and how long they take. DDIM's Table 1 and Figure 4.

``frechet``  distance of ``count`` samples from the test images of CIFAR-10 (``analysis.frechet``). It is larger for
             fewer samples, alike for all: only differences within a run mean something. The paper's FID, in Inception's
             features, of 50,000 samples and its own model, is beside it in the table.
``seconds``  for all samples; ``network_seconds`` of that in the network.

Samples are drawn on one grid down to sigma = 0, from the same latents for every eta.

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, Section 5.1, Table 1 and Figure 4.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import click
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor
from tqdm import tqdm

from ddim_ode.ancestral import Ancestral, seeded_noise
from ddim_ode.codec import decode, draw_latents
from ddim_ode.grids import make_grid
from ddim_ode.images import to_uint8
from ddim_ode.models import Model
from ddim_ode.spacings import GRIDS

from .classifier import check_size
from .figures import COLOURS, MARKERS, label_counts, save_figure
from .frechet import frechet_to_test
from .options import ModelChoice, errors_in_a_line, model_options, out_option, within
from .rows import Results, describe
from .tables import markdown
from .timing import Stopwatch, machine

SIGMA_HAT = "sigma-hat"
ETAS = ("0", "0.2", "0.5", "1", SIGMA_HAT)
STEPS = (10, 20, 50, 100)
BATCH = 50
# arXiv 2010.02502, Table 1: FID on CIFAR-10 by eta and S.
PAPER_STEPS = (10, 20, 50, 100, 1000)
PAPER = {
    "0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "1": (41.07, 18.36, 8.01, 5.78, 4.73),
    SIGMA_HAT: (367.43, 133.37, 32.72, 9.99, 3.17),
}


@dataclass(frozen=True)
class SampleQualityRow:
    """Samples of one eta, or of 'sigma-hat', with one number of steps."""

    eta: str
    steps: int
    frechet: float
    seconds: float
    network_seconds: float


def draw(model: Model, eta: str, steps: int, grid: str, count: int, seed: int) -> tuple[Tensor, float, float]:
    """``count`` samples, ``(count, C, H, W)``, uint8; the seconds they took, and those of them in the network."""
    shape = (model.channels, model.height, model.width)
    x_T = draw_latents(count, shape, seed=seed).float()
    ode = model.ode()
    nodes = make_grid(model.schedule, grid, steps, clean_end="zero")
    images = []
    begin = time.perf_counter()
    with Stopwatch(model.network) as watch:
        for i in range(0, count, BATCH):
            latents = x_T[i : i + BATCH].to(model.device)
            noise = seeded_noise(range(i, i + len(latents)), shape, seed=seed)
            walk = Ancestral(noise, 1.0 if eta == SIGMA_HAT else float(eta), eta == SIGMA_HAT)
            images.append(decode(ode, latents, nodes, walk, dtype=torch.float32).cpu())
    seconds = time.perf_counter() - begin
    return to_uint8(torch.cat(images)), seconds, watch.seconds


def measure(
    model: Model,
    etas: Sequence[str],
    steps: Sequence[int],
    grid: str,
    count: int,
    seed: int,
    results: Results[SampleQualityRow],
) -> None:
    """Add a row for each eta and number of steps that ``results`` lacks; with a progress bar."""
    known = {(row.eta, row.steps) for row in results.rows}
    cases = [(eta, S) for S, eta in product(steps, etas) if (eta, S) not in known]
    for eta, S in tqdm(cases, desc="samples", disable=None):
        pixels, seconds, network_seconds = draw(model, eta, S, grid, count, seed)
        results.add(SampleQualityRow(eta, S, frechet_to_test(pixels), seconds, network_seconds))


def table(rows: Sequence[SampleQualityRow]) -> str:
    """Markdown: the distance by eta and S, and in brackets the paper's FID."""
    steps = sorted({row.steps for row in rows})
    lines = []
    for eta in dict.fromkeys(row.eta for row in rows):
        found = {row.steps: f"{row.frechet:.2f}" for row in rows if row.eta == eta}
        paper = dict(zip(PAPER_STEPS, PAPER.get(eta, ()), strict=False))
        cells = [f"{found.get(S, '')}{f' ({paper[S]:g})' if S in paper else ''}" for S in steps]
        lines.append([eta, *cells])
    return "\n\n".join([markdown(["eta", *(f"S = {S}" for S in steps)], lines), _times(rows)])


def _times(rows: Sequence[SampleQualityRow]) -> str:
    """A table of the time by S, over all etas."""
    lines = []
    for S in sorted({row.steps for row in rows}):
        whole = sum(row.seconds for row in rows if row.steps == S)
        share = sum(row.network_seconds for row in rows if row.steps == S) / whole
        lines.append([S, f"{whole / sum(row.steps == S for row in rows):.3g}", f"{share:.1%}"])
    return markdown(["S", "seconds, for all samples", "in the network"], lines, words=())


def plot(rows: Sequence[SampleQualityRow], count: int) -> Figure:
    """The distance against the steps, a curve for each eta; and the time against the steps, with the network's part."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, eta in enumerate(dict.fromkeys(row.eta for row in rows)):
        curve = sorted((row for row in rows if row.eta == eta), key=lambda row: row.steps)
        label = eta if eta == SIGMA_HAT else f"eta = {eta}"
        xs, ys = [row.steps for row in curve], [row.frechet for row in curve]
        left.loglog(xs, ys, color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], label=label)
    steps = sorted({row.steps for row in rows})
    label_counts(left, steps)
    left.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_locator(NullLocator())
    left.set_ylabel(f"Frechet distance of {count} samples, classifier's features")
    left.legend()
    for name, label, colour in (("seconds", "all", COLOURS[0]), ("network_seconds", "network", COLOURS[1])):
        means = [sum(getattr(r, name) for r in rows if r.steps == S) / sum(r.steps == S for r in rows) for S in steps]
        right.plot(steps, [mean / count for mean in means], "o-", color=colour, label=label)
    right.set_xlim(left=0)
    right.set_xticks(steps)
    right.set_ylim(bottom=0)
    right.set_ylabel("seconds per sample")
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("steps S")
        axes.grid(visible=True, alpha=0.3)
    return figure


@click.command(help=__doc__.split("\n")[0])
@model_options
@click.option("--eta", "etas", type=click.Choice(ETAS), multiple=True, default=ETAS, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), multiple=True, help=f"[default: {', '.join(map(str, STEPS))}]")
@click.option("--grid", type=click.Choice(sorted(GRIDS)), default="trailing", show_default=True)
@click.option("--count", type=click.IntRange(min=2), default=1000, show_default=True, help="Samples of each kind.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@out_option("sample_quality")
@errors_in_a_line()
def main(
    model: ModelChoice, etas: tuple[str, ...], steps: tuple[int, ...], grid: str, count: int, seed: int, out: Path
) -> None:
    loaded = model.load()
    check_size(loaded)
    about = {**describe(loaded), **machine(), "grid": grid, "count": count, "seed": seed}
    results = Results(SampleQualityRow, out, about)
    measure(loaded, etas, steps or within(STEPS, loaded), grid, count, seed, results)
    save_figure(plot(results.rows, count), out / "sample_quality.png")
    click.echo(table(results.rows))


if __name__ == "__main__":
    main()
