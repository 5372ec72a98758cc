"""Learning a solver for one number of steps: nodes, what the network is told, and weights, for both directions at once.

One grid serves both directions. It is searched for together with the noise levels that the network is told in each
step, with the weights of the steps fitted anew for each trial (``solvers.learning``), so that the logarithms of two
errors add up to as little as they can, weighed: that of the images of random latents and real ones, and that of their
latents. Some of what is known serves the search, as a batch that is quick to walk; at its end the weights are fitted
to all of it.

Such searches are known for decoders: LD3 (Tong et al., "Learning to Discretize Denoising Diffusion ODEs", arXiv
2405.15506) and S4S (Frankel et al., "S4S: Solving for a Diffusion Model Solver", arXiv 2502.17423) take gradients
through the solve.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import exp, inf, isinf, log
from pathlib import Path

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
from ddim_ode.session.trajectories import Trajectories, join, trajectory_solver
from ddim_ode.work import load_json, reading
from solvers import SolverError
from solvers.fitted import corrected
from solvers.fixed import FixedStepSolver
from solvers.learning import Fitting, Found, Place, Walk, begin, search

# As many latents, and as many images, serve the search.
_SEARCHED = 8
# Of the logarithms of the errors of decoding and of latents.
_WEIGHTS = (2, 1)
# In more steps it gains less than a tenth, and takes longest.
_MOST_SEARCHED = 20
# Sweeps without a gain on what nothing is fitted to, after which a search ends.
_PATIENCE = 2


def learn(
    model: Model, material: Material, effort: Effort, starts: Sequence[Grid], before: Place | None, path: Path
) -> tuple[list[Entry], Place]:
    """What is learned for the number of steps of the grids ``starts``, in two versions, and where the search ended.

    The versions differ in where the encoder is led to: along the true solutions, or along the walk of the decoder.

    ``before``  where the search for another number of steps has ended: it may be the better start.
    ``path``    keeps how far the search has come; what is learned is kept beside it. With a progress bar.

    Raises:
        SolverError: if no start leads to finite numbers.
    """
    steps = starts[0].steps
    few = join([part.take(slice(0, _SEARCHED)) for part in (material.fit_latents, material.fit_images)])
    ways, score = _ways(model, few), partial(_score, few)
    with torch.no_grad():
        progress = _load(path)
        if progress is None:
            places = [begin(grid.sigmas, [[1.0] * steps] * len(ways)) for grid in starts]
            places += [resampled(before, steps)] if before else []
            place = min(places, key=lambda place: _first_score(ways, place, score))
            progress = Progress(place, place)
        held_score = partial(_held_score, model, join([material.latents, material.images]))
        if not progress.over:
            most = 2 * steps * effort.walks if steps <= _MOST_SEARCHED else 0
            progress = _searched(search(ways, progress.at, score, seed=effort.seed), held_score, progress, most, path)
        kept = path.with_name(f"{steps}-learned.json")
        if not kept.exists():
            versions = {"versions": [entry_content(e) for e in _versions(model, material, progress.best)]}
            write_file(kept, json.dumps(versions).encode())
    with reading(kept):
        return [read_entry(content) for content in load_json(kept)["versions"]], progress.best


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
    search: Iterable[Found], held_score: Callable[[Found], float], progress: Progress, most: int, path: Path
) -> Progress:
    """The end of a ``search`` in at ``most`` so many evaluations, with a progress bar.

    What it had come to after each sweep is kept in ``path``.
    """
    steps = len(progress.at.nodes) - 1
    # A search that goes on walks once more to where it was, which is no part of it.
    before = max(progress.evaluations - len(progress.at.told) * steps, 0)
    sweeps = progress.at.sweeps - (progress.least is None)
    with tqdm(total=most, desc=f"search {steps} steps", leave=False, disable=None) as bar:
        for found in search:
            evaluations = before + found.evaluations
            spent = evaluations >= most
            bar.update(min(evaluations, most) - bar.n)
            if found.place.sweeps != sweeps or spent:
                sweeps = found.place.sweeps
                progress = progress.judged(found.place, held_score(found), evaluations, over=spent)
                bar.set_postfix_str(f"held-out errors {exp((progress.least or 0) / sum(_WEIGHTS)):.4f}")
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
                tuple(tuple(map(float, told)) for told in place["told"]),
                tuple(map(float, place["sizes"])),
                int(place["sweeps"]),
            )
            for place in (content["at"], content["best"])
        )
        return Progress(at, best, content["least"], int(content["evaluations"]), bool(content["over"]))


def _first_score(ways: Sequence[Fitting], place: Place, score: Callable[[Sequence[Walk]], float]) -> float:
    """The score of a ``place``; infinite if a walk there ends at no finite numbers."""
    try:
        return score([way.walk(place.nodes, told) for way, told in zip(ways, place.told, strict=True)])
    except SolverError:
        return inf


def _ways(model: Model, known: Trajectories) -> tuple[Fitting, Fitting]:
    """The two directions, down and up."""
    base, ode = trajectory_solver(model), model.ode()
    return (
        Fitting(base=base, field=ode, upward=False, solution=known.at),
        Fitting(base=base, field=ode, upward=True, solution=known.at),
    )


def _score(known: Trajectories, walks: Sequence[Walk]) -> float:
    """The logarithms of the errors at the ends of the walks down and up, relative to the states there, weighed."""
    return sum(weight * log(_error(walk, known)) for weight, walk in zip(_WEIGHTS, walks, strict=True))


def _error(walk: Walk, known: Trajectories) -> float:
    truth = known.at(walk.nodes[-1])
    return float((mean_square(walk.x - truth) / truth.square().mean()).sqrt().mean())


def _held_score(model: Model, held: Trajectories, found: Found) -> float:
    """The score of what was found on solutions that it was not fitted to."""
    ends = [
        replace(walk, x=_fitted(model, walk)(model.ode(), held.at(walk.nodes[0]), _tensor(walk.nodes)))
        for walk in found.walks
    ]
    return _score(held, ends)


def _fitted(model: Model, walk: Walk) -> FixedStepSolver:
    return corrected(trajectory_solver(model), walk.fit)


def _versions(model: Model, material: Material, place: Place) -> list[Entry]:
    """The entries of a ``place``, fitted to all that is known and judged; none with numbers that are not finite."""
    known = material.known
    down, up = _ways(model, known)
    grid = learned_grid(model.schedule, place.nodes, CLEAN_END)
    decoder = down.walk(grid.sigmas, place.told[0])
    states = _fitted(model, decoder).trajectory(model.ode(), known.at(grid.sigma_T), grid.downward())
    own = {sigma: solution.x for sigma, solution in states}
    entries = []
    name, below = up.base.name, Learned(decoder.fit.weights, decoder.fit.told)
    for way in (up, replace(up, solution=own.__getitem__)):
        fit = way.walk(grid.sigmas, place.told[1]).fit
        above = Learned(fit.weights, fit.told)
        try:
            scores = judge(model, material, learned_solver(name, grid, above, below), grid)
        except SolverError:
            continue
        entries.append(Entry(name, grid, above, below, scores))
    return entries


def resampled(place: Place, steps: int) -> Place:
    """A search's ``place`` drawn out, or drawn together, to another number of ``steps``."""
    *finite, last = place.nodes
    if isinf(last):  # the last step, alone, leads there
        nodes = (*_resampled(finite, steps), inf)
    else:
        nodes = (finite[0], *_resampled(place.nodes, steps + 1)[1:-1], last)
    return begin(nodes, [_resampled(told, steps) for told in place.told])


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


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
