"""What folders in diffusers' format say in JSON: reading it, and where it lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddim_ode.files import read_file
from ddim_ode.kinds import ModelError

# A pipeline's index, and what class-conditional ones of diffusers call the names of the classes in it.
INDEX, CLASS_NAMES = "model_index.json", "id2label"
# What names on the Hub look like.
HUB_NAME = r"[\w.-]+/[\w.-]+"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file ``path``; ModelError if there is none."""
    text = read_file(path, "JSON file", ModelError)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"cannot read '{path}': {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"'{path}' must hold a JSON object, but it holds a {type(content).__name__}")
    return content


def find_layout(folder: Path) -> tuple[Path, Path]:
    """The network's folder and the scheduler's file of a model folder, in any of the layouts.

    Raises:
        ModelError: if it is none.
    """
    parts = [folder / part for part in ("unet", "transformer")]
    place = next((part for part in parts if (part / "config.json").is_file()), None)
    if place is not None:
        candidates = [folder / "scheduler", folder]
    elif (folder / "config.json").is_file():
        place, candidates = folder, [folder, folder.parent / "scheduler"]
    else:
        raise ModelError(f"'{folder}' is not a model folder: it has neither unet/config.json nor config.json")
    for candidate in candidates:
        if (candidate / "scheduler_config.json").is_file():
            return place, candidate / "scheduler_config.json"
    raise ModelError(
        f"'{folder}' has no scheduler_config.json, so the noise schedule of its training is not known; "
        "put diffusers' file there, in scheduler/ or beside config.json"
    )


def first_line(error: Exception) -> str:
    """What an ``error`` says, as far as its first line goes; of one that says nothing its name."""
    return next(iter(str(error).splitlines()), type(error).__name__)
