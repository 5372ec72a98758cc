"""Diffusion models in diffusers' folder formats, ready for the ODE.

A model is a network that takes ``(x, t)``, the schedule it was trained with, and what it predicts. It comes from

- a pipeline folder: ``unet/`` or ``transformer/``, and ``scheduler/`` (also reached by naming the network's folder),
  with the autoencoder in ``vae/`` or ``vqvae/`` if images are its latents, as those of DiT and LDM are,
- a flat folder: the network's ``config.json`` and weights, and ``scheduler_config.json`` beside them,
- ``org/name`` on the Hugging Face Hub, in either layout, where there is a network,
- this package, for the names in ``EMBEDDED``,
- somebody's code, for names of the form ``package.module:factory``: see ``modules``.

Weights are read from safetensors if there are any, else from a pickle of tensors and nothing else.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ddim_ode.files import read_file
from ddim_ode.kinds import ModelError as ModelError
from ddim_ode.kinds import check_finite_weights, check_numbers, check_weights, find_autoencoder
from ddim_ode.model import Model as Model
from ddim_ode.modules import model_from_factory
from ddim_ode.networks import network_of
from ddim_ode.processes import Process
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
    place, scheduler_file = _layout(folder)
    scheduler = read_json(scheduler_file)
    autoencoder = find_autoencoder(name, place)
    try:
        process = process_of_scheduler(scheduler)
    except ValueError as error:
        raise ModelError(f"model '{name}' is not supported: {error}") from error
    denoiser = _load_denoiser(name, place)
    model = model_of(
        name,
        denoiser,
        process,
        scheduler=scheduler,
        autoencoder=autoencoder and _load_autoencoder(name, autoencoder),
        classes=_class_names(name, (folder, place.parent), denoiser.config),
        folder=folder,
    )
    # Channels last: convolutions are 5 to 15 % faster so on a CPU.
    for module in (model.network, *model.beside.values()):
        module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        module.eval().requires_grad_(False)
    return model


def model_of(
    name: str,
    denoiser: Any,
    process: Process,
    *,
    scheduler: Mapping[str, Any],
    autoencoder: Any = None,
    classes: tuple[str, ...] = (),
    folder: Path | None = None,
) -> Model:
    """A model of a ``denoiser`` of diffusers that is told no text, ``UNet2DModel`` or ``DiTTransformer2DModel``.

    ``scheduler``    the configuration of the scheduler that it came with.
    ``autoencoder``  of diffusers, if its images are latents of that.
    ``classes``      the names of those that it knows, by their numbers.

    Raises:
        ModelError: if it is of a kind that is not supported.
    """
    check_supported(name, denoiser.config, process.family, pixels=autoencoder is None)
    height, width = image_size(denoiser.config, name)
    return Model(
        name,
        network_of(denoiser),
        process,
        int(denoiser.config["in_channels"]),
        height,
        width,
        folder,
        classes,
        scheduler,
        autoencoder=autoencoder,
        factor=1 if autoencoder is None else 2 ** (len(autoencoder.config.block_out_channels) - 1),
        beside={} if autoencoder is None else {"vae": autoencoder},
    )


def _class_names(name: str, folders: Sequence[Path], config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes that a network of this ``config`` knows, in their order.

    They are under ``id2label`` in the pipeline's index, which is in the first of the ``folders`` that has one. Where
    two have one name, as the cranes of ImageNet, the number is a part of it.
    """
    classes = config.get("num_embeds_ada_norm")  # those of a DiT, the label for none not counted
    labels = config.get("num_class_embeds") if classes is None else classes + 1
    if not isinstance(labels, int) or labels < 2:
        return ()
    index = next((folder / INDEX for folder in folders if (folder / INDEX).is_file()), folders[0] / INDEX)
    names = read_json(index).get(CLASS_NAMES) if index.is_file() else None
    if names is None and classes is not None:
        return tuple(map(str, range(classes)))
    wanted = {str(i) for i in range(labels - 1)}
    if not isinstance(names, dict) or names.keys() != wanted or not all(isinstance(n, str) for n in names.values()):
        raise ModelError(
            f"model '{name}' knows {labels} labels, but not which of them means no class: '{index}' must name the "
            f"others, 0 to {labels - 2}, under id2label, and the last one is none"
        )
    return told_apart([names[str(i)] for i in range(labels - 1)])


