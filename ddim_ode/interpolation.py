"""Ways from one latent to another along a great circle, on which every point looks like a draw from N(0, I).

Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985; for latents: Song et al., "Denoising Diffusion
Implicit Models", arXiv 2010.02502, Section 5.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddim_ode.codec import state_dtype


def slerp(a: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    """The point at ``weight`` in [0, 1] of the way from ``a`` to ``b``, each member of the batch on its own circle.

    ``a`` and ``b`` are ``(B, ...)``, ``weight`` is a number or ``(B,)``; returns ``(B, ...)`` in their dtype. Whatever
    that is, computed is in float64, or in float32 on a device that has no more.

    The direction turns at a constant rate and the length changes linearly. For equal lengths that is the formula of
    the paper, sin((1 - w) theta) / sin(theta) a + sin(w theta) / sin(theta) b; that one has no bound where lengths
    differ and directions are almost opposite. Parallel vectors are joined by a straight line, and so are a vector and
    zero. Opposite ones, which all great circles through a join, take the one through a turned by a right angle in the
    planes of the dimensions 1 and 2, 3 and 4, ...: it looks like noise where a does.

    Raises:
        ValueError: if the shapes or the dtypes differ, or are not those of floating-point numbers.
    """
    _check_alike(a, b)
    dtype = state_dtype(a.device)
    w = torch.as_tensor(weight, dtype=dtype, device=a.device).reshape(-1, 1)
    (length, u), (length_end, v) = (_polar(x.flatten(1).to(dtype)) for x in (a, b))
    u, v = u.where(length > 0, v), v.where(length_end > 0, u)
    # Accurate at both ends, where an arc cosine is not.
    theta = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    direction = torch.cos(w * theta) * u + torch.sin(w * theta) * _aside(u, v)
    return (torch.lerp(length, length_end, w) * direction).reshape(a.shape).to(a.dtype)


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
    weights = torch.linspace(0, 1, count, dtype=state_dtype(a.device), device=a.device)
    return slerp(a.expand(count, *a.shape), b.expand(count, *b.shape), weights)


def _check_alike(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"latents must have one shape, but these have {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dtype != b.dtype or not a.is_floating_point():
        raise ValueError(
            f"latents must have one dtype, of floating-point numbers, but these have {a.dtype} and {b.dtype}; "
            "convert them first"
        )


def _polar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths ``(B, 1)`` and directions ``(B, D)`` of ``x``, ``(B, D)``; a zero has the direction zero.

    No square of an element, which may be too large or too small for its dtype, is taken.
    """
    largest = x.abs().amax(1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    length = x.norm(dim=1, keepdim=True)
    return largest * length, x / torch.where(length > 0, length, 1)


def _aside(u: Tensor, v: Tensor) -> Tensor:
    """The unit vector at a right angle to ``u``, in the plane of u and ``v`` and on its side; all are ``(B, D)``."""
    across = v - (u * v).sum(1, keepdim=True) * u
    across = across - (u * across).sum(1, keepdim=True) * u  # once more, for what rounding left of u in it
    least = 8 * torch.finfo(u.dtype).eps
    length = across.norm(dim=1, keepdim=True)
    return torch.where(length > least, across / length.clamp(min=least), _turned(u))


def _turned(u: Tensor) -> Tensor:
    """``u``, ``(B, D)``, turned by a right angle in the planes of its dimensions by twos; without the last of an odd
    number of dimensions, and zero if nothing is left then."""
    even = u.shape[1] // 2 * 2
    pairs = u[:, :even].reshape(len(u), -1, 2)
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(1)
    turned = torch.cat([turned, torch.zeros_like(u[:, even:])], dim=1)
    return _polar(turned)[1]
