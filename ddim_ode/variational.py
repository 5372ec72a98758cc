"""Why one network serves the whole family: the variational objective of each process is a weighted denoising loss.

    J(eps_theta) = L_gamma(eps_theta) + C,    L_gamma = sum_t gamma_t E |eps_theta(x_t) - eps|^2

The KL divergence of a step is that of two Gaussians of one variance. In the notation of ``ddim_ode.family`` their
means are (1 - down / sigma_t) (x_0 - f) apart in x_bar, where f = x_bar_t - sigma_t eps_theta is the guess of x_0 and
x_0 - f = sigma_t (eps_theta - eps), so that

    gamma_t = (sigma_t - down_t)^2 / (2 up_t^2),    with down_1 = 0 in the term of x_0 itself.

The paper's appendix prints gamma_t = 1 / (2 d sigma_t^2 alpha_t) in its own letters. That leaves out the factor
1 - alpha_t, which x_0 - f brings with it, and for t > 1 the square of the coefficient of x_0 in the mean of Eq. (7);
d is there because it means errors over dimensions. The theorem, that there is such a gamma, stands.

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, Theorem 1 and Appendix B.
"""

from __future__ import annotations

from math import log, pi, sqrt

import torch
from torch import Tensor

from ddim_ode.family import ForwardProcess
from ddim_ode.ode import ProbabilityFlowODE


def loss_weights(process: ForwardProcess) -> Tensor:
    """gamma_1 ... gamma_T, for squared errors summed over the dimensions; float64, shape ``(T,)``.

    Raises:
        ValueError: if a step of the process has no noise, as with eta = 0: its weight is infinite.
    """
    _check_noisy(process)
    weights = [
        (sigma - process.down(t)) ** 2 / (2 * up**2)
        for t, (sigma, up) in enumerate(zip(process.sigmas, process.ups, strict=True), start=1)
    ]
    return torch.tensor(weights, dtype=torch.float64)


def denoising_losses(ode: ProbabilityFlowODE, process: ForwardProcess, x_0: Tensor, eps: Tensor) -> Tensor:
    """E |eps_theta(x_t) - eps|^2 for t = 1 ... T, summed over dimensions and meant over the batch; shape ``(T,)``.

    ``x_0`` is ``(B, C, H, W)`` and ``eps``, the noise in x_1 ... x_T, ``(T, B, C, H, W)``. Costs T evaluations.
    """
    return torch.stack([_squared(_predict(ode, process, x_0, eps, t) - eps[t - 1]) for t in range(1, len(process) + 1)])


def objective(ode: ProbabilityFlowODE, process: ForwardProcess, x_0: Tensor, eps: Tensor) -> Tensor:
    """J of Eq. (11), in nats, meant over the batch; shape ``()``. The generative process starts from N(0, I).

    Arguments and cost are those of ``denoising_losses``. Where x_0 and eps are samples this is an estimate, in which
    only x_t is drawn: the expectation over x_{t-1} is taken exactly.

    Raises:
        ValueError: if a step of the process has no noise, as with eta = 0.
    """
    _check_noisy(process)
    terms = [_term(ode, process, x_0, eps, t) for t in range(1, len(process) + 1)]
    return torch.stack(terms).sum() + _prior(process, x_0)


def _term(ode: ProbabilityFlowODE, process: ForwardProcess, x_0: Tensor, eps: Tensor, t: int) -> Tensor:
    """KL divergence of the step from x_t, or -log p(x_0 | x_1); from the means and deviation of Eq. (7)."""
    mean, std = process.marginal(x_0, t)
    x_t = mean + std * eps[t - 1]
    guess = (x_t - std * _predict(ode, process, x_0, eps, t)) / sqrt(process.alpha_bar(t))
    true, std = process.posterior(x_t, x_0, t)
    guessed, _ = process.posterior(x_t, guess, t)
    divergence = _squared(true - guessed) / (2 * std**2)
    return divergence if t > 1 else divergence + x_0[0].numel() * log(2 * pi * std**2) / 2


def _prior(process: ForwardProcess, x_0: Tensor) -> Tensor:
    """E log q(x_T | x_0) / p(x_T), the KL divergence from N(0, I)."""
    mean, std = process.marginal(x_0, len(process))
    return _squared(mean) / 2 + x_0[0].numel() * ((std**2 - 1) / 2 - log(std))


def _predict(ode: ProbabilityFlowODE, process: ForwardProcess, x_0: Tensor, eps: Tensor, t: int) -> Tensor:
    sigma = torch.tensor(process.sigmas[t - 1], dtype=torch.float64)
    slope: Tensor = ode(sigma, x_0 + process.sigmas[t - 1] * eps[t - 1])
    return slope


def _squared(x: Tensor) -> Tensor:
    """|x|^2 of each member, meant over the batch."""
    return x.square().flatten(1).sum(1).mean()


def _check_noisy(process: ForwardProcess) -> None:
    for t, up in enumerate(process.ups, start=1):
        if not up > 0:
            raise ValueError(
                f"the step from x_{t} to x_{t - 1} adds no noise, and its weight would be infinite; "
                "take eta > 0, and a noise above 0 for the step to x_0"
            )
