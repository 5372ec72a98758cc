"""What a run begins with: settings and pictures, and a network with random weights or those of a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ddim_ode.conditions import UNCONDITIONAL
from ddim_ode.export import without_classes
from ddim_ode.models import Model, load_model
from ddim_ode.networks import ClassUNet, UNet
from ddim_ode.training.checkpoint import Checkpoint, check_new, load_checkpoint
from ddim_ode.training.data import TrainingImages, read_training_images
from ddim_ode.training.settings import SCHEDULES, Settings, complete_unet, load_unet_config


@dataclass(frozen=True, eq=False)
class Start:
    """What a run begins with: its settings, its pictures, the checkpoint it goes on from, or its first weights."""

    settings: Settings
    data: TrainingImages
    checkpoint: Checkpoint | None
    weights: Mapping[str, Tensor] | None


def prepare(
    source: Path,
    output: Path,
    values: Mapping[str, Any],
    given: Collection[str],
    *,
    resume: bool,
    unet: Path | None,
    init: str | None,
    classes: bool,
    skip_unreadable: bool,
) -> Start:
    """Read the pictures in ``source``, and settle what a run that leaves a model in ``output`` begins with.

    ``values``  those of ``Settings`` by their names, of which somebody has ``given`` some; a run to ``resume`` has its
                own, and so has a model to begin with, ``init``, by its folder or name.
    ``unet``    the file with the network's configuration, if not that of the default model.
    ``classes`` train on classes, which are the folders of the pictures.

    Raises:
        ValueError: if the wishes are at odds with one another, with the run or the model, or the pictures are unfit.
    """
    checkpoint = load_checkpoint(output) if resume else None
    begin = load_model(init) if init else None
    if checkpoint:
        wishes = {name: values[name] for name in given} | ({"unet": load_unet_config(unet)} if unet else {})
        settings = checkpoint.settings.resumed(wishes)
        if classes and not settings.classes:
            raise ValueError("the run to resume has no classes; leave --classes out")
    else:
        settings = begun_with(begin, values, given) if begin else Settings(unet=load_unet_config(unet), **values)
        check_new(output)
    if output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"'{output}' lies in '{source}', and its pictures would be trained on; name another folder")
    data = read_training_images(source, *settings.image_shape(), skip_unreadable=skip_unreadable)
    if classes and not checkpoint:
        settings = settings.of_classes(data.classes)
    return Start(settings, data, checkpoint, first_weights(begin, settings) if begin else None)


def first_network(settings: Settings, begin: Mapping[str, Tensor] | None = None) -> Any:
    """A ``UNet2DModel`` with random weights, and in their place those of ``begin``, where it has any.

    The embedding of classes begins small: at a standard deviation of 1 it would drown that of the time.
    """
    unet: Any = UNet2DModel.from_config(settings.unet)  # type: ignore[no-untyped-call]
    if settings.classes:
        nn.init.normal_(unet.class_embedding.weight, std=settings.class_std)
    if begin:
        unet.load_state_dict({**unet.state_dict(), **begin})
    return unet


def begun_with(model: Model, values: Mapping[str, Any], given: Collection[str]) -> Settings:
    """The settings of a run that goes on from ``model``: its network, what it predicts, its schedule, and ``values``.

    ``given``  those of the values that somebody has asked for.

    Raises:
        ValueError: if the model cannot be trained here, or is at odds with what was asked for.
    """
    config = {**complete_unet(_config(model), model.name), "num_class_embeds": None}
    own = {"unet": config, "prediction": model.prediction, "schedule": _schedule(model)}
    for name in own.keys() & set(given):
        if values[name] != own[name]:
            raise ValueError(f"model '{model.name}' has {name} '{own[name]}', not '{values[name]}'; leave --{name} out")
    return Settings(**{**values, **own, "init": f"{model.name}, weights {model.fingerprint}"})


def _network(model: Model) -> UNet:
    if not isinstance(model.network, UNet) or model.scheduler is None:
        raise ValueError(f"model '{model.name}' was not read from a folder; begin with one that was")
    return model.network


def _config(model: Model) -> dict[str, Any]:
    unet: Any = _network(model).unet
    return dict(unet.config)


def _schedule(model: Model) -> str:
    for name in SCHEDULES:
        if Settings(unet={}, steps=1, schedule=name).make_schedule().matches(model.schedule):
            return name
    raise ValueError(
        f"model '{model.name}' has the schedule '{model.schedule.name}', and trained here are: {', '.join(SCHEDULES)}"
    )


def first_weights(model: Model, settings: Settings) -> dict[str, Tensor]:
    """The weights of ``model`` for a network of these ``settings``, whatever the classes of either.

    Asked for no class, the network answers as the model does; asked for one of the model's classes, as it does for
    that one. Classes that the model does not know begin near none.
    """
    network = _network(model)
    weights: dict[str, Tensor] = without_classes(network, UNCONDITIONAL).state_dict()
    if settings.classes:
        generator = torch.Generator().manual_seed(settings.seed)
        none = len(settings.classes)
        width = len(weights["time_embedding.linear_2.bias"])
        rows = settings.class_std * torch.randn(none + 1, width, generator=generator)
        rows[none] = 0
        for number, name in enumerate(settings.classes):
            if isinstance(network, ClassUNet) and name in model.classes:
                unet: Any = network.unet
                known = unet.class_embedding.weight.cpu()
                rows[number] = known[model.classes.index(name)] - known[network.none]
        weights["class_embedding.weight"] = rows
    return weights
