"""Grids: which noise levels to visit on the way between an image and its latent; ``spacings`` has the rules.

Notation: ``tau`` is a sub-sequence of the timesteps of training (DDIM, arXiv 2010.02502, Section 4.2), ``steps`` the
number of intervals. A grid has steps + 1 nodes in rising sigma; encoding walks it upwards, decoding downwards.

The clean end is the node where the image is:

``zero``       sigma = 0, alpha_bar = 1, as in the paper, its code and diffusers; the network is called there with
               t = 0. The other ``steps`` nodes are the timesteps of tau.
``sigma-min``  the smallest sigma of training, at t = 0; the image is taken as x_bar there, as in dpm-solver, and
               the network is never called outside of what it was trained on.
``sigma-min-vp``  the same sigma; the image is taken as x = sqrt(alpha_bar) x_bar there, as in diffusers where
               ``set_alpha_to_one`` is false, which is so of Stable Diffusion.

The other end may be sigma = infinity, where there is noise alone, in flow matching and with zero terminal SNR. The
spacings then put their nodes up to ``HIGHEST``, and the last step leads from there to infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor, isclose, isinf, sqrt
from typing import TYPE_CHECKING

from ddim_ode.spacings import GRIDS, Tau

if TYPE_CHECKING:
    from torch import Tensor

    from ddim_ode.levels import Levels

VP_END = "sigma-min-vp"
CLEAN_ENDS = ("zero", "sigma-min", VP_END)
# Up to here spacings put nodes where there is no end; of 10 to 400 it serves 'dpmpp3m' best, on a mixture of Gaussians.
HIGHEST = 20.0
ENDS = "ends"
LEARNED = "learned"


@dataclass(frozen=True)
class Grid:
    """The nodes of a walk: ``sigmas``, rising, and ``timesteps``, the indices of training they stand for.

    ``name``       how the nodes were chosen: a key of ``GRIDS``, 'explicit', 'learned' for those of a calibration, or
                   'ends' for the two ends alone.
    ``clean_end``  one of ``CLEAN_ENDS``.

    Raises:
        ValueError: if the sigmas do not rise strictly from >= 0, or the two lists differ in length.
    """

    name: str
    clean_end: str
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.clean_end not in CLEAN_ENDS:
            raise ValueError(f"unknown clean end '{self.clean_end}'; choose one of: {', '.join(CLEAN_ENDS)}")
        if len(self.sigmas) < 2 or len(self.sigmas) != len(self.timesteps):
            raise ValueError(
                f"a grid needs at least two sigmas and as many timesteps, "
                f"but it has {len(self.sigmas)} and {len(self.timesteps)}"
            )
        if not self.sigmas[0] >= 0:
            raise ValueError(f"sigma must not be negative, but the grid begins at {self.sigmas[0]:g}")
        for i, (sigma, following) in enumerate(pairwise(self.sigmas)):
            if not following > sigma:
                raise ValueError(f"sigmas must rise strictly, but sigma[{i + 1}] = {following:g} follows {sigma:g}")

    @property
    def steps(self) -> int:
        """The number of intervals, one less than the number of nodes."""
        return len(self.sigmas) - 1

    @property
    def sigma_T(self) -> float:
        """The noise level of the latent."""
        return self.sigmas[-1]

    def check_belongs(self, schedule: Levels) -> None:
        """Raise ValueError unless each node is a noise level of ``schedule``, with the timestep it stands for."""
        zero = int(self.sigmas[0] == 0)
        if bool(zero) != (self.clean_end == "zero") or (zero and self.timesteps[0] != 0):
            raise ValueError(
                f"the grid begins at sigma = {self.sigmas[0]:g}, t = {self.timesteps[0]:g}, which is not the clean end "
                f"'{self.clean_end}'"
            )
        expected = schedule.sigma(_tensor(self.timesteps[zero:])).tolist()
        for sigma, t, right in zip(self.sigmas[zero:], self.timesteps[zero:], expected, strict=True):
            if not isclose(sigma, right, rel_tol=1e-6):
                raise ValueError(
                    f"sigma = {sigma:g} of the grid contradicts its timestep {t:g}, which is sigma = {right:g} of "
                    f"schedule '{schedule.name}'"
                )

    def upward(self) -> Tensor:
        """The sigmas in the order of encoding; float64, shape ``(steps + 1,)``."""
        import torch

        return torch.tensor(self.sigmas, dtype=torch.float64)

    def downward(self) -> Tensor:
        """The sigmas in the order of decoding; float64, shape ``(steps + 1,)``."""
        return self.upward().flip(0)


def halved(grid: Grid, schedule: Levels) -> Grid:
    """``grid`` with one node more in the middle of each step, as ``middle`` has it."""
    sigmas = [grid.sigmas[0]]
    for sigma, following in pairwise(grid.sigmas):
        sigmas += [middle(sigma, following), following]
    timesteps = [float(t) for t in schedule.t(_tensor(sigmas))]
    return Grid("explicit", grid.clean_end, tuple(sigmas), tuple(timesteps))


def learned_grid(schedule: Levels, sigmas: Sequence[float], clean_end: str) -> Grid:
    """The grid of these rising ``sigmas``, which somebody found to be good ones."""
    return Grid(LEARNED, clean_end, tuple(sigmas), tuple(float(t) for t in schedule.t(_tensor(sigmas))))


def middle(sigma: float, following: float) -> float:
    """A sigma between two: in the middle of their logarithms, of sigma from 0, and of 1 / sigma up to infinity."""
    if isinf(following):
        return 2 * sigma or 1.0
    return sqrt(sigma * following) if sigma else following / 2


def make_grid(
    schedule: Levels,
    name: str,
    steps: int,
    *,
    clean_end: str | None = None,
    t_end: float | None = None,
) -> Grid:
    """The grid called ``name`` with exactly ``steps`` steps.

    ``clean_end``  one of ``CLEAN_ENDS``; None for the default of the named grid.
    ``t_end``      the last timestep in use, T - 1 unless given; a ``tau`` may stop short of it.

    Raises:
        ValueError: for an unknown name, fewer than one step, or more than there are timesteps to choose from.
    """
    if name not in GRIDS:
        raise ValueError(f"unknown grid '{name}'; choose one of: {', '.join(sorted(GRIDS))}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but it is {steps}")
    last = len(schedule) - 1 if t_end is None else t_end
    if not 1 <= last <= len(schedule) - 1:
        raise ValueError(f"t_end must lie in [1, {len(schedule) - 1}], but it is {t_end}")
    kind = GRIDS[name]
    clean_end = clean_end or kind.clean_end
    nodes = steps if clean_end == "zero" else steps + 1
    if isinstance(kind, Tau):
        count = floor(last) + 1
        if nodes > count:
            raise ValueError(
                f"grid '{name}' with clean end '{clean_end}' and {steps} steps needs {nodes} timesteps, "
                f"but there are {count}; take fewer steps"
            )
        tau: Sequence[float] = kind.timesteps(steps, count)
        if clean_end != "zero":
            tau = kind.timesteps(nodes, count) if tau[0] == 0 else [0, *tau]
        return grid_of_timesteps(schedule, tau, name=name, clean_end=clean_end)
    sigma_end = float(schedule.sigma(last))
    finite = nodes - 1 if isinf(sigma_end) else nodes
    top = HIGHEST if isinf(sigma_end) else sigma_end
    alone = top if clean_end == "zero" else schedule.sigma_min
    sigmas = kind.sigmas(finite, schedule.sigma_min, top) if finite > 1 else [alone] * finite
    sigmas = [*sigmas, sigma_end] if isinf(sigma_end) else sigmas
    return _grid(schedule, name, clean_end, sigmas, [float(t) for t in schedule.t(_tensor(sigmas))])


def grid_of_timesteps(
    schedule: Levels, tau: Sequence[float], *, name: str = "explicit", clean_end: str = "zero"
) -> Grid:
    """The grid of an explicit ``tau``, rising within [0, T - 1]; fractional timesteps are allowed.

    With the clean end 'zero' the node sigma = 0 is put before them: as many steps as timesteps. With the others tau
    must begin at 0: one step less.

    Raises:
        ValueError: for timesteps out of range, repeated or falling, or a tau that must begin at 0 and does not.
    """
    if clean_end != "zero" and (not tau or tau[0] != 0):
        raise ValueError(f"with clean end '{clean_end}' tau must begin at 0, but it is {list(tau[:3])}...; put 0 first")
    for previous, t in pairwise(tau):
        if not t > previous:
            raise ValueError(f"timesteps must rise strictly, but {t:g} follows {previous:g}")
    sigmas = [float(sigma) for sigma in schedule.sigma(_tensor(tau))]
    return _grid(schedule, name, clean_end, sigmas, [float(t) for t in tau])


def full_range(schedule: Levels, *, clean_end: str = "sigma-min", t_end: float | None = None) -> Grid:
    """The two ends alone, for methods that step by themselves; a grid of the name ``ENDS``.

    Arguments and errors are those of ``make_grid``.
    """
    last = len(schedule) - 1 if t_end is None else t_end
    # Such methods begin at a finite sigma, one timestep below an infinite one.
    inner = [last - 1] if isinf(float(schedule.sigma(last))) else []
    tau = [*([] if clean_end == "zero" else [0]), *inner, last]
    return grid_of_timesteps(schedule, tau, name=ENDS, clean_end=clean_end)


def _grid(schedule: Levels, name: str, clean_end: str, sigmas: list[float], timesteps: list[float]) -> Grid:
    if clean_end == "zero":
        sigmas, timesteps = [0.0, *sigmas], [0.0, *timesteps]
    return Grid(name, clean_end, tuple(sigmas), tuple(timesteps))


def _tensor(values: Sequence[float]) -> Tensor:
    import torch

    return torch.tensor(values, dtype=torch.float64)
