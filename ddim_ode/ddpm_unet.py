"""The U-Net of DDPM (Ho et al., arXiv 2006.11239, Appendix B), as diffusers' ``UNet2DModel`` is configured for it.

Importing diffusers takes longer than encoding a picture, and the commonest of its networks is small. Weights have the
names that they have there, and answers are the same. Whatever else a ``UNet2DModel`` may be is left to diffusers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu

# What is made here of what diffusers can, which a configuration need not say.
_ONLY = {
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_type": "conv",
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}
# What it may leave to diffusers' defaults.
_MAY = {
    "add_attention": True,
    "dropout": 0.0,
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "sample_size": None,
}
_MUST = {
    "attention_head_dim",
    "block_out_channels",
    "down_block_types",
    "downsample_padding",
    "flip_sin_to_cos",
    "freq_shift",
    "in_channels",
    "layers_per_block",
    "norm_eps",
    "norm_num_groups",
    "out_channels",
    "up_block_types",
}
# The types of blocks, and whether they have attention.
_DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
_WIDEST = 1 << 16


def read_unet(path: Path, config: Mapping[str, Any]) -> DDPMUNet | None:
    """The network of this ``config`` of a ``UNet2DModel``, in float32, with the weights in the safetensors ``path``.

    None if it is of another kind, or the weights are not there, not whole, or not its own: diffusers says which.
    """
    complete = {**_ONLY, **_MAY, **{key: value for key, value in config.items() if not key.startswith("_")}}
    if not _fits(complete) or not path.is_file():
        return None
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except Exception:  # of safetensors' own kind, which is not public
        return None
    with torch.device("meta"):
        unet = DDPMUNet(complete)
    wanted = {name: value.shape for name, value in unet.state_dict().items()}
    found = {name: value.shape for name, value in weights.items() if value.is_floating_point()}
    if found != wanted:
        return None
    # Copies, since those that were read may be parts of the file itself.
    unet.load_state_dict({name: value.to(torch.float32, copy=True) for name, value in weights.items()}, assign=True)
    return unet


def _fits(config: Mapping[str, Any]) -> bool:
    """Whether the network of this complete ``config`` is of the kind that is made here."""
    if config.keys() != _ONLY.keys() | _MAY.keys() | _MUST:
        return False
    channels, down, up = (config[name] for name in ("block_out_channels", "down_block_types", "up_block_types"))
    if not all(isinstance(value, list | tuple) for value in (channels, down, up)):
        return False
    head, groups, labels = (config[name] for name in ("attention_head_dim", "norm_num_groups", "num_class_embeds"))
    counts = (*channels, groups, config["in_channels"], config["out_channels"], config["layers_per_block"])
    counts += tuple(number for number in (head, labels) if number is not None)
    return (
        all(config[name] == value for name, value in _ONLY.items())
        and all(type(number) is int and 0 < number <= _WIDEST for number in counts)
        and 0 < len(channels) == len(down) == len(up)
        and all(kind in tuple(_DOWN) for kind in down)
        and all(kind in tuple(_UP) for kind in up)
        and all(width % groups == 0 and width % (head or 1) == 0 for width in channels)
        and channels[0] % 2 == 0
        and config["freq_shift"] != channels[0] // 2
        and config["downsample_padding"] in (0, 1)
    )


class DDPMUNet(nn.Module):
    """A network of x and t, and of labels if it knows classes; ``config`` is all of its configuration in diffusers."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config
        widths, layers = list(config["block_out_channels"]), config["layers_per_block"]
        first, last, embedding, groups = widths[0], len(widths) - 1, 4 * widths[0], config["norm_num_groups"]
        parts = _Parts(embedding, groups, config["norm_eps"], config["attention_head_dim"])
        self.conv_in = nn.Conv2d(config["in_channels"], first, 3, padding=1)
        layered = {
            "linear_1": nn.Linear(first, embedding),
            "act": nn.SiLU(),
            "linear_2": nn.Linear(embedding, embedding),
        }
        self.time_embedding = nn.Sequential(OrderedDict(layered))
        labels = config["num_class_embeds"]
        # Not drawn at random, for which torch on 'meta' imports its compiler; weights are filled in later.
        rows = None if labels is None else torch.empty(labels, embedding)
        self.class_embedding = None if rows is None else nn.Embedding.from_pretrained(rows)  # type: ignore[no-untyped-call]
        self.down_blocks = nn.ModuleList()
        skips = [first]  # the widths of what the way up will be given, the last one first
        for i, (width, kind) in enumerate(zip(widths, config["down_block_types"], strict=True)):
            pairs = parts.pairs([skips[-1]] + [width] * (layers - 1), width, attends=_DOWN[kind])
            sampler = _Downsample(width, config["downsample_padding"]) if i < last else None
            self.down_blocks.append(_Down(*pairs, sampler))
            skips += [width] * (layers + (i < last))
        self.mid_block = _Middle(*parts.pairs([widths[-1]] * 2, widths[-1], attends=config["add_attention"]))
        self.up_blocks = nn.ModuleList()
        below = widths[-1]
        for i, (width, kind) in enumerate(zip(reversed(widths), config["up_block_types"], strict=True)):
            ins = [skips.pop() + before for before in [below] + [width] * layers]
            self.up_blocks.append(
                _Up(*parts.pairs(ins, width, attends=_UP[kind]), _Upsample(width) if i < last else None)
            )
            below = width
        self.conv_norm_out = nn.GroupNorm(groups, first, config["norm_eps"])
        self.conv_out = nn.Conv2d(first, config["out_channels"], 3, padding=1)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = False
    ) -> tuple[Tensor]:
        """Called as diffusers' network is, and answers with its tuple, whatever ``return_dict`` says.

        sample ``(B, C, H, W)``, timestep ``(B,)``, may be fractional, and class_labels ``(B,)``, int64, of a network
        that knows classes; to ``(B, C, H, W)``.
        """
        embedding = self.time_embedding(self._waves(timestep).to(self.conv_in.weight.dtype))
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(class_labels)
        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, embedding, skips)
        x = self.mid_block(x, embedding)
        for block in self.up_blocks:
            x = block(x, embedding, skips)
        return (self.conv_out(silu(self.conv_norm_out(x))),)

    def _waves(self, timestep: Tensor) -> Tensor:
        """Cosines and sines of the timesteps ``(B,)``, in float32, ``(B, width)``."""
        half = self.conv_in.out_channels // 2
        exponent = -log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device)
        angles = timestep[:, None].float() * torch.exp(exponent / (half - self.config["freq_shift"]))
        waves = [torch.sin(angles), torch.cos(angles)]
        return torch.cat(waves[::-1] if self.config["flip_sin_to_cos"] else waves, dim=1)


