"""The checkpoint of a training run: one file, whole or not there at all, from which a run goes on as if never stopped.

It is a dict of tensors, numbers, strings, lists and dicts, so that ``torch.load(path, weights_only=True)`` opens it.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ddim_ode.files import write_file
from ddim_ode.training.settings import Settings

FILE = "checkpoint.pt"
FORMAT = "ddim-ode training 1"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another run."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run after ``step`` steps and ``seconds``, trained on the ``data`` of that name.

    ``unet``, ``average``, ``optimizer``  state dicts of the network, of the moving average and of the optimizer.
    ``losses``  the mean loss of each step.
    """

    settings: Settings
    data: str
    step: int
    seconds: float
    unet: dict[str, Any]
    average: dict[str, Any]
    optimizer: dict[str, Any]
    losses: list[float]


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the checkpoint into ``folder``, in place of an older one."""
    content = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    content |= {"format": FORMAT, "settings": asdict(checkpoint.settings)}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(folder / FILE, buffer.getvalue(), overwrite=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(f"there is no run to resume in '{folder}': it has no {FILE}; begin one without --resume")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise ValueError(f"it is not of the format '{FORMAT}'")
        return Checkpoint(**{**content, "settings": Settings(**content["settings"])})
    except Exception as error:  # whatever a broken file or a wrong structure provokes
        raise CheckpointError(f"'{path}' is damaged or not a checkpoint of training: {error}") from error
