"""Encoding and decoding for measurements: on the device of the network, and what comes of it on the CPU.

Arguments and errors are those of the functions of the same names in ``ddim_ode.codec``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddim_ode import codec
from ddim_ode.grids import Grid
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.solvers import Solution, Solver


def encode(ode: ProbabilityFlowODE, x_0: Tensor, grid: Grid, solver: codec.Solve) -> Tensor:
    """Latents x_T of the images ``x_0``, both ``(B, C, H, W)``; pixels in [-1, 1]."""
    return codec.encode(ode, _moved(x_0, ode), grid, solver).cpu()


def decode(ode: ProbabilityFlowODE, x_T: Tensor, grid: Grid, solver: codec.Solve) -> Tensor:
    """Images x_0 of the latents ``x_T``, both ``(B, C, H, W)``."""
    return codec.decode(ode, _moved(x_T, ode), grid, solver).cpu()


def encode_solution(ode: ProbabilityFlowODE, x_0: Tensor, grid: Grid, solver: Solver) -> Solution:
    """The solution that leads from ``x_0`` to latents, both ``(B, C, H, W)``."""
    return codec.encode_solution(ode, _moved(x_0, ode), grid, solver).map(Tensor.cpu)


def decode_solution(
    ode: ProbabilityFlowODE, x_T: Tensor, grid: Grid, solver: Solver, companion: Tensor | None = None
) -> Solution:
    """The solution that leads from ``x_T``, and perhaps its ``companion``, to images; all are ``(B, C, H, W)``."""
    second = None if companion is None else _moved(companion, ode)
    return codec.decode_solution(ode, _moved(x_T, ode), grid, solver, second).map(Tensor.cpu)


def _moved(x: Tensor, ode: ProbabilityFlowODE) -> Tensor:
    parameter = next(ode.parameters(), None)
    return codec.to_device(x, torch.device("cpu") if parameter is None else parameter.device)
