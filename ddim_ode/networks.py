"""Networks of diffusers as plain functions of x and t; those that know classes are told labels of them as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddim_ode.conditioned import check_answers
from ddim_ode.conditions import UNCONDITIONAL


class UNet(nn.Module):
    """A ``UNet2DModel`` or ``DDPMUNet`` as a plain function of x and t; of a learned variance only the mean is kept."""

    def __init__(self, unet: nn.Module, channels: int) -> None:
        super().__init__()
        self.unet = unet
        self.channels = channels

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)``, t ``(B,)`` in timesteps, may be fractional; returns ``(B, C, H, W)``."""
        output: Tensor = self.unet(x, t, return_dict=False)[0]
        return output[:, : self.channels]


class KnowingClasses(nn.Module):
    """A network that is told labels of classes, of which ``none`` means none; as a function of x and t it is that.

    A ``conditioned.Labelled``.
    """

    none: int
    knows_none = True

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)``, t ``(B,)`` in timesteps, may be fractional; returns ``(B, C, H, W)``, of no class.

        Raises:
            ValueError: if it knows only classes.
        """
        check_answers(self, [UNCONDITIONAL])
        return self.answer(x, t, torch.full((len(x),), self.none, device=x.device))

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The same of the classes ``labels``, ``(B,)``, int64."""
        raise NotImplementedError


class ClassUNet(KnowingClasses, UNet):
    """A ``UNet2DModel`` with labels of classes, the last of which means none."""

    def __init__(self, unet: nn.Module, channels: int, labels: int) -> None:
        super().__init__(unet, channels)
        self.none = labels - 1

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The same of the classes ``labels``, ``(B,)``, int64."""
        output: Tensor = self.unet(x, t, class_labels=labels, return_dict=False)[0]
        return output[:, : self.channels]


class ClassesOnlyUNet(ClassUNet):
    """A ``UNet2DModel`` with labels of classes, none of which means none: it must be asked for a class.

    The label that would mean none is the first that the network does not have.
    """

    knows_none = False

    def __init__(self, unet: nn.Module, channels: int, labels: int) -> None:
        super().__init__(unet, channels, labels + 1)


class ClassTransformer(KnowingClasses):
    """diffusers' ``DiTTransformer2DModel`` as ``ClassUNet`` is a U-Net; its last label, too, means none.

    Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.channels = int(transformer.config.in_channels)
        self.none = int(transformer.config.num_embeds_ada_norm)

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The same of the classes ``labels``, ``(B,)``, int64."""
        output: Tensor = self.transformer(x, timestep=t, class_labels=labels, return_dict=False)[0]
        return output[:, : self.channels]


def network_of(denoiser: Any) -> UNet | ClassTransformer:
    """A ``denoiser`` as a function of x and t: ``UNet2DModel``, ``DDPMUNet`` or ``DiTTransformer2DModel``."""
    if "num_embeds_ada_norm" in denoiser.config:
        return ClassTransformer(denoiser)
    labels, channels = denoiser.config["num_class_embeds"], int(denoiser.config["in_channels"])
    return ClassUNet(denoiser, channels, labels) if labels else UNet(denoiser, channels)
