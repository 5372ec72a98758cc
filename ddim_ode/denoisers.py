"""Networks of diffusers that are told no text, as models, whatever their weights were read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ddim_ode.kinds import ModelError
from ddim_ode.model import Model
from ddim_ode.networks import ClassesOnlyUNet, network_of
from ddim_ode.processes import Process
from ddim_ode.schedulers import process_of_scheduler

MOST_PIXELS = 8192  # a side


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


def model_of_unet(
    name: str, unet: Any, scheduler: Mapping[str, Any], device: torch.device | str, *, classes: Sequence[str] = ()
) -> Model:
    """The model ``name`` of a ``UNet2DModel`` of pixels and the configuration of its ``scheduler``, on the ``device``.

    ``classes``  the names of those that it knows, as many as its labels: none of them means no class.

    Raises:
        ModelError: if it is of a kind that is not supported.
    """
    process = process_of_scheduler(f"model '{name}'", scheduler, depth=2)
    model = model_of(name, unet, process, scheduler=scheduler, classes=tuple(classes))
    if classes:
        model = replace(model, network=ClassesOnlyUNet(unet, model.channels, len(classes)))
    return placed(model, device)


def placed(model: Model, device: torch.device | str) -> Model:
    """The ``model`` itself, made ready on the ``device``."""
    # Channels last: convolutions are 5 to 15 % faster so on a CPU.
    for module in (model.network, *model.beside.values()):
        module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        module.eval().requires_grad_(False)
    return model


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
