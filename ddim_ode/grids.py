"""Grids: which noise levels to visit on the way between an image and its latent.

Notation: ``tau`` is a sub-sequence of the timesteps of training (DDIM, arXiv 2010.02502, Section 4.2), ``steps`` the
number of intervals. A grid has steps + 1 nodes in rising sigma; encoding walks it upwards, decoding downwards.

The clean end is the node where the image is:

``zero``       sigma = 0, alpha_bar = 1, as in the paper, its code and diffusers; the network is called there with
               t = 0. The other ``steps`` nodes are the timesteps of tau.
``sigma-min``  the smallest sigma of training, at t = 0; the image is taken as x_bar there, as in dpm-solver, and
               the network is never called outside of what it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor, log, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ddim_ode.schedule import NoiseSchedule

CLEAN_ENDS = ("zero", "sigma-min")
ENDS = "ends"


@dataclass(frozen=True)
class Grid:
    """The nodes of a walk: ``sigmas``, rising, and ``timesteps``, the indices of training they stand for.

    ``name``       how the nodes were chosen: a key of ``GRIDS``, 'explicit', or 'ends' for the two ends alone.
    ``clean_end``  'zero' or 'sigma-min'.

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

    def upward(self) -> Tensor:
        """The sigmas in the order of encoding; float64, shape ``(steps + 1,)``."""
        import torch

        return torch.tensor(self.sigmas, dtype=torch.float64)

    def downward(self) -> Tensor:
        """The sigmas in the order of decoding; float64, shape ``(steps + 1,)``."""
        return self.upward().flip(0)


def halved(grid: Grid, schedule: NoiseSchedule) -> Grid:
    """``grid`` with one node more in the middle of each step: in log sigma, or in sigma on a step from 0."""
    sigmas = [grid.sigmas[0]]
    for sigma, following in pairwise(grid.sigmas):
        sigmas += [sqrt(sigma * following) if sigma else following / 2, following]
    timesteps = [float(t) for t in schedule.t(_tensor(sigmas))]
    return Grid("explicit", grid.clean_end, tuple(sigmas), tuple(timesteps))


