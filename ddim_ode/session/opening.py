"""Opening: the model that a session works with, of whatever it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from ddim_ode.devices import find_device
from ddim_ode.models import Model, load_model
from ddim_ode.pipelines import from_pipeline, is_pipeline, load_pipeline
from ddim_ode.speed import compiled, in_dtype


class Texts(NamedTuple):
    """What a pipeline is told: of all of this nothing, unless it is given."""

    prompt: str | None = None
    negative_prompt: str | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None


def open_model(
    model: object, device: str, texts: Texts, *, config: str | Path | None, dtype: str | None, compile: bool
) -> Model:
    """The model that ``model`` is or names, or that is made of a pipeline; arguments are those of ``Session``.

    Raises:
        ValueError: if there is none, or it takes not all of what it is given.
    """
    if isinstance(model, str | Path):
        model = _load(str(model), find_device(device), config, texts)
    elif dtype is not None or config is not None:
        raise ValueError("dtype and config are of models that are loaded here; this one is in memory, as it is")
    if isinstance(model, Model):
        if texts != Texts() and model.ask is None:
            raise ValueError(_no_pipeline(model.name))
        found = model if texts == Texts() else model.asked_for(**texts._asdict())
    else:
        given = {name: value for name, value in texts._asdict().items() if value is not None}
        found = from_pipeline(model, **given, adapted=compile)
    found = found if dtype is None else in_dtype(found, dtype)
    return compiled(found) if compile else found


def _load(name: str, device: torch.device, config: str | Path | None, texts: Texts) -> Any:
    """The model or the pipeline called ``name``; on the Hub one that is told something is a pipeline."""
    on_hub = texts != Texts() and "/" in name and not Path(name).exists()
    if is_pipeline(name) or on_hub:
        return load_pipeline(name, device=device, config=config)
    if texts != Texts() and ":" not in name:
        raise ValueError(_no_pipeline(name))
    return load_model(name, device=device, config=config)


def _no_pipeline(name: str) -> str:
    return (
        f"prompts, their guidance and sizes are of pipelines that are told a text, and model '{name}' is none; leave "
        "them out, or name the folder of such a pipeline"
    )
