"""Encode images to latents and decode latents to images: one integration, up or down the same grid.

Notation: an image is x_0, ``(B, C, H, W)``, pixels in [-1, 1]; a latent is x_T = x_bar_T / sqrt(1 + sigma_T^2), of the
same shape and about unit variance; where sigma_T is infinite, it is the limit of that, the noise itself. Nothing is
clipped on the way. The solver is an argument: for ``encode`` and
``decode`` anything that can be called as ``solver(field, x, sigmas)``; for ``encode_solution`` and ``decode_solution``
a ``Method``, whose solution holds more than the state.

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, Sections 4.3 and 5.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count as count_up
from itertools import islice
from math import isinf, prod, sqrt
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ddim_ode.grids import VP_END, Grid
from ddim_ode.ode import EvaluationLimitError, ProbabilityFlowODE

Field = Callable[[Tensor, Tensor], Tensor]
Solve = Callable[[Field, Tensor, Tensor], Tensor]


class Solved(Protocol):
    """What a ``Method`` gives; ``solvers.Solution`` is one. States are ``(B, C, H, W)``."""

    @property
    def x(self) -> Tensor:
        """The state at the end, ``(B, C, H, W)``."""

    @property
    def companion(self) -> Tensor | None:
        """The second state of a reversible method, ``(B, C, H, W)``; None from all others."""

    def map(self: S, function: Callable[[Tensor], Tensor]) -> S:
        """The same with both states, each ``(B, C, H, W)``, changed by ``function``."""


S = TypeVar("S", bound=Solved)
S_co = TypeVar("S_co", bound=Solved, covariant=True)


class Method(Protocol[S_co]):
    """What integrates the ODE and says all that it found; every ``solvers.Solver`` is one."""

    def solve(self, field: Field, x: Tensor, grid: Tensor, companion: Tensor | None = None) -> S_co:
        """Integrate ``x``, ``(B, C, H, W)``, and perhaps its companion, along ``grid``, ``(steps + 1,)``."""


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
    x_bar_T = _integrate(ode, _state(x_0, dtype) * _clean_scale(grid), grid.upward(), solver, differentiable)
    return x_bar_T / latent_scale(grid.sigma_T)


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
    x_bar_T = _state(x_T, dtype) * latent_scale(grid.sigma_T)
    return _integrate(ode, x_bar_T, grid.downward(), solver, differentiable) / _clean_scale(grid)


def encode_solution(
    ode: ProbabilityFlowODE, x_0: Tensor, grid: Grid, solver: Method[S], *, dtype: torch.dtype | None = None
) -> S:
    """The whole solution that leads from the images ``x_0``, ``(B, C, H, W)``, pixels in [-1, 1], to their latents.

    Its state is x_T, its companion (of a reversible solver alone) what x_T leads back to x_0 with, exactly; both have
    the shape of x_0. Errors are those of ``encode``, and ValueError where a reversible solver does not take the step to
    sigma = infinity.
    """
    sigmas, scale = grid.upward(), latent_scale(grid.sigma_T)
    with _walking(ode, sigmas, differentiable=False):
        x_bar, end = _state(x_0, dtype) * _clean_scale(grid), _End(ode, sigmas, solver)
        solution = solver.solve(ode, x_bar, end.inner)
        end.check_companion(solution.companion)
        return solution.map(lambda x_bar_T: end.leave(x_bar_T) / scale)


def decode_solution(
    ode: ProbabilityFlowODE,
    x_T: Tensor,
    grid: Grid,
    solver: Method[S],
    companion: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> S:
    """The whole solution that leads from the latents ``x_T``, ``(B, C, H, W)``, to images of the same shape.

    With the ``companion`` of x_T the state at its end is the image that was encoded, to rounding, if ``solver`` and
    ``grid`` are those of the encoding. Errors are those of ``encode``, and ValueError where the solver has no use for
    a companion.
    """
    sigmas, scale = grid.downward(), latent_scale(grid.sigma_T)
    with _walking(ode, sigmas, differentiable=False):
        second = None if companion is None else _state(companion, dtype) * scale
        end, clean = _End(ode, sigmas, solver), _clean_scale(grid)
        end.check_companion(companion)
        return solver.solve(ode, end.enter(_state(x_T, dtype) * scale), end.inner, second).map(lambda x: x / clean)


# In memory: 512 GiB.
_MOST_NUMBERS = 2**36


def draw_latents(count: int, shape: tuple[int, int, int], *, seed: int) -> Tensor:
    """``count`` latents x_T from N(0, I), ``(count, C, H, W)`` for ``shape`` (C, H, W); float64 on the CPU.

    They are the first ones of the ``stream_latents``.

    Raises:
        ValueError: for a wrong seed, or so many latents that no machine holds them.
    """
    if not 0 < count * prod(shape) < _MOST_NUMBERS:
        most = _MOST_NUMBERS // prod(shape)
        raise ValueError(f"there must be from 1 to {most} latents of the shape {shape}, but {count} are asked for")
    return torch.stack(list(islice(stream_latents(shape, seed=seed), count)))


def stream_latents(shape: tuple[int, int, int], *, seed: int) -> Iterator[Tensor]:
    """Latents x_T from N(0, I) without end, each of the ``shape`` (C, H, W); float64 on the CPU, whatever the device.

    Raises:
        ValueError: for a seed outside [0, 2^63).
    """
    generator = seeded(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in count_up())


def seeded(seed: int) -> torch.Generator:
    """A generator of random numbers on the CPU.

    Raises:
        ValueError: for a seed outside [0, 2^63).
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"a seed must be at least 0 and below 2^63, but it is {seed}")
    return torch.Generator().manual_seed(seed)


