"""U-Nets of diffusers as models of pixels, whatever their weights were read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddim_ode.kinds import ModelError
from ddim_ode.model import Model
from ddim_ode.schedulers import process_of_scheduler

MOST_PIXELS = 8192  # a side


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


class ClassesOnlyUNet(ClassUNet):
    """A ``UNet2DModel`` with labels of classes, none of which means none: it must be asked for a class.

    The label that would mean none is the first that the network does not have.
    """

    def __init__(self, unet: nn.Module, channels: int, labels: int) -> None:
        super().__init__(unet, channels, labels + 1)

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """What ``ClassUNet`` answers.

        Raises:
            ValueError: if no class is asked for, or guidance, which takes an answer of no class.
        """
        if bool((labels == self.none).any()):
            raise ValueError(
                f"this network was trained with a class for every picture; name one of its {self.none} classes, from "
                f"0 to {self.none - 1}, with guidance 1"
            )
        return super().answer(x, t, labels)


def model_of_unet(
    name: str,
    unet: Any,
    scheduler: Mapping[str, Any],
    device: torch.device | str,
    *,
    classes: Sequence[str] = (),
    folder: Path | None = None,
) -> Model:
    """The model ``name`` of a ``UNet2DModel`` and the configuration of its ``scheduler``, on the ``device``.

    ``classes``  the names of those that it knows: one less than its labels, the last of which means none, or as many
                 as its labels, if none of them does.
    ``folder``   that it was read from.

    Raises:
        ModelError: if it is of a kind that is not supported.
    """
    try:
        process = process_of_scheduler(scheduler, depth=2)
    except ValueError as error:
        raise ModelError(f"model '{name}' is not supported: {error}") from error
    check_supported(name, unet.config, process.family)
    height, width = image_size(unet.config, name)
    channels = int(unet.config["in_channels"])
    labels = unet.config.num_class_embeds
    kind = ClassesOnlyUNet if labels == len(classes) else ClassUNet
    network = kind(unet, channels, labels) if labels else UNet(unet, channels)
    # Channels last: convolutions are 5 to 15 % faster so on a CPU.
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    network.eval().requires_grad_(False)
    return Model(name, network, process, channels, height, width, folder, tuple(classes), scheduler)


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
