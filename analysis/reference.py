"""Latents to measure others against: the ODE of a model, solved as well as its float32 network allows.

What keeps methods of high order from converging are the kinks of t(sigma) at the timesteps of training, and the traces
in the network's output of the sines of up to one radian a timestep through which it sees t. Equal steps in log sigma
pass the timesteps near the data, where they lie farthest apart in log sigma, in many steps each, and are about as long
as a timestep elsewhere. There a multistep method of third order is off by 6e-5 in latents in 320 steps, and by 2e-6 in
640, for the model that ships; rk4 over every fourth timestep, for three times the evaluations, was off by 4e-3. The
accuracy of a reference is its distance to a walk in half as many steps, whose error is the larger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, log, sqrt
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ddim_ode.codec import to_device
from ddim_ode.grids import Grid
from ddim_ode.models import Model
from ddim_ode.solvers import correctable, get_solver
from ddim_ode.work import load_tensors, save_tensors

from .pictures import rms_of_all, spread_over

# Where solutions to measure others against are kept, for all scripts.
REFERENCES = Path("demo/references")
SOLVER = "reab3"
# From sigma = 0 to the smallest of training, and back, it is one step.
BELOW = "rk4"
CHECKED = 4  # as many images, spread over all, make the second walk
# Of what is kept; another where other nodes are walked, or other members.
FORMAT = 2

# The clean end and the timestep of the noisy end, which is an index of training: what a reference depends on.
End = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Reference:
    """``x_T``: latents ``(B, C, H, W)``; ``accuracy``: their RMSE to the coarser walk, of a few images."""

    x_T: Tensor
    accuracy: float


@dataclass(frozen=True, eq=False)
class ReferenceImages:
    """Images ``(B, C, H, W)`` by the clean end they are at; ``accuracy`` as that of the latents."""

    at: Mapping[str, Tensor]
    accuracy: float


def end_of(grid: Grid) -> End:
    """The two ends of ``grid``."""
    return grid.clean_end, round(grid.timesteps[-1])


def make_references(
    model: Model, images: Tensor, ends: Collection[End], *, folder: Path, stride: int = 1, batch_size: int = 16
) -> dict[End, Reference]:
    """The reference latents of ``images``, ``(B, C, H, W)`` in [-1, 1], for all ``ends``; with a progress bar.

    ``folder``  keeps them, for any model and images; what is there is not computed again.
    ``stride``  timesteps to a step, on average: 1 for the best, more for a hurry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = _key(model, images, stride)
    paths = {end: folder / f"{key}-{end[0]}-{end[1]}.pt" for end in ends}
    for clean_end in sorted({clean_end for clean_end, _ in ends}):
        missing = sorted(t for end, t in ends if end == clean_end and not paths[end, t].exists())
        if missing:
            begin, sigma_min = images.double(), model.schedule.sigma_min
            if clean_end == "zero":
                begin = _below(model, begin, [0.0, sigma_min], batch_size)
            through = [sigma_min, *(float(model.schedule.sigma(t)) for t in missing)]
            found = _fine_and_coarse(model, begin, through, stride, batch_size, f"reference latents from {clean_end}")
            for t, states in zip(missing, found, strict=True):
                save_tensors(states, paths[clean_end, t])
    references = {}
    for end, path in paths.items():
        fine, coarse = load_tensors(path, (images.shape, images[_checked(len(images))].shape))
        references[end] = _reference(fine, coarse, float(model.schedule.sigma(end[1])))
    return references


