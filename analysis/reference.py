"""Latents to measure others against: the ODE of a model, solved as well as its float32 network allows.

Two things keep methods of high order from converging before their steps are shorter than a timestep of training:
t(sigma) has a kink at every timestep, and the network sees t through sines of up to one radian a timestep, whose
traces in its output (a few thousandths) have a period of six timesteps. The reference therefore walks with rk4 over
every timestep. Its accuracy is the distance to a walk over every second one, whose error is the larger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ddim_ode.codec import to_device
from ddim_ode.grids import Grid
from ddim_ode.models import Model
from ddim_ode.work import load_tensors, save_tensors
from solvers import get_solver

# Where solutions to measure others against are kept, for all scripts.
REFERENCES = Path("demo/references")
SOLVER = "rk4"
CHECKED = 4  # as many images make the second walk
STAGE = 100  # as many steps from one saved stage to the next

# The clean end and the timestep of the noisy end, which is an index of training: what a reference depends on.
End = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Reference:
    """``x_T``: latents ``(B, C, H, W)``; ``accuracy``: their RMSE to the coarser walk, of the first images."""

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
    ``stride``  step over as many timesteps at once: 1 for the best, more for a hurry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    references: dict[End, Reference] = {}
    here: End = ("", 0)
    key = _key(model, images, stride)
    for end in tqdm(_with_stages(ends, STAGE * stride), desc="reference latents", disable=None):
        if end[0] != here[0]:
            here, fine, coarse = (end[0], 0), images.double(), images[:CHECKED].double()
        path = folder / f"{key}-{end[0]}-{end[1]}.pt"
        if path.exists():
            fine, coarse = load_tensors(path, (fine.shape, coarse.shape))
        else:
            fine = _walk(model, fine, here, end[1], stride, batch_size)
            coarse = _walk(model, coarse, here, end[1], 2 * stride, batch_size)
            save_tensors((fine, coarse), path)
        here = end
        references[end] = _reference(fine, coarse, float(model.schedule.sigma(end[1])))
    return {end: references[end] for end in ends}


def decoded_references(model: Model, x_T: Tensor, *, folder: Path, stride: int = 1) -> ReferenceImages:
    """What the latents ``x_T``, ``(B, C, H, W)``, at the last timestep are decoded to; with a progress bar.

    ``folder``  keeps it, for any model and latents; what is there is not computed again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = _key(model, x_T, stride)
    path = folder / f"{key}-images.pt"
    if not path.exists():
        fine = x_T.double() * sqrt(1 + model.schedule.sigma_max**2)
        coarse, stage = fine[:CHECKED], STAGE * stride
        for t in tqdm(range(len(model.schedule) - 1, 0, -stage), desc="reference images", disable=None):
            t_end = max(t - stage, 0)
            part = folder / f"{key}-down-{t_end}.pt"
            if part.exists():
                fine, coarse = load_tensors(part, (fine.shape, coarse.shape))
            else:
                fine = _walk(model, fine, ("sigma-min", t), t_end, stride, len(fine))
                coarse = _walk(model, coarse, ("sigma-min", t), t_end, 2 * stride, len(coarse))
                save_tensors((fine, coarse), part)
        last_step = torch.tensor([model.schedule.sigma_min, 0.0], dtype=torch.float64)
        at_zero = _solve(model, fine, last_step)
        save_tensors((fine, at_zero, coarse), path)
    shapes = (x_T.shape, x_T.shape, x_T[:CHECKED].shape)
    at_sigma_min, at_zero, coarse = load_tensors(path, shapes)
    accuracy = (at_sigma_min[: len(coarse)] - coarse).square().mean().sqrt()
    return ReferenceImages({"sigma-min": at_sigma_min, "zero": at_zero}, float(accuracy))


def _key(model: Model, x: Tensor, stride: int) -> str:
    """A name for what a reference from ``x``, ``(B, C, H, W)``, depends on beside its end."""
    content = x.double().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(f"{model.fingerprint} {stride} ".encode() + content).hexdigest()[:16]


def _with_stages(ends: Collection[End], stage: int) -> list[End]:
    """``ends`` in the order of the walk, with stages between them, so that a killed run loses little."""
    stages = {(clean_end, t) for clean_end, t_end in ends for t in range(stage, t_end, stage)}
    return sorted(stages.union(ends))


def _walk(model: Model, x_bar: Tensor, begin: End, t_end: int, stride: int, batch_size: int) -> Tensor:
    """The states ``x_bar``, ``(B, C, H, W)``, from timestep ``begin[1]``, where 0 is the clean end, to ``t_end``."""
    clean_end, t_begin = begin
    timesteps = range(t_begin, t_end, stride if t_end > t_begin else -stride)
    sigmas = model.schedule.sigma(torch.tensor([*timesteps, t_end], dtype=torch.float64))
    if clean_end == "zero" and t_begin == 0:
        sigmas = torch.cat([torch.zeros(1, dtype=torch.float64), sigmas])
    return torch.cat([_solve(model, batch, sigmas) for batch in torch.split(x_bar, batch_size)])


def _solve(model: Model, x_bar: Tensor, sigmas: Tensor) -> Tensor:
    """The states at ``sigmas[-1]``, from ``x_bar``, ``(B, C, H, W)``, at ``sigmas[0]``; float64 on the CPU."""
    with torch.no_grad():
        return get_solver(SOLVER)(model.ode(), to_device(x_bar, model.device), sigmas).cpu().double()


def _reference(fine: Tensor, coarse: Tensor, sigma: float) -> Reference:
    """The reference made of the states x_bar of both walks at ``sigma``, ``(B, C, H, W)``."""
    scale = sqrt(1 + sigma**2)
    accuracy = (fine[: len(coarse)] - coarse).square().mean().sqrt() / scale
    return Reference(fine / scale, float(accuracy))
