"""What is gained over diffusers: images there and back, their latents, and few-step decoding.

Every line of the table sets a figure of ours against the best of its baselines on the same images or latents, none of
which ours were calibrated on. Ours is ``auto``, what this project takes by itself, and not what turned out best.

``round_trip``  images encoded and decoded: MSE per dimension, pixels in [0, 1].
``latent``      their latents: RMSE to those of the ODE, solved with small steps from the same clean end to the same
                noise level.
``moment``      the second moment of all latents: relative distance from that of the true ones.
``few``         ``round_trip`` of a few of the images, in more and more steps.
``two_states``  ``round_trip`` of a few of the images, both states of a reversible method rounded to float32 between.
``decode``      images of random latents: RMSE to those of the ODE, pixels in [-1, 1].
``screen``      the same of a few latents, by all of diffusers' schedulers on all their spacings. Those that are not far
                behind the best there are measured on all latents.

The baselines are diffusers' own scheduler objects: ``DDIMInverseScheduler`` with ``DDIMScheduler``, there and back also
``DPMSolverMultistepInverseScheduler`` with its own, and for decoding those that follow the ODE, on the spacings they
offer (``analysis.schedulers``). Our states are in float64; the network is in float32. What a calibration decides is
measured anew once it has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import inf
from pathlib import Path

import click
import torch
from torch import Tensor
from tqdm import tqdm

from ddim_ode.codec import draw_latents
from ddim_ode.grids import make_grid
from ddim_ode.images import pixel_mse
from ddim_ode.models import Model
from ddim_ode.session.plan import Plan, plan_encoding
from ddim_ode.session.request import Request
from ddim_ode.solvers import AUTO, DEFAULT_SOLVER, SOLVERS, ReversibleSolver, SolverError
from ddim_ode.spacings import DEFAULT_GRID, GRIDS

from .codec import decode, decode_solution, encode, encode_solution
from .comparison_plot import ComparisonRow, plot, table
from .figures import save_figure
from .options import (
    ModelChoice,
    batch_size_option,
    errors_in_a_line,
    images_option,
    model_options,
    out_option,
    references_option,
    steps_for,
    stride_option,
)
from .pictures import load_images, rms, spread_over
from .reference import End, decoded_references, end_of, make_references
from .rows import Results, calibrated, describe
from .schedulers import (
    decode_with_scheduler,
    schedulers,
    there_and_back_with_ddim,
    there_and_back_with_dpm_solver,
)
from .spread import spread

# Not that of the latents which solvers are calibrated on.
SEED = 20
BUDGETS = (10, 20, 50)
DECODE_BUDGETS = (5, 8, 10, 20)
PAIR_STEPS = (6, 10, 20)
# As many latents screen diffusers' schedulers; and what is "not far behind", in parts of the best mean.
SCREENED, CLOSE = 8, 1.5
# To find how many steps lose as little as DDIM in a thousand.
LADDER = (8, 10, 12, 15, 20, 25, 30, 40)
LONG = 1000
# Beside ``auto``, by solver and grid.
OURS = ((DEFAULT_SOLVER, DEFAULT_GRID), ("reab2", DEFAULT_GRID), ("euler", DEFAULT_GRID))
# Encoders for images that DDIM decodes.
FOR_DDIM = (*product(("ddim-inverse", "ddim-predicted"), ("trailing", DEFAULT_GRID)), ("exact-euler", DEFAULT_GRID))
FOR_DDIM_STEPS = 20
INVERSE_SPACINGS = ("trailing", "leading")
# Of DPM-Solver's inverse: the spacing where it loses least with the model that ships, and, for where it fails on that,
# an even one.
DPM_ORDERS, DPM_SPACINGS = (2, 3), ("exponential", "trailing")


@dataclass(frozen=True, eq=False)
class Material:
    """A model with what to measure it on.

    ``images, subset``  pictures and some of them, ``(B, C, H, W)`` in [-1, 1].
    ``x_T``          latents from N(0, I), ``(B, C, H, W)``.
    ``truth``        latents of the pictures by where they end; ``decoded`` the images of ``x_T`` by the clean end.
    """

    model: Model
    images: Tensor
    subset: Tensor
    x_T: Tensor
    truth: Mapping[End, Tensor]
    decoded: Mapping[str, Tensor]
    batch_size: int


@dataclass(frozen=True)
class Task:
    """One thing to measure, which gives rows of a first ``measure`` and perhaps of others."""

    measure: str
    family: str
    name: str
    grid: str
    steps: int
    run: Callable[[Material, Task], list[ComparisonRow]]


def plan(model: Model, name: str, grid: str, steps: int) -> Plan:
    """What is planned for the solver and the grid of these names; of no grid what the solver has by itself."""
    return plan_encoding(Request(name, steps, grid or None), model)


def screening(rows: Sequence[ComparisonRow]) -> Iterator[Task]:
    """Give the tasks for all of diffusers' schedulers, on a few latents, whatever ``rows`` there are."""
    for steps in DECODE_BUDGETS:
        for label, spacing, kind, options in schedulers():
            yield Task("screen", "diffusers", label, spacing, steps, partial(_decode_theirs, kind, options, SCREENED))