class _Parts(NamedTuple):
    """What all parts of a network have in common: the width of the time's embedding, and how parts are made."""

    embedding: int
    groups: int
    eps: float
    head: int | None

    def pairs(self, ins: Sequence[int], out: int, *, attends: bool) -> tuple[nn.ModuleList, nn.ModuleList]:
        """For each of the widths ``ins`` a residual block, and what follows it: attention, or nothing."""
        attentions = [_Attention(self, out) if attends else nn.Identity() for _ in ins]
        return nn.ModuleList(_Residual(self, width, out) for width in ins), nn.ModuleList(attentions)


class _Residual(nn.Module):
    def __init__(self, parts: _Parts, width: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(parts.groups, width, parts.eps)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(parts.embedding, out)
        self.norm2 = nn.GroupNorm(parts.groups, out, parts.eps)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = h + self.time_emb_proj(silu(embedding))[:, :, None, None]
        output: Tensor = self.conv_shortcut(x) + self.conv2(silu(self.norm2(h)))
        return output


class _Attention(nn.Module):
    def __init__(self, parts: _Parts, width: int) -> None:
        super().__init__()
        self.head = parts.head or width
        self.group_norm = nn.GroupNorm(parts.groups, width, parts.eps)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.group_norm(x.flatten(2)).transpose(1, 2)
        heads = (to(pixels).unflatten(2, (-1, self.head)).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        attended = self.to_out[0](scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        output: Tensor = attended.transpose(1, 2).reshape(x.shape) + x
        return output


class _Downsample(nn.Module):
    def __init__(self, width: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(x if self.conv.padding[0] else pad(x, (0, 1, 0, 1)))
        return output


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if 4 * x.numel() >= 1 << 31:  # more than torch enlarges channels last: pytorch issue 141831
            x = x.contiguous()
        output: Tensor = self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return output


class _Down(nn.Module):
    def __init__(self, resnets: nn.ModuleList, attentions: nn.ModuleList, sampler: nn.Module | None) -> None:
        super().__init__()
        self.resnets, self.attentions = resnets, attentions
        self.downsamplers = nn.ModuleList([] if sampler is None else [sampler])

    def forward(self, x: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, embedding))
            skips.append(x)
        for sampler in self.downsamplers:
            x = sampler(x)
            skips.append(x)
        return x


class _Middle(nn.Module):
    def __init__(self, resnets: nn.ModuleList, attentions: nn.ModuleList) -> None:
        super().__init__()
        self.resnets, self.attentions = resnets, attentions[:1]

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, embedding))
        output: Tensor = self.resnets[1](x, embedding)
        return output


class _Up(nn.Module):
    def __init__(self, resnets: nn.ModuleList, attentions: nn.ModuleList, sampler: nn.Module | None) -> None:
        super().__init__()
        self.resnets, self.attentions = resnets, attentions
        self.upsamplers = nn.ModuleList([] if sampler is None else [sampler])

    def forward(self, x: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(torch.cat([x, skips.pop()], dim=1), embedding))
        for sampler in self.upsamplers:
            x = sampler(x)
        return x
