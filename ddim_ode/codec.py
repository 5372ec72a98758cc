"""Encode images to latents and decode latents to images: one integration, up or down the same grid.

Notation: an image is x_0, ``(B, C, H, W)``, pixels in [-1, 1]; a latent is x_T = x_bar_T / sqrt(1 + sigma_T^2), of the
same shape and about unit variance. Nothing is clipped on the way. The solver is an argument: anything that can be
called as ``solver(field, x, sigmas)``.

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, Sections 4.3 and 5.4.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor

from ddim_ode.grids import Grid
from ddim_ode.ode import EvaluationLimitError, ProbabilityFlowODE

Solve = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor], Tensor]


def encode(
    ode: ProbabilityFlowODE,
    x_0: Tensor,
    grid: Grid,
    solver: Solve,
    *,
    differentiable: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Latents x_T of the images ``x_0``, both ``(B, C, H, W)``; pixels in [-1, 1].

    ``differentiable``  keep the graph from x_T back to x_0 and the network; otherwise memory does not grow with steps.
    ``dtype``           of the state and the result: float64 unless given, float32 on a device that has no more.

    Raises:
        EvaluationLimitError: if the ODE's limit on evaluations is reached.
        RuntimeError: whatever the solver raises when it cannot reach the end.
    """
    x_bar_T = _integrate(ode, _state(x_0, dtype), grid.upward(), solver, differentiable)
    return x_bar_T / _latent_scale(grid)


def decode(
    ode: ProbabilityFlowODE,
    x_T: Tensor,
    grid: Grid,
    solver: Solve,
    *,
    differentiable: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Images x_0 of the latents ``x_T``, both ``(B, C, H, W)``; the inverse of ``encode`` up to the solver's error.

    Pixels are in [-1, 1] up to overshoot. Arguments and errors are those of ``encode``.
    """
    x_bar_T = _state(x_T, dtype) * _latent_scale(grid)
    return _integrate(ode, x_bar_T, grid.downward(), solver, differentiable)


def encode_pair(ode: ProbabilityFlowODE, x_0: Tensor, grid: Grid, solver: Solve) -> tuple[Tensor, Tensor | None]:
    """Latents x_T and, of a reversible solver, the companions with which they lead back to ``x_0`` exactly.

    A reversible solver has two attributes: ``to_pair``, a solver that leads to two states, the halves of a batch, and
    ``from_pair``, one that begins with those. Of any other there is no companion. All shapes are ``(B, C, H, W)``.
    Errors are those of ``encode``.
    """
    to_pair: Solve | None = getattr(solver, "to_pair", None)
    if to_pair is None:
        return encode(ode, x_0, grid, solver), None
    x_T, companion = encode(ode, x_0, grid, to_pair).chunk(2)
    return x_T, companion


def decode_pair(ode: ProbabilityFlowODE, x_T: Tensor, companion: Tensor | None, grid: Grid, solver: Solve) -> Tensor:
    """Images of the latents ``x_T``: with the ``companion`` of a reversible ``solver`` those that ``encode_pair`` was
    given, to rounding, on the same ``grid``; without one as ``decode`` makes them. Shapes are ``(B, C, H, W)``.
    """
    from_pair: Solve | None = getattr(solver, "from_pair", None)
    if companion is None or from_pair is None:
        return decode(ode, x_T, grid, solver)
    return decode(ode, torch.cat([x_T, companion]), grid, from_pair)


def draw_latents(count: int, shape: tuple[int, int, int], *, seed: int) -> Tensor:
    """``count`` latents x_T from N(0, I), ``(count, C, H, W)`` for ``shape`` (C, H, W); float64 on the CPU.

    The first ones do not depend on ``count``, nor any on the device.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)])


def state_dtype(device: torch.device) -> torch.dtype:
    """float64 where ``device`` has it, else float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def _state(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    if x.ndim != 4:
        raise ValueError(f"images and latents must have shape (B, C, H, W), but this one has {tuple(x.shape)}")
    return x.to(dtype or state_dtype(x.device))


def _latent_scale(grid: Grid) -> float:
    """The standard deviation of x_bar_T where x_0 has variance 1: sqrt(1 + sigma_T^2)."""
    return sqrt(1 + grid.sigma_T**2)


def _integrate(ode: ProbabilityFlowODE, x_bar: Tensor, sigmas: Tensor, solver: Solve, differentiable: bool) -> Tensor:
    with torch.set_grad_enabled(differentiable):
        try:
            return solver(ode, x_bar, sigmas)
        except EvaluationLimitError as error:
            raise EvaluationLimitError(
                f"{error} (on the way from sigma = {float(sigmas[0]):.6g} to {float(sigmas[-1]):.6g})"
            ) from None
