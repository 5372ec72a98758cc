"""Mean, median and trimmed mean of a figure over images, and how well each is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim_ode.session.material import trimmed_mean

# Of the images, to see how the figures would vary with others.
RESAMPLES = 1000


@dataclass(frozen=True)
class Spread:
    """``mean``, ``median``, and ``trimmed`` as in ``trimmed_mean``; ``_low`` and ``_high`` are the ends of the 95 %
    bootstrap interval of each: Efron, "Bootstrap Methods: Another Look at the Jackknife", Ann. Statist. 7, 1979."""

    mean: float
    mean_low: float
    mean_high: float
    median: float
    median_low: float
    median_high: float
    trimmed: float
    trimmed_low: float
    trimmed_high: float


def spread(values: Tensor) -> Spread:
    """The spread of ``values``, shape ``(B,)``; it is the same for the same values."""
    count = len(values)
    chosen = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(0))
    resampled = values.cpu()[chosen]
    functions: tuple[Callable[[Tensor], Tensor], ...] = (_mean, _median, trimmed_mean)
    return Spread(*(number for function in functions for number in _with_interval(function, values, resampled)))


def _mean(values: Tensor) -> Tensor:
    return values.mean(-1)


def _median(values: Tensor) -> Tensor:
    """The median over the last dimension; of an even number the mean of the two in the middle, infinities included."""
    ordered, count = values.sort(-1).values, values.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2


def _with_interval(
    function: Callable[[Tensor], Tensor], values: Tensor, resampled: Tensor
) -> tuple[float, float, float]:
    """What ``function`` makes of ``values``, ``(B,)``, and where 95 % of it lie for ``resampled``, ``(N, B)``."""
    found = function(resampled).sort().values
    low, high = (float(found[round(part * (len(found) - 1))]) for part in (0.025, 0.975))
    return float(function(values)), low, high