def make_grid(
    schedule: NoiseSchedule,
    name: str,
    steps: int,
    *,
    clean_end: str | None = None,
    t_end: float | None = None,
) -> Grid:
    """The grid called ``name`` with exactly ``steps`` steps.

    ``clean_end``  'zero' or 'sigma-min'; None for the default of the named grid.
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
        if clean_end == "sigma-min":
            tau = kind.timesteps(nodes, count) if tau[0] == 0 else [0, *tau]
        return grid_of_timesteps(schedule, tau, name=name, clean_end=clean_end)
    sigma_end = float(schedule.sigma(last))
    sigmas = kind.sigmas(nodes, schedule.sigma_min, sigma_end) if nodes > 1 else [sigma_end]
    return _grid(schedule, name, clean_end, sigmas, [float(t) for t in schedule.t(_tensor(sigmas))])


def grid_of_timesteps(
    schedule: NoiseSchedule, tau: Sequence[float], *, name: str = "explicit", clean_end: str = "zero"
) -> Grid:
    """The grid of an explicit ``tau``, rising within [0, T - 1]; fractional timesteps are allowed.

    With the clean end 'zero' the node sigma = 0 is put before them: as many steps as timesteps. With 'sigma-min' tau
    must begin at 0: one step less.

    Raises:
        ValueError: for timesteps out of range, repeated or falling, or a 'sigma-min' tau that begins elsewhere.
    """
    if clean_end == "sigma-min" and (not tau or tau[0] != 0):
        raise ValueError(f"with clean end 'sigma-min' tau must begin at 0, but it is {list(tau[:3])}...; put 0 first")
    for previous, t in pairwise(tau):
        if not t > previous:
            raise ValueError(f"timesteps must rise strictly, but {t:g} follows {previous:g}")
    sigmas = [float(sigma) for sigma in schedule.sigma(_tensor(tau))]
    return _grid(schedule, name, clean_end, sigmas, [float(t) for t in tau])


def full_range(schedule: NoiseSchedule, *, clean_end: str = "sigma-min", t_end: float | None = None) -> Grid:
    """The two ends alone, for methods that step by themselves; a grid of the name ``ENDS``.

    Arguments and errors are those of ``make_grid``.
    """
    last = len(schedule) - 1 if t_end is None else t_end
    tau = [last] if clean_end == "zero" else [0, last]
    return grid_of_timesteps(schedule, tau, name=ENDS, clean_end=clean_end)


def _grid(schedule: NoiseSchedule, name: str, clean_end: str, sigmas: list[float], timesteps: list[float]) -> Grid:
    if clean_end == "zero":
        sigmas, timesteps = [0.0, *sigmas], [0.0, *timesteps]
    return Grid(name, clean_end, tuple(sigmas), tuple(timesteps))


def _tensor(values: Sequence[float]) -> Tensor:
    import torch

    return torch.tensor(values, dtype=torch.float64)


def _linear(n: int, T: int) -> list[int]:
    return [i * T // n for i in range(n)]


def _quad(n: int, T: int) -> list[int]:
    tau = [0 if n > 1 else T - 1]
    for i in range(1, n):
        # Where the parabola is so flat that it would repeat a timestep, take the next one that is free.
        tau.append(max(i * i * (T - 1) // (n - 1) ** 2, tau[-1] + 1))
    return tau


def _leading(n: int, T: int) -> list[int]:
    return [i * (T // n) for i in range(n)]


def _trailing(n: int, T: int) -> list[int]:
    return [round(T - i * T / n) - 1 for i in reversed(range(n))]


def _linspace(n: int, T: int) -> list[int]:
    return [round(i * ((T - 1) / (n - 1))) for i in range(n)] if n > 1 else [0]


def _karras(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> list[float]:
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [(low + i / (n - 1) * (high - low)) ** rho for i in range(n)]


def _log_snr(n: int, sigma_min: float, sigma_max: float) -> list[float]:
    return [sigma_min * (sigma_max / sigma_min) ** (i / (n - 1)) for i in range(n)]


def _capped(ceiling: float) -> Callable[[int, float, float], list[float]]:
    """Equal steps in v = sigma / (1 + sigma / ceiling) on a logarithmic scale."""

    def sigmas(n: int, sigma_min: float, sigma_max: float) -> list[float]:
        first, last = (sigma / (1 + sigma / ceiling) for sigma in (sigma_min, sigma_max))
        inner = (first * (last / first) ** (i / (n - 1)) for i in range(1, n - 1))
        return [sigma_min, *(v / (1 - v / ceiling) for v in inner), sigma_max]

    return sigmas


def _tabulated(table: Sequence[float]) -> Callable[[int, float, float], list[float]]:
    """The spacing of the sigmas in ``table``, rising: linear in log sigma between them, and as a whole stretched or
    squeezed, in log sigma too, to the ends that are asked for."""
    logs = [log(sigma) for sigma in table]
    parts = [(value - logs[0]) / (logs[-1] - logs[0]) for value in logs]

    def sigmas(n: int, sigma_min: float, sigma_max: float) -> list[float]:
        places = [i / (n - 1) * (len(parts) - 1) for i in range(n)]
        lower = [min(floor(place), len(parts) - 2) for place in places]
        between = (parts[k] + (place - k) * (parts[k + 1] - parts[k]) for k, place in zip(lower, places, strict=True))
        return [sigma_min * (sigma_max / sigma_min) ** part for part in between]

    return sigmas


# The tables of 10 steps for three models: Sabour et al., "Align Your Steps", arXiv 2404.14507, as in diffusers'
# AysSchedules, with the smallest sigma of these models' training where that has 0.
AYS_SD = (0.0291671582, 0.152, 0.399, 0.652, 0.963, 1.396, 1.886, 2.697, 3.861, 6.475, 14.615)
AYS_SDXL = (0.0291671582, 0.113, 0.234, 0.380, 0.555, 0.862, 1.342, 2.181, 3.771, 6.315, 14.615)
AYS_SVD = (0.002, 0.034, 0.173, 0.403, 0.981, 1.789, 4.248, 7.977, 15.886, 54.5, 700.0)
# Equal parts of the integral of |d^3 y / du^3|^(1/3) over u, in the angle chart, where a method of third order errs
# alike in each step. Root mean square over the ways of 8 images of CIFAR-10's test set through an earlier model,
# 400 steps of reab3; of each derivative, that of a cubic fitted to slopes within a factor e^0.6 of sigma.
CURVATURE = (
    *(0.0100005, 0.02533, 0.04922, 0.08679, 0.1398, 0.217, 0.3205, 0.4605, 0.6516),
    *(0.9192, 1.326, 1.985, 3.12, 5.202, 9.676, 25.19, 157.407),
)


@dataclass(frozen=True)
class Tau:
    """A rule that picks ``n`` of ``T`` timesteps, rising: ``timesteps(n, T)``."""

    timesteps: Callable[[int, int], list[int]]
    source: str
    clean_end: str = "zero"


@dataclass(frozen=True)
class Spacing:
    """A rule that puts ``n`` >= 2 sigmas between two ends, rising: ``sigmas(n, sigma_min, sigma_max)``."""

    sigmas: Callable[[int, float, float], list[float]]
    source: str
    clean_end: str = "sigma-min"


# What is taken where nothing else is asked for, nor calibrated.
DEFAULT_GRID = "log-snr"

_AYS = "Align Your Steps for {}, stretched to the range: arXiv 2404.14507"
# The registry: command line, tests, plots and docs read it.
GRIDS: dict[str, Tau | Spacing] = {
    "linear": Tau(_linear, "floor(i T / S), i < S: DDIM's linear tau as its code has it where S divides T"),
    "quad": Tau(_quad, "floor(c i^2), i < S, up to t_end: DDIM's quadratic tau; its code has t_end = 0.8 T"),
    "leading": Tau(_leading, "i (T // S), i < S: diffusers' 'leading' with steps_offset 0"),
    "trailing": Tau(_trailing, "round(T - i T / S) - 1, i < S: diffusers' 'trailing'"),
    "linspace": Tau(_linspace, "round(i (T - 1) / (S - 1)), i < S: diffusers' 'linspace'"),
    "karras": Spacing(_karras, "equal steps in sigma^(1/7): Karras et al., arXiv 2206.00364, Eq. (5)"),
    "log-snr": Spacing(_log_snr, "equal steps in log sigma: Lu et al., arXiv 2206.00927, Section 3.3"),
    # Among these calibration searches the one that serves a model best.
    **{
        f"capped-{ceiling}": Spacing(
            _capped(ceiling), f"equal steps in log(sigma / (1 + sigma / {ceiling})): few of them above {ceiling}"
        )
        for ceiling in (50, 100, 200)
    },
    "ays-sd": Spacing(_tabulated(AYS_SD), _AYS.format("Stable Diffusion 1.5")),
    "ays-sdxl": Spacing(_tabulated(AYS_SDXL), _AYS.format("Stable Diffusion XL")),
    "ays-svd": Spacing(_tabulated(AYS_SVD), _AYS.format("Stable Video Diffusion")),
    "curvature": Spacing(
        _tabulated(CURVATURE), "a step where the third derivative is large is small; measured on a CIFAR-10 model"
    ),
}
