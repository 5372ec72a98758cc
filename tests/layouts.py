"""Pixel networks in the layouts of other codes, written from the papers for comparison: short, slow and plain.

``DDPM``    of ermongroup/ddim and pesser/pytorch_diffusion; Ho et al., arXiv 2006.11239, Appendix B.
``Guided``  of openai/guided-diffusion; Dhariwal and Nichol, arXiv 2105.05233, Section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad, silu


def norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=eps)


def shake(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight at random, also those that training begins at zero."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.08 if parameter.ndim > 1 else 0.3)
    return network.eval().requires_grad_(False)


class DDPMBlock(nn.Module):
    def __init__(self, cin: int, cout: int, emb: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(cin, 1e-6), norm(cout, 1e-6)
        self.conv1, self.conv2 = nn.Conv2d(cin, cout, 3, padding=1), nn.Conv2d(cout, cout, 3, padding=1)
        self.temb_proj = nn.Linear(emb, cout)
        if cin != cout:
            self.nin_shortcut = nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x))) + self.temb_proj(silu(emb))[:, :, None, None]
        h = self.conv2(silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class DDPMAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2) for conv in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k / math.sqrt(x.shape[1])).softmax(dim=2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


class Resample(nn.Module):
    """Twice or half the size, then or at once a convolution."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=int(up))
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0) if self.up else pad(x, (0, 1, 0, 1)))


class DDPM(nn.Module):
    def __init__(
        self,
        ch: int = 32,
        out_ch: int = 3,
        ch_mult: Sequence[int] = (1, 2),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (4,),
        resolution: int = 8,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.ch, self.blocks, emb = ch, num_res_blocks, 4 * ch
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, emb), nn.Linear(emb, emb)])
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        widths = [ch * mult for mult in ch_mult]
        skips, cin = [ch], ch
        for level, width in enumerate(widths):
            part = self._level(resolution // 2**level in attn_resolutions)
            for _ in range(num_res_blocks):
                part.block.append(DDPMBlock(cin, width, emb))
                cin = width
                skips.append(cin)
                if part.attends:
                    part.attn.append(DDPMAttention(cin))
            if level < len(widths) - 1:
                part.downsample = Resample(cin, up=False)
                skips.append(cin)
            self.down.append(part)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1, self.mid.block_2 = (
            DDPMBlock(cin, cin, emb),
            DDPMAttention(cin),
            DDPMBlock(cin, cin, emb),
        )
        for level, width in reversed(list(enumerate(widths))):
            part = self._level(resolution // 2**level in attn_resolutions)
            for _ in range(num_res_blocks + 1):
                part.block.append(DDPMBlock(cin + skips.pop(), width, emb))
                cin = width
                if part.attends:
                    part.attn.append(DDPMAttention(cin))
            if level:
                part.upsample = Resample(cin, up=True)
            self.up.insert(0, part)
        self.norm_out, self.conv_out = norm(cin, 1e-6), nn.Conv2d(cin, out_ch, 3, padding=1)

    @staticmethod
    def _level(attends: bool) -> nn.Module:
        part = nn.Module()
        part.block, part.attn, part.attends = nn.ModuleList(), nn.ModuleList(), attends
        return part

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.ch // 2
        angles = t[:, None] * torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
        emb = torch.cat([angles.sin(), angles.cos()], dim=1)
        emb = self.temb.dense[1](silu(self.temb.dense[0](emb)))
        h = self.conv_in(x)
        skips = [h]
        for part in self.down:
            for i, block in enumerate(part.block):
                h = block(h, emb)
                h = part.attn[i](h) if part.attends else h
                skips.append(h)
            if hasattr(part, "downsample"):
                h = part.downsample(h)
                skips.append(h)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h, emb)), emb)
        for part in reversed(self.up):
            for i, block in enumerate(part.block):
                h = block(torch.cat([h, skips.pop()], dim=1), emb)
                h = part.attn[i](h) if part.attends else h
            h = part.upsample(h) if hasattr(part, "upsample") else h
        return self.conv_out(silu(self.norm_out(h)))


class Nothing(nn.Module):
    """What stands in a list for what has no weights, so that the others have their numbers."""


