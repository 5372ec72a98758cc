"""Diffusion models in diffusers' folder formats, ready for the ODE.

A model is a U-Net that takes ``(x, t)``, the schedule it was trained with, and what it predicts. It comes from

- a pipeline folder: ``unet/`` and ``scheduler/`` (also reached by naming its ``unet`` folder),
- a flat folder: the U-Net's ``config.json`` and weights, and ``scheduler_config.json`` beside them,
- ``org/name`` on the Hugging Face Hub, in either layout, where there is a network,
- this package, for the names in ``EMBEDDED``,
- somebody's code, for names of the form ``package.module:factory``: see ``modules``.

Weights are read from safetensors if there are any, else from a pickle of tensors and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddim_ode.files import read_file
from ddim_ode.kinds import ModelError as ModelError
from ddim_ode.kinds import check_finite_weights, check_kind, check_numbers, check_weights
from ddim_ode.model import Model as Model
from ddim_ode.modules import model_from_factory
from ddim_ode.schedulers import process_of_scheduler

DEFAULT_MODEL = "default"
_PRETRAINED = Path(__file__).parent / "pretrained"
# The models of this package, by their names.
EMBEDDED = {DEFAULT_MODEL: _PRETRAINED / "ddpm-cifar10-classes"}
MOST_PIXELS = 8192  # a side
DEFAULT_UNET_CONFIG = EMBEDDED[DEFAULT_MODEL] / "unet" / "config.json"
# A pipeline's index, and what class-conditional ones of diffusers call the names of the classes in it.
INDEX, CLASS_NAMES = "model_index.json", "id2label"
_WEIGHTS = "diffusion_pytorch_model"
# What is fetched from the Hub: whole, in parts, and in half precision, which is loaded where there is nothing else.
_ON_HUB = [
    "*.json",
    *(f"*{_WEIGHTS}{part}.{kind}" for kind in ("safetensors", "bin") for part in ("", "-*-of-*", ".fp16")),
]


class UNet(nn.Module):
    """diffusers' ``UNet2DModel`` as a plain function of x and t; of a learned variance only the mean is kept."""

    def __init__(self, unet: nn.Module, channels: int) -> None:
        super().__init__()
        self.unet = unet
        self.channels = channels

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)``, t ``(B,)`` in timesteps, may be fractional; returns ``(B, C, H, W)``."""
        output: Tensor = self.unet(x, t, return_dict=False)[0]
        return output[:, : self.channels]


class ClassUNet(UNet):
    """A ``UNet2DModel`` with labels of classes, the last of which means none; as a function of x and t it is that.

    A ``conditioned.Labelled``.
    """

    def __init__(self, unet: nn.Module, channels: int, labels: int) -> None:
        super().__init__(unet, channels)
        self.none = labels - 1

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)``, t ``(B,)`` in timesteps, may be fractional; returns ``(B, C, H, W)``, of no class."""
        return self.answer(x, t, torch.full((len(x),), self.none, device=x.device))

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The same of the classes ``labels``, ``(B,)``, int64."""
        output: Tensor = self.unet(x, t, class_labels=labels, return_dict=False)[0]
        return output[:, : self.channels]


def load_model(name: str = DEFAULT_MODEL, *, device: torch.device | str = "cpu") -> Model:
    """The model in the folder ``name``, on the Hub under ``name``, or of this package for a key of ``EMBEDDED``.

    Of the form package.module:factory, ``name`` is a function to import and call, which returns the model.

    Raises:
        ModelError: if there is no such model, or it is of a kind that is not supported.
    """
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) and not Path(name).exists():
        model = model_from_factory(name)
        model.network.to(device).eval().requires_grad_(False)
        return replace(model, name=name)
    folder = EMBEDDED[name] if name in EMBEDDED else _find(name)
    unet_folder, scheduler_file = _layout(folder)
    scheduler = read_json(scheduler_file)
    check_kind(name, unet_folder)
    try:
        process = process_of_scheduler(scheduler)
    except ValueError as error:
        raise ModelError(f"model '{name}' is not supported: {error}") from error
    unet = _load_unet(name, unet_folder)
    check_supported(name, unet.config, process.family)
    height, width = image_size(unet.config, name)
    channels = int(unet.config["in_channels"])
    labels = unet.config.num_class_embeds
    network = ClassUNet(unet, channels, labels) if labels else UNet(unet, channels)
    # Channels last: convolutions are 5 to 15 % faster so on a CPU.
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    network.eval().requires_grad_(False)
    classes = _class_names(name, (folder, unet_folder.parent), labels) if labels else ()
    return Model(name, network, process, channels, height, width, folder, classes, scheduler)


def _class_names(name: str, folders: Sequence[Path], labels: int) -> tuple[str, ...]:
    """The names of the classes, under ``id2label`` in the pipeline's index, which is in the first of the ``folders``
    that has one; the last of the ``labels`` means none."""
    index = next((folder / INDEX for folder in folders if (folder / INDEX).is_file()), folders[0] / INDEX)
    names = read_json(index).get(CLASS_NAMES) if index.is_file() else None
    wanted = {str(i) for i in range(labels - 1)}
    if not isinstance(names, dict) or names.keys() != wanted or not all(isinstance(n, str) for n in names.values()):
        raise ModelError(
            f"model '{name}' knows {labels} labels, but not which of them means no class: '{index}' must name the "
            f"others, 0 to {labels - 2}, under id2label, and the last one is none"
        )
    classes = tuple(names[str(i)] for i in range(labels - 1))
    if len(set(classes)) < len(classes):
        raise ModelError(f"two classes have one name under id2label of '{index}'; mend it")
    return classes


def _find(name: str) -> Path:
    """The folder ``name``, or a local copy of what the Hub has under that name."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ModelError(f"there is no model folder '{name}', and it is not a Hub name of the form org/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_ON_HUB))
    except Exception as error:  # the Hub's client raises many kinds, from HTTP to validation
        raise ModelError(
            f"there is no model folder '{name}', and it could not be fetched from the Hub: {first_line(error)}"
        ) from error