# The kinds of devices that have no float64.
WITHOUT_FLOAT64 = {"mps"}


def state_dtype(device: torch.device) -> torch.dtype:
    """The dtype of states on ``device``: float64 where there is such a thing, else float32."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """``x``, any shape, on ``device``, in the dtype that states have there; no float64 goes where there is none."""
    return x.to(state_dtype(device)).to(device)


def _state(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    if x.ndim != 4:
        raise ValueError(f"images and latents must have shape (B, C, H, W), but this one has {tuple(x.shape)}")
    return x.to(dtype or state_dtype(x.device))


def latent_scale(sigma_T: float) -> float:
    """The standard deviation of x_bar_T where x_0 has variance 1: sqrt(1 + sigma_T^2).

    Where sigma_T is infinite, the state is x_bar_T / sigma_T already.
    """
    return 1.0 if isinf(sigma_T) else sqrt(1 + sigma_T**2)


def _clean_scale(grid: Grid) -> float:
    """x_bar at the clean end, of an image of 1."""
    return sqrt(1 + grid.sigmas[0] ** 2) if grid.clean_end == VP_END else 1.0


class _End:
    """The step between sigma = infinity and the last finite one of ``sigmas``, for solvers that do not take it.

    It is Euler's: x_bar = x_0 + sigma eps, with the x_0 that the network sees in the noise on the way down, and the eps
    that it sees in x_bar on the way up.

    ``inner``  what of the ``sigmas`` is left to the solver.

    Raises:
        ValueError: if the solver would be left with nothing.
    """

    def __init__(self, ode: ProbabilityFlowODE, sigmas: Tensor, solver: object) -> None:
        taken = bool(sigmas.isfinite().all()) or getattr(solver, "endless", False)
        self._ode = ode
        self._down = not taken and bool(sigmas[0].isinf())
        self._up = not taken and bool(sigmas[-1].isinf())
        self.inner = sigmas[1:] if self._down else sigmas[:-1] if self._up else sigmas
        if len(self.inner) < 2:
            raise ValueError(
                "one step alone leads to or from sigma = infinity, and this solver needs another; take 2 steps or more"
            )

    def check_companion(self, companion: Tensor | None) -> None:
        """Raise ValueError if there is a ``companion``, ``(B, C, H, W)``, and a step that it plays no part in."""
        if companion is not None and (self._up or self._down):
            raise ValueError(
                "this reversible solver does not take the step to or from sigma = infinity, and would not lead back; "
                "take one that does, such as reversible-heun"
            )

    def enter(self, x: Tensor) -> Tensor:
        """Where the solver begins; ``(B, C, H, W)`` like ``x``."""
        return self._ode.origin(x) + float(self.inner[0]) * x if self._down else x

    def leave(self, x: Tensor) -> Tensor:
        """The end, from where the solver left it; ``(B, C, H, W)`` like ``x``."""
        end: Tensor = self._ode(self.inner[-1], x) if self._up else x
        return end


def _integrate(ode: ProbabilityFlowODE, x_bar: Tensor, sigmas: Tensor, solver: Solve, differentiable: bool) -> Tensor:
    with _walking(ode, sigmas, differentiable=differentiable):
        end = _End(ode, sigmas, solver)
        return end.leave(solver(ode, end.enter(x_bar), end.inner))


@contextmanager
def _walking(ode: ProbabilityFlowODE, sigmas: Tensor, *, differentiable: bool) -> Iterator[None]:
    """Integrate with or without a graph, and close the ODE in the end.

    An error says between which of the ``sigmas``, ``(steps + 1,)``, it was.
    """
    with torch.set_grad_enabled(differentiable):
        try:
            yield
        except EvaluationLimitError as error:
            raise EvaluationLimitError(
                f"{error} (on the way from sigma = {float(sigmas[0]):.6g} to {float(sigmas[-1]):.6g})"
            ) from None
        finally:
            ode.close()
