"""How good a latent is, without knowing the truth: encode once more with finer steps, and decode what there is.

The finer latent is nearer to the truth by a factor of 2^p for a method of order p, so that the distance of the two is
the error of the coarser one, but for that part. What decoding gives back is measured, not estimated.

A method that leads back exactly may lead to latents that are none. What shows it at once is their mean square, near 1
for a good one, and near that of the finer latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ddim_ode.grids import Grid
from ddim_ode.images import pixel_mse
from ddim_ode.session.walks import Walker
from solvers import Solver

# How far the second moment of a latent may be off, relative to that of the finer one.
MOMENT_TOLERANCE = 0.03


@dataclass(frozen=True, eq=False)
class Check:
    """What was found of each latent: all of shape ``(B,)``, on the CPU.

    ``latent_rmse``         estimated RMSE per dimension of x_T, which has about unit variance.
    ``second_moment``       mean square of x_T.
    ``finer_moment``        that of the latent encoded with finer steps.
    ``reconstruction_mse``  measured MSE per dimension of what it decodes to, pixels in [0, 1].
    """

    latent_rmse: Tensor
    second_moment: Tensor
    finer_moment: Tensor
    reconstruction_mse: Tensor

    def report(self, i: int) -> str:
        """What was found of the latent number ``i``, in a line."""
        return (
            f"latent RMSE about {float(self.latent_rmse[i]):.2g}, second moment {float(self.second_moment[i]):.4g}, "
            f"reconstruction MSE {float(self.reconstruction_mse[i]):.2g}"
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
    errors: Callable[[Tensor, Tensor], Tensor] = pixel_mse,
    companion: Tensor | None = None,
) -> Check:
    """The quality of ``x_T``, encoded from ``x_0`` on ``grid``, both ``(B, C, H, W)``; pixels of x_0 in [-1, 1].

    ``finer``      the same method with halved steps, ``grids.halved``, or with a tenth of its tolerances.
    ``back``       the method to decode with, on ``grid``.
    ``errors``     of two batches of states, MSE of the pictures that they are.
    ``companion``  that of x_T, if there is one.

    Each of the two walks has the ODE's limit to itself. Errors are those of ``codec.encode``.
    """
    solver, fine_grid = finer
    fine, _ = walker.encode(x_0, fine_grid, solver, label="check")
    again, _ = walker.decode(x_T, grid, back, companion=companion, label="check")
    error = errors(x_0, again.x)
    return Check(mean_square(fine.x - x_T).sqrt(), mean_square(x_T), mean_square(fine.x), error)


def mean_square(x: Tensor) -> Tensor:
    """The mean square of each member of ``x``, ``(B, C, H, W)``; shape ``(B,)``, on the CPU."""
    return x.square().flatten(1).mean(1).cpu()
