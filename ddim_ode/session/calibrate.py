"""Fit solvers to a model: for a few numbers of steps, the solver, the grid and what is learned that serve it best.

The candidates are closed-form solvers, the same with corrections fitted to them on a few grids, and what is learned
from there (``learn``). One that is worse than the default solver on its grid, or than any that is not fitted, in any of
the four errors of ``material``, is refused. Of the others that one is chosen whose errors are smallest in the geometric
mean, weighed; if none, the default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import inf, isinf, log
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from ddim_ode.calibration import Calibration, Entry, Learned
from ddim_ode.conditions import UNCONDITIONAL, Condition, Label
from ddim_ode.files import write_file
from ddim_ode.grids import Grid, make_grid
from ddim_ode.models import Model
from ddim_ode.session.learn import Places, Subject, fitting_of, kept_entry, learn
from ddim_ode.session.learned import learned_solver
from ddim_ode.session.material import CLEAN_END, SCORES, WALKS, Effort, Material, check_memory, gather, judge
from ddim_ode.session.request import Request, default_grid, default_solver, plan_condition
from ddim_ode.session.trajectories import trajectory_solver
from ddim_ode.solvers import SolverError, get_solver
from ddim_ode.speed import products
from ddim_ode.work import claimed, load_json

if TYPE_CHECKING:
    from ddim_ode.session.session import Session
    from ddim_ode.spaces import Readable

# Searched: the ceiling. With 25 decoding errs 1.5 to 1.8 times as much as with 50, in 5 to 10 steps. Fewer steps at the
# smallest sigmas as well make decoding in 5 steps better by 40 %, and its latents more than twice as bad.
GRID_NAMES = ("capped-50", "capped-100", "capped-200")
# Where sigma has no end.
ENDLESS_GRID_NAMES = ("trailing", "log-snr")
WEIGHTS = {"decode": 2, "latent": 1, "round_trip": 1}
# A moment that is so near to the true one is as good as any.
MOMENT_FLOOR = 0.005


@dataclass(frozen=True)
class Candidate:
    """A solver and a grid, by their names, with or without corrections, on so many steps."""

    solver: str
    grid: str
    steps: int
    fitted: bool


def usual(model: Model) -> tuple[str, str]:
    """The solver and the grid that are taken for ``model`` where nothing is calibrated."""
    name = default_solver(model, None)
    return name, default_grid(model, get_solver(name))


def calibrate(
    model: Model,
    images: Tensor | None,
    effort: Effort,
    folder: Path,
    names: Sequence[str] | None = None,
    *,
    condition: Condition = UNCONDITIONAL,
    tf32: bool = False,
) -> Calibration:
    """The calibration of ``model``, from ``images`` ``(B, C, H, W)`` in [-1, 1], of which half is kept for judging.

    Without images those of random latents take their place.

    ``folder``     keeps the trajectories and each candidate's result; what is there is not done again.
    ``names``      of the images, for messages.
    ``condition``  what the network is asked for; the calibration is for its guidance.
    ``tf32``       whether a GPU may leave out digits of products of float32.

    Raises:
        ValueError: if there is one image alone, not the memory for the trajectories, or the network gives no finite
            numbers; if ``folder`` holds the work for another model, other images or another effort, or another process
            is at work there.
    """
    count = effort.latents if images is None else len(images)
    if count < 2:
        raise ValueError(
            f"there must be 2 pictures or more, half of them for judging, but there is {count}; name more, or none"
        )
    check_memory(model, count, effort)
    # What lies beside the weights plays no part, and may be damaged.
    asked = replace(model, folder=None).bound(condition)
    guidance = model.strength(condition)
    with claimed(folder), products(tf32=tf32):
        _claim(folder, _about(model, images, names, effort, condition) | {"tf32": tf32})
        try:
            material = gather(asked, images, effort, folder, names)
            entries = tuple(
                replace(choose(entries, asked, effort), guidance=guidance)
                for entries in measure(asked, material, effort, folder)
            )
        finally:
            asked.ode().close()
    settings = {
        **asdict(effort),
        "images": "of random latents" if images is None else count,
        "solver": trajectory_solver(model).name,
        "grids": grid_names(model),
        "condition": str(condition),
    }
    together = ", ".join(entry.name for entry in entries)
    # As they will be read from a file.
    return Calibration(model.fingerprint, entries, {together: json.loads(json.dumps(settings))})


def _about(
    model: Model, images: Tensor | None, names: Sequence[str] | None, effort: Effort, condition: Condition
) -> dict[str, object]:
    """What the work in a folder depends on."""
    pixels = None if images is None else hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()[:16]
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "dtype": str(next((p.dtype for p in model.network.parameters()), None)),
        "asked": None if model.asked is None else dict(model.asked),
        "shape": list(model.space.shape),
        "images": None if names is None else list(names),
        "pixels": pixels,
        "effort": asdict(effort),
        "condition": str(condition),
        "torch": torch.__version__,
    }


def grid_names(model: Model) -> tuple[str, ...]:
    """The grids that are tried for ``model``, and that a search may begin at."""
    return ENDLESS_GRID_NAMES if isinf(model.schedule.sigma_max) else GRID_NAMES


def calibrate_in(
    model: Model, pictures: Sequence[Path], effort: Effort, folder: Path, *, condition: Condition = UNCONDITIONAL
) -> Calibration:
    """``calibrate`` on all ``pictures``.

    Raises:
        ValueError: if there are no pictures, or one cannot be read; and as ``calibrate`` does.
    """
    if not pictures:
        raise ValueError("there are no pictures to calibrate with; name a folder that holds some")
    check_memory(model, len(pictures), effort)
    images = torch.cat([model.space.read(path)[0] for path in pictures])
    return calibrate(model, images, effort, folder, [path.name for path in pictures], condition=condition)


def _claim(folder: Path, settings: Mapping[str, object]) -> None:
    """Write ``settings`` into ``folder``, or find them there."""
    path, settings = folder / "settings.json", json.loads(json.dumps(settings))
    before = load_json(path) or settings
    for key, value in settings.items():
        if before.get(key) != value:
            own = f"{before.get(key)!r:.80}, not {value!r:.80}"
            raise ValueError(f"'{folder}' holds the work for another {key} ({own}); choose another folder for the work")
    write_file(path, json.dumps(settings, indent=2).encode(), overwrite=True)


def measure(model: Model, material: Material, effort: Effort, folder: Path) -> Iterator[list[Entry]]:
    """For each number of steps all candidates, read from ``folder`` if they are there; with a progress bar.

    What was learned for the number of steps before is a start for the next.
    """

    def tried(candidate: Candidate) -> Entry:
        return try_out(model, material, candidate, batch_size=effort.batch_size)

    places: Places | None = None
    for steps in tqdm(sorted(effort.budgets), desc="numbers of steps", disable=None):
        entries, tried_out = [], candidates(model, effort, steps)
        for candidate in tried_out:
            name = f"{steps}-{candidate.solver}-{candidate.grid}{'-fitted' if candidate.fitted else ''}.json"
            entries.append(kept_entry(folder / name, partial(tried, candidate)))
        # Where the fit of a start has diverged, nodes of its own may do better.
        starts = [entry.grid for candidate, entry in zip(tried_out, entries, strict=True) if candidate.fitted]
        learned, places = learn(model, material, effort, starts, places, folder)
        yield [*entries, *learned]


def candidates(model: Model, effort: Effort, steps: int) -> list[Candidate]:
    """What is tried for so many ``steps``; the default comes first."""
    name = trajectory_solver(model).name
    found = [Candidate(*effort.default, steps, fitted=False)]
    for grid in grid_names(model):
        found += [Candidate(name, grid, steps, fitted=False), Candidate(name, grid, steps, fitted=True)]
    return list(dict.fromkeys(found))


def try_out(model: Model, material: Material, candidate: Candidate, *, batch_size: int) -> Entry:
    """Fit, if it is to be fitted, and judge; a candidate that leaves the finite numbers has no scores."""
    grid = make_grid(model.schedule, candidate.grid, candidate.steps, clean_end=CLEAN_END)
    up, down = Learned(), Learned()
    try:
        if candidate.fitted:
            up, down = (_fitted(model, material, grid, batch_size, upward=upward) for upward in (True, False))
        solver = learned_solver(candidate.solver, grid, up, down)
        scores = judge(model, material, solver, grid, batch_size=batch_size)
    except SolverError:
        scores = {}
    return Entry(candidate.solver, grid, up, down, scores)


def _fitted(model: Model, material: Material, grid: Grid, batch_size: int, *, upward: bool) -> Learned:
    fitting = fitting_of(Subject(model, batch_size), material.known, upward=upward)
    with torch.no_grad():
        return Learned(fitting.walk(grid.sigmas).fit.weights)


def choose(entries: Sequence[Entry], model: Model, effort: Effort) -> Entry:
    """The best of the ``entries`` for one number of steps that is nowhere worse than any that is not fitted.

    Raises:
        ValueError: if none of them has scores.
    """
    default = next(e for e in entries if (e.solver, e.grid.name, e.fitted) == (*effort.default, False))
    rivals = [_scores(entry) for entry in entries if not entry.fitted]
    allowed = [entry for entry in entries if all(_nowhere_worse(_scores(entry), rival) for rival in rivals)]
    # Without a default that leads anywhere, and with others of which none is best in everything, any is better.
    best = min(allowed or ([] if default.scores else entries), key=_size, default=default)
    if not best.scores:
        raise ValueError(
            f"no solver leads to finite numbers in {best.grid.steps} steps with model '{model.name}'; look at its "
            "samples"
        )
    # A default without scores leaves nothing to compare with.
    usual = {f"{name} of the default": value for name, value in default.scores.items()}
    return replace(best, scores={**best.scores, **usual})


def _scores(entry: Entry) -> Mapping[str, float]:
    """The errors of an entry, which are infinite where it led to no finite numbers."""
    return entry.scores or dict.fromkeys(SCORES, inf)


def _nowhere_worse(scores: Mapping[str, float], rival: Mapping[str, float]) -> bool:
    return all(
        value <= (max(rival[name], MOMENT_FLOOR) if name == "moment" else rival[name]) for name, value in scores.items()
    )


def _size(entry: Entry) -> float:
    """The logarithms of the three errors, weighed; the moment only has to be right.

    That of decoding counts as much as the two that are of encoding together.
    """
    return sum(weight * log(max(_scores(entry)[name], 1e-12)) for name, weight in WEIGHTS.items())


def learn_solver(
    session: Session,
    steps: int | Sequence[int] = 8,
    *,
    latents: int = 32,
    pictures: Sequence[Readable] = (),
    walks: int = WALKS,
    seed: int = 0,
    label: Label | None = None,
    guidance: float | None = None,
    folder: Path | str | None = None,
) -> Calibration:
    """Learn solvers for the model of a ``session``, for one number of ``steps`` or several, in minutes each.

        calibration = learn_solver(session, steps=8)
        session = session.calibrated(calibration)
        pictures = session.sample(16, steps=8)
        save_calibration(session.model.calibration, "calibration.json")

    Beside the weights of a model, under that name, it is found again. One batch of the session serves searching and
    polishing: on a GPU take a large one, more latents, and more pictures.

    ``latents``      random ones, half of them for judging; ``pictures`` too, or else images of other random latents.
    ``walks``        for each number of steps and direction, as in ``Effort``; 0 for no search.
    ``label, guidance``  what it is learned under; it is for the guidance, whatever the class.
    ``folder``       keeps the work, so that it can be stopped and go on.

    Raises:
        ValueError: as ``calibrate`` and ``Effort`` do.
    """
    model = session.model
    budgets = (steps,) if isinstance(steps, int) else tuple(steps)
    effort = Effort(usual(model), budgets, latents, batch_size=max(2, session.batch_size), seed=seed, walks=walks)
    condition = plan_condition(Request(label=label, guidance=guidance), model)
    images = torch.cat([model.space.read(picture)[0] for picture in pictures]) if pictures else None
    with TemporaryDirectory() as temporary:
        work = Path(folder or temporary)
        return calibrate(model, images, effort, work, condition=condition, tf32=session.tf32)
