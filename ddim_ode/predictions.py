"""Predictions: what a network of a DDPM may predict. The ODE, training and the command line read this one table.

With x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps, sigma^2 = (1 - alpha_bar) / alpha_bar.

Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", arXiv 2202.00512, Appendix D, for the
three predictions and their losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """What a network may predict; all tensors are ``(B, C, H, W)``, or broadcast to it.

    ``eps``        eps from the output, the input x and sigma.
    ``target``     what the output should be, from x_0, eps and alpha_bar.
    ``own_gamma``  the weight gamma(alpha_bar) with which L_gamma, DDIM's Eq. (5), is the plain squared error of the
                   output: the squared error of the output that goes with an error of 1 in eps.
    ``at_zero``    whether eps can be had at sigma = 0, where x is x_0.
    ``origin``     x_0 from the output where sigma is infinite and x is noise; None if the output says nothing of it.
    """

    eps: Callable[[Tensor, Tensor, Tensor], Tensor]
    target: Callable[[Tensor, Tensor, Tensor], Tensor]
    own_gamma: Callable[[Tensor], Tensor]
    at_zero: bool = True
    origin: Callable[[Tensor], Tensor] | None = None


def _eps_from_eps(output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    return output


def _eps_from_v(output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    return (output + sigma * x) / (1 + sigma**2).sqrt()


def _eps_from_x_0(output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    return (x * (1 + sigma**2).sqrt() - output) / sigma


def _x_0_from_v(output: Tensor) -> Tensor:
    return -output


def _same(output: Tensor) -> Tensor:
    return output


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
    "v_prediction": Prediction(_eps_from_v, _v, _inverse, origin=_x_0_from_v),
    "sample": Prediction(_eps_from_x_0, _x_0, _variance, at_zero=False, origin=_same),
}


def find_prediction(name: str) -> Prediction:
    """The row of ``PREDICTIONS`` called ``name``.

    Raises:
        ValueError: if there is none.
    """
    if name not in PREDICTIONS:
        raise ValueError(f"unknown prediction '{name}'; choose one of: {', '.join(sorted(PREDICTIONS))}")
    return PREDICTIONS[name]
