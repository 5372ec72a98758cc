"""Learning a solver for one number of steps: nodes, what the network is told, and weights, for either direction.

Nodes are searched for together with the noise levels that the network is told in each step, with the weights of the
steps fitted anew for each trial (``solvers.learning``), so that the error at the end of the walk is as small as it can
be: of the images of random latents and of real ones downwards, of their latents upwards. Each direction has nodes of
its own, since encoding needs more of them at small sigma than decoding: with common ones, in 8 steps, decoding errs 1.2
times as much. Some of what is known serves the search, as a batch that is quick to walk; at its end the weights are
fitted to all of it.

Such searches are known for decoders: LD3 (Tong et al., "Learning to Discretize Denoising Diffusion ODEs", arXiv
2405.15506) and S4S (Frankel et al., "S4S: Solving for a Diffusion Model Solver", arXiv 2502.17423) take gradients
through the solve.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import inf, isinf, sqrt
from pathlib import Path

import torch
from tqdm import tqdm

from ddim_ode.calibration import Entry, Learned, entry_content, read_entry
from ddim_ode.files import write_file
from ddim_ode.grids import Grid, learned_grid
from ddim_ode.models import Model
from ddim_ode.session.check import mean_square
from ddim_ode.session.learned import learned_solver
from ddim_ode.session.material import CLEAN_END, Effort, Material, judge
from ddim_ode.session.trajectories import Trajectories, join, trajectory_solver
from ddim_ode.work import load_json, reading
from solvers import SolverError
from solvers.fitted import corrected
from solvers.fixed import FixedStepSolver
from solvers.learning import Fitting, Found, Place, Walk, begin, search

# As many latents, and as many images, serve the search.
_SEARCHED = 8
# In more steps it gains less than a tenth, and takes longest.
_MOST_SEARCHED = 20
# Sweeps without a gain on what nothing is fitted to, after which a search ends.
_PATIENCE = 2


@dataclass(frozen=True)
class Places:
    """Where the searches of the two directions have ended."""

    down: Place
    up: Place


def learn(
    model: Model, material: Material, effort: Effort, starts: Sequence[Grid], before: Places | None, folder: Path
) -> tuple[list[Entry], Places | None]:
    """What is learned for the number of steps of the grids ``starts``, in two versions, and where the searches ended.

    The versions differ in where the encoder begins: at true images, or at what the decoder makes of their latents.

    ``before``  where the searches for another number of steps have ended: they may be the better start.
    ``folder``  keeps how far the searches have come, and what is learned.

    Progress bars show how far a search is. There are no entries, and no places, if nothing leads to finite numbers.
    """
    steps = starts[0].steps
    known = join([part.take(slice(0, _SEARCHED)) for part in (material.fit_latents, material.fit_images)])
    held = join([material.latents, material.images])
    kept = folder / f"{steps}-learned.json"
    starts_from = (before.down, before.up) if before else (None, None)
    try:
        with torch.no_grad():
            down, up = (
                _place(model, known, held, effort, starts, other, folder, name)
                for name, other in zip(("down", "up"), starts_from, strict=True)
            )
            if not kept.exists():
                versions = [entry_content(entry) for entry in _versions(model, material, Places(down, up))]
                write_file(kept, json.dumps({"versions": versions}).encode())
    except SolverError:
        return [], before
    with reading(kept):
        return [read_entry(content) for content in load_json(kept)["versions"]], Places(down, up)


def _place(
    model: Model,
    known: Trajectories,
    held: Trajectories,
    effort: Effort,
    starts: Sequence[Grid],
    before: Place | None,
    folder: Path,
    name: str,
) -> Place:
    """Where the search of the direction called ``name`` ends."""
    steps = starts[0].steps
    way, score = _way(model, known, upward=name == "up"), partial(_error, known)
    path = folder / f"{steps}-search-{name}.json"
    progress = _load(path)
    if progress is None:
        places = [begin(grid.sigmas) for grid in starts] + (
            [resampled(before, steps)] if before and len(before.told) > 1 else []
        )
        place = min(places, key=lambda place: _first_score(way, place, score))
        progress = Progress(place, place)
    if not progress.over:
        most = steps * effort.walks if steps <= _MOST_SEARCHED else 0
        found = search(way, progress.at, score, seed=effort.seed)
        progress = _searched(found, partial(_held_score, model, held), progress, most, path)
    return progress.best


@dataclass(frozen=True)
class Progress:
    """How far a search has come.

    ``at``           its place after the last whole sweep.
    ``best``         the place that has served best what nothing is fitted to, with the score ``least`` there.
    ``evaluations``  of the network for a batch, so far.
    ``over``         whether the search has ended.
    """

    at: Place
    best: Place
    least: float | None = None
    evaluations: int = 0
    over: bool = False

    def judged(self, place: Place, score: float, evaluations: int, *, over: bool) -> Progress:
        """The progress at another ``place``, where the held-out ``score`` is this."""
        better = self.least is None or score < self.least
        tired = not better and place.sweeps - self.best.sweeps >= _PATIENCE
        best, least = (place, score) if better else (self.best, self.least)
        return Progress(place, best, least, evaluations, over or tired)


def _searched(
    findings: Iterable[Found], held_score: Callable[[Found], float], progress: Progress, most: int, path: Path
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
                progress = progress.judged(found.place, held_score(found), evaluations, over=spent)
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
            Place(
                tuple(map(float, place["nodes"])),
                tuple(map(float, place["told"])),
                tuple(map(float, place["sizes"])),
                int(place["sweeps"]),
            )
            for place in (content["at"], content["best"])
        )
        return Progress(at, best, content["least"], int(content["evaluations"]), bool(content["over"]))


def _first_score(way: Fitting, place: Place, score: Callable[[Walk], float]) -> float:
    """The score of a ``place``; infinite if the walk there ends at no finite numbers."""
    try:
        return score(way.walk(place.nodes, place.told))
    except SolverError:
        return inf


def _way(model: Model, known: Trajectories, *, upward: bool) -> Fitting:
    return Fitting(base=trajectory_solver(model), field=model.ode(), upward=upward, solution=known.at)


def _error(known: Trajectories, walk: Walk) -> float:
    """The mean error at the end of a walk, relative to the states there."""
    truth = known.at(walk.nodes[-1])
    return float(mean_square(walk.x - truth).sqrt().mean()) / sqrt(float(truth.square().mean()))


def _held_score(model: Model, held: Trajectories, found: Found) -> float:
    """The score of what was found on solutions that it was not fitted to; infinite if it leads to no finite ones."""
    walk = found.walk
    try:
        grid = torch.tensor(walk.nodes, dtype=torch.float64)
        x = _fitted(model, walk)(model.ode(), held.at(walk.nodes[0]), grid)
    except SolverError:
        return inf
    return _error(held, replace(walk, x=x))


def _fitted(model: Model, walk: Walk) -> FixedStepSolver:
    return corrected(trajectory_solver(model), walk.fit)


def _versions(model: Model, material: Material, places: Places) -> list[Entry]:
    """The entries of two ``places``, fitted to all that is known and judged; none with numbers that are not finite."""
    known, clean = material.known, places.up.nodes[0]
    decoder = _way(model, known, upward=False).walk(places.down.nodes, places.down.told)
    way = _way(model, known, upward=True)
    begun = replace(way, solution=lambda sigma: decoder.x if sigma == clean else known.at(sigma))
    grid = learned_grid(model.schedule, places.down.nodes, CLEAN_END)
    name, entries = way.base.name, []
    for each in (way, begun):
        try:
            up, down = (_learned(walk) for walk in (each.walk(places.up.nodes, places.up.told), decoder))
            scores = judge(model, material, learned_solver(name, grid, up, down), grid)
        except SolverError:
            continue
        entries.append(Entry(name, grid, up, down, scores))
    return entries


def _learned(walk: Walk) -> Learned:
    return Learned(walk.fit.weights, walk.fit.told, tuple(sorted(walk.nodes))[1:-1])


def resampled(place: Place, steps: int) -> Place:
    """A search's ``place`` drawn out, or drawn together, to another number of ``steps``."""
    *finite, last = place.nodes
    if isinf(last):  # the last step, alone, leads there
        nodes = (*_resampled(finite, steps), inf)
    else:
        nodes = (finite[0], *_resampled(place.nodes, steps + 1)[1:-1], last)
    return begin(nodes, _resampled(place.told, steps))


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
