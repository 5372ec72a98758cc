"""What a training run is: all that decides its result, but for the pictures and the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddim_ode.models import DEFAULT_UNET_CONFIG, check_supported
from ddim_ode.schedule import NoiseSchedule, schedule_from_diffusers
from ddim_ode.training.objective import GAMMAS, OBJECTIVES

# By the name on the command line: what diffusers calls them.
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
WARM_UP = 200  # steps
ANNEALED = 0.3  # the last part of a run, in which the learning rate falls to 0


@dataclass(frozen=True)
class Settings:
    """A run ends after ``steps``, or after ``minutes`` in all; one of the two is given.

    ``unet``           configuration of diffusers' ``UNet2DModel``.
    ``prediction``     'epsilon' or 'v_prediction'.
    ``schedule``       'linear' or 'cosine', with 1000 timesteps.
    ``gamma``          a key of ``objective.GAMMAS``; None for the plain squared error of what is predicted.
    ``batch_size``     of all processes together.
    ``learning_rate``  at its height, between the warm-up and the annealing.
    ``ema``            the largest decay of the moving average of the weights; it is smaller at first.
    ``seed``           of the first weights, the order of the pictures, the timesteps and the noise.

    Raises:
        ValueError: for a value that is not allowed.
    """

    unet: Mapping[str, Any]
    steps: int | None = None
    minutes: float | None = None
    prediction: str = "v_prediction"
    schedule: str = "linear"
    gamma: str | None = None
    batch_size: int = 128
    learning_rate: float = 6e-4
    ema: float = 0.9995
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("a run needs either a number of steps or of minutes, and not both; pass one of them")
        for name, allowed in (("prediction", OBJECTIVES), ("schedule", SCHEDULES), ("gamma", GAMMAS)):
            value = getattr(self, name)
            if value not in allowed and not (name == "gamma" and value is None):
                raise ValueError(f"unknown {name} '{value}'; choose one of: {', '.join(sorted(allowed))}")
        for name in ("steps", "minutes", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, but it is {value:g}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and below 1, but it is {self.ema:g}")

    def resumed(self, given: Mapping[str, Any]) -> Settings:
        """These settings with the length of the run that is ``given``, if one is.

        Raises:
            ValueError: if another setting is given that differs from these.
        """
        for name, value in given.items():
            if name not in ("steps", "minutes") and value != getattr(self, name):
                there = "" if name == "unet" else f": {getattr(self, name)}, not {value}"
                raise ValueError(f"the run to resume has another {name}{there}; leave the option out")
        length = {name: given[name] for name in ("steps", "minutes") if given.get(name) is not None}
        return replace(self, **{"steps": None, "minutes": None, **length}) if length else self

    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule as diffusers' schedulers take it."""
        return {
            "num_train_timesteps": 1000,
            "beta_schedule": SCHEDULES[self.schedule],
            "prediction_type": self.prediction,
            "clip_sample": False,
        }

    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        size = self.unet["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.unet["in_channels"]), height, width

    def make_schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        return schedule_from_diffusers(self.scheduler_config())

    def progress(self, step: int, seconds: float) -> float:
        """How much of the run is done after ``step`` steps and ``seconds``: from 0 to 1."""
        if self.steps is not None:
            return min(step / self.steps, 1.0)
        return min(seconds / (60 * (self.minutes or 1)), 1.0)

    def learning_rate_at(self, step: int, progress: float) -> float:
        """A linear rise, a plateau, and a linear fall to 0: a run can be made longer while it is on the plateau.

        Hagele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", arXiv 2405.18392.
        """
        return self.learning_rate * min(1.0, (step + 1) / WARM_UP, (1 - progress) / ANNEALED)


def load_unet_config(path: Path | None) -> dict[str, Any]:
    """The configuration of a ``UNet2DModel`` in the JSON file ``path``; None for that of the embedded model.

    Raises:
        ValueError: if it cannot be read, or is of a kind that is not supported here.
    """
    path = path or DEFAULT_UNET_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the configuration of a U-Net in '{path}': {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"'{path}' must hold a JSON object, but it holds a {type(config).__name__}")
    from diffusers import UNet2DModel

    complete = dict(UNet2DModel.from_config(config).config)  # type: ignore[no-untyped-call]
    check_supported(str(path), complete)
    return {key: value for key, value in complete.items() if not key.startswith("_")}
