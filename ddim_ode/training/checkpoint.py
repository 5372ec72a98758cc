"""The checkpoint of a training run: one file, whole or not there at all, from which a run goes on as if never stopped.

It is a dict of tensors, numbers, strings, lists and dicts, so that ``torch.load(path, weights_only=True)`` opens it.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path
from typing import Any

import torch

from ddim_ode.files import REMNANTS, reason, write_file
from ddim_ode.training.settings import Settings, complete_unet
from ddim_ode.work import LOCK

FILE = "checkpoint.pt"
FORMAT = "ddim-ode training 2"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another run."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run after ``step`` steps and ``seconds``.

    ``data``, ``digest``  name and digest of the pictures it is trained on.
    ``machine``           what it is trained with, in words.
    ``unet``, ``average``, ``optimizer``  state dicts of the network, of the moving average and of the optimizer.
    ``losses``            the mean loss of each step.
    """

    settings: Settings
    data: str
    digest: str
    machine: str
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


def check_new(folder: Path) -> None:
    """Find out before the work is done whether a new run may put its files into ``folder``.

    Raises:
        CheckpointError: if there is something already, a run or anything else.
    """
    if (folder / FILE).exists():
        raise CheckpointError(f"'{folder}' holds a run already; go on with it by --resume, or name another folder")
    if folder.exists() and (
        not folder.is_dir() or not all(path.name == LOCK or _is_left_over(path) for path in folder.iterdir())
    ):
        raise CheckpointError(f"'{folder}' exists and is not an empty folder; name another one for the model")


def remove_left_overs(folder: Path) -> None:
    """Delete the temporary files that a killed run has left in ``folder``."""
    for path in filter(_is_left_over, list(folder.iterdir())):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_left_over(path: Path) -> bool:
    return path.match(REMNANTS)


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
        _check_kinds(content)
        checkpoint = Checkpoint(**{**content, "settings": Settings(**content["settings"])})
        complete_unet(checkpoint.settings.unet, "its network")
        if len(checkpoint.losses) != checkpoint.step:
            raise ValueError(f"it has {len(checkpoint.losses)} losses of {checkpoint.step} steps")
    except Exception as error:  # whatever a broken file or a wrong structure provokes
        raise CheckpointError(f"'{path}' is damaged or not a checkpoint of training: {reason(error)}") from error
    return checkpoint


def _check_kinds(content: dict[str, Any]) -> None:
    """Raise ValueError unless every field is of its kind, and numbers are such as a run can have."""
    for name, kind in _KINDS.items():
        if not isinstance(content[name], kind) or isinstance(content[name], bool):
            raise ValueError(f"'{name}' must be of the type {kind.__name__}, but it is {content[name]!r:.60}")
    for value in (content["step"], content["seconds"], *content["losses"]):
        if not isinstance(value, int | float) or not 0 <= value < inf:
            raise ValueError(f"steps, seconds and losses must be finite numbers from 0 on, but there is {value!r:.60}")


_KINDS = {
    "settings": dict,
    "data": str,
    "digest": str,
    "machine": str,
    "step": int,
    "seconds": float,
    "unet": dict,
    "average": dict,
    "optimizer": dict,
    "losses": list,
}
