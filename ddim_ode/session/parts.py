"""Whose an error is: that of the ODE, or that of the autoencoder whose latents its states are."""

from __future__ import annotations

from dataclasses import dataclass

from ddim_ode.images import psnr


@dataclass(frozen=True)
class Parts:
    """Whose an error is, where states are latents of an autoencoder: of the ODE, and of the autoencoder alone.

    ``x_0_mse``          of the states, per dimension.
    ``ode_mse``          of the picture, pixels in [0, 1], against the autoencoder's own reconstruction.
    ``autoencoder_mse``  of that reconstruction.
    """

    x_0_mse: float
    ode_mse: float
    autoencoder_mse: float

    def report(self) -> str:
        """The three, in a line."""
        return (
            f"the ODE alone: MSE {self.x_0_mse:.3g} in x_0 and PSNR {psnr(self.ode_mse):.2f} dB against the "
            f"autoencoder's own; the autoencoder alone: PSNR {psnr(self.autoencoder_mse):.2f} dB"
        )
