"""What training minimizes: L_gamma of DDIM (Song et al., arXiv 2010.02502, Eq. (5)), whatever a network predicts.

    L_gamma = mean over t of gamma_t E || eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t) - eps ||^2

Here it is taken per dimension. A network may predict v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 or x_0 itself
instead of eps (Salimans and Ho, arXiv 2202.00512, Appendix D). For the same input the error of v is that of eps times
sqrt(1 + sigma^2), so that its plain squared error is L_gamma with gamma = 1 + sigma^2 = 1 / alpha_bar; that of x_0 is
L_gamma with gamma = sigma^2. ``ddim_ode.predictions`` has the table.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddim_ode.predictions import find_prediction
from ddim_ode.predictor import Network
from ddim_ode.schedule import NoiseSchedule

# gamma as a function of alpha_bar, by the name on the command line; 1 is the paper's choice and DDPM's.
GAMMAS: dict[str, Callable[[Tensor], Tensor]] = {
    "1": torch.ones_like,
    "1/alpha_bar": torch.reciprocal,
}


def denoising_loss(
    network: Network,
    schedule: NoiseSchedule,
    prediction: str,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    gamma: str | None = None,
) -> Tensor:
    """The summands of L_gamma, per dimension, shape ``(B,)``.

    ``x_0``    images ``(B, C, H, W)``, pixels in [-1, 1]; ``noise`` eps of the same shape; ``t`` timesteps ``(B,)``.
    ``gamma``  a key of ``GAMMAS``; None for the one under which the network's own squared error is what counts.
    """
    kind = find_prediction(prediction)
    alpha_bar = schedule.alpha_bar.to(x_0.device, x_0.dtype)[t].reshape(-1, 1, 1, 1)
    x = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
    output = network(x, t.to(x.dtype)).to(x.dtype)
    error = (output - kind.target(x_0, noise, alpha_bar)).square().flatten(1).mean(1)
    if gamma is None:
        return error
    alpha_bar = alpha_bar.flatten()
    return error * GAMMAS[gamma](alpha_bar) / kind.own_gamma(alpha_bar)


def stratified_timesteps(count: int, T: int, generator: torch.Generator) -> Tensor:
    """``count`` timesteps in {0, ..., T - 1}, each uniform, together spread evenly over the range; shape ``(count,)``.

    One random offset for all lowers the variance of the loss: Kingma et al., "Variational Diffusion Models", arXiv
    2107.00630. In a random order, since the images they are for may be in one of their own.
    """
    offset = torch.rand((), generator=generator, device=generator.device)
    share = (torch.arange(count, device=generator.device) / count + offset) % 1
    order = torch.randperm(count, generator=generator, device=generator.device)
    return (share * T).long().clamp(max=T - 1)[order]