def tasks(rows: Sequence[ComparisonRow], *, long: int = LONG) -> Iterator[Task]:
    """Give all that is measured, the cheap first, where ``rows`` are those of the screening.

    ``long``  is in how many steps DDIM goes there and back, to be compared with a few of ours.
    """
    for steps in BUDGETS:
        for spacing in INVERSE_SPACINGS:
            yield Task("round_trip", "diffusers", "DDIM", spacing, steps, _trip)
        for order, spacing in product(DPM_ORDERS, DPM_SPACINGS):
            name = f"DPMSolverMultistep {order}"
            yield Task("round_trip", "diffusers", name, spacing, steps, partial(_dpm_solver_trip, order))
        for name, grid in ((AUTO, ""), *OURS):
            yield Task("round_trip", "ddim-ode", name, grid, steps, _trip)
    for name, grid in FOR_DDIM:
        yield Task("round_trip", "ddim-ode", name, grid, FOR_DDIM_STEPS, _trip)
    for steps in PAIR_STEPS:
        for name in (name for name, solver in SOLVERS.items() if isinstance(solver, ReversibleSolver)):
            yield Task("two_states", "ddim-ode", name, DEFAULT_GRID, steps, _two_states)
    for steps in DECODE_BUDGETS:
        for name, grid in ((AUTO, ""), *OURS):
            yield Task("decode", "ddim-ode", name, grid, steps, _decode)
        close = not_far_behind(rows, steps)
        for label, spacing, kind, options in schedulers():
            if (label, spacing) in close:
                yield Task("decode", "diffusers", label, spacing, steps, partial(_decode_theirs, kind, options, None))
    for steps in LADDER:
        yield Task("few", "ddim-ode", AUTO, "", steps, _few)
    yield Task("few", "diffusers", "DDIM", "trailing", long, _few)


def not_far_behind(rows: Sequence[ComparisonRow], steps: int) -> set[tuple[str, str]]:
    """The schedulers, by name and spacing, that are worth measuring on all latents in so many evaluations."""
    screened = [row for row in rows if (row.measure, row.steps) == ("screen", steps)]
    least = min((row.error.mean for row in screened), default=0.0)
    return {(row.name, row.grid) for row in screened if row.error.mean <= CLOSE * least}


def ends(model: Model) -> set[End]:
    """The ends between which the walks of the round trips lead."""
    grids = [plan(model, AUTO, "", steps).grid for steps in BUDGETS]
    grids += [
        make_grid(model.schedule, name, steps, clean_end=GRIDS[name].clean_end)
        for name in (DEFAULT_GRID, *INVERSE_SPACINGS)
        for steps in BUDGETS
    ]
    return {end_of(grid) for grid in grids}


