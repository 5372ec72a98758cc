"""Pipelines of diffusers under the names that Stable Diffusion and SDXL are passed around with, in one file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_RESNETS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def single_file(pipeline: Any) -> dict[str, Tensor]:
    """All weights of the ``pipeline``, of Stable Diffusion 1 or SDXL."""
    of_two = getattr(pipeline, "text_encoder_2", None) is not None
    clip = "conditioner.embedders.0.transformer." if of_two else "cond_stage_model.transformer."
    weights = {f"model.diffusion_model.{k}": v for k, v in _unet(pipeline.unet.state_dict()).items()}
    weights |= {f"first_stage_model.{k}": v for k, v in _autoencoder(pipeline.vae.state_dict()).items()}
    for key, value in pipeline.text_encoder.state_dict().items():
        weights[clip + (key if key.startswith("text_model.") else f"text_model.{key}")] = value
    if of_two:
        encoder = pipeline.text_encoder_2.state_dict()
        weights |= {f"conditioner.embedders.1.model.{k}": v for k, v in _open_clip(encoder).items()}
    return {key: value.contiguous().clone() for key, value in weights.items()}


def _unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_of_unet(key, state): value for key, value in state.items()}


def _of_unet(key: str, state: Mapping[str, Tensor], layers: int = 1) -> str:
    for ours, theirs in _OUTSIDE.items():
        if key.startswith(f"{ours}."):
            return theirs + key[len(ours) :]
    match = re.fullmatch(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?([a-z]+)\.(\d+)\.(.*)", key)
    assert match, key
    side, level, part, number, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if part == "resnets":
        for ours, theirs in _RESNETS.items():
            rest = re.sub(rf"^{ours}\.", f"{theirs}.", rest)
    if side == "mid":
        return f"middle_block.{1 if part == 'attentions' else 2 * number}.{rest}"
    if side == "down":
        if part == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.{rest.replace('conv.', 'op.')}"
        return f"input_blocks.{1 + level * (layers + 1) + number}.{int(part == 'attentions')}.{rest}"
    if part == "upsamplers":
        attends = any(name.startswith(f"up_blocks.{level}.attentions.") for name in state)
        return f"output_blocks.{(level + 1) * (layers + 1) - 1}.{1 + attends}.{rest}"
    return f"output_blocks.{level * (layers + 1) + number}.{int(part == 'attentions')}.{rest}"


def _autoencoder(state: Mapping[str, Tensor], levels: int = 2) -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            for ours, theirs in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v")):
                name = name.replace(f".{ours}.", f".{theirs}.")
            name = name.replace(".to_out.0.", ".proj_out.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[name] = value
    return found


def _open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names, whose query, key and value are one, and whose last projection is transposed."""
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    found = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        **{f"ln_final.{kind}": state[f"final_layer_norm.{kind}"] for kind in ("weight", "bias")},
    }
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    layers = {int(match[1]) for key in state if (match := re.match(r"encoder\.layers\.(\d+)\.", key))}
    for layer in layers:
        ours, theirs = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [state[f"{ours}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{theirs}attn.in_proj_{kind}"] = torch.cat(parts)
            for a, b in names.items():
                found[f"{theirs}{b}.{kind}"] = state[f"{ours}{a}.{kind}"]
    return found
