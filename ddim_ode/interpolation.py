"""From one latent to another along a great circle, on which every point looks like a draw from N(0, I).

Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985; for latents: Song et al., "Denoising Diffusion
Implicit Models", arXiv 2010.02502, Section 5.3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def slerp(a: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    """The point at ``weight`` in [0, 1] of the way from ``a`` to ``b``, each member of the batch on its own circle.

    ``a`` and ``b`` are ``(B, ...)``, ``weight`` is a number or ``(B,)``; returns ``(B, ...)`` in their dtype.

    The direction turns at a constant rate and the length changes linearly. For equal lengths that is the formula of
    the paper, sin((1 - w) theta) / sin(theta) a + sin(w theta) / sin(theta) b; that one has no bound where lengths
    differ and directions are almost opposite. Parallel vectors are joined by a straight line, and so are a vector and
    zero. Opposite ones, which all great circles through a join, take the one through a turned by a right angle in the
    planes of the dimensions 1 and 2, 3 and 4, ...: it looks like noise where a does.

    Raises:
        ValueError: if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"latents must have one shape, but these have {tuple(a.shape)} and {tuple(b.shape)}")
    begin, end = a.flatten(1), b.flatten(1)
    w = torch.as_tensor(weight, dtype=a.dtype, device=a.device).reshape(-1, 1)
    lengths = begin.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True)
    u, v = _unit(begin, or_else=end), _unit(end, or_else=begin)
    # Accurate at both ends, where an arc cosine is not.
    theta = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    direction = torch.cos(w * theta) * u + torch.sin(w * theta) * _aside(u, v)
    return (torch.lerp(*lengths, w) * direction).reshape(a.shape)


def span(corners: Tensor, count: int) -> Tensor:
    """``count`` latents from the first of two ``corners`` to the second, or ``count`` x ``count`` between four.

    ``corners`` are ``(2, C, H, W)``, or ``(4, C, H, W)``: upper left, upper right, lower left, lower right. Returns
    ``(count, C, H, W)`` or ``(count^2, C, H, W)``, row by row. A sheet has its left and right edges first, and the
    rows between them.

    Raises:
        ValueError: if there are neither two corners nor four, or ``count`` is less than 2.
    """
    if len(corners) not in (2, 4):
        raise ValueError(f"interpolation is between two latents or four, but there are {len(corners)}")
    if count < 2:
        raise ValueError(f"interpolation needs at least 2 points, both ends, but {count} is asked for")
    if len(corners) == 2:
        return _line(corners[0], corners[1], count)
    left, right = _line(corners[0], corners[2], count), _line(corners[1], corners[3], count)
    return torch.cat([_line(a, b, count) for a, b in zip(left, right, strict=True)])


def _line(a: Tensor, b: Tensor, count: int) -> Tensor:
    weights = torch.linspace(0, 1, count, dtype=a.dtype, device=a.device)
    return slerp(a.expand(count, *a.shape), b.expand(count, *b.shape), weights)


def _unit(x: Tensor, *, or_else: Tensor) -> Tensor:
    """``x``, ``(B, D)``, of length 1; a zero takes the direction of ``or_else``, and stays zero beside another."""
    length = x.norm(dim=1, keepdim=True)
    x = torch.where(length > 0, x, or_else)
    length = x.norm(dim=1, keepdim=True)
    return x / torch.where(length > 0, length, 1)


def _aside(u: Tensor, v: Tensor) -> Tensor:
    """Of unit vectors ``(B, D)``: the one at a right angle to ``u``, in the plane of u and ``v`` and on its side."""
    across = v - (u * v).sum(1, keepdim=True) * u
    across = across - (u * across).sum(1, keepdim=True) * u  # once more, for what rounding left of u in it
    least = 1e3 * torch.finfo(u.dtype).eps
    length = across.norm(dim=1, keepdim=True)
    return torch.where(length > least, across / length.clamp(min=least), _turned(u))


def _turned(u: Tensor) -> Tensor:
    """``u``, ``(B, D)``, turned by a right angle in the planes of its dimensions by twos; without the last of an odd
    number of dimensions, and zero if nothing is left then."""
    even = u.shape[1] // 2 * 2
    pairs = u[:, :even].reshape(len(u), -1, 2)
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(1)
    turned = torch.cat([turned, torch.zeros_like(u[:, even:])], dim=1)
    return _unit(turned, or_else=torch.zeros_like(u))