def told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """The ``names``, with their numbers where there are several of one."""
    count = Counter(names)
    return tuple(name if count[name] == 1 else f"{name} ({i})" for i, name in enumerate(names))


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
    """The network's folder and the scheduler's file of a model folder, in any of the layouts."""
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


def _load_denoiser(name: str, folder: Path) -> Any:
    """The network in ``folder``, of one of the kinds that are told no text."""
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", "UNet2DModel")
    if kind == "UNet2DModel":
        check_numbers(name, config)
        return _load(name, folder, "U-Net", kind)
    # DiT's own folders call it by the name that its class once had.
    if kind in ("DiTTransformer2DModel", "Transformer2DModel") and config.get("norm_type") == "ada_norm_zero":
        return _load(name, folder, "transformer", "DiTTransformer2DModel")
    raise ModelError(
        f"model '{name}' is a {kind}; only diffusers' UNet2DModel is supported, DiTTransformer2DModel, and whole "
        "pipelines that are told a text"
    )


def _load_autoencoder(name: str, folder: Path) -> Any:
    kind = read_json(folder / "config.json").get("_class_name")
    if kind not in ("AutoencoderKL", "VQModel"):
        raise ModelError(f"the autoencoder of model '{name}' is a {kind}; it must be an AutoencoderKL or a VQModel")
    return _load(name, folder, "autoencoder", kind)


def _load(name: str, folder: Path, part: str, kind: str) -> Any:
    """The weights in ``folder`` as diffusers' class ``kind``; ``part`` is what messages call it."""
    # The weights themselves or, of weights in parts, the index.
    variant = None if any(folder.glob(f"{_WEIGHTS}.safetensors*")) or any(folder.glob(f"{_WEIGHTS}.bin*")) else "fp16"
    stem = f"{_WEIGHTS}.{variant}" if variant else _WEIGHTS
    has_safetensors = any(folder.glob(f"{stem}.safetensors")) or any(folder.glob(f"{_WEIGHTS}.safetensors.index*.json"))
    if not has_safetensors and not any(folder.glob(f"{stem}.bin*")):
        raise ModelError(f"'{folder}' holds no weights: neither {_WEIGHTS}.safetensors nor {_WEIGHTS}.bin")
    import diffusers

    try:
        module, report = getattr(diffusers, kind).from_pretrained(
            folder,
            use_safetensors=has_safetensors,
            variant=variant,
            low_cpu_mem_usage=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # damaged weights fail in diffusers, safetensors, torch or json, each in its own way
        raise ModelError(f"cannot load the {part} of model '{name}' from '{folder}': {first_line(error)}") from error
    check_weights(folder, list(report["missing_keys"]), list(report["unexpected_keys"]))
    check_finite_weights(folder, module.state_dict())
    return module


def check_supported(name: str, config: Mapping[str, Any], family: str = "vp", *, pixels: bool = True) -> None:
    """Raise ModelError unless the network of this complete ``config`` is a function of x, a fractional t and a class.

    ``family``  that of its process, which says what t is.
    ``pixels``  whether its images are pictures, and not latents.
    """
    if config["sample_size"] is None:
        raise ModelError(f"model '{name}' does not say its image size; write sample_size into its config.json")
    if "num_embeds_ada_norm" not in config:
        _check_unet(name, config, family)
    elif family != "vp":
        raise ModelError(f"model '{name}' is a DiT of the family '{family}'; only 'vp' is supported")
    channels, out = config["in_channels"], config["out_channels"]
    if pixels and channels not in (1, 3):
        raise ModelError(f"model '{name}' takes {channels} channels; pictures have 1, of grey, or 3, of colour")
    if out not in (channels, 2 * channels):
        raise ModelError(
            f"model '{name}' turns {channels} channels into {out}; it should be {channels}, "
            f"or {2 * channels} with a learned variance"
        )


def _check_unet(name: str, config: Mapping[str, Any], family: str) -> None:
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