def _trip(material: Material, task: Task) -> list[ComparisonRow]:
    """Measure images there and back, and on the way their latents."""
    x_T, x_0, end, nfe = _there_and_back(material, task, material.images)
    truth = material.truth[end]
    moment = (x_T.square().mean() / truth.square().mean() - 1).abs()
    return [
        _row(task, "round_trip", nfe, pixel_mse(material.images, x_0)),
        _row(task, "latent", nfe, rms(x_T - truth)),
        _row(task, "moment", nfe, moment[None]),
    ]


def _dpm_solver_trip(order: int, material: Material, task: Task) -> list[ComparisonRow]:
    """Measure images there and back by DPM-Solver and its inverse."""
    batches = torch.split(material.images, material.batch_size)
    back = [there_and_back_with_dpm_solver(material.model, batch, order, task.grid, task.steps) for batch in batches]
    return [_row(task, "round_trip", task.steps, pixel_mse(material.images, torch.cat(back)))]


def _few(material: Material, task: Task) -> list[ComparisonRow]:
    """Measure a few images there and back."""
    _, x_0, _, nfe = _there_and_back(material, task, material.subset)
    return [_row(task, "few", nfe, pixel_mse(material.subset, x_0))]


def _there_and_back(material: Material, task: Task, images: Tensor) -> tuple[Tensor, Tensor, End, int]:
    """Latents and images, both ``(B, C, H, W)``, where the way to the latents ended, and its evaluations per image."""
    walk = _diffusers_trip if task.family == "diffusers" else _our_trip
    walks = [walk(material.model, task, batch) for batch in torch.split(images, material.batch_size)]
    x_T, x_0, ended, nfe = zip(*walks, strict=True)
    return torch.cat(x_T), torch.cat(x_0), ended[0], max(nfe)


def _diffusers_trip(model: Model, task: Task, images: Tensor) -> tuple[Tensor, Tensor, End, int]:
    x_T, x_0, end, _ = there_and_back_with_ddim(model, images, task.grid, task.steps)
    return x_T, x_0, end, task.steps


def _our_trip(model: Model, task: Task, images: Tensor) -> tuple[Tensor, Tensor, End, int]:
    found = plan(model, task.name, task.grid, task.steps)
    solver, grid, ode = found.solver, found.grid, model.ode()
    try:
        x_T = encode(ode, images, grid, solver)
        nfe = ode.nfe
        return x_T, decode(ode, x_T, grid, found.back), end_of(grid), nfe
    except SolverError:
        lost = torch.full_like(images.double(), inf)
        return lost, lost, end_of(grid), ode.nfe


def _two_states(material: Material, task: Task) -> list[ComparisonRow]:
    made = plan(material.model, task.name, task.grid, task.steps)
    ode, nfe = material.model.ode(), 0
    try:
        found = encode_solution(ode, material.subset, made.grid, made.solver)
        nfe = ode.nfe
        kept = found.map(lambda x: x.float())
        x_0 = decode_solution(ode, kept.x, made.grid, made.back, kept.companion).x
    except SolverError:
        x_0 = torch.full_like(material.subset.double(), inf)
    return [_row(task, "two_states", nfe, pixel_mse(material.subset, x_0))]