class GuidedBlock(nn.Module):
    def __init__(self, cin: int, cout: int, emb: int, *, scale_shift: bool, way: str = "") -> None:
        super().__init__()
        self.way, self.scale_shift = way, scale_shift
        self.in_layers = nn.ModuleList([norm(cin, 1e-5), Nothing(), nn.Conv2d(cin, cout, 3, padding=1)])
        self.emb_layers = nn.ModuleList([Nothing(), nn.Linear(emb, cout * (1 + scale_shift))])
        self.out_layers = nn.ModuleList([norm(cout, 1e-5), Nothing(), Nothing(), nn.Conv2d(cout, cout, 3, padding=1)])
        if cin != cout:
            self.skip_connection = nn.Conv2d(cin, cout, 1)

    def _resample(self, x: Tensor) -> Tensor:
        if self.way == "down":
            return avg_pool2d(x, 2)
        return interpolate(x, scale_factor=2.0) if self.way == "up" else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self._resample(silu(self.in_layers[0](x))))
        said = self.emb_layers[1](silu(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = said.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + said)
        x = self._resample(x)
        return self.out_layers[3](silu(h)) + (self.skip_connection(x) if hasattr(self, "skip_connection") else x)


class GuidedAttention(nn.Module):
    def __init__(self, channels: int, heads: int, *, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = norm(channels, 1e-5)
        self.qkv, self.proj_out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        qkv = self.qkv(self.norm(x).flatten(2))
        if self.new_order:
            q, k, v = qkv.reshape(batch, 3, self.heads, channels // self.heads, -1).unbind(1)
        else:
            q, k, v = qkv.reshape(batch, self.heads, 3, channels // self.heads, -1).unbind(2)
        weights = (q.transpose(2, 3) @ k / math.sqrt(channels // self.heads)).softmax(dim=3)
        return x + self.proj_out((v @ weights.transpose(2, 3)).reshape(batch, channels, -1)).reshape(x.shape)


class Convolved(nn.Module):
    """A change of size by a convolution, under the name that it has there."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        if up:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        else:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0)) if self.up else self.op(x)


class Guided(nn.Module):
    def __init__(
        self,
        size: int = 8,
        width: int = 32,
        mult: Sequence[int] = (1, 2),
        blocks: int = 2,
        attention: Sequence[int] = (4,),
        heads: int | None = None,
        head_channels: int = 16,
        out: int = 3,
        classes: int = 0,
        scale_shift: bool = True,
        updown: bool = False,
        new_order: bool = False,
    ) -> None:
        super().__init__()
        self.width, emb = width, 4 * width
        kinds = {"emb": emb, "scale_shift": scale_shift}

        def attend(channels: int) -> nn.Module:
            return GuidedAttention(channels, heads or channels // head_channels, new_order=new_order)

        def resample(channels: int, way: str) -> nn.Module:
            return GuidedBlock(channels, channels, **kinds, way=way) if updown else Convolved(channels, up=way == "up")

        self.time_embed = nn.ModuleList([nn.Linear(width, emb), Nothing(), nn.Linear(emb, emb)])
        if classes:
            self.label_emb = nn.Embedding(classes, emb)
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, width, 3, padding=1)])])
        skips, cin = [width], width
        for level, m in enumerate(mult):
            for _ in range(blocks):
                layers = [GuidedBlock(cin, width * m, **kinds)]
                cin = width * m
                if size // 2**level in attention:
                    layers.append(attend(cin))
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(cin)
            if level < len(mult) - 1:
                self.input_blocks.append(nn.ModuleList([resample(cin, "down")]))
                skips.append(cin)
        self.middle_block = nn.ModuleList([GuidedBlock(cin, cin, **kinds), attend(cin), GuidedBlock(cin, cin, **kinds)])
        self.output_blocks = nn.ModuleList()
        for level, m in reversed(list(enumerate(mult))):
            for i in range(blocks + 1):
                layers = [GuidedBlock(cin + skips.pop(), width * m, **kinds)]
                cin = width * m
                if size // 2**level in attention:
                    layers.append(attend(cin))
                if level and i == blocks:
                    layers.append(resample(cin, "up"))
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.ModuleList([norm(cin, 1e-5), Nothing(), nn.Conv2d(cin, out, 3, padding=1)])

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        half = self.width // 2
        angles = t[:, None] * torch.exp(torch.arange(half) * (-math.log(10000) / half))
        emb = torch.cat([angles.cos(), angles.sin()], dim=1)
        emb = self.time_embed[2](silu(self.time_embed[0](emb)))
        if labels is not None:
            emb = emb + self.label_emb(labels)
        skips: list[Tensor] = []
        for layers in self.input_blocks:
            x = self._run(layers, x, emb)
            skips.append(x)
        x = self._run(self.middle_block, x, emb)
        for layers in self.output_blocks:
            x = self._run(layers, torch.cat([x, skips.pop()], dim=1), emb)
        return self.out[2](silu(self.out[0](x)))

    @staticmethod
    def _run(layers: nn.ModuleList, x: Tensor, emb: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x, emb) if isinstance(layer, GuidedBlock) else layer(x)
        return x
