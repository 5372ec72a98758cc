"""How much it takes to learn a solver, and what else it serves: other classes, other guidance, other weights.

A solver is learned from more and more random latents and as many real images, and judged on others, against
trajectories in small steps. Then what was learned under one condition, from as many as is usual, is judged under
others, and with --other on other weights of the same architecture. Errors are those of ``ddim_ode.session.material``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import click
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from ddim_ode.calibration import Entry, Learned
from ddim_ode.conditions import UNCONDITIONAL, Condition
from ddim_ode.console import device_option
from ddim_ode.files import write_file
from ddim_ode.grids import make_grid
from ddim_ode.models import DEFAULT_MODEL, Model
from ddim_ode.session.calibrate import calibrate, usual
from ddim_ode.session.learned import learned_solver
from ddim_ode.session.material import CLEAN_END, SCORES, WALKS, Effort, Material, gather, judge
from ddim_ode.session.trajectories import join
from ddim_ode.work import load_json

from .figures import COLOURS, MARKERS, label_counts, save_figure
from .options import ModelChoice, count_option, errors_in_a_line, images_option, out_option, references_option
from .pictures import CIFAR10_TRAIN, load_images
from .rows import Results, describe, pixels_digest
from .tables import markdown

# Not that of the latents which solvers are learned from.
SEED = 20
LATENTS = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class LearningRow:
    """What was learned under ``learned`` from so many ``latents``, judged under ``served``, with ``weights``.

    ``seconds``  that learning took.
    """

    learned: str
    served: str
    weights: str
    latents: int
    steps: int
    seconds: float
    decode: float
    latent: float
    round_trip: float


@dataclass(frozen=True)
class Bench:
    """A ``model``, and the test ``images``, ``(B, C, H, W)``, on which solvers for so many ``steps`` are judged."""

    model: Model
    images: Tensor
    steps: int
    walks: int
    folder: Path

    def effort(self, latents: int, seed: int = 0) -> Effort:
        """What learning from so many latents may cost."""
        return Effort(usual(self.model), (self.steps,), latents, seed=seed, walks=self.walks)

    def learn(self, latents: int, condition: Condition) -> tuple[Entry, float]:
        """What is learned under ``condition`` from half of so many ``latents`` and images, and the seconds it took."""
        images, _ = load_images(CIFAR10_TRAIN, self.model, min(latents, 32))
        folder = self.folder / f"{self.model.fingerprint[:12]}-{_plain(condition)}-{latents}-{self.steps}-{self.walks}"
        known, begin = folder / "seconds.json", time.perf_counter()
        try:
            (entry,) = calibrate(self.model, images, self.effort(latents), folder, condition=condition).entries
        finally:
            spent = load_json(known).get("seconds", 0.0) + time.perf_counter() - begin
            write_file(known, json.dumps({"seconds": spent}).encode(), overwrite=True)
        return entry, spent

    def material(self, model: Model, condition: Condition) -> Material:
        """The trajectories of as many latents as there are images, and of the images; all to judge by."""
        pixels = pixels_digest(self.images)
        folder = self.folder / f"truth-{model.fingerprint[:12]}-{_plain(condition)}-{len(self.images)}-{pixels}"
        folder.mkdir(parents=True, exist_ok=True)
        found = gather(model.bound(condition), self.images, self.effort(len(self.images), SEED), folder)
        return replace(
            found,
            latents=join([found.fit_latents, found.latents]),
            images=join([found.fit_images, found.images]),
        )

    def judged(self, entry: Entry, condition: Condition, model: Model) -> dict[str, float]:
        """The errors of an ``entry`` under ``condition``, on the weights of ``model``."""
        solver = learned_solver(entry.solver, entry.grid, entry.up, entry.down)
        return judge(model.bound(condition), self.material(model, condition), solver, entry.grid)


def _plain(condition: Condition) -> str:
    return f"{condition.label}-{condition.guidance:g}"


def _default(model: Model, steps: int) -> Entry:
    """What is taken where nothing is learned."""
    name, grid = usual(model)
    nodes = make_grid(model.schedule, grid, steps, clean_end=CLEAN_END)
    return Entry(name, nodes, Learned(), Learned(), {})


@dataclass(frozen=True)
class Task:
    """One row: what was learned under a condition, None for nothing, and what it is judged under, on which weights."""

    learned: Condition | None
    served: Condition
    latents: int
    model: Model

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The first columns of the row."""
        return (str(self.learned or "nothing"), str(self.served), self.model.name, self.latents)


def tasks(model: Model, counts: Sequence[int], conditions: Sequence[Condition], other: Model | None) -> list[Task]:
    """From ``counts`` of latents under the first of ``conditions``; and from as many as is usual under each of them.

    ``other``  weights of the same architecture on which what was learned under the first is judged too.
    """
    first, many = conditions[0], min(Effort.latents, max(counts))
    found = [Task(None, condition, 0, model) for condition in conditions]
    found += [Task(first, first, count, model) for count in counts]
    if other:
        found += [Task(None, first, 0, other), Task(first, first, many, other)]
    found += [Task(learned, served, many, model) for learned in conditions for served in conditions]
    return list(dict.fromkeys(found))


