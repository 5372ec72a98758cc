"""Fit solvers to a model: for a few numbers of steps, the solver, the grid and the corrections that serve it best.

The solutions fitted to are trajectories in small steps: of random latents downwards, of real images upwards. Every
second one is for the fit, the others for judging it. What is judged, each against the trajectory (RMSE per dimension,
95 % trimmed mean over the images):

``decode``      the image of a random latent, pixels in [-1, 1].
``latent``      the latent of a real image.
``round_trip``  a real image, encoded and decoded.
``moment``      the second moment of the latents of real images, as its relative distance from the true one.

The candidates differ in the grid, that is in how few steps they take at large sigma, where decoding in few steps needs
more of them than encoding. One that is worse in any of the four errors than the default solver on its grid, or than
what it is fitted from, is refused. Of the others that one is chosen whose errors are smallest in the geometric mean,
weighed; if none, the default.

Encoder and decoder are both fitted to the trajectories. An encoder fitted to undo the fitted decoder instead, in 10
steps of an earlier model, has latents 1.45 times as far off, and a round trip that is no better.

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, for the ODE; ``solvers.fitted`` for the fit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite, isinf, log, prod, sqrt
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ddim_ode.calibration import Calibration, Entry, Weights
from ddim_ode.codec import decode, draw_latents, encode, seeded
from ddim_ode.conditions import UNCONDITIONAL, Condition
from ddim_ode.files import write_file
from ddim_ode.grids import Grid, make_grid
from ddim_ode.models import Model
from ddim_ode.session.check import mean_square
from ddim_ode.session.trajectories import Trajectories, join, walk
from ddim_ode.work import claimed, load_json, load_tensors, reading, save_tensors
from solvers import SOLVERS, Solver, SolverError, correctable, fitted
from solvers.fitted import fit

# From 30 steps on a fit decodes and encodes better than the default, but its round trip is worse: the errors of the
# default, there and back, cancel.
BUDGETS = (5, 6, 8, 10, 12, 15, 20)
# To fit. In 10 steps, for a model of the architecture that ships, reab2 and dpmpp3m err 5 to 24 % more on capped-50,
# and reab3 1.4 to 1.6 times as much on log-snr; on quad its latents are 2.6 times as far off.
SOLVER = "reab3"
# Searched: the ceiling. With 25 decoding errs 1.5 to 1.8 times as much as with 50, in 5 to 10 steps. Fewer steps at the
# smallest sigmas as well make decoding in 5 steps better by 40 %, and its latents more than twice as bad.
GRID_NAMES = ("capped-50", "capped-100", "capped-200")
CLEAN_END = "sigma-min"
WEIGHTS = {"decode": 2, "latent": 1, "round_trip": 1}
SCORES = (*WEIGHTS, "moment")
# A moment that is so near to the true one is as good as any.
MOMENT_FLOOR = 0.005


@dataclass(frozen=True)
class Effort:
    """How much work: ``latents`` and images are halved; ``reference_steps`` of the trajectories; ``budgets`` in steps.

    ``default``  solver and grid that a candidate must not be worse than.

    Raises:
        ValueError: for fewer than 2 latents, a wrong seed, or a budget outside of what the trajectories can judge.
    """

    default: tuple[str, str]
    budgets: tuple[int, ...] = BUDGETS
    latents: int = 32
    reference_steps: int = 160
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        most = self.reference_steps // 2
        for steps in self.budgets:
            if not 1 <= steps <= most:
                raise ValueError(f"a solver can be fitted to from 1 to {most} steps, but {steps} are asked for")
        seeded(self.seed)  # which refuses a wrong one before any work
        if len(set(self.budgets)) < len(self.budgets):
            raise ValueError(f"numbers of steps must differ, but they are {self.budgets}; name each once")
        if self.latents < 2:
            raise ValueError(f"there must be 2 latents or more, half of them for judging, but there are {self.latents}")


@dataclass(frozen=True)
class Candidate:
    """A solver and a grid, by their names, with or without corrections, on so many steps."""

    solver: str
    grid: str
    steps: int
    fitted: bool


@dataclass(frozen=True)
class Result:
    """The corrections that were fitted for a candidate, and its errors."""

    candidate: Candidate
    up: Weights
    down: Weights
    scores: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Material:
    """Trajectories: those to fit to, and those to judge by, of random latents and of real images."""

    known: Trajectories
    latents: Trajectories
    images: Trajectories


def calibrate(
    model: Model,
    images: Tensor,
    effort: Effort,
    folder: Path,
    names: Sequence[str] | None = None,
    *,
    condition: Condition = UNCONDITIONAL,
) -> Calibration:
    """The calibration of ``model``, from ``images`` ``(B, C, H, W)`` in [-1, 1], of which half is kept for judging.

    ``folder``     keeps the trajectories and each candidate's result; what is there is not done again.
    ``names``      of the images, for messages.
    ``condition``  what the network is asked for; the calibration is for its guidance.

    Raises:
        ValueError: if there is not the memory for the trajectories, the network gives no finite numbers, or the noise
            levels of the model have no end.
    """
    if isinf(model.schedule.sigma_max):
        raise ValueError(
            f"model '{model.name}' ends at sigma = infinity, and calibrations are for a finite end; leave it out, and "
            "name a solver and steps"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _check_memory(model, len(images), effort)
    asked = model.bound(condition)
    material = gather(asked, images, effort, folder, names)
    results = [*measure(asked, material, effort, folder)]
    chosen = (choose([r for r in results if r.candidate.steps == steps], asked, effort) for steps in effort.budgets)
    entries = tuple(replace(entry, guidance=condition.strength) for entry in chosen)
    settings = {
        **asdict(effort),
        "images": len(images),
        "solver": SOLVER,
        "grids": GRID_NAMES,
        "condition": str(condition),
    }
    return Calibration(model.fingerprint, entries, {f"guidance {condition.strength!r}": settings})


def _check_memory(model: Model, images: int, effort: Effort) -> None:
    """Raise ValueError if the trajectories of so many images and of the latents do not fit into this machine."""
    import psutil

    # States and slopes at each node, and once more as one batch to fit to.
    each = 4 * 8 * (effort.reference_steps + 1) * prod(model.space.shape)
    total = psutil.virtual_memory().total
    need = each * (images + effort.latents)
    if need > total:
        raise ValueError(
            f"the trajectories of {effort.latents} latents and {images} images take {need / 1e9:.0f} GB of memory, and "
            f"there are {total / 1e9:.0f}; take at most {total // each} of both together"
        )


def calibrate_in(
    model: Model, pictures: Sequence[Path], effort: Effort, folder: Path, *, condition: Condition = UNCONDITIONAL
) -> Calibration:
    """``calibrate`` on all ``pictures``; a ``folder`` with the work for other settings is refused.

    Raises:
        ValueError: if there are no pictures, one cannot be read, or ``folder`` holds the work for another model, other
            pictures or another effort, or another process is at work there; and as ``calibrate`` does.
    """
    if not pictures:
        raise ValueError("there are no pictures to calibrate with; name a folder that holds some")
    _check_memory(model, len(pictures), effort)
    images = torch.cat([model.space.read(path)[0] for path in pictures])
    names = [path.name for path in pictures]
    settings = {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "images": names,
        "pixels": hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16],
        "effort": asdict(effort),
        "condition": str(condition),
        "torch": torch.__version__,
    }
    with claimed(folder):
        _claim(folder, json.loads(json.dumps(settings)))
        return calibrate(model, images, effort, folder, names, condition=condition)


def _claim(folder: Path, settings: Mapping[str, object]) -> None:
    """Write ``settings`` into ``folder``, or find them there."""
    path = folder / "settings.json"
    # Before there were conditions, there were none.
    before = {"condition": str(UNCONDITIONAL), **(load_json(path) or settings)}
    for key, value in settings.items():
        if before.get(key) != value:
            raise ValueError(f"'{folder}' holds the work for another {key}; choose another folder with --work")
    write_file(path, json.dumps(settings, indent=2).encode(), overwrite=True)


def gather(model: Model, images: Tensor, effort: Effort, folder: Path, names: Sequence[str] | None = None) -> Material:
    """Walk the trajectories of ``images``, ``(B, C, H, W)``, and of random latents, or read those in ``folder``."""
    fine = make_grid(model.schedule, "log-snr", effort.reference_steps, clean_end=CLEAN_END)
    x_T = draw_latents(effort.latents, model.space.shape, seed=effort.seed)
    x_bar_T = x_T * sqrt(1 + fine.sigma_T**2)
    latents = _walked(model, x_bar_T, None, fine, effort, folder / "latents.pt", upward=False)
    real = _walked(model, images, names, fine, effort, folder / "images.pt", upward=True)
    fit_to, judge_by = slice(0, None, 2), slice(1, None, 2)
    return Material(
        join([latents.take(fit_to), real.take(fit_to)]),
        latents.take(judge_by),
        real.take(judge_by),
    )


def _walked(
    model: Model, x_bar: Tensor, names: Sequence[str] | None, grid: Grid, effort: Effort, path: Path, *, upward: bool
) -> Trajectories:
    """The trajectories from ``x_bar``, ``(B, C, H, W)``; from the file ``path``, if it is there."""
    if not path.exists():
        label = f"reference {path.stem}"
        found = walk(model, x_bar, grid, upward=upward, batch_size=effort.batch_size, label=label, names=names)
        save_tensors((torch.tensor(found.u, dtype=torch.float64), found.y, found.slopes), path)
    nodes = len(grid.sigmas)
    u, y, slopes = load_tensors(path, [(nodes,), (nodes, *x_bar.shape), (nodes, *x_bar.shape)])
    return Trajectories(tuple(u.tolist()), y.to(model.device), slopes.to(model.device))


def measure(model: Model, material: Material, effort: Effort, folder: Path) -> Iterator[Result]:
    """The result of every candidate, read from ``folder`` if it is there; with a progress bar."""
    candidates = [
        candidate
        for steps in effort.budgets
        for candidate in (
            Candidate(*effort.default, steps, fitted=False),
            *(Candidate(SOLVER, grid, steps, fitted=corrected) for grid in GRID_NAMES for corrected in (False, True)),
        )
    ]
    for candidate in tqdm(candidates, desc="candidates", disable=None):
        name = f"{candidate.steps}-{candidate.solver}-{candidate.grid}{'-fitted' if candidate.fitted else ''}.json"
        path = folder / name
        if path.exists():
            yield _load_result(candidate, path)
            continue
        result = try_out(model, material, candidate)
        write_file(path, json.dumps(asdict(result)).encode())
        yield result


def _load_result(candidate: Candidate, path: Path) -> Result:
    content = load_json(path)
    with reading(path):
        up, down = (tuple(tuple(map(float, step)) for step in content[way]) for way in ("up", "down"))
        scores = {name: float(content["scores"][name]) for name in SCORES}
        return Result(candidate, up, down, scores)


def try_out(model: Model, material: Material, candidate: Candidate) -> Result:
    """Fit, if it is to be fitted, and judge; a candidate that leaves the finite numbers is infinitely bad."""
    grid = make_grid(model.schedule, candidate.grid, candidate.steps, clean_end=CLEAN_END)
    try:
        if not candidate.fitted:
            return Result(candidate, (), (), judge(model, material, SOLVERS[candidate.solver], grid))
        states = material.known.along(grid)
        base = correctable(candidate.solver)
        with torch.no_grad():
            up = fit(base, model.ode(), states, grid.upward())
            down = fit(base, model.ode(), states[::-1], grid.downward())
        return Result(
            candidate, up, down, judge(model, material, fitted(candidate.solver, grid.sigmas, up, down), grid)
        )
    except SolverError:
        return Result(candidate, (), (), dict.fromkeys(SCORES, inf))


def judge(model: Model, material: Material, solver: Solver, grid: Grid) -> dict[str, float]:
    """The four errors of a solver on what it was not fitted to.

    Raises:
        SolverError: if one is not a finite number.
    """
    scale = sqrt(1 + grid.sigma_T**2)
    images, truth = material.images.at(grid.sigmas[0]), material.images.at(grid.sigma_T) / scale
    decoded = decode(model.ode(), material.latents.at(grid.sigma_T) / scale, grid, solver)
    x_T = encode(model.ode(), images, grid, solver)
    again = decode(model.ode(), x_T, grid, solver)
    moments = (x_T.square().mean() / truth.square().mean() - 1).abs()
    scores = {
        "decode": _rmse(decoded - material.latents.at(grid.sigmas[0])),
        "latent": _rmse(x_T - truth),
        "round_trip": _rmse(again - images),
        "moment": float(moments),
    }
    if not all(map(isfinite, scores.values())):
        raise SolverError(f"{solver.name}: the errors are not finite numbers: {scores}")
    return scores


def _rmse(error: Tensor) -> float:
    """The trimmed mean over the images of the root mean square of ``error``, ``(B, C, H, W)``."""
    return float(trimmed_mean(mean_square(error).sqrt()))


def trimmed_mean(values: Tensor) -> Tensor:
    """The mean of ``values``, ``(..., B)``, over the last dimension without the largest twentieth, rounded down.

    Of 64 values it leaves out three. The shape is ``(...)``.
    """
    count = values.shape[-1]
    return values.sort(-1).values[..., : count - count // 20].mean(-1)


def choose(results: Sequence[Result], model: Model, effort: Effort) -> Entry:
    """The best of the results for one number of steps that is nowhere worse than any that is not fitted.

    Raises:
        ValueError: if none of them is finite.
    """
    (default,) = [
        r for r in results if (r.candidate.solver, r.candidate.grid, r.candidate.fitted) == (*effort.default, False)
    ]
    rivals = [result.scores for result in results if not result.candidate.fitted]
    allowed = [result for result in results if all(_nowhere_worse(result.scores, rival) for rival in rivals)]
    best = min(allowed, key=_size, default=default)
    if not all(map(isfinite, best.scores.values())):
        raise ValueError(
            f"no solver leads to finite numbers in {best.candidate.steps} steps with model '{model.name}'; "
            "look at its samples"
        )
    grid = make_grid(model.schedule, best.candidate.grid, best.candidate.steps, clean_end=CLEAN_END)
    scores = {**best.scores, **{f"{name} of the default": value for name, value in default.scores.items()}}
    return Entry(best.candidate.solver, grid, best.up, best.down, scores)


def _nowhere_worse(scores: Mapping[str, float], rival: Mapping[str, float]) -> bool:
    return all(
        value <= (max(rival[name], MOMENT_FLOOR) if name == "moment" else rival[name]) for name, value in scores.items()
    )


def _size(result: Result) -> float:
    """The logarithms of the three errors, weighed; the moment only has to be right.

    That of decoding counts as much as the two that are of encoding together.
    """
    return sum(weight * log(max(result.scores[name], 1e-12)) for name, weight in WEIGHTS.items())
