"""Steps that take the slope at the level they go to: encoders made for images that DDIM, the Euler step, decodes.

Decoding with Euler from sigma_next to sigma uses the slope at sigma_next. An encoder that is to undo it should use the
same slope, which it would have to know the end of its own step for; these guess it.

Sources: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", arXiv 2010.02502; ``DDIMInverseScheduler`` of
diffusers, https://github.com/huggingface/diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .fixed import FixedStepSolver

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field


def predicted_target(
    field: Field, sigma: Tensor, sigma_next: Tensor, x: Tensor, slope: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Go to the target with the last slope, take the slope there, and go with that; at first stay where you are.

    ``sigma`` and ``sigma_next`` are ``()``; ``x`` and the last ``slope`` are ``(B, ...)``.
    """
    h = sigma_next - sigma
    guess = x if slope is None else x + h * slope
    slope = field(sigma_next, guess)
    return x + h * slope, slope


def rescaled_target(field: Field, sigma: Tensor, sigma_next: Tensor, x: Tensor, state: None) -> tuple[Tensor, None]:
    """Take x / sqrt(1 + sigma^2), what a network sees, as what it sees at the target too: diffusers' inversion.

    ``sigma`` and ``sigma_next`` are ``()``, and ``x`` is ``(B, ...)``.
    """
    guess = x * ((1 + sigma_next**2) / (1 + sigma**2)).sqrt()
    return x + (sigma_next - sigma) * field(sigma_next, guess), None


TARGET_SOLVERS: tuple[FixedStepSolver, ...] = (
    FixedStepSolver(
        name="ddim-predicted",
        order=1,
        nfe_per_step=1,
        source="the slope at the predicted target; undoes Euler's decoding to order 2",
        step=predicted_target,
        undoes="euler",
    ),
    FixedStepSolver(
        name="ddim-inverse",
        order=1,
        nfe_per_step=1,
        source="the rule of diffusers' DDIMInverseScheduler for networks that predict the slope",
        step=rescaled_target,
        only_sigma=True,
        undoes="euler",
    ),
)
