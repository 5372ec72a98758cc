"""Spacings: the rules that place the nodes of a grid, and the registry of the grids that they make.

Two kinds of rules: a ``Tau`` picks timesteps of training, and a ``Spacing`` puts sigmas between two ends. To add a grid
is to add one entry to ``GRIDS``.

Notation: ``n`` is the number of nodes, ``T`` that of the timesteps of training, ``S`` that of the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, log


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


# What is taken where nothing else is asked for, nor calibrated.
DEFAULT_GRID = "log-snr"
# No rule, but what the scheduler of a pipeline says.
SCHEDULER = "scheduler"

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
