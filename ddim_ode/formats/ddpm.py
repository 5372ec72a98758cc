"""Networks of ermongroup/ddim and pesser/pytorch_diffusion: DDPM's U-Net, with the YAML file of its training.

Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, Appendix B; Song et al., arXiv 2010.02502. The
names of the weights are mapped to those of diffusers' ``UNet2DModel``, which is the same network.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim_ode.denoisers import MOST_PIXELS, model_of_unet
from ddim_ode.formats.reading import Weights
from ddim_ode.formats.settings import Settings, read_settings
from ddim_ode.formats.unet_file import assemble_unet, widths
from ddim_ode.kinds import ModelError
from ddim_ode.model import Model

# Names in diffusers and there, of what is in a block of a level and of what is not.
_OUTSIDE = {
    "time_embedding.linear_1": "temb.dense.0",
    "time_embedding.linear_2": "temb.dense.1",
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
}
_INSIDE = {
    ".time_emb_proj.": ".temb_proj.",
    ".conv_shortcut.": ".nin_shortcut.",
    ".group_norm.": ".norm.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    ".to_out.0.": ".proj_out.",
    ".downsamplers.0.": ".downsample.",
    ".upsamplers.0.": ".upsample.",
}
_SCHEDULES = {"linear": "linear", "quad": "scaled_linear", "sigmoid": "sigmoid"}


def is_ddpm(names: Collection[str]) -> bool:
    """Whether these are the names of the weights of such a network."""
    return "temb.dense.0.weight" in names


def load_ddpm(path: Path, weights: Weights, config: Path, device: torch.device | str) -> Model:
    """The model of ``weights`` from the file ``path``, with the YAML file ``config`` of its training.

    Raises:
        ModelError: if they do not go together, or the file asks for what is not supported.
    """
    settings = read_settings(config)
    _check_data(settings)
    unet_config = _unet_config(settings)
    levels = len(unet_config["block_out_channels"])
    # What a network with a learned variance has beside it.
    weights = {name: value for name, value in weights.items() if name != "logvar"}
    unet = assemble_unet(path, unet_config, weights, lambda name: _source(name, levels), _convert, config=f"'{config}'")
    return model_of_unet(str(path), unet, _scheduler(settings), device)


def _unet_config(settings: Settings) -> dict[str, Any]:
    """That of the same network in diffusers."""
    if not settings.truth("model.resamp_with_conv", True):
        raise ModelError(
            f"resamp_with_conv in '{settings.path}' is false; only networks that resample with "
            "convolutions are supported"
        )
    settings.one_of("model.type", ("simple", "bayesian"), "simple")
    size = settings.whole("data.image_size", most=MOST_PIXELS)
    width = settings.whole("model.ch", most=10_000)
    channels = widths(width, settings.numbers("model.ch_mult", most=100), f"ch_mult in '{settings.path}'")
    resolutions = settings.numbers("model.attn_resolutions")
    attends = [size // 2**level in resolutions for level in range(len(channels))]
    return {
        "sample_size": size,
        "in_channels": settings.whole("model.in_channels", most=100),
        "out_channels": settings.whole("model.out_ch", most=100),
        "block_out_channels": channels,
        "layers_per_block": settings.whole("model.num_res_blocks", most=100),
        "down_block_types": ["AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        "up_block_types": ["AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
        "dropout": settings.number("model.dropout", 0.0),
        "attention_head_dim": None,
        "norm_num_groups": 32,
        "norm_eps": 1e-6,
        "act_fn": "silu",
        # The sines come first, the slowest of them at 1 / 10000; and one row and column of zeros at the far sides.
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
    }


def _check_data(settings: Settings) -> None:
    """Refuse networks that saw pictures in other units than [-1, 1]."""
    if settings.truth("data.logit_transform", False) or not settings.truth("data.rescaled", True):
        raise ModelError(
            f"'{settings.path}' has logit_transform, or rescaled: false; only networks of pixels in [-1, 1] are "
            "supported"
        )


def _scheduler(settings: Settings) -> dict[str, Any]:
    schedule = settings.one_of("diffusion.beta_schedule", tuple(_SCHEDULES), "linear")
    return {
        "_class_name": "DDPMScheduler",
        "beta_schedule": _SCHEDULES[schedule],
        "beta_start": settings.number("diffusion.beta_start"),
        "beta_end": settings.number("diffusion.beta_end"),
        "num_train_timesteps": settings.whole("diffusion.num_diffusion_timesteps", least=2),
        "clip_sample": False,
    }


def _source(name: str, levels: int) -> str:
    """What the weight called ``name`` in a U-Net of diffusers is called there."""
    for ours, theirs in _OUTSIDE.items():
        if name.startswith(ours + "."):
            name = theirs + name[len(ours) :]
    side = re.match(r"(down|up)_blocks\.(\d+)\.", name)
    if side:
        # Both count from the finest level, where diffusers' way up ends.
        level = int(side[2]) if side[1] == "down" else levels - 1 - int(side[2])
        name = f"{side[1]}.{level}.{name[side.end() :]}"
        name = name.replace(".resnets.", ".block.").replace(".attentions.", ".attn.")
    for ours, theirs in _INSIDE.items():
        name = name.replace(ours, theirs)
    return name


def _convert(name: str, value: Tensor) -> Tensor:
    """Projections of attention are convolutions of 1 x 1 there."""
    return value[:, :, 0, 0] if ".attentions." in name and value.ndim == 4 and value.shape[2:] == (1, 1) else value
