"""What a training run is: all that decides its result, but for the pictures and the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from ddim_ode.codec import seeded
from ddim_ode.configs import read_json
from ddim_ode.denoisers import check_supported, image_size
from ddim_ode.files import reason
from ddim_ode.kinds import check_numbers
from ddim_ode.models import DEFAULT_UNET_CONFIG
from ddim_ode.predictions import PREDICTIONS
from ddim_ode.schedule import NoiseSchedule, schedule_from_diffusers
from ddim_ode.training.objective import GAMMAS

# By the name on the command line: what diffusers calls them.
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
# What may change when a run is resumed.
_CHANGING = ("steps", "minutes", "licence")
# What is allowed for each of the settings.
_KINDS: dict[str, tuple[type, ...]] = {
    "unet": (Mapping,),
    "steps": (int, NoneType),
    "minutes": (int, float, NoneType),
    "prediction": (str,),
    "schedule": (str,),
    "gamma": (str, NoneType),
    "batch_size": (int,),
    "learning_rate": (int, float),
    "ema": (int, float),
    "seed": (int,),
    "bf16": (bool,),
    "licence": (str,),
    "classes": (tuple,),
    "label_dropout": (int, float),
    "class_std": (int, float),
    "init": (str, NoneType),
    "mirrored": (bool,),
    "warm_up": (int,),
    "annealed": (int, float),
    "betas": (tuple,),
    "max_gradient_norm": (int, float),
    "ema_power": (int, float),
}


@dataclass(frozen=True)
class Settings:
    """A run ends after ``steps``, or after ``minutes`` in all; one of the two is given.

    ``unet``           configuration of diffusers' ``UNet2DModel``.
    ``prediction``     a key of ``predictions.PREDICTIONS``.
    ``schedule``       'linear' or 'cosine', with 1000 timesteps.
    ``gamma``          a key of ``objective.GAMMAS``; None for the plain squared error of what is predicted.
    ``batch_size``     of all processes together.
    ``learning_rate``  at its height, between the warm-up and the annealing.
    ``ema``            the largest decay of the moving average of the weights; it is smaller at first.
    ``seed``           of the first weights, the order of the pictures, the timesteps and the noise.
    ``bf16``           compute in bfloat16 where that is safe.
    ``licence``        of the model, for its card.
    ``classes``        the names of the classes of the pictures, by their numbers; empty for a network that knows none.
    ``label_dropout``  the part of the labels that is replaced by the one that means no class.
    ``class_std``      the standard deviation that the embedding of classes begins with.
    ``init``           the model whose weights the run began with, in words; None for random ones.
    ``mirrored``       whether pictures are mirrored at random.
    ``warm_up``        the first steps, in which the learning rate rises; ``annealed`` the last part of the run, in
                       which it falls to 0.
    ``betas``          of Adam; ``max_gradient_norm`` the norm that gradients are clipped to.
    ``ema_power``      of the decay at the step n: 1 - (1 + n)^-power, at most ``ema``.

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
    bf16: bool = False
    licence: str = "not stated"
    classes: tuple[str, ...] = ()
    label_dropout: float = 0.15
    class_std: float = 0.02
    init: str | None = None
    mirrored: bool = True
    warm_up: int = 200
    annealed: float = 0.3
    betas: tuple[float, float] = (0.9, 0.99)
    max_gradient_norm: float = 1.0
    ema_power: float = 0.75

    def __post_init__(self) -> None:
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if isinstance(value, bool) != (kinds == (bool,)) or not isinstance(value, kinds):
                words = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
                raise ValueError(f"{name} must be {words}, but it is {f'{value!r:.60}'}")
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("a run needs either a number of steps or of minutes, and not both; pass one of them")
        for name, allowed in (("prediction", PREDICTIONS), ("schedule", SCHEDULES), ("gamma", GAMMAS)):
            value = getattr(self, name)
            if value not in allowed and not (name == "gamma" and value is None):
                raise ValueError(f"unknown {name} '{value}'; choose one of: {', '.join(sorted(allowed))}")
        for name in ("steps", "minutes", "batch_size", "learning_rate", "warm_up", "annealed", "max_gradient_norm"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, but it is {value:g}")
        seeded(self.seed)  # which refuses a wrong one
        for name in ("ema", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, but it is {getattr(self, name):g}")
        wanted = len(self.classes) + 1 if self.classes else None
        if self.unet.get("num_class_embeds") != wanted:
            raise ValueError(
                f"the network has num_class_embeds {self.unet.get('num_class_embeds')}, but it must be {wanted} for "
                f"{len(self.classes)} classes"
            )

    def resumed(self, given: Mapping[str, Any]) -> Settings:
        """These settings with the length of the run and the licence that are ``given``, if they are.

        Raises:
            ValueError: if another setting is given that differs from these.
        """
        for name, value in given.items():
            if name not in _CHANGING and value != getattr(self, name):
                there = "" if name == "unet" else f": {getattr(self, name)}, not {value}"
                raise ValueError(f"the run to resume has another {name}{there}; leave the option out")
        changes = {name: given[name] for name in _CHANGING if given.get(name) is not None}
        if not changes.keys().isdisjoint(("steps", "minutes")):
            changes = {"steps": None, "minutes": None, **changes}
        return replace(self, **changes)

    def of_classes(self, classes: tuple[str, ...]) -> Settings:
        """These settings for a network that knows the ``classes``."""
        return replace(self, unet={**self.unet, "num_class_embeds": len(classes) + 1}, classes=classes)

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
        return int(self.unet["in_channels"]), *image_size(self.unet, "the settings")

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
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up, (1 - progress) / self.annealed)


def load_unet_config(path: Path | None) -> dict[str, Any]:
    """The configuration of a ``UNet2DModel`` in the JSON file ``path``; None for that of the embedded model.

    Raises:
        ValueError: if it cannot be read, or is of a kind that cannot be trained here.
    """
    if path is None:
        return complete_unet({**read_json(DEFAULT_UNET_CONFIG), "num_class_embeds": None}, str(DEFAULT_UNET_CONFIG))
    config = read_json(path)
    if config.get("num_class_embeds") is not None:
        raise ValueError(
            f"'{path}' has num_class_embeds, which follows from the pictures; leave it out, and pass --classes for a "
            "network that knows the classes of its pictures"
        )
    return complete_unet(config, str(path))


def complete_unet(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The ``config`` of a ``UNet2DModel`` with all that it leaves to diffusers' defaults; ``where`` it was found.

    Raises:
        ValueError: if it is of a kind that cannot be trained here.
    """
    from diffusers import UNet2DModel

    check_numbers(where, config)
    try:
        with torch.device("meta"):  # only to have it checked and completed: without weights
            complete = dict(UNet2DModel.from_config(config).config)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever a wrong configuration provokes in diffusers and torch
        raise ValueError(f"'{where}' does not describe a UNet2DModel: {reason(error)}") from error
    check_supported(where, complete)
    _check_trainable(where, complete)
    return {key: value for key, value in complete.items() if not key.startswith("_")}


def _check_trainable(where: str, config: Mapping[str, Any]) -> None:
    if config["out_channels"] != config["in_channels"]:
        raise ValueError(
            f"'{where}' has out_channels {config['out_channels']}, but it must be {config['in_channels']}, "
            "as in_channels; a learned variance cannot be trained"
        )
    blocks = len(config["block_out_channels"])
    if any(size % 2 ** (blocks - 1) for size in image_size(config, where)):
        raise ValueError(
            f"'{where}' has sample_size {config['sample_size']}, but all of its {blocks} blocks but the last halve it; "
            f"it must be a multiple of {2 ** (blocks - 1)}"
        )
