"""What solvers are fitted to and judged by: trajectories of random latents and of real images, in small steps.

Every second one is for the fit, the others for judging it. What is judged, each against the trajectory (RMSE per
dimension, 95 % trimmed mean over the images):

``decode``      the image of a random latent, pixels in [-1, 1].
``latent``      the latent of a real image.
``round_trip``  a real image, encoded and decoded.
``moment``      the second moment of the latents of real images, as its relative distance from the true one.

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, for the ODE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite, prod
from pathlib import Path

import torch
from torch import Tensor

from ddim_ode.codec import decode, draw_latents, encode, seeded, to_device
from ddim_ode.grids import Grid, make_grid
from ddim_ode.models import Model
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.session.check import mean_square
from ddim_ode.session.request import default_grid
from ddim_ode.session.trajectories import Trajectories, join, trajectory_solver, walk
from ddim_ode.solvers import Solver, SolverError
from ddim_ode.work import load_tensors, save_tensors

BUDGETS = (5, 6, 8, 10, 12, 15, 20)
CLEAN_END = "sigma-min"
# In 10 steps they are enough for two sweeps of the decoder's search, where most is gained in the first.
WALKS = 60
# Enough for two CPU cores.
BATCH_SIZE = 16
SCORES = ("decode", "latent", "round_trip", "moment")


@dataclass(frozen=True)
class Effort:
    """How much work: ``latents`` and images are halved; ``reference_steps`` of the trajectories.

    ``default``      solver and grid that nothing may be worse than.
    ``budgets``      in steps.
    ``batch_size``   so many trajectories are walked at once, and serve searching and polishing; half are of latents.
    ``walks``        of a batch that a search for nodes, and for what to tell the network, may take in each direction;
                     those up are decoded too, which makes four times as many in all. Polishing takes no more again.

    Raises:
        ValueError: for fewer than 2 latents or 0 walks, a batch of fewer than 2, a wrong seed, or budgets that are
            repeated, or outside of what the trajectories can judge.
    """

    default: tuple[str, str]
    budgets: tuple[int, ...] = BUDGETS
    latents: int = 32
    reference_steps: int = 160
    batch_size: int = BATCH_SIZE
    seed: int = 0
    walks: int = WALKS

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
        if self.batch_size < 2:
            raise ValueError(f"a batch must hold 2 trajectories or more, but it holds {self.batch_size}")
        if self.walks < 0:
            raise ValueError(f"walks must be 0 or more, but they are {self.walks}")


@dataclass(frozen=True, eq=False)
class Material:
    """Trajectories to fit to and to judge by, of random ``latents`` and of real ``images``."""

    fit_latents: Trajectories
    fit_images: Trajectories
    latents: Trajectories
    images: Trajectories

    @cached_property
    def known(self) -> Trajectories:
        """All that is fitted to."""
        return join([self.fit_latents, self.fit_images])


def check_memory(model: Model, images: int, effort: Effort) -> None:
    """Raise ValueError if the trajectories of so many images and of the latents do not fit where the network is."""
    # States and slopes at each node, and once more as one batch to fit to.
    each = 4 * 8 * (effort.reference_steps + 1) * prod(model.space.shape)
    total = _memory(model.device)
    need = each * (images + effort.latents)
    if need > total:
        raise ValueError(
            f"the trajectories of {effort.latents} latents and {images} images take {need / 1e9:.0f} GB of memory, and "
            f"there are {total / 1e9:.0f}; take at most {total // each} of both together"
        )


def _memory(device: torch.device) -> int:
    """The bytes that ``device`` has."""
    import psutil

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def gather(
    model: Model, images: Tensor | None, effort: Effort, folder: Path, names: Sequence[str] | None = None
) -> Material:
    """Walk the trajectories of ``images``, ``(B, C, H, W)``, and of random latents, or read those in ``folder``.

    Without images those of other random latents take their place.
    """
    # Uniform in time for flow matching, which reaches infinity by it.
    fine = make_grid(
        model.schedule, default_grid(model, trajectory_solver(model)), effort.reference_steps, clean_end=CLEAN_END
    )
    count = effort.latents * (2 if images is None else 1)
    x_T = draw_latents(count, model.space.shape, seed=effort.seed)
    latents = _walked(model, x_T, None, fine, effort, folder / "latents.pt", upward=False)
    if images is None:
        real, latents = latents.take(slice(effort.latents, None)), latents.take(slice(0, effort.latents))
    else:
        real = _walked(model, images, names, fine, effort, folder / "images.pt", upward=True)
    fit_to, judge_by = slice(0, None, 2), slice(1, None, 2)
    return Material(latents.take(fit_to), real.take(fit_to), latents.take(judge_by), real.take(judge_by))


def _walked(
    model: Model, begin: Tensor, names: Sequence[str] | None, grid: Grid, effort: Effort, path: Path, *, upward: bool
) -> Trajectories:
    """The trajectories from images or from x_T, ``(B, C, H, W)``; from the file ``path``, if it is there."""
    if not path.exists():
        label = f"reference {path.stem}"
        found = walk(model, begin, grid, upward=upward, batch_size=effort.batch_size, label=label, names=names)
        save_tensors((torch.tensor(found.u, dtype=torch.float64), found.y, found.slopes), path)
    nodes = len(grid.sigmas)
    u, y, slopes = load_tensors(path, [(nodes,), (nodes, *begin.shape), (nodes, *begin.shape)])
    return Trajectories(tuple(u.tolist()), to_device(y, model.device), to_device(slopes, model.device))


def judge(
    model: Model, material: Material, solver: Solver, grid: Grid, *, batch_size: int = BATCH_SIZE
) -> dict[str, float]:
    """The four errors of a solver on what it was not fitted to, by the names in ``SCORES``.

    ``batch_size``  so many go through the network together.

    Raises:
        SolverError: if one is not a finite number.
    """

    def each(way: Callable[[ProbabilityFlowODE, Tensor, Grid, Solver], Tensor], x: Tensor) -> Tensor:
        return torch.cat([way(model.ode(), part, grid, solver) for part in torch.split(x, batch_size)])

    images, truth = material.images.at(grid.sigmas[0]), material.images.latents(grid.sigma_T)
    decoded = each(decode, material.latents.latents(grid.sigma_T))
    x_T = each(encode, images)
    again = each(decode, x_T)
    moments = (x_T.square().mean() / truth.square().mean() - 1).abs()
    errors = (decoded - material.latents.at(grid.sigmas[0]), x_T - truth, again - images)
    scores = dict(zip(SCORES, (*map(_rmse, errors), float(moments)), strict=True))
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
