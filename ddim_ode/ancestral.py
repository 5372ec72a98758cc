"""Sampling with noise in each step: DDIM's generative processes for eta in [0, 1], and DDPM's with larger noise.

It takes the place of a solver, downwards only:

    images = decode(ode, x_T, grid, Ancestral(seeded_noise(range(4), shape, seed=0), eta=1.0))

On all timesteps eta = 1 is DDPM's ancestral sampling with its smaller variance and sigma-hat that with its larger one,
beta_t; eta = 0 is Euler's method on the ODE. Formulas are in ``ddim_ode.family``.

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, Eq. (12) and Section 5.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ddim_ode.codec import seeded
from ddim_ode.family import Noise, kept_noise, noise_of_eta, noise_of_sigma_hat


@dataclass(frozen=True, eq=False)
class Ancestral:
    """One walk down a grid; one evaluation and, but for the step to sigma = 0, one draw of noise in each step.

    ``noise``      called once for each step with noise in it; ``(B, C, H, W)``. What it gives decides the images.
    ``eta``        0 for no noise, 1 for DDPM's.
    ``sigma_hat``  DDPM's larger noise, on the same mean as eta = 1.

    A grid with the clean end 'sigma-min' ends on a noisy level, and so its last step has noise like any other: of
    eta sigma_min at most in x_bar, which is what images at that level have; with ``sigma_hat`` more.

    Raises:
        ValueError: if eta lies outside [0, 1], or is not 1 beside ``sigma_hat``.
    """

    noise: Noise
    eta: float = 1.0
    sigma_hat: bool = False

    def __post_init__(self) -> None:
        noise_of_eta(1.0, 0.0, self.eta)
        if self.sigma_hat and self.eta != 1:
            raise ValueError(f"sigma-hat is defined beside eta = 1 alone, but eta is {self.eta:g}; leave one out")

    def __call__(self, field: Callable[[Tensor, Tensor], Tensor], x_bar: Tensor, sigmas: Tensor) -> Tensor:
        """x_bar, ``(B, C, H, W)``, from ``sigmas[0]`` down to ``sigmas[-1]``; ``sigmas`` is ``(steps + 1,)``.

        Raises:
            ValueError: if the sigmas rise, for noise cannot be taken back; or if the noise has another shape.
        """
        for sigma, sigma_next in pairwise(sigmas.unbind()):
            if not sigma_next < sigma:
                raise ValueError(
                    f"sampling with noise only goes down, but sigma = {float(sigma_next):g} follows "
                    f"{float(sigma):g}; encode with a solver of the ODE"
                )
            up, down = self._split(float(sigma), float(sigma_next))
            x_bar = x_bar + (down - float(sigma)) * field(sigma, x_bar)
            if up:
                x_bar = x_bar + up * self._draw(x_bar)
        return x_bar

    def _draw(self, x_bar: Tensor) -> Tensor:
        noise = self.noise()
        if noise.shape != x_bar.shape:
            raise ValueError(
                f"noise must be for as many samples as the state, shape {tuple(x_bar.shape)}, "
                f"but it has {tuple(noise.shape)}"
            )
        return noise.to(x_bar)

    def _split(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        """New noise, and noise that stays."""
        up = noise_of_eta(sigma, sigma_next, self.eta)
        down = kept_noise(sigma_next, up)
        return noise_of_sigma_hat(sigma, sigma_next) if self.sigma_hat else up, down


def seeded_noise(members: range, shape: tuple[int, int, int], *, seed: int) -> Noise:
    """Standard normal noise, ``(len(members), C, H, W)`` on each call for ``shape`` (C, H, W); float64 on the CPU.

    Each of ``members``, numbers of samples counted from 0, has a stream of its own, so that its noise depends neither
    on the batch it is in nor on the device.
    """
    root = seeded(seed)
    seeds = torch.randint(2**62, (members.stop,), generator=root).tolist()
    streams = [torch.Generator().manual_seed(seeds[member]) for member in members]
    return lambda: torch.stack([torch.randn(shape, generator=stream, dtype=torch.float64) for stream in streams])
