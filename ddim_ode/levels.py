"""Noise levels: which sigmas a model was trained on, and the timesteps that stand for them. Grids are made of these.

Every family has T timesteps, ``t`` from 0 to T - 1, whose sigma rises; fractional values are allowed. What the network
is told at a sigma is another matter, and the process says it. ``schedule.NoiseSchedule`` is the table of a DDPM; here
are those of the others. The largest sigma may be infinite: there is nothing but noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Protocol

import torch
from torch import Tensor

from ddim_ode.schedule import NoiseSchedule, check_timesteps

MOST_TIMESTEPS = 1_000_000


class Levels(Protocol):
    """The noise levels of a model."""

    @property
    def name(self) -> str:
        """What messages call them."""

    @property
    def sigma_min(self) -> float:
        """The smallest sigma of training, at t = 0."""

    @property
    def sigma_max(self) -> float:
        """The largest sigma of training, at t = T - 1; may be infinite."""

    @property
    def settings(self) -> dict[str, Any]:
        """What ``levels_from`` makes the same levels of; numbers, strings and tensors."""

    def __len__(self) -> int:
        """The number T of timesteps."""

    def sigma(self, t: Tensor | float) -> Tensor:
        """sigma at timestep ``t``, any shape, within [0, T - 1]; float64, same shape."""

    def t(self, sigma: Tensor | float) -> Tensor:
        """The timestep of ``sigma``, any shape; float64, same shape, within [0, T - 1]."""

    def matches(self, other: Levels) -> bool:
        """Whether both are the same, up to rounding."""


def _check_count(timesteps: int) -> None:
    if not 2 <= timesteps <= MOST_TIMESTEPS:
        raise ValueError(f"there must be from 2 to {MOST_TIMESTEPS} timesteps, but there are {timesteps}")


@dataclass(frozen=True)
class FlowLevels:
    """Those of flow matching: u = sigma / (1 + sigma) = (t + 1) / T, so that the last sigma is infinite.

    Raises:
        ValueError: for fewer than 2 timesteps.
    """

    timesteps: int = 1000

    def __post_init__(self) -> None:
        _check_count(self.timesteps)

    def __len__(self) -> int:
        return self.timesteps

    @property
    def name(self) -> str:
        return f"flow-{self.timesteps}"

    @property
    def sigma_min(self) -> float:
        return 1 / (self.timesteps - 1)

    @property
    def sigma_max(self) -> float:
        return inf

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": "flow", **asdict(self)}

    def sigma(self, t: Tensor | float) -> Tensor:
        t = check_timesteps(t, self.timesteps)
        return (t + 1) / (self.timesteps - 1 - t)

    def t(self, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device="cpu").clamp(min=0)
        # 1 / (1 + sigma) is 0 at infinity.
        return (self.timesteps - 1 - self.timesteps / (1 + sigma)).clamp(min=0)

    def matches(self, other: Levels) -> bool:
        return self == other


@dataclass(frozen=True)
class GeometricLevels:
    """Levels in proportion: log sigma is linear in t, from ``sigma_min`` to ``sigma_max``.

    Raises:
        ValueError: unless 0 < sigma_min < sigma_max < infinity; for fewer than 2 timesteps.
    """

    sigma_min: float
    sigma_max: float
    timesteps: int = 1000

    def __post_init__(self) -> None:
        _check_count(self.timesteps)
        if not 0 < self.sigma_min < self.sigma_max < inf:
            raise ValueError(
                f"sigma must rise from a number above 0 to a finite one, but goes from {self.sigma_min:g} to "
                f"{self.sigma_max:g}"
            )

    def __len__(self) -> int:
        return self.timesteps

    @property
    def name(self) -> str:
        return f"geometric-{self.timesteps}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": "geometric", **asdict(self)}

    def sigma(self, t: Tensor | float) -> Tensor:
        part = check_timesteps(t, self.timesteps) / (self.timesteps - 1)
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** part

    def t(self, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device="cpu").clamp(self.sigma_min, self.sigma_max)
        whole = torch.tensor(self.sigma_max / self.sigma_min, dtype=torch.float64).log()
        return ((sigma / self.sigma_min).log() / whole * (self.timesteps - 1)).clamp(0, self.timesteps - 1)

    def matches(self, other: Levels) -> bool:
        return self == other


_KINDS: dict[str, Callable[..., Levels]] = {"flow": FlowLevels, "geometric": GeometricLevels}


def levels_from(settings: Mapping[str, Any]) -> Levels:
    """The levels of these ``settings``; without a kind, and with the kind 'table', the table of a DDPM.

    Raises:
        ValueError: if there are none such.
    """
    others = {key: value for key, value in settings.items() if key != "kind"}
    kind = settings.get("kind", "table")
    if kind == "table":
        return NoiseSchedule(str(others["name"]), others["alpha_bar"])
    if kind not in _KINDS:
        raise ValueError(f"noise levels of the kind {kind!r:.60} are not known; there are: table, {', '.join(_KINDS)}")
    for key, value in others.items():
        if type(value) not in ((int,) if key == "timesteps" else (int, float)):
            raise ValueError(f"{key!r:.60} of the noise levels must be a number, but it is {value!r:.60}")
    return _KINDS[kind](**others)