def decoded_references(
    model: Model, x_T: Tensor, *, folder: Path, stride: int = 1, batch_size: int = 16
) -> ReferenceImages:
    """What the latents ``x_T``, ``(B, C, H, W)``, at the last timestep are decoded to; with a progress bar.

    ``folder``  keeps it, for any model and latents; what is there is not computed again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_key(model, x_T, stride)}-images.pt"
    if not path.exists():
        through = [model.schedule.sigma_max, model.schedule.sigma_min]
        begin = x_T.double() * sqrt(1 + model.schedule.sigma_max**2)
        ((fine, coarse),) = _fine_and_coarse(model, begin, through, stride, batch_size, "reference images")
        at_zero = _below(model, fine, [model.schedule.sigma_min, 0.0], batch_size)
        save_tensors((fine, at_zero, coarse), path)
    shapes = (x_T.shape, x_T.shape, x_T[_checked(len(x_T))].shape)
    at_sigma_min, at_zero, coarse = load_tensors(path, shapes)
    return ReferenceImages({"sigma-min": at_sigma_min, "zero": at_zero}, _distance(at_sigma_min, coarse))


def _key(model: Model, x: Tensor, stride: int) -> str:
    """A name for what a reference from ``x``, ``(B, C, H, W)``, depends on beside its end."""
    schedule = model.schedule
    asked = (model.prediction, len(schedule), schedule.sigma_min, schedule.sigma_max)
    about = repr((FORMAT, SOLVER, BELOW, stride, model.fingerprint, *asked))
    content = x.double().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(about.encode() + content).hexdigest()[:16]


def _fine_and_coarse(
    model: Model, x_bar: Tensor, through: Sequence[float], stride: int, batch_size: int, label: str
) -> list[tuple[Tensor, Tensor]]:
    """What ``_walk`` gives, each with the states of some members in half as many steps."""
    fine = _walk(model, x_bar, through, stride, batch_size, label)
    coarse = _walk(model, x_bar[_checked(len(x_bar))], through, 2 * stride, batch_size, "in half as many steps")
    return list(zip(fine, coarse, strict=True))


def _walk(
    model: Model, x_bar: Tensor, through: Sequence[float], stride: int, batch_size: int, label: str
) -> list[Tensor]:
    """The states from ``x_bar``, ``(B, C, H, W)``, at the first sigma it goes ``through``, at each other; on the CPU.

    With a progress bar called ``label``.
    """
    grid, wanted = _nodes(model, through, stride)
    batches = torch.split(x_bar, batch_size)
    found: list[list[Tensor]] = []
    with torch.no_grad(), tqdm(total=len(batches) * (len(grid) - 1), desc=label, disable=None) as bar:
        for batch in batches:
            points = correctable(SOLVER).trajectory(model.ode(), to_device(batch, model.device), grid)
            states = []
            for n, (_, solution) in enumerate(points):
                if n in wanted:
                    states.append(solution.x.cpu().double())
                bar.update(n > 0)
            found.append(states)
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _nodes(model: Model, through: Sequence[float], stride: int) -> tuple[Tensor, set[int]]:
    """Equal steps in log sigma from each sigma to the next, and the numbers of those to come ``through``."""
    schedule = model.schedule
    step = stride * log(schedule.sigma_max / schedule.sigma_min) / (len(schedule) - 1)
    sigmas, wanted = [through[0]], set()
    for a, b in pairwise(through):
        count = ceil(abs(log(b / a)) / step - 1e-9)
        sigmas += [*(a * (b / a) ** (n / count) for n in range(1, count)), b]
        wanted.add(len(sigmas) - 1)
    return torch.tensor(sigmas, dtype=torch.float64), wanted


def _below(model: Model, x_bar: Tensor, sigmas: Sequence[float], batch_size: int) -> Tensor:
    """The states from ``x_bar``, ``(B, C, H, W)``, after one step between sigma = 0 and the smallest of training."""
    grid, solver = torch.tensor(sigmas, dtype=torch.float64), get_solver(BELOW)
    with torch.no_grad():
        parts = [solver(model.ode(), to_device(x, model.device), grid).cpu() for x in torch.split(x_bar, batch_size)]
    return torch.cat(parts).double()


def _reference(fine: Tensor, coarse: Tensor, sigma: float) -> Reference:
    """The reference made of the states x_bar of both walks at ``sigma``, ``(B, C, H, W)``."""
    scale = sqrt(1 + sigma**2)
    return Reference(fine / scale, _distance(fine, coarse) / scale)


def _distance(fine: Tensor, coarse: Tensor) -> float:
    """The RMSE of the ``coarse`` states to those of the ``fine`` ones, ``(B, C, H, W)``, that were checked."""
    return rms_of_all(fine[_checked(len(fine))] - coarse)


def _checked(count: int) -> list[int]:
    """The numbers of those of so many members whose accuracy is found out."""
    return spread_over(min(CHECKED, count), count)
