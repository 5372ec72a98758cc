"""The predictor: a network and a process make eps(sigma, x_bar), the slope of the ODE."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf, isfinite
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ddim_ode.processes import Process

# eps(x, t): x (B, C, H, W) and timesteps t (B,) to the prediction (B, C, H, W).
Network = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class MemberNetwork(Protocol):
    """A network that is told more of each member of a batch than x and t, such as its class."""

    def of(self, members: Tensor) -> Network:
        """The network for some ``members``, by their places in the batch: int64, shape ``(A,)``, on the CPU."""


@runtime_checkable
class Closing(Protocol):
    """A network that keeps something up between evaluations, such as a pipeline at work."""

    def close(self) -> None:
        """End it; the next evaluation begins anew."""


@runtime_checkable
class OneLabel(Protocol):
    """A network that is told one label for all members of a batch, as a pipeline is."""

    def all_at(self, x: Tensor, t: Tensor) -> Tensor:
        """What it says of x, ``(B, C, H, W)``, at the label t, ``()``; like x in shape."""


class Predictor(nn.Module):
    """eps as a function of sigma and x_bar.

    ``network``  module or function ``(x, t)``: x ``(B, C, H, W)``, labels t ``(B,)``, to ``(B, C, H, W)``. A module is
                 called in the dtype of its parameters; a function in that of the state.
    ``process``  how it wants to be asked, and what it answers.
    """

    def __init__(self, network: Network, process: Process) -> None:
        super().__init__()
        self.network = network
        self.process = process

    def forward(self, sigma: Tensor, x_bar: Tensor, told: float | None = None) -> Tensor:
        """eps at ``sigma``, shape ``()`` or ``(B,)``, and ``x_bar``, ``(B, C, H, W)``; like x_bar in shape and dtype.

        ``told``  the sigma whose label the network is told, if that is another.

        Raises:
            ValueError: at sigma = 0, if the process has no slope there.
        """
        self._check_slope(sigma)
        level = _level(sigma, x_bar)
        x = x_bar / self.process.scale(level)
        one = float(sigma) if told is None and sigma.ndim == 0 else told
        label = self.process.label(sigma) if one is None else _label(self.process, one)
        return self.process.eps(self._call(x, label), x, level)

    def origin(self, noise: Tensor, told: float = inf) -> Tensor:
        """x_0 where sigma is infinite, of the ``noise`` alone that is there; both ``(B, C, H, W)``.

        ``told``  the sigma whose label the network is told.

        Raises:
            ValueError: if the process does not reach infinity.
        """
        end = self.process.schedule.sigma_max
        if isfinite(end):
            raise ValueError(f"the noise levels of this model end at sigma = {end:.6g}; it says nothing of infinity")
        return self.process.origin(self._call(noise, _label(self.process, told)), noise)

    def of(self, members: Tensor) -> Predictor:
        """The predictor for some ``members`` of the batch, int64 ``(A,)``; itself if the network treats all alike."""
        network = self.network
        return Predictor(network.of(members), self.process) if isinstance(network, MemberNetwork) else self

    def _check_slope(self, sigma: Tensor) -> None:
        if not self.process.at_zero and bool((sigma == 0).any()):
            raise ValueError(
                f"a network that predicts {self.process.predicts} has no slope at sigma = 0, where it would be 0 / 0; "
                "take the clean end 'sigma-min', or a solver that does not evaluate there"
            )

    def _call(self, x: Tensor, label: Tensor | float) -> Tensor:
        """The network's output in the dtype of ``x``, ``(B, C, H, W)``, computed in the network's own.

        ``label``  for all, or for each, ``(B,)``.
        """
        parameter = next(self.parameters(), None)
        dtype = x.dtype if parameter is None else parameter.dtype
        # float32 holds every timestep to 1e-4 of an index; half precision would not.
        exact = torch.float32 if dtype.itemsize < 8 else dtype
        if isinstance(label, float):  # filled in on the device, which then waits for no copy
            if isinstance(self.network, OneLabel):
                return self.network.all_at(x.to(dtype), torch.full((), label, dtype=exact, device=x.device)).to(x.dtype)
            t = torch.full((len(x),), label, dtype=exact, device=x.device)
        else:
            t = label.to(exact).to(x.device)
        return self.network(x.to(dtype), t).to(x.dtype)


@lru_cache(maxsize=4096)  # batch after batch goes along the same grid
def _label(process: Process, sigma: float) -> float:
    """What the network is told at ``sigma``."""
    return float(process.label(torch.tensor(sigma, dtype=torch.float64)))


def _level(sigma: Tensor, x_bar: Tensor) -> Tensor:
    """``sigma``, ``()`` or ``(B,)``, as what multiplies ``x_bar``, ``(B, C, H, W)``; one on the CPU stays there."""
    if sigma.ndim == 0 and sigma.device.type == "cpu":
        return sigma.to(x_bar.dtype)
    return sigma.to(x_bar).reshape(-1, *[1] * (x_bar.ndim - 1))
