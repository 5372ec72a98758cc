"""How good a latent is, without knowing the truth: encode once more with finer steps, and decode what there is.

The finer latent is nearer to the truth by a factor of 2^p for a method of order p, so that the distance of the two is
the error of the coarser one, but for that part. What decoding gives back is measured, not estimated.

A method that leads back exactly may lead to latents that are none. What shows it at once is their mean square, near 1
for a good one, and near that of the finer latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ddim_ode.grids import Grid
from ddim_ode.images import pixel_mse
from ddim_ode.session.parts import Parts
from ddim_ode.session.walks import Walker
from ddim_ode.solvers import Solver

# How far the second moment of a latent may be off, relative to that of the finer one.
MOMENT_TOLERANCE = 0.03


@dataclass(frozen=True, eq=False)
class Check:
    """What was found of each latent: all of shape ``(B,)``, on the CPU.

    ``latent_rmse``         estimated RMSE per dimension of x_T, which has about unit variance.
    ``second_moment``       mean square of x_T.
    ``finer_moment``        that of the latent encoded with finer steps.
    ``reconstruction_mse``  measured MSE per dimension of what it decodes to, pixels in [0, 1].
    ``parts``               whose errors these are, where images are latents of an autoencoder.
    """

    latent_rmse: Tensor
    second_moment: Tensor
    finer_moment: Tensor
    reconstruction_mse: Tensor
    parts: Sequence[Parts | None]

    def report(self, i: int) -> str:
        """What was found of the latent number ``i``, in a line."""
        parts = self.parts[i]
        return (
            f"latent RMSE about {float(self.latent_rmse[i]):.2g}, second moment {float(self.second_moment[i]):.4g}, "
            f"reconstruction MSE {float(self.reconstruction_mse[i]):.2g}{f'; {parts.report()}' if parts else ''}"
        )

    @property
    def drifts(self) -> Tensor:
        """Whether the second moment is off by more than ``MOMENT_TOLERANCE``: flags of shape ``(B,)``."""
        return (self.second_moment / self.finer_moment - 1).abs() > MOMENT_TOLERANCE


def check(
    walker: Walker,
    x_0: Tensor,
    x_T: Tensor,
    grid: Grid,
    *,
    finer: tuple[Solver, Grid],
    back: Solver,
    compare: Callable[[Tensor], tuple[Tensor, Sequence[Parts | None]]] | None = None,
    companion: Tensor | None = None,
) -> Check:
    """The quality of ``x_T``, encoded from ``x_0`` on ``grid``, both ``(B, C, H, W)``; pixels of x_0 in [-1, 1].

    ``finer``      the same method with halved steps, ``grids.halved``, or with a tenth of its tolerances.
    ``back``       the method to decode with, on ``grid``.
    ``compare``    what came back with the pictures: their errors, ``(B,)``, and whose these are; of images that are
                   pictures nobody else's.
    ``companion``  that of x_T, if there is one.

    Each of the two walks has the ODE's limit to itself. Errors are those of ``codec.encode``.
    """
    solver, fine_grid = finer
    fine, _ = walker.encode(x_0, fine_grid, solver, label="check")
    again, _ = walker.decode(x_T, grid, back, companion=companion, label="check")
    error, parts = compare(again.x) if compare else (pixel_mse(x_0, again.x), [None] * len(x_0))
    return Check(mean_square(fine.x - x_T).sqrt(), mean_square(x_T), mean_square(fine.x), error, parts)


def mean_square(x: Tensor) -> Tensor:
    """The mean square of each member of ``x``, ``(B, C, H, W)``; shape ``(B,)``, on the CPU."""
    return x.square().flatten(1).mean(1).cpu()
