"""The U-Net that does without diffusers: what diffusers' own network answers, or none at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddim_ode.ddpm_unet import DDPMUNet, read_unet

SMALL = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
# What a network of this kind may be.
KINDS: dict[str, dict[str, Any]] = {
    "small": {},
    "one head": {"attention_head_dim": None},
    "no attention": {
        "add_attention": False,
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
    },
    "as Ho et al.'s": {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6},
    "three levels": {
        "block_out_channels": (8, 4, 12),
        "layers_per_block": 2,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "classes": {"num_class_embeds": 4},
    "learned variance": {"in_channels": 1, "out_channels": 2},
}
# What is left to diffusers.
OTHERS: dict[str, dict[str, Any]] = {
    "act_fn": {"act_fn": "gelu"},
    "attn_norm_num_groups": {"attn_norm_num_groups": 2},
    "center_input_sample": {"center_input_sample": True},
    "down_block_types": {"down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D")},
    "up_block_types": {"up_block_types": ("ResnetUpsampleBlock2D", "UpBlock2D")},
    "downsample_type": {"downsample_type": "resnet"},
    "upsample_type": {"upsample_type": "resnet"},
    "mid_block_scale_factor": {"mid_block_scale_factor": 2.0},
    "mid_block_type": {"mid_block_type": None},
    "resnet_time_scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "time_embedding_dim": {"time_embedding_dim": 8},
    "time_embedding_type": {"time_embedding_type": "fourier"},
    "head wider than the level": {"attention_head_dim": 16},
}


def saved(folder: Path, **changes: Any) -> UNet2DModel:
    """A network of diffusers, written into ``folder``."""
    torch.manual_seed(0)
    unet = UNet2DModel(**{**SMALL, **changes}).eval()
    unet.save_pretrained(folder)
    return unet


def read(folder: Path, **changes: Any) -> DDPMUNet | None:
    config = json.loads((folder / "config.json").read_text())
    return read_unet(folder / "diffusion_pytorch_model.safetensors", {**config, **changes})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_answers_what_diffusers_does_to_the_last_bit(kind: str, layout: torch.memory_format, tmp_path: Path) -> None:
    theirs = saved(tmp_path, **KINDS[kind]).double().to(memory_format=layout)
    ours = read(tmp_path)
    assert ours is not None
    ours.double().to(memory_format=layout)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    x = torch.randn(3, theirs.config["in_channels"], 8, 8, dtype=torch.float64)
    t = torch.tensor([0.5, 20.0, 999.0])
    labels = torch.tensor([0, 3, 1]) if "num_class_embeds" in KINDS[kind] else None
    with torch.no_grad():
        assert ours(x, t, labels)[0].equal(theirs(x, t, labels).sample)


@pytest.mark.parametrize("name", OTHERS)
def test_another_kind_is_left_to_diffusers(name: str, tmp_path: Path) -> None:
    saved(tmp_path, **OTHERS[name])
    assert read(tmp_path) is None


def test_a_configuration_that_is_none_is_left_to_diffusers(tmp_path: Path) -> None:
    saved(tmp_path)
    assert read(tmp_path) is not None
    for wrong in (
        {"block_out_channels": 8},
        {"block_out_channels": [8]},
        {"block_out_channels": [8, 1 << 40]},
        {"block_out_channels": [8, 10]},
        {"down_block_types": [8, 8]},
        {"down_block_types": [[], []]},
        {"layers_per_block": 0},
        {"layers_per_block": True},
        {"num_class_embeds": "4"},
        {"freq_shift": 4},
        {"downsample_padding": 2},
        {"of_a_later_version": None},
    ):
        assert read(tmp_path, **wrong) is None, wrong


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.pop("conv_in.bias"),
        lambda w: w.update(more=torch.zeros(1)),
        lambda w: w.update({"conv_in.bias": torch.zeros(1)}),
        lambda w: w.update({"conv_in.bias": torch.zeros(8, dtype=torch.int64)}),
    ],
    ids=["lacking", "more", "another shape", "no fractions"],
)
def test_weights_that_are_not_its_own_are_left_to_diffusers(
    change: Callable[[dict[str, Tensor]], object], tmp_path: Path
) -> None:
    saved(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    assert read(tmp_path) is None


def test_a_file_that_is_not_there_or_damaged_is_left_to_diffusers(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert read(tmp_path) is None
    path.unlink()
    assert read(tmp_path) is None


def test_weights_in_half_precision_are_computed_in_float32(tmp_path: Path) -> None:
    saved(tmp_path).half().save_pretrained(tmp_path)
    theirs = UNet2DModel.from_pretrained(tmp_path).float()
    ours = read(tmp_path)
    assert ours is not None
    assert all(value.equal(ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    assert {value.dtype for value in ours.state_dict().values()} == {torch.float32}
