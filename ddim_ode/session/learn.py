"""Learning a solver for one number of steps: nodes, what the network is told, and weights, for either direction.

Nodes are searched for together with the noise levels that the network is told in each step, with the weights of the
steps fitted anew for each trial (``solvers.learning``): first for the decoder, so that the images of random latents and
of those of real images err as little as they can, then for the encoder, so that latents do, and the images that the
decoder makes of them. Each direction has nodes of its own, since encoding needs more of them at small sigma than
decoding: with common ones decoding in 5 steps errs 1.6 times as much. Of what is known one batch serves the search; at
its end the weights are fitted to all of it. Then all numbers of a direction but its nodes are made better together on a
batch (``solvers.polishing``), again and again while that helps what nothing is fitted to: in 8 steps images and latents
then err less by a twelfth, and round trips by a quarter, while the encoder of 10 and of 12 steps learns from a batch of
16 what does not hold for others, and is left as it was.

Such searches are known for decoders: LD3 (Tong et al., "Learning to Discretize Denoising Diffusion ODEs", arXiv
2405.15506) and S4S (Frankel et al., "S4S: Solving for a Diffusion Model Solver", arXiv 2502.17423) take gradients
through the solve.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from math import inf, isinf, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddim_ode.calibration import Entry, Learned, entry_content, read_entry
from ddim_ode.files import write_file
from ddim_ode.grids import Grid, learned_grid
from ddim_ode.models import Model
from ddim_ode.session.check import mean_square
from ddim_ode.session.learned import learned_solver
from ddim_ode.session.material import CLEAN_END, Effort, Material, judge
from ddim_ode.session.trajectories import Portioned, Trajectories, join, trajectory_solver
from ddim_ode.solvers import FixedStepSolver, SolverError, corrected, learning, polishing
from ddim_ode.speed import products
from ddim_ode.work import load_json, reading

# In 20 steps a search gains an eighth, and takes longest; in more it is left out.
_MOST_SEARCHED = 20
# What polishing a decoder once takes, in walks of a batch: for each step eight numbers, each half a walk; and a few
# trials. An encoder takes three times as much, with what is decoded; as searching for one does.
_POLISHING_WALKS = (4, 5)
# Sweeps without a gain on what nothing is fitted to, after which a search ends.
_PATIENCE = 2


@dataclass(frozen=True, eq=False)
class Subject:
    """A ``model`` that is learned for, with ``batch_size`` members of a batch at a time."""

    model: Model
    batch_size: int

    @property
    def field(self) -> Portioned:
        """Its ODE."""
        return Portioned(self.model.ode(), self.batch_size)

    @property
    def method(self) -> FixedStepSolver:
        """What is corrected."""
        return trajectory_solver(self.model)


@dataclass(frozen=True)
class Places:
    """Where the searches of the two directions have ended."""

    down: learning.Place
    up: learning.Place


def learn(
    model: Model, material: Material, effort: Effort, starts: Sequence[Grid], before: Places | None, folder: Path
) -> tuple[list[Entry], Places | None]:
    """What is learned for the number of steps of the grids ``starts``, and where the searches ended.

    ``before``  where the searches for another number of steps have ended: they may be the better start.
    ``folder``  keeps how far the searches have come, and what is learned.

    Progress bars show how far it is. There are no entries if nothing leads to finite numbers.
    """
    steps, subject = starts[0].steps, Subject(model, effort.batch_size)
    half = slice(0, effort.batch_size // 2)
    known = join([material.fit_latents.take(half), material.fit_images.take(half)])
    held = join([material.latents, material.images])
    starts_from = (before.down, before.up) if before else (None, None)
    try:
        with torch.no_grad():
            place = partial(_place, subject, known, held, effort, starts, folder)
            down = place("down", starts_from[0], _error)
            decoder = fitting_of(subject, known, upward=False).walk(down.nodes, down.told)
            up = place("up", starts_from[1], partial(_errors_there_and_back, subject, decoder))
            places = Places(down, up)
            fits = cache(partial(_fits, subject, material.known, places))
            each, trials = _POLISHING_WALKS
            rounds = effort.walks // (each * steps + trials)

            def polished() -> tuple[learning.Walk, learning.Walk]:
                images = material.fit_images.take(slice(0, effort.batch_size))
                decoder = _polished_decoder(subject, known, held, fits()[0], rounds)
                return decoder, _polished_encoder(subject, images, held, decoder, fits()[1], rounds)

            ways: dict[str, Callable[[], tuple[learning.Walk, learning.Walk]]] = {"learned": fits}
            if rounds:
                ways["polished"] = polished
            entries = list[Entry]()
            for name, way in ways.items():
                with suppress(SolverError):  # another may do all the same
                    make = partial(_entry, subject, material, way)
                    entries.append(kept_entry(folder / f"{steps}-{name}.json", make))
            return entries, places
    except SolverError:
        return [], before


def kept_entry(path: Path, make: Callable[[], Entry]) -> Entry:
    """The entry in the work file ``path``, for which it is made first if there is no such file.

    Raises:
        WorkError: if the file is damaged.
    """
    if not path.exists():
        write_file(path, json.dumps(entry_content(make())).encode())
    with reading(path):
        return read_entry(load_json(path))


def _place(
    subject: Subject,
    known: Trajectories,
    held: Trajectories,
    effort: Effort,
    starts: Sequence[Grid],
    folder: Path,
    name: str,
    before: learning.Place | None,
    error: Callable[[Trajectories, learning.Walk], float],
) -> learning.Place:
    """Where the search of the direction called ``name`` ends, which makes the ``error`` small."""
    steps = starts[0].steps
    way, score = fitting_of(subject, known, upward=name == "up"), partial(error, known)
    path = folder / f"{steps}-search-{name}.json"
    progress = _load(path)
    if progress is None:
        places = [learning.begin(grid.sigmas) for grid in starts]
        places += [resampled(before, steps)] if before and len(before.told) > 1 else []
        place = min(places, key=lambda place: _first_score(way, place, score))
        progress = Progress(place, place)
    if not progress.over:
        most = steps * effort.walks if steps <= _MOST_SEARCHED else 0
        found = learning.search(way, progress.at, score, seed=effort.seed)
        held_score = partial(_held_score, subject, held, error)
        progress = _searched(found, held_score, progress, most, path)
    return progress.best


@dataclass(frozen=True)
class Progress:
    """How far a search has come.

    ``at``           its place after the last whole sweep.
    ``best``         the place that has served best what nothing is fitted to, with the score ``least`` there.
    ``evaluations``  of the network for a batch, so far.
    ``over``         whether the search has ended.
    """

    at: learning.Place
    best: learning.Place
    least: float | None = None
    evaluations: int = 0
    over: bool = False

    def judged(self, place: learning.Place, score: float, evaluations: int, *, over: bool) -> Progress:
        """The progress at another ``place``, where the held-out ``score`` is this."""
        better = self.least is None or score < self.least
        tired = not better and place.sweeps - self.best.sweeps >= _PATIENCE
        best, least = (place, score) if better else (self.best, self.least)
        return Progress(place, best, least, evaluations, over or tired)


def _searched(
    findings: Iterable[learning.Found],
    held_score: Callable[[learning.Walk], float],
    progress: Progress,
    most: int,
    path: Path,
) -> Progress:
    """The end of a search, given its ``findings``, in at ``most`` so many evaluations, with a progress bar.

    What it had come to after each sweep is kept in ``path``.
    """
    steps = len(progress.at.nodes) - 1
    # A search that goes on walks once more to where it was, which is no part of it.
    before = max(progress.evaluations - steps, 0)
    sweeps = progress.at.sweeps - (progress.least is None)
    with tqdm(total=most, desc=path.stem, leave=False, disable=None) as bar:
        for found in findings:
            evaluations = before + found.evaluations
            spent = evaluations >= most
            bar.update(min(evaluations, most) - bar.n)
            if found.place.sweeps != sweeps or spent:
                sweeps = found.place.sweeps
                progress = progress.judged(found.place, held_score(found.walk), evaluations, over=spent)
                bar.set_postfix_str(f"held-out error {progress.least:.4f}")
                _save(progress, path)
            if progress.over:
                return progress
    progress = replace(progress, over=True)
    _save(progress, path)
    return progress


def _save(progress: Progress, path: Path) -> None:
    write_file(path, json.dumps(asdict(progress)).encode(), overwrite=True)


def _load(path: Path) -> Progress | None:
    if not (content := load_json(path)):
        return None
    with reading(path):
        at, best = (
            learning.Place(
                tuple(map(float, place["nodes"])),
                tuple(map(float, place["told"])),
                tuple(map(float, place["sizes"])),
                int(place["sweeps"]),
            )
            for place in (content["at"], content["best"])
        )
        return Progress(at, best, content["least"], int(content["evaluations"]), bool(content["over"]))


def _first_score(way: learning.Fitting, place: learning.Place, score: Callable[[learning.Walk], float]) -> float:
    """The score of a ``place``; infinite if the walk there ends at no finite numbers."""
    try:
        return score(way.walk(place.nodes, place.told))
    except SolverError:
        return inf


def fitting_of(subject: Subject, known: Trajectories, *, upward: bool) -> learning.Fitting:
    """How weights are found for the ``subject`` that lead along what is ``known``."""
    return learning.Fitting(base=subject.method, field=subject.field, upward=upward, solution=known.at)


def _error(known: Trajectories, walk: learning.Walk) -> float:
    """The mean error at the end of a walk, relative to the states there."""
    truth = known.at(walk.nodes[-1])
    return float(mean_square(walk.x - truth).sqrt().mean()) / sqrt(float(truth.square().mean()))


def _errors_there_and_back(subject: Subject, decoder: learning.Walk, known: Trajectories, walk: learning.Walk) -> float:
    """The geometric mean of the error of latents, and of that of the images that the ``decoder`` makes of them.

    The first alone is not enough: in 5 steps it makes latents better by an eighth, and round trips worse by a half.
    """
    return sqrt(_error(known, walk) * _error(known, _again(subject, decoder, walk.x)))


def _again(subject: Subject, walk: learning.Walk, x: Tensor) -> learning.Walk:
    """The same ``walk`` from ``x``, ``(B, C, H, W)``, without fitting; infinitely far off if it is not finite."""
    grid = torch.tensor(walk.nodes, dtype=torch.float64)
    try:
        return replace(walk, x=_fitted(subject, walk)(subject.field, x, grid))
    except SolverError:
        return replace(walk, x=torch.full_like(x, inf))


def _held_score(
    subject: Subject, held: Trajectories, error: Callable[[Trajectories, learning.Walk], float], walk: learning.Walk
) -> float:
    """The ``error`` of what was found in a ``walk`` on solutions that it was not fitted to."""
    return error(held, _again(subject, walk, held.at(walk.nodes[0])))


def _fitted(subject: Subject, walk: learning.Walk) -> FixedStepSolver:
    return corrected(subject.method, walk.fit)


def _fits(subject: Subject, known: Trajectories, places: Places) -> tuple[learning.Walk, learning.Walk]:
    """The walks of decoder and encoder at their ``places``, with weights fitted to all that is known."""
    down, up = places.down, places.up
    return (
        fitting_of(subject, known, upward=False).walk(down.nodes, down.told),
        fitting_of(subject, known, upward=True).walk(up.nodes, up.told),
    )


def _polished_decoder(
    subject: Subject, known: Trajectories, held: Trajectories, decoder: learning.Walk, rounds: int
) -> learning.Walk:
    """The ``decoder``, made better through the whole walk for what is ``known``, as long as ``held`` is too."""
    aim = polishing.Aim(results=lambda x: (x,), truths=(known.at(decoder.nodes[-1]),))
    way, score = fitting_of(subject, known, upward=False), partial(_held_score, subject, held, _error)
    return _polished(way, decoder, aim, score, rounds, "polish-down")


def _polished_encoder(
    subject: Subject,
    images: Trajectories,
    held: Trajectories,
    decoder: learning.Walk,
    encoder: learning.Walk,
    rounds: int,
) -> learning.Walk:
    """The ``encoder``, made better likewise, with the ``decoder``, for ``images`` that may be fitted to."""
    aim = polishing.Aim(
        results=lambda x: (x, _again(subject, decoder, x).x),
        truths=(images.at(encoder.nodes[-1]), images.at(encoder.nodes[0])),
    )
    score = partial(_held_score, subject, held, partial(_errors_there_and_back, subject, decoder))
    return _polished(fitting_of(subject, images, upward=True), encoder, aim, score, rounds, "polish-up")


def _polished(
    way: learning.Fitting,
    walk: learning.Walk,
    aim: polishing.Aim,
    held_score: Callable[[learning.Walk], float],
    rounds: int,
    name: str,
) -> learning.Walk:
    """The ``walk`` polished in so many ``rounds``, or in fewer if no step makes the ``held_score`` smaller."""
    exactly = partial(products, tf32=False)  # differences need all digits
    with exactly():
        best = way.follow(walk.nodes, walk.fit)
    least = held_score(best)
    for i in range(rounds):
        label = f"{len(walk.nodes) - 1}-{name} {i + 1}"
        track: Callable[..., Any] = partial(tqdm, leave=False, disable=None, desc=label)
        with exactly():
            trials = list(polishing.polish(way, best, aim, track))
        scores = [held_score(trial) for trial in trials]
        if min(scores, default=inf) >= least:
            break
        least = min(scores)
        best = trials[scores.index(least)]
    return best


def _entry(subject: Subject, material: Material, fits: Callable[[], tuple[learning.Walk, learning.Walk]]) -> Entry:
    """The entry of what was fitted for the two directions, decoder and encoder, judged.

    Raises:
        SolverError: if it leads to numbers that are not finite.
    """
    name, (decoder, encoder) = subject.method.name, fits()
    # The nodes of the decoder are those of the grid.
    down = Learned(decoder.fit.weights, decoder.fit.told)
    up = Learned(encoder.fit.weights, encoder.fit.told, encoder.nodes[1:-1])
    grid = learned_grid(subject.model.schedule, decoder.nodes[::-1], CLEAN_END)
    solver = learned_solver(name, grid, up, down)
    return Entry(name, grid, up, down, judge(subject.model, material, solver, grid, batch_size=subject.batch_size))


def resampled(place: learning.Place, steps: int) -> learning.Place:
    """A search's ``place`` drawn out, or drawn together, to another number of ``steps``."""
    *finite, last = place.nodes
    if isinf(last):  # the last step, alone, leads there
        nodes = (*_resampled(finite, steps), inf)
    else:
        nodes = (finite[0], *_resampled(place.nodes, steps + 1)[1:-1], last)
    return learning.begin(nodes, _resampled(place.told, steps))


def _resampled(values: Sequence[float], count: int) -> tuple[float, ...]:
    """``count`` values, above 0, between the first and the last: linear in the logarithm."""
    if count == 1:
        return (values[0],)
    found = []
    for i in range(count):
        at = i * (len(values) - 1) / (count - 1)
        left = min(int(at), len(values) - 2)
        found.append(values[left] * (values[left + 1] / values[left]) ** (at - left))
    return tuple(found)
