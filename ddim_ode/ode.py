"""The ODE of DDIM as a torch module (Song et al., arXiv 2010.02502, Eq. (14)).

Notation: x is the network's input, x_bar = x / sqrt(alpha_bar) = x sqrt(1 + sigma^2) the state of the ODE, and
eps the network's estimate of the noise in x. Integrated towards larger sigma the ODE encodes, towards smaller it
decodes; it is regular at sigma = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf

from torch import Tensor, nn

from ddim_ode.predictor import Closing, Network, Predictor
from ddim_ode.processes import Process, VariancePreserving
from ddim_ode.schedule import NoiseSchedule


class EvaluationLimitError(RuntimeError):
    """The network was about to be called more often than the ODE allows."""


class ProbabilityFlowODE(nn.Module):
    """d x_bar / d sigma = eps(x_bar / sqrt(1 + sigma^2), t(sigma)). DDIM, arXiv 2010.02502, Eq. (14).

    Networks of other families say eps in other ways, and the ODE is the same.

    ``network``     module or function ``(x, t)``: x ``(B, C, H, W)``, t ``(B,)``, to ``(B, C, H, W)``. A module
                    is called in the dtype of its parameters; a function in that of the state. One that is told more of
                    each member of a batch has a method ``of``, as ``predictor.MemberNetwork`` says.
    ``process``     how it wants to be asked, and what it answers; or the noise schedule of a DDPM.
    ``prediction``  what a DDPM predicts: a key of ``predictions.PREDICTIONS``; 'epsilon' unless given.
    ``max_nfe``     the most network evaluations between two calls of ``reset``; None for no limit.
    ``nfe``         the number of network evaluations so far. They are counted here and nowhere else.

    Raises:
        ValueError: for an unknown prediction, or one beside a process, which has its own; a limit below 1.
    """

    def __init__(
        self,
        network: Network,
        process: Process | NoiseSchedule,
        *,
        prediction: str | None = None,
        max_nfe: int | None = None,
    ) -> None:
        super().__init__()
        if max_nfe is not None and max_nfe < 1:
            raise ValueError(f"max_nfe must be at least 1, but it is {max_nfe}")
        if isinstance(process, NoiseSchedule):
            process = VariancePreserving(process, prediction or "epsilon")
        elif prediction is not None:
            raise ValueError(f"a process says itself what is predicted; leave out the prediction '{prediction}'")
        self.predictor = Predictor(network, process)
        self.max_nfe = max_nfe
        self.nfe = 0

    def reset(self) -> None:
        """Start counting at zero again."""
        self.nfe = 0

    def forward(self, sigma: Tensor, x_bar: Tensor, members: Tensor | None = None, told: float | None = None) -> Tensor:
        """Slope d x_bar / d sigma at ``sigma``, shape ``()`` or ``(B,)``, and ``x_bar``, shape ``(B, C, H, W)``.

        Returns shape ``(B, C, H, W)`` in the dtype of ``x_bar``. Counts one evaluation.

        ``members``  where x_bar holds some members of a larger batch: their places in it, int64 ``(B,)``, on the CPU.
        ``told``     the sigma that the network is told, if it is another.

        Raises:
            EvaluationLimitError: if ``max_nfe`` evaluations have been made already.
            ValueError: at sigma = 0, for a network that predicts x_0.
        """
        self._count(sigma)
        predictor = self.predictor if members is None else self.predictor.of(members)
        slope: Tensor = predictor(sigma, x_bar, told)
        return slope

    def origin(self, noise: Tensor, told: float = inf) -> Tensor:
        """x_0 where sigma is infinite, of the ``noise`` that is the state there, ``(B, C, H, W)``; an evaluation too.

        ``told``  the sigma that the network is told.

        Raises:
            EvaluationLimitError: as ``forward`` does.
            ValueError: if the process does not reach infinity.
        """
        self._count(inf)
        return self.predictor.origin(noise, told)

    def of(self, members: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The ODE of some ``members`` of a batch, int64 ``(A,)``: what solvers ask whose members leave the batch."""
        return partial(self, members=members)

    def told(self, sigma: float) -> ToldODE:
        """The ODE whose network is told ``sigma`` wherever it is evaluated; evaluations are counted here."""
        return ToldODE(self, sigma)

    def close(self) -> None:
        """End what the network keeps up between evaluations, if it does; the next one begins anew."""
        if isinstance(self.predictor.network, Closing):
            self.predictor.network.close()

    def _count(self, sigma: Tensor | float) -> None:
        """Count one evaluation more, at ``sigma``, any shape, if there may be one."""
        if self.max_nfe is not None and self.nfe >= self.max_nfe:
            largest = sigma if isinstance(sigma, float) else float(sigma.max())
            raise EvaluationLimitError(
                f"the limit of {self.max_nfe} network evaluations was reached at sigma = {largest:.6g}; "
                "raise the limit, or take fewer steps or larger tolerances"
            )
        self.nfe += 1


@dataclass(frozen=True, eq=False)
class ToldODE:
    """An ``ode`` whose network is told one ``sigma``, wherever the state is: what fitted solvers ask."""

    ode: ProbabilityFlowODE
    sigma: float

    def __call__(self, sigma: Tensor, x_bar: Tensor) -> Tensor:
        """The slope at ``sigma``, ``()`` or ``(B,)``, and ``x_bar``, ``(B, C, H, W)``, as the ODE's ``forward``."""
        slope: Tensor = self.ode(sigma, x_bar, told=self.sigma)
        return slope

    def origin(self, noise: Tensor) -> Tensor:
        """x_0 where sigma is infinite, as the ODE's ``origin``; both ``(B, C, H, W)``."""
        return self.ode.origin(noise, self.sigma)
