"""Networks of openai/guided-diffusion and improved-diffusion, with the flags of their training in a file.

The file, YAML or JSON, holds the flags under their names there: image_size and num_channels always, the others where
they are not the defaults of guided-diffusion's scripts.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv 2105.05233; Nichol and Dhariwal, "Improved
DDPM", arXiv 2102.09672. The weights are put into diffusers' ``UNet2DModel``, which is the same network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
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

_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_IN_RESNETS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_IN_ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
# By the size of pictures, as their scripts choose it.
_MULTIPLES = {256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}
_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def is_guided(names: Collection[str]) -> bool:
    """Whether these are the names of the weights of such a network."""
    return "time_embed.0.weight" in names and "input_blocks.0.0.weight" in names


def load_guided(path: Path, weights: Weights, config: Path, device: torch.device | str) -> Model:
    """The model of ``weights`` from the file ``path``, with the flags of its training in the file ``config``.

    One that knows classes knows no label for none of them, and must always be asked for a class.

    Raises:
        ModelError: if they do not go together, or the flags ask for what is not supported.
    """
    flags = read_settings(config)
    labels = _labels(path, weights, flags)
    heads = _heads(flags)
    unet_config = _unet_config(flags, labels, heads)
    source = _names(unet_config)
    convert = _splitting(flags.truth("use_new_attention_order", False), heads)
    unet = assemble_unet(path, unet_config, weights, source, convert, config=f"'{config}'")
    classes = tuple(str(i) for i in range(labels or 0))
    model = model_of_unet(str(path), unet, _scheduler(flags), device, classes=classes)
    if unet_config["attention_head_dim"] is not None:
        return model
    # No configuration of diffusers says this, and so it cannot be exported as one: without a scheduler it is not.
    _set_heads(unet, heads)
    return replace(model, scheduler=None)


def _labels(path: Path, weights: Weights, flags: Settings) -> int | None:
    """The number of classes; the flags only say whether there are any."""
    if not flags.truth("class_cond", False):
        return None
    table = weights.get("label_emb.weight")
    if table is None or table.ndim != 2 or len(table) < 2:
        raise ModelError(f"'{flags.path}' says class_cond, but '{path}' has no table label_emb.weight; mend class_cond")
    return len(table)


def _unet_config(flags: Settings, labels: int | None, heads: Callable[[int], int]) -> dict[str, Any]:
    """That of the same network in diffusers; without the width of ``heads`` if that is not the same at all levels."""
    size = flags.whole("image_size", most=MOST_PIXELS)
    width = flags.whole("num_channels", most=10_000)
    channels = widths(width, _multiples(flags, size), f"channel_mult in '{flags.path}'")
    # The flag names the sides of the pictures that are attended to.
    sides = flags.numbers("attention_resolutions", "16,8")
    attends = [size // 2**level in sides for level in range(len(channels))]
    attended = {channels[-1], *(width for width, attention in zip(channels, attends, strict=True) if attention)}
    head_widths = {width // heads(width) for width in attended}
    resampling = "resnet" if flags.truth("resblock_updown", False) else "conv"
    return {
        "sample_size": size,
        "in_channels": 3,
        "out_channels": 6 if flags.truth("learn_sigma", False) else 3,
        "block_out_channels": channels,
        "layers_per_block": flags.whole("num_res_blocks", 2, most=100),
        "down_block_types": ["AttnDownBlock2D" if a else _plain("Down", resampling) for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else _plain("Up", resampling) for a in reversed(attends)],
        "downsample_type": resampling,
        "upsample_type": resampling,
        "resnet_time_scale_shift": "scale_shift" if flags.truth("use_scale_shift_norm", True) else "default",
        "dropout": flags.number("dropout", 0.0),
        "attention_head_dim": head_widths.pop() if len(head_widths) == 1 else None,
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
        "num_class_embeds": labels,
    }


def _plain(way: str, resampling: str) -> str:
    return f"Resnet{way}sampleBlock2D" if resampling == "resnet" else f"{way}Block2D"


def _multiples(flags: Settings, size: int) -> tuple[int, ...]:
    if flags.get("channel_mult", "") != "":
        return flags.numbers("channel_mult", most=100)
    if size not in _MULTIPLES:
        raise ModelError(f"'{flags.path}' does not say channel_mult, which has no default at image_size {size}; add it")
    return _MULTIPLES[size]


def _scheduler(flags: Settings) -> dict[str, Any]:
    steps = flags.whole("diffusion_steps", 1000, least=2)
    if steps != 1000 and flags.truth("rescale_timesteps", False):
        raise ModelError(
            f"'{flags.path}' has rescale_timesteps with {steps} diffusion_steps; that is not supported but with 1000"
        )
    schedule = flags.one_of("noise_schedule", tuple(_SCHEDULES), "linear")
    return {
        "_class_name": "DDPMScheduler",
        "beta_schedule": _SCHEDULES[schedule],
        "beta_start": 0.1 / steps,
        "beta_end": 20.0 / steps,
        "num_train_timesteps": steps,
        "prediction_type": "sample" if flags.truth("predict_xstart", False) else "epsilon",
        "clip_sample": False,
    }


def _names(config: dict[str, Any]) -> Callable[[str], str]:
    """What gives the name there of a weight of diffusers' U-Net of this ``config``."""
    layers = config["layers_per_block"]
    in_resnet = config["downsample_type"] == "resnet"

    def source(name: str) -> str:
        for ours, theirs in _OUTSIDE.items():
            if name.startswith(ours + "."):
                return theirs + name[len(ours) :]
        match = re.fullmatch(r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?([a-z]+)\.(\d+)\.(.*)", name)
        if not match:
            return name
        side, level, part, number, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
        if side == "mid_block":
            block = f"middle_block.{1 if part == 'attentions' else 2 * number}"
        elif side == "down_blocks":
            first = 1 + level * (layers + 1)
            block = f"input_blocks.{first + (layers if part == 'downsamplers' else number)}.{int(part == 'attentions')}"
        else:
            # What goes up stands last in the last block of its level.
            place = level * (layers + 1) + (layers if part == "upsamplers" else number)
            attends = config["up_block_types"][level].startswith("Attn")
            inner = 1 + attends if part == "upsamplers" else int(part == "attentions")
            block = f"output_blocks.{place}.{inner}"
        return f"{block}.{_inner(part, rest, in_resnet, up=side == 'up_blocks')}"

    return source


def _inner(part: str, rest: str, in_resnet: bool, *, up: bool) -> str:
    """The name there of ``rest``, which is in a ``part`` of a block."""
    if part.endswith("samplers") and not in_resnet:
        return rest if up else rest.replace("conv.", "op.", 1)
    for ours, theirs in (_IN_ATTENTION if part == "attentions" else _IN_RESNETS).items():
        if rest.startswith(ours + "."):
            return theirs + rest[len(ours) :]
    return rest


def _heads(flags: Settings) -> Callable[[int], int]:
    """What gives the number of heads of attention over so many channels."""
    channels = flags.whole("num_head_channels", -1, least=-1)
    heads = flags.whole("num_heads", 4, most=1000)
    if flags.whole("num_heads_upsample", -1, least=-1) not in (-1, heads):
        raise ModelError(f"num_heads_upsample in '{flags.path}' is not num_heads; that is not supported")

    def of(width: int) -> int:
        count = heads if channels == -1 else width // (channels or width + 1)
        if count < 1 or width % count or (channels != -1 and count * channels != width):
            raise ModelError(
                f"num_heads and num_head_channels in '{flags.path}' do not divide attention over {width} channels; "
                "mend them"
            )
        return count

    return of


def _splitting(new_order: bool, heads: Callable[[int], int]) -> Callable[[str, Tensor], Tensor]:
    """What makes diffusers' projections of the one of query, key and value, whose rows were ordered head by head."""

    def convert(name: str, value: Tensor) -> Tensor:
        match = re.search(r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.", name)
        if not match:
            return value
        if value.ndim == 3 and value.shape[2] == 1:
            value = value[:, :, 0]
        if match[1] == "out.0" or len(value) % 3:
            return value
        width = len(value) // 3
        which = "qkv".index(match[1])
        if new_order:
            return value.chunk(3)[which]
        by_head = value.reshape(heads(width), 3, -1, *value.shape[1:])
        return by_head[:, which].reshape(width, *value.shape[1:])

    return convert


def _set_heads(unet: Any, heads: Callable[[int], int]) -> None:
    """Give each attention of ``unet`` its number of heads, which diffusers' configuration says for all levels alike."""
    from diffusers.models.attention_processor import Attention

    for module in unet.modules():
        if isinstance(module, Attention):
            module.heads = heads(int(module.to_q.out_features))
            module.scale = (module.to_q.out_features / module.heads) ** -0.5
