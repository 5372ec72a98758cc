"""Diffusion models in diffusers' folder formats, ready for the ODE.

A model is a network that takes ``(x, t)``, the schedule it was trained with, and what it predicts. It comes from

- a pipeline folder: ``unet/`` or ``transformer/``, and ``scheduler/`` (also reached by naming the network's folder),
  with the autoencoder in ``vae/`` or ``vqvae/`` if images are its latents, as those of DiT and LDM are,
- a flat folder: the network's ``config.json`` and weights, and ``scheduler_config.json`` beside them,
- ``org/name`` on the Hugging Face Hub, in either layout, where there is a network,
- one file, with a configuration beside it where it does not say its own: see ``formats``,
- this package, for the names in ``EMBEDDED``,
- somebody's code, for names of the form ``package.module:factory``: see ``modules``.

Weights are read from safetensors if there are any, else from a pickle of tensors and nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ddim_ode.configs import CLASS_NAMES, HUB_NAME, INDEX, find_layout, first_line, read_json
from ddim_ode.ddpm_unet import read_unet
from ddim_ode.denoisers import model_of, placed
from ddim_ode.formats.load import FILES, load_file
from ddim_ode.kinds import ModelError as ModelError
from ddim_ode.kinds import check_finite_weights, check_numbers, check_weights, find_autoencoder
from ddim_ode.model import Model as Model
from ddim_ode.modules import model_from_factory
from ddim_ode.schedulers import process_of_scheduler

DEFAULT_MODEL = "default"
_PRETRAINED = Path(__file__).parent / "pretrained"
# The models of this package, by their names.
EMBEDDED = {DEFAULT_MODEL: _PRETRAINED / "ddpm-cifar10-classes"}
DEFAULT_UNET_CONFIG = EMBEDDED[DEFAULT_MODEL] / "unet" / "config.json"
_WEIGHTS = "diffusion_pytorch_model"
# What is fetched from the Hub: whole, in parts, and in half precision, which is loaded where there is nothing else.
_ON_HUB = [
    "*.json",
    *(f"*{_WEIGHTS}{part}.{kind}" for kind in ("safetensors", "bin") for part in ("", "-*-of-*", ".fp16")),
]


def load_model(
    name: str = DEFAULT_MODEL, *, device: torch.device | str = "cpu", config: str | Path | None = None
) -> Model:
    """The model in the folder or file ``name``, on the Hub under ``name``, or of this package for one in ``EMBEDDED``.

    Of the form package.module:factory, ``name`` is a function to import and call, which returns the model.

    ``config``  of a file what it does not say itself: a folder or a file, as its format in ``formats`` says.

    Raises:
        ModelError: if there is no such model, or it is of a kind that is not supported.
    """
    if name not in EMBEDDED and Path(name).is_file():
        return load_file(Path(name), config, device)
    if config is not None:
        raise ModelError(f"a config is of models that are one file, and '{name}' is none; leave it out")
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) and not Path(name).exists():
        model = model_from_factory(name)
        model.network.to(device).eval().requires_grad_(False)
        return replace(model, name=name)
    folder = EMBEDDED[name] if name in EMBEDDED else _find(name)
    place, scheduler_file = find_layout(folder)
    scheduler = read_json(scheduler_file)
    autoencoder = find_autoencoder(name, place)
    process = process_of_scheduler(f"model '{name}'", scheduler)
    denoiser = _load_denoiser(name, place)
    model = model_of(
        name,
        denoiser,
        process,
        scheduler=scheduler,
        autoencoder=autoencoder and _load_autoencoder(name, autoencoder),
        classes=class_names(name, (folder, place.parent), denoiser.config),
        folder=folder,
    )
    return placed(model, device)


def class_names(name: str, folders: Sequence[Path], config: Mapping[str, Any]) -> tuple[str, ...]:
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
    if folder.suffix.lower() in FILES:
        raise ModelError(f"there is no model file '{name}'; name one that exists")
    if not re.fullmatch(HUB_NAME, name):
        raise ModelError(f"there is no model folder '{name}', and it is not a Hub name of the form org/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_ON_HUB))
    except Exception as error:  # the Hub's client raises many kinds, from HTTP to validation
        raise ModelError(
            f"there is no model folder '{name}', and it could not be fetched from the Hub: {first_line(error)}"
        ) from error


def _load_denoiser(name: str, folder: Path) -> Any:
    """The network in ``folder``, of one of the kinds that are told no text."""
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", "UNet2DModel")
    if kind == "UNet2DModel":
        check_numbers(name, config)
        unet = read_unet(folder / f"{_WEIGHTS}.safetensors", config)
        if unet is None:
            return _load(name, folder, "U-Net", kind)
        check_finite_weights(folder, unet.state_dict())
        return unet
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
