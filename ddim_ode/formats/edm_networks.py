"""The networks of EDM, with the names of their weights: DDPM++, NCSN++ and ADM.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364, Appendix F.2 and
Table 7; Song et al., "Score-Based Generative Modeling through SDEs", arXiv 2011.13456, Appendix H, for DDPM++ and
NCSN++; Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv 2105.05233, for ADM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, scaled_dot_product_attention, silu


@dataclass(frozen=True)
class BlockSettings:
    """What all blocks of a network have alike.

    ``emb``          channels of the embedding of noise and class.
    ``adaptive``     whether the embedding scales and shifts what is normalised, or is added before.
    ``scale``        of each sum with what is carried past.
    ``eps``          of the normalisations.
    ``filter``       of changes of size, along one axis.
    ``project``      whether a change of size is always followed by a convolution in what is carried past.
    ``head_width``   channels of each head of attention; None for one head.
    """

    emb: int
    adaptive: bool
    scale: float
    eps: float
    filter: Sequence[int]
    project: bool
    head_width: int | None


class Resize(nn.Module):
    """Twice ('up') or half ('down') the height and width, by a ``filter`` along both axes."""

    resample_filter: Tensor

    def __init__(self, filter: Sequence[int], way: str) -> None:
        super().__init__()
        along = torch.tensor(filter, dtype=torch.float32)
        self.register_buffer("resample_filter", torch.outer(along, along)[None, None] / along.sum() ** 2)
        self.way = way

    def forward(self, x: Tensor, *, padded: bool = True) -> Tensor:
        """x ``(B, C, H, W)`` to ``(B, C, 2 H, 2 W)`` or ``(B, C, H / 2, W / 2)``."""
        channels = x.shape[1]
        each = self.resample_filter.to(x).expand(channels, 1, -1, -1)
        padding = (each.shape[-1] - 1) // 2 if padded else 0
        if self.way == "up":
            return conv_transpose2d(x, 4 * each, stride=2, padding=padding, groups=channels)
        return conv2d(x, each, stride=2, padding=padding, groups=channels)


class ResizedConv(Resize):
    """A change of size, and a convolution of ``kernel`` after it; or before it, where ``late``."""

    def __init__(
        self, cin: int, cout: int, kernel: int, filter: Sequence[int], way: str, *, late: bool = False
    ) -> None:
        super().__init__(filter, way)
        self.weight = nn.Parameter(torch.zeros(cout, cin, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(cout))
        self.late = late

    def forward(self, x: Tensor, *, padded: bool = True) -> Tensor:
        """x ``(B, C, H, W)`` to ``(B, C', 2 H, 2 W)`` or ``(B, C', H / 2, W / 2)``."""
        padding = self.weight.shape[-1] // 2
        if self.late:
            padding += (self.resample_filter.shape[-1] - 1) // 2
            return super().forward(conv2d(x, self.weight, self.bias, padding=padding), padded=False)
        return conv2d(super().forward(x), self.weight, self.bias, padding=padding)


def _norm(channels: int, eps: float) -> nn.GroupNorm:
    """Groups of 4 channels or more, 32 of them at the most."""
    return nn.GroupNorm(min(32, max(channels // 4, 1)), channels, eps=eps)


def _conv(cin: int, cout: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, kernel, padding=kernel // 2)


class Block(nn.Module):
    """A residual block, which may change the size, ``way`` 'up' or 'down', and may attend."""

    def __init__(self, cin: int, cout: int, kind: BlockSettings, *, way: str = "", attends: bool = False) -> None:
        super().__init__()
        self.cin, self.cout, self._kind = cin, cout, kind
        self.norm0 = _norm(cin, kind.eps)
        self.conv0 = ResizedConv(cin, cout, 3, kind.filter, way) if way else _conv(cin, cout, 3)
        self.affine = nn.Linear(kind.emb, cout * (2 if kind.adaptive else 1))
        self.norm1 = _norm(cout, kind.eps)
        self.conv1 = _conv(cout, cout, 3)
        self.skip: nn.Module = nn.Identity()
        if way and (kind.project or cin != cout):
            self.skip = ResizedConv(cin, cout, 1, kind.filter, way)
        elif way:
            self.skip = Resize(kind.filter, way)
        elif cin != cout:
            self.skip = _conv(cin, cout, 1)
        self.attends = attends
        if attends:
            self.heads = 1 if kind.head_width is None else cout // kind.head_width
            self.norm2 = _norm(cout, kind.eps)
            self.qkv, self.proj = _conv(cout, 3 * cout, 1), _conv(cout, cout, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and emb ``(B, E)`` to ``(B, C', H', W')``."""
        said = self.affine(emb)[:, :, None, None]
        h = self.conv0(silu(self.norm0(x)))
        if self._kind.adaptive:
            scale, shift = said.chunk(2, dim=1)
            h = silu(self.norm1(h) * (scale + 1) + shift)
        else:
            h = silu(self.norm1(h + said))
        h = (self.conv1(h) + self.skip(x)) * self._kind.scale
        if self.attends:
            h = (self.proj(self._attention(self.qkv(self.norm2(h)))) + h) * self._kind.scale
        return cast(Tensor, h)

    def _attention(self, qkv: Tensor) -> Tensor:
        """Query, key and value, ``(B, 3 C, H, W)``, of which each channel has its three beside one another."""
        batch, channels, height, width = qkv.shape
        parts = qkv.reshape(batch, self.heads, channels // 3 // self.heads, 3, height * width).transpose(2, 4)
        q, k, v = parts.unbind(3)
        return scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(batch, channels // 3, height, width)


class Fourier(nn.Module):
    """Sines and cosines of a noise label, with frequencies that were drawn once."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.zeros(channels // 2))

    def forward(self, t: Tensor) -> Tensor:
        """t ``(B,)`` to ``(B, C)``, sines first."""
        angles = torch.outer(t, 2 * math.pi * self.freqs.to(t))
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Positions(nn.Module):
    """Sines and cosines of a noise label, with frequencies from 1 down to 1 / 10000, the last one if ``to_end``."""

    def __init__(self, channels: int, *, to_end: bool) -> None:
        super().__init__()
        self.count, self.steps = channels // 2, max(channels // 2 - to_end, 1)

    def forward(self, t: Tensor) -> Tensor:
        """t ``(B,)`` to ``(B, C)``, sines first."""
        angles = torch.outer(t, 10000.0 ** -(torch.arange(self.count).to(t) / self.steps))
        return torch.cat([angles.sin(), angles.cos()], dim=1)


@dataclass(frozen=True)
class Levels:
    """The levels of a U-Net, from the finest: its ``size``, ``channels`` of each level, blocks, attention."""

    size: int
    channels: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]

    def name(self, level: int) -> str:
        """What names of weights begin with that belong to a level."""
        return f"{self.size >> level}x{self.size >> level}"

    def attends(self, level: int) -> bool:
        """Whether there is attention at a level."""
        return self.size >> level in self.attention


class SongUNet(nn.Module):
    """DDPM++, and NCSN++ with ``fourier`` embeddings and a ``residual`` path of what was seen down to every level.

    ``width``   channels of the embedding of the noise.
    ``labels``  the number of classes, of which one is named by 1 in a vector of zeros.
    """

    def __init__(
        self,
        levels: Levels,
        kind: BlockSettings,
        *,
        cin: int,
        cout: int,
        base: int,
        width: int,
        labels: int,
        fourier: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        self._labels = labels
        self.map_noise = Fourier(width) if fourier else Positions(width, to_end=True)
        if labels:
            self.map_label = nn.Linear(labels, width)
        self.map_layer0, self.map_layer1 = nn.Linear(width, kind.emb), nn.Linear(kind.emb, kind.emb)
        self.enc = _encoder(levels, kind, _conv(cin, base, 3), base)
        if residual:
            self._add_residuals(levels, kind, cin)
        self.dec = _decoder(levels, kind, base, every=False)
        finest = levels.name(0)
        self.dec[f"{finest}_aux_norm"] = _norm(levels.channels[0], kind.eps)
        self.dec[f"{finest}_aux_conv"] = _conv(levels.channels[0], cout, 3)

    def _add_residuals(self, levels: Levels, kind: BlockSettings, cin: int) -> None:
        seen = cin
        for level in range(1, len(levels.channels)):
            width = levels.channels[level - 1]
            name = f"{levels.name(level)}_aux_residual"
            self.enc[name] = ResizedConv(seen, width, 3, kind.filter, "down", late=True)
            seen = width

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x ``(B, C, H, W)``, noise labels t ``(B,)``, labels ``(B, classes)`` of 0 and 1, to ``(B, C', H, W)``."""
        emb = self.map_noise(t)
        if self._labels:
            labels = x.new_zeros(len(x), self._labels) if labels is None else labels
            emb = emb + self.map_label(labels * math.sqrt(self._labels))
        emb = silu(self.map_layer1(silu(self.map_layer0(emb))))
        skips, seen = [], x
        for name, block in self.enc.items():
            if name.endswith("_aux_residual"):
                continue
            x = block(x, emb) if isinstance(block, Block) else block(x)
            residual = name.replace("_down", "_aux_residual")
            if name.endswith("_down") and residual in self.enc:
                x = seen = (x + self.enc[residual](seen)) / math.sqrt(2)
            skips.append(x)
        norm, last = (self.dec[name] for name in self.dec if "_aux_" in name)
        return cast(Tensor, last(silu(norm(_decode(self.dec, x, emb, skips)))))


class DhariwalUNet(nn.Module):
    """ADM: the embedding of the noise scales and shifts, and ``labels`` are added to it after two layers."""

    def __init__(
        self, levels: Levels, kind: BlockSettings, *, cin: int, cout: int, base: int, width: int, labels: int
    ) -> None:
        super().__init__()
        self._labels = labels
        self.map_noise = Positions(width, to_end=False)
        self.map_layer0, self.map_layer1 = nn.Linear(width, kind.emb), nn.Linear(kind.emb, kind.emb)
        if labels:
            self.map_label = nn.Linear(labels, kind.emb, bias=False)
        self.enc = _encoder(levels, kind, _conv(cin, levels.channels[0], 3), levels.channels[0])
        self.dec = _decoder(levels, kind, levels.channels[0], every=True)
        self.out_norm = _norm(levels.channels[0], kind.eps)
        self.out_conv = _conv(levels.channels[0], cout, 3)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x ``(B, C, H, W)``, noise labels t ``(B,)``, labels ``(B, classes)`` of 0 and 1, to ``(B, C', H, W)``."""
        sines, cosines = self.map_noise(t).chunk(2, dim=1)
        emb = self.map_layer1(silu(self.map_layer0(torch.cat([cosines, sines], dim=1))))
        if self._labels and labels is not None:
            emb = emb + self.map_label(labels)
        emb = silu(emb)
        skips = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, Block) else block(x)
            skips.append(x)
        return cast(Tensor, self.out_conv(silu(self.out_norm(_decode(self.dec, x, emb, skips)))))


def _encoder(levels: Levels, kind: BlockSettings, first: nn.Module, width: int) -> nn.ModuleDict:
    """The way down, which begins with ``first``, of ``width`` channels."""
    found = nn.ModuleDict()
    for level, channels in enumerate(levels.channels):
        name = levels.name(level)
        found[f"{name}_down" if level else f"{name}_conv"] = Block(width, width, kind, way="down") if level else first
        for i in range(levels.blocks):
            found[f"{name}_block{i}"] = Block(width, channels, kind, attends=levels.attends(level))
            width = channels
    return found


def _decoder(levels: Levels, kind: BlockSettings, base: int, *, every: bool) -> nn.ModuleDict:
    """The way up; attention is in ``every`` block of its levels, or in the last one only.

    ``base``  channels of what the way down began with.
    """
    found = nn.ModuleDict()
    skips = [base]
    for level, channels in enumerate(levels.channels):
        skips += ([levels.channels[level - 1]] if level else []) + [channels] * levels.blocks
    width = levels.channels[-1]
    for level, channels in reversed(list(enumerate(levels.channels))):
        name = levels.name(level)
        if level == len(levels.channels) - 1:
            found[f"{name}_in0"] = Block(width, width, kind, attends=True)
            found[f"{name}_in1"] = Block(width, width, kind)
        else:
            found[f"{name}_up"] = Block(width, width, kind, way="up")
        for i in range(levels.blocks + 1):
            attends = levels.attends(level) and (every or i == levels.blocks)
            found[f"{name}_block{i}"] = Block(width + skips.pop(), channels, kind, attends=attends)
            width = channels
    return found


def _decode(blocks: nn.ModuleDict, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
    """x ``(B, C, H, W)`` on the way up, joined by what was carried past."""
    for name, block in blocks.items():
        if isinstance(block, Block):
            x = block(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
    return x
