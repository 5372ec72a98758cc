"""The ODE of DDIM as a torch module (Song et al., arXiv 2010.02502, Eq. (14)).

Notation: x is the network's input, x_bar = x / sqrt(alpha_bar) = x sqrt(1 + sigma^2) the state of the ODE, and
eps the network's estimate of the noise in x. Integrated towards larger sigma the ODE encodes, towards smaller it
decodes; it is regular at sigma = 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddim_ode.schedule import NoiseSchedule

# eps(x, t): x (B, C, H, W) and timesteps t (B,) to the prediction (B, C, H, W).
Network = Callable[[Tensor, Tensor], Tensor]


class EvaluationLimitError(RuntimeError):
    """The network was about to be called more often than the ODE allows."""


def _eps_from_eps(output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    return output


def _eps_from_v(output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0. Salimans and Ho, arXiv 2202.00512, Appendix D."""
    return (output + sigma * x) / (1 + sigma**2).sqrt()


# What a network may predict, by the name that diffusers gives it, and eps computed from that.
PREDICTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": _eps_from_eps,
    "v_prediction": _eps_from_v,
}


class ProbabilityFlowODE(nn.Module):
    """d x_bar / d sigma = eps(x_bar / sqrt(1 + sigma^2), t(sigma)). DDIM, arXiv 2010.02502, Eq. (14).

    ``network``     module or function ``(x, t)``: x ``(B, C, H, W)``, t ``(B,)``, to ``(B, C, H, W)``. A module
                    is called in the dtype of its parameters; a function in that of the state.
    ``prediction``  what it predicts: 'epsilon' or 'v_prediction'.
    ``max_nfe``     the most network evaluations between two calls of ``reset``; None for no limit.
    ``nfe``         the number of network evaluations so far. They are counted here and nowhere else.

    Raises:
        ValueError: for an unknown prediction, or a limit below 1.
    """

    def __init__(
        self, network: Network, schedule: NoiseSchedule, *, prediction: str = "epsilon", max_nfe: int | None = None
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction '{prediction}'; choose one of: {', '.join(sorted(PREDICTIONS))}")
        if max_nfe is not None and max_nfe < 1:
            raise ValueError(f"max_nfe must be at least 1, but it is {max_nfe}")
        self.network = network
        self.schedule = schedule
        self.max_nfe = max_nfe
        self.nfe = 0
        self._to_eps = PREDICTIONS[prediction]

    def reset(self) -> None:
        """Start counting at zero again."""
        self.nfe = 0

    def forward(self, sigma: Tensor, x_bar: Tensor) -> Tensor:
        """Slope d x_bar / d sigma at ``sigma``, shape ``()`` or ``(B,)``, and ``x_bar``, shape ``(B, C, H, W)``.

        Returns shape ``(B, C, H, W)`` in the dtype of ``x_bar``. Counts one evaluation.

        Raises:
            EvaluationLimitError: if ``max_nfe`` evaluations have been made already.
        """
        if self.max_nfe is not None and self.nfe >= self.max_nfe:
            raise EvaluationLimitError(
                f"the limit of {self.max_nfe} network evaluations was reached at sigma = {float(sigma.max()):.6g}; "
                "raise the limit, or take fewer steps or larger tolerances"
            )
        self.nfe += 1
        batch = x_bar.shape[0]
        t = self.schedule.t(sigma).expand(batch)
        level = sigma.to(x_bar).reshape(-1, *[1] * (x_bar.ndim - 1))
        x = x_bar / (1 + level**2).sqrt()
        return self._to_eps(self._call(x, t), x, level)

    def _call(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output in the dtype of ``x``, computed in the network's own."""
        parameter = next(self.parameters(), None)
        dtype = x.dtype if parameter is None else parameter.dtype
        # float32 holds every timestep to 1e-4 of an index; half precision would not.
        time = t.to(x.device, torch.float32 if dtype.itemsize < 8 else dtype)
        return self.network(x.to(dtype), time).to(x.dtype)