def _layout(folder: Path) -> tuple[Path, Path]:
    """The U-Net's folder and the scheduler's file of a model folder, in any of the three layouts."""
    if (folder / "unet" / "config.json").is_file():
        unet, candidates = folder / "unet", [folder / "scheduler", folder]
    elif (folder / "config.json").is_file():
        unet, candidates = folder, [folder, folder.parent / "scheduler"]
    else:
        raise ModelError(f"'{folder}' is not a model folder: it has neither unet/config.json nor config.json")
    for candidate in candidates:
        if (candidate / "scheduler_config.json").is_file():
            return unet, candidate / "scheduler_config.json"
    raise ModelError(
        f"'{folder}' has no scheduler_config.json, so the noise schedule of its training is not known; "
        "put diffusers' file there, in scheduler/ or beside config.json"
    )


def _load_unet(name: str, folder: Path) -> Any:
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ModelError(f"model '{name}' is a {kind}; only diffusers' UNet2DModel is supported")
    check_numbers(name, config)
    # The weights themselves or, of weights in parts, the index.
    variant = None if any(folder.glob(f"{_WEIGHTS}.safetensors*")) or any(folder.glob(f"{_WEIGHTS}.bin*")) else "fp16"
    stem = f"{_WEIGHTS}.{variant}" if variant else _WEIGHTS
    has_safetensors = any(folder.glob(f"{stem}.safetensors")) or any(folder.glob(f"{_WEIGHTS}.safetensors.index*.json"))
    if not has_safetensors and not any(folder.glob(f"{stem}.bin*")):
        raise ModelError(f"'{folder}' holds no weights: neither {_WEIGHTS}.safetensors nor {_WEIGHTS}.bin")
    from diffusers import UNet2DModel

    try:
        unet, report = UNet2DModel.from_pretrained(  # type: ignore[no-untyped-call]
            folder,
            use_safetensors=has_safetensors,
            variant=variant,
            low_cpu_mem_usage=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # damaged weights fail in diffusers, safetensors, torch or json, each in its own way
        raise ModelError(f"cannot load the U-Net of model '{name}' from '{folder}': {first_line(error)}") from error
    check_weights(folder, list(report["missing_keys"]), list(report["unexpected_keys"]))
    check_finite_weights(folder, unet.state_dict())
    return unet


def check_supported(name: str, config: Mapping[str, Any], family: str = "vp") -> None:
    """Raise ModelError unless the U-Net of this complete ``config`` is a function of x and a fractional t alone.

    ``family``  that of its process, which says what t is.
    """
    if config["sample_size"] is None:
        raise ModelError(f"model '{name}' does not say its image size; write sample_size into its config.json")
    labels = config["num_class_embeds"]
    if config["class_embed_type"] is not None:
        raise ModelError(f"model '{name}' has class_embed_type '{config['class_embed_type']}'; that is not supported")
    if labels is not None and (type(labels) is not int or labels < 2):
        raise ModelError(
            f"model '{name}' has num_class_embeds {labels!r}; it must be 2 or more, a class and a label for none"
        )
    embedding = "fourier" if family == "ve" else "positional"
    if config["time_embedding_type"] != embedding:
        raise ModelError(
            f"model '{name}' has time_embedding_type '{config['time_embedding_type']}'; only '{embedding}' is "
            f"supported for networks of the family '{family}'"
        )
    channels, out = config["in_channels"], config["out_channels"]
    if channels not in (1, 3):
        raise ModelError(f"model '{name}' takes {channels} channels; pictures have 1, of grey, or 3, of colour")
    if out not in (channels, 2 * channels):
        raise ModelError(
            f"model '{name}' turns {channels} channels into {out}; it should be {channels}, "
            f"or {2 * channels} with a learned variance"
        )


def image_size(config: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Height and width of the images that the U-Net of this ``config`` is for; ModelError if it does not say it.

    ``where``  the config was found, for the message.
    """
    size = config["sample_size"]
    sizes = [size, size] if isinstance(size, int) else size
    if (
        not isinstance(sizes, list | tuple)
        or len(sizes) != 2
        or not all(type(n) is int and 0 < n <= MOST_PIXELS for n in sizes)
    ):
        raise ModelError(
            f"sample_size of '{where}' must be a positive integer, or two of them, of {MOST_PIXELS} at most, but it is "
            f"{f'{size!r:.60}'}; mend it"
        )
    height, width = sizes
    return height, width


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


def first_line(error: Exception) -> str:
    """What an ``error`` says, as far as its first line goes; of one that says nothing its name."""
    return next(iter(str(error).splitlines()), type(error).__name__)