def _decode(material: Material, task: Task) -> list[ComparisonRow]:
    named = task.name != AUTO
    steps = steps_for(task.name, task.steps) if named else task.steps
    found = plan(material.model, task.name, task.grid, steps)
    grid, ode = found.grid, material.model.ode()
    parts = [decode(ode, batch, grid, found.back) for batch in torch.split(material.x_T, material.batch_size)]
    truth = material.decoded[grid.clean_end]
    return [_row(task, "decode", ode.nfe // len(parts), rms(torch.cat(parts) - truth))]


def _decode_theirs(
    kind: str, options: Mapping[str, object], count: int | None, material: Material, task: Task
) -> list[ComparisonRow]:
    """Measure what a scheduler makes of the first ``count`` latents; of all if it is None."""
    batches = torch.split(material.x_T[:count], material.batch_size)
    runs = [decode_with_scheduler(material.model, batch, kind, options, task.steps) for batch in batches]
    images = torch.cat([run[0] for run in runs])
    return [_row(task, task.measure, runs[0][2], rms(images - material.decoded[runs[0][1]][:count]))]


def _row(task: Task, measure: str, nfe: int, values: Tensor) -> ComparisonRow:
    return ComparisonRow(measure, task.family, task.name, task.grid, task.steps, nfe, len(values), spread(values))


def missing(every: Iterable[Task], rows: Sequence[ComparisonRow]) -> list[Task]:
    """The tasks that have no rows yet."""
    known = {(row.measure, row.family, row.name, row.grid, row.steps) for row in rows}
    return [task for task in every if (task.measure, task.family, task.name, task.grid, task.steps) not in known]


@click.command(help=__doc__.split("\n")[0])
@model_options
@images_option
@click.option("--count", type=click.IntRange(min=2), default=64, show_default=True, help="Images, and latents.")
@click.option("--few", type=click.IntRange(min=1), default=16, show_default=True, help="Images in a thousand steps.")
@batch_size_option
@stride_option
@references_option
@out_option("comparison")
@errors_in_a_line()
def main(
    model: ModelChoice,
    images: Path,
    count: int,
    few: int,
    batch_size: int,
    stride: int,
    references: Path,
    out: Path,
) -> None:
    loaded = model.load()
    pixels, names = load_images(images, loaded, count)
    about = {"few": few, "seed": SEED, "stride": stride}
    results = Results(ComparisonRow, out, describe(loaded, names, pixels) | about)
    leave_out_older(results, calibrated(loaded))
    material = None
    long = min(LONG, len(loaded.schedule))
    for name, stage in (("screening", screening), ("tasks", partial(tasks, long=long))):
        todo = missing(stage(results.rows), results.rows)
        if todo and material is None:
            material, accuracies = gather(loaded, pixels, few, stride, references, batch_size)
            results.note(reference_rmse=accuracies)
        for task in tqdm(todo, desc=name, disable=None):
            results.replace([*results.rows, *task.run(material, task)])
    save_figure(plot(results.rows), out / "comparison.png")
    click.echo(table(results.rows))
    said = " and ".join(f"{what} by {rmse:.2g}" for what, rmse in results.settings["reference_rmse"].items())
    click.echo(f"\nThe references differ in RMSE from those of steps twice as long: {said}.")


def leave_out_older(results: Results[ComparisonRow], now: Mapping[str, str]) -> None:
    """Take the rows of ``auto`` out of ``results`` that were measured with another calibration than ``now``'s."""
    before = results.settings.get("calibrated", now)
    changed = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    kept = [row for row in results.rows if row.name != AUTO or str(row.steps) not in changed]
    if len(kept) < len(results.rows):
        results.replace(kept)
    if results.settings.get("calibrated") != now:  # after the rows, in case of a kill
        results.note(calibrated=dict(now))


def gather(
    model: Model, images: Tensor, few: int, stride: int, references: Path, batch_size: int
) -> tuple[Material, dict[str, float]]:
    """What to measure on, with ``few`` of the ``images``, ``(B, C, H, W)``; and the accuracy of latents and images.

    The references, with ``stride`` timesteps to a step, are kept in the folder ``references``.
    """
    x_T = draw_latents(len(images), (model.channels, model.height, model.width), seed=SEED)
    truth = make_references(model, images, ends(model), folder=references, stride=stride, batch_size=batch_size)
    decoded = decoded_references(model, x_T, folder=references, stride=stride, batch_size=batch_size)
    latents = {end: reference.x_T for end, reference in truth.items()}
    accuracies = {
        "latents": max(reference.accuracy for reference in truth.values()),
        "images": decoded.accuracy,
    }
    some = images[spread_over(min(few, len(images)), len(images))]
    return Material(model, images, some, x_T, latents, decoded.at, batch_size), accuracies


if __name__ == "__main__":
    main()