def measure(bench: Bench, missing: Sequence[Task], results: Results[LearningRow]) -> None:
    """Add a row for each of the ``missing`` tasks to ``results``; with a progress bar."""
    learn = cache(bench.learn)  # what serves several conditions is learned, and timed, once
    for task in tqdm(missing, desc="tasks", disable=None):
        entry, seconds = _default(bench.model, bench.steps), 0.0
        if task.learned is not None:
            entry, seconds = learn(task.latents, task.learned)
        errors = bench.judged(entry, task.served, task.model)
        learned, served, weights, latents = task.key
        decode, latent, round_trip = (errors[name] for name in SCORES[:3])
        results.add(LearningRow(learned, served, weights, latents, bench.steps, seconds, decode, latent, round_trip))


def plot(rows: Sequence[LearningRow]) -> Figure:
    """The three errors against the latents that a solver was learned from, with the minutes it took."""
    first = next(row for row in rows if row.latents)
    curve = sorted(
        (row for row in rows if row.latents and _alike(row) == _alike(first)),
        key=lambda row: row.latents,
    )
    nothing = next(row for row in rows if not row.latents and _alike(row)[1:] == _alike(first)[1:])
    counts = [row.latents for row in curve]
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name, colour, marker in zip(SCORES[:3], COLOURS, MARKERS, strict=False):
        errors = [getattr(row, name) for row in curve]
        axes.loglog(counts, errors, marker + "-", color=colour, label=name.replace("_", " "))
        axes.axhline(getattr(nothing, name), color=colour, linewidth=1, linestyle="--")
    axes.plot([], [], color="0.4", linewidth=1, linestyle="--", label="nothing learned")
    label_counts(axes, counts)
    axes.set_xlabel("random latents, and as many images up to 32; half of them are fitted to")
    axes.set_ylabel(f"error in {first.steps} steps: RMSE per dimension")
    minutes = axes.secondary_xaxis("top")
    minutes.set_xticks(counts, [f"{row.seconds / 60:.1f} min" for row in curve])
    minutes.set_xticks([], minor=True)
    axes.grid(visible=True, which="major", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _alike(row: LearningRow) -> tuple[str, str, str]:
    return (row.learned, row.served, row.weights)


def table(rows: Sequence[LearningRow]) -> str:
    """Markdown: what was learned where, what it serves, and its errors in parts of those where nothing is learned."""
    nothing = {(row.served, row.weights): row for row in rows if not row.latents}
    lines = []
    for row in rows:
        cells = [row.learned, row.served, row.weights, row.latents, f"{row.seconds / 60:.1f}"]
        for name in SCORES[:3]:
            value = getattr(row, name)
            cells.append(f"{value:.2g} ({value / getattr(nothing[row.served, row.weights], name):.2f})")
        lines.append(cells)
    errors = (name.replace("_", " ") for name in SCORES[:3])
    heads = ("learned under", "serves", "weights", "latents", "minutes", *errors)
    return markdown(heads, lines, words=(0, 1, 2))


@click.command(help=__doc__.split("\n")[0])
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Model folder or Hub name.")
@click.option("--other", help="Model of the same architecture with other weights.")
@device_option
@click.option("--steps", type=click.IntRange(min=2), default=8, show_default=True)
@click.option("--latents", type=click.IntRange(min=4), multiple=True, default=LATENTS, show_default=True)
@click.option("--walks", type=click.IntRange(min=0), default=WALKS, show_default=True, help="As 'calibrate' has it.")
@click.option("--class", "labels", multiple=True, help="Classes, besides none, under which it is learned and serves.")
@click.option("--guidance", type=float, multiple=True, help="Guidance towards the first of them, besides 1.")
@images_option
@count_option(32)
@references_option
@out_option("learning")
@errors_in_a_line()
def main(
    model: str,
    other: str | None,
    device: str,
    steps: int,
    latents: tuple[int, ...],
    walks: int,
    labels: tuple[str, ...],
    guidance: tuple[float, ...],
    images: Path,
    count: int,
    references: Path,
    out: Path,
) -> None:
    if guidance and not labels:
        raise click.UsageError("guidance is towards a class; name one with --class")
    loaded = ModelChoice(model, device).load()
    pixels, names = load_images(images, loaded, count)
    conditions = [UNCONDITIONAL, *(loaded.condition(label) for label in labels)]
    conditions += [loaded.condition(labels[0], guidance=w) for w in guidance]
    settings = {**describe(loaded, names, pixels), "seed": SEED, "steps": steps, "walks": walks}
    results = Results(LearningRow, out, settings)
    bench = Bench(loaded, pixels, steps, walks, references / "learning")
    wanted = tasks(loaded, sorted(latents), conditions, ModelChoice(other, device).load() if other else None)
    done = {(row.learned, row.served, row.weights, row.latents) for row in results.rows}
    measure(bench, [task for task in wanted if task.key not in done], results)
    save_figure(plot(results.rows), out / "learning.png")
    click.echo(table(results.rows))


if __name__ == "__main__":
    main()
