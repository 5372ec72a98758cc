"""Processes: how a network wants to be asked, and what it answers; one for each family of models.

Notation: sigma is the noise level of x_bar = x_0 + sigma eps. The process says what of x_bar the network sees, x; what
it is told beside it, the label; and how eps, the slope of the ODE, follows from what it answers. Where sigma is
infinite, x_bar is not defined, but x is, and is the noise itself.

| family | x | label | eps from the output o |
|---|---|---|---|
| vp | x_bar / sqrt(1 + sigma^2) | timestep | as ``predictions`` says |
| flow | x_bar / (1 + sigma) | 1000 sigma / (1 + sigma) | (x_bar + o) / (1 + sigma) |
| edm, F | x_bar / w, w^2 = sigma^2 + sd^2 | log(sigma) / 4 | (sigma x - sd o) / w |
| edm, D | x_bar | sigma | (x_bar - o) / sigma |
| ve | x_bar | sigma | -sigma o |

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, for the variance-preserving process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf, isinf
from typing import ClassVar

import torch
from torch import Tensor

from ddim_ode.levels import FlowLevels, GeometricLevels, Levels
from ddim_ode.predictions import find_prediction
from ddim_ode.schedule import NoiseSchedule


class Process(ABC):
    """What a family of models has in common: how the network wants to be asked at a sigma, and what it answers.

    ``family``      'vp', 'flow', 'edm' or 've'.
    ``prediction``  what the network predicts.
    ``schedule``    the noise levels of its training.
    """

    family: ClassVar[str]
    prediction: str

    @property
    @abstractmethod
    def schedule(self) -> Levels:
        """The noise levels of training."""

    @property
    def at_zero(self) -> bool:
        """Whether the slope can be had at sigma = 0."""
        return False

    @property
    def predicts(self) -> str:
        """What the network predicts, in a message."""
        return "x_0" if self.prediction == "sample" else self.prediction

    @abstractmethod
    def label(self, sigma: Tensor) -> Tensor:
        """What the network is told at ``sigma``, any shape; float64, the same shape."""

    @abstractmethod
    def scale(self, sigma: Tensor) -> Tensor:
        """What x_bar is divided by to be the network's input at ``sigma``; any shape, the same dtype."""

    @abstractmethod
    def eps(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """eps from the network's ``output`` for ``x``, both ``(B, C, H, W)``, at ``sigma``, which broadcasts to it."""

    def origin(self, output: Tensor, x: Tensor) -> Tensor:
        """x_0 from the network's ``output`` for ``x``, both ``(B, C, H, W)``, where sigma is infinite and x is noise.

        Raises:
            ValueError: if networks of this kind say nothing of x_0 there.
        """
        raise ValueError(f"a network of the family '{self.family}' is not defined at sigma = infinity")


class VariancePreserving(Process):
    """The process of DDPM and DDIM: x = x_bar / sqrt(1 + sigma^2), labels are the timesteps of a ``schedule``.

    Raises:
        ValueError: for an unknown ``prediction``, or one of eps on a schedule that ends with nothing but noise.
    """

    family = "vp"

    def __init__(self, schedule: NoiseSchedule, prediction: str) -> None:
        self._schedule = schedule
        self.prediction = prediction
        self._prediction = find_prediction(prediction)
        if isinf(schedule.sigma_max) and self._prediction.origin is None:
            raise ValueError(
                f"a network that predicts '{prediction}' says nothing of the image where there is only noise, at the "
                f"end of schedule '{schedule.name}'; networks with zero terminal SNR predict v or x_0"
            )

    @property
    def schedule(self) -> NoiseSchedule:
        return self._schedule

    @property
    def at_zero(self) -> bool:
        return self._prediction.at_zero

    def label(self, sigma: Tensor) -> Tensor:
        return self._schedule.t(sigma)

    def scale(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**2).sqrt()

    def eps(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return self._prediction.eps(output, x, sigma)

    def origin(self, output: Tensor, x: Tensor) -> Tensor:
        if self._prediction.origin is None:
            return super().origin(output, x)
        return self._prediction.origin(output)


class Flow(Process):
    """Flow matching: x = (1 - u) x_0 + u eps with u = sigma / (1 + sigma), from u = 1, where there is eps alone.

    The network predicts the velocity dx/du = eps - x_0, and is told ``label_scale`` u: 1000 u by most, u by some.
    Lipman et al., arXiv 2210.02747; Esser et al., arXiv 2403.03206, whose shifts of u are a matter of the grid.

    Raises:
        ValueError: for fewer than 2 ``timesteps``, or a label scale that is not a finite number above 0.
    """

    family = "flow"
    prediction = "velocity"

    def __init__(self, timesteps: int = 1000, *, label_scale: float = 1000.0) -> None:
        if not 0 < label_scale < inf:
            raise ValueError(f"label_scale must be a finite number above 0, but it is {label_scale:g}")
        self._levels = FlowLevels(timesteps)
        self._label_scale = label_scale

    @property
    def schedule(self) -> FlowLevels:
        return self._levels

    @property
    def at_zero(self) -> bool:
        return True

    def label(self, sigma: Tensor) -> Tensor:
        return self._label_scale * (1 - 1 / (1 + sigma.double()))

    def scale(self, sigma: Tensor) -> Tensor:
        return 1 + sigma

    def eps(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return x + output / (1 + sigma)

    def origin(self, output: Tensor, x: Tensor) -> Tensor:
        return x - output


# What a network with the preconditioning of EDM may give, by the names of diffusers' EDM schedulers: F, with either
# sign in its part of the denoised image, or that image D itself.
EDM_PREDICTIONS = ("epsilon", "v_prediction", "sample")


class EDM(Process):
    """The design of Karras et al., arXiv 2206.00364, for data of the standard deviation sd = ``sigma_data``.

    ``prediction``  'epsilon' for F, where the denoised image is D = (sd^2 x_bar + sigma sd w F) / w^2 with
                    w^2 = sigma^2 + sd^2 (Table 1); 'v_prediction' for -F; 'sample' for D itself, asked with x_bar and
                    sigma.
    ``sigma_min``, ``sigma_max``  the ends of training.

    Raises:
        ValueError: for another prediction, or numbers that are not positive and rising.
    """

    family = "edm"

    def __init__(
        self,
        *,
        prediction: str = "epsilon",
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        if prediction not in EDM_PREDICTIONS:
            raise ValueError(f"unknown prediction '{prediction}' of EDM; choose one of: {', '.join(EDM_PREDICTIONS)}")
        if not 0 < sigma_data < inf:
            raise ValueError(f"sigma_data must be a finite number above 0, but it is {sigma_data:g}")
        self.prediction = prediction
        self._levels = GeometricLevels(sigma_min, sigma_max)
        self._sd = sigma_data

    @property
    def schedule(self) -> GeometricLevels:
        return self._levels

    def label(self, sigma: Tensor) -> Tensor:
        sigma = sigma.double().clamp(min=0)
        return sigma if self.prediction == "sample" else sigma.log() / 4

    def scale(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma) if self.prediction == "sample" else (sigma**2 + self._sd**2).sqrt()

    def eps(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        if self.prediction == "sample":
            return (x - output) / sigma
        signed = -output if self.prediction == "v_prediction" else output
        return (sigma * x - self._sd * signed) / (sigma**2 + self._sd**2).sqrt()


class VarianceExploding(Process):
    """Score matching with growing noise: the network sees x_bar and sigma, and gives the score, -eps / sigma.

    Song et al., "Score-Based Generative Modeling through SDEs", arXiv 2011.13456, Appendix C.

    Raises:
        ValueError: unless 0 < ``sigma_min`` < ``sigma_max`` < infinity.
    """

    family = "ve"
    prediction = "score"

    def __init__(self, *, sigma_min: float = 0.01, sigma_max: float = 348.0) -> None:
        self._levels = GeometricLevels(sigma_min, sigma_max)

    @property
    def schedule(self) -> GeometricLevels:
        return self._levels

    def label(self, sigma: Tensor) -> Tensor:
        return sigma.double().clamp(min=0)

    def scale(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def eps(self, output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return -sigma * output


FAMILIES = tuple(process.family for process in (VariancePreserving, Flow, EDM, VarianceExploding))
