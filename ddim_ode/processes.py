"""Processes: how a network wants to be asked, and what it answers. The ODE, training and planning read this one table.

Notation: sigma is the noise level of x_bar = x_0 + sigma eps; the process says what of x_bar the network sees, x, with
which label t, and how eps, the slope of the ODE, follows from what it answers. For the variance-preserving process of
DDPM x = x_bar / sqrt(1 + sigma^2) = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502; Salimans and Ho, "Progressive Distillation for
Fast Sampling of Diffusion Models", arXiv 2202.00512, Appendix D, for the three predictions and their losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ddim_ode.schedule import NoiseSchedule


@dataclass(frozen=True)
class Prediction:
    """What a network may predict; all tensors are ``(B, C, H, W)``, or broadcast to it.

    ``eps``        eps from the output, the input x and sigma.
    ``target``     what the output should be, from x_0, eps and alpha_bar.
    ``own_gamma``  the weight gamma(alpha_bar) with which L_gamma, DDIM's Eq. (5), is the plain squared error of the
                   output: the squared error of the output that goes with an error of 1 in eps.
    ``at_zero``    whether eps can be had at sigma = 0, where x is x_0.
    """

    eps: Callable[[Tensor, Tensor, Tensor], Tensor]
    target: Callable[[Tensor, Tensor, Tensor], Tensor]
    own_gamma: Callable[[Tensor], Tensor]
    at_zero: bool = True


def _eps_from_eps(output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    return output


def _eps_from_v(output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    return (output + sigma * x) / (1 + sigma**2).sqrt()


def _eps_from_x_0(output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    return (x * (1 + sigma**2).sqrt() - output) / sigma


def _eps(x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    return eps


def _v(x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0


def _x_0(x_0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    return x_0


def _one(alpha_bar: Tensor) -> Tensor:
    return alpha_bar.new_ones(alpha_bar.shape)


def _inverse(alpha_bar: Tensor) -> Tensor:
    return alpha_bar.reciprocal()


def _variance(alpha_bar: Tensor) -> Tensor:
    """sigma^2, the square of what an error in eps is multiplied by in x_0."""
    return (1 - alpha_bar) / alpha_bar


# The table, by the names that diffusers gives the predictions.
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": Prediction(_eps_from_eps, _eps, _one),
    "v_prediction": Prediction(_eps_from_v, _v, _inverse),
    "sample": Prediction(_eps_from_x_0, _x_0, _variance, at_zero=False),
}


def find_prediction(name: str) -> Prediction:
    """The row of ``PREDICTIONS`` called ``name``.

    Raises:
        ValueError: if there is none.
    """
    if name not in PREDICTIONS:
        raise ValueError(f"unknown prediction '{name}'; choose one of: {', '.join(sorted(PREDICTIONS))}")
    return PREDICTIONS[name]


class VariancePreserving:
    """The process of DDPM and DDIM: x = x_bar / sqrt(1 + sigma^2), labels are the timesteps of a ``schedule``.

    Raises:
        ValueError: for an unknown ``prediction``.
    """

    def __init__(self, schedule: NoiseSchedule, prediction: str) -> None:
        self.schedule = schedule
        self._prediction = find_prediction(prediction)

    @property
    def at_zero(self) -> bool:
        """Whether the slope can be had at sigma = 0."""
        return self._prediction.at_zero

    def label(self, sigma: Tensor) -> Tensor:
        """The timestep t that the network is told at ``sigma``, any shape; float64, the same shape."""
        return self.schedule.t(sigma)

    def scale(self, sigma: Tensor) -> Tensor:
        """What x_bar is divided by to be the network's input at ``sigma``; any shape, the same dtype."""
        return (1 + sigma**2).sqrt()

    def eps(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """eps from the network's ``output`` for ``x``, both ``(B, C, H, W)``, at ``sigma``, which broadcasts to it."""
        return self._prediction.eps(output, x, sigma)
