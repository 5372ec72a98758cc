"""A model of data whose ODE has a solution in closed form: N(0, SD^2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddim_ode.models import Model
from ddim_ode.processes import VariancePreserving
from ddim_ode.schedule import make_schedule

SD = 0.5


class BestNetwork(nn.Module):
    """The best v for it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("unused", nn.Parameter(torch.zeros(1)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and t ``(B,)`` to ``(B, C, H, W)``."""
        alpha_bar = 1 / (1 + make_schedule().sigma(t).square()).float().reshape(-1, 1, 1, 1)
        return (1 - alpha_bar).sqrt() * alpha_bar.sqrt() * (1 - SD**2) / (alpha_bar * SD**2 + 1 - alpha_bar) * x


def best_model(size: int) -> Model:
    """It, for images ``(B, 3, size, size)``."""
    return Model("best", BestNetwork(), VariancePreserving(make_schedule(), "v_prediction"), 3, size, size)
